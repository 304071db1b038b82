//! Integer instructions against the host's own processor: random encodings, registers, flags and memory.
//!
//! Prints its seed; `SEED=n` repeats a run, `CASES=n` makes it longer.

mod guest;
mod native;

use guest::{FINE, Guest, Outcome};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use native::{Area, Native, NativeState};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use silicon::state::{flag, seg};

const CODE: u64 = FINE + 0x18_0000;
const DATA: u64 = FINE;
/// The first two pages can be written, the third only read, the fourth not at all.
const DATA_LEN: u64 = 0x4000;
const COMPARED: u64 = flag::STATUS | flag::DF;

fn random_value(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..8) {
        0 => 0,
        1 => !0,
        2 => 1 << rng.random_range(0..64),
        3 => rng.random_range(0..256),
        4 => (1_u64 << rng.random_range(0..64)).wrapping_sub(1),
        5 => u64::from(rng.random::<u32>()),
        _ => rng.random(),
    }
}

/// Bytes of something that is likely an integer instruction.
fn random_bytes(rng: &mut StdRng, bits: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (prefix, one_in) in [(0x66, 4), (0x67, 12), (0xf2, 12), (0xf3, 8), (0xf0, 8), (0x36, 20), (0x2e, 20)] {
        if rng.random_range(0..one_in) == 0 {
            bytes.push(prefix);
        }
    }
    if rng.random_range(0..16) == 0 {
        // VEX with three bytes: map 2 or 3.
        bytes.truncate(0);
        bytes.push(0xc4);
        bytes.push(rng.random::<u8>() & 0xe0 | rng.random_range(2..4));
        bytes.push(rng.random::<u8>() & 0xfb);
        bytes.push(*[0xf2, 0xf3, 0xf5, 0xf6, 0xf7, 0xf0].get(rng.random_range(0..6)).expect("index"));
    } else {
        if bits == 64 && rng.random_range(0..2) == 0 {
            bytes.push(0x40 | rng.random_range(0..16));
        }
        match rng.random_range(0..8) {
            0..4 => bytes.push(rng.random()),
            4..7 => bytes.extend([0x0f, rng.random()]),
            _ => bytes.extend([0x0f, 0x38, rng.random_range(0xf0..=0xf6)]),
        }
    }
    while bytes.len() < 15 {
        bytes.push(rng.random());
    }
    bytes
}

/// Instructions whose outcome depends on more than registers and memory, or that the harness cannot run.
fn excluded(i: &Instruction, bytes: &[u8], bits: u32) -> bool {
    use Mnemonic as M;
    i.is_privileged()
        || matches!(i.segment_prefix(), Register::FS | Register::GS)
        || matches!(i.mnemonic(), M::INVALID | M::Rdpid | M::Pause | M::Salc)
        // How many bytes a MOVSXD of 16 bits reads.
        || i.code() == Code::Movsxd_r16_rm16
        // Makers differ: operand-size prefix on near branches of 64-bit code, REP on LOOP, register forms of 0F 0D.
        || i.flow_control() != FlowControl::Next
            && (bits == 64 && bytes.contains(&0x66) || i.has_rep_prefix() || i.has_repne_prefix())
        || matches!(i.code(), Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D)
}

fn slot(r: Register) -> Option<usize> {
    (r.is_gpr() && r.size() >= 4).then(|| r.number())
}

/// Sets registers (or the displacement) so that the memory operand lies at `target`.
fn aim(bytes: &mut [u8], bits: u32, i: &Instruction, s: &mut NativeState, target: u64) -> bool {
    let offset_of_displacement = {
        let mut decoder = Decoder::with_ip(bits, bytes, CODE, DecoderOptions::NONE);
        let again = decoder.decode();
        decoder.get_constant_offsets(&again)
    };
    let (base, index) = (i.memory_base(), i.memory_index());
    if i.is_ip_rel_memory_operand() || base == Register::None {
        if !offset_of_displacement.has_displacement() || offset_of_displacement.displacement_size() != 4 {
            return false;
        }
        let from = if i.is_ip_rel_memory_operand() {
            s.rip + i.len() as u64
        } else if let Some(n) = slot(index) {
            s.gpr[n] &= 0xff;
            s.gpr[n] * u64::from(i.memory_index_scale())
        } else {
            0
        };
        let at = offset_of_displacement.displacement_offset();
        bytes[at..at + 4].copy_from_slice(&(target.wrapping_sub(from) as u32).to_le_bytes());
        return true;
    }
    let Some(b) = slot(base) else { return false };
    let scaled = slot(index).map_or(0, |n| s.gpr[n].wrapping_mul(u64::from(i.memory_index_scale())));
    if slot(index) == Some(b) {
        return false;
    }
    s.gpr[b] = target.wrapping_sub(scaled).wrapping_sub(i.memory_displacement64());
    if bits == 32 {
        s.gpr[b] &= 0xffff_ffff;
    }
    true
}

