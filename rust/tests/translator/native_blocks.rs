//! Random programs: translator against the host's own processor, which single-steps through them.

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use silicon::state::flag;

use crate::fuzz::environment;
use crate::guest::{Guest, Outcome};
use crate::native::{self, Area, Native, NativeState};
use crate::pair::{Brief, guest_for_programs, load};
use crate::program::{ABSENT, CODE, DATA, DATA_PAGES, Kind, Program, READ_ONLY, listing, program, same_on_the_host};

/// The native side comes last: it holds the lock under which the areas are mapped.
struct Host {
    code: Area,
    data: Area,
    native: Native,
}

impl Host {
    fn new() -> Self {
        let native = Native::new();
        let code = Area::new(CODE, 2);
        let mut data = Area::new(DATA, DATA_PAGES as usize);
        // Touched, so that a write to the read-only page finds it present.
        data.bytes().fill(1);
        Self { code, data, native }
    }

    fn load(&mut self, p: &Program) {
        self.data.protect(READ_ONLY as usize, libc::PROT_READ | libc::PROT_WRITE);
        self.data.protect(ABSENT as usize, libc::PROT_READ | libc::PROT_WRITE);
        self.data.bytes().copy_from_slice(&p.data);
        self.data.protect(READ_ONLY as usize, libc::PROT_READ);
        self.data.protect(ABSENT as usize, libc::PROT_NONE);
        let at = (p.start - CODE) as usize;
        self.code.bytes()[at..at + p.code.len()].copy_from_slice(&p.code);
    }

    /// Whether the instruction at `rip` can be compared: by the program's making, unless it overwrote its code.
    fn comparable(&mut self, p: &Program, rip: u64) -> bool {
        let at = (p.start - CODE) as usize;
        let bytes = self.code.bytes();
        if bytes[at..at + p.code.len()] == p.code {
            return true;
        }
        let from = (rip - CODE) as usize;
        let decoded = |options| Decoder::with_ip(64, &bytes[from..], rip, options).decode();
        let [ours, other] = [DecoderOptions::NONE, DecoderOptions::AMD].map(decoded);
        // A near branch with an operand-size prefix takes 16 bits of target there, and pushes 16.
        (ours.code(), ours.len()) == (other.code(), other.len()) && same_on_the_host(&ours)
    }
}

fn start(p: &Program) -> NativeState {
    NativeState { gpr: p.gpr, rip: p.start, rflags: p.rflags, ymm: p.ymm, mxcsr: p.mxcsr, ..NativeState::default() }
}

/// Runs `count` instructions on both sides.
fn compare(host: &mut Host, guest: &mut Guest, p: &Program, count: u64) -> Result<u64, String> {
    host.load(p);
    let mut expected = start(p);
    let mut done = 0;
    let mut fault = None;
    while done < count {
        // A program that leaves its code, or reaches the stack of this process, ends here.
        if !(p.start..p.start + p.code.len() as u64).contains(&expected.rip) {
            break;
        }
        if !host.comparable(p, expected.rip) {
            break;
        }
        match host.native.step(&mut expected) {
            native::Outcome::Done => done += 1,
            native::Outcome::Fault { vector, .. } => {
                fault = Some(vector);
                break;
            }
        }
    }
    load(guest, p, 3);
    let count = done + u64::from(fault.is_some());
    let got = if count == 0 { Outcome::Done } else { guest.run(count) };
    let s = &guest.cpu.state;
    if !matches!(s.rip >> 47, 0 | 0x1_ffff) && fault == Some(13) {
        // Known: a branch to a non-canonical address faults behind the branch, not at it.
        return Ok(done);
    }
    let mut wrong = String::new();
    match (got, fault) {
        (Outcome::Done, None) => {}
        (Outcome::Fault { vector, .. }, Some(wanted)) if vector == wanted => {}
        // The host is not told whether a non-canonical address was one of the stack.
        (Outcome::Fault { vector: 12 | 13, .. }, Some(12 | 13)) => {}
        // Known: of an access that reaches beyond the canonical addresses silicon looks at its first page first.
        (Outcome::Fault { vector: 14, address, .. }, Some(12 | 13)) if address >> 12 == 0x7_ffff_ffff => {
            return Ok(done);
        }
        (got, wanted) => wrong += &format!("  outcome {got:x?}, the host {wanted:x?}\n"),
    }
    let mut one = |name: &str, ours: u64, host: u64| {
        if ours != host {
            wrong += &format!("  {name}: {ours:x}, the host {host:x}\n");
        }
    };
    one("retired", s.retired, done);
    one("rip", s.rip, expected.rip);
    one("flags", s.rflags & flag::STATUS, expected.rflags & flag::STATUS);
    one("mxcsr", s.mxcsr, u64::from(expected.mxcsr));
    for n in 0..16 {
        one(&format!("gpr {n}"), s.gpr[n], expected.gpr[n]);
        for k in 0..4 {
            one(&format!("ymm {n}[{k}]"), s.ymm[n][k], expected.ymm[n][k]);
        }
    }
    let mut ours = vec![0; (DATA_PAGES * 4096) as usize];
    guest.cpu.memory.read_bytes(DATA, &mut ours);
    host.data.protect(ABSENT as usize, libc::PROT_READ);
    if let Some(n) = (0..ours.len()).find(|&n| ours[n] != host.data.bytes()[n]) {
        wrong += &format!("  memory at {:x}: {:x}, the host {:x}\n", DATA + n as u64, ours[n], host.data.bytes()[n]);
    }
    if wrong.is_empty() {
        return Ok(done);
    }
    Err(format!(
        "{wrong}  count {count}\n  from {:x?}\n{}  to rip {:x} gpr {:x?}\n",
        Brief(p),
        listing(p),
        expected.rip,
        expected.gpr
    ))
}

#[test]
fn random_programs_like_the_host() {
    let seed = environment("SEED", rand::random());
    let cases = environment("SILICON_CASES", 1500);
    println!("SEED={seed} SILICON_CASES={cases}");
    let mut host = Host::new();
    let mut guest = guest_for_programs();
    guest.cpu.use_translator_with(4 << 20).expect("executable memory");
    let settings = guest.cpu.translator.as_mut().expect("a translator");
    (settings.warm, settings.exact_flags) = (0, true);
    let mut infos = InstructionInfoFactory::new();
    let mut failures = Vec::new();
    let mut done = 0;
    for case in 0..cases {
        let own = seed.wrapping_add(case);
        let mut rng = StdRng::seed_from_u64(own);
        let p = program(&mut rng, Kind { native: true, undefined_flags: true, kernel: false }, &mut infos);
        let count = rng.random_range(1..40);
        if std::env::var_os("SILICON_VERBOSE").is_some() {
            eprintln!("SEED={own}\n{:x?}\n{}", Brief(&p), listing(&p));
        }
        match compare(&mut host, &mut guest, &p, count) {
            Ok(count) => done += count,
            Err(wrong) => {
                // The shortest run that shows it says where it begins.
                let wrong =
                    (1..count).find_map(|fewer| compare(&mut host, &mut guest, &p, fewer).err()).unwrap_or(wrong);
                failures.push(format!("SEED={own} (with SILICON_CASES=1)\n{wrong}"));
            }
        }
        if failures.len() >= 5 {
            break;
        }
    }
    println!("{done} instructions");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(cases < 1000 || done > 5 * cases, "programs end too early: {done}");
}
