//! IA-32e mode: delivery, IST, IRETQ, SYSCALL and SYSRET, compatibility mode.

use silicon::state::{flag, gpr, seg};
use silicon::vmx::reason;

use crate::machine::*;

const UD2: &[u8] = &[0x0f, 0x0b];
const IRETQ: &[u8] = &[0x48, 0xcf];

/// SDM vol. 3, 6.14.2: SS:RSP is always pushed, RSP aligned to 16 before.
#[test]
fn same_level() {
    let mut m = Machine::long(0);
    m.cpu.state.gpr[gpr::RSP] = STACK + 5;
    assert_eq!(m.run(UD2), Out::Handler(6));
    assert_eq!(m.rsp(), STACK - 40);
    let frame: Vec<u64> = (0..5).map(|k| m.stack64(k)).collect();
    assert_eq!(frame, [CODE, u64::from(sel::CODE64), 2 | flag::RF, STACK + 5, u64::from(sel::DATA0)]);
}

/// SDM vol. 3, 6.14.4: from CPL 3 RSP0 is used and SS becomes null with RPL = new CPL.
#[test]
fn inner_level() {
    let mut m = Machine::long(3);
    assert_eq!(m.run(&[0xcd, 0x80]), Out::Handler(0x80));
    assert_eq!(m.rsp(), STACK0 - 40);
    assert_eq!(m.stack64(4), u64::from(sel::DATA3));
    assert_eq!(m.stack64(0), CODE + 2);
    let ss = m.cpu.state.seg[seg::SS];
    assert_eq!((ss.selector, ss.access >> 16 & 1, m.cpu.cpl()), (0, 1, 0));
}

/// SDM vol. 3, 6.14.5: the IST switches stacks even without a change of level; SS stays.
#[test]
fn interrupt_stack_table() {
    let mut m = Machine::long(0);
    m.set_gate64(6, gate(sel::CODE64, HANDLERS + 0x60, 0x8e, 1), 0);
    assert_eq!(m.run(UD2), Out::Handler(6));
    assert_eq!(m.rsp(), IST1 - 40);
    assert_eq!(m.cpu.state.seg[seg::SS].selector, u64::from(sel::DATA0));
    // IST7 lies beyond the limit of the TSS: #TS with its selector, EXT.
    let mut m = Machine::long(0);
    m.set_gate64(6, gate(sel::CODE64, HANDLERS + 0x60, 0x8e, 7), 0);
    m.cpu.state.seg[seg::TR].limit = 0x24 + 7 * 8 - 2;
    m.faults64(UD2, 10, u64::from(sel::TSS) | 1);
}

/// Gates and handlers of 64-bit mode (SDM vol. 3, 6.14.1).
#[test]
fn bad_gates() {
    let idt = 0x40 << 3 | 2;
    let cases: [(u64, u64, u8, u64); 7] = [
        (gate(sel::CODE64, HANDLERS, 0x0e, 0), 0, 11, idt),
        (gate(sel::CODE64, HANDLERS, 0x86, 0), 0, 13, idt), // a 16-bit gate
        (gate(sel::CODE64, HANDLERS, 0x85, 0), 0, 13, idt), // a task gate
        (gate(0, HANDLERS, 0x8e, 0), 0, 13, 0),
        (gate(sel::CODE0, HANDLERS, 0x8e, 0), 0, 13, u64::from(sel::CODE0)), // L = 0
        (gate(sel::DATA0, HANDLERS, 0x8e, 0), 0, 13, u64::from(sel::DATA0)),
        (gate(sel::CODE64, HANDLERS, 0x8e, 0), 0x8000, 13, 0), // not canonical
    ];
    for (low, high, vector, error) in cases {
        let mut m = Machine::long(0);
        m.set_gate64(0x40, low, high);
        m.faults64(&[0xcd, 0x40], vector, error);
    }
    let mut m = Machine::long(0);
    m.cpu.state.idtr_limit = 0x40 * 16 + 14;
    m.faults64(&[0xcd, 0x40], 13, idt);
}

/// A non-canonical stack from the TSS is #SS(0) (SDM vol. 2, INT n).
#[test]
fn stack_not_canonical() {
    let mut m = Machine::long(3);
    m.set_gate64(12, gate(sel::CODE64, HANDLERS + 16 * 12, 0x8e, 1), 0);
    m.write64(TSS + 4, 1 << 63);
    m.faults64(&[0xcd, 0x80], 12, 0);
}

/// #PF: CR2, the error code, and #DF for a stack that is not there, with CR2 of the second fault.
#[test]
fn page_fault() {
    let far = 0x4000_0000_u64;
    let mut m = Machine::long(0);
    m.cpu.state.gpr[gpr::RBX] = far;
    m.faults64(&[0x8b, 0x03], 14, 0);
    assert_eq!(m.cpu.state.cr2, far);
    let mut m = Machine::long(3);
    m.cpu.state.gpr[gpr::RBX] = far + 8;
    m.faults64(&[0x89, 0x03], 14, 6);
    let mut m = Machine::long(0);
    m.set_gate64(8, gate(sel::CODE64, HANDLERS + 16 * 8, 0x8e, 1), 0);
    m.cpu.state.gpr[gpr::RSP] = far;
    m.cpu.state.gpr[gpr::RBX] = far + 0x2000;
    m.faults64(&[0x8b, 0x03], 8, 0);
    assert_eq!(m.cpu.state.cr2, far - 8);
}

