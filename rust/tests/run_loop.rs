//! The run loop: exact stops, blocks and their staleness, instructions across pages, limits, string instructions.

mod guest;

use guest::{FINE, Guest, Outcome};
use silicon::state::{flag, gpr, seg};
use silicon::stop::Stop;

const GP: Outcome = Outcome::Fault { vector: 13, error: 0, address: 0 };
const UD: Outcome = Outcome::Fault { vector: 6, error: 0, address: 0 };

fn long(code: &[u8]) -> Guest {
    let mut guest = Guest::long(0);
    guest.load(FINE, code);
    guest.cpu.state.rip = FINE;
    guest.cpu.state.rflags = 2;
    guest.cpu.state.gpr[gpr::RSP] = FINE + 0x8000;
    guest
}

#[test]
fn stops_exactly_at_any_instruction() {
    // top: inc rax; inc rcx; dec rdx; jnz top
    let code = [0x48, 0xff, 0xc0, 0x48, 0xff, 0xc1, 0x48, 0xff, 0xca, 0x75, 0xf5];
    for stop in 1..200_u64 {
        let mut guest = long(&code);
        guest.cpu.state.gpr[gpr::RDX] = 1000;
        assert_eq!(guest.run(stop), Outcome::Done);
        let s = &guest.cpu.state;
        assert_eq!(s.retired, stop);
        assert_eq!(s.gpr[gpr::RAX], stop.div_ceil(4));
        assert_eq!(s.gpr[gpr::RCX], (stop + 2) / 4);
        assert_eq!(s.rip, FINE + [0, 3, 6, 9][stop as usize % 4]);
    }
}

#[test]
fn cut_at_random_places_it_is_the_same_run() {
    // top: rol rax, 3; add rax, rcx; push rax; pop rdx; xor rcx, rdx; loop-like jmp
    let code = [0x48, 0xc1, 0xc0, 3, 0x48, 0x01, 0xc8, 0x50, 0x5a, 0x48, 0x31, 0xd1, 0xeb, 0xf2];
    let mut whole = long(&code);
    whole.cpu.state.gpr[gpr::RCX] = 12345;
    whole.run(10_007);
    let mut cut = long(&code);
    cut.cpu.state.gpr[gpr::RCX] = 12345;
    let (mut done, mut step) = (0, 1);
    while done < 10_007 {
        let n = step.min(10_007 - done);
        assert_eq!(cut.run(n), Outcome::Done);
        done += n;
        step = step * 7 % 131;
    }
    assert_eq!(cut.cpu.state.gpr, whole.cpu.state.gpr);
    assert_eq!(cut.cpu.state.rip, whole.cpu.state.rip);
}

#[test]
fn code_that_changes_the_next_instruction() {
    // mov byte [rip+2], 0xc1 changes the INC's register from rax to rcx:
    // c6 05 rel32 ib ; 48 ff c0
    let code = [0xc6, 0x05, 2, 0, 0, 0, 0xc1, 0x48, 0xff, 0xc0, 0xf4];
    let mut guest = long(&code);
    assert_eq!(guest.run(2), Outcome::Done);
    assert_eq!((guest.cpu.state.gpr[gpr::RAX], guest.cpu.state.gpr[gpr::RCX]), (0, 1));
}

#[test]
fn code_that_is_changed_between_rounds() {
    // top: add al, 1; inc byte [top+1]; jmp top: adds 1, 2, 3, ...
    let code = [0x04, 1, 0xfe, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xeb, 0xf6];
    let mut guest = long(&code);
    guest.run(3 * 10);
    assert_eq!(guest.cpu.state.gpr[gpr::RAX], 55);
    // And from outside, between runs.
    guest.load(FINE + 1, &[100]);
    guest.run(1);
    assert_eq!(guest.cpu.state.gpr[gpr::RAX], 155);
}

#[test]
fn data_beside_code_keeps_blocks() {
    // top: inc dword [rip+0x100-6-...]; jmp top. The counter is in the same page.
    let code = [0xff, 0x05, 0xfa, 0, 0, 0, 0xeb, 0xf8];
    let mut guest = long(&code);
    guest.run(2000);
    let before = guest.cpu.blocks.decoded;
    guest.run(2000);
    assert_eq!(guest.cpu.blocks.decoded, before);
    assert_eq!(guest.cpu.memory.read::<u32>(FINE + 0x100), 2000);
}

