//! The engine's side of differential tests: one `Cpu` at CPL 3 in 64-bit code with identity-mapped pages,
//! and random instructions, registers and memory for both sides. Knows nothing of the host's results.

#![allow(dead_code)]

use std::sync::Arc;

use iced_x86::{Code, Instruction, MemoryOperand, OpCodeOperandKind, Register};
use rand::RngExt;
use rand::rngs::StdRng;
use silicon::clock::Clock;
use silicon::cpu::{Bits, Cpu};
use silicon::decode::{DecodedInsn, decode_one};
use silicon::interpreter::vector;
use silicon::memory::Memory;
use silicon::state::{Segment, cr, seg};
use silicon::stop::Stop;
use silicon::vmx::Model;

use crate::native::NativeState;

/// Where the instruction lies.
pub const CODE: u64 = 0x0100_0000;
/// Where its data lie; the last page is not mapped.
pub const DATA: u64 = 0x0120_0000;
/// Pages of data.
pub const DATA_PAGES: usize = 4;
const TABLES: u64 = 0x10_0000;
const RAM: u64 = 0x0200_0000;

/// How the instruction ended in the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Result {
    /// Completed.
    Done,
    /// Faulted; `error` and `address` for #PF only.
    Fault { vector: u8, error: u32, address: u64 },
}

/// One processor with its memory.
pub struct Engine {
    pub cpu: Cpu,
}

impl Engine {
    /// A processor in 64-bit user mode, everything enabled.
    pub fn new() -> Self {
        let memory = Arc::new(Memory::new(RAM, 1 << 20).expect("memory"));
        let mut cpu = Cpu::new(memory, Arc::new(Model::default()), Clock::Virtual { skipped: 0 });
        let mem = &cpu.memory;
        // Identity map of the first 32 MiB, 4-KiB pages at DATA, user and writable.
        let (pml4, pdpt, pd, pt) = (TABLES, TABLES + 0x1000, TABLES + 0x2000, TABLES + 0x3000);
        mem.write(pml4, pdpt | 7);
        mem.write(pdpt, pd | 7);
        for n in 0..16u64 {
            mem.write(pd + 8 * n, n << 21 | 0x87);
        }
        mem.write(pd + 8 * (DATA >> 21), pt | 7);
        for n in 0..512u64 {
            let page = DATA + (n << 12);
            let present = n < DATA_PAGES as u64 - 1;
            mem.write(pt + 8 * n, if present { page | 7 } else { 0 });
        }
        let s = &mut *cpu.state;
        s.cr0 = cr::CR0_PE | cr::CR0_PG | cr::CR0_NE | cr::CR0_ET | cr::CR0_MP | cr::CR0_WP;
        s.cr3 = pml4;
        s.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
        s.efer = cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
        s.xcr0 = vector::features::xcr0_supported();
        for (n, segment) in s.seg.iter_mut().enumerate() {
            let access = if n == seg::CS { 0xa0fb } else { 0xc0f3 };
            *segment = Segment { selector: 0x33, base: 0, limit: 0xffff_ffff, access };
        }
        cpu.update_mode();
        cpu.mmu_context_changed();
        Self { cpu }
    }

    /// Executes one instruction from `state` with `memory` at [`DATA`].
    pub fn run(&mut self, bytes: &[u8], state: &NativeState, memory: &[u8]) -> (Result, NativeState) {
        self.cpu.memory.write_bytes(DATA, memory);
        load(&mut self.cpu, state);
        let bits = if state.code32 { Bits::B32 } else { Bits::B64 };
        if self.cpu.mode.bits != bits {
            self.user(bits);
        }
        let result = self.exec(bytes, bits);
        (result, store(&self.cpu))
    }

