//! Control registers, MSRs, descriptor-table instructions, UMIP, and what always exits.

use silicon::state::{cr, gpr, seg};
use silicon::vmx::reason;

use crate::machine::*;

/// MOV CRn, RAX.
fn mov_cr(n: u8) -> Vec<u8> {
    if n == 8 { vec![0x44, 0x0f, 0x22, 0xc0] } else { vec![0x0f, 0x22, 0xc0 | n << 3] }
}

/// SDM vol. 3, 2.5 and vol. 2, MOV: values of CR0, CR3, CR4, CR8 that are #GP(0) in 64-bit mode.
#[test]
fn reserved_bits_and_transitions() {
    let m = Machine::long(0);
    let cr0 = m.cpu.state.cr0 & !(cr::CR0_NW | cr::CR0_CD);
    let cr4 = m.cpu.state.cr4;
    let cases: [(u8, u64, bool); 18] = [
        (0, cr0, true),
        (0, cr0 | 1 << 32, false),
        (0, cr0 & !cr::CR0_PG, false), // paging off in 64-bit mode
        (0, cr0 & !cr::CR0_PE, false),
        (0, cr0 | cr::CR0_NW, false),  // NW without CD
        (0, cr0 & !cr::CR0_NE, false), // fixed in VMX operation
        (0, cr0 ^ cr::CR0_TS, true),
        (0, cr0 | 1 << 10, true), // reserved, ignored
        (3, PAGES, true),
        (3, PAGES | 1 << 40, false), // beyond the physical-address width
        (3, PAGES | 1 << 63, false), // without PCIDE
        (4, cr4, true),
        (4, cr4 & !cr::CR4_PAE, false),
        (4, cr4 | 1 << 12, false), // LA57 is not offered
        (4, cr4 | 1 << 31, false),
        (4, cr4 & !cr::CR4_VMXE, false),
        (4, cr4 | cr::CR4_PCIDE, true),
        (8, 16, false),
    ];
    for (n, value, allowed) in cases {
        let mut m = Machine::long(0);
        m.cpu.state.cr0 &= !(cr::CR0_NW | cr::CR0_CD);
        m.cpu.state.gpr[gpr::RAX] = value;
        if allowed {
            assert_eq!(m.run(&mov_cr(n)), Out::End, "CR{n} = {value:x}");
        } else {
            m.faults64(&mov_cr(n), 13, 0);
        }
    }
    for n in [0, 3, 4, 8] {
        let mut m = Machine::long(3);
        m.faults64(&mov_cr(n), 13, 0);
    }
    for n in [1, 5, 7] {
        let mut m = Machine::long(0);
        assert_eq!(m.run(&mov_cr(n)), Out::Handler(6));
    }
}

/// CR4.PCIDE needs CR3[11:0] = 0 and cannot be cleared together with paging (SDM vol. 3, 4.10.1).
#[test]
fn pcid() {
    let mut m = Machine::long(0);
    m.cpu.state.cr3 |= 8;
    m.cpu.state.gpr[gpr::RAX] = m.cpu.state.cr4 | cr::CR4_PCIDE;
    m.faults64(&mov_cr(4), 13, 0);
    let mut m = Machine::long(0);
    m.cpu.state.cr4 |= cr::CR4_PCIDE;
    m.update();
    m.cpu.state.gpr[gpr::RAX] = PAGES | 5 | 1 << 63;
    assert_eq!(m.run(&mov_cr(3)), Out::End);
    assert_eq!(m.cpu.state.cr3, PAGES | 5, "bit 63 is not stored");
}