#[test]
fn instruction_across_pages() {
    let mut guest = Guest::long(0);
    // mov rax, imm64 with 4 bytes in the first page; the second page lies elsewhere.
    let code = [0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0x48, 0xff, 0xc0];
    guest.map(FINE + 0x1000, FINE + 0x5000, 7);
    guest.load(FINE + 0xffc, &code[..4]);
    guest.load(FINE + 0x5000, &code[4..]);
    guest.cpu.state.rip = FINE + 0xffc;
    assert_eq!(guest.run(2), Outcome::Done);
    assert_eq!(guest.cpu.state.gpr[gpr::RAX], 0x0807_0605_0403_0201 + 1);
    // Another page there: the cached instruction is not used.
    guest.load(FINE + 0x6000, &[9, 9, 9, 9, 9, 9]);
    guest.map(FINE + 0x1000, FINE + 0x6000, 7);
    guest.cpu.state.rip = FINE + 0xffc;
    assert_eq!(guest.run(1), Outcome::Done);
    assert_eq!(guest.cpu.state.gpr[gpr::RAX], 0x0909_0909_0909_0201);
    // A write to the second page alone.
    guest.load(FINE + 0x6000, &[7]);
    guest.cpu.state.rip = FINE + 0xffc;
    assert_eq!(guest.run(1), Outcome::Done);
    assert_eq!(guest.cpu.state.gpr[gpr::RAX], 0x0909_0909_0907_0201);
    // No page there: the fault is at its first byte, and RIP at the instruction.
    guest.map(FINE + 0x1000, 0, 0);
    guest.cpu.state.rip = FINE + 0xffc;
    let fault = guest.run(1);
    assert!(matches!(fault, Outcome::Fault { vector: 14, address, .. } if address == FINE + 0x1000), "{fault:?}");
    assert_eq!(guest.cpu.state.rip, FINE + 0xffc);
}

#[test]
fn fetch_of_an_instruction_that_ends_with_the_page_needs_no_next_page() {
    let mut guest = Guest::long(0);
    guest.load(FINE + 0xffd, &[0x48, 0xff, 0xc0]);
    guest.map(FINE + 0x1000, 0, 0);
    guest.cpu.state.rip = FINE + 0xffd;
    assert_eq!(guest.run(1), Outcome::Done);
    assert_eq!(guest.cpu.state.gpr[gpr::RAX], 1);
}

#[test]
fn fifteen_bytes_at_most() {
    let mut fits = vec![0x66; 13];
    fits.extend([0x89, 0xc8]); // mov ax, cx with 13 prefixes
    assert_eq!(long(&fits).run(1), Outcome::Done);
    let mut long_one = vec![0x66; 14];
    long_one.extend([0x89, 0xc8]);
    assert_eq!(long(&long_one).run(1), GP);
    // Undefined, whatever follows.
    assert_eq!(long(&[0x0f, 0xff, 0xc0, 0x90]).run(1), UD);
    assert_eq!(long(&[0xf0, 0x01, 0xc8]).run(1), UD); // lock add eax, ecx
    assert_eq!(long(&[0xf0, 0x8b, 0x00]).run(1), UD); // lock mov eax, [rax]
}

#[test]
fn branches_out_of_the_address_space_fault_at_the_branch() {
    let mut guest = long(&[0xff, 0xe0]); // jmp rax
    guest.cpu.state.gpr[gpr::RAX] = 1 << 47;
    assert_eq!(guest.run(1), GP);
    assert_eq!(guest.cpu.state.rip, FINE);

    let mut guest = Guest::protected(true);
    guest.load(0x2000, &[0xff, 0xe0]);
    guest.cpu.state.rip = 0x2000;
    guest.cpu.state.seg[seg::CS].limit = 0xffff;
    guest.cpu.state.gpr[gpr::RAX] = 0x1_0000;
    assert_eq!(guest.run(1), GP);
    assert_eq!(guest.cpu.state.rip, 0x2000);
}

