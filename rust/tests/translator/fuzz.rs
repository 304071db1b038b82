//! Random programs: translator against interpreter, and against the host.
//!
//! Each prints its seed; `SEED=n` repeats a run, `SILICON_CASES=n` makes it longer.

use iced_x86::InstructionInfoFactory;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::pair::Pair;
use crate::program::{Kind, program};

pub fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn against_the_interpreter(exact: bool, kernel: bool) {
    let seed = environment("SEED", rand::random());
    let cases = environment("SILICON_CASES", 6000);
    println!("SEED={seed} SILICON_CASES={cases}");
    let mut pair = Pair::new(exact, if kernel { 0 } else { 3 });
    let mut infos = InstructionInfoFactory::new();
    let mut failures = Vec::new();
    let mut retired = 0;
    for case in 0..cases {
        // A case is found again by its own seed.
        let own = seed.wrapping_add(case);
        let mut rng = StdRng::seed_from_u64(own);
        let p = program(&mut rng, Kind { native: false, undefined_flags: exact, kernel }, &mut infos);
        if std::env::var_os("SILICON_VERBOSE").is_some() {
            eprintln!("SEED={own}\n{:x?}\n{}", crate::pair::Brief(&p), crate::program::listing(&p));
        }
        match pair.compare(&mut rng, &p) {
            Ok(count) => retired += count,
            Err(wrong) => {
                failures.push(format!("SEED={own} (with SILICON_CASES=1)\n{wrong}"));
                if failures.len() >= 5 {
                    break;
                }
            }
        }
    }
    let s = pair.translator.cpu.translator.as_ref().expect("a translator").statistics;
    println!("{retired} instructions, {s:?}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(cases < 1000 || retired > 10 * cases, "programs end too early: {retired}");
    assert!(cases < 1000 || s.native * 2 > s.instructions, "hardly anything was translated: {s:?}");
}

#[test]
fn random_programs() {
    against_the_interpreter(false, false);
}

#[test]
fn random_programs_with_exact_flags() {
    against_the_interpreter(true, false);
}

#[test]
fn random_programs_of_a_kernel() {
    against_the_interpreter(true, true);
}
