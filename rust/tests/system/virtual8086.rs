//! Virtual-8086 mode: entry, interrupts, IOPL-sensitive instructions, VME (SDM vol. 3, 20.2 and 20.3).

use silicon::state::{cr, flag, gpr, seg};
use silicon::vmx::reason;

use crate::machine::*;

/// In virtual-8086 mode at 1000:0000, entered by an IRETD of CPL 0.
fn v8086(flags: u64) -> Machine {
    let mut m = Machine::protected(0);
    let frame = [0x5000, 0x0f00, 2 | flag::VM | flag::IF | flags, 0x0800, 0x0f00, 0x1111, 0x2222, 0x3333, 0x4444];
    m.cpu.state.gpr[gpr::RSP] = STACK - 36;
    for (k, word) in frame.into_iter().enumerate() {
        m.write32(STACK - 36 + 4 * k as u64, word as u32);
    }
    // At 0F00:5000 = 14000h: JMP 1000:0000 keeps the place where tests put their code.
    m.write_bytes(0x1_4000, &[0xea, 0, 0, 0, 0x10]);
    m.write_bytes(CODE, END);
    m.cpu.state.rip = 0x5800;
    assert_eq!(m.run(&[0xcf]), Out::Exit(reason::VMCALL, CODE));
    m
}

/// SDM vol. 3, 20.2.5: SS:ESP, ES, DS, FS, GS from the frame; CPL 3; limits of 64 KiB.
#[test]
fn entry() {
    let m = v8086(0);
    let s = &m.cpu.state;
    assert!(m.cpu.mode.v8086);
    assert_eq!(m.cpu.cpl(), 3);
    let selectors: Vec<u64> =
        [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS].iter().map(|&n| s.seg[n].selector).collect();
    assert_eq!(selectors, [0x0f00, 0x1111, 0x2222, 0x3333, 0x4444]);
    assert_eq!((s.seg[seg::DS].base, s.seg[seg::DS].limit, s.seg[seg::DS].access), (0x2_2220, 0xffff, 0xf3));
    assert_eq!(m.rsp(), 0x0800);
}

/// SDM vol. 3, 20.3.1: to CPL 0 with GS, FS, DS, ES below SS:ESP; data segments become null.
#[test]
fn exception() {
    let mut m = v8086(0);
    assert_eq!(m.run(&[0x0f, 0x0b]), Out::Handler(6));
    assert_eq!(m.rsp(), STACK0 - 36);
    let frame: Vec<u64> = (0..9).map(|k| m.stack32(k)).collect();
    let flags = 2 | flag::VM | flag::IF | flag::RF;
    assert_eq!(frame, [0, 0x1000, flags, 0x0800, 0x0f00, 0x1111, 0x2222, 0x3333, 0x4444]);
    assert_eq!(m.rflags(), 2);
    for n in [seg::ES, seg::DS, seg::FS, seg::GS] {
        assert_eq!((m.cpu.state.seg[n].selector, m.cpu.state.seg[n].access), (0, 1 << 16));
    }
}

/// The handler must be a non-conforming segment of DPL 0: #GP with its selector (SDM vol. 2, INT n).
#[test]
fn handler_privilege() {
    let mut m = v8086(0);
    m.set_descriptor(sel::A, descriptor(0, 0xf_ffff, 0x9f, 0xc));
    m.set_gate(6, gate(sel::A, HANDLERS, 0x8e, 0));
    assert_eq!(m.run(&[0x0f, 0x0b]), Out::Handler(13));
    assert_eq!(m.stack32(0), u64::from(sel::A) | 1);
}

