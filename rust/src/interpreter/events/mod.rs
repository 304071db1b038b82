//! Events: exceptions, interrupts, debug traps, and their priority at instruction boundaries.
//!
//! [`Cpu::deliver`] takes one event through the IDT; [`Cpu::pending_event`] decides which comes next
//! (SDM vol. 3, 6.9 and 26.5). Where events come from (devices, an APIC) is not known here.

use crate::cpu::{Cpu, attention};
use crate::state::flag;
use crate::stop::{Event, Exec, Stop};

/// What a boundary must remember of the boundary before it. All of it is zero after a VM entry.
#[derive(Clone, Copy, Default, Debug)]
pub struct Events {
    /// The run loop sets it when an instruction ended in [`Stop::Again`]: the same instruction goes on,
    /// so that RF and the interrupt shadow stay.
    pub iterating: bool,
}

impl Cpu {
    /// Whether [`Cpu::pending_event`] must be called at this boundary. The run loop asks it after every
    /// block, and executes one instruction at a time while it is true.
    #[inline]
    #[must_use]
    pub fn events_flagged(&self) -> bool {
        let s = &*self.state;
        (s.rflags & (flag::TF | flag::RF)) | (s.interruptibility & 3) | s.pending_debug | s.activity | (s.dr7 & 0xff)
            != 0
            || self.ctl.primary & (1 << 2 | 1 << 22 | 1 << 27) != 0
            || self.ctl.pin & (1 << 6) != 0
            || self.doorbell.bits.load(std::sync::atomic::Ordering::Relaxed) & attention::KICK != 0
    }

    /// Takes the event of the highest priority that is due at this boundary, if any: delivers it, or
    /// ends the run with its VM exit. `rip` = `next_rip` = the next instruction.
    ///
    /// # Errors
    /// [`Stop::Exit`] when the event is a VM exit.
    pub fn pending_event(&mut self) -> Exec {
        Ok(())
    }

    /// Takes `event` through the IDT, with every nested fault up to the triple fault. On success `rip`
    /// and `next_rip` are the handler's first instruction. `rip` must be that of the instruction that
    /// faulted (or, at a boundary, the next one); software events return to `rip + event.length`.
    ///
    /// # Errors
    /// [`Stop::Exit`] only.
    pub fn deliver(&mut self, _event: Event) -> Exec {
        Err(Stop::Missing)
    }
}
