//! Far JMP, CALL and RET: direct, through call gates, to tasks (SDM vol. 3, 5.8; vol. 2).

use silicon::state::{flag, gpr, seg};
use silicon::vmx::reason;

use crate::machine::*;

fn code(access: u64) -> u64 {
    descriptor(0, 0xf_ffff, access, 0xc)
}

/// JMP or CALL ptr16:32.
fn far(opcode: u8, selector: u16, offset: u32) -> Vec<u8> {
    let mut bytes = vec![opcode];
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&selector.to_le_bytes());
    bytes
}

const JMP: u8 = 0xea;
const CALL: u8 = 0x9a;

/// SDM vol. 3, 5.8.1: conforming segments admit less privileged callers, others only equals.
#[test]
fn direct() {
    let a = sel::A;
    let cases: [(u8, u16, u64, Option<(u8, u64)>); 10] = [
        (0, 0, 0, Some((13, 0))),
        (0, sel::BEYOND, 0, Some((13, u64::from(sel::BEYOND)))),
        (0, a, code(0x9b), None),
        (0, a | 3, code(0x9b), Some((13, u64::from(a)))),
        (3, a, code(0x9b), Some((13, u64::from(a)))),
        (3, a, code(0x9f), None),
        (0, a, code(0xff), Some((13, u64::from(a)))),
        (0, a, code(0x93), Some((13, u64::from(a)))),
        (0, a, code(0x1b), Some((11, u64::from(a)))),
        (0, a, descriptor(0, 0xfff, 0x9b, 4), Some((13, 0))), // offset beyond its limit
    ];
    for (cpl, selector, value, fault) in cases {
        for opcode in [JMP, CALL] {
            let mut m = Machine::protected(cpl);
            m.set_descriptor(a, value);
            m.write_bytes(0x5000, END);
            let bytes = far(opcode, selector, 0x5000);
            match fault {
                Some((vector, error)) => m.faults32(&bytes, vector, error),
                None => {
                    assert_eq!(m.run(&bytes), Out::Exit(reason::VMCALL, 0x5000), "{selector:x} {value:x}");
                    assert_eq!(m.cpu.state.seg[seg::CS].selector, u64::from(selector & !3) | u64::from(cpl));
                    assert_eq!(m.cpu.cpl(), cpl);
                    if opcode == CALL {
                        let old = if cpl == 0 { sel::CODE0 } else { sel::CODE3 };
                        assert_eq!([m.stack32(0), m.stack32(1)], [CODE + 7, u64::from(old)]);
                    }
                }
            }
        }
    }
}

/// SDM vol. 3, 5.8.5: CALL through a gate to CPL 0 switches stacks and copies parameters; RET n takes
/// them off both stacks and drops the inner data segments.
#[test]
fn call_gate_inward_and_back() {
    let mut m = Machine::protected(3);
    m.set_descriptor(sel::A, gate(sel::CODE0, 0x5000, 0xec, 2));
    m.write32(STACK, 0x1111);
    m.write32(STACK + 4, 0x2222);
    // At CPL 0: MOV EAX, [ESP+8]; MOV EBX, SS; PUSH 10h; POP DS; RETF 8
    m.write_bytes(0x5000, &[0x8b, 0x44, 0x24, 0x08, 0x8c, 0xd3, 0x6a, 0x10, 0x1f, 0xca, 8, 0]);
    assert_eq!(m.run(&far(CALL, sel::A | 3, 0xdead)), Out::End);
    let s = &m.cpu.state;
    assert_eq!(s.gpr[gpr::RAX], 0x1111);
    assert_eq!(s.gpr[gpr::RBX], u64::from(sel::DATA0));
    assert_eq!((m.cpu.cpl(), m.rsp()), (3, STACK + 8));
    assert_eq!(s.seg[seg::DS].selector, 0, "a DPL 0 data segment does not survive the return");
    assert_eq!(s.seg[seg::ES].selector, u64::from(sel::DATA3));
    let inner = |k: u64| u64::from(m.memory.read::<u32>(STACK0 - 24 + 4 * k));
    let frame: Vec<u64> = (0..6).map(inner).collect();
    assert_eq!(frame, [CODE + 7, u64::from(sel::CODE3), 0x1111, 0x2222, STACK, u64::from(sel::DATA3)]);
}

