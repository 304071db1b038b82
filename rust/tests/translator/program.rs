//! Random programs of 1 to 20 instructions that end in a branch to their start, and what they start from.
//!
//! Some registers are pointers into the data and mostly stay so, some are small indices, the others take
//! anything. Knows nothing of who executes.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use rand::RngExt;
use rand::rngs::StdRng;
use silicon::state::flag;

use crate::guest::FINE;

/// The page of the code (and the one behind it).
pub const CODE: u64 = FINE + 0x18_0000;
/// Data: two pages to write, one to read, one that is not there, two to write.
pub const DATA: u64 = FINE;
/// Its pages.
pub const DATA_PAGES: u64 = 6;
/// The page that can only be read, and the one that is absent.
pub const READ_ONLY: u64 = 2;
pub const ABSENT: u64 = 3;

/// RSP, RBP, RBX, RDI, R12, R13.
const POINTERS: [usize; 6] = [4, 5, 3, 7, 12, 13];
/// RSI, R14.
const INDICES: [usize; 2] = [6, 14];

/// What the program may contain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// Only what the host does the same way: no segment bases, nothing that an operating system decides.
    pub native: bool,
    /// Instructions that leave a flag undefined are in.
    pub undefined_flags: bool,
    /// What only a kernel may do is in.
    pub kernel: bool,
}

/// A program and its start.
#[derive(Clone, Debug)]
pub struct Program {
    pub code: Vec<u8>,
    /// Address of its first byte.
    pub start: u64,
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub ymm: [[u64; 4]; 16],
    pub mxcsr: u32,
    pub fs: u64,
    pub gs: u64,
    /// Where SYSCALL goes to.
    pub lstar: u64,
    pub data: Vec<u8>,
}

pub fn random_value(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..9) {
        0 => 0,
        1 => !0,
        2 => 1 << rng.random_range(0..64),
        3 => rng.random_range(0..256),
        4 => (1_u64 << rng.random_range(0..64)).wrapping_sub(1),
        5 => u64::from(rng.random::<u32>()),
        6 => 0x3f80_0000_3f80_0000,
        _ => rng.random(),
    }
}

/// Some place in the data, often at the end of a page.
fn place(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..12) {
        0 => DATA + 0x1000 - rng.random_range(0..40),
        1 => DATA + 0x2000 - rng.random_range(0..40),
        2 => DATA + 0x5000 - rng.random_range(0..40),
        3 if rng.random_range(0..4) == 0 => DATA + 0x3000 - rng.random_range(0..40),
        4 if rng.random_range(0..4) == 0 => DATA + rng.random_range(0..DATA_PAGES * 4096),
        5..8 => (DATA + rng.random_range(0x100..0x1f00)) & !31,
        _ => DATA + 4096 * [0, 0, 1, 4, 5][rng.random_range(0..5)] + rng.random_range(0x100..0xf00),
    }
}

fn modrm(rng: &mut StdRng, bytes: &mut Vec<u8>, rex: &mut u8, in_memory: bool) {
    let reg = rng.random_range(0..8u8);
    if !in_memory {
        bytes.push(0xc0 | reg << 3 | rng.random_range(0..8u8));
        return;
    }
    *rex &= !3;
    match rng.random_range(0..16) {
        0 => {
            bytes.push(reg << 3 | 5); // RIP-relative: aimed later
            bytes.extend([0; 4]);
        }
        1 => {
            bytes.extend([reg << 3 | 4, 0x25]); // absolute: aimed later
            bytes.extend([0; 4]);
        }
        _ => {
            let base = POINTERS[rng.random_range(0..POINTERS.len())] as u8;
            *rex |= base >> 3;
            let indexed = rng.random_range(0..3) == 0;
            let mode = rng.random_range(0..3u8);
            let mode = if base & 7 == 5 && mode == 0 { 1 } else { mode };
            if indexed || base & 7 == 4 {
                let index = if indexed { INDICES[rng.random_range(0..INDICES.len())] as u8 } else { 4 };
                *rex |= (index >> 3) << 1;
                let scale = rng.random_range(0..4u8);
                bytes.extend([mode << 6 | reg << 3 | 4, scale << 6 | (index & 7) << 3 | base & 7]);
            } else {
                bytes.push(mode << 6 | reg << 3 | base & 7);
            }
            match mode {
                1 => bytes.push((rng.random_range(-64..64i8)) as u8),
                2 => bytes.extend(rng.random_range(-300..300i32).to_le_bytes()),
                _ => {}
            }
        }
    }
}

