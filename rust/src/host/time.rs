//! The host's CLOCK_MONOTONIC in nanoseconds, by the host's time-stamp counter where that is steady: three times as
//! fast, and translated code can do it in line.
//!
//! A [`Scale`] turns a counter value into nanoseconds. It is measured against the kernel's clock ten times a second, and
//! changed only so that time goes on from where it is: what was ahead runs slower for a while.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Mutex, OnceLock};

/// Ticks that a scale's anchor lies in the past, so that a counter read on another core is never before it.
const MARGIN: u64 = 1 << 20;
/// The first measurement takes this long; until then the kernel is asked.
const FIRST_NS: u64 = 20_000_000;
/// Time between measurements.
const INTERVAL_NS: u64 = 100_000_000;
/// An error is made good over this time, with a change of rate of at most one in `STEEPEST`.
const HORIZON_NS: i64 = 1_000_000_000;
const STEEPEST: i64 = 50;
/// Time goes forward at once by more than this.
const STEP_NS: i64 = 1_000_000;

/// nanoseconds = `ns` + ((counter - `tsc`) * `factor` >> 64).
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Counter at the anchor.
    pub tsc: u64,
    /// Nanoseconds at the anchor.
    pub ns: u64,
    /// Nanoseconds a tick, times 2^64.
    pub factor: u64,
}

impl Scale {
    /// Nanoseconds at a counter value.
    #[inline]
    #[must_use]
    pub fn at(&self, tsc: u64) -> u64 {
        let ticks = tsc.wrapping_sub(self.tsc);
        let ticks = if (ticks as i64) < 0 { 0 } else { ticks };
        self.ns.wrapping_add(((u128::from(ticks) * u128::from(self.factor)) >> 64) as u64)
    }
}

/// The scale in force, under a sequence number that is odd while it changes. 0: there is none.
static SEQUENCE: AtomicU32 = AtomicU32::new(0);
static TSC: AtomicU64 = AtomicU64::new(0);
static NS: AtomicU64 = AtomicU64::new(0);
static FACTOR: AtomicU64 = AtomicU64::new(0);
/// Counter at which the next measurement is due.
static DUE: AtomicU64 = AtomicU64::new(0);
static MEASURING: AtomicBool = AtomicBool::new(false);
static LAST: Mutex<Option<Pair>> = Mutex::new(None);

/// Counter and kernel's clock at one moment.
#[derive(Clone, Copy, Debug)]
struct Pair {
    tsc: u64,
    ns: u64,
}

