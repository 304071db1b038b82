//! Pages with decoded code, and invalidation across cores in threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use silicon::cpu::{Cpu, attention};
use silicon::memory::{Memory, page_flag};
use silicon::mmu::Invalidation;

use crate::machine::*;

#[test]
fn a_write_to_decoded_bytes_bumps_the_version() {
    let mut m = Machine::long();
    m.map(0x1000, 0x5000 | P | W, 1);
    m.map(0x2000, 0x5000 | P | W, 1);
    // Both aliases are writable without notice; marking takes that away.
    assert!(m.write(0x1000, 1).is_ok() && m.write(0x2000, 1).is_ok());
    let version = m.cpu.mark_code_range(0x5100, 16);
    assert_eq!(m.cpu.memory.flags(0x5000) & (page_flag::CODE | page_flag::WRITABLE), page_flag::CODE);
    m.write(0x1800, 1).unwrap();
    assert_eq!(m.cpu.memory.code_version(0x5000), version, "data beside the code");
    m.cpu.write(0x210f, 1u8).unwrap();
    assert_eq!(m.cpu.memory.code_version(0x5000), version + 1);
    assert!(m.cpu.host_write_ptr(0x1000, 8).is_none());
    // Every way to write is noticed.
    for way in 0..6 {
        let version = m.cpu.mark_code(0x5000);
        match way {
            0 => m.cpu.update::<u32>(0x1100, true, |v| Some(v + 1)).map(|_| ()).unwrap(),
            1 => m.cpu.update::<u32>(0x1100, false, |v| Some(v + 1)).map(|_| ()).unwrap(),
            2 => m.cpu.write_bytes(0x10f0, &[0; 40]).unwrap(),
            3 => m.cpu.write_system(0x1100, 0u8).unwrap(),
            4 => m.cpu.memory.write_bytes(0x5100, &[1]),
            _ => m.cpu.memory.copy(0x5000, 0x6000, 0x200),
        }
        assert_eq!(m.cpu.memory.code_version(0x5000), version + 1, "way {way}");
    }
}

#[test]
fn marking_code_outside_memory_is_harmless() {
    let mut m = Machine::new();
    assert_eq!(m.cpu.mark_code(0xffff_f000_0000), 0);
}

#[test]
fn dirty_pages_are_noticed_again_after_they_were_taken() {
    let mut m = Machine::long();
    m.map(0x1000, 0x5000 | P | W | A | D, 1);
    m.write(0x1000, 1).unwrap();
    let memory = Arc::clone(&m.cpu.memory);
    assert!(memory.take_dirty().contains(&5));
    m.cpu.service_shootdown();
    assert!(!memory.take_dirty().contains(&5));
    m.cpu.service_shootdown();
    m.read(0x1000).unwrap();
    assert!(!memory.take_dirty().contains(&5), "reading does not dirty");
    m.cpu.service_shootdown();
    m.write(0x1000, 2).unwrap();
    assert!(memory.take_dirty().contains(&5));
}

/// Another core over the same memory and tables.
fn second(m: &Machine) -> Cpu {
    let mut other = cpu(&m.cpu.memory);
    *other.state = (*m.cpu.state).clone();
    other.update_mode();
    other.mmu_context_changed();
    other
}

/// What a run loop does at a boundary.
fn boundary(cpu: &mut Cpu) {
    if cpu.doorbell.bits.load(Ordering::Relaxed) & attention::SHOOTDOWN != 0 {
        cpu.service_shootdown();
    }
}

#[test]
fn a_core_outside_its_run_loop_serves_requests_before_it_runs() {
    let mut m = Machine::long();
    m.map(0x1000, 0x5000 | P | W, 1);
    let mut other = second(&m);
    other.write(0x1000, 1u8).unwrap();
    m.map(0x1000, 0x6000 | P | W, 1);
    m.cpu.invalidate_everywhere(Invalidation::Everything); // returns although nobody answers
    other.mmu_run_begin();
    other.write(0x1000, 7u8).unwrap();
    assert_eq!(m.peek(0x6000), 7);
    other.mmu_run_end();
}