/// Bytes of what may be an instruction.
fn random_bytes(rng: &mut StdRng, kind: Kind) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rex = 0x40 | rng.random_range(0..16u8);
    let in_memory = rng.random_range(0..5) < 3;
    let mut tail = Vec::new();
    modrm(rng, &mut tail, &mut rex, in_memory);
    tail.extend((0..8).map(|_| if rng.random_range(0..3) == 0 { rng.random_range(0..33) } else { rng.random::<u8>() }));
    let vector = rng.random_range(0..3) == 0;
    let vector_opcode = |rng: &mut StdRng| match rng.random_range(0..6) {
        0 => rng.random_range(0x10..0x18),
        1 => rng.random_range(0x28..0x30),
        2 => rng.random_range(0x50..0x80),
        3 => [0xc2, 0xc4, 0xc5, 0xc6][rng.random_range(0..4)],
        _ => rng.random_range(0xd0..=0xff),
    };
    if vector && rng.random_range(0..2) == 0 {
        let (map, opcode) = match rng.random_range(0..4) {
            0 => (2, rng.random()),
            1 => (3, rng.random()),
            _ => (1, vector_opcode(rng)),
        };
        bytes.extend([
            0xc4,
            !rex << 5 & 0xe0 | map,
            rng.random::<u8>() & if rng.random_range(0..2) == 0 { 0xff } else { 0x7f },
            opcode,
        ]);
        bytes.extend(tail);
        return bytes;
    }
    if !kind.native && rng.random_range(0..12) == 0 {
        bytes.push([0x64, 0x65][rng.random_range(0..2)]);
    }
    if rng.random_range(0..30) == 0 {
        bytes.push(0x67);
    }
    if vector {
        match rng.random_range(0..4) {
            0 => bytes.push(0x66),
            1 => bytes.push(0xf2),
            2 => bytes.push(0xf3),
            _ => {}
        }
    } else {
        for (prefix, one_in) in [(0x66, 4), (0xf0, if in_memory { 6 } else { 60 }), (0xf3, 12), (0xf2, 20)] {
            if rng.random_range(0..one_in) == 0 {
                bytes.push(prefix);
            }
        }
    }
    if rex != 0x40 || rng.random_range(0..2) == 0 {
        bytes.push(rex);
    }
    if vector {
        match rng.random_range(0..5) {
            0 => bytes.extend([0x0f, 0x38, rng.random()]),
            1 => bytes.extend([0x0f, 0x3a, rng.random()]),
            _ => bytes.extend([0x0f, vector_opcode(rng)]),
        }
    } else {
        match rng.random_range(0..8) {
            0..5 => bytes.push(rng.random()),
            5 => {
                bytes.extend([0x0f, [0x40, 0x90, 0xa0, 0xb0, 0xc0][rng.random_range(0..5)] + rng.random_range(0..16u8)])
            }
            6 => bytes.extend([0x0f, rng.random()]),
            _ => bytes.extend([0x0f, 0x38, rng.random_range(0xf0..=0xf6)]),
        }
    }
    bytes.extend(tail);
    bytes
}

/// Some flag is undefined after it; for the host this may depend on flags that nobody needed before it.
fn leaves_flags_undefined(i: &Instruction) -> bool {
    use Mnemonic as M;
    i.rflags_undefined() != 0 && !matches!(i.mnemonic(), M::And | M::Or | M::Xor | M::Test)
}

