//! Loading segment registers and using them in protected mode (SDM vol. 3, chapters 3 and 5).

use silicon::state::{gpr, seg};

use crate::machine::*;

fn data(access: u64) -> u64 {
    descriptor(0, 0xf_ffff, access, 0xc)
}

/// MOV Sreg, AX for ES, SS, DS, FS, GS.
fn load(n: usize) -> Vec<u8> {
    vec![0x8e, 0xc0 | (n as u8) << 3]
}

/// MOV to DS: type, privilege, presence, in this order (SDM vol. 2, MOV).
#[test]
fn data_segment() {
    let a = sel::A;
    // CPL, selector, descriptor, fault and error.
    let cases: [(u8, u16, u64, Option<(u8, u64)>); 14] = [
        (0, 0, 0, None),
        (3, 3, 0, None),
        (0, sel::BEYOND, 0, Some((13, u64::from(sel::BEYOND)))),
        (0, 4 | 8, 0, Some((13, 12))), // no LDT
        (0, a, data(0x93), None),
        (0, a, data(0x91), None),
        (0, a, data(0x99), Some((13, u64::from(a)))), // execute-only
        (0, a, data(0x9b), None),
        (3, a, data(0x93), Some((13, u64::from(a)))),
        (3, a, data(0x9b), Some((13, u64::from(a)))),
        (3, a, data(0x9f), None), // conforming
        (0, a | 3, data(0x93), Some((13, u64::from(a)))),
        (0, a, data(0x13), Some((11, u64::from(a)))),
        (0, a, data(0x82), Some((13, u64::from(a)))), // an LDT
    ];
    for (cpl, selector, value, fault) in cases {
        let mut m = Machine::protected(cpl);
        m.set_descriptor(a, value);
        m.cpu.state.gpr[gpr::RAX] = u64::from(selector);
        let before = m.cpu.state.seg[seg::DS];
        match fault {
            None => {
                assert_eq!(m.run(&load(seg::DS)), Out::End, "{selector:x} {value:x}");
                assert_eq!(m.cpu.state.seg[seg::DS].selector, u64::from(selector));
                let unusable = selector & !3 == 0;
                assert_eq!(m.cpu.state.seg[seg::DS].access >> 16 & 1 != 0, unusable);
            }
            Some((vector, error)) => {
                m.faults32(&load(seg::DS), vector, error);
                assert_eq!(m.cpu.state.seg[seg::DS], before);
            }
        }
    }
}

/// MOV to SS: writable data, RPL = CPL = DPL; not present is #SS.
#[test]
fn stack_segment() {
    let a = u64::from(sel::A);
    let cases: [(u8, u64, u64, Option<(u8, u64)>); 8] = [
        (0, 0, 0, Some((13, 0))),
        (0, a, data(0x93), None),
        (0, a, data(0x91), Some((13, a))),
        (0, a, data(0x9b), Some((13, a))),
        (0, a | 3, data(0x93), Some((13, a))),
        (0, a, data(0xf3), Some((13, a))),
        (0, a, data(0x13), Some((12, a))),
        (3, a | 3, data(0xf3), None),
    ];
    for (cpl, selector, value, fault) in cases {
        let mut m = Machine::protected(cpl);
        m.set_descriptor(sel::A, value);
        m.cpu.state.gpr[gpr::RAX] = selector;
        match fault {
            None => assert_eq!(m.run(&load(seg::SS)), Out::End),
            Some((vector, error)) => m.faults32(&load(seg::SS), vector, error),
        }
    }
}

/// In 64-bit mode SS may be null, with RPL = CPL, below CPL 3 (SDM vol. 2, MOV).
#[test]
fn null_stack_segment() {
    let mut m = Machine::long(0);
    m.cpu.state.gpr[gpr::RAX] = 0;
    assert_eq!(m.run(&load(seg::SS)), Out::End);
    for (cpl, selector) in [(0, 3), (3, 3), (3, 0)] {
        let mut m = Machine::long(cpl);
        m.cpu.state.gpr[gpr::RAX] = selector;
        m.faults64(&load(seg::SS), 13, 0);
    }
}