fn push64(m: &mut Machine, values: &[u64]) {
    for &value in values {
        m.cpu.state.gpr[gpr::RSP] -= 8;
        let at = m.rsp();
        m.write64(at, value);
    }
}

/// IRETQ pops SS:RSP always; SS may be null below CPL 3 (SDM vol. 2, IRET).
#[test]
fn iretq() {
    let mut m = Machine::long(0);
    m.write_bytes(0x5000, END);
    push64(&mut m, &[0, 0x4440, 2 | flag::IF, u64::from(sel::CODE64), 0x5000]);
    assert_eq!(m.run(IRETQ), Out::Exit(reason::VMCALL, 0x5000));
    assert_eq!((m.rsp(), m.rflags()), (0x4440, 2 | flag::IF));
    let mut m = Machine::long(0);
    m.write_bytes(0x5000, END);
    push64(&mut m, &[u64::from(sel::DATA3), 0x4440, 2 | flag::IF | flag::IOPL, u64::from(sel::CODE64_3), 0x5000]);
    assert_eq!(m.run(IRETQ), Out::Exit(reason::VMCALL, 0x5000));
    assert_eq!((m.rsp(), m.rflags(), m.cpu.cpl()), (0x4440, 2 | flag::IF | flag::IOPL, 3));
}

/// FS as a nested hypervisor leaves it: null, but usable with a DPL of 0. The return makes it unusable; its base is
/// that of the thread it returns to.
#[test]
fn iretq_keeps_bases() {
    let mut m = Machine::long(0);
    m.write_bytes(0x5000, END);
    m.cpu.state.seg[seg::FS].selector = 0;
    m.cpu.state.seg[seg::FS].access = 0xc093;
    m.cpu.state.seg[seg::FS].base = 0x7f12_3456_7000;
    push64(&mut m, &[u64::from(sel::DATA3), 0x4440, 2, u64::from(sel::CODE64_3), 0x5000]);
    assert_eq!(m.run(IRETQ), Out::Exit(reason::VMCALL, 0x5000));
    let fs = m.cpu.state.seg[seg::FS];
    assert_eq!((fs.access, fs.base), (1 << 16, 0x7f12_3456_7000));
}

/// Faults of IRETQ come before anything changes, at the CPL that executes it.
#[test]
fn iretq_faults() {
    let c3 = u64::from(sel::CODE64_3);
    let d3 = u64::from(sel::DATA3);
    let cases: [(u64, u64, u64, u64); 4] = [
        (d3, c3, 0x8000_0000_0000, 0), // RIP not canonical
        (3, c3, 0x5000, 0),            // null SS for CPL 3
        (u64::from(sel::DATA0), c3, 0x5000, u64::from(sel::DATA0)),
        (d3, u64::from(sel::CODE64) | 3, 0x5000, u64::from(sel::CODE64)),
    ];
    for (ss, cs, rip, error) in cases {
        let mut m = Machine::long(0);
        push64(&mut m, &[ss, 0x4440, 2, cs, rip]);
        m.faults64(IRETQ, 13, error);
        assert_eq!(m.cpu.cpl(), 0);
    }
    // NT is #GP(0) in IA-32e mode.
    let mut m = Machine::long(0);
    m.cpu.state.rflags |= flag::NT;
    m.faults64(IRETQ, 13, 0);
    // L = D = 1.
    let mut m = Machine::long(0);
    m.set_descriptor(sel::A, descriptor(0, 0xf_ffff, 0x9b, 0xe));
    push64(&mut m, &[0, 0x4440, 2, u64::from(sel::A), 0x5000]);
    m.faults64(IRETQ, 13, u64::from(sel::A));
}

/// To compatibility mode at CPL 3 and back through a gate: 8-byte frame, 32-bit instruction pointer.
#[test]
fn compatibility_mode() {
    let mut m = Machine::long(0);
    // INC EAX is a REX prefix in 64-bit mode; INT 80h.
    m.write_bytes(0x5000, &[0x40, 0xcd, 0x80]);
    m.cpu.state.gpr[gpr::RAX] = 0;
    push64(&mut m, &[u64::from(sel::DATA3), 0x4440, 2, u64::from(sel::CODE3), 0x5000]);
    assert_eq!(m.run(IRETQ), Out::Handler(0x80));
    assert_eq!(m.cpu.state.gpr[gpr::RAX], 1);
    assert_eq!([m.stack64(0), m.stack64(1), m.stack64(3)], [0x5003, u64::from(sel::CODE3), 0x4440]);
}