fn wanted(rng: &mut StdRng, i: &Instruction, kind: Kind, infos: &mut InstructionInfoFactory) -> bool {
    use Mnemonic as M;
    if i.is_invalid() || i.flow_control() != FlowControl::Next {
        return false;
    }
    let integer = silicon::interpreter::is_integer(i);
    let vector = silicon::interpreter::vector::select(i).is_some()
        && silicon::interpreter::vector::features::code_offered(i.code());
    if !integer && (!vector || x87(i)) && (kind.native || rng.random_range(0..8) != 0) {
        return false;
    }
    // What even two runs of one engine may do differently, what changes the mode, and what would take for ever.
    if i.is_privileged()
        || matches!(i.mnemonic(), M::Rdrand | M::Rdseed | M::Popfq | M::Popf | M::Rdpid | M::Rdtsc | M::Rdtscp)
    {
        return false;
    }
    if kind.native && differs_by_host(i) {
        return false;
    }
    if !kind.undefined_flags && leaves_flags_undefined(i) {
        return false;
    }
    if in_memory(i) {
        let base = i.memory_base();
        let fine = i.is_ip_rel_memory_operand()
            || base == Register::None
            || base.is_gpr64() && POINTERS.contains(&base.number());
        if !fine && rng.random_range(0..30) != 0 {
            return false;
        }
    }
    // Pointers and indices mostly stay.
    let spoils = infos.info(i).used_registers().iter().any(|r| {
        let n = r.register().full_register().number();
        r.register().is_gpr()
            && (POINTERS.contains(&n) || INDICES.contains(&n))
            && !matches!(r.access(), OpAccess::Read | OpAccess::CondRead)
    });
    let stack = matches!(i.mnemonic(), M::Push | M::Pop);
    !spoils || stack || rng.random_range(0..25) == 0
}

/// What the host does another way, or an operating system decides.
fn differs_by_host(i: &Instruction) -> bool {
    use Mnemonic as M;
    // Not all makers want the operands of SHA1 and SHA256 aligned.
    format!("{:?}", i.mnemonic()).starts_with("Sha")
        || matches!(i.segment_prefix(), Register::FS | Register::GS)
        || i.is_string_instruction()
        || matches!(
            i.code(),
            Code::Movsxd_r16_rm16
                | Code::Reservednop_rm16_r16_0F0D
                | Code::Reservednop_rm32_r32_0F0D
                | Code::Reservednop_rm64_r64_0F0D
        )
        || matches!(
            i.mnemonic(),
            M::Pushf
                | M::Pushfq
                | M::Salc
                | M::Pause
                | M::Std
                | M::Cld
                | M::Ldmxcsr
                | M::Vldmxcsr
                | M::Stmxcsr
                | M::Vstmxcsr
                | M::Maskmovdqu
                | M::Vmaskmovdqu
        )
        // What an area holds of state that is not in use, and whether it is touched, differs.
        || matches!(
            i.mnemonic(),
            M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xsaveopt | M::Xsaveopt64 | M::Fxsave | M::Fxsave64
        )
        || special_memory(i)
        || i.has_lock_prefix() && !in_memory(i)
        || (0..i.op_count()).any(|n| {
            i.op_kind(n) == OpKind::Register
                && (i.op_register(n).is_segment_register()
                    || i.op_register(n).is_mm()
                    || i.op_register(n).is_st())
        })
}

/// Whether what programs may have made of their own code by overwriting it does the same on the host.
pub fn same_on_the_host(i: &Instruction) -> bool {
    let near = i.is_jcc_short_or_near()
        || i.is_jmp_short_or_near()
        || i.is_jmp_near_indirect()
        || i.is_call_near()
        || i.is_call_near_indirect()
        || i.mnemonic() == Mnemonic::Ret;
    let known = silicon::interpreter::is_integer(i) || silicon::interpreter::vector::select(i).is_some() && !x87(i);
    let plain = i.flow_control() == FlowControl::Next && !i.is_privileged() && known;
    !i.is_invalid() && (near || plain) && !differs_by_host(i)
}

fn x87(i: &Instruction) -> bool {
    format!("{:?}", i.mnemonic()).starts_with('F')
}

/// Masked and gathered accesses: who touches what in which order is the processor's choice.
fn special_memory(i: &Instruction) -> bool {
    i.is_vsib() || format!("{:?}", i.mnemonic()).contains("mask")
}

fn in_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