/// A gate's privilege: CPL and RPL against its DPL; JMP may not raise privilege (SDM vol. 3, 5.8.4).
#[test]
fn call_gate_privilege() {
    let a = sel::A;
    let inward = gate(sel::CODE0, 0x5000, 0xec, 0);
    let cases: [(u8, u16, u64, u8, Option<(u8, u64)>); 8] = [
        (3, a | 3, inward, CALL, None),
        (3, a | 3, inward, JMP, Some((13, u64::from(sel::CODE0)))),
        (0, a, inward, JMP, None),
        (3, a | 3, gate(sel::CODE0, 0x5000, 0x8c, 0), CALL, Some((13, u64::from(a)))),
        (0, a | 3, gate(sel::CODE0, 0x5000, 0x8c, 0), CALL, Some((13, u64::from(a)))),
        (3, a | 3, gate(sel::CODE0, 0x5000, 0x6c, 0), CALL, Some((11, u64::from(a)))),
        (0, a, gate(sel::CODE3, 0x5000, 0xec, 0), CALL, Some((13, u64::from(sel::CODE3) & !3))),
        (0, a, gate(0, 0x5000, 0xec, 0), CALL, Some((13, 0))),
    ];
    for (cpl, selector, value, opcode, fault) in cases {
        let mut m = Machine::protected(cpl);
        m.set_descriptor(a, value);
        m.write_bytes(0x5000, END);
        let bytes = far(opcode, selector, 0);
        match fault {
            Some((vector, error)) => m.faults32(&bytes, vector, error),
            None => assert_eq!(m.run(&bytes), Out::Exit(reason::VMCALL, 0x5000)),
        }
    }
}

/// JMP and CALL to a TSS or a task gate: the task-switch exit, after the checks (SDM vol. 3, 26.4.2).
#[test]
fn tasks() {
    let a = u64::from(sel::A);
    let tss = |access| descriptor(0x9000, 0x67, access, 0);
    for (opcode, source) in [(CALL, 0), (JMP, 2)] {
        let mut m = Machine::protected(0);
        m.set_descriptor(sel::A, tss(0x89));
        assert_eq!(m.run(&far(opcode, sel::A, 0)), Out::Exit(reason::TASK_SWITCH, a | source << 30));
        assert_eq!(m.cpu.exit.instruction_length, 7);
        assert_eq!(m.cpu.delivering, None);
        let mut m = Machine::protected(3);
        m.set_descriptor(sel::A, tss(0x89));
        m.set_descriptor(sel::B, gate(sel::A, 0, 0xe5, 0));
        let exit = Out::Exit(reason::TASK_SWITCH, a | source << 30);
        assert_eq!(m.run(&far(opcode, sel::B | 3, 0)), exit, "the gate's DPL counts, not the TSS's");
        let cases: [(u8, u64, u8); 3] = [(3, tss(0x89), 13), (0, tss(0x09), 11), (0, tss(0x8b), 13)];
        for (cpl, value, vector) in cases {
            let mut m = Machine::protected(cpl);
            m.set_descriptor(sel::A, value);
            m.faults32(&far(opcode, sel::A, 0), vector, a);
        }
    }
}

/// RET far to the same level and its faults (SDM vol. 2, RET).
#[test]
fn far_return() {
    let a = u64::from(sel::A);
    let cases: [(u64, u64, Option<(u8, u64)>); 6] = [
        (u64::from(sel::CODE0), 0, None),
        (0, 0, Some((13, 0))),
        (a, code(0x93), Some((13, a))),
        (a, code(0x1b), Some((11, a))),
        (a, code(0xfb), Some((13, a))),
        (a, descriptor(0, 0xfff, 0x9b, 4), Some((13, 0))),
    ];
    for (selector, value, fault) in cases {
        let mut m = Machine::protected(0);
        m.set_descriptor(sel::A, value);
        m.write32(STACK, 0x5000);
        m.write32(STACK + 4, selector as u32);
        m.write_bytes(0x5000, END);
        match fault {
            Some((vector, error)) => m.faults32(&[0xcb], vector, error),
            None => {
                assert_eq!(m.run(&[0xcb]), Out::Exit(reason::VMCALL, 0x5000));
                assert_eq!(m.rsp(), STACK + 8);
            }
        }
    }
    // A caller may not return inward.
    let mut m = Machine::protected(3);
    m.write32(STACK, 0x5000);
    m.write32(STACK + 4, u32::from(sel::CODE0));
    m.faults32(&[0xcb], 13, u64::from(sel::CODE0));
}

