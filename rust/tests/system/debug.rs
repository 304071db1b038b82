//! Debug exceptions, shadows and windows: what happens between two instructions.

use std::sync::atomic::Ordering;

use silicon::cpu::attention;
use silicon::state::{cr, flag, gpr};
use silicon::vmx::reason;

use crate::machine::*;

const NOP: u8 = 0x90;
const BS: u64 = 1 << 14;
const DR6: u64 = 0xffff_0ff0;

/// SDM vol. 3, 17.3.1.4: a trap behind the instruction, with BS, TF in the pushed flags.
#[test]
fn single_step() {
    let mut m = Machine::long(0);
    m.cpu.state.rflags |= flag::TF;
    assert_eq!(m.run(&[NOP, NOP]), Out::Handler(1));
    assert_eq!([m.stack64(0), m.stack64(2)], [CODE + 1, 2 | flag::TF]);
    assert_eq!(m.cpu.state.dr6, DR6 | BS);
    assert_eq!(m.rflags() & flag::TF, 0);
    assert_eq!(m.cpu.state.pending_debug, 0);
}

/// POPF that sets TF traps behind the next instruction; one that clears it still traps.
#[test]
fn single_step_around_popf() {
    let mut m = Machine::long(0);
    m.write64(STACK, flag::TF | 2);
    assert_eq!(m.run(&[0x9d, NOP, NOP]), Out::Handler(1));
    assert_eq!(m.stack64(0), CODE + 2);
    let mut m = Machine::long(0);
    m.write64(STACK, 2);
    m.cpu.state.rflags |= flag::TF;
    assert_eq!(m.run(&[0x9d, NOP]), Out::Handler(1));
    assert_eq!([m.stack64(0), m.stack64(2)], [CODE + 1, 2]);
}

/// INT n clears TF before it could trap; SYSCALL with TF in FMASK too (SDM vol. 3, 17.3.1.4).
#[test]
fn single_step_of_software_interrupts() {
    let mut m = Machine::long(0);
    m.cpu.state.rflags |= flag::TF;
    assert_eq!(m.run(&[0xcd, 0x80]), Out::Handler(0x80));
    assert_eq!(m.cpu.state.dr6, DR6);
    let mut m = Machine::long(0);
    m.cpu.state.rflags |= flag::TF;
    m.cpu.state.fmask = flag::TF;
    m.cpu.state.lstar = 0x5000;
    m.cpu.state.star = 8 << 32;
    m.write_bytes(0x5000, END);
    assert_eq!(m.run(&[0x0f, 0x05]), Out::Exit(reason::VMCALL, 0x5000));
}

/// An exception is delivered with TF in the image and no trap of its own (SDM vol. 3, 6.9).
#[test]
fn single_step_of_a_fault() {
    let mut m = Machine::long(0);
    m.cpu.state.rflags |= flag::TF;
    assert_eq!(m.run(&[0x0f, 0x0b]), Out::Handler(6));
    assert_eq!(m.stack64(2), 2 | flag::TF | flag::RF);
    assert_eq!(m.cpu.state.pending_debug, 0);
}

/// DEBUGCTL.BTF: only taken branches trap; #DB clears it (SDM vol. 3, 17.4.2).
#[test]
fn branch_trap() {
    let mut m = Machine::long(0);
    m.cpu.state.rflags |= flag::TF | flag::ZF;
    m.cpu.state.debugctl = 2;
    // NOP; JNZ +0 (not taken); JMP +1
    assert_eq!(m.run(&[NOP, 0x75, 1, 0xeb, 1, NOP, NOP]), Out::Handler(1));
    assert_eq!(m.stack64(0), CODE + 6);
    assert_eq!(m.cpu.state.debugctl, 0);
}

/// MOV SS holds the trap back for one instruction (SDM vol. 3, 6.8.3).
#[test]
fn mov_ss_delays_traps() {
    let mut m = Machine::long(0);
    m.cpu.state.rflags |= flag::TF;
    m.cpu.state.gpr[gpr::RAX] = u64::from(sel::DATA0);
    assert_eq!(m.run(&[0x8e, 0xd0, NOP, NOP]), Out::Handler(1));
    assert_eq!(m.stack64(0), CODE + 3);
}

/// Arms DR0: kind is the R/W field, length the LEN field.
fn arm(m: &mut Machine, address: u64, kind: u64, length: u64) {
    m.cpu.state.dr[0] = address;
    m.cpu.state.dr7 = 0x400 | 2 | kind << 16 | length << 18;
    m.cpu.mmu_debug_changed();
}