/// One instruction, aimed at the data if it is at `ip`.
fn instruction(rng: &mut StdRng, ip: u64, kind: Kind, fs: u64, gs: u64, infos: &mut InstructionInfoFactory) -> Vec<u8> {
    loop {
        let mut bytes = random_bytes(rng, kind);
        let mut decoder = Decoder::with_ip(64, &bytes, ip, DecoderOptions::NONE);
        let i = decoder.decode();
        if !wanted(rng, &i, kind, infos) {
            continue;
        }
        let offsets = decoder.get_constant_offsets(&i);
        let absolute = in_memory(&i) && i.memory_base() == Register::None && i.memory_index() == Register::None;
        if in_memory(&i) && (i.is_ip_rel_memory_operand() || absolute) {
            let base = match i.segment_prefix() {
                Register::FS => fs,
                Register::GS => gs,
                _ => 0,
            };
            let from = if absolute { base } else { ip.wrapping_add(i.len() as u64).wrapping_add(base) };
            let value = place(rng).wrapping_sub(from);
            let (at, size) = (offsets.displacement_offset(), offsets.displacement_size());
            if size >= 4 {
                bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
        }
        bytes.truncate(i.len());
        return bytes;
    }
}

/// STI, CLI, SWAPGS, STAC, CLAC, PUSHFQ, POPFQ, STD, CLD, RDTSC, INVLPG [rbx], MOV RAX, CR3, MOV CR3, RAX behind it,
/// MOV RAX, CR0, PUSHFQ; POP RAX and PUSH RAX; POPFQ with AC, LFENCE.
const KERNEL: [&[u8]; 17] = [
    &[0xfb],
    &[0xfa],
    &[0x0f, 0x01, 0xf8],
    &[0x0f, 0x01, 0xcb],
    &[0x0f, 0x01, 0xca],
    &[0x9c],
    &[0x9d],
    &[0xfd],
    &[0xfc],
    &[0x0f, 0x31],
    &[0x0f, 0x01, 0x3b],
    &[0x0f, 0x20, 0xd8],
    &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],
    &[0x0f, 0x20, 0xc0],
    &[0x9c, 0x58],
    &[0x9c, 0x58, 0x48, 0x0d, 0, 0, 4, 0, 0x50, 0x9d],
    &[0x0f, 0xae, 0xe8],
];

/// RDFSBASE and RDGSBASE to RAX, ECX, R13 and R9; WRFSBASE and WRGSBASE from RBX, RAX, ECX, R13, R14 and R9D; PAUSE,
/// RDTSCP, CLD; MOV from ES, FS, GS and SS to AX, R13W, EAX, R15, CX and [RBX]; MOV from CR2 and CR3.
const SYSTEM: [&[u8]; 23] = [
    &[0x66, 0x8c, 0xc0],
    &[0x66, 0x41, 0x8c, 0xe5],
    &[0xf3, 0x48, 0x0f, 0xae, 0xc0],
    &[0xf3, 0x0f, 0xae, 0xc1],
    &[0xf3, 0x49, 0x0f, 0xae, 0xcd],
    &[0xf3, 0x41, 0x0f, 0xae, 0xc9],
    &[0xf3, 0x48, 0x0f, 0xae, 0xd3],
    &[0xf3, 0x48, 0x0f, 0xae, 0xd8],
    &[0xf3, 0x48, 0x0f, 0xae, 0xd9],
    &[0xf3, 0x0f, 0xae, 0xd1],
    &[0xf3, 0x49, 0x0f, 0xae, 0xdd],
    &[0xf3, 0x49, 0x0f, 0xae, 0xd6],
    &[0xf3, 0x41, 0x0f, 0xae, 0xd1],
    &[0xf3, 0x90],
    &[0x0f, 0x01, 0xf9],
    &[0xfc],
    &[0x8c, 0xc0],
    &[0x4d, 0x8c, 0xe7],
    &[0x66, 0x8c, 0xe9],
    &[0x8c, 0x13],
    &[0x8c, 0x64, 0x24, 0xf8],
    &[0x0f, 0x20, 0xd0],
    &[0x41, 0x0f, 0x20, 0xdd],
];

