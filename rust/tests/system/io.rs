//! Port I/O: permission, exits with the decode assist, replay of what L0 hands back, string forms.

use silicon::state::{cr, flag, gpr, seg};
use silicon::vmx::reason;

use crate::machine::*;

/// "Unconditional I/O exiting".
const ALL_PORTS_EXIT: u32 = 1 << 24;

/// SDM vol. 1, 19.5.2: above IOPL the bitmap decides, every byte of the access counts, and two bytes of
/// it must lie within the TSS.
#[test]
fn permission_bitmap() {
    // IN AL, DX; IN EAX, DX
    let cases: [(u8, u64, u64, bool); 7] = [
        (0xec, 0x60, 0, true),
        (0xec, 0x60, 1, false),
        (0xed, 0x60, 0b1000, false),
        (0xed, 0x60, 0b1_0000, true),
        (0xed, 0x67, 0b1_0000_0000, false), // the next byte of the map
        (0xec, 0xffff, 0, true),
        (0xec, 0x60, 0b10, true),
    ];
    for (opcode, port, bits, allowed) in cases {
        let mut m = Machine::long(3);
        m.write16(TSS + IO_MAP + port / 8, bits as u16);
        m.cpu.state.gpr[gpr::RDX] = port;
        if allowed {
            assert_eq!(m.run(&[opcode]), Out::End, "{port:x}");
        } else {
            m.faults64(&[opcode], 13, 0);
        }
    }
    let mut m = Machine::long(3);
    m.cpu.state.seg[seg::TR].limit = IO_MAP + 0x60 / 8;
    m.cpu.state.gpr[gpr::RDX] = 0x60;
    m.faults64(&[0xec], 13, 0);
    let mut m = Machine::long(3);
    m.write16(TSS + IO_MAP + 0xc, 1);
    m.cpu.state.gpr[gpr::RDX] = 0x60;
    m.cpu.state.rflags |= flag::IOPL;
    assert_eq!(m.run(&[0xec]), Out::End, "IOPL 3");
    // The privilege fault comes before the exit (SDM vol. 3, 26.1.1).
    let mut m = Machine::long(3);
    m.cpu.ctl.primary = ALL_PORTS_EXIT;
    m.write16(TSS + IO_MAP + 0xc, 1);
    m.cpu.state.gpr[gpr::RDX] = 0x60;
    m.faults64(&[0xec], 13, 0);
}

/// Hands the result of the last exit back and enters again, as VM entry does.
fn answer(m: &mut Machine, value: u64) {
    m.cpu.state.assist_done = 1;
    m.cpu.state.assist_result = value;
    m.cpu.replay_begin();
}

/// IN and OUT: the qualification (SDM table 28-5), the assist, and completion with what L0 read.
#[test]
fn exit_and_answer() {
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = ALL_PORTS_EXIT;
    m.cpu.state.gpr[gpr::RAX] = 0x1122_3344_5566_7788;
    // IN AX, 71h
    assert_eq!(m.run(&[0x66, 0xe5, 0x71]), Out::Exit(reason::IO, 0x71 << 16 | 1 << 6 | 1 << 3 | 1));
    let s = &m.cpu.state;
    assert_eq!((s.assist_kind, s.assist_address, s.assist_width), (1, 0x71, 2));
    assert_eq!(s.rip, CODE);
    answer(&mut m, 0xabcd);
    assert_eq!(m.go(CODE + 3), Out::End);
    assert_eq!(m.cpu.state.gpr[gpr::RAX], 0x1122_3344_5566_abcd);
    assert_eq!(m.cpu.state.replay_count, 0);

    let mut m = Machine::long(0);
    m.cpu.ctl.primary = ALL_PORTS_EXIT;
    m.cpu.state.gpr[gpr::RAX] = 0x1122_3344;
    m.cpu.state.gpr[gpr::RDX] = 0x3f8;
    assert_eq!(m.run(&[0xee]), Out::Exit(reason::IO, 0x3f8 << 16));
    let s = &m.cpu.state;
    assert_eq!((s.assist_kind, s.assist_address, s.assist_width, s.assist_data), (2, 0x3f8, 1, 0x44));
    answer(&mut m, 0);
    assert_eq!(m.go(CODE + 1), Out::End);
}