#[test]
fn code_up_to_the_limit_and_not_beyond() {
    let mut guest = Guest::protected(true);
    guest.load(0x2000, &[0x40, 0x41, 0xb8, 1, 0, 0, 0]); // inc eax; inc ecx; mov eax, 1
    guest.cpu.state.rip = 0x2000;
    guest.cpu.state.seg[seg::CS].limit = 0x2005;
    assert_eq!(guest.run(3), GP);
    assert_eq!(guest.cpu.state.rip, 0x2002);
    assert_eq!(guest.cpu.state.retired, 2);
}

#[test]
fn sixteen_bit_pointers_wrap() {
    let mut guest = Guest::real();
    // push ax; pop bx at SP = 0; loop with CX = 0 goes 65535 more.
    guest.load(0x1000, &[0x50, 0x5b, 0xe2, 0xfe]);
    guest.cpu.state.rip = 0x1000;
    guest.cpu.state.gpr[gpr::RSP] = 0xdead_0000;
    guest.cpu.state.gpr[gpr::RAX] = 0x1234_5678;
    assert_eq!(guest.run(2), Outcome::Done);
    assert_eq!(guest.cpu.memory.read::<u16>(0xfffe), 0x5678);
    assert_eq!(guest.cpu.state.gpr[gpr::RBX] & 0xffff, 0x5678);
    assert_eq!(guest.cpu.state.gpr[gpr::RSP], 0xdead_0000);
    guest.cpu.state.gpr[gpr::RCX] = 0xabcd_0000;
    assert_eq!(guest.run(0x1_0000), Outcome::Done);
    assert_eq!(guest.cpu.state.gpr[gpr::RCX], 0xabcd_0000);
    assert_eq!(guest.cpu.state.rip, 0x1004);
}

#[test]
fn segment_bases_and_overrides_outside_64_bit_mode() {
    let mut guest = Guest::real();
    guest.cpu.state.seg[seg::ES].base = 0x2_0000;
    guest.cpu.state.seg[seg::SS].base = 0x3_0000;
    // mov al, [bx]; mov ah, es:[bx]; mov cl, [bp+0]
    guest.load(0x1000, &[0x8a, 0x07, 0x26, 0x8a, 0x27, 0x8a, 0x4e, 0x00]);
    guest.load(0x40, &[1]);
    guest.load(0x2_0040, &[2]);
    guest.load(0x3_0050, &[3]);
    guest.cpu.state.rip = 0x1000;
    guest.cpu.state.gpr[gpr::RBX] = 0x40;
    guest.cpu.state.gpr[gpr::RBP] = 0x50;
    assert_eq!(guest.run(3), Outcome::Done);
    assert_eq!(guest.cpu.state.gpr[gpr::RAX] & 0xffff, 0x0201);
    assert_eq!(guest.cpu.state.gpr[gpr::RCX] & 0xff, 3);
    // A word at offset FFFFH of a 64-KiB segment: #GP, or #SS in the stack segment.
    guest.load(0x1000, &[0x8b, 0x07]);
    guest.cpu.state.rip = 0x1000;
    guest.cpu.state.gpr[gpr::RBX] = 0xffff;
    assert_eq!(guest.run(1), GP);
    guest.load(0x1000, &[0x8b, 0x46, 0x00]);
    guest.cpu.state.gpr[gpr::RBP] = 0xffff;
    assert_eq!(guest.run(1), Outcome::Fault { vector: 12, error: 0, address: 0 });
}

#[test]
fn non_canonical_in_the_stack_segment_is_ss() {
    let mut guest = long(&[0x48, 0x8b, 0x45, 0x00, 0x48, 0x8b, 0x00, 0x50]); // mov rax, [rbp]; mov rax, [rax]; push
    guest.cpu.state.gpr[gpr::RBP] = 1 << 50;
    assert_eq!(guest.run(1), Outcome::Fault { vector: 12, error: 0, address: 0 });
    guest.cpu.state.rip = FINE + 4;
    guest.cpu.state.gpr[gpr::RAX] = 1 << 50;
    assert_eq!(guest.run(1), GP);
    guest.cpu.state.rip = FINE + 7;
    guest.cpu.state.gpr[gpr::RSP] = 1 << 50;
    assert_eq!(guest.run(1), Outcome::Fault { vector: 12, error: 0, address: 0 });
}