/// MOV CS is #UD.
#[test]
fn code_segment() {
    let mut m = Machine::protected(0);
    assert_eq!(m.run(&load(seg::CS)), Out::Handler(6));
}

/// A load sets the accessed bit in the table and the register (SDM vol. 3, 3.4.5.1).
#[test]
fn accessed_bit() {
    let mut m = Machine::protected(0);
    m.set_descriptor(sel::A, data(0x92));
    m.cpu.state.gpr[gpr::RAX] = u64::from(sel::A);
    assert_eq!(m.run(&load(seg::ES)), Out::End);
    assert_eq!(m.get_descriptor(sel::A), data(0x93));
    assert_eq!(m.cpu.state.seg[seg::ES].access, 0xc093);
}

/// The LDT (SDM vol. 3, 3.5.1): LLDT, then a selector with TI.
#[test]
fn local_descriptor_table() {
    let mut m = Machine::protected(0);
    m.set_descriptor(sel::A, descriptor(0x9000, 0xf, 0x82, 0));
    m.write64(0x9008, data(0x93));
    m.cpu.state.gpr[gpr::RAX] = u64::from(sel::A);
    m.cpu.state.gpr[gpr::RBX] = 0xc;
    // LLDT AX; MOV DS, BX
    assert_eq!(m.run(&[0x0f, 0x00, 0xd0, 0x8e, 0xdb]), Out::End);
    assert_eq!(m.cpu.state.seg[seg::DS].selector, 0xc);
    assert_eq!(m.cpu.state.seg[seg::LDTR].base, 0x9000);
}

/// LLDT and LTR: #GP for the wrong type or table, #NP; LTR marks the TSS busy (SDM vol. 2).
#[test]
fn system_segment_loads() {
    let a = u64::from(sel::A);
    let lldt: &[u8] = &[0x0f, 0x00, 0xd0];
    let ltr: &[u8] = &[0x0f, 0x00, 0xd8];
    let cases: [(&[u8], u64, u64, Option<(u8, u64)>); 9] = [
        (lldt, 0, 0, None),
        (lldt, a, descriptor(0, 7, 0x89, 0), Some((13, a))),
        (lldt, a, descriptor(0, 7, 0x02, 0), Some((11, a))),
        (lldt, a | 4, descriptor(0, 7, 0x82, 0), Some((13, a | 4))),
        (ltr, 0, 0, Some((13, 0))),
        (ltr, a, descriptor(0, 7, 0x8b, 0), Some((13, a))),
        (ltr, a, descriptor(0, 7, 0x09, 0), Some((11, a))),
        (ltr, a, descriptor(0x5678, 0x67, 0x89, 0), None),
        (ltr, a, descriptor(0x5678, 0x67, 0x81, 0), None),
    ];
    for (code, selector, value, fault) in cases {
        let mut m = Machine::protected(0);
        m.set_descriptor(sel::A, value);
        m.cpu.state.gpr[gpr::RAX] = selector;
        match fault {
            None => {
                assert_eq!(m.run(code), Out::End);
                if code == ltr {
                    assert_eq!(m.get_descriptor(sel::A) >> 40 & 2, 2);
                    assert_eq!(m.cpu.state.seg[seg::TR].base, 0x5678);
                    assert_eq!(m.cpu.state.seg[seg::TR].access & 2, 2);
                }
            }
            Some((vector, error)) => m.faults32(code, vector, error),
        }
    }
    for code in [lldt, ltr] {
        let mut m = Machine::protected(3);
        m.faults32(code, 13, 0);
    }
}

