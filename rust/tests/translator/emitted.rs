//! Host instructions and bytes emitted for single guest instructions, and for a few together, pinned in `emitted.txt`: a regression
//! shows without a stopwatch. `UPDATE_EMITTED=1` writes the table anew.
//!
//! Counted is what stands in line, without the ways out after a miss (a branch with both of its ends); the
//! flags are dead, as they mostly are, unless an instruction itself needs them.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions};

use crate::pair::guest_for_programs;
use crate::program::{CODE, DATA};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/translator/emitted.txt");

/// Bytes and what they are.
const INSTRUCTIONS: &[(&str, &[u8])] = &[
    ("mov rax, rcx", &[0x48, 0x89, 0xc8]),
    ("mov r14, rax", &[0x49, 0x89, 0xc6]),
    ("mov eax, 1", &[0xb8, 1, 0, 0, 0]),
    ("mov rax, [rbx]", &[0x48, 0x8b, 0x03]),
    ("mov rax, [rbx + rsi*8 + 16]", &[0x48, 0x8b, 0x44, 0xf3, 0x10]),
    ("mov [rbx], rax", &[0x48, 0x89, 0x03]),
    ("mov dword [rbx + 4], 7", &[0xc7, 0x43, 4, 7, 0, 0, 0]),
    ("mov al, [rbx]", &[0x8a, 0x03]),
    ("mov ah, al", &[0x88, 0xc4]),
    ("mov [rdi + rsi], ah", &[0x88, 0x24, 0x37]),
    ("xor bh, [rsp + 8]", &[0x32, 0x7c, 0x24, 8]),
    ("mov rax, [rip + 256]", &[0x48, 0x8b, 0x05, 0, 1, 0, 0]),
    ("mov rax, gs:[rbx]", &[0x65, 0x48, 0x8b, 0x03]),
    ("mov rax, fs:[28h]", &[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0]),
    ("mov r13, [r12 + 8]", &[0x4d, 0x8b, 0x6c, 0x24, 8]),
    ("mov rax, [r13]", &[0x49, 0x8b, 0x45, 0]),
    ("mov rax, [rsp + 8]", &[0x48, 0x8b, 0x44, 0x24, 8]),
    ("movzx eax, byte [rdi]", &[0x0f, 0xb6, 0x07]),
    ("movsxd rax, dword [rdi]", &[0x48, 0x63, 0x07]),
    ("lea rax, [rbx + rsi*4 + 8]", &[0x48, 0x8d, 0x44, 0xb3, 8]),
    ("lea rax, [rip + 256]", &[0x48, 0x8d, 0x05, 0, 1, 0, 0]),
    ("add rax, rcx", &[0x48, 0x01, 0xc8]),
    ("add rax, [rbx]", &[0x48, 0x03, 0x03]),
    ("add [rbx], rax", &[0x48, 0x01, 0x03]),
    ("adc rax, [rbx]", &[0x48, 0x13, 0x03]),
    ("sub rsp, 16", &[0x48, 0x83, 0xec, 16]),
    ("cmp rax, [rbx]", &[0x48, 0x3b, 0x03]),
    ("cmp byte [rdi], 0", &[0x80, 0x3f, 0]),
    ("test rax, rax", &[0x48, 0x85, 0xc0]),
    ("xor r15d, r15d", &[0x45, 0x31, 0xff]),
    ("inc dword [rbx]", &[0xff, 0x03]),
    ("shl rax, 3", &[0x48, 0xc1, 0xe0, 3]),
    ("shl rax, cl", &[0x48, 0xd3, 0xe0]),
    ("imul rax, [rbx]", &[0x48, 0x0f, 0xaf, 0x03]),
    ("mul rcx", &[0x48, 0xf7, 0xe1]),
    ("mulx r10, r14, [rsi + 8]", &[0xc4, 0x62, 0x8b, 0xf6, 0x56, 8]),
    ("xadd [rbx], r14", &[0x4c, 0x0f, 0xc1, 0x33]),
    ("xchg r10, r11", &[0x4d, 0x87, 0xda]),
    ("pdep r10, r11, r14", &[0xc4, 0x42, 0xa3, 0xf5, 0xd6]),
    ("div rcx", &[0x48, 0xf7, 0xf1]),
    ("cqo", &[0x48, 0x99]),
    ("bswap rax", &[0x48, 0x0f, 0xc8]),
    ("bt rax, 5", &[0x48, 0x0f, 0xba, 0xe0, 5]),
    ("bt [rbx], rcx", &[0x48, 0x0f, 0xa3, 0x0b]),
    ("lock bts [rbx], r14", &[0xf0, 0x4c, 0x0f, 0xab, 0x33]),
    ("popcnt rax, rcx", &[0xf3, 0x48, 0x0f, 0xb8, 0xc1]),
    ("cmovz rax, rcx", &[0x48, 0x0f, 0x44, 0xc1]),
    ("cmovz rax, [rbx]", &[0x48, 0x0f, 0x44, 0x03]),
    ("sete al", &[0x0f, 0x94, 0xc0]),
    ("xchg rax, [rbx]", &[0x48, 0x87, 0x03]),
    ("lock cmpxchg [rbx], rcx", &[0xf0, 0x48, 0x0f, 0xb1, 0x0b]),
    ("lock xadd [rbx], eax", &[0xf0, 0x0f, 0xc1, 0x03]),
    ("push rax", &[0x50]),
    ("push r14", &[0x41, 0x56]),
    ("push 1", &[0x6a, 1]),
    ("pop rax", &[0x58]),
    ("pop qword [rbx]", &[0x8f, 0x03]),
    ("leave", &[0xc9]),
    ("jz +0", &[0x74, 0]),
    ("jmp +0", &[0xeb, 0]),
    ("jmp rax", &[0xff, 0xe0]),
    ("jmp [rbx]", &[0xff, 0x23]),
    ("call +0", &[0xe8, 0, 0, 0, 0]),
    ("call rax", &[0xff, 0xd0]),
    ("ret", &[0xc3]),
    ("rep movsb", &[0xf3, 0xa4]),
    ("rep stosq", &[0xf3, 0x48, 0xab]),
    ("nop [rax]", &[0x0f, 0x1f, 0]),
    ("cpuid", &[0x0f, 0xa2]),
    ("rdtsc", &[0x0f, 0x31]),
    ("rdfsbase rax", &[0xf3, 0x48, 0x0f, 0xae, 0xc0]),
    ("wrgsbase rax", &[0xf3, 0x48, 0x0f, 0xae, 0xd8]),
    ("mov eax, es", &[0x8c, 0xc0]),
    ("mov [rbx], ds", &[0x8c, 0x1b]),
    ("pause", &[0xf3, 0x90]),
    ("cld", &[0xfc]),
    ("pxor xmm0, xmm1", &[0x66, 0x0f, 0xef, 0xc1]),
    ("movups xmm0, [rbx]", &[0x0f, 0x10, 0x03]),
    ("movaps [rbx], xmm0", &[0x0f, 0x29, 0x03]),
    ("mulsd xmm0, [rbx]", &[0xf2, 0x0f, 0x59, 0x03]),
    ("cvttsd2si rax, xmm0", &[0xf2, 0x48, 0x0f, 0x2c, 0xc0]),
    ("vaddps ymm0, ymm1, ymm2", &[0xc5, 0xf4, 0x58, 0xc2]),
    ("vmovdqu ymm0, [rbx]", &[0xc5, 0xfe, 0x6f, 0x03]),
    ("vzeroupper", &[0xc5, 0xf8, 0x77]),
    ("fadd st0, st1", &[0xd8, 0xc1]),
    ("mov rax, [rbx + 8]; mov rcx, [rbx + 16]", &[0x48, 0x8b, 0x43, 8, 0x48, 0x8b, 0x4b, 16]),
    (
        "mov rax, [rbx + 8]; mov rcx, [rdi]; mov [rbx + 16], rax",
        &[0x48, 0x8b, 0x43, 8, 0x48, 0x8b, 0x0f, 0x48, 0x89, 0x43, 16],
    ),
    ("mov eax, gs:[16]; add eax, gs:[20]", &[0x65, 0x8b, 4, 0x25, 16, 0, 0, 0, 0x65, 3, 4, 0x25, 20, 0, 0, 0]),
    ("mov rbx, [rbx + 8]; mov rcx, [rbx + 16]", &[0x48, 0x8b, 0x5b, 8, 0x48, 0x8b, 0x4b, 16]),
];

