//! Delivery in protected mode: gates, privilege changes, error codes, nested faults, task gates.

use silicon::state::{flag, gpr, seg};
use silicon::stop::EventKind;
use silicon::vmx::reason;

use crate::machine::*;

const UD2: &[u8] = &[0x0f, 0x0b];
const INT80: &[u8] = &[0xcd, 0x80];

/// SDM vol. 3, 6.12.1: EFLAGS, CS, EIP on the same stack; 17.3.1.1: RF = 1 in the image of a fault.
#[test]
fn fault_at_the_same_level() {
    let mut m = Machine::protected(0);
    m.cpu.state.rflags |= flag::IF | flag::CF;
    assert_eq!(m.run(UD2), Out::Handler(6));
    assert_eq!(m.rsp(), STACK - 12);
    assert_eq!([m.stack32(0), m.stack32(1)], [CODE, u64::from(sel::CODE0)]);
    assert_eq!(m.stack32(2), 2 | flag::IF | flag::CF | flag::RF);
    assert_eq!(m.rflags(), 2 | flag::CF, "an interrupt gate clears IF, and RF is not left set");
}

/// SDM vol. 3, 6.12.1.3: a trap gate leaves IF as it is.
#[test]
fn trap_gate_keeps_interrupts() {
    let mut m = Machine::protected(0);
    m.set_gate(6, gate(sel::CODE0, HANDLERS + 16 * 6, 0x8f, 0));
    m.cpu.state.rflags |= flag::IF;
    assert_eq!(m.run(UD2), Out::Handler(6));
    assert_eq!(m.rflags(), 2 | flag::IF);
}

/// SDM vol. 3, 6.12.1: a more privileged handler gets SS0:ESP0, with the old SS:ESP pushed first.
#[test]
fn interrupt_from_ring_3_switches_stacks() {
    let mut m = Machine::protected(3);
    assert_eq!(m.run(INT80), Out::Handler(0x80));
    assert_eq!(m.rsp(), STACK0 - 20);
    let frame: Vec<u64> = (0..5).map(|k| m.stack32(k)).collect();
    assert_eq!(frame, [CODE + 2, u64::from(sel::CODE3), 2, STACK, u64::from(sel::DATA3)]);
    assert_eq!(m.cpu.cpl(), 0);
    assert_eq!(m.cpu.state.seg[seg::SS].selector, u64::from(sel::DATA0));
    assert_eq!(m.cpu.state.seg[seg::DS].selector, u64::from(sel::DATA3), "data segments stay");
}

/// A 16-bit gate pushes words (SDM vol. 2, INT n).
#[test]
fn sixteen_bit_gate() {
    let mut m = Machine::protected(0);
    m.write_bytes(0x5000, END);
    m.set_gate(6, gate(sel::CODE0, 0x1234_5000, 0x86, 0));
    assert_eq!(m.run(UD2), Out::Exit(reason::VMCALL, 0x5000));
    assert_eq!(m.rsp(), STACK - 6);
    assert_eq!([m.stack16(0), m.stack16(1)], [CODE & 0xffff, u64::from(sel::CODE0)]);
}

/// SDM vol. 3, 6.12.1.2: software interrupts need CPL <= DPL of the gate; #GP(vector * 8 + IDT).
#[test]
fn software_interrupt_through_a_privileged_gate() {
    let mut m = Machine::protected(3);
    m.faults32(&[0xcd, 0x81], 13, 0x81 << 3 | 2);
}

/// INT1 is not checked against the gate's DPL (SDM vol. 2, INT n).
#[test]
fn int1_passes_a_privileged_gate() {
    let mut m = Machine::protected(3);
    assert_eq!(m.run(&[0xf1]), Out::Handler(1));
    assert_eq!(m.stack32(0), CODE + 1);
    assert_eq!(m.cpu.state.dr6, 0xffff_0ff0, "DR6 is not written");
}

