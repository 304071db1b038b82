//! Real-address mode: the vector table, far transfers, limits (SDM vol. 3, 20.1).

use silicon::state::{flag, gpr, seg};
use silicon::vmx::reason;

use crate::machine::*;

/// FLAGS, CS, IP are pushed; no error code; IF and TF are cleared (20.1.4).
#[test]
fn interrupt() {
    let mut m = Machine::real();
    m.cpu.state.rip = 0;
    m.cpu.state.rflags |= flag::IF | flag::CF;
    assert_eq!(m.run(&[0xcd, 0x21]), Out::Handler(0x21));
    assert_eq!(m.rsp(), STACK - 6);
    assert_eq!([m.stack16(0), m.stack16(1), m.stack16(2)], [2, 0x1000, 2 | flag::IF | flag::CF]);
    assert_eq!(m.rflags(), 2 | flag::CF);
}

/// #GP without an error code.
#[test]
fn fault_without_error_code() {
    let mut m = Machine::real();
    m.cpu.state.rip = 0;
    m.cpu.state.gpr[gpr::RBX] = 0xffff;
    // MOV AX, [BX] at the limit.
    assert_eq!(m.run(&[0x8b, 0x07]), Out::Handler(13));
    assert_eq!([m.stack16(0), m.stack16(1)], [0, 0x1000]);
}

/// A vector beyond the table is #GP, and with that beyond it too a triple fault (20.1.4).
#[test]
fn table_limit() {
    let mut m = Machine::real();
    m.cpu.state.rip = 0;
    m.cpu.state.idtr_limit = 4 * 0x21 + 2;
    assert_eq!(m.run(&[0xcd, 0x21]), Out::Handler(13));
    let mut m = Machine::real();
    m.cpu.state.rip = 0;
    m.cpu.state.idtr_limit = 0;
    assert_eq!(m.run(&[0xcd, 0x21]), Out::Exit(reason::TRIPLE_FAULT, 0));
}

/// Far JMP, CALL and RET load base = selector * 16 and leave limit and rights (20.1.1).
#[test]
fn far_transfers() {
    let mut m = Machine::real();
    m.cpu.state.rip = 0;
    // CALL 1100:0020, there RETF 2
    m.write_bytes(0x1_1020, &[0xca, 2, 0]);
    assert_eq!(m.run(&[0x9a, 0x20, 0, 0, 0x11]), Out::End);
    assert_eq!(m.rsp(), STACK + 2);
    assert_eq!(m.cpu.state.seg[seg::CS].base, CODE);
    let mut m = Machine::real();
    m.cpu.state.rip = 0;
    m.cpu.state.seg[seg::CS].limit = 0x1fff;
    m.write_bytes(0x1_1020, END);
    assert_eq!(m.run(&[0xea, 0x20, 0, 0, 0x11]), Out::Exit(reason::VMCALL, 0x1_1020));
    assert_eq!(m.cpu.state.seg[seg::CS].limit, 0x1fff);
}

/// IRET loads IOPL and NT; the upper half of EFLAGS stays with a 16-bit operand.
#[test]
fn iret() {
    let mut m = Machine::real();
    m.cpu.state.rip = 0;
    m.cpu.state.gpr[gpr::RSP] = STACK - 6;
    m.cpu.state.rflags |= flag::ID;
    m.write16(STACK - 6, 0x20);
    m.write16(STACK - 4, 0x1100);
    m.write16(STACK - 2, (flag::IOPL | flag::NT | flag::IF | 2) as u16);
    m.write_bytes(0x1_1020, END);
    assert_eq!(m.run(&[0xcf]), Out::Exit(reason::VMCALL, 0x1_1020));
    assert_eq!(m.rflags(), 2 | flag::IOPL | flag::NT | flag::IF | flag::ID);
}

/// Segment loads keep the hidden limit: "unreal" mode.
#[test]
fn unreal() {
    let mut m = Machine::real();
    m.cpu.state.rip = 0;
    m.cpu.state.seg[seg::DS].limit = 0xffff_ffff;
    m.cpu.state.gpr[gpr::RAX] = 0x4000;
    m.write32(DATA + 0x1_0000, 0x1234_5678);
    // MOV DS, AX; MOV EBX, DWORD [10000h]
    let code = [0x8e, 0xd8, 0x67, 0x66, 0x8b, 0x1d, 0, 0, 1, 0];
    assert_eq!(m.run(&code), Out::End);
    assert_eq!(m.cpu.state.gpr[gpr::RBX], 0x1234_5678);
}

/// LLDT, LTR, LAR, ARPL and the like do not exist (20.1.3).
#[test]
fn protected_mode_instructions() {
    let cases: [&[u8]; 6] = [
        &[0x0f, 0x00, 0xd0],
        &[0x0f, 0x00, 0xd8],
        &[0x0f, 0x00, 0xc0],
        &[0x0f, 0x02, 0xc0],
        &[0x63, 0xc0],
        &[0x0f, 0x00, 0xe0],
    ];
    for code in cases {
        let mut m = Machine::real();
        m.cpu.state.rip = 0;
        assert_eq!(m.run(code), Out::Handler(6), "{code:02x?}");
    }
}

/// To protected mode and back: CS keeps its D bit until it is loaded.
#[test]
fn enter_protected_mode() {
    let mut m = Machine::real();
    m.cpu.state.rip = 0;
    m.set_descriptor(sel::CODE0, descriptor(0, 0xf_ffff, 0x9b, 0xc));
    m.cpu.state.gdtr_base = GDT;
    m.cpu.state.gdtr_limit = 0x7f;
    m.cpu.ctl.secondary = 1 << 7;
    m.cpu.ctl.primary = 1 << 31;
    m.write_bytes(0x5000, END);
    // MOV EAX, CR0; OR AL, 1; MOV CR0, EAX; JMP 8:5000h
    let code = [0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, 0xea, 0x00, 0x50, 0x08, 0x00];
    assert_eq!(m.run(&code), Out::Exit(reason::VMCALL, 0x5000));
    let s = &m.cpu.state;
    assert_eq!((s.seg[seg::CS].selector, s.seg[seg::CS].access), (8, 0xc09b));
    assert!(m.cpu.mode.protected);
}