/// Entering IA-32e mode (SDM vol. 3, 10.8.5): CR0.PG with LME sets LMA; without PAE it is #GP.
#[test]
fn long_mode_activation() {
    let mut m = Machine::long(0);
    let long_cr0 = m.cpu.state.cr0;
    let mut enter = |cr4: u64, cs_long: bool| {
        let s = &mut m.cpu.state;
        s.cr0 = long_cr0 & !cr::CR0_PG & !cr::CR0_NW & !cr::CR0_CD;
        s.cr4 = cr4;
        s.efer = cr::EFER_LME;
        s.seg[seg::CS].access = if cs_long { 0xa09b } else { 0xc09b };
        m.cpu.update_mode();
        let value = m.cpu.state.cr0 | cr::CR0_PG;
        (m.cpu.write_cr(0, value), m.cpu.state.efer, m.cpu.mode.long)
    };
    let with_pae = cr::CR4_PAE | cr::CR4_VMXE;
    assert_eq!(enter(with_pae, false), (Ok(()), cr::EFER_LME | cr::EFER_LMA, true));
    assert!(enter(cr::CR4_VMXE, false).0.is_err());
    assert!(enter(with_pae, true).0.is_err());
    // And out of it, from compatibility mode.
    assert!(enter(with_pae, false).0.is_ok());
    let value = m.cpu.state.cr0 & !cr::CR0_PG;
    assert_eq!(m.cpu.write_cr(0, value), Ok(()));
    assert_eq!((m.cpu.state.efer, m.cpu.mode.long), (cr::EFER_LME, false));
}

/// PAE paging loads the PDPTEs at MOV CR3: reserved bits are #GP(0) and CR3 stays (SDM vol. 3, 4.4.1).
#[test]
fn pdptes() {
    let mut m = Machine::protected(0);
    let s = &mut m.cpu.state;
    s.cr0 = s.cr0 & !(cr::CR0_NW | cr::CR0_CD) | cr::CR0_PG;
    s.cr4 = cr::CR4_PAE | cr::CR4_VMXE;
    s.cr3 = PAGES;
    m.write64(PAGES, (PAGES + 0x1000) | 1);
    m.write64(PAGES + 0x40, (PAGES + 0x1000) | 3); // R/W is reserved in a PDPTE
    m.write64(PAGES + 0x1000, 0x83);
    m.update();
    m.cpu.load_pdptes(PAGES).expect("good PDPTEs");
    m.cpu.state.gpr[gpr::RAX] = PAGES + 0x40;
    m.faults32(&mov_cr(3), 13, 0);
    assert_eq!(m.cpu.state.cr3, PAGES);
    m.cpu.state.rip = CODE;
    m.cpu.state.gpr[gpr::RAX] = PAGES;
    assert_eq!(m.run(&mov_cr(3)), Out::End);
}

/// Read shadows and masks (SDM vol. 3, 26.3): reads see the shadow, writes that differ from it exit.
#[test]
fn masks_and_shadows() {
    let mut m = Machine::long(0);
    m.cpu.ctl.cr4_mask = cr::CR4_VMXE;
    m.cpu.ctl.cr4_shadow = 0;
    // MOV RAX, CR4; MOV CR4, RAX
    assert_eq!(m.run(&[0x0f, 0x20, 0xe0, 0x0f, 0x22, 0xe0]), Out::End);
    assert_eq!(m.cpu.state.gpr[gpr::RAX], cr::CR4_PAE);
    assert_eq!(m.cpu.state.cr4, cr::CR4_PAE | cr::CR4_VMXE);
    let mut m = Machine::long(0);
    m.cpu.ctl.cr4_mask = cr::CR4_VMXE;
    m.cpu.state.gpr[gpr::RCX] = cr::CR4_PAE | cr::CR4_VMXE;
    assert_eq!(m.run(&[0x0f, 0x22, 0xe1]), Out::Exit(reason::CR_ACCESS, 4 | 1 << 8));
}

/// CLTS, LMSW, SMSW.
#[test]
fn machine_status_word() {
    let mut m = Machine::long(0);
    m.cpu.state.cr0 |= cr::CR0_TS;
    // CLTS; SMSW EAX
    assert_eq!(m.run(&[0x0f, 0x06, 0x0f, 0x01, 0xe0]), Out::End);
    assert_eq!(m.cpu.state.gpr[gpr::RAX], m.cpu.state.cr0 & 0xffff_ffff);
    assert_eq!(m.cpu.state.cr0 & cr::CR0_TS, 0);
    let mut m = Machine::long(0);
    m.cpu.state.cr0 &= !(cr::CR0_NW | cr::CR0_CD);
    m.cpu.state.gpr[gpr::RAX] = cr::CR0_TS;
    // LMSW AX: PE cannot be cleared.
    assert_eq!(m.run(&[0x0f, 0x01, 0xf0]), Out::End);
    assert_eq!(m.cpu.state.cr0 & 0xf, cr::CR0_PE | cr::CR0_TS);
}