/// Instruction breakpoints are faults; RF in the image is not set, and RF = 1 suppresses one
/// (SDM vol. 3, 17.3.1.1).
#[test]
fn instruction_breakpoint() {
    let mut m = Machine::long(0);
    arm(&mut m, CODE + 1, 0, 0);
    assert_eq!(m.run(&[NOP, NOP, NOP]), Out::Handler(1));
    assert_eq!([m.stack64(0), m.stack64(2)], [CODE + 1, 2]);
    assert_eq!(m.cpu.state.dr6, DR6 | 1);
    let mut m = Machine::long(0);
    arm(&mut m, CODE, 0, 0);
    m.cpu.state.rflags |= flag::RF;
    assert_eq!(m.run(&[NOP, NOP]), Out::End);
    assert_eq!(m.rflags() & flag::RF, 0, "RF ends with the instruction");
}

/// IRETQ brings RF back for the instruction that it returns to.
#[test]
fn iret_restores_rf() {
    let mut m = Machine::long(0);
    arm(&mut m, 0x5001, 0, 0);
    m.write_bytes(0x5001, &[NOP, 0x0f, 0x01, 0xc1]);
    m.cpu.state.gpr[gpr::RSP] = STACK - 40;
    let frame = [0x5001, u64::from(sel::CODE64), 2 | flag::RF, STACK, 0];
    for (k, word) in frame.into_iter().enumerate() {
        m.write64(STACK - 40 + 8 * k as u64, word);
    }
    assert_eq!(m.run(&[0x48, 0xcf]), Out::Exit(reason::VMCALL, 0x5002));
}

/// Data breakpoints are traps behind the access (SDM vol. 3, 17.3.1.2).
#[test]
fn data_breakpoint() {
    let mut m = Machine::long(0);
    arm(&mut m, DATA + 4, 1, 3);
    m.cpu.state.gpr[gpr::RBX] = DATA;
    // MOV EAX, [RBX+4] (a read); MOV [RBX], EAX (beside); MOV [RBX+6], AL
    let code = [0x8b, 0x43, 4, 0x89, 0x03, 0x88, 0x43, 6, NOP];
    assert_eq!(m.run(&code), Out::Handler(1));
    assert_eq!(m.stack64(0), CODE + 8);
    assert_eq!(m.cpu.state.dr6, DR6 | 1);
}

/// MOV SS with a data breakpoint, then INT n: the #DB comes in the handler (SDM vol. 3, 6.8.3).
#[test]
fn data_breakpoint_on_mov_ss() {
    let mut m = Machine::long(0);
    arm(&mut m, DATA, 3, 1);
    m.write16(DATA, sel::DATA0);
    m.cpu.state.gpr[gpr::RBX] = DATA;
    // MOV SS, [RBX]; INT 80h
    assert_eq!(m.run(&[0x8e, 0x13, 0xcd, 0x80]), Out::Handler(1));
    assert_eq!(m.stack64(0), HANDLERS + 0x800);
}

/// #DB that exits: the qualification has the bits, DR6 is not written (SDM vol. 3, 28.2.1).
#[test]
fn debug_exit() {
    let mut m = Machine::long(0);
    m.cpu.ctl.exception_bitmap = 1 << 1;
    m.cpu.state.rflags |= flag::TF;
    assert_eq!(m.run(&[NOP, NOP]), Out::Exit(reason::EXCEPTION_OR_NMI, BS));
    assert_eq!(m.cpu.state.dr6, DR6);
    assert_eq!(m.cpu.state.rip, CODE + 1);
}

/// MOV DR: DR4 and DR5 with CR4.DE, privilege, GD, upper halves, the exit (SDM vol. 3, 17.2).
#[test]
fn debug_registers() {
    let from = |n: u8| [0x0f, 0x21, 0xc0 | n << 3];
    let to = |n: u8| [0x0f, 0x23, 0xc0 | n << 3];
    let mut m = Machine::long(0);
    assert_eq!(m.run(&from(4)), Out::End);
    assert_eq!(m.cpu.state.gpr[gpr::RAX], DR6);
    let mut m = Machine::long(0);
    m.cpu.state.cr4 |= cr::CR4_DE;
    assert_eq!(m.run(&from(4)), Out::Handler(6));
    let mut m = Machine::long(3);
    m.faults64(&from(0), 13, 0);
    let mut m = Machine::long(0);
    m.cpu.state.dr7 |= 1 << 13;
    assert_eq!(m.run(&to(3)), Out::Handler(1));
    assert_eq!((m.cpu.state.dr6, m.cpu.state.dr7), (DR6 | 1 << 13, 0x400));
    assert_eq!(m.stack64(0), CODE, "a fault");
    for n in [6, 7] {
        let mut m = Machine::long(0);
        m.cpu.state.gpr[gpr::RAX] = 1 << 32;
        m.faults64(&to(n), 13, 0);
    }
    let mut m = Machine::long(0);
    m.cpu.state.gpr[gpr::RAX] = 0xffff_ffff;
    assert_eq!(m.run(&to(6)), Out::End);
    assert_eq!(m.cpu.state.dr6, 0xffff_efff);
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = 1 << 23;
    m.cpu.state.dr7 |= 1 << 13;
    assert_eq!(m.run(&to(3)), Out::Exit(reason::MOV_DR, 3), "the exit comes before GD");
}