/// CLI, STI, PUSHF, POPF, INT n, IRET need IOPL 3 (SDM vol. 3, 20.2.7).
#[test]
fn iopl_sensitive() {
    let codes: [&[u8]; 6] = [&[0xfa], &[0xfb], &[0x9c], &[0x9d], &[0xcd, 0x80], &[0xcf]];
    for code in codes {
        let mut m = v8086(0);
        assert_eq!(m.run(code), Out::Handler(13), "{code:02x?}");
        assert_eq!(m.stack32(0), 0);
    }
    let mut m = v8086(flag::IOPL);
    assert_eq!(m.run(&[0xfa, 0x9c]), Out::End);
    assert_eq!(m.stack16(0), 2 | flag::IOPL);
    let mut m = v8086(flag::IOPL);
    assert_eq!(m.run(&[0xcd, 0x80]), Out::Handler(0x80));
    // INT3 is not IOPL-sensitive.
    let mut m = v8086(0);
    assert_eq!(m.run(&[0xcc]), Out::Handler(3));
}

/// VME (SDM vol. 3, 20.3.2): STI and CLI act on VIF, PUSHF shows it as IF with IOPL 3.
#[test]
fn virtual_interrupt_flag() {
    let mut m = v8086(0);
    m.cpu.state.cr4 |= cr::CR4_VME;
    assert_eq!(m.run(&[0xfb, 0x9c]), Out::End);
    assert_eq!(m.rflags() & (flag::VIF | flag::IF), flag::VIF | flag::IF);
    assert_eq!(m.stack16(0), 2 | flag::IF | flag::IOPL);
    let mut m = v8086(0);
    m.cpu.state.cr4 |= cr::CR4_VME;
    m.cpu.state.rflags |= flag::VIP;
    assert_eq!(m.run(&[0xfb]), Out::Handler(13));
    // POPF of TF = 1 faults.
    let mut m = v8086(0);
    m.cpu.state.cr4 |= cr::CR4_VME;
    m.write16(0xf000 + 0x0800, 0x102);
    assert_eq!(m.run(&[0x9d]), Out::Handler(13));
}

/// The redirection bitmap (SDM vol. 3, table 20-2): bit 0 = the program's own handler, bit 1 = the IDT.
#[test]
fn redirection() {
    let mut m = v8086(0);
    m.cpu.state.cr4 |= cr::CR4_VME;
    m.cpu.state.rflags |= flag::VIF;
    m.write32(4 * 0x21, 0x1000_0040);
    m.write_bytes(CODE + 0x40, END);
    assert_eq!(m.run(&[0xcd, 0x21]), Out::Exit(reason::VMCALL, CODE + 0x40));
    assert_eq!([m.stack16(0), m.stack16(1), m.stack16(2)], [2, 0x1000, 2 | flag::IF | flag::IOPL]);
    assert_eq!(m.rflags() & (flag::VIF | flag::IF), flag::IF);
    // Redirected to the monitor: #GP(0) with IOPL below 3, the IDT with 3.
    let bit = TSS + IO_MAP - 32 + 0x21 / 8;
    let mut m = v8086(0);
    m.cpu.state.cr4 |= cr::CR4_VME;
    m.write_bytes(bit, &[1 << (0x21 % 8)]);
    assert_eq!(m.run(&[0xcd, 0x21]), Out::Handler(13));
    let mut m = v8086(flag::IOPL);
    m.cpu.state.cr4 |= cr::CR4_VME;
    m.write_bytes(bit, &[1 << (0x21 % 8)]);
    m.set_gate(0x21, gate(sel::CODE0, HANDLERS + 16 * 0x21, 0xee, 0));
    assert_eq!(m.run(&[0xcd, 0x21]), Out::Handler(0x21));
}

/// IRET with IOPL 3 does not change IOPL, VM or the virtual flags.
#[test]
fn iret() {
    let mut m = v8086(flag::IOPL);
    let base = 0xf000 + 0x0800;
    m.write16(base, 0x80);
    m.write16(base + 2, 0x1000);
    m.write16(base + 4, (flag::CF | 2) as u16);
    m.write_bytes(CODE + 0x80, END);
    assert_eq!(m.run(&[0xcf]), Out::Exit(reason::VMCALL, CODE + 0x80));
    assert_eq!(m.rflags(), 2 | flag::CF | flag::IOPL | flag::VM);
}
