//! SDM chapter 4: translation, access rights and error codes, reserved bits, accessed and dirty flags.

use silicon::state::cr;

use crate::machine::*;

#[test]
fn without_paging_linear_is_physical() {
    let mut m = Machine::new();
    m.poke(0x3008, 7);
    assert_eq!(m.read(0x3008), Ok(7));
    assert_eq!(m.cpu.fetch(0x3008), Ok(0x3008));
}

#[test]
fn bits32_4k() {
    let mut m = Machine::bits32();
    let (directory, table) = (m.cpu.state.cr3, m.table());
    m.cpu.memory.write(directory + 4, (table | P | W | U) as u32);
    m.cpu.memory.write(table + 8, (0x5000 | P | W | U) as u32);
    m.poke(0x5010, 0x1234);
    assert_eq!(m.read(0x40_2010), Ok(0x1234));
    assert_eq!(m.cpu.memory.read::<u32>(directory + 4) & A as u32, A as u32);
    assert_eq!(m.cpu.memory.read::<u32>(table + 8) & (A | D) as u32, A as u32);
    assert_eq!(m.write(0x40_2018, 9), Ok(()));
    assert_eq!(m.cpu.memory.read::<u32>(table + 8) & (A | D) as u32, (A | D) as u32);
    assert_eq!(m.peek(0x5018), 9);
    let r = m.read(0x80_0000);
    assert_eq!(m.page_fault(0x80_0000, r), 0);
}

#[test]
fn bits32_4m_and_pse36() {
    let mut m = Machine::bits32();
    let directory = m.cpu.state.cr3;
    m.cpu.memory.write(directory + 8, (0x40_0000 | P | W | PS) as u32);
    m.poke(0x55_5008, 0xabcd);
    assert_eq!(m.read(0x95_5008), Ok(0xabcd));
    // PDE bits 20:13 are address bits 39:32; beyond RAM the bus answers with ones.
    m.cpu.memory.write(directory + 12, (P | W | PS | 1 << 13) as u32);
    assert_eq!(m.cpu.fetch(0xc0_1234), Ok(0x1_0000_1234));
    assert_eq!(m.read(0xc0_1234), Ok(!0));
    // Bit 21 is reserved.
    m.cpu.memory.write(directory + 16, (P | W | PS | 1 << 21) as u32);
    let r = m.read(0x100_0000);
    assert_eq!(m.page_fault(0x100_0000, r), 9);
    // Without CR4.PSE the bit is ignored and the entry references a table.
    let table = m.table();
    m.cpu.memory.write(directory + 20, (table | P | W | PS) as u32);
    m.cpu.memory.write(table, (0x6000 | P) as u32);
    m.cpu.state.cr4 = 0;
    m.refresh();
    assert_eq!(m.cpu.fetch(0x140_0123), Ok(0x6123));
}

#[test]
fn pae_4k_2m_and_registers() {
    let (mut m, directory) = Machine::pae();
    let table = m.table();
    m.poke(directory, table | P | W | U);
    m.poke(table + 8, 0x7000 | P | W);
    m.poke(directory + 8, 0x40_0000 | P | W | PS | NX);
    assert_eq!(m.cpu.fetch(0x1abc), Ok(0x7abc));
    m.poke(0x41_2340, 5);
    assert_eq!(m.read(0x21_2340), Ok(5));
    let r = m.cpu.fetch(0x21_2340);
    assert_eq!(m.page_fault(0x21_2340, r), 0x11, "no-execute");
    let r = m.read(0x4000_0000);
    assert_eq!(m.page_fault(0x4000_0000, r), 0, "PDPTE not present");
    // The registers, not memory, count until the next load.
    let pdpt = m.cpu.state.cr3;
    m.poke(pdpt + 8, directory | P);
    let r = m.read(0x4000_1000);
    assert_eq!(m.page_fault(0x4000_1000, r), 0);
    assert_eq!(m.cpu.load_pdptes(pdpt), Ok(()));
    assert!(m.read(0x4000_1000).is_ok());
    // A reserved bit is #GP(0) and loads nothing.
    for bit in [1, 2, 5, 6, 7, 8, 40, 51, 52, 63] {
        m.poke(pdpt, directory | P | 1 << bit);
        let result = m.cpu.load_pdptes(pdpt);
        assert!(result.is_err(), "bit {bit}");
        assert_eq!((m.cpu.fault.vector, m.cpu.fault.error), (13, Some(0)));
        assert_eq!(m.cpu.mmu.pdpte[0], directory | P);
    }
    m.poke(pdpt, 1 << 63 | 0x1e6);
    assert_eq!(m.cpu.load_pdptes(pdpt), Ok(()), "a PDPTE that is not present has no reserved bits");
    // Bits 62:52 are reserved in PAE entries.
    m.poke(pdpt, directory | P);
    m.cpu.load_pdptes(pdpt).unwrap();
    m.poke(table + 16, 0x8000 | P | 1 << 52);
    let r = m.read(0x2000);
    assert_eq!(m.page_fault(0x2000, r), 9);
}

