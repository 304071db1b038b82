//! Every vector and x87 instruction that the unit offers, with random operands and state, against the host.
//!
//! Both sides execute the same bytes at the same addresses at CPL 3. What cannot be compared with a host of
//! another maker (FXSAVE's pointers, XSAVE areas) is in `vector_written_out.rs`.

mod engine;
mod native;

use engine::{CODE, DATA, DATA_PAGES, Engine, Result, offered_codes, random_instruction, random_state};
use iced_x86::{Code, CpuidFeature, Encoder, Instruction, Mnemonic, OpKind};
use native::{Area, Native, NativeState, Outcome};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    seed
}

/// Instructions whose memory image has the host maker's mark.
fn written_out(code: Code) -> bool {
    let name = format!("{code:?}");
    ["Fxsave", "Fxrstor", "Xsave", "Xrstor", "Fnstenv", "Fstenv", "Fnsave", "Fsave"].iter().any(|p| name.starts_with(p))
}

fn page_of(result: Result) -> Result {
    match result {
        Result::Fault { vector, error, address } => Result::Fault { vector, error, address: address & !0xfff },
        done => done,
    }
}

/// Where AMD's hosts differ from the SDM: with a memory operand CVTPI2PS and CVTPI2PD leave the x87 unit alone,
/// the SHA instructions take operands that are not aligned, and MXCSR has a bit 17.
fn makers_choice(i: &Instruction, state: &NativeState, memory: &[u8]) -> bool {
    if matches!(i.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr) {
        let base = state.gpr[i.memory_base().number() & 15];
        let at = base.wrapping_add(i.memory_displacement64()).wrapping_sub(DATA).wrapping_add(2) as usize & 0xffff_ffff;
        return memory.get(at).is_some_and(|b| b & 2 != 0);
    }
    if matches!(i.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd) {
        return i.op1_kind() == OpKind::Memory;
    }
    let sha = has(i.code(), &[CpuidFeature::SHA]) && i.op1_kind() == OpKind::Memory;
    let base = || state.gpr[i.memory_base().number() & 15].wrapping_add(i.memory_displacement64());
    sha && base() & 15 != 0
}

struct Bench {
    code: Area,
    data: Area,
    engine: Engine,
    /// Dropped last: until then no other test maps the same addresses.
    native: Native,
}

impl Bench {
    fn new() -> Self {
        let native = Native::new();
        let mut data = Area::new(DATA, DATA_PAGES);
        data.protect(DATA_PAGES - 1, libc::PROT_NONE);
        Self { native, code: Area::new(CODE, 1), data, engine: Engine::new() }
    }

    /// Runs `bytes` on both sides from `state` and `memory`, and compares everything.
    fn compare(&mut self, bytes: &[u8], state: &NativeState, memory: &[u8], context: &dyn Fn() -> String) -> Result {
        let usable = (DATA_PAGES - 1) * 4096;
        self.code.bytes()[..bytes.len()].copy_from_slice(bytes);
        self.data.bytes()[..usable].copy_from_slice(memory);
        let mut expected = state.clone();
        let mut outcome = self.native.step(&mut expected);
        // A gather that faults after its first element takes the pending single-step trap instead.
        while outcome == Outcome::Done && expected.rip == CODE {
            outcome = self.native.step(&mut expected);
        }
        let (result, mut found) = self.engine.run(bytes, state, memory);

        let wanted = match outcome {
            Outcome::Done => Result::Done,
            Outcome::Fault { vector: 14, error, address } => Result::Fault { vector: 14, error, address },
            Outcome::Fault { vector, .. } => Result::Fault { vector, error: 0, address: 0 },
        };
        // Which byte of a page CR2 names for a masked move is the processor's choice.
        assert_eq!(page_of(result), page_of(wanted), "outcome of {}", context());
        if result == (Result::Fault { vector: 19, error: 0, address: 0 }) {
            // Whether CVTPS2PI makes the registers MMX registers before #XM is the processor's choice.
            (found.fsw, found.ftw, found.st) = (expected.fsw, expected.ftw, expected.st);
        }
        const STATUS: u64 = 0x8d5;
        expected.rflags &= STATUS;
        found.rflags &= STATUS;
        // Registers that are tagged empty hold what they held, on both sides.
        if found != expected {
            report(&found, &expected, &context());
        }
        let got = self.engine.memory();
        let want = &self.data.bytes()[..usable];
        if let Some(at) = (0..usable).find(|&n| got[n] != want[n]) {
            let end = (at + 32).min(usable);
            panic!(
                "memory at {:#x}: {:02x?} expected {:02x?} for {}",
                DATA + at as u64,
                &got[at..end],
                &want[at..end],
                context()
            );
        }
        result
    }
}

fn report(found: &NativeState, expected: &NativeState, context: &str) -> ! {
    let mut text = String::new();
    macro_rules! field {
        ($name:ident) => {
            if found.$name != expected.$name {
                text += &format!("{}: {:x?}\n    expected {:x?}\n", stringify!($name), found.$name, expected.$name);
            }
        };
    }
    field!(gpr);
    field!(rip);
    field!(rflags);
    for n in 0..16 {
        if found.ymm[n] != expected.ymm[n] {
            text += &format!("ymm{n}: {:x?}\n    expected {:x?}\n", found.ymm[n], expected.ymm[n]);
        }
    }
    field!(mxcsr);
    field!(fcw);
    field!(fsw);
    field!(ftw);
    for n in 0..8 {
        if found.st[n] != expected.st[n] {
            text += &format!("st{n}: {:x?}\n    expected {:x?}\n", found.st[n], expected.st[n]);
        }
    }
    panic!("{text}{context}");
}