/// BT, BTS, BTR or BTC of memory with an offset in a register, small as it mostly is.
fn bit_string(rng: &mut StdRng, kind: Kind) -> Vec<u8> {
    let mut bytes = Vec::new();
    let opcode = [0xa3, 0xab, 0xb3, 0xbb][rng.random_range(0..4)];
    if !kind.native && rng.random_range(0..8) == 0 {
        bytes.push([0x64, 0x65][rng.random_range(0..2)]);
    }
    if opcode != 0xa3 && rng.random_range(0..2) == 0 {
        bytes.push(0xf0);
    }
    if rng.random_range(0..5) == 0 {
        bytes.push(0x66);
    }
    let offset = INDICES[rng.random_range(0..INDICES.len())];
    let offset = if rng.random_range(0..6) == 0 { rng.random_range(0..16) } else { offset } as u8;
    let base = POINTERS[rng.random_range(0..POINTERS.len())] as u8;
    let index = INDICES[rng.random_range(0..INDICES.len())] as u8;
    let indexed = base & 7 == 4 || rng.random_range(0..3) == 0;
    let wide = rng.random_range(0..2) << 3;
    bytes.extend([0x40 | wide | (offset >> 3) << 2 | (index >> 3) << 1 | base >> 3, 0x0f, opcode]);
    let reg = (offset & 7) << 3;
    if indexed {
        bytes.extend([0x44 | reg, (index & 7) << 3 | base & 7]);
    } else {
        bytes.push(0x40 | reg | base & 7);
    }
    bytes.push(rng.random_range(-16..16i8) as u8);
    bytes
}

/// REP STOS or REP MOVS of a few elements; MOVS from where RBX points to, STOS with flags that are read behind it.
fn repeat(rng: &mut StdRng) -> Vec<u8> {
    let count: u32 = if rng.random_range(0..8) == 0 { 600 } else { rng.random_range(0..40) };
    let mut bytes = vec![0xb9];
    bytes.extend(count.to_le_bytes());
    let moves = rng.random_range(0..2) == 0;
    if moves {
        bytes.extend([[0x48, 0x89, 0xde], [0x48, 0x89, 0xfe], [0x48, 0x8d, 0x37]][rng.random_range(0..3)]);
        bytes.extend([0x48, 0xff, 0xc6]); // inc rsi
    }
    if rng.random_range(0..12) == 0 {
        bytes.push(0xfd);
    }
    if rng.random_range(0..4) == 0 {
        bytes.push(0x66);
    }
    bytes.push([0xf3, 0xf3, 0xf3, 0xf2][rng.random_range(0..4)]);
    if rng.random_range(0..2) == 0 {
        bytes.push(0x48);
    }
    bytes.push(if moves { 0xa4 } else { 0xaa } | rng.random_range(0..2));
    bytes.extend([0x0f, 0x92, 0xc0]); // setb al
    bytes
}

const JCC_FAR: usize = 6;

/// Branches: to instruction `to`, filled in when all places are known.
enum Piece {
    Plain(Vec<u8>),
    /// Jcc rel32 (`Some`) or JMP rel32.
    Branch(Option<u8>, usize),
    /// LEA RAX, [target]; JMP or CALL RAX.
    Indirect(bool, usize),
    /// CALL rel32.
    Call(usize),
    /// LEA RAX, [target]; PUSH RAX; RET.
    Return(usize),
    /// LEA RCX, [target]; MOV R11D, flags; SYSRETQ.
    ToUser(u32, usize),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            Self::Branch(Some(_), _) => JCC_FAR,
            Self::Branch(None, _) | Self::Call(_) => 5,
            Self::Indirect(..) | Self::Return(_) => 9,
            Self::ToUser(..) => 16,
        }
    }

    fn write(&self, out: &mut Vec<u8>, at: u64, places: &[u64]) {
        let relative = |to: usize, end: u64| (places[to].wrapping_sub(end) as u32).to_le_bytes();
        match self {
            Self::Plain(bytes) => out.extend(bytes),
            Self::Branch(Some(cc), to) => {
                out.extend([0x0f, 0x80 | cc]);
                out.extend(relative(*to, at + 6));
            }
            Self::Branch(None, to) => {
                out.push(0xe9);
                out.extend(relative(*to, at + 5));
            }
            Self::Call(to) => {
                out.push(0xe8);
                out.extend(relative(*to, at + 5));
            }
            Self::Indirect(call, to) => {
                out.extend([0x48, 0x8d, 0x05]);
                out.extend(relative(*to, at + 7));
                out.extend([0xff, if *call { 0xd0 } else { 0xe0 }]);
            }
            Self::ToUser(flags, to) => {
                out.extend([0x48, 0x8d, 0x0d]);
                out.extend(relative(*to, at + 7));
                out.extend([0x41, 0xbb]);
                out.extend(flags.to_le_bytes());
                out.extend([0x48, 0x0f, 0x07]);
            }
            Self::Return(to) => {
                out.extend([0x48, 0x8d, 0x05]);
                out.extend(relative(*to, at + 7));
                out.extend([0x50, 0xc3]);
            }
        }
    }
}