#[test]
fn long_4k_2m_1g() {
    let mut m = Machine::long();
    let high = 0xffff_8000_0000_0000;
    m.map(high + 0x3000, 0x9000 | P | W, 1);
    m.map(0x4020_0000, 0x20_0000 | P | W | PS, 2);
    m.map(0x80_0000_0000, P | W | PS, 3);
    m.poke(0x9ff8, 1);
    m.poke(0x31_1110, 2);
    m.poke(0x12_3450, 3);
    assert_eq!(m.read(high + 0x3ff8), Ok(1));
    assert_eq!(m.read(0x4031_1110), Ok(2));
    assert_eq!(m.read(0x80_0012_3450), Ok(3));
    let r = m.read(high + 0x4000);
    assert_eq!(m.page_fault(high + 0x4000, r), 0);
    // Not canonical: #GP(0), the address in the payload.
    assert!(m.read(0x8000_0000_0000).is_err());
    assert_eq!((m.cpu.fault.vector, m.cpu.fault.payload), (13, 0x8000_0000_0000));
}

#[test]
fn reserved_bits_of_long_mode() {
    let cases: [(u32, u64, &str); 8] = [
        (1, 0x5000 | 1 << 40, "PTE bit 40"),
        (1, 0x5000 | 1 << 51, "PTE bit 51"),
        (2, 0x20_0000 | PS | 1 << 13, "2-MiB page bit 13"),
        (2, 0x20_0000 | PS | 1 << 20, "2-MiB page bit 20"),
        (3, 0x4000_0000 | PS | 1 << 13, "1-GiB page bit 13"),
        (3, 0x4000_0000 | PS | 1 << 29, "1-GiB page bit 29"),
        (4, 0x5000 | PS, "PML4E bit 7"),
        (2, 0x5000 | 1 << 45, "PDE bit 45"),
    ];
    for (level, entry, what) in cases {
        let mut m = Machine::long();
        m.map(0x1000, entry | P, level);
        let r = m.read(0x1000);
        assert_eq!(m.page_fault(0x1000, r), 9, "{what}, read");
        let r = m.write(0x1000, 0);
        assert_eq!(m.page_fault(0x1000, r), 0xb, "{what}, write");
    }
    // Bit 63 is reserved without NXE; bits 62:52 are ignored.
    let mut m = Machine::long();
    m.map(0x1000, 0x5000 | P | NX, 1);
    m.map(0x2000, 0x5000 | P | 0x7ff << 52, 1);
    assert!(m.read(0x1000).is_ok() && m.read(0x2000).is_ok());
    m.cpu.state.efer &= !cr::EFER_NXE;
    m.refresh();
    let r = m.read(0x1000);
    assert_eq!(m.page_fault(0x1000, r), 9);
    assert!(m.read(0x2000).is_ok());
    // Bit 12 of a large page is PAT.
    m.map(0x20_0000, 0x20_0000 | P | PS | 1 << 12, 2);
    assert!(m.read(0x20_0000).is_ok());
}

/// What the SDM's section 4.6.1 allows, written down once more, as a table would.
fn allowed(kind: usize, user: bool, rights: (bool, bool, bool), wp: bool, smep: bool, smap: bool) -> bool {
    let (user_page, writable, nx) = rights;
    match (kind, user) {
        (0, true) => user_page,
        (1, true) => user_page && writable,
        (2, true) => user_page && !nx,
        (0, false) => !(user_page && smap),
        (1, false) if user_page => !smap && (!wp || writable),
        (1, false) => !wp || writable,
        _ => !(nx || user_page && smep),
    }
}

