//! EPT violations and misconfigurations as VM exits (SDM 28.2.1 table 28-7, 29.3.3).

use crate::machine::*;

const VIOLATION: u32 = 48;
const MISCONFIGURATION: u32 = 49;
/// Qualification: guest linear address valid; access to its translation.
const LINEAR: u64 = 1 << 7;
const TRANSLATION: u64 = 1 << 8;
const RWX: u64 = 0x30 | 7;

/// Long mode over identity EPT; linear 0x1000 is guest-physical 0x5000.
fn nested() -> Machine {
    let mut m = Machine::long();
    m.ept_identity(7);
    m.map(0x1000, 0x5000 | P | W | U, 1);
    m.refresh();
    m
}

#[test]
fn translation_goes_through_both() {
    let mut m = nested();
    m.ept_map(0x5000, 0x7000 | RWX, 1);
    m.poke(0x7010, 42);
    assert_eq!(m.read(0x1010), Ok(42));
    m.cpu.write(0x1018, 43u8).unwrap();
    assert_eq!(m.peek(0x7018), 43);
    assert_eq!(m.cpu.fetch(0x1010), Ok(0x7010));
}

#[test]
fn qualification_tells_access_and_permissions() {
    for allowed in [0, 1, 3, 4, 5, 7] {
        for kind in 0..3 {
            let mut m = nested();
            m.ept_map(0x5000, if allowed == 0 { 0 } else { 0x7000 | 0x30 | allowed }, 1);
            let result = match kind {
                0 => m.read(0x1234).map(|_| ()),
                1 => m.write(0x1234, 0),
                _ => m.cpu.fetch(0x1234).map(|_| ()),
            };
            if allowed >> kind & 1 != 0 {
                assert_eq!(result, Ok(()), "permissions {allowed}, access {kind}");
                continue;
            }
            let expected = 1 << kind | allowed << 3 | LINEAR | TRANSLATION;
            assert_eq!(m.exit(result), (VIOLATION, expected), "permissions {allowed}, access {kind}");
            assert_eq!((m.cpu.exit.guest_physical, m.cpu.exit.guest_linear), (0x5234, 0x1234));
        }
    }
}

#[test]
fn a_read_modify_write_of_a_missing_page_reads_and_writes() {
    let mut m = nested();
    m.ept_map(0x5000, 0, 1);
    let r = m.cpu.update::<u32>(0x1000, true, |v| Some(v + 1));
    assert_eq!(m.exit(r), (VIOLATION, 3 | LINEAR | TRANSLATION));
}

#[test]
fn paging_structures_go_through_ept() {
    let mut m = nested();
    let table = m.map(0x1000, 0x5000 | P | W, 1) & !0xfff;
    // Not readable at all.
    m.ept_map(table, 0, 1);
    let r = m.read(0x1000);
    assert_eq!(m.exit(r), (VIOLATION, 1 | LINEAR));
    assert_eq!((m.cpu.exit.guest_physical, m.cpu.exit.guest_linear), (table + 8, 0x1000));
    // Readable: the accessed flag needs a write.
    m.ept_map(table, table | 0x30 | 1, 1);
    let r = m.read(0x1000);
    assert_eq!(m.exit(r), (VIOLATION, 3 | 1 << 3 | LINEAR));
    // With the flags already set, reading is enough.
    m.poke(table + 8, 0x5000 | P | W | A | D);
    assert!(m.write(0x1000, 1).is_ok());
}

#[test]
fn with_ept_accessed_and_dirty_flags_walks_are_writes() {
    let mut m = nested();
    m.cpu.ctl.ept_pointer |= 1 << 6;
    m.refresh();
    let entry = m.map(0x1000, 0x5000 | P | W | A | D, 1);
    let table = entry & !0xfff;
    m.ept_map(table, table | 0x30 | 1, 1);
    let r = m.read(0x1000);
    assert_eq!(m.exit(r), (VIOLATION, 3 | 1 << 3 | LINEAR));
    let leaf = m.ept_map(table, table | RWX, 1);
    let data = m.ept_map(0x5000, 0x5000 | RWX, 1);
    assert!(m.read(0x1000).is_ok());
    assert_eq!(m.peek(leaf) >> 8 & 3, 3, "the walk has dirtied the table");
    assert_eq!(m.peek(data) >> 8 & 3, 1);
    assert!(m.write(0x1000, 1).is_ok());
    assert_eq!(m.peek(data) >> 8 & 3, 3);
}

#[test]
fn pdpte_loads_have_no_linear_address() {
    let (mut m, _) = Machine::pae();
    m.ept_identity(7);
    let pdpt = m.cpu.state.cr3;
    m.ept_map(pdpt, 0, 1);
    let r = m.cpu.load_pdptes(pdpt);
    assert_eq!(m.exit(r), (VIOLATION, 1));
    assert_eq!(m.cpu.exit.guest_physical, pdpt);
}

#[test]
fn misconfiguration() {
    let mut m = nested();
    m.ept_map(0x5000, 0x7000 | 0x30 | 6, 1);
    let r = m.read(0x1010);
    assert_eq!(m.exit(r), (MISCONFIGURATION, 0));
    assert_eq!(m.cpu.exit.guest_physical, 0x5010);
    // Also on the way to a paging structure.
    let table = m.map(0x1000, 0x5000 | P | W, 1) & !0xfff;
    m.ept_map(table, table | 0x18 | 7, 1);
    m.cpu.invalidate(silicon::mmu::Invalidation::Everything);
    let r = m.read(0x1000);
    assert_eq!(m.exit(r), (MISCONFIGURATION, 0));
}

#[test]
fn page_faults_come_before_ept_violations_of_the_page() {
    let mut m = nested();
    m.ept_map(0x5000, 0, 1);
    m.map(0x1000, 0x5000 | P, 1);
    let r = m.write(0x1000, 0);
    assert_eq!(m.page_fault(0x1000, r), 3);
}

#[test]
fn large_ept_pages_serve_any_guest_page() {
    let mut m = Machine::long();
    m.ept_map(0, PS | RWX, 3);
    m.map(0x1000, 0x5000 | P | W, 1);
    m.map(0x20_0000, 0x20_0000 | P | PS | W, 2);
    m.poke(0x5008, 1);
    m.poke(0x31_2340, 2);
    assert_eq!((m.read(0x1008), m.read(0x31_2340)), (Ok(1), Ok(2)));
}

#[test]
fn an_ept_violation_needs_no_invept_after_permissions_grow() {
    let mut m = nested();
    m.ept_map(0x5000, 0x5000 | 0x30 | 1, 1);
    assert!(m.read(0x1000).is_ok());
    assert!(m.write(0x1000, 1).is_err());
    m.ept_map(0x5000, 0x5000 | RWX, 1);
    assert!(m.write(0x1000, 1).is_ok());
    m.ept_map(0x6000, 0, 1);
    m.map(0x2000, 0x6000 | P | W, 1);
    assert!(m.read(0x2000).is_err());
    m.ept_map(0x6000, 0x6000 | RWX, 1);
    assert!(m.read(0x2000).is_ok());
}
