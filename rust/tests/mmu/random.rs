//! Random tables, accesses and invalidations: a core with warm TLBs must see what a cold one sees.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use silicon::state::cr;

use crate::machine::*;

/// Accesses must agree in result, fault, exit, and in what they leave in the tables.
#[test]
fn warm_and_cold_agree() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..20 {
        let nested = rng.random();
        one_machine(&mut rng, nested);
    }
}

fn one_machine(rng: &mut StdRng, nested: bool) {
    let mut m = Machine::long();
    if nested {
        m.ept_identity(7);
    }
    m.cpu.state.cr4 |= cr::CR4_SMAP | cr::CR4_SMEP;
    m.refresh();
    let base = 0xffff_8000_0040_0000u64;
    let table = m.table();
    let directory_entry = m.map(base, table | P | W | U, 2);
    for i in 0..24u64 {
        change(&m, rng, table, base + i * 0x1000);
    }
    for step in 0..3000 {
        let linear = base + rng.random_range(0..24u64) * 0x1000;
        match rng.random_range(0..20) {
            0 => {
                change(&m, rng, table, linear);
                m.cpu.invlpg(linear);
            }
            1 => m.cpl(if rng.random() { 3 } else { 0 }),
            2 => m.ac(rng.random()),
            3 => {
                m.cpu.state.cr0 ^= cr::CR0_WP;
                m.refresh();
            }
            4 if nested => {
                let gpa = 0x20_0000 + rng.random_range(0..8u64) * 0x1000;
                let allowed = [0, 1, 3, 4, 5, 7][rng.random_range(0..6)];
                m.ept_map(gpa, gpa | 0x30 | allowed, 1);
                m.cpu.invalidate(silicon::mmu::Invalidation::Ept { eptp: Some(m.cpu.ctl.ept_pointer) });
            }
            6 => {
                // The directory entry: other rights, or a large page instead of the table.
                let flags = rng.random::<u64>() & (W | U | A | D | NX);
                let target = if rng.random_range(0..3) == 0 { 0x20_0000 | PS } else { table };
                let was_large = m.peek(directory_entry) & PS != 0;
                m.poke(directory_entry, target | flags | P);
                if was_large {
                    m.cpu.invlpg(base + rng.random_range(0..512u64) * 0x1000); // any address of it
                } else {
                    let old = m.cpu.state.cr3;
                    m.cpu.mmu_cr_written(3, old, false);
                }
            }
            5 => {
                let old = m.cpu.state.cr3;
                m.cpu.mmu_cr_written(3, old, false);
            }
            _ => compare(&mut m, rng, linear, step),
        }
    }
}

/// A new random entry. Global bits are left out: the tables stay the same over MOV to CR3, entries do not.
fn change(m: &Machine, rng: &mut StdRng, table: u64, linear: u64) {
    let flags: u64 = rng.random::<u64>() & (W | U | A | D) | if rng.random_range(0..4) == 0 { NX } else { 0 };
    let present = if rng.random_range(0..8) == 0 { 0 } else { P };
    let reserved = if rng.random_range(0..16) == 0 { 1 << 41 } else { 0 };
    m.poke(
        table + (linear >> 12 & 511) * 8,
        (0x20_0000 + rng.random_range(0..8u64) * 0x1000) | flags | present | reserved,
    );
}

fn compare(m: &mut Machine, rng: &mut StdRng, page: u64, step: u32) {
    let linear = page + rng.random_range(0..0x1000u64);
    let kind = rng.random_range(0..4);
    let value: u64 = rng.random();
    // The warm core goes first; then memory is put back, and the cold one must leave the same.
    let memory = std::sync::Arc::clone(&m.cpu.memory);
    let before = snapshot(&memory);
    let mut cold = cpu(&memory);
    *cold.state = (*m.cpu.state).clone();
    cold.ctl.ept_pointer = m.cpu.ctl.ept_pointer;
    cold.update_mode();
    cold.mmu_context_changed();
    let run = |cpu: &mut silicon::cpu::Cpu| {
        let result = match kind {
            0 => cpu.read::<u64>(linear),
            1 => cpu.write(linear, value).map(|()| 0),
            2 => cpu.update::<u32>(linear, true, |v| Some(v ^ value as u32)).map(u64::from),
            _ => cpu.fetch(linear),
        };
        let fault = result.is_err().then_some((cpu.fault, cpu.exit.reason, cpu.exit.qualification));
        (result, fault)
    };
    let found = run(&mut m.cpu);
    let after = snapshot(&memory);
    for (&(pa, len), bytes) in AREAS.iter().zip(&before) {
        assert_eq!(bytes.len(), len);
        memory.write_bytes(pa, bytes);
    }
    let expected = run(&mut cold);
    assert_eq!(found.0, expected.0, "step {step}, {linear:#x}, kind {kind}");
    if expected.0 == Err(silicon::stop::Stop::Fault) {
        assert_eq!(found.1.unwrap().0, expected.1.unwrap().0, "step {step}, {linear:#x}, kind {kind}");
    }
    if expected.0 == Err(silicon::stop::Stop::Exit) {
        let (a, b) = (found.1.unwrap(), expected.1.unwrap());
        assert_eq!((a.1, a.2), (b.1, b.2), "step {step}, {linear:#x}, kind {kind}");
    }
    assert!(after == snapshot(&memory), "step {step}, {linear:#x}, kind {kind}: memory differs");
}

/// Guest tables and data.
const AREAS: [(u64, usize); 2] = [(TABLES, 0x8000), (0x20_0000, 0x1_9000)];

fn snapshot(memory: &silicon::memory::Memory) -> Vec<Vec<u8>> {
    let copy = |&(pa, len): &(u64, usize)| {
        let mut bytes = vec![0; len];
        memory.read_bytes(pa, &mut bytes);
        bytes
    };
    AREAS.iter().map(copy).collect()
}