/// INTO traps when OF = 1 (SDM vol. 2, INTO).
#[test]
fn into() {
    let mut m = Machine::protected(0);
    assert_eq!(m.run(&[0xce]), Out::End);
    let mut m = Machine::protected(0);
    m.cpu.state.rflags |= flag::OF;
    assert_eq!(m.run(&[0xce]), Out::Handler(4));
    assert_eq!(m.stack32(0), CODE + 1);
}

/// Faults that concern the gate (SDM vol. 3, 6.13): type and limit are #GP, presence #NP. EXT is 0 for INT n.
#[test]
fn bad_gates() {
    let cases: [(u64, u8); 5] = [
        (gate(sel::CODE0, HANDLERS, 0x0e, 0), 11),
        (gate(sel::CODE0, HANDLERS, 0x8c, 0), 13),
        (gate(sel::CODE0, HANDLERS, 0x9e, 0), 13),
        (gate(sel::TSS, 0, 0x89, 0), 13),
        (0, 13),
    ];
    for (value, vector) in cases {
        let mut m = Machine::protected(0);
        m.set_gate(0x40, value);
        m.faults32(&[0xcd, 0x40], vector, 0x40 << 3 | 2);
    }
    let mut m = Machine::protected(0);
    m.cpu.state.idtr_limit = 0x40 * 8 + 6;
    m.faults32(&[0xcd, 0x40], 13, 0x40 << 3 | 2);
    let mut m = Machine::protected(0);
    m.cpu.state.idtr_limit = 0x40 * 8 + 7;
    assert_eq!(m.run(&[0xcd, 0x40]), Out::Handler(0x40));
}

/// Faults that concern the handler's segment carry its selector.
#[test]
fn bad_handler_segments() {
    let code = |access| descriptor(0, 0xf_ffff, access, 0xc);
    let cases: [(u16, u64, u8, u64); 5] = [
        (0, 0, 13, 0),
        (sel::BEYOND, 0, 13, u64::from(sel::BEYOND)),
        (sel::A, code(0x93), 13, u64::from(sel::A)),
        (sel::A, code(0x1b), 11, u64::from(sel::A)),
        (sel::A, code(0xfb), 13, u64::from(sel::A)), // less privileged than CPL
    ];
    for (selector, value, vector, error) in cases {
        let mut m = Machine::protected(0);
        if selector == sel::A {
            m.set_descriptor(selector, value);
        }
        m.set_gate(0x40, gate(selector, HANDLERS, 0x8e, 0));
        m.faults32(&[0xcd, 0x40], vector, error);
    }
}

/// The target must lie within the handler's segment: #GP(0).
#[test]
fn handler_beyond_its_segment() {
    let mut m = Machine::protected(0);
    m.set_descriptor(sel::A, descriptor(0, 0xfff, 0x9b, 4));
    m.set_gate(0x40, gate(sel::A, 0x1000, 0x8e, 0));
    m.faults32(&[0xcd, 0x40], 13, 0);
}

/// A conforming handler runs at the interrupted level, on its stack (SDM vol. 3, 6.12.1.1).
#[test]
fn conforming_handler() {
    let mut m = Machine::protected(3);
    m.set_descriptor(sel::A, descriptor(0, 0xf_ffff, 0x9f, 0xc));
    m.set_gate(6, gate(sel::A, HANDLERS + 0x60, 0x8e, 0));
    assert_eq!(m.run(UD2), Out::Handler(6));
    assert_eq!(m.cpu.cpl(), 3);
    assert_eq!(m.rsp(), STACK - 12);
    assert_eq!(m.cpu.state.seg[seg::CS].selector, u64::from(sel::A) | 3);
}

/// A machine at CPL 3 whose #TS and #SS handlers conform, so that they can run without a good stack.
fn ring3_with_conforming_handlers() -> Machine {
    let mut m = Machine::protected(3);
    m.set_descriptor(sel::A, descriptor(0, 0xf_ffff, 0x9f, 0xc));
    for vector in [10, 12] {
        m.set_gate(vector, gate(sel::A, HANDLERS + 16 * u64::from(vector), 0x8e, 0));
    }
    m
}