/// UMIP: SGDT, SIDT, SLDT, STR, SMSW outside CPL 0 (SDM vol. 3, 2.5).
#[test]
fn user_mode_instruction_prevention() {
    let codes: [&[u8]; 5] =
        [&[0x0f, 0x01, 0x03], &[0x0f, 0x01, 0x0b], &[0x0f, 0x00, 0xc0], &[0x0f, 0x00, 0xc8], &[0x0f, 0x01, 0xe0]];
    for code in codes {
        let mut m = Machine::long(3);
        m.cpu.state.gpr[gpr::RBX] = DATA;
        assert_eq!(m.run(code), Out::End, "{code:02x?}");
        let mut m = Machine::long(3);
        m.cpu.state.gpr[gpr::RBX] = DATA;
        m.cpu.state.cr4 |= cr::CR4_UMIP;
        m.faults64(code, 13, 0);
        let mut m = Machine::long(0);
        m.cpu.state.gpr[gpr::RBX] = DATA;
        m.cpu.state.cr4 |= cr::CR4_UMIP;
        assert_eq!(m.run(code), Out::End);
    }
}

/// LGDT and SGDT move 10 bytes in 64-bit mode; a base that is not canonical is #GP(0).
#[test]
fn descriptor_tables() {
    let mut m = Machine::long(0);
    m.write16(DATA, 0x1234);
    m.write64(DATA + 2, 0xffff_8000_1122_3344);
    m.cpu.state.gpr[gpr::RBX] = DATA;
    m.cpu.state.gpr[gpr::RCX] = DATA + 0x100;
    // LIDT [RBX]; SIDT [RCX]
    assert_eq!(m.run(&[0x0f, 0x01, 0x1b, 0x0f, 0x01, 0x09]), Out::End);
    assert_eq!((m.cpu.state.idtr_base, m.cpu.state.idtr_limit), (0xffff_8000_1122_3344, 0x1234));
    assert_eq!(m.memory.read::<u64>(DATA + 0x102), 0xffff_8000_1122_3344);
    let mut m = Machine::long(0);
    m.write64(DATA + 2, 1 << 47);
    m.cpu.state.gpr[gpr::RBX] = DATA;
    m.faults64(&[0x0f, 0x01, 0x13], 13, 0);
    let mut m = Machine::long(3);
    m.faults64(&[0x0f, 0x01, 0x13], 13, 0);
    // With a 16-bit operand the base has 24 bits.
    let mut m = Machine::protected(0);
    m.write64(DATA, 0x1122_3344_0fff);
    m.cpu.state.gpr[gpr::RBX] = DATA;
    assert_eq!(m.run(&[0x66, 0x0f, 0x01, 0x13]), Out::End);
    assert_eq!((m.cpu.state.gdtr_base, m.cpu.state.gdtr_limit), (0x22_3344, 0x0fff));
}

/// Descriptor-table exiting: reasons 46 and 47 with the displacement (SDM vol. 3, 26.1.3, table 28-1).
#[test]
fn descriptor_table_exiting() {
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = 1 << 31;
    m.cpu.ctl.secondary = 1 << 2;
    assert_eq!(m.run(&[0x0f, 0x01, 0x53, 0xf0]), Out::Exit(reason::GDTR_IDTR, 0xffff_ffff_ffff_fff0));
    let mut m = Machine::long(0);
    m.cpu.ctl.secondary = 1 << 2;
    assert_eq!(m.run(&[0x0f, 0x00, 0xd8]), Out::Exit(reason::LDTR_TR, 0));
}

/// RDMSR and WRMSR through permissive bitmaps would exit here: without bitmaps every access exits, after
/// the privilege check (SDM vol. 3, 26.1.3).
#[test]
fn msr_instructions() {
    for (code, reason) in [([0x0f, 0x32], reason::RDMSR), ([0x0f, 0x30], reason::WRMSR)] {
        let mut m = Machine::long(0);
        assert_eq!(m.run(&code), Out::Exit(reason, 0));
        let mut m = Machine::long(3);
        m.faults64(&code, 13, 0);
    }
}