    /// Executes one instruction in the processor's present state.
    pub fn exec(&mut self, bytes: &[u8], bits: Bits) -> Result {
        let DecodedInsn::Insn(insn) = decode_one(bytes, bits) else { panic!("cannot decode {bytes:02x?}") };
        let cpu = &mut self.cpu;
        cpu.next_rip = cpu.state.rip.wrapping_add(u64::from(insn.len));
        match (insn.run)(cpu, &insn) {
            Ok(()) => {
                cpu.state.rip = cpu.next_rip;
                Result::Done
            }
            Err(Stop::Fault) => {
                let f = cpu.fault;
                if f.vector == 14 {
                    Result::Fault { vector: 14, error: f.error.unwrap_or(0), address: f.payload }
                } else {
                    Result::Fault { vector: f.vector, error: 0, address: 0 }
                }
            }
            Err(other) => panic!("{other:?} of {bytes:02x?}"),
        }
    }

    /// CPL 3 in long mode: 64-bit code, or 32-bit compatibility mode.
    fn user(&mut self, bits: Bits) {
        self.cpu.state.seg[seg::CS].access = if bits == Bits::B64 { 0xa0fb } else { 0xc0fb };
        self.cpu.update_mode();
        self.cpu.mmu_context_changed();
    }

    /// Changes to CPL 0 (`bits` = 64), or to flat 32- or 16-bit protected code, or with `protected` false real mode.
    pub fn mode(&mut self, bits: Bits, protected: bool) {
        let s = &mut *self.cpu.state;
        s.cr0 = if protected { s.cr0 | cr::CR0_PE } else { s.cr0 & !(cr::CR0_PE | cr::CR0_PG) };
        if bits != Bits::B64 {
            s.cr0 &= !cr::CR0_PG;
            s.efer &= !(cr::EFER_LME | cr::EFER_LMA);
        }
        for (n, segment) in s.seg.iter_mut().enumerate() {
            let code: u64 = match bits {
                Bits::B64 => 0xa09b,
                Bits::B32 => 0xc09b,
                Bits::B16 => 0x809b,
            };
            segment.access = if n == seg::CS { code } else { 0xc093 };
        }
        self.cpu.update_mode();
        self.cpu.mmu_context_changed();
    }

    /// Bytes of memory.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.cpu.memory.read_bytes(address, &mut out);
        out
    }

    /// The data area but its unmapped page.
    pub fn memory(&self) -> Vec<u8> {
        let mut out = vec![0; (DATA_PAGES - 1) * 4096];
        self.cpu.memory.read_bytes(DATA, &mut out);
        out
    }
}

/// Puts the reference's state into the processor.
pub fn load(cpu: &mut Cpu, n: &NativeState) {
    let s = &mut *cpu.state;
    s.gpr = n.gpr;
    s.rip = n.rip;
    s.rflags = n.rflags;
    s.ymm = n.ymm;
    s.mxcsr = u64::from(n.mxcsr);
    (s.fop, s.fip, s.fdp) = (0, 0, 0);
    s.fcw = u64::from(n.fcw);
    s.fsw = u64::from(n.fsw);
    s.ftw = (0..8).fold(0, |tags, k| tags | if n.ftw >> k & 1 != 0 { 0 } else { 3 << (2 * k) });
    for (st, bytes) in s.st.iter_mut().zip(&n.st) {
        st[0] = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        st[1] = u64::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    }
}

/// Takes it out.
pub fn store(cpu: &Cpu) -> NativeState {
    let s = &*cpu.state;
    let mut n = NativeState {
        gpr: s.gpr,
        rip: s.rip,
        rflags: s.rflags,
        code32: cpu.mode.bits == Bits::B32,
        ymm: s.ymm,
        mxcsr: s.mxcsr as u32,
        fcw: s.fcw as u16,
        fsw: s.fsw as u16,
        ftw: (0..8).fold(0, |bits, k| bits | u8::from(s.ftw >> (2 * k) & 3 != 3) << k),
        st: [[0; 10]; 8],
    };
    for (bytes, st) in n.st.iter_mut().zip(&s.st) {
        bytes[..8].copy_from_slice(&st[0].to_le_bytes());
        bytes[8..].copy_from_slice(&(st[1] as u16).to_le_bytes());
    }
    n
}