/// A bad SS0 in the TSS is #TS with its selector (SDM vol. 3, 6.13 and interrupt 10), EXT for exceptions.
#[test]
fn bad_inner_stack() {
    let ss = u64::from(sel::B);
    let cases: [(u16, u64, u8, u64); 6] = [
        (0, 0, 10, 0),
        (sel::BEYOND, 0, 10, u64::from(sel::BEYOND)),
        (sel::B, descriptor(0, 0xf_ffff, 0x91, 0xc), 10, ss),
        (sel::B, descriptor(0, 0xf_ffff, 0xf3, 0xc), 10, ss),
        (sel::B | 3, descriptor(0, 0xf_ffff, 0x93, 0xc), 10, ss),
        (sel::B, descriptor(0, 0xf_ffff, 0x13, 0xc), 12, ss),
    ];
    for (selector, value, vector, error) in cases {
        for (code, ext) in [(INT80, 0), (UD2, 1)] {
            let mut m = ring3_with_conforming_handlers();
            if selector & !3 == sel::B {
                m.set_descriptor(sel::B, value);
            }
            m.write16(TSS + 8, selector);
            m.faults32(code, vector, error | ext);
        }
    }
}

/// An inner stack without room for the frame: #SS with its selector (SDM vol. 2, INT n).
#[test]
fn inner_stack_too_small() {
    let mut m = ring3_with_conforming_handlers();
    m.set_descriptor(sel::B, descriptor(0, 0xff, 0x93, 4));
    m.write16(TSS + 8, sel::B);
    m.write32(TSS + 4, 19);
    m.faults32(INT80, 12, u64::from(sel::B));
    let mut m = ring3_with_conforming_handlers();
    m.set_descriptor(sel::B, descriptor(0, 0xff, 0x93, 4));
    m.write16(TSS + 8, sel::B);
    m.write32(TSS + 4, 20);
    assert_eq!(m.run(INT80), Out::Handler(0x80));
    assert_eq!(m.rsp(), 0);
}

/// A TSS too short for SS0:ESP0 is #TS with TR's selector.
#[test]
fn tss_too_short() {
    let mut m = ring3_with_conforming_handlers();
    m.cpu.state.seg[seg::TR].limit = 8;
    m.faults32(INT80, 10, u64::from(sel::TSS));
}

/// SDM vol. 3, table 6-5 with real gates: #NP while delivering #UD is serial, EXT = 1.
#[test]
fn fault_in_the_delivery_of_a_benign_exception() {
    let mut m = Machine::protected(0);
    m.set_gate(6, 0);
    m.faults32(UD2, 13, 6 << 3 | 2 | 1);
}

/// JMP to a null selector: #GP(0).
const GP: &[u8] = &[0xea, 0, 0, 0, 0, 0, 0];

/// #NP while delivering #GP is #DF with error code 0 (SDM vol. 3, interrupt 8).
#[test]
fn double_fault() {
    let mut m = Machine::protected(0);
    m.set_gate(13, gate(sel::CODE0, HANDLERS, 0x0e, 0));
    m.faults32(GP, 8, 0);
    assert_eq!(m.cpu.delivering, None);
}

/// A fault while delivering #DF is the triple fault exit, without IDT-vectoring (SDM vol. 3, 28.2.4).
#[test]
fn triple_fault() {
    let mut m = Machine::protected(0);
    m.set_gate(13, 0);
    m.set_gate(8, 0);
    assert_eq!(m.run(GP), Out::Exit(reason::TRIPLE_FAULT, 0));
    assert_eq!(m.cpu.delivering, None);
    assert_eq!(m.cpu.state.rip, CODE);
}