/// What MSRs take (SDM vol. 4): reserved bits, canonical addresses, memory types, read-only ones.
#[test]
fn msr_values() {
    let cases: [(u32, u64, bool); 30] = [
        (0xc000_0080, cr::EFER_LME | cr::EFER_SCE, true),
        (0xc000_0080, cr::EFER_SCE, false), // LME while paging
        (0xc000_0080, cr::EFER_LME | 2, false),
        (0xc000_0081, !0, true),
        (0xc000_0082, 1 << 47, false),
        (0xc000_0082, !0, true),
        (0xc000_0084, 1 << 32, false),
        (0xc000_0100, 1 << 47, false),
        (0xc000_0103, 1 << 32, false),
        (0x277, 0x0007_0406_0007_0406, true),
        (0x277, 2, false),
        (0x277, 3 << 56, false),
        (0x2ff, 0xc06, true),
        (0x2ff, 0x102, false),
        (0x200, 6, true),
        (0x200, 2, false),
        (0x201, 1 << 40, false),
        (0x250, 0x0606_0606_0606_0606, true),
        (0x26f, 7, false),
        (0x175, 1 << 47, false),
        (0x48, 1, true),
        (0x48, 8, false),
        (0x49, 1, true),
        (0x10a, 0, false),
        (0x480, 0, false),
        (0xfe, 0, false),
        (0x1b, 0xfee0_0900, true),
        (0x1b, 0xfee0_0d00, true),
        (0x1b, 0xfee0_0500, false), // x2APIC without enable
        (0x12_3456, 0, false),
    ];
    for (msr, value, allowed) in cases {
        let mut m = Machine::long(0);
        m.cpu.state.efer &= !cr::EFER_SCE;
        assert_eq!(m.cpu.write_msr(msr, value).is_ok(), allowed, "{msr:x} = {value:x}");
        if allowed && msr != 0x49 {
            let expected = if msr == 0xc000_0080 { value | cr::EFER_LMA } else { value };
            assert_eq!(m.cpu.read_msr(msr), Ok(expected), "{msr:x}");
        }
    }
    let mut m = Machine::long(0);
    for msr in [0x49, 0x12_3456, 0x4000_0000, 0xc001_0000] {
        assert!(m.cpu.read_msr(msr).is_err(), "{msr:x}");
    }
    assert!(m.cpu.read_msr(0x480).is_ok());
}

/// A write of IA32_TSC moves IA32_TSC_ADJUST by as much (SDM vol. 3, 18.17.3).
#[test]
fn tsc_adjust() {
    let mut m = Machine::long(0);
    m.cpu.state.tsc_adjust = 7;
    let before = m.cpu.tsc();
    m.cpu.write_msr(0x10, before + 1000).expect("IA32_TSC");
    assert_eq!(m.cpu.tsc(), before + 1000);
    assert_eq!(m.cpu.read_msr(0x3b), Ok(1007));
}

/// RDTSC obeys CR4.TSD and "RDTSC exiting"; RDTSCP needs its control (SDM vol. 3, 26.3).
#[test]
fn time_stamp_counter() {
    let mut m = Machine::long(3);
    m.cpu.state.cr4 |= cr::CR4_TSD;
    m.faults64(&[0x0f, 0x31], 13, 0);
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = 1 << 12;
    assert_eq!(m.run(&[0x0f, 0x31]), Out::Exit(reason::RDTSC, 0));
    let mut m = Machine::long(0);
    assert_eq!(m.run(&[0x0f, 0x01, 0xf9]), Out::Handler(6));
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = 1 << 31;
    m.cpu.ctl.secondary = 1 << 3;
    m.cpu.state.tsc_aux = 0x1_0000_0042;
    assert_eq!(m.run(&[0x0f, 0x01, 0xf9]), Out::End);
    assert_eq!(m.cpu.state.gpr[gpr::RCX], 0x42);
}