/// A REP instruction in a guest, with the registers of its operands.
fn rep(code: &[u8], rsi: u64, rdi: u64, rcx: u64) -> Guest {
    let mut guest = long(code);
    guest.cpu.state.gpr[gpr::RSI] = rsi;
    guest.cpu.state.gpr[gpr::RDI] = rdi;
    guest.cpu.state.gpr[gpr::RCX] = rcx;
    guest
}

const REP_MOVSB: [u8; 2] = [0xf3, 0xa4];
const SOURCE: u64 = FINE + 0x1_0000;
const TARGET: u64 = FINE + 0x2_0000;

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn rep_counts_each_iteration() {
    for stop in [1, 2, 99, 4095, 4096, 4097, 9999] {
        let mut guest = rep(&REP_MOVSB, SOURCE + 3, TARGET + 5, 10_000);
        guest.load(SOURCE, &pattern(0x4000));
        assert_eq!(guest.run(stop), Outcome::Done);
        let s = &guest.cpu.state;
        assert_eq!((s.retired, s.gpr[gpr::RCX]), (stop, 10_000 - stop));
        assert_eq!((s.gpr[gpr::RSI], s.gpr[gpr::RDI]), (SOURCE + 3 + stop, TARGET + 5 + stop));
        assert_eq!(s.rip, FINE);
        assert_eq!(guest.run(10_000 - stop), Outcome::Done);
        assert_eq!(guest.cpu.state.rip, FINE + 2);
        let mut copied = vec![0; 10_000];
        guest.cpu.memory.read_bytes(TARGET + 5, &mut copied);
        assert!(copied == pattern(0x4000)[3..10_003]);
    }
}

#[test]
fn rep_with_no_count_is_one_instruction() {
    let mut guest = rep(&REP_MOVSB, 0, 0, 0);
    assert_eq!(guest.run(1), Outcome::Done);
    assert_eq!((guest.cpu.state.rip, guest.cpu.state.retired), (FINE + 2, 1));
}

#[test]
fn rep_faults_at_the_page_with_registers_at_the_iteration() {
    for (source, bad) in [(SOURCE, TARGET + 0x1000), (SOURCE + 0xff0, SOURCE + 0x1000)] {
        let mut guest = rep(&REP_MOVSB, source, TARGET + 0xfc0, 0x100);
        guest.map(bad, 0, 0);
        let fault = guest.run(0x100);
        assert!(matches!(fault, Outcome::Fault { vector: 14, address, .. } if address == bad), "{fault:?}");
        let done = if bad == TARGET + 0x1000 { 0x40 } else { 0x10 };
        let s = &guest.cpu.state;
        assert_eq!((s.gpr[gpr::RCX], s.gpr[gpr::RSI]), (0x100 - done, source + done));
        assert_eq!((s.retired, s.rip), (done, FINE));
    }
}

#[test]
fn rep_movs_over_itself_repeats_the_pattern() {
    let mut guest = rep(&REP_MOVSB, SOURCE, SOURCE + 3, 300);
    guest.load(SOURCE, &[1, 2, 3]);
    assert_eq!(guest.run(300), Outcome::Done);
    let mut bytes = vec![0; 303];
    guest.cpu.memory.read_bytes(SOURCE, &mut bytes);
    assert!(bytes.iter().enumerate().all(|(i, b)| usize::from(*b) == i % 3 + 1));
    // Downwards it moves up without overlap trouble.
    let mut guest = rep(&REP_MOVSB, SOURCE + 299, SOURCE + 309, 300);
    guest.load(SOURCE, &pattern(300));
    guest.cpu.state.rflags |= flag::DF;
    assert_eq!(guest.run(300), Outcome::Done);
    guest.cpu.memory.read_bytes(SOURCE + 10, &mut bytes[..300]);
    assert!(bytes[..300] == pattern(300));
}

