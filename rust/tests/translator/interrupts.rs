//! IRETQ beside the interpreter: what a kernel does as a rule stays in translated code, whatever is odd is exact.

use silicon::state::{cr, flag, gpr, seg};

use crate::guest::Guest;
use crate::stress::{CODE, DATA, STACK, alike, both, pieces};

/// A page of its own.
const GDT: u64 = DATA + 0x8000;
/// Null, kernel code and data, user data and code, all accessed.
const DESCRIPTORS: [u64; 5] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
const FLAGS: usize = 10;

/// User: inc rax; syscall; jmp user. Kernel, 64 bytes behind: an IRETQ to itself, and one to the user with the flags in
/// R10.
fn guests() -> [Guest; 2] {
    let mut code = vec![0x48, 0xff, 0xc0, 0x0f, 0x05, 0xeb, 0xf9];
    code.resize(64, 0x90);
    code.extend([0x48, 0xff, 0xc3, 0x48, 0x89, 0xe2]); // inc rbx; mov rdx, rsp
    code.extend([0x41, 0x55, 0x52, 0x9c, 0x41, 0x56]); // push r13; push rdx; pushfq; push r14
    code.extend([0x48, 0x8d, 0x35, 3, 0, 0, 0, 0x56, 0x48, 0xcf]); // lea rsi, [rip + 3]; push rsi; iretq
    code.extend([0x41, 0x50, 0x41, 0x51, 0x41, 0x52, 0x41, 0x54, 0x51, 0x48, 0xcf]); // push r8, r9, r10, r12, rcx; iretq
    let mut guests = both(&code);
    for guest in &mut guests {
        for (n, descriptor) in DESCRIPTORS.into_iter().enumerate() {
            guest.cpu.memory.write(GDT + 8 * n as u64, descriptor);
        }
        let s = &mut *guest.cpu.state;
        (s.gdtr_base, s.gdtr_limit) = (GDT, 0x27);
        (s.efer, s.fmask, s.star) = (s.efer | cr::EFER_SCE, 0x4_0700, 0x23_0008 << 32);
        (s.rip, s.lstar) = (CODE + 64, CODE + 64);
        s.gpr[gpr::RCX] = CODE;
        (s.gpr[13], s.gpr[14]) = (0x10, 8);
        (s.gpr[8], s.gpr[9], s.gpr[12]) = (0x1b, STACK, 0x23);
        s.gpr[FLAGS] = 0x202;
        guest.ready();
    }
    guests
}

fn helped(guest: &Guest) -> u64 {
    guest.cpu.translator.as_ref().expect("a translator").helped_by[iced_x86::Mnemonic::Iretq as usize]
}

fn same_segments_and_flags(guests: &[Guest; 2]) {
    let [i, t] = guests.each_ref().map(|guest| &guest.cpu.state);
    assert_eq!(i.seg, t.seg);
    assert_eq!(i.rflags & !flag::RF, t.rflags & !flag::RF);
}

#[test]
fn returns_stay_in_translated_code() {
    // The kernel's SS, or the null selector that an interrupt leaves there.
    for stack in [0x10, 0] {
        let mut guests = guests();
        alike(&mut guests, pieces(), |guest, _| guest.cpu.state.gpr[13] = stack);
        same_segments_and_flags(&guests);
        assert!(guests[1].cpu.state.gpr[gpr::RBX] > 800);
        assert!(helped(&guests[1]) < 100);
    }
}

/// STI before an instruction that may fault, exit or go anywhere: what it blocks is blocked until that has executed.
#[test]
fn instructions_behind_sti_stay_in_translated_code() {
    // top: cli; call +1; jmp top.  There: inc rbx; sti; ret
    let code = [0xfa, 0xe8, 2, 0, 0, 0, 0xeb, 0xf8, 0x48, 0xff, 0xc3, 0xfb, 0xc3];
    let mut guests = both(&code);
    alike(&mut guests, pieces(), |_, _| {});
    let [i, t] = guests.each_ref().map(|guest| &guest.cpu.state);
    assert_eq!((i.rflags & flag::IF, i.interruptibility), (t.rflags & flag::IF, t.interruptibility));
    let translator = guests[1].cpu.translator.as_ref().expect("a translator");
    let helped = translator.helped_by[iced_x86::Mnemonic::Sti as usize];
    assert!(helped > 800 && translator.statistics.entries < 500, "{helped} {}", translator.statistics.entries);
}