/// CPUID, INVD, XSETBV and VMX instructions always exit (SDM vol. 3, 26.1.2), after #UD and, where their
/// descriptions say so, #GP.
#[test]
fn unconditional_exits() {
    let cases: [(&[u8], u32); 7] = [
        (&[0x0f, 0xa2], reason::CPUID),
        (&[0x0f, 0x08], reason::INVD),
        (&[0x0f, 0x01, 0xd1], reason::XSETBV),
        (&[0x0f, 0x01, 0xc2], reason::VMLAUNCH),
        (&[0x0f, 0x01, 0xc3], reason::VMRESUME),
        (&[0x0f, 0x01, 0xc4], reason::VMXOFF),
        (&[0x0f, 0x78, 0xd8], reason::VMREAD),
    ];
    for (code, reason) in cases {
        let mut m = Machine::long(0);
        m.cpu.state.cr4 |= cr::CR4_OSXSAVE;
        assert_eq!(m.run(code), Out::Exit(reason, 0), "{code:02x?}");
        assert_eq!(m.cpu.exit.instruction_length as usize, code.len());
    }
    for code in [&[0x0f, 0x08][..], &[0x0f, 0x01, 0xd1]] {
        let mut m = Machine::long(3);
        m.cpu.state.cr4 |= cr::CR4_OSXSAVE;
        m.faults64(code, 13, 0);
    }
    let mut m = Machine::long(0);
    assert_eq!(m.run(&[0x0f, 0x01, 0xd1]), Out::Handler(6), "XSETBV without OSXSAVE");
    let mut m = Machine::long(3);
    assert_eq!(m.run(&[0x0f, 0x01, 0xc2]), Out::Exit(reason::VMLAUNCH, 0), "VMX non-root comes before CPL");
    let mut m = Machine::real();
    m.cpu.state.rip = 0;
    assert_eq!(m.run(&[0x0f, 0x01, 0xc2]), Out::Handler(6));
}

/// HLT: privilege, then the exit; without it the processor waits (SDM vol. 3, 26.1.3).
#[test]
fn halt() {
    let mut m = Machine::long(3);
    m.faults64(&[0xf4], 13, 0);
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = 1 << 7;
    assert_eq!(m.run(&[0xf4]), Out::Exit(reason::HLT, 0));
    let mut m = Machine::long(0);
    assert_eq!(m.run(&[0xf4]), Out::Running);
    assert_eq!((m.cpu.state.activity, m.cpu.state.rip), (1, CODE + 1));
}

/// INVLPG: privilege and exit with the linear address; INVPCID needs its control.
#[test]
fn invalidation() {
    let mut m = Machine::long(3);
    m.faults64(&[0x0f, 0x01, 0x3b], 13, 0);
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = 1 << 9;
    m.cpu.state.gpr[gpr::RBX] = 0x1234_5678;
    assert_eq!(m.run(&[0x0f, 0x01, 0x3b]), Out::Exit(reason::INVLPG, 0x1234_5678));
    // INVPCID RAX, [RBX]
    let invpcid: &[u8] = &[0x66, 0x0f, 0x38, 0x82, 0x03];
    let mut m = Machine::long(0);
    assert_eq!(m.run(invpcid), Out::Handler(6));
    for (kind, pcid, allowed) in [(2_u64, 0_u64, true), (4, 0, false), (1, 1, false), (1, 1 << 12, false)] {
        let mut m = Machine::long(0);
        m.cpu.ctl.primary = 1 << 31;
        m.cpu.ctl.secondary = 1 << 12;
        m.cpu.state.gpr[gpr::RAX] = kind;
        m.cpu.state.gpr[gpr::RBX] = DATA;
        m.write64(DATA, pcid);
        if allowed {
            assert_eq!(m.run(invpcid), Out::End);
        } else {
            m.faults64(invpcid, 13, 0);
        }
    }
}

/// CLAC and STAC are #UD outside CPL 0 (SDM vol. 2).
#[test]
fn access_check_flag() {
    let mut m = Machine::long(0);
    assert_eq!(m.run(&[0x0f, 0x01, 0xcb]), Out::End);
    assert_eq!(m.rflags() >> 18 & 1, 1);
    let mut m = Machine::long(3);
    assert_eq!(m.run(&[0x0f, 0x01, 0xca]), Out::Handler(6));
}

/// RDRAND under virtual time is a function of the instruction count (two runs are the same).
#[test]
fn random_numbers() {
    let draw = |offset: u64| {
        let mut m = Machine::long(0);
        m.cpu.state.retired = offset;
        assert_eq!(m.run(&[0x48, 0x0f, 0xc7, 0xf0]), Out::End);
        assert_eq!(m.rflags(), 3);
        m.cpu.state.gpr[gpr::RAX]
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
}