#[test]
fn access_rights_and_error_codes() {
    for case in 0..512u32 {
        let bit = |n: u32| case >> n & 1 != 0;
        let (rights, user) = ((bit(0), bit(1), bit(2)), bit(3));
        let (wp, smep, smap, ac, nxe) = (bit(4), bit(5), bit(6), bit(7), bit(8));
        if rights.2 && !nxe {
            continue; // reserved
        }
        let mut m = Machine::long();
        let s = &mut m.cpu.state;
        s.cr0 = if wp { s.cr0 | cr::CR0_WP } else { s.cr0 & !cr::CR0_WP };
        s.cr4 |= if smep { cr::CR4_SMEP } else { 0 } | if smap { cr::CR4_SMAP } else { 0 };
        s.efer = if nxe { s.efer } else { s.efer & !cr::EFER_NXE };
        let entry = if rights.0 { U } else { 0 } | if rights.1 { W } else { 0 } | if rights.2 { NX } else { 0 };
        m.map(0x1000, 0x5000 | P | entry, 1);
        m.ac(ac);
        m.cpl(if user { 3 } else { 0 });
        m.refresh();
        // Twice, and in every order: the second time through whatever the first has cached.
        for kind in [0, 1, 2, 1, 0, 2, 0] {
            let smap_now = smap && !user && !ac;
            let result = match kind {
                0 => m.read(0x1000).map(|_| ()),
                1 => m.write(0x1000, 0),
                _ => m.cpu.fetch(0x1000).map(|_| ()),
            };
            let context = format!("case {case:#b} kind {kind}");
            if allowed(kind, user, rights, wp, smep, smap_now) {
                assert_eq!(result, Ok(()), "{context}");
            } else {
                let fetch = if kind == 2 && (nxe || smep) { 16 } else { 0 };
                let code = 1 | if kind == 1 { 2 } else { 0 } | if user { 4 } else { 0 } | fetch;
                assert_eq!(m.page_fault(0x1000, result), code, "{context}");
            }
        }
    }
}

#[test]
fn implicit_accesses_are_supervisor_accesses_with_smap() {
    let mut m = Machine::long();
    m.cpu.state.cr4 |= cr::CR4_SMAP;
    m.map(0x1000, 0x5000 | P | W, 1);
    m.map(0x2000, 0x6000 | P | W | U, 1);
    m.cpl(3);
    m.ac(true);
    m.refresh();
    assert!(m.cpu.read_system::<u64>(0x1000).is_ok());
    assert_eq!(m.cpu.update_system::<u32>(0x1000, true, |v| Some(v | 2)), Ok(0));
    assert_eq!(m.cpu.write_system::<u8>(0x1001, 7), Ok(()));
    assert_eq!(m.peek(0x5000), 0x702);
    let r = m.cpu.read_system::<u64>(0x2000);
    assert_eq!(m.page_fault(0x2000, r), 1, "U/S is 0: supervisor access");
    assert!(m.read(0x2000).is_ok());
}

#[test]
fn error_code_of_a_fetch_from_a_missing_page() {
    let mut m = Machine::long();
    let r = m.cpu.fetch(0x1000);
    assert_eq!(m.page_fault(0x1000, r), 0x10);
    m.cpu.state.efer &= !cr::EFER_NXE;
    m.refresh();
    let r = m.cpu.fetch(0x1000);
    assert_eq!(m.page_fault(0x1000, r), 0);
    m.cpu.state.cr4 |= cr::CR4_SMEP;
    m.cpl(3);
    m.refresh();
    let r = m.cpu.fetch(0x1000);
    assert_eq!(m.page_fault(0x1000, r), 0x14);
}

#[test]
fn flags_are_set_by_what_succeeds_only() {
    let mut m = Machine::long();
    let at = m.map(0x1000, 0x5000 | P, 1);
    let pml4 = m.cpu.state.cr3;
    let r = m.write(0x1000, 0);
    assert_eq!(m.page_fault(0x1000, r), 3);
    assert_eq!((m.peek(at) & (A | D), m.peek(pml4) & A), (0, 0));
    assert!(m.cpu.probe_write(0x1000, 8).is_err());
    assert!(m.read(0x1000).is_ok());
    assert_eq!((m.peek(at) & (A | D), m.peek(pml4) & (A | D)), (A, A));
    // A read through a clean entry must not let a write pass without the dirty flag.
    let at = m.map(0x2000, 0x6000 | P | W, 1);
    assert!(m.read(0x2000).is_ok());
    assert_eq!(m.peek(at) & D, 0);
    assert!(m.write(0x2000, 0).is_ok());
    assert_eq!(m.peek(at) & D, D);
}

