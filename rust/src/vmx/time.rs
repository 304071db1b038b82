//! The time-stamp counter as the guest reads it, and the VMX-preemption timer (SDM 26.3, 26.5.1).
//!
//! One TSC tick is one nanosecond of the core's clock.

use super::bits::pin;
use super::capabilities::TIMER_SHIFT;
use super::reasons::reason;
use crate::cpu::Cpu;
use crate::stop::Exec;

impl Cpu {
    /// What RDTSC, RDTSCP and RDMSR of IA32_TSC read: the counter, then VMCS scaling and offset.
    #[inline]
    #[must_use]
    pub fn tsc(&self) -> u64 {
        self.tsc_at(self.clock.now(self.state.retired))
    }

    /// The same for a time of the core's clock.
    #[inline]
    fn tsc_at(&self, now: u64) -> u64 {
        let raw = self.host_tsc_at(now);
        if self.ctl.tsc_multiplier == 1 << 48 {
            return raw.wrapping_add(self.ctl.tsc_offset);
        }
        let scaled = ((u128::from(raw) * u128::from(self.ctl.tsc_multiplier)) >> 48) as u64;
        scaled.wrapping_add(self.ctl.tsc_offset)
    }

    /// The processor's own counter, with what IA32_TSC and IA32_TSC_ADJUST were written to.
    #[inline]
    #[must_use]
    pub fn host_tsc(&self) -> u64 {
        self.host_tsc_at(self.clock.now(self.state.retired))
    }

    fn host_tsc_at(&self, now: u64) -> u64 {
        now.wrapping_add(self.state.tsc_base).wrapping_add(self.state.tsc_adjust)
    }

    /// What RDTSC reads where it does not exit for itself. A guest never reads a time at which the preemption timer should
    /// have ended its run: that exit, which is looked for now and then only, comes before the instruction.
    ///
    /// # Errors
    /// The exit of the preemption timer.
    pub fn read_tsc(&mut self) -> Exec<u64> {
        let now = self.clock.now(self.state.retired);
        if self.ctl.pin & pin::PREEMPTION_TIMER != 0 && now >= self.timer_deadline {
            return Err(self.exit_boundary(reason::PREEMPTION_TIMER));
        }
        Ok(self.tsc_at(now))
    }

    /// The preemption timer is active and has reached zero.
    #[inline]
    #[must_use]
    pub fn preemption_timer_expired(&self) -> bool {
        self.ctl.pin & pin::PREEMPTION_TIMER != 0 && self.clock.now(self.state.retired) >= self.timer_deadline
    }

    /// Starts the timer: at VM entry, from its value in the VMCS.
    pub(super) fn start_preemption_timer(&mut self, value: u32) {
        self.timer_deadline = if self.ctl.pin & pin::PREEMPTION_TIMER != 0 {
            // It counts TSC ticks at multiples of 2^TIMER_SHIFT.
            let now = self.clock.now(self.state.retired);
            ((now >> TIMER_SHIFT).saturating_add(u64::from(value))) << TIMER_SHIFT
        } else {
            u64::MAX
        };
    }

    /// What is left of the timer: for "save VMX-preemption timer value".
    pub(super) fn preemption_timer_value(&self) -> u32 {
        let now = self.clock.now(self.state.retired);
        let left = (self.timer_deadline >> TIMER_SHIFT).saturating_sub(now >> TIMER_SHIFT);
        u32::try_from(left).unwrap_or(u32::MAX)
    }
}
