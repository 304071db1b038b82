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

    /// An external interrupt with a vector: the same, and an exit that acknowledges reports it, but where it is the
    /// notification of posted interrupts.
    pub fn interrupt(&self, vector: u8) {
        self.vector.store(vector, Ordering::Release);
        self.ring(attention::INTERRUPT);
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

    /// Sleeps until a kick or a stop, or until CLOCK_MONOTONIC reaches `until_ns`. True: a kick or a stop.
    pub fn sleep(&self, until_ns: u64) -> bool {
        loop {
            let bits = self.bits.load(Ordering::Acquire);
            if bits & attention::WAKES != 0 {
                return true;
            }
            if monotonic_ns() >= until_ns {
                return false;
            }
            wait_while_equal(&self.bits, bits, until_ns);
        }
    }
}

/// One FUTEX_WAIT with an absolute deadline; returns for any reason.
fn wait_while_equal(word: &AtomicU32, value: u32, until_ns: u64) {
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
            value,
            &raw const timeout,
            std::ptr::null::<u32>(),
            libc::FUTEX_BITSET_MATCH_ANY,
        )
    };
}

impl Cpu {
    /// Sleeps until kicked (true; the kick is taken) or until the clock reaches `until`. Virtual time warps
    /// there at once. The core must not be running.
    pub fn wait(&mut self, until: u64) -> bool {
        let kicked = match &mut self.clock {
            Clock::Virtual { skipped } => {
                let kicked = self.doorbell.bits.load(Ordering::Acquire) & attention::WAKES != 0;
                if !kicked {
                    let now = self.state.retired.wrapping_add(*skipped);
                    *skipped = skipped.wrapping_add(until.saturating_sub(now));
                }
                kicked
            }
            Clock::Host { origin } => self.doorbell.sleep(until.saturating_add(*origin)),
        };
        self.doorbell.bits.fetch_and(!attention::KICK, Ordering::AcqRel);
        kicked
    }
}
