//! How many million guest instructions a second silicon executes: integer loop, memory walk, calls.
//!
//! `cargo run --release --example speed`

use std::sync::Arc;
use std::time::Instant;

use silicon::clock::Clock;
use silicon::cpu::Cpu;
use silicon::memory::Memory;
use silicon::state::{Segment, cr, seg};
use silicon::vmx::Model;

const CODE: u64 = 0x20_0000;
const DATA: u64 = 0x40_0000;
const TABLES: u64 = 0x10_0000;

fn processor() -> Cpu {
    let memory = Arc::new(Memory::new(64 << 20, 1 << 20).expect("memory"));
    let mut cpu = Cpu::new(memory, Arc::new(Model::default()), Clock::Virtual { skipped: 0 });
    cpu.memory.write(TABLES, (TABLES + 0x1000) | 7);
    cpu.memory.write(TABLES + 0x1000, (TABLES + 0x2000) | 7);
    for n in 0..32_u64 {
        cpu.memory.write(TABLES + 0x2000 + 8 * n, n << 21 | 0x87);
    }
    let s = &mut *cpu.state;
    s.cr0 = cr::CR0_PE | cr::CR0_PG | cr::CR0_NE | cr::CR0_WP;
    s.cr3 = TABLES;
    s.cr4 = cr::CR4_PAE;
    s.efer = cr::EFER_LME | cr::EFER_LMA;
    for (n, segment) in s.seg.iter_mut().enumerate() {
        let access = if n == seg::CS { 0xa09b } else { 0xc093 };
        *segment = Segment { selector: 0x10, base: 0, limit: 0xffff_ffff, access };
    }
    s.gpr[4] = DATA + 0x10_0000;
    cpu.update_mode();
    cpu.mmu_context_changed();
    cpu
}

fn measure(name: &str, code: &[&[u8]]) {
    let mut cpu = processor();
    cpu.memory.write_bytes(CODE, &code.concat());
    cpu.state.rip = CODE;
    cpu.state.gpr[6] = DATA;
    let _ = cpu.run(1_000_000);
    let (from, start) = (cpu.state.retired, Instant::now());
    let stop = cpu.run(from + 100_000_000);
    let seconds = start.elapsed().as_secs_f64();
    let done = cpu.state.retired - from;
    println!("{name:24} {:7.1} million instructions/s ({stop:?})", done as f64 / seconds / 1e6);
}

fn main() {
    measure(
        "integer loop",
        &[
            &[0x48, 0x01, 0xc8],             // top: add rax, rcx
            &[0x48, 0x31, 0xc2],             // xor rdx, rax
            &[0x48, 0x8d, 0x4c, 0x51, 0x07], // lea rcx, [rcx+rdx*2+7]
            &[0x48, 0xc1, 0xea, 0x03],       // shr rdx, 3
            &[0x48, 0x0f, 0xaf, 0xda],       // imul rbx, rdx
            &[0x48, 0x39, 0xc3],             // cmp rbx, rax
            &[0x41, 0x0f, 0x94, 0xc0],       // sete r8b
            &[0x49, 0xff, 0xc1],             // inc r9
            &[0xeb, 0xe1],                   // jmp top
        ],
    );
    measure(
        "memory walk",
        &[
            &[0x48, 0x8b, 0x04, 0x3e],             // top: mov rax, [rsi+rdi]
            &[0x48, 0x01, 0x44, 0x3e, 0x08],       // add [rsi+rdi+8], rax
            &[0x48, 0x89, 0x44, 0x3e, 0x10],       // mov [rsi+rdi+16], rax
            &[0x48, 0x83, 0xc7, 0x18],             // add rdi, 24
            &[0x81, 0xe7, 0xff, 0xff, 0x0f, 0x00], // and edi, 0xfffff
            &[0xeb, 0xe6],                         // jmp top
        ],
    );
    measure(
        "calls and branches",
        &[
            &[0xe8, 0x0e, 0x00, 0x00, 0x00], // top: call function
            &[0xa8, 0x01],                   // test al, 1
            &[0x75, 0x05],                   // jne odd
            &[0x48, 0xff, 0xc3],             // inc rbx
            &[0xeb, 0xf2],                   // jmp top
            &[0x48, 0xff, 0xcb],             // odd: dec rbx
            &[0xeb, 0xed],                   // jmp top
            &[0x55],                         // function: push rbp
            &[0x48, 0x89, 0xe5],             // mov rbp, rsp
            &[0xff, 0xc0],                   // inc eax
            &[0x5d],                         // pop rbp
            &[0xc3],                         // ret
        ],
    );
}