/// 64-bit mode: JMP m16:32 to compatibility mode and back; L and D both 1 is #GP (SDM vol. 2, JMP).
#[test]
fn long_mode_direct() {
    let mut m = Machine::long(0);
    m.write32(DATA, 0x5000);
    m.write16(DATA + 4, sel::CODE0);
    m.cpu.state.gpr[gpr::RBX] = DATA;
    // In compatibility mode: JMP CODE64:6000h
    m.write_bytes(0x5000, &far(JMP, sel::CODE64, 0x6000));
    m.write_bytes(0x6000, END);
    // JMP FAR [RBX]
    assert_eq!(m.run(&[0xff, 0x2b]), Out::Exit(reason::VMCALL, 0x6000));
    let mut m = Machine::long(0);
    m.set_descriptor(sel::A, descriptor(0, 0xf_ffff, 0x9b, 0xe));
    m.write32(DATA, 0x5000);
    m.write16(DATA + 4, sel::A);
    m.cpu.state.gpr[gpr::RBX] = DATA;
    m.faults64(&[0xff, 0x2b], 13, u64::from(sel::A));
}

/// 64-bit call gates: 16 bytes, no parameters, RSP0, null SS (SDM vol. 3, 5.8.3.1).
#[test]
fn long_mode_call_gate() {
    let mut m = Machine::long(3);
    m.set_descriptor(sel::A, gate(sel::CODE64, 0x5000, 0xec, 3));
    m.set_descriptor(sel::A + 8, 0);
    m.write_bytes(0x5000, END);
    m.write16(DATA + 4, sel::A | 3);
    m.cpu.state.gpr[gpr::RBX] = DATA;
    // CALL FAR [RBX]
    assert_eq!(m.run(&[0xff, 0x1b]), Out::Exit(reason::VMCALL, 0x5000));
    let frame: Vec<u64> = (0..4).map(|k| m.stack64(k)).collect();
    assert_eq!(frame, [CODE + 2, u64::from(sel::CODE64_3), STACK, u64::from(sel::DATA3)]);
    assert_eq!((m.rsp(), m.cpu.cpl()), (STACK0 - 32, 0));
    assert_eq!(m.cpu.state.seg[seg::SS].access >> 16 & 1, 1);
    // A type in the upper half, and a target that is not 64-bit code.
    for (low, high, error) in
        [(gate(sel::CODE64, 0x5000, 0xec, 0), 1 << 40, sel::A), (gate(sel::CODE0, 0x5000, 0xec, 0), 0, sel::CODE0)]
    {
        let mut m = Machine::long(3);
        m.set_descriptor(sel::A, low);
        m.set_descriptor(sel::A + 8, high);
        m.write16(DATA + 4, sel::A | 3);
        m.cpu.state.gpr[gpr::RBX] = DATA;
        m.faults64(&[0xff, 0x1b], 13, u64::from(error));
    }
    // Task switches do not exist in IA-32e mode.
    let mut m = Machine::long(0);
    m.set_descriptor(sel::A, descriptor(0x9000, 0x67, 0x89, 0));
    m.write16(DATA + 4, sel::A);
    m.cpu.state.gpr[gpr::RBX] = DATA;
    m.faults64(&[0xff, 0x2b], 13, u64::from(sel::A));
}

/// RETFQ outward.
#[test]
fn long_mode_return() {
    let mut m = Machine::long(0);
    let words = [0x5000, u64::from(sel::CODE64_3), 0x4440, u64::from(sel::DATA3)];
    for (k, word) in words.into_iter().enumerate() {
        m.write64(STACK + 8 * k as u64, word);
    }
    m.write_bytes(0x5000, END);
    m.cpu.state.rflags |= flag::CF;
    assert_eq!(m.run(&[0x48, 0xcb]), Out::Exit(reason::VMCALL, 0x5000));
    assert_eq!((m.cpu.cpl(), m.rsp(), m.rflags()), (3, 0x4440, 2 | flag::CF));
}