/// Status flags that the SDM leaves undefined and that our own code, not the host's ALU, sets.
fn undefined(m: Mnemonic) -> u64 {
    use Mnemonic as M;
    match m {
        M::Daa | M::Das => flag::OF,
        M::Aaa | M::Aas => flag::OF | flag::SF | flag::ZF | flag::PF,
        M::Aam | M::Aad => flag::OF | flag::AF | flag::CF,
        _ => 0,
    }
}

/// The native side comes last: it holds the lock under which the areas are mapped.
struct Pair {
    code: Area,
    data: Area,
    guest: Guest,
    native: Native,
}

impl Pair {
    fn new(bits: u32) -> Self {
        let native = Native::new();
        let code = Area::new(CODE, 2);
        let mut data = Area::new(DATA, (DATA_LEN >> 12) as usize);
        data.bytes().fill(1);
        data.protect(2, libc::PROT_READ);
        data.protect(3, libc::PROT_NONE);
        let mut guest = Guest::long(3);
        if bits == 32 {
            guest.cpu.state.seg[seg::CS].access = 0xc0fb;
            guest.ready();
        }
        guest.unmap_all();
        for (page, flags) in [(DATA, 7), (DATA + 0x1000, 7), (DATA + 0x2000, 5), (CODE, 7), (CODE + 0x1000, 7)] {
            guest.map(page, page, flags);
        }
        guest.load(DATA + 0x2000, &[1; 0x1000]);
        Self { native, code, data, guest }
    }