#[test]
fn accesses_over_two_pages() {
    let mut m = Machine::long();
    m.map(0x1000, 0x5000 | P | W | A | D, 1);
    m.map(0x2000, 0x9000 | P | W | A | D, 1);
    for offset in 1..8u64 {
        let at = 0x2000 - offset;
        assert_eq!(m.write(at, 0x8877_6655_4433_2211), Ok(()));
        assert_eq!(m.read(at), Ok(0x8877_6655_4433_2211));
        assert_eq!(m.cpu.memory.read::<u8>(0x6000 - offset), 0x11);
        assert_eq!(m.cpu.memory.read::<u8>(0x9007 - offset), 0x88);
        assert_eq!(m.cpu.update::<u64>(at, true, |v| Some(v + 1)), Ok(0x8877_6655_4433_2211));
        assert_eq!(m.read(at), Ok(0x8877_6655_4433_2212));
    }
    let wide = 0x1234_5678_9abc_def0_0fed_cba9_8765_4321u128;
    assert_eq!(m.cpu.write(0x1ff5, wide), Ok(()));
    assert_eq!(m.cpu.read::<u128>(0x1ff5), Ok(wide));
    // The second page faults: nothing of the first is written, and the address is the second page's.
    m.poke(0x6000 - 8, 0x55);
    m.map(0x2000, 0, 1);
    m.cpu.invlpg(0x2000);
    let r = m.write(0x1ffc, !0);
    assert_eq!(m.page_fault(0x2000, r), 2);
    assert_eq!(m.peek(0x6000 - 8), 0x55);
    let r = m.cpu.update::<u64>(0x1ffc, false, |_| Some(0));
    assert_eq!(m.page_fault(0x2000, r), 2);
    let r = m.cpu.write_bytes(0x1ff0, &[7; 32]);
    assert_eq!(m.page_fault(0x2000, r), 2);
    assert_eq!(m.peek(0x6000 - 8), 0x55);
    let mut out = [0; 32];
    let r = m.cpu.read_bytes(0x1ff0, &mut out);
    assert_eq!(m.page_fault(0x2000, r), 0);
}

#[test]
fn linear_addresses_wrap_at_4_gib_outside_64_bit_mode() {
    let mut m = Machine::new();
    m.poke(0, 0x1122_3344_5566_7788);
    let value = m.cpu.read::<u32>(0xffff_fffe).unwrap();
    assert_eq!(value, 0x7788_ffff, "two bytes of the bus, two of address 0");
}

#[test]
fn bytes_of_any_length() {
    let mut m = Machine::long();
    for page in 0..4 {
        m.map(0x1000 + page * 0x1000, (0x8000 - page * 0x1000) | P | W, 1);
    }
    let data: Vec<u8> = (0..9000u32).map(|i| (i * 7) as u8).collect();
    assert_eq!(m.cpu.write_bytes(0x1234, &data), Ok(()));
    let mut out = vec![0; 9000];
    assert_eq!(m.cpu.read_bytes(0x1234, &mut out), Ok(()));
    assert!(out == data);
    assert_eq!(m.cpu.memory.read::<u8>(0x7000), data[0x1000 - 0x234]);
    // Pointers stay within a page.
    assert!(m.cpu.host_read_ptr(0x1ff0, 16).is_some());
    assert!(m.cpu.host_read_ptr(0x1ff0, 17).is_none());
    assert!(m.cpu.host_write_ptr(0x1ff0, 16).is_some());
    assert!(m.cpu.host_write_ptr(0x9000, 1).is_none());
}

#[test]
fn alignment_check() {
    let mut m = Machine::long();
    m.map(0x1000, 0x5000 | P | W | U, 1);
    m.cpu.state.cr0 |= cr::CR0_AM;
    m.ac(true);
    m.cpl(3);
    assert!(m.read(0x1008).is_ok());
    assert!(m.read(0x1009).is_err());
    assert_eq!((m.cpu.fault.vector, m.cpu.fault.error), (17, Some(0)));
    assert!(m.cpu.write(0x1001, 0u16).is_err());
    assert!(m.cpu.write(0x1001, 0u8).is_ok());
    let r = m.read(0x2001);
    assert_eq!(m.page_fault(0x2001, r), 4, "the page fault comes first");
    m.ac(false);
    assert!(m.read(0x1009).is_ok());
    m.ac(true);
    m.cpl(0);
    assert!(m.read(0x1009).is_ok());
}