#[test]
fn invalidation_is_over_when_it_returns() {
    let mut m = Machine::long();
    let at = m.map(0x1000, 0x5000 | P | W | A | D, 1);
    let memory = Arc::clone(&m.cpu.memory);
    let stop = Arc::new(AtomicBool::new(false));
    let mut other = second(&m);
    let running = Arc::new(AtomicBool::new(false));
    let worker = thread::spawn({
        let (stop, running) = (Arc::clone(&stop), Arc::clone(&running));
        move || {
            other.mmu_run_begin();
            while !stop.load(Ordering::Relaxed) {
                other.write(0x1000, 1u64).unwrap();
                running.store(true, Ordering::Relaxed);
                boundary(&mut other);
            }
            other.mmu_run_end();
        }
    });
    while !running.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    for round in 0..200 {
        let (old, new) = if round % 2 == 0 { (0x5000, 0x6000) } else { (0x6000, 0x5000) };
        memory.write(at, new | P | W | A | D);
        memory.invalidate_everywhere(Invalidation::Everything);
        memory.write(old, 0u64);
        for _ in 0..50 {
            assert_eq!(memory.read::<u64>(old), 0, "round {round}: a write through a dead translation");
        }
    }
    stop.store(true, Ordering::Relaxed);
    worker.join().unwrap();
}

#[test]
fn no_write_to_a_page_is_missed_once_its_code_is_marked() {
    let mut m = Machine::long();
    m.map(0x1000, 0x5000 | P | W | A | D, 1);
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let mut other = second(&m);
    let worker = thread::spawn({
        let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
        move || {
            other.mmu_run_begin();
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                other.write(0x1000, n).unwrap();
                written.store(n, Ordering::Relaxed);
                boundary(&mut other);
            }
            other.mmu_run_end();
        }
    });
    while written.load(Ordering::Relaxed) == 0 {
        std::hint::spin_loop();
    }
    m.cpu.mmu_run_begin();
    for round in 0..300 {
        let version = m.cpu.mark_code_range(0x5000, 8);
        let bytes = m.cpu.memory.read::<u64>(0x5000);
        // "Execute" while the version holds: the bytes must be those that were decoded.
        for _ in 0..20 {
            let now = m.cpu.memory.read::<u64>(0x5000);
            if now != bytes {
                // The writer bumps after its store: it must do so within its instruction.
                let mut patience = 0;
                while m.cpu.memory.code_version(0x5000) == version {
                    patience += 1;
                    assert!(patience < 50_000_000, "round {round}: code changed and nobody noticed");
                    thread::yield_now();
                }
                break;
            }
        }
        boundary(&mut m.cpu);
    }
    m.cpu.mmu_run_end();
    stop.store(true, Ordering::Relaxed);
    worker.join().unwrap();
}

#[test]
fn cores_that_shoot_at_each_other_do_not_wait_for_ever() {
    let memory = Arc::new(Memory::new(RAM, 0).unwrap());
    let threads: Vec<_> = (0..2)
        .map(|n| {
            let mut core = cpu(&memory);
            thread::spawn(move || {
                core.mmu_run_begin();
                for i in 0..500u64 {
                    core.invalidate_everywhere(Invalidation::Address { vpid: n, linear: i << 12 });
                }
                core.mmu_run_end();
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn locked_updates_of_two_cores_lose_nothing() {
    let mut m = Machine::long();
    m.map(0x1000, 0x5000 | P | W | A | D, 1);
    m.map(0x2000, 0x6000 | P | W | A | D, 1);
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let mut core = second(&m);
            thread::spawn(move || {
                for _ in 0..20_000 {
                    core.update::<u32>(0x1000, true, |v| Some(v + 1)).unwrap();
                    core.update::<u16>(0x1101, true, |v| Some(v.wrapping_add(1))).unwrap();
                    core.update::<u64>(0x1ffd, true, |v| Some(v + 1)).unwrap();
                    core.update128(0x1200, |v| Some(v + (1 << 64) + 1)).unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(m.cpu.read::<u32>(0x1000), Ok(40_000));
    assert_eq!(m.cpu.read::<u16>(0x1101), Ok(40_000));
    assert_eq!(m.read(0x1ffd), Ok(40_000), "over two pages, under the lock");
    assert_eq!(m.cpu.read::<u128>(0x1200), Ok(40_000 << 64 | 40_000));
}