#[inline]
fn counter() -> u64 {
    // SAFETY: RDTSC has no effects; every x86-64 has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// What the kernel says.
fn kernel_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid timespec for the kernel (or vDSO) to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The counter is the same on all cores and never stops or changes its rate (CPUID 80000007H), and the kernel has not
/// found it otherwise.
fn is_steady() -> bool {
    static STEADY: OnceLock<bool> = OnceLock::new();
    *STEADY.get_or_init(|| {
        let invariant = std::arch::x86_64::__cpuid(0x8000_0000).eax >= 0x8000_0007
            && std::arch::x86_64::__cpuid(0x8000_0007).edx & 1 << 8 != 0;
        let source = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        invariant && !source.is_ok_and(|s| matches!(s.trim(), "hpet" | "acpi_pm" | "jiffies"))
    })
}

/// The scale in force.
#[inline]
#[must_use]
pub fn scale() -> Option<Scale> {
    loop {
        let before = SEQUENCE.load(Ordering::Acquire);
        if before == 0 {
            return None;
        }
        let scale = Scale {
            tsc: TSC.load(Ordering::Relaxed),
            ns: NS.load(Ordering::Relaxed),
            factor: FACTOR.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        if before & 1 == 0 && SEQUENCE.load(Ordering::Relaxed) == before {
            return Some(scale);
        }
        std::hint::spin_loop();
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
#[inline]
#[must_use]
pub fn now() -> u64 {
    let tsc = counter();
    if (tsc.wrapping_sub(DUE.load(Ordering::Relaxed)) as i64) >= 0 {
        measure();
    }
    match scale() {
        Some(scale) => scale.at(tsc),
        None => kernel_ns(),
    }
}

/// The pair of the tightest of a few attempts; the counter is the one from before the clock was read.
fn pair() -> Pair {
    let attempt = || {
        let tsc = counter();
        let ns = kernel_ns();
        (counter().wrapping_sub(tsc), Pair { tsc, ns })
    };
    (0..5).map(|_| attempt()).min_by_key(|a| a.0).map_or(Pair { tsc: counter(), ns: kernel_ns() }, |a| a.1)
}

/// Measures the rate, and sets the scale that goes on from the old one and meets the kernel's clock.
#[cold]
#[inline(never)]
fn measure() {
    if !is_steady() {
        DUE.store(counter().wrapping_add(1 << 62), Ordering::Relaxed);
        return;
    }
    if MEASURING.swap(true, Ordering::Acquire) {
        return; // somebody else does
    }
    if let Ok(mut last) = LAST.lock() {
        let here = pair();
        match *last {
            None => {
                *last = Some(here);
                DUE.store(here.tsc.wrapping_add(1 << 20), Ordering::Relaxed);
            }
            Some(from) if here.ns.wrapping_sub(from.ns) >= FIRST_NS => {
                if let Some(next) = next_scale(scale(), from, here) {
                    set(next);
                    *last = Some(here);
                    let ticks = (u128::from(INTERVAL_NS) << 64) / u128::from(next.factor);
                    DUE.store(here.tsc.wrapping_add(ticks as u64), Ordering::Relaxed);
                }
            }
            Some(_) => DUE.store(here.tsc.wrapping_add(1 << 20), Ordering::Relaxed),
        }
    }
    MEASURING.store(false, Ordering::Release);
}

/// The scale behind `old` at `here`, after the rate was measured since `from`.
fn next_scale(old: Option<Scale>, from: Pair, here: Pair) -> Option<Scale> {
    let (ns, ticks) = (here.ns.wrapping_sub(from.ns), here.tsc.wrapping_sub(from.tsc));
    let rate = u64::try_from((u128::from(ns) << 64) / u128::from(ticks.max(1))).ok().filter(|&rate| rate != 0)?;
    let mut at = here.ns;
    let mut factor = rate;
    if let Some(old) = old {
        let ours = old.at(here.tsc);
        let error = here.ns.wrapping_sub(ours) as i64;
        if error < STEP_NS {
            at = ours;
            let error = error.clamp(-HORIZON_NS / STEEPEST, HORIZON_NS / STEEPEST);
            let change = i128::from(rate) * i128::from(error) / i128::from(HORIZON_NS);
            factor = u64::try_from(i128::from(rate) + change).ok()?;
        }
    }
    let back = ((u128::from(MARGIN) * u128::from(factor)) >> 64) as u64;
    Some(Scale { tsc: here.tsc.wrapping_sub(MARGIN), ns: at.wrapping_sub(back), factor })
}

fn set(next: Scale) {
    let before = SEQUENCE.load(Ordering::Relaxed);
    SEQUENCE.store(before.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::Release);
    TSC.store(next.tsc, Ordering::Relaxed);
    NS.store(next.ns, Ordering::Relaxed);
    FACTOR.store(next.factor, Ordering::Relaxed);
    // Never 0 again: that says that there is no scale.
    SEQUENCE.store(before.wrapping_add(2).max(2), Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_backwards_and_beside_the_kernel() {
        let begin = kernel_ns();
        let mut last = now();
        while kernel_ns() - begin < 250_000_000 {
            let before = kernel_ns();
            let ours = now();
            let after = kernel_ns();
            assert!(ours >= last, "{last} {ours}");
            last = ours;
            assert!(ours + 100_000 >= before && ours <= after + 100_000, "{before} {ours} {after}");
        }
        assert_eq!(scale().is_some(), is_steady());
    }

    #[test]
    fn an_error_is_made_good_without_a_jump_back() {
        let rate = 1 << 63; // half a nanosecond a tick
        let begin = 5_000_000_000;
        let old = Scale { tsc: 0, ns: begin, factor: rate };
        // Ours is 1000 ns ahead.
        let here = Pair { tsc: 2_000_000_000, ns: begin + 999_999_000 };
        let from = Pair { tsc: 0, ns: here.ns - 1_000_000_000 };
        let new = next_scale(Some(old), from, here).expect("a scale");
        assert!(new.at(here.tsc).abs_diff(old.at(here.tsc)) <= 1);
        let second = 2_000_000_000;
        assert!(new.at(here.tsc + second).abs_diff(here.ns + 1_000_000_000) <= 2, "{new:?}");
        // Far behind: forward at once.
        let here = Pair { tsc: 2_000_000_000, ns: begin + 1_500_000_000 };
        let new = next_scale(Some(old), Pair { tsc: 0, ns: here.ns - 1_000_000_000 }, here).expect("a scale");
        assert!(new.at(here.tsc).abs_diff(here.ns) <= 1);
    }
}