fn encode(i: &Instruction, bitness: u32) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(bitness);
    encoder.encode(i, CODE).ok()?;
    Some(encoder.take_buffer())
}

fn run_codes(bitness: u32, filter: impl Fn(Code) -> bool, rounds: usize) {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut bench = Bench::new();
    let usable = (DATA_PAGES - 1) * 4096;
    let (mut codes, mut done, mut faults) = (0, 0, 0);
    for code in offered_codes().filter(|&c| filter(c) && !written_out(c)) {
        codes += 1;
        for round in 0..rounds {
            let mut state = random_state(&mut rng, code);
            if bitness == 32 {
                state.code32 = true;
                // The upper halves of registers are undefined in compatibility mode.
                state.gpr.iter_mut().for_each(|r| *r &= 0xffff_ffff);
                state.gpr[8..].fill(0);
            }
            let Some(i) = random_instruction(&mut rng, code, &mut state) else { break };
            let Some(bytes) = encode(&i, bitness) else { panic!("cannot encode {code:?}: {i}") };
            let memory: Vec<u8> = {
                let mut memory = vec![0; usable];
                engine::fill_random(&mut rng, &mut memory);
                memory
            };
            if makers_choice(&i, &state, &memory) {
                continue;
            }
            let context = || format!("{code:?} `{i}` {bytes:02x?}, round {round}, SEED={seed}\nfrom {state:x?}");
            match bench.compare(&bytes, &state, &memory, &context) {
                Result::Done => done += 1,
                Result::Fault { .. } => faults += 1,
            }
        }
    }
    println!("{codes} instructions, {done} completed, {faults} faulted");
    assert!(codes > 0 && done > codes);
}

fn has(code: Code, features: &[CpuidFeature]) -> bool {
    code.cpuid_features().iter().any(|f| features.contains(f))
}

#[test]
fn x87() {
    let x87 = [CpuidFeature::FPU, CpuidFeature::FPU287, CpuidFeature::FPU387];
    // x87 exceptions are delivered one instruction later: a step under TF of FWAIT covers #MF.
    run_codes(64, |c| has(c, &x87), 60);
}

#[test]
fn mmx_and_sse() {
    run_codes(64, |c| c.encoding() == iced_x86::EncodingKind::Legacy && !format!("{c:?}").starts_with('F'), 25);
}

#[test]
fn vex() {
    if !is_x86_feature_detected!("avx") {
        return;
    }
    run_codes(64, |c| c.encoding() == iced_x86::EncodingKind::VEX, 12);
}

#[test]
fn fma_conversions_and_rounding() {
    if !is_x86_feature_detected!("fma") {
        return;
    }
    run_codes(64, |c| has(c, &[CpuidFeature::FMA, CpuidFeature::F16C]) || c.mnemonic() == Mnemonic::Cvtps2dq, 20);
}

#[test]
fn every_offered_code_is_taken() {
    // CPUID features whose every instruction belongs to this unit or to the system group.
    let groups = [
        CpuidFeature::FPU,
        CpuidFeature::FPU387,
        CpuidFeature::MMX,
        CpuidFeature::FXSR,
        CpuidFeature::SSE,
        CpuidFeature::SSE2,
        CpuidFeature::SSE3,
        CpuidFeature::SSSE3,
        CpuidFeature::SSE4_1,
        CpuidFeature::SSE4_2,
        CpuidFeature::AES,
        CpuidFeature::PCLMULQDQ,
        CpuidFeature::SHA,
        CpuidFeature::AVX,
        CpuidFeature::AVX2,
        CpuidFeature::FMA,
        CpuidFeature::F16C,
        CpuidFeature::XSAVE,
        CpuidFeature::XSAVEOPT,
        CpuidFeature::XSAVEC,
        CpuidFeature::XSAVES,
    ];
    let compared: Vec<Code> = offered_codes().collect();
    // FSTCW and its like are two instructions, FWAIT and FNSTCW: no decoder makes these codes.
    let composite = |c: Code| {
        let name = format!("{c:?}");
        ["Fstenv", "Fstcw", "Feni", "Fdisi", "Fclex", "Finit", "Fsave", "Fstsw"].iter().any(|p| name.starts_with(p))
    };
    let system = |c: Code| matches!(c, Code::Xgetbv | Code::Xsetbv);
    let open: Vec<Code> = Code::values()
        .filter(|&c| c.op_code().is_instruction() && (c.op_code().mode64() || c.op_code().mode32()))
        .filter(|&c| has(c, &groups) && silicon::interpreter::vector::features::code_offered(c))
        .filter(|&c| !composite(c) && !system(c) && !compared.contains(&c))
        .collect();
    println!("{} compared, not compared: {open:?}", compared.len());
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn code_of_32_bits() {
    run_codes(32, |c| c.op_code().mode32(), 6);
}