#[test]
fn rep_stos_and_the_address_size() {
    // 67 f3 48 ab: addr32 rep stosq; the upper halves of RDI and RCX do not count and are cleared.
    let mut guest = rep(&[0x67, 0xf3, 0x48, 0xab], 0, (TARGET + 0xff8) | (5 << 32), 4 | (9 << 32));
    guest.cpu.state.gpr[gpr::RAX] = 0x1122_3344_5566_7788;
    assert_eq!(guest.run(4), Outcome::Done);
    for n in 0..4 {
        assert_eq!(guest.cpu.memory.read::<u64>(TARGET + 0xff8 + 8 * n), 0x1122_3344_5566_7788);
    }
    assert_eq!(guest.cpu.memory.read::<u64>(TARGET + 0xff8 + 32), 0);
    assert_eq!((guest.cpu.state.gpr[gpr::RDI], guest.cpu.state.gpr[gpr::RCX]), (TARGET + 0xff8 + 32, 0));
    // 16-bit addresses wrap within the segment.
    let mut guest = Guest::real();
    guest.load(0x1000, &[0xf3, 0xaa]);
    guest.cpu.state.rip = 0x1000;
    guest.cpu.state.gpr[gpr::RDI] = 0x7777_fffe;
    guest.cpu.state.gpr[gpr::RCX] = 0x6666_0004;
    guest.cpu.state.gpr[gpr::RAX] = 0xaa;
    assert_eq!(guest.run(4), Outcome::Done);
    assert_eq!(guest.cpu.memory.read::<u16>(0xfffe), 0xaaaa);
    assert_eq!(guest.cpu.memory.read::<u16>(0), 0xaaaa);
    assert_eq!(guest.cpu.state.gpr[gpr::RDI], 0x7777_0002);
    assert_eq!(guest.cpu.state.gpr[gpr::RCX], 0x6666_0000);
}

#[test]
fn repe_and_repne_end_at_the_flag() {
    // repe cmpsb
    let mut guest = rep(&[0xf3, 0xa6], SOURCE, TARGET, 100);
    guest.load(SOURCE + 42, &[1]);
    assert_eq!(guest.run(43), Outcome::Done);
    assert_eq!((guest.cpu.state.gpr[gpr::RCX], guest.cpu.state.rip), (57, FINE + 2));
    assert_eq!(guest.cpu.state.rflags & flag::ZF, 0);
    // repne scasb
    let mut guest = rep(&[0xf2, 0xae], 0, TARGET, 100);
    guest.load(TARGET, &[7; 200]);
    guest.load(TARGET + 10, &[0]);
    assert_eq!(guest.run(11), Outcome::Done);
    assert_eq!((guest.cpu.state.gpr[gpr::RDI], guest.cpu.state.rip), (TARGET + 11, FINE + 2));
}

#[test]
fn rep_that_writes_over_itself() {
    // rep stosb over the code behind it: hlt becomes nop (0x90).
    let mut guest = rep(&[0xf3, 0xaa, 0xf4, 0xf4, 0xf4], 0, FINE + 2, 3);
    guest.cpu.state.gpr[gpr::RAX] = 0x90;
    assert_eq!(guest.run(3 + 3), Outcome::Done);
    assert_eq!(guest.cpu.state.rip, FINE + 5);
}

#[test]
fn rf_lasts_until_all_iterations_are_complete() {
    let mut guest = rep(&REP_MOVSB, SOURCE, TARGET, 10_000);
    guest.cpu.state.rflags |= flag::RF;
    assert_eq!(guest.run(7_000), Outcome::Done);
    assert_eq!((guest.cpu.state.gpr[gpr::RCX], guest.cpu.state.rflags & flag::RF), (3_000, flag::RF));
    assert_eq!(guest.run(3_000), Outcome::Done);
    assert_eq!((guest.cpu.state.gpr[gpr::RCX], guest.cpu.state.rflags & flag::RF), (0, 0));
}

#[test]
fn single_step_traps_after_each_instruction_and_iteration() {
    let trap = |o: Outcome| matches!(o, Outcome::Stopped(Stop::Exit) | Outcome::Fault { vector: 1, .. });
    let mut guest = rep(&REP_MOVSB, SOURCE, TARGET, 3);
    guest.cpu.state.rflags |= flag::TF;
    assert!(trap(guest.run(10)));
    assert_eq!((guest.cpu.state.retired, guest.cpu.state.gpr[gpr::RCX]), (1, 2));
}