/// The exception bitmap sees the nested fault before it becomes #DF, with the first event as
/// IDT-vectoring; #DF itself is seen without (SDM vol. 3, 26.2 and 28.2.4).
#[test]
fn exception_bitmap() {
    let mut m = Machine::protected(0);
    m.cpu.ctl.exception_bitmap = 1 << 13;
    assert_eq!(m.run(GP), Out::Exit(reason::EXCEPTION_OR_NMI, 0));
    assert_eq!(m.cpu.exit.interruption_info, 0x8000_0b0d);
    assert_eq!(m.cpu.exit.interruption_error, 0);
    assert_eq!(m.cpu.delivering, None);

    let mut m = Machine::protected(0);
    m.set_gate(13, gate(sel::CODE0, HANDLERS, 0x0e, 0));
    m.cpu.ctl.exception_bitmap = 1 << 11;
    assert_eq!(m.run(GP), Out::Exit(reason::EXCEPTION_OR_NMI, 0));
    assert_eq!(m.cpu.exit.interruption_info, 0x8000_0b0b);
    assert_eq!(m.cpu.exit.interruption_error, 13 << 3 | 2 | 1);
    assert_eq!(m.cpu.delivering.map(|e| (e.vector, e.kind)), Some((13, EventKind::Hardware)));

    let mut m = Machine::protected(0);
    m.set_gate(13, gate(sel::CODE0, HANDLERS, 0x0e, 0));
    m.cpu.ctl.exception_bitmap = 1 << 8;
    assert_eq!(m.run(GP), Out::Exit(reason::EXCEPTION_OR_NMI, 0));
    assert_eq!(m.cpu.exit.interruption_info, 0x8000_0b08);
    assert_eq!(m.cpu.delivering, None);
}

/// INT3 obeys the bitmap, as a software exception with its length; INT n does not (SDM vol. 3, 26.2).
#[test]
fn software_events_and_the_bitmap() {
    let mut m = Machine::protected(0);
    m.cpu.ctl.exception_bitmap = 1 << 3;
    assert_eq!(m.run(&[0xcc]), Out::Exit(reason::EXCEPTION_OR_NMI, 0));
    assert_eq!(m.cpu.exit.interruption_info, 0x8000_0603);
    assert_eq!(m.cpu.exit.instruction_length, 1);
    let mut m = Machine::protected(0);
    m.cpu.ctl.exception_bitmap = 1 << 3;
    assert_eq!(m.run(&[0xcd, 3]), Out::Handler(3));
}

/// A nested fault of INT n reports it as IDT-vectoring (SDM vol. 3, 28.2.4).
#[test]
fn vectoring_of_a_software_interrupt() {
    let mut m = Machine::protected(3);
    m.cpu.ctl.exception_bitmap = 1 << 13;
    assert_eq!(m.run(&[0xcd, 0x81]), Out::Exit(reason::EXCEPTION_OR_NMI, 0));
    let event = m.cpu.delivering.expect("an event in delivery");
    assert_eq!((event.vector, event.kind, event.length), (0x81, EventKind::Software, 2));
}

/// A task gate in the IDT: the exit with TSS selector and source 3, IDT-vectoring valid
/// (SDM vol. 3, 26.4.2, table 28-2).
#[test]
fn task_gate_in_the_idt() {
    let mut m = Machine::protected(0);
    m.set_descriptor(sel::A, descriptor(0x9000, 0x67, 0x89, 0));
    m.set_gate(6, gate(sel::A, 0, 0x85, 0));
    assert_eq!(m.run(UD2), Out::Exit(reason::TASK_SWITCH, u64::from(sel::A) | 3 << 30));
    assert_eq!(m.cpu.delivering.map(|e| e.vector), Some(6));
    // A busy TSS, and one in the LDT, are faults before the exit.
    for (selector, value) in [(sel::A, descriptor(0x9000, 0x67, 0x8b, 0)), (sel::A | 4, 0)] {
        let mut m = Machine::protected(0);
        m.set_descriptor(sel::A, value);
        m.set_gate(6, gate(selector, 0, 0x85, 0));
        m.faults32(UD2, 13, u64::from(selector) | 1);
    }
    let mut m = Machine::protected(0);
    m.set_descriptor(sel::A, descriptor(0x9000, 0x67, 0x09, 0));
    m.set_gate(6, gate(sel::A, 0, 0x85, 0));
    m.faults32(UD2, 11, u64::from(sel::A) | 1);
}