/// Interrupt-window exiting: not in the shadow of STI, but behind the next instruction
/// (SDM vol. 3, 26.2 and vol. 2, STI).
#[test]
fn interrupt_window() {
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = 1 << 2;
    assert_eq!(m.run(&[0xfb, NOP, NOP]), Out::Exit(reason::INTERRUPT_WINDOW, 0));
    assert_eq!((m.cpu.state.rip, m.cpu.state.interruptibility), (CODE + 2, 0));
    assert_eq!(m.cpu.exit.instruction_length, 0);
    // STI with IF = 1 starts no shadow.
    let mut m = Machine::long(0);
    assert_eq!(m.run(&[0xfb, 0xfb, 0x0f, 0xa2]), Out::Exit(reason::CPUID, 0));
    assert_eq!(m.cpu.state.interruptibility, 0);
    let mut m = Machine::long(0);
    assert_eq!(m.run(&[0xfb, 0x0f, 0xa2]), Out::Exit(reason::CPUID, 0));
    assert_eq!(m.cpu.state.interruptibility, 1, "the shadow is reported by an exit in it");
}

/// NMI-window exiting waits for the end of blocking by NMI (SDM vol. 3, 26.2).
#[test]
fn nmi_window() {
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = 1 << 22;
    m.cpu.state.interruptibility = 8;
    m.write_bytes(0x5000, END);
    m.cpu.state.gpr[gpr::RSP] = STACK - 40;
    for (k, word) in [0x5000, u64::from(sel::CODE64), 2, STACK, 0].into_iter().enumerate() {
        m.write64(STACK - 40 + 8 * k as u64, word);
    }
    assert_eq!(m.run(&[NOP, 0x48, 0xcf]), Out::Exit(reason::NMI_WINDOW, 0));
    assert_eq!(m.cpu.state.rip, 0x5000);
}

/// Priority: debug trap before the windows, the window of NMIs before that of interrupts, both before a
/// kick (SDM vol. 3, table 6-2, 26.2).
#[test]
fn priority() {
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = 1 << 2 | 1 << 22;
    m.cpu.ctl.exception_bitmap = 1 << 1;
    m.cpu.state.rflags |= flag::IF;
    m.cpu.state.pending_debug = BS;
    m.cpu.doorbell.bits.store(attention::KICK, Ordering::Relaxed);
    m.write_bytes(CODE, END);
    assert_eq!(m.go(CODE), Out::Exit(reason::EXCEPTION_OR_NMI, BS));
    assert_eq!(m.go(CODE), Out::Exit(reason::NMI_WINDOW, 0));
    m.cpu.ctl.primary &= !(1 << 22);
    assert_eq!(m.go(CODE), Out::Exit(reason::INTERRUPT_WINDOW, 0));
    m.cpu.ctl.primary = 0;
    assert_eq!(m.go(CODE), Out::Exit(reason::EXTERNAL_INTERRUPT, 0));
    assert_eq!(m.go(CODE), Out::End, "a kick is one exit");
}

/// Monitor trap flag: an exit behind each instruction, and behind a delivered exception
/// (SDM vol. 3, 26.5.2).
#[test]
fn monitor_trap() {
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = 1 << 27;
    assert_eq!(m.run(&[NOP, NOP]), Out::Exit(reason::MONITOR_TRAP, 0));
    assert_eq!(m.cpu.state.rip, CODE + 1);
    let mut m = Machine::long(0);
    m.cpu.ctl.primary = 1 << 27;
    assert_eq!(m.run(&[0x0f, 0x0b]), Out::Exit(reason::MONITOR_TRAP, 0));
    assert_eq!(m.cpu.state.rip, HANDLERS + 0x60);
}

/// A kick wakes HLT; so does an open window (SDM vol. 3, 26.2).
#[test]
fn waking() {
    let mut m = Machine::long(0);
    m.cpu.state.activity = 1;
    m.cpu.doorbell.bits.store(attention::KICK, Ordering::Relaxed);
    assert_eq!(m.go(CODE), Out::Exit(reason::EXTERNAL_INTERRUPT, 0));
    assert_eq!(m.cpu.state.activity, 1, "the activity state is saved as it is");
    let mut m = Machine::long(0);
    m.cpu.state.activity = 1;
    m.cpu.state.rflags |= flag::IF;
    m.cpu.ctl.primary = 1 << 2;
    assert_eq!(m.go(CODE), Out::Exit(reason::INTERRUPT_WINDOW, 0));
}
