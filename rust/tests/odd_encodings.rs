//! Odd encodings against the host's own processor: prefixes in any number and order, LOCK where it must not be, VEX with
//! prefixes, more than 15 bytes. Compared is which fault there is, if any, and how long the instruction was.
//!
//! Prints its seed; `SEED=n` repeats a run, `CASES=n` makes it longer.

mod guest;
mod native;

use guest::{FINE, Guest, Outcome};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use native::{Area, Native, NativeState};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const CODE: u64 = FINE + 0x18_0000;
const DATA: u64 = FINE;
/// Not FS, which is this thread's.
const PREFIXES: [u8; 10] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x65];

/// Prefixes, an opcode, operands that lie in the data where they are in memory.
fn random_bytes(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    let count = match rng.random_range(0..8) {
        0..4 => rng.random_range(0..3),
        4..7 => rng.random_range(2..6),
        _ => rng.random_range(6..15),
    };
    for _ in 0..count {
        // A REX prefix that another prefix follows counts for nothing.
        let rex = rng.random_range(0..6) == 0;
        bytes.push(if rex { 0x40 | rng.random_range(0..16) } else { PREFIXES[rng.random_range(0..PREFIXES.len())] });
    }
    match rng.random_range(0..8) {
        0..3 => bytes.push(rng.random()),
        3..5 => bytes.extend([0x0f, rng.random()]),
        5 => bytes.extend([0x0f, if rng.random() { 0x38 } else { 0x3a }, rng.random()]),
        6 => bytes.extend([0xc5, rng.random(), rng.random()]),
        _ => bytes.extend([0xc4, rng.random::<u8>() & 0xe3, rng.random(), rng.random()]),
    }
    // Registers, or [reg], or [reg + disp8]; the registers all point into the data.
    bytes.push(match rng.random_range(0..4) {
        0 => rng.random::<u8>() & 0x3f,
        1 => rng.random::<u8>() & 0x3f | 0x40,
        _ => rng.random::<u8>() | 0xc0,
    });
    while bytes.len() < 24 {
        bytes.push(rng.random_range(0..0x20));
    }
    bytes
}

/// What must not run in this process, and what makers do in ways of their own.
fn left_out(bytes: &[u8], i: &Instruction, offered: bool) -> bool {
    use Mnemonic as M;
    let legacy = bytes.iter().position(|b| !PREFIXES.contains(b) && b & 0xf0 != 0x40).unwrap_or(0);
    let (first, second) = (bytes[legacy], bytes[legacy + 1]);
    let group = bytes[legacy + 1] >> 3 & 7;
    let system = match first {
        // Segment registers, flags, far transfers, INT, port access, and what reads a whole register file.
        0x64
        | 0x8e
        | 0x8c
        | 0x9d
        | 0x9c
        | 0xca..=0xcf
        | 0xf1
        | 0x62
        | 0x8f
        | 0x6c..=0x6f
        | 0xe4..=0xe7
        | 0xec..=0xef => true,
        0xc4 | 0xc5 => !offered,
        0xff => matches!(group, 3 | 5),
        // Branches, whose operand size is the maker's choice.
        0xe0..=0xe3 | 0xe8..=0xeb | 0x70..=0x7f | 0xc2 | 0xc3 => true,
        0x0f => matches!(
            second,
            0x80..=0x8f | 0x00..=0x03 | 0x05..=0x09 | 0x0d..=0x0f | 0x18..=0x1f | 0x20..=0x24 | 0x30..=0x37 | 0x78 | 0x79
                | 0xa0..=0xa2 | 0xa8..=0xaa | 0xb2 | 0xb4 | 0xb5 | 0xae | 0xc7 | 0xff
        ),
        _ => false,
    };
    let branch = i.flow_control() != FlowControl::Next && !i.is_invalid();
    let string = i.is_string_instruction() && !i.is_invalid();
    let x87 = matches!(first, 0xd8..=0xdf | 0x9b);
    let mine = matches!(
        i.mnemonic(),
        M::Invept
            | M::Invvpid
            | M::Invpcid
            | M::Movsxd
            | M::Salc
            | M::Nop
            | M::Pause
            | M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Enter
            | M::Xlatb
    ) || format!("{:?}", i.mnemonic()).starts_with("Sha");
    system || branch || string || x87 || mine || !i.is_invalid() && !offered
}

fn known(o: Outcome) -> Option<u8> {
    match o {
        Outcome::Fault { vector, .. } => Some(vector),
        _ => None,
    }
}

