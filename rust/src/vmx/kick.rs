//! Waking and stopping a core from other threads, and its sleep in HLT.
//!
//! The doorbell's bits are a futex: a kick that comes before the sleep ends it at once.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::clock::{Clock, monotonic_ns};
use crate::cpu::{Cpu, Doorbell, attention};

impl Doorbell {
    /// Ends the run, or the next one, with an external-interrupt exit; ends a sleep.
    pub fn kick(&self) {
        self.ring(attention::KICK);
    }

    /// Ends the run and every later one.
    pub fn stop(&self) {
        self.ring(attention::STOP);
    }

    fn ring(&self, bit: u32) {
        self.bits.fetch_or(bit, Ordering::AcqRel);
        // SAFETY: the address is that of a live atomic; FUTEX_WAKE only compares it as a key.
        unsafe {
            libc::syscall(libc::SYS_futex, &raw const self.bits, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX)
        };
    }

    /// Sleeps until a bit is set or CLOCK_MONOTONIC reaches `until`. True: a bit is set.
    pub fn sleep(&self, until_ns: u64) -> bool {
        loop {
            if self.bits.load(Ordering::Acquire) != 0 {
                return true;
            }
            if monotonic_ns() >= until_ns {
                return false;
            }
            wait_while_zero(&self.bits, until_ns);
        }
    }
}

/// One FUTEX_WAIT with an absolute deadline; returns for any reason.
fn wait_while_zero(word: &AtomicU32, until_ns: u64) {
    let timeout = libc::timespec {
        tv_sec: (until_ns / 1_000_000_000).min(i64::MAX as u64 / 2) as i64,
        tv_nsec: (until_ns % 1_000_000_000) as i64,
    };
    let operation = libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word and the timeout live across the call; the kernel only reads them.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            std::ptr::from_ref(word),
            operation,
            0u32,
            &raw const timeout,
            std::ptr::null::<u32>(),
            libc::FUTEX_BITSET_MATCH_ANY,
        )
    };
}

impl Cpu {
    /// Sleeps until the doorbell rings or the clock reaches `until`. Virtual time warps there at once.
    pub(super) fn sleep_until(&mut self, until: u64) {
        match &mut self.clock {
            Clock::Virtual { skipped } => {
                let now = self.state.retired.wrapping_add(*skipped);
                *skipped = skipped.wrapping_add(until.saturating_sub(now));
            }
            Clock::Host { origin } => {
                let until = until.saturating_add(*origin);
                // Whoever asks for a shootdown need not wait for a core that sleeps.
                self.mmu_run_end();
                self.doorbell.sleep(until);
                self.mmu_run_begin();
            }
        }
        self.boundary = true;
    }
}