/// Codes of instructions that the vector unit takes and 64-bit code can have.
pub fn offered_codes() -> impl Iterator<Item = Code> {
    Code::values().filter(|&code| {
        let info = code.op_code();
        let mut i = Instruction::default();
        i.set_code(code);
        // FSTCW and its like are FWAIT and an instruction: the decoder never makes them.
        let two = format!("{code:?}");
        let composite =
            ["Fstenv", "Fstcw", "Fclex", "Finit", "Fsave", "Fstsw", "Feni", "Fdisi", "Fsetpm", "Fstdw", "Fstsg"]
                .iter()
                .any(|p| two.starts_with(p));
        // Selection looks at operand kinds: it is asked with a real instruction below.
        info.is_instruction() && info.mode64() && !composite && vector::features::code_offered(code) && takes(code)
    })
}

fn takes(code: Code) -> bool {
    let mut rng = <StdRng as rand::SeedableRng>::seed_from_u64(0);
    let mut state = NativeState::default();
    random_instruction(&mut rng, code, &mut state).is_some_and(|i| vector::select(&i).is_some())
}

/// Bytes that make interesting numbers of every format.
pub fn fill_random(rng: &mut StdRng, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        let v = random_word(rng).to_le_bytes();
        chunk.copy_from_slice(&v[..chunk.len()]);
    }
}

fn random_f32(rng: &mut StdRng) -> u32 {
    let sign = rng.random::<u32>() & 0x8000_0000;
    sign | match rng.random_range(0..9) {
        0 => 0,
        1 => 0x7f80_0000,
        2 => 0x7fc0_0000 | rng.random::<u32>() & 0x3f_ffff,
        3 => 0x7f80_0001 | rng.random::<u32>() & 0x3f_ffff,
        4 => rng.random::<u32>() & 0x7f_ffff,
        5 => 0x3f80_0000,
        6 => 0x3f80_0000 + (rng.random::<u32>() & 0x3ff_ffff),
        7 => 0x7f00_0000 | rng.random::<u32>() & 0x7f_ffff,
        _ => rng.random::<u32>() & 0x7fff_ffff,
    }
}

fn random_f64(rng: &mut StdRng) -> u64 {
    let sign = rng.random::<u64>() & 1 << 63;
    let fraction = rng.random::<u64>() & 0xf_ffff_ffff_ffff;
    sign | match rng.random_range(0..9) {
        0 => 0,
        1 => 0x7ff0 << 48,
        2 => 0x7ff8 << 48 | fraction,
        3 => 0x7ff0 << 48 | fraction & 0x7_ffff_ffff_ffff | 1,
        4 => fraction,
        5 => 0x3ff0 << 48,
        6 => (0x3fd + rng.random_range(0..40u64)) << 52 | fraction & (!0 << rng.random_range(0..52)),
        7 => 0x7fe0 << 48 | fraction,
        _ => rng.random::<u64>() & !(1 << 63),
    }
}

fn random_word(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..6) {
        0 => u64::from(random_f32(rng)) | u64::from(random_f32(rng)) << 32,
        1 => random_f64(rng),
        2 => rng.random_range(0..4) * 0x0101_0101_0101_0101,
        3 => rng.random_range(0..256),
        _ => rng.random(),
    }
}

/// An 80-bit number: normal, zero, infinity, NaN, denormal, or an encoding that the unit does not support.
fn random_f80(rng: &mut StdRng) -> [u8; 10] {
    let fraction: u64 = rng.random::<u64>() >> 1;
    let one = 1u64 << 63;
    let (exponent, integer) = match rng.random_range(0..12) {
        0 => (0, 0),
        1 => (0x7fff, one),
        2 => (0x7fff, one | fraction | 1 << 62),
        3 => (0x7fff, one | fraction & !(1 << 62) | 1),
        4 => (0, fraction),
        5 => (0, one | fraction),
        6 => (rng.random::<u16>() & 0x7fff, fraction),
        7 => (0x3fff, one),
        8 | 9 => (0x3fff - 4 + rng.random_range(0..70u16), one | fraction & (!0 << rng.random_range(0..63))),
        10 => (0x3fff + rng.random_range(0..1100u16) - 550, one | fraction),
        _ => (rng.random::<u16>() & 0x7fff, one | fraction),
    };
    let sign = rng.random::<u16>() & 0x8000;
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&integer.to_le_bytes());
    bytes[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
    bytes
}