    /// Runs both sides; a message if they differ.
    fn compare(&mut self, i: &Instruction, bytes: &[u8], state: &NativeState, memory: &[u8]) -> Result<(), String> {
        self.code.bytes()[..bytes.len()].copy_from_slice(bytes);
        self.data.bytes()[..0x2000].copy_from_slice(memory);
        let mut expected = state.clone();
        let wanted = match self.native.step(&mut expected) {
            native::Outcome::Done => Outcome::Done,
            native::Outcome::Fault { vector: 14, error, address } => Outcome::Fault { vector: 14, error, address },
            native::Outcome::Fault { vector, .. } => Outcome::Fault { vector, error: 0, address: 0 },
        };

        self.guest.load(CODE, bytes);
        self.guest.load(DATA, memory);
        let cpu = &mut self.guest.cpu;
        cpu.state.gpr = state.gpr;
        cpu.state.rip = state.rip;
        cpu.state.rflags = state.rflags;
        cpu.update_mode();
        let got = self.guest.run(1);
        let cpu = &self.guest.cpu;
        let mut ours = vec![0; 0x2000];
        cpu.memory.read_bytes(DATA, &mut ours);

        let mut wrong = String::new();
        // Whether a read-only page is present is the kernel's choice until it is touched.
        let softened = |o: Outcome| match o {
            Outcome::Fault { vector: 14, error, address } => Outcome::Fault { vector: 14, error: error & !1, address },
            o => o,
        };
        // CALL: the SDM tests the target before the push, other makers after it.
        if matches!((got, wanted), (Outcome::Fault { vector: 13, .. }, Outcome::Fault { vector: 12 | 14, .. }))
            && i.is_call_near_indirect()
        {
            return Ok(());
        }
        if softened(got) != softened(wanted) {
            wrong += &format!("outcome {got:x?}, the host {wanted:x?}\n");
        }
        // 32-bit code: the upper halves are undefined.
        let (registers, mask) = if state.code32 { (8, 0xffff_ffff) } else { (16, !0) };
        for n in 0..registers {
            if (cpu.state.gpr[n] ^ expected.gpr[n]) & mask != 0 {
                wrong += &format!("gpr {n}: {:x}, the host {:x}\n", cpu.state.gpr[n], expected.gpr[n]);
            }
        }
        if cpu.state.rip != expected.rip {
            wrong += &format!("rip {:x}, the host {:x}\n", cpu.state.rip, expected.rip);
        }
        if (cpu.state.rflags ^ expected.rflags) & COMPARED & !undefined(i.mnemonic()) != 0 {
            wrong += &format!("flags {:x}, the host {:x}\n", cpu.state.rflags, expected.rflags & !0x10200);
        }
        let host = &self.data.bytes()[..0x2000];
        if let Some(n) = (0..0x2000).find(|&n| host[n] != ours[n]) {
            wrong += &format!("memory at {:x}: {:x}, the host {:x}\n", DATA + n as u64, ours[n], host[n]);
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn random_instructions_64() {
    random_instructions(64, 400);
}

#[test]
fn random_instructions_32() {
    random_instructions(32, 300);
}

fn random_instructions(bits: u32, expected_kinds: usize) {
    let seed = environment("SEED", rand::random());
    let cases = environment("CASES", 40_000);
    println!("SEED={seed} CASES={cases} ({bits}-bit)");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut pair = Pair::new(bits);
    let mut memory = vec![0; 0x2000];
    let mut failures = Vec::new();
    let mut kinds = std::collections::HashSet::new();
    let mut done = 0;
    while done < cases {
        let mut bytes = random_bytes(&mut rng, bits);
        let decoded = Decoder::with_ip(bits, &bytes, CODE, DecoderOptions::NONE).decode();
        if excluded(&decoded, &bytes, bits) || !silicon::interpreter::is_integer(&decoded) {
            continue;
        }
        let mut state = NativeState { rip: CODE, code32: bits == 32, ..NativeState::default() };
        for r in &mut state.gpr {
            *r = random_value(&mut rng) & if bits == 32 { 0xffff_ffff } else { !0 };
        }
        state.rflags = 0x202 | rng.random::<u64>() & flag::STATUS;
        state.rflags |= if rng.random_range(0..4) == 0 { flag::DF } else { 0 };
        // Some place in the pages, often across two of them.
        let place = |rng: &mut StdRng| match rng.random_range(0..8) {
            0 => DATA + 0x1000 - rng.random_range(0..16),
            1 => DATA + 0x2000 - rng.random_range(0..16),
            2 => DATA + 0x3000 - rng.random_range(0..16),
            3 => DATA + rng.random_range(0..DATA_LEN),
            4 => (DATA + rng.random_range(0x100..0x1f00)) & !15,
            5 if rng.random_range(0..8) == 0 => rng.random::<u64>() & if bits == 32 { 0xffff_ffff } else { !0 },
            _ => DATA + rng.random_range(0x100..0x1f00),
        };
        state.gpr[4] = place(&mut rng);
        if decoded.mnemonic() == Mnemonic::Leave || decoded.mnemonic() == Mnemonic::Enter {
            state.gpr[5] = place(&mut rng);
        }
        if decoded.is_string_instruction() {
            state.gpr[6] = place(&mut rng);
            state.gpr[7] = place(&mut rng);
        }
        if (0..decoded.op_count()).any(|n| decoded.op_kind(n) == OpKind::Memory) {
            let target = place(&mut rng);
            if !aim(&mut bytes, bits, &decoded, &mut state, target) {
                continue;
            }
        }
        for chunk in memory.chunks_mut(8) {
            chunk.copy_from_slice(&random_value(&mut rng).to_le_bytes());
        }
        // Places that a CALL or RET can go to.
        memory[0x800..0x808].copy_from_slice(&(CODE + 0x200).to_le_bytes());
        done += 1;
        kinds.insert(decoded.code());
        if let Err(wrong) = pair.compare(&decoded, &bytes, &state, &memory) {
            let len = decoded.len();
            failures.push(format!("{decoded} ({:02x?})\n  from {state:x?}\n{wrong}", &bytes[..len]));
            if failures.len() >= 20 {
                break;
            }
        }
    }
    println!("{done} cases, {} kinds of instruction", kinds.len());
    assert!(failures.is_empty(), "SEED={seed}\n{}", failures.join("\n"));
    assert!(kinds.len() > expected_kinds, "too few kinds: {}", kinds.len());
}