#[test]
fn decimal_adjustments() {
    // (instruction, AX, flags in, AX out, CF out)
    let cases: &[(&[u8], u64, u64, u64, bool)] = &[
        (&[0x27], 0x79 + 0x35, flag::SF, 0x14, true), // DAA: SDM example, 79H + 35H
        (&[0x27], 0x2e, 0, 0x34, false),              // DAA after 2EH
        (&[0x2f], 0x35_u64.wrapping_sub(0x47) & 0xff, flag::CF | flag::AF, 0x88, true), // DAS: 35H - 47H
        (&[0x37], 0x000b, 0, 0x0101, true),           // AAA
        (&[0x3f], 0x020c, 0, 0x0106, true),           // AAS
        (&[0xd4, 10], 0x0037, 0, 0x0505, false),      // AAM
        (&[0xd5, 10], 0x0505, 0, 0x0037, false),      // AAD
    ];
    for (code, ax, flags, out, carry) in cases {
        let mut guest = Guest::protected(true);
        guest.load(0x2000, code);
        guest.cpu.state.rip = 0x2000;
        guest.cpu.state.gpr[gpr::RAX] = *ax;
        guest.cpu.state.rflags = 2 | flags;
        assert_eq!(guest.run(1), Outcome::Done);
        assert_eq!(guest.cpu.state.gpr[gpr::RAX], *out, "{code:x?}");
        assert_eq!(guest.cpu.state.rflags & flag::CF != 0, *carry, "{code:x?}");
    }
    let mut guest = Guest::protected(true);
    guest.load(0x2000, &[0xd4, 0]);
    guest.cpu.state.rip = 0x2000;
    assert_eq!(guest.run(1), Outcome::Fault { vector: 0, error: 0, address: 0 });
}

#[test]
fn pusha_popa_bound_and_enter_in_32_bit_code() {
    let mut guest = Guest::protected(true);
    // pusha; popa; bound eax, [ebx]
    guest.load(0x2000, &[0x60, 0x61, 0x62, 0x03]);
    guest.cpu.state.rip = 0x2000;
    for n in 0..8 {
        guest.cpu.state.gpr[n] = 0x1000 * (n as u64 + 1);
    }
    guest.cpu.state.gpr[gpr::RSP] = 0x9000;
    let before = guest.cpu.state.gpr;
    assert_eq!(guest.run(1), Outcome::Done);
    assert_eq!(guest.cpu.memory.read::<u32>(0x8ffc), 0x1000);
    assert_eq!(guest.cpu.memory.read::<u32>(0x8fec), 0x9000);
    assert_eq!(guest.cpu.state.gpr[gpr::RSP], 0x8fe0);
    guest.cpu.state.gpr[gpr::RCX] = 0;
    assert_eq!(guest.run(1), Outcome::Done);
    assert_eq!(guest.cpu.state.gpr, before);
    guest.cpu.memory.write(before[gpr::RBX], 0x2000_0000_1000_u64 & 0xffff_ffff | 0x2000 << 32);
    assert_eq!(guest.run(1), Outcome::Done);
    guest.cpu.state.rip = 0x2002;
    guest.cpu.state.gpr[gpr::RAX] = 0x2001;
    assert_eq!(guest.run(1), Outcome::Fault { vector: 5, error: 0, address: 0 });
}

#[test]
fn what_the_model_does_not_offer() {
    use silicon::vmx::Model;
    use std::sync::Arc;
    let model = || Arc::new(Model::new("max", [], ["bmi1", "bmi2", "lzcnt"]).expect("model"));
    let mut guest = long(&[0xc4, 0xe2, 0xfb, 0xf5, 0xc1]); // pdep rax, rax, rcx
    guest.cpu.model = model();
    assert_eq!(guest.run(1), UD);
    // tzcnt and lzcnt are bsf and bsr; endbr64 is a NOP.
    let mut guest = long(&[0xf3, 0x0f, 0x1e, 0xfa, 0xf3, 0x48, 0x0f, 0xbc, 0xc1, 0xf3, 0x48, 0x0f, 0xbd, 0xd1]);
    guest.cpu.model = model();
    guest.cpu.state.gpr[gpr::RCX] = 0x1_0010;
    assert_eq!(guest.run(3), Outcome::Done);
    assert_eq!((guest.cpu.state.gpr[gpr::RAX], guest.cpu.state.gpr[gpr::RDX]), (4, 16));
}
