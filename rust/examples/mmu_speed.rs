//! How long the data path takes: TLB hits, misses with and without EPT, switches, invalidations.
//!
//! `cargo run --release --example mmu_speed`. Figures are nanoseconds an operation on this host; no test
//! depends on them.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use silicon::clock::Clock;
use silicon::cpu::Cpu;
use silicon::memory::Memory;
use silicon::state::cr;
use silicon::vmx::Model;

const RAM: u64 = 256 << 20;
const TABLES: u64 = 200 << 20;

struct Bench {
    cpu: Cpu,
    next: u64,
}

impl Bench {
    /// Long mode; `pages` pages from linear 1 TiB on, each a 4-KiB mapping.
    fn new(pages: u64, ept: bool) -> Self {
        let memory = Arc::new(Memory::new(RAM, 1 << 20).unwrap());
        let mut cpu = Cpu::new(memory, Arc::new(Model::default()), Clock::Virtual { skipped: 0 });
        cpu.state.cr0 = cr::CR0_PE | cr::CR0_PG | cr::CR0_WP;
        cpu.state.cr4 = cr::CR4_PAE | cr::CR4_PCIDE;
        cpu.state.efer = cr::EFER_LMA | cr::EFER_NXE;
        cpu.state.cr3 = TABLES;
        let mut bench = Self { cpu, next: TABLES + 0x1000 };
        for page in 0..pages {
            bench.map((1 << 40) + page * 0x1000, page << 12 | 0x67);
        }
        if ept {
            let (root, directory) = (RAM, RAM + 0x1000);
            bench.cpu.memory.write(root, directory | 7);
            let middle = RAM + 0x2000;
            bench.cpu.memory.write(directory, middle | 7);
            for n in 0..RAM >> 21 {
                bench.cpu.memory.write(middle + 8 * n, n << 21 | 0xb7);
            }
            bench.cpu.ctl.ept_pointer = root | 0x1e;
        }
        bench.cpu.update_mode();
        bench.cpu.mmu_context_changed();
        bench
    }

    fn map(&mut self, linear: u64, entry: u64) {
        let memory = Arc::clone(&self.cpu.memory);
        let mut table = TABLES;
        for level in [4, 3, 2] {
            let at = table + (linear >> (3 + 9 * level) & 511) * 8;
            if memory.read::<u64>(at) == 0 {
                memory.write(at, self.next | 0x67);
                self.next += 0x1000;
            }
            table = memory.read::<u64>(at) & !0xfff;
        }
        memory.write(table + (linear >> 12 & 511) * 8, entry);
    }
}

fn time(what: &str, count: u64, mut f: impl FnMut(u64)) {
    let start = Instant::now();
    for i in 0..count {
        f(i);
    }
    println!("{what:44} {:8.2} ns", start.elapsed().as_nanos() as f64 / count as f64);
}

/// Kept apart so that its code can be looked at.
#[inline(never)]
pub fn read_one(cpu: &mut Cpu, linear: u64) -> u64 {
    cpu.read::<u64>(linear).unwrap_or(0)
}

/// As [`read_one`].
#[inline(never)]
pub fn add_one(cpu: &mut Cpu, linear: u64) -> bool {
    cpu.update::<u64>(linear, false, |v| Some(v.wrapping_add(1))).is_ok()
}

fn main() {
    const BASE: u64 = 1 << 40;
    for ept in [false, true] {
        println!("EPT: {ept}");
        let mut b = Bench::new(16384, ept);
        let cpu = &mut b.cpu;
        time("read, hit", 100_000_000, |i| {
            black_box(read_one(cpu, BASE + (i & 0x3ff) * 8));
        });
        time("write, hit", 100_000_000, |i| {
            let _ = black_box(cpu.write(BASE + (i & 0x3ff) * 8, i));
        });
        time("add, hit", 50_000_000, |i| {
            black_box(add_one(cpu, BASE + (i & 0x3ff) * 8));
        });
        time("locked add, hit", 20_000_000, |i| {
            let _ = black_box(cpu.update::<u64>(BASE + (i & 0x3ff) * 8, true, |v| Some(v + 1)));
        });
        time("read over two pages", 5_000_000, |_| {
            let _ = black_box(cpu.read::<u64>(BASE + 0xffc));
        });
        time("read, miss, pages in order", 4_000_000, |i| {
            black_box(read_one(cpu, BASE + (i & 16383) * 0x1000));
        });
        let mut x = 1u64;
        time("read, miss, random pages", 4_000_000, |_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            black_box(read_one(cpu, BASE + (x >> 40 & 16383) * 0x1000));
        });
        time("write, miss, pages in order", 4_000_000, |i| {
            let _ = black_box(cpu.write(BASE + (i & 16383) * 0x1000, i));
        });
        time("switch of PCID, no flush", 5_000_000, |i| {
            let old = cpu.state.cr3;
            cpu.state.cr3 = TABLES | (i & 7);
            cpu.mmu_cr_written(3, old, true);
        });
        time("MOV CR3 with flush, 100 pages touched", 100_000, |_| {
            for page in 0..100 {
                black_box(read_one(cpu, BASE + page * 0x1000));
            }
            let old = cpu.state.cr3;
            cpu.mmu_cr_written(3, old, false);
        });
        time("INVLPG", 5_000_000, |i| cpu.invlpg(BASE + (i & 1023) * 0x1000));
        time("CPL 0 to 3 and back", 20_000_000, |i| {
            cpu.state.seg[2].access = if i & 1 == 0 { 0x93 } else { 0xf3 };
            cpu.update_mode();
        });
        cpu.state.seg[2].access = 0x93;
        cpu.update_mode();
        for page in 0..1024 {
            let _ = cpu.write(BASE + page * 0x1000, 0u64);
        }
        time("mark_code of a writable page", 10_000, |i| {
            black_box(cpu.mark_code(i << 12));
        });
    }
}