/// In IA-32e mode system descriptors have 16 bytes, with a canonical base (SDM vol. 3, 7.2.3).
#[test]
fn system_segment_loads_in_long_mode() {
    let ltr: &[u8] = &[0x0f, 0x00, 0xd8];
    let mut m = Machine::long(0);
    m.set_descriptor(sel::A, descriptor(0x5678, 0x67, 0x89, 0));
    m.set_descriptor(sel::A + 8, 0xffff_8000);
    m.cpu.state.gpr[gpr::RAX] = u64::from(sel::A);
    assert_eq!(m.run(ltr), Out::End);
    assert_eq!(m.cpu.state.seg[seg::TR].base, 0xffff_8000_0000_5678);
    for high in [0x8000, 0x1f00_ffff_8000] {
        let mut m = Machine::long(0);
        m.set_descriptor(sel::A, descriptor(0x5678, 0x67, 0x89, 0));
        m.set_descriptor(sel::A + 8, high);
        m.cpu.state.gpr[gpr::RAX] = u64::from(sel::A);
        m.faults64(ltr, 13, u64::from(sel::A));
    }
    // A 16-bit TSS does not exist there; nor does one whose second half is beyond the table.
    let mut m = Machine::long(0);
    m.set_descriptor(sel::A, descriptor(0x5678, 0x67, 0x81, 0));
    m.cpu.state.gpr[gpr::RAX] = u64::from(sel::A);
    m.faults64(ltr, 13, u64::from(sel::A));
}

/// MOV EAX, [EBX] through a segment: limit, type, null (SDM vol. 3, 5.3 and 5.5).
#[test]
fn reads_and_writes() {
    let read: &[u8] = &[0x8b, 0x03];
    let write: &[u8] = &[0x89, 0x03];
    // Expand-up of FFFH; expand-down above FFFH, 16-bit and 32-bit; read-only; execute-only; code.
    let up = descriptor(0, 0xfff, 0x93, 4);
    let down16 = descriptor(0, 0xfff, 0x97, 0);
    let down32 = descriptor(0, 0xfff, 0x97, 4);
    let cases: [(u64, &[u8], u64, bool); 16] = [
        (up, read, 0xffc, true),
        (up, read, 0xffd, false),
        (up, write, 0xffc, true),
        (up, read, 0xffff_ffff, false),
        (down16, read, 0xfff, false),
        (down16, read, 0x1000, true),
        (down16, read, 0xfffc, true),
        (down16, read, 0xfffd, false),
        (down32, read, 0x1_0000, true),
        (down32, read, 0xfff, false),
        (descriptor(0, 0xfff, 0x91, 4), read, 0, true),
        (descriptor(0, 0xfff, 0x91, 4), write, 0, false),
        (descriptor(0, 0xfff, 0x9b, 4), read, 0, true),
        (descriptor(0, 0xfff, 0x9b, 4), write, 0, false),
        (0, read, 0, false),
        (descriptor(0, 0, 0x93, 0xc), read, 0xffc, true),
    ];
    for (value, code, offset, allowed) in cases {
        let mut m = Machine::protected(0);
        m.set_descriptor(sel::A, value);
        m.cpu.state.gpr[gpr::RAX] = if value == 0 { 0 } else { u64::from(sel::A) };
        m.cpu.state.gpr[gpr::RBX] = offset;
        let mut program = load(seg::DS);
        program.extend_from_slice(code);
        if allowed {
            assert_eq!(m.run(&program), Out::End, "{value:x} {offset:x}");
        } else {
            assert_eq!(m.run(&program), Out::Handler(13), "{value:x} {offset:x}");
            assert_eq!(m.stack32(0), 0);
        }
    }
}

/// Beyond the stack segment it is #SS(0) (SDM vol. 3, 5.3).
#[test]
fn stack_limit() {
    let mut m = Machine::protected(0);
    m.set_descriptor(sel::A, descriptor(0, 0xffff, 0x93, 4));
    m.cpu.state.gpr[gpr::RAX] = u64::from(sel::A);
    m.cpu.state.gpr[gpr::RBP] = 0x1_0000;
    // MOV SS, AX; MOV EAX, [EBP]
    assert_eq!(m.run(&[0x8e, 0xd0, 0x8b, 0x45, 0]), Out::Handler(12));
    assert_eq!(m.stack32(0), 0);
}

/// Non-canonical addresses: #GP(0), through SS #SS(0) (SDM vol. 1, 3.3.7.1).
#[test]
fn canonical_addresses() {
    // MOV EAX, [RBX]; MOV EAX, [RSP]
    let mut m = Machine::long(0);
    m.cpu.state.gpr[gpr::RBX] = 0x8000_0000_0000;
    m.faults64(&[0x8b, 0x03], 13, 0);
    let mut m = Machine::long(0);
    m.set_gate64(12, gate(sel::CODE64, HANDLERS + 16 * 12, 0x8e, 1), 0);
    m.cpu.state.gpr[gpr::RSP] = 0x8000_0000_0000;
    m.faults64(&[0x8b, 0x04, 0x24], 12, 0);
}