/// IRET with NT returns through the link of the TSS: busy there, else #TS (SDM vol. 3, 7.4).
#[test]
fn nested_task_return() {
    let mut m = Machine::protected(0);
    m.set_descriptor(sel::A, descriptor(0x9000, 0x67, 0x8b, 0));
    m.write16(TSS, sel::A);
    m.cpu.state.rflags |= flag::NT;
    assert_eq!(m.run(&[0xcf]), Out::Exit(reason::TASK_SWITCH, u64::from(sel::A) | 1 << 30));
    let mut m = Machine::protected(0);
    m.set_descriptor(sel::A, descriptor(0x9000, 0x67, 0x89, 0));
    m.write16(TSS, sel::A);
    m.cpu.state.rflags |= flag::NT;
    m.faults32(&[0xcf], 10, u64::from(sel::A));
}

fn push32(m: &mut Machine, values: &[u64]) {
    for &value in values {
        m.cpu.state.gpr[gpr::RSP] -= 4;
        let at = m.rsp();
        m.write32(at, value as u32);
    }
}

/// IRET to the same level loads IF and IOPL at CPL 0 (SDM vol. 2, IRET).
#[test]
fn iret_same_level() {
    let mut m = Machine::protected(0);
    m.write_bytes(0x5000, END);
    let flags = 2 | flag::IF | flag::IOPL | flag::ID | flag::AC | flag::VIF | flag::CF;
    push32(&mut m, &[flags, u64::from(sel::CODE0), 0x5000]);
    assert_eq!(m.run(&[0xcf]), Out::Exit(reason::VMCALL, 0x5000));
    assert_eq!(m.rflags(), flags);
    assert_eq!(m.rsp(), STACK);
}

/// IRET outward: SS:ESP from the frame, data segments of the inner level become null, and flags that
/// only CPL 0 may change stay at CPL 3 (SDM vol. 3, 5.8.6).
#[test]
fn iret_outward_and_flags_of_ring_3() {
    let mut m = Machine::protected(0);
    m.write_bytes(0x5000, &[0xcf]);
    push32(&mut m, &[u64::from(sel::DATA3), 0x4000, 2, u64::from(sel::CODE3), 0x5000]);
    // At CPL 3: IRET again, with IF and IOPL in the image.
    let flags = 2 | flag::IF | flag::IOPL | flag::VIF | flag::AC;
    for (k, value) in [0x6000, u64::from(sel::CODE3), flags].into_iter().enumerate() {
        m.write32(0x4000 + 4 * k as u64, value as u32);
    }
    m.write_bytes(0x6000, END);
    assert_eq!(m.run(&[0xcf]), Out::Exit(reason::VMCALL, 0x6000));
    assert_eq!(m.cpu.cpl(), 3);
    assert_eq!(m.rsp(), 0x400c);
    assert_eq!(m.rflags(), 2 | flag::AC);
    for n in [seg::DS, seg::ES, seg::FS, seg::GS] {
        assert_eq!(m.cpu.state.seg[n].selector, 0);
        assert_eq!(m.cpu.state.seg[n].access, 1 << 16);
    }
}