/// A random program.
pub fn program(rng: &mut StdRng, kind: Kind, infos: &mut InstructionInfoFactory) -> Program {
    let mut gpr = [0; 16];
    for r in &mut gpr {
        *r = random_value(rng);
    }
    for n in POINTERS {
        gpr[n] = place(rng);
    }
    gpr[4] = if rng.random_range(0..4) == 0 { place(rng) } else { DATA + 0x1800 + 8 * rng.random_range(0..32) };
    for n in INDICES {
        gpr[n] = [0, 1, 2, 16, !0, !7][rng.random_range(0..6)];
    }
    let fs = [0, 8, DATA, DATA + 0x1ff0][rng.random_range(0..4)];
    let gs = [0, 32, DATA - 8, 1 << 40][rng.random_range(0..4)];
    let start = CODE
        + match rng.random_range(0..4) {
            0 => 0x1000 - rng.random_range(0..120),
            1 => 0,
            _ => rng.random_range(0..0xf00),
        };
    let count = rng.random_range(1..=20usize);
    let mut pieces = Vec::new();
    let mut places = Vec::new();
    let mut at = start;
    for _ in 0..count {
        let to = rng.random_range(0..=count);
        let piece = match rng.random_range(0..24) {
            0..2 => Piece::Branch(Some(rng.random_range(0..16)), to),
            2 if rng.random_range(0..2) == 0 => Piece::Branch(None, to),
            3 => Piece::Indirect(rng.random_range(0..2) == 0, to),
            4 => Piece::Call(to),
            5 => Piece::Return(to),
            6..10 if kind.kernel => Piece::Plain(KERNEL[rng.random_range(0..KERNEL.len())].to_vec()),
            10 if kind.kernel && rng.random_range(0..2) == 0 => {
                let flags = match rng.random_range(0..8) {
                    0 => rng.random(),
                    _ => rng.random::<u32>() & (flag::STATUS | flag::IF | flag::DF | flag::ID) as u32,
                };
                Piece::ToUser(flags, to)
            }
            14 if !kind.native => Piece::Plain(repeat(rng)),
            12..14 if kind.kernel => Piece::Plain(vec![0x0f, 0x05]),
            10 if !kind.native => Piece::Plain(SYSTEM[rng.random_range(0..SYSTEM.len())].to_vec()),
            11 if kind.undefined_flags => Piece::Plain(bit_string(rng, kind)),
            _ => Piece::Plain(instruction(rng, at, kind, fs, gs, infos)),
        };
        places.push(at);
        at += piece.len() as u64;
        pieces.push(piece);
    }
    places.push(at);
    pieces.push(Piece::Branch(None, 0));
    let mut code = Vec::new();
    for (piece, &at) in pieces.iter().zip(&places) {
        piece.write(&mut code, at, &places);
    }
    let mut ymm = [[0; 4]; 16];
    for word in ymm.iter_mut().flatten() {
        *word = random_value(rng);
    }
    let mut data = vec![0; (DATA_PAGES * 4096) as usize];
    for chunk in data.chunks_mut(8) {
        chunk.copy_from_slice(&random_value(rng).to_le_bytes());
    }
    let lstar = match rng.random_range(0..8) {
        0 => CODE,
        1 => 0xffff_ffff_8100_0000,
        _ => places[rng.random_range(0..places.len())],
    };
    Program {
        lstar,
        code,
        start,
        gpr,
        rflags: 0x202 | rng.random::<u64>() & flag::STATUS,
        ymm,
        mxcsr: match rng.random_range(0..8) {
            0 if !kind.native => 0x1f80 & !(1 << rng.random_range(7..13)),
            1 => 0x9fc0,
            _ => 0x1f80,
        },
        fs,
        gs,
        data,
    }
}

/// The program as text.
pub fn listing(p: &Program) -> String {
    let mut text = String::new();
    for i in &mut Decoder::with_ip(64, &p.code, p.start, DecoderOptions::NONE) {
        let at = (i.ip() - p.start) as usize;
        let bytes: Vec<String> = p.code[at..at + i.len()].iter().map(|b| format!("{b:02x}")).collect();
        text += &format!("  {:x}  {:<32}{i}\n", i.ip(), bytes.join(" "));
    }
    text
}