/// Random registers: for x87 instructions also exceptions unmasked, for the others a clean x87 state at times.
pub fn random_state(rng: &mut StdRng, _code: Code) -> NativeState {
    let mut s = NativeState { rip: CODE, ..NativeState::default() };
    for r in &mut s.gpr {
        *r = random_word(rng);
    }
    s.rflags = 0x202 | rng.random::<u64>() & 0x8d5;
    for y in &mut s.ymm {
        for word in y.iter_mut() {
            *word = random_word(rng);
        }
    }
    s.mxcsr = match rng.random_range(0..4) {
        0 => rng.random::<u32>() & 0xffff,
        1 => 0x1f80 | rng.random::<u32>() & 0xe07f,
        _ => 0x1f80,
    };
    s.fcw = 0x40
        | if rng.random_range(0..3) == 0 { rng.random::<u16>() & 0x1f3f } else { 0x33f | rng.random::<u16>() & 0xc00 };
    let top = rng.random::<u16>() & 7;
    s.fsw = top << 11 | rng.random::<u16>() & 0x4700;
    if rng.random_range(0..8) == 0 {
        s.fsw |= rng.random::<u16>() & 0x7f;
        if s.fsw & !s.fcw & 0x3f != 0 {
            s.fsw |= 0x8080;
        }
    }
    s.ftw = match rng.random_range(0..3) {
        0 => rng.random(),
        1 => 0xff,
        _ => rng.random::<u8>() | rng.random::<u8>(),
    };
    for st in &mut s.st {
        *st = random_f80(rng);
    }
    s
}

/// A random instruction of `code`, with registers in `state` set so that it addresses the data area.
/// `None` for operands that these tests do not make.
pub fn random_instruction(rng: &mut StdRng, code: Code, state: &mut NativeState) -> Option<Instruction> {
    use OpCodeOperandKind as K;
    let info = code.op_code();
    let mut i = Instruction::default();
    i.set_code(code);
    let in_memory = rng.random_range(0..5) < 3;
    let immediate = if rng.random_range(0..2) == 0 { rng.random() } else { rng.random_range(0..16u8) };
    for n in 0..info.op_count() {
        let any16 = rng.random_range(0..if state.code32 { 8 } else { 16u32 });
        let any8 = rng.random_range(0..8u32);
        // The GPR operands stay off RSP and the base register RBX, and off R12..R15 now and then used as base.
        let gpr = [0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 13, 15][rng.random_range(0..if state.code32 { 6 } else { 12 })];
        let kind = info.op_kind(n);
        let name = format!("{kind:?}");
        if name.starts_with("mem_vsib") {
            vsib(rng, &mut i, &name, state);
            continue;
        }
        let register = match kind {
            K::mem => None,
            K::mm_or_mem => Some(Register::MM0 + any8),
            K::xmm_or_mem => Some(Register::XMM0 + any16),
            K::ymm_or_mem => Some(Register::YMM0 + any16),
            K::r32_or_mem => Some(Register::EAX + gpr),
            K::r64_or_mem => Some(Register::RAX + gpr),
            K::r16_or_mem => Some(Register::AX + gpr),
            K::r8_or_mem if state.code32 => Some(Register::CH),
            K::r8_or_mem => Some([Register::AL, Register::BH, Register::AH, Register::R9L][rng.random_range(0..4)]),
            K::mm_reg | K::mm_rm => Some(Register::MM0 + any8),
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => Some(Register::XMM0 + any16),
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => Some(Register::YMM0 + any16),
            K::r32_reg | K::r32_rm | K::r32_vvvv => Some(Register::EAX + gpr),
            K::r64_reg | K::r64_rm | K::r64_vvvv => Some(Register::RAX + gpr),
            K::st0 => Some(Register::ST0),
            K::sti_opcode => Some(Register::ST0 + any8),
            K::ax => Some(Register::AX),
            K::imm8 | K::imm4_m2z => {
                i.set_op_kind(n, iced_x86::OpKind::Immediate8);
                i.set_immediate8(if kind == K::imm8 { immediate } else { immediate & 15 });
                continue;
            }
            K::seg_rDI => {
                let kind = if state.code32 { iced_x86::OpKind::MemorySegEDI } else { iced_x86::OpKind::MemorySegRDI };
                i.set_op_kind(n, kind);
                // Masked-out bytes in an unmapped page: faulting there or not is the processor's choice.
                let page = DATA + 4096 * rng.random_range(0..DATA_PAGES as u64 - 1);
                state.gpr[7] = page + rng.random_range(0..4080);
                continue;
            }
            _ => return None,
        };
        match register {
            Some(register) if !name.ends_with("or_mem") || !in_memory => i.set_op_register(n, register),
            _ => memory(rng, &mut i, n, state),
        }
    }
    // AH and its like exclude a REX prefix.
    let high = (0..i.op_count()).any(|n| matches!(i.op_register(n), Register::AH | Register::BH));
    let rex = (0..i.op_count()).any(|n| {
        let r = i.op_register(n);
        r.is_gpr() && (r.size() == 8 || r.full_register().number() >= 8)
    }) || i.memory_base().number() >= 8 && i.memory_base() != Register::None;
    if high && rex {
        return random_instruction(rng, code, state);
    }
    if matches!(code, Code::Ldmxcsr_m32 | Code::VEX_Vldmxcsr_m32) {
        // Only to have both good and bad values: see the caller's memory.
    }
    Some(i)
}