/// Faults of IRET's code and stack selectors (SDM vol. 2, IRET).
#[test]
fn iret_faults() {
    let code = |access| descriptor(0, 0xf_ffff, access, 0xc);
    let a = u64::from(sel::A);
    // CS selector, its descriptor, SS selector, its descriptor, vector, error.
    let cases: [(u64, u64, u64, u64, u8, u64); 9] = [
        (0, 0, 0, 0, 13, 0),
        (u64::from(sel::BEYOND), 0, 0, 0, 13, u64::from(sel::BEYOND)),
        (a, code(0x93), 0, 0, 13, a),
        (a, code(0xfb), 0, 0, 13, a),     // DPL 3, RPL 0
        (a | 3, code(0x9b), 0, 0, 13, a), // DPL 0, RPL 3
        (a | 3, code(0x7b), 0, 0, 11, a), // not present
        (a | 3, code(0xfb), 0, 0, 13, 0), // null SS
        (a | 3, code(0xfb), u64::from(sel::DATA0), 0, 13, u64::from(sel::DATA0)),
        (a | 3, code(0xfb), u64::from(sel::B) | 3, descriptor(0, 0xf_ffff, 0x73, 0xc), 12, u64::from(sel::B)),
    ];
    for (cs, cs_descriptor, ss, ss_descriptor, vector, error) in cases {
        let mut m = Machine::protected(0);
        m.set_descriptor(sel::A, cs_descriptor);
        m.set_descriptor(sel::B, ss_descriptor);
        push32(&mut m, &[ss, 0x4000, 2, cs, 0x5000]);
        m.faults32(&[0xcf], vector, error);
    }
}

/// SYSENTER and SYSEXIT (SDM vol. 2): flat segments beside IA32_SYSENTER_CS; IF is cleared.
#[test]
fn sysenter_sysexit() {
    let mut m = Machine::protected(3);
    m.cpu.state.sysenter_cs = 0x8;
    m.cpu.state.sysenter_esp = 0x7700;
    m.cpu.state.sysenter_eip = 0x5000;
    m.cpu.state.rflags |= flag::IF;
    m.write_bytes(0x5000, &[0x0f, 0x35]);
    m.cpu.state.gpr[gpr::RDX] = 0x6000;
    m.cpu.state.gpr[gpr::RCX] = 0x4400;
    m.write_bytes(0x6000, END);
    assert_eq!(m.run(&[0x0f, 0x34]), Out::Exit(reason::VMCALL, 0x6000));
    let s = &m.cpu.state;
    assert_eq!((s.seg[seg::CS].selector, s.seg[seg::SS].selector, m.cpu.cpl()), (0x1b, 0x23, 3));
    assert_eq!((m.rsp(), m.rflags()), (0x4400, 2));
    assert_eq!(s.seg[seg::CS].access, 0xc0fb);

    let mut m = Machine::protected(3);
    m.cpu.state.sysenter_cs = 3;
    m.faults32(&[0x0f, 0x34], 13, 0);
    let mut m = Machine::protected(3);
    m.cpu.state.sysenter_cs = 8;
    m.faults32(&[0x0f, 0x35], 13, 0);
}

/// CLI, STI and POPF against IOPL, and the virtual interrupt flag of PVI (SDM vol. 3, 20.4).
#[test]
fn interrupt_flag_at_ring_3() {
    for code in [0xfa_u8, 0xfb] {
        let mut m = Machine::protected(3);
        m.faults32(&[code], 13, 0);
    }
    let mut m = Machine::protected(3);
    m.cpu.state.rflags |= flag::IOPL;
    assert_eq!(m.run(&[0xfb]), Out::End);
    assert_eq!(m.rflags(), 2 | flag::IOPL | flag::IF);
    let mut m = Machine::protected(3);
    m.cpu.state.cr4 |= 2;
    assert_eq!(m.run(&[0xfb]), Out::End);
    assert_eq!(m.rflags(), 2 | flag::VIF);
    let mut m = Machine::protected(3);
    m.cpu.state.cr4 |= 2;
    m.cpu.state.rflags |= flag::VIP;
    m.faults32(&[0xfb], 13, 0);
    // POPF silently leaves IF and IOPL (SDM vol. 2, POPF).
    let mut m = Machine::protected(3);
    m.write32(STACK, (flag::IF | flag::IOPL | flag::CF | flag::ID) as u32);
    assert_eq!(m.run(&[0x9d]), Out::End);
    assert_eq!(m.rflags(), 2 | flag::CF | flag::ID);
}