/// LAR, LSL, VERR, VERW (SDM vol. 3, 5.10): ZF and what is read.
#[test]
fn rights() {
    let zf = |m: &Machine| m.rflags() >> 6 & 1 != 0;
    let lar: &[u8] = &[0x0f, 0x02, 0xd8];
    let lsl: &[u8] = &[0x0f, 0x03, 0xd8];
    let verr: &[u8] = &[0x0f, 0x00, 0xe0];
    let verw: &[u8] = &[0x0f, 0x00, 0xe8];
    // descriptor; CPL; what LAR, LSL, VERR and VERW say.
    let cases: [(u64, u8, [bool; 4]); 10] = [
        (data(0x93), 0, [true, true, true, true]),
        (data(0x91), 0, [true, true, true, false]),
        (data(0x9b), 0, [true, true, true, false]),
        (data(0x99), 0, [true, true, false, false]),
        (data(0x93), 3, [false; 4]),
        (data(0x9f), 3, [true, true, true, false]),
        (descriptor(0, 0x67, 0x89, 0), 0, [true, true, false, false]),
        (descriptor(0, 0x67, 0x8c, 0), 0, [true, false, false, false]),
        (descriptor(0, 0x67, 0x8e, 0), 0, [false; 4]),
        (0, 0, [false; 4]),
    ];
    for (value, cpl, expected) in cases {
        for (code, expected) in [lar, lsl, verr, verw].into_iter().zip(expected) {
            let mut m = Machine::protected(cpl);
            m.set_descriptor(sel::A, value);
            m.cpu.state.gpr[gpr::RAX] = u64::from(sel::A);
            m.cpu.state.gpr[gpr::RBX] = 0x5555;
            assert_eq!(m.run(code), Out::End);
            assert_eq!(zf(&m), expected, "{code:02x?} {value:x} at CPL {cpl}");
            let read = m.cpu.state.gpr[gpr::RBX];
            if expected && code == lsl {
                assert_eq!(read, if value >> 55 & 1 != 0 { 0xffff_ffff } else { 0x67 });
            } else if expected && code == lar {
                assert_eq!(read & 0x00f0_ff00, value >> 32 & 0x00f0_ff00);
            } else {
                assert_eq!(read, 0x5555);
            }
        }
    }
}

/// ARPL raises RPL and says so (SDM vol. 2).
#[test]
fn arpl() {
    for (dst, src, out, zf) in [(0x10_u64, 3_u64, 0x13_u64, true), (0x13, 0, 0x13, false), (0x11, 1, 0x11, false)] {
        let mut m = Machine::protected(3);
        m.cpu.state.gpr[gpr::RAX] = dst;
        m.cpu.state.gpr[gpr::RBX] = src;
        assert_eq!(m.run(&[0x63, 0xd8]), Out::End);
        assert_eq!(m.cpu.state.gpr[gpr::RAX], out);
        assert_eq!(m.rflags() >> 6 & 1 != 0, zf);
    }
}

/// LSS loads pointer and stack segment without a shadow; LDS through a 6-byte pointer.
#[test]
fn far_pointers() {
    let mut m = Machine::protected(0);
    m.write32(DATA, 0x6660);
    m.write16(DATA + 4, sel::DATA0);
    m.cpu.state.gpr[gpr::RBX] = DATA;
    // LSS ESP, [EBX]
    assert_eq!(m.run(&[0x0f, 0xb2, 0x23]), Out::End);
    assert_eq!(m.rsp(), 0x6660);
    let mut m = Machine::protected(0);
    m.write32(DATA, 0x6660);
    m.write16(DATA + 4, sel::BEYOND);
    m.cpu.state.gpr[gpr::RBX] = DATA;
    m.cpu.state.gpr[gpr::RAX] = 7;
    // LDS EAX, [EBX]
    m.faults32(&[0xc5, 0x03], 13, u64::from(sel::BEYOND));
    assert_eq!(m.cpu.state.gpr[gpr::RAX], 7);
}