#[test]
fn an_exit_behind_sti_says_that_interrupts_are_blocked() {
    // cli; sti; cpuid
    let mut guests = both(&[0xfa, 0xfb, 0x0f, 0xa2]);
    for _ in 0..3 {
        let stops = guests.each_mut().map(|guest| {
            guest.cpu.state.rip = CODE;
            guest.cpu.state.interruptibility = 0;
            guest.run(10)
        });
        assert_eq!(stops[0], stops[1]);
        let [i, t] = guests.each_ref().map(|guest| {
            let s = &guest.cpu.state;
            (s.rip, s.interruptibility, s.rflags & flag::IF, s.retired, guest.cpu.exit.reason)
        });
        assert_eq!(i, t);
        assert_eq!((i.0, i.1), (CODE + 2, 1));
    }
}

/// A NOP behind STI becomes an instruction that exits, where the write is near the STI and where it is not.
#[test]
fn what_stands_behind_sti_may_change() {
    for start in [CODE, CODE + 62] {
        // top: cli; sti; nop; nop; jmp top
        let mut guests = both(&[]);
        for guest in &mut guests {
            guest.load(start, &[0xfa, 0xfb, 0x90, 0x90, 0xeb, 0xfa]);
            guest.cpu.state.rip = start;
        }
        alike(&mut guests, [500, 300], |_, _| {});
        for guest in &mut guests {
            guest.cpu.memory.write(start + 2, 0xa20f_u16); // cpuid
            guest.cpu.state.rip = start;
            guest.cpu.state.interruptibility = 0;
        }
        let stops = guests.each_mut().map(|guest| guest.run(300));
        assert_eq!(stops[0], stops[1]);
        let seen = guests.each_ref().map(|guest| (guest.cpu.state.rip, guest.cpu.state.interruptibility));
        assert_eq!(seen, [(start + 2, 1); 2]);
    }
}

/// Each piece begins with something else that differs, and ends as the interpreter says.
#[test]
fn odd_returns_are_exact() {
    let mut guests = guests();
    for round in 0..60 {
        alike(&mut guests, [7 + round % 5, 40], |guest, piece| {
            if piece == 1 {
                return;
            }
            for (n, descriptor) in DESCRIPTORS.into_iter().enumerate() {
                guest.cpu.memory.write(GDT + 8 * n as u64, descriptor);
            }
            let s = &mut *guest.cpu.state;
            (s.gdtr_limit, s.gpr[FLAGS], s.gpr[13], s.gpr[8]) = (0x27, 0x202, 0x10, 0x1b);
            match round % 12 {
                // Not accessed: IRET sets the bit.
                0 => guest.cpu.memory.write(GDT + 0x20, DESCRIPTORS[4] & !(1 << 40)),
                1 => guest.cpu.memory.write(GDT + 0x10, DESCRIPTORS[2] & !(1 << 40)),
                // Available to software, or only readable once: other rights.
                2 => guest.cpu.memory.write(GDT + 0x20, DESCRIPTORS[4] | 1 << 52),
                3 => guest.cpu.memory.write(GDT + 8, DESCRIPTORS[1] & !(1 << 41)),
                4 => s.gpr[FLAGS] |= flag::DF | flag::ID | flag::STATUS,
                5 => s.gpr[FLAGS] |= flag::IOPL,
                6 => s.gpr[FLAGS] = 0x1_0002,
                7 => s.gpr[13] = 0,
                8 => s.seg[seg::DS] = s.seg[seg::SS],
                9 => s.gpr[FLAGS] |= 0xffff_0000_0000_0000,
                10 => s.interruptibility |= 8,
                _ => s.gdtr_limit = 0xffff,
            }
            guest.ready();
        });
        same_segments_and_flags(&guests);
        let [i, t] = guests.each_ref().map(|guest| [0, 1, 2, 3, 4].map(|n| guest.cpu.memory.read::<u64>(GDT + 8 * n)));
        assert_eq!(i, t);
    }
}