#[test]
fn code_emitted_for_single_instructions() {
    let mut guest = guest_for_programs();
    guest.cpu.use_translator_with(4 << 20).expect("executable memory");
    guest.cpu.translator.as_mut().expect("a translator").warm = 0;
    let mut table = String::from("# host instructions, their bytes: guest instruction\n");
    for (n, (name, bytes)) in INSTRUCTIONS.iter().enumerate() {
        // The instruction at which a run begins is interpreted: a jump.
        let at = CODE + 64 * n as u64;
        let mut code = vec![0xeb, 0];
        code.extend(*bytes);
        code.extend([0x39, 0xc0, 0xeb, 0xfe]); // cmp eax, eax: the flags are dead; jmp to itself
        guest.load(at, &code);
        let s = &mut *guest.cpu.state;
        s.rip = at;
        s.gpr = [DATA + 0x100; 16];
        (s.rflags, s.mxcsr, s.fcw, s.fsw, s.ftw) = (2, 0x1f80, 0x37f, 0, 0xffff);
        guest.ready();
        guest.run(8);
        let listing = guest.cpu.translator.as_mut().and_then(|t| t.listing(at + 2));
        let listing = listing.unwrap_or_else(|| panic!("{name} was not translated"));
        let count = Decoder::new(64, bytes, DecoderOptions::NONE).iter().count();
        let (host, length) = (0..count).fold((0, 0), |(n, l), i| (n + listing.count(i), l + listing.host(i).len()));
        writeln!(table, "{host:3} {length:4}: {name}").expect("a string");
    }
    if std::env::var_os("UPDATE_EMITTED").is_some() {
        std::fs::write(TABLE, &table).expect("the table can be written");
        return;
    }
    let pinned = std::fs::read_to_string(TABLE).unwrap_or_default();
    let changed: Vec<String> = pinned
        .lines()
        .zip(table.lines())
        .filter(|(old, new)| old != new)
        .map(|(old, new)| format!("  was {old}\n  is  {new}"))
        .collect();
    assert!(pinned == table, "other code is emitted (UPDATE_EMITTED=1 if it is better):\n{}", changed.join("\n"));
}