/// REP OUTSB: one exit an element, registers advanced between, the data in the assist.
#[test]
fn string_output() {
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = ALL_PORTS_EXIT;
    m.write_bytes(DATA, b"abc");
    m.cpu.state.gpr[gpr::RSI] = DATA;
    m.cpu.state.gpr[gpr::RCX] = 3;
    m.cpu.state.gpr[gpr::RDX] = 0xe9;
    let mut out = m.run(&[0xf3, 0x6e]);
    let retired = m.cpu.state.retired;
    for (k, byte) in b"abc".iter().enumerate() {
        assert_eq!(out, Out::Exit(reason::IO, 0xe9 << 16 | 1 << 5 | 1 << 4));
        assert_eq!(m.cpu.state.assist_data, u64::from(*byte));
        assert_eq!(m.cpu.exit.guest_linear, DATA + k as u64);
        assert_eq!(m.cpu.state.gpr[gpr::RCX], 3 - k as u64);
        answer(&mut m, 0);
        out = m.go(CODE + 2);
    }
    assert_eq!(out, Out::End);
    assert_eq!((m.cpu.state.gpr[gpr::RCX], m.cpu.state.gpr[gpr::RSI]), (0, DATA + 3));
    assert_eq!(m.cpu.state.retired - retired, 3, "each iteration counts one");
}

/// REP INSW backwards; the destination is probed before the port is read.
#[test]
fn string_input() {
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = ALL_PORTS_EXIT;
    m.cpu.state.gpr[gpr::RDI] = DATA + 2;
    m.cpu.state.gpr[gpr::RCX] = 2;
    m.cpu.state.gpr[gpr::RDX] = 0x1f0;
    m.cpu.state.rflags |= flag::DF;
    let exit = Out::Exit(reason::IO, 0x1f0 << 16 | 1 << 5 | 1 << 4 | 1 << 3 | 1);
    assert_eq!(m.run(&[0xf3, 0x66, 0x6d]), exit);
    answer(&mut m, 0x1111);
    assert_eq!(m.go(CODE + 3), exit);
    answer(&mut m, 0x2222);
    assert_eq!(m.go(CODE + 3), Out::End);
    assert_eq!(m.memory.read::<u32>(DATA), 0x1111_2222);
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = ALL_PORTS_EXIT;
    m.cpu.state.gpr[gpr::RDI] = 0x4000_0000;
    m.faults64(&[0x6c], 14, 2);
    // Nothing happens with a count of zero.
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = ALL_PORTS_EXIT;
    assert_eq!(m.run(&[0xf3, 0x6c]), Out::End);
}

/// No event comes between the exit and the completion, even one of higher priority.
#[test]
fn no_event_before_the_answer() {
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = ALL_PORTS_EXIT;
    m.cpu.state.rflags |= flag::TF;
    assert_eq!(m.run(&[0xec, 0x90]), Out::Exit(reason::IO, 1 << 3));
    answer(&mut m, 0x5a);
    m.cpu.ctl.primary |= 1 << 2;
    m.cpu.state.rflags |= flag::IF;
    assert_eq!(m.go(CODE + 2), Out::Handler(1), "completed, then single-stepped");
    assert_eq!(m.cpu.state.gpr[gpr::RAX] & 0xff, 0x5a);
    assert_eq!(m.stack64(0), CODE + 1);
}

/// I/O breakpoints need CR4.DE and trap behind the instruction (SDM vol. 3, 17.3.1.2).
#[test]
fn io_breakpoint() {
    for (de, out) in [(true, Out::Handler(1)), (false, Out::End)] {
        let mut m = Machine::long(0);
        m.cpu.state.dr[1] = 0x3f8;
        m.cpu.state.dr7 = 0x400 | 1 << 3 | 2 << 20;
        m.cpu.state.cr4 |= if de { cr::CR4_DE } else { 0 };
        m.cpu.state.gpr[gpr::RDX] = 0x3f7;
        // IN AX, DX: the second byte meets it.
        assert_eq!(m.run(&[0x66, 0xed, 0x90]), out);
        if de {
            assert_eq!(m.cpu.state.dr6, 0xffff_0ff2);
            assert_eq!(m.stack64(0), CODE + 2);
        }
    }
}