/// An address in the data area: aligned, not aligned, at the end of a page, or running into the unmapped page.
fn address(rng: &mut StdRng, size: usize) -> u64 {
    let usable = (DATA_PAGES as u64 - 1) * 4096;
    let size = size as u64;
    match rng.random_range(0..8) {
        0..4 => DATA + rng.random_range(0..usable / 64 - 2) * 64,
        4..6 => DATA + rng.random_range(0..usable - 128),
        6 => DATA + 4096 * rng.random_range(1..DATA_PAGES as u64 - 1) - rng.random_range(0..size + 1),
        _ => DATA + usable - rng.random_range(0..size + 1),
    }
}

fn memory(rng: &mut StdRng, i: &mut Instruction, n: u32, state: &mut NativeState) {
    let size = i.memory_size().size().max(4);
    let base = if state.code32 {
        [Register::EBX, Register::ESP][rng.random_range(0..2)]
    } else {
        [Register::RBX, Register::RSP, Register::R12, Register::R14][rng.random_range(0..4)]
    };
    let displacement = rng.random_range(-200..200i64);
    let target = address(rng, size);
    state.gpr[base.number()] = target.wrapping_sub(displacement as u64);
    let operand = MemoryOperand::with_base_displ(base, displacement);
    i.set_op_kind(n, iced_x86::OpKind::Memory);
    i.set_memory_base(operand.base);
    i.set_memory_displacement64(if state.code32 { u64::from(displacement as u32) } else { displacement as u64 });
    i.set_memory_displ_size(if state.code32 { 4 } else { 8 });
}

fn vsib(rng: &mut StdRng, i: &mut Instruction, kind: &str, state: &mut NativeState) {
    let index = rng.random_range(0..if state.code32 { 8 } else { 16usize });
    let wide = kind.contains("64");
    let register = if kind.ends_with('y') { Register::YMM0 } else { Register::XMM0 } + index as u32;
    let n = (0..i.op_count()).find(|&n| format!("{:?}", i.code().op_code().op_kind(n)).starts_with("mem_vsib"));
    let limit = if rng.random_range(0..4) == 0 { (DATA_PAGES as i64) * 4096 - 100 } else { 8000 };
    let mut offset = || rng.random_range(0..limit) / 8 - 20;
    state.ymm[index] = std::array::from_fn(|_| {
        if wide { offset() as u64 } else { u64::from(offset() as u32) | u64::from(offset() as u32) << 32 }
    });
    state.gpr[3] = DATA + 256;
    i.set_op_kind(n.unwrap_or(1), iced_x86::OpKind::Memory);
    i.set_memory_base(if state.code32 { Register::EBX } else { Register::RBX });
    i.set_memory_index(register);
    i.set_memory_index_scale([1, 2, 4, 8][rng.random_range(0..4)]);
    i.set_memory_displacement64(16);
    i.set_memory_displ_size(if state.code32 { 4 } else { 8 });
}