#[test]
fn prefixes_in_any_order() {
    let environment = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seed = environment("SEED").unwrap_or_else(rand::random);
    let cases = environment("CASES").unwrap_or(20_000);
    println!("SEED={seed} CASES={cases}");
    let native = Native::new();
    let mut code = Area::new(CODE, 2);
    let mut data = Area::new(DATA, 2);
    let mut native = native;
    let mut guest = Guest::long(3);
    guest.cpu.state.xcr0 = guest.cpu.model.xcr0_bits();
    guest.unmap_all();
    for page in [DATA, DATA + 0x1000, CODE, CODE + 0x1000] {
        guest.map(page, page, 7);
    }
    let mut failures = Vec::new();
    let mut compared = 0;
    for case in 0..cases {
        let own = seed.wrapping_add(case);
        let mut rng = StdRng::seed_from_u64(own);
        let bytes = random_bytes(&mut rng);
        let i = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
        let offered = i.cpuid_features().iter().all(|f| guest.cpu.model.offers(*f));
        if left_out(&bytes, &i, offered) {
            continue;
        }
        compared += 1;
        code.bytes()[..bytes.len()].copy_from_slice(&bytes);
        data.bytes().fill(1);
        let mut state = NativeState { gpr: [DATA + 0x800; 16], rip: CODE, ..NativeState::default() };
        let start = state.clone();
        let wanted = native.step(&mut state);
        let host = match wanted {
            native::Outcome::Done => None,
            native::Outcome::Fault { vector, .. } => Some(vector),
        };
        guest.load(CODE, &bytes);
        guest.load(DATA, &[1; 0x2000]);
        let s = &mut *guest.cpu.state;
        (s.gpr, s.rip, s.rflags, s.mxcsr) = (start.gpr, CODE, start.rflags, 0x1f80);
        s.ymm = start.ymm;
        (s.cr2, s.pending_debug, s.assist_kind) = (0, 0, 0);
        guest.cpu.update_mode();
        let got = guest.run(1);
        let ours = known(got);
        // A non-canonical or unmapped address, of which the host says one thing or another.
        let prefixes = bytes.iter().take_while(|b| PREFIXES.contains(b) || *b & 0xf0 == 0x40).count();
        // How long that is which is no instruction at all, makers decide: #UD, or #GP where it seems longer than 15 bytes.
        let neither = i.is_invalid() && prefixes > 4 && matches!((ours, host), (Some(6 | 13), Some(6 | 13)));
        let same = ours == host || neither || matches!((ours, host), (Some(12..=14), Some(12..=14)));
        if !same || host.is_none() && guest.cpu.state.rip != state.rip {
            failures.push(format!(
                "SEED={own} (with CASES=1): {bytes:02x?} {i}: {got:x?} at +{}, the host {wanted:x?} at +{}",
                guest.cpu.state.rip.wrapping_sub(CODE),
                state.rip.wrapping_sub(CODE)
            ));
            if failures.len() >= 40 {
                break;
            }
        }
    }
    println!("{compared} compared");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(cases < 1000 || compared > cases / 4, "hardly anything was compared: {compared}");
}

/// Vector of the fault of one instruction; none: it was executed.
fn fault_of(bytes: &[u8]) -> Option<u8> {
    let mut guest = Guest::long(3);
    guest.load(CODE, bytes);
    guest.load(CODE + bytes.len() as u64, &[0x90; 16]);
    guest.cpu.state.rip = CODE;
    guest.ready();
    known(guest.run(1))
}

#[test]
fn fifteen_bytes() {
    let with = |prefixes: &[u8], rest: &[u8]| [prefixes, rest].concat();
    let paddd = [0x0f, 0xfe, 0xf4];
    assert_eq!(fault_of(&with(&[0x2e; 12], &paddd)), None);
    assert_eq!(fault_of(&with(&[0x2e; 13], &paddd)), Some(13));
    // LOCK in front of what does not take it: #UD as long as it is no longer than 15 bytes.
    assert_eq!(fault_of(&with(&[0xf0; 11], &paddd)), Some(6));
    assert_eq!(fault_of(&with(&[0xf0; 12], &paddd)), Some(6));
    assert_eq!(
        fault_of(&with(&[0x66, 0x67, 0x66, 0x2e, 0x36, 0x3e, 0x26, 0x65, 0x2e, 0x36, 0x3e, 0xf0], &paddd)),
        Some(6)
    );
    assert_eq!(fault_of(&with(&[0xf0; 13], &paddd)), Some(13));
    assert_eq!(fault_of(&[0x2e; 15]), Some(13));
}