/// SYSCALL and SYSRET (SDM vol. 2): RCX, R11, FMASK, the selectors of STAR.
#[test]
fn syscall_sysret() {
    let mut m = Machine::long(3);
    let s = &mut m.cpu.state;
    s.star = 0x0013_0008 << 32 | 0xdead;
    s.lstar = 0x5000;
    s.fmask = flag::IF | flag::DF;
    s.rflags = 2 | flag::IF | flag::DF | flag::CF;
    // At the entry: VMCALL.
    m.write_bytes(0x5000, END);
    assert_eq!(m.run(&[0x0f, 0x05]), Out::Exit(reason::VMCALL, 0x5000));
    let s = &m.cpu.state;
    assert_eq!((s.gpr[gpr::RCX], s.gpr[11]), (CODE + 2, 2 | flag::IF | flag::DF | flag::CF));
    assert_eq!(s.rflags, 2 | flag::CF);
    assert_eq!((s.seg[seg::CS].selector, s.seg[seg::CS].access), (8, 0xa09b));
    assert_eq!((s.seg[seg::SS].selector, s.seg[seg::SS].access), (0x10, 0xc093));
    // SYSRETQ back.
    let mut m = Machine::long(0);
    m.cpu.state.star = 0x0013_0008 << 32;
    m.cpu.state.gpr[gpr::RCX] = 0x5000;
    m.cpu.state.gpr[11] = flag::IF | flag::RF | flag::VM | flag::CF;
    m.write_bytes(0x5000, END);
    assert_eq!(m.run(&[0x48, 0x0f, 0x07]), Out::Exit(reason::VMCALL, 0x5000));
    let s = &m.cpu.state;
    assert_eq!((s.rflags, m.cpu.cpl()), (2 | flag::IF | flag::CF, 3));
    assert_eq!((s.seg[seg::CS].selector, s.seg[seg::CS].access), (0x23, 0xa0fb));
    assert_eq!((s.seg[seg::SS].selector, s.seg[seg::SS].access), (0x1b, 0xc0f3));
}

/// SYSRET to a non-canonical RCX faults at CPL 0; at CPL 3 it is #GP; without SCE both are #UD.
#[test]
fn syscall_faults() {
    let mut m = Machine::long(0);
    m.cpu.state.gpr[gpr::RCX] = 1 << 47;
    m.faults64(&[0x48, 0x0f, 0x07], 13, 0);
    let mut m = Machine::long(3);
    m.faults64(&[0x48, 0x0f, 0x07], 13, 0);
    for code in [&[0x0f, 0x05][..], &[0x48, 0x0f, 0x07]] {
        let mut m = Machine::long(0);
        m.cpu.state.efer &= !1;
        assert_eq!(m.run(code), Out::Handler(6));
    }
    let mut m = Machine::protected(0);
    m.cpu.state.efer |= 1;
    assert_eq!(m.run(&[0x0f, 0x05]), Out::Handler(6), "not outside 64-bit mode on Intel processors");
}

/// SWAPGS and the base instructions (SDM vol. 2).
#[test]
fn segment_bases() {
    let mut m = Machine::long(0);
    m.cpu.state.kernel_gs_base = 0x1234;
    m.cpu.state.seg[seg::GS].base = 0x5678;
    assert_eq!(m.run(&[0x0f, 0x01, 0xf8]), Out::End);
    assert_eq!((m.cpu.state.seg[seg::GS].base, m.cpu.state.kernel_gs_base), (0x1234, 0x5678));
    let mut m = Machine::long(3);
    m.faults64(&[0x0f, 0x01, 0xf8], 13, 0);
    // WRGSBASE RAX
    let wrgsbase: &[u8] = &[0xf3, 0x48, 0x0f, 0xae, 0xd8];
    let mut m = Machine::long(3);
    assert_eq!(m.run(wrgsbase), Out::Handler(6));
    let mut m = Machine::long(3);
    m.cpu.state.cr4 |= 1 << 16;
    m.cpu.state.gpr[gpr::RAX] = 1 << 47;
    m.faults64(wrgsbase, 13, 0);
    let mut m = Machine::long(3);
    m.cpu.state.cr4 |= 1 << 16;
    m.cpu.state.gpr[gpr::RAX] = 0xffff_8000_0000_0000;
    assert_eq!(m.run(wrgsbase), Out::End);
    assert_eq!(m.cpu.state.seg[seg::GS].base, 0xffff_8000_0000_0000);
}

/// The A bits and RF: NMI blocks NMIs until IRET (SDM vol. 3, 6.7.1).
#[test]
fn nmi_blocking() {
    use silicon::stop::{Event, EventKind};
    let mut m = Machine::long(0);
    m.write_bytes(HANDLERS + 32, IRETQ);
    m.write_bytes(CODE, END);
    let nmi = Event { vector: 2, kind: EventKind::Nmi, error: None, payload: 0, length: 0 };
    m.cpu.reset_events();
    assert_eq!(m.cpu.inject(nmi), Ok(()));
    assert_eq!(m.cpu.state.interruptibility, 8);
    assert_eq!(m.cpu.state.rip, HANDLERS + 32);
    assert_eq!(m.go(CODE), Out::End);
    assert_eq!(m.cpu.state.interruptibility, 0);
}
