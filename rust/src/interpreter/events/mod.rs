//! Events: exceptions, interrupts, debug traps, and their priority at instruction boundaries.
//!
//! [`Cpu::deliver`] takes one event through the IDT; [`Cpu::pending_event`] decides which comes next
//! (SDM vol. 3, 6.9 and 26.5). Where events come from (devices, an APIC) is not known here.

mod debug;
mod deliver;
mod frame;
mod idt;

pub(crate) use frame::Stack;

use std::sync::atomic::Ordering;

use crate::cpu::{Cpu, attention};
use crate::state::flag;
use crate::stop::{Event, EventKind, Exec, Stop, vector};
use crate::vmx::bits::primary;
use crate::vmx::information::VALID;
use crate::vmx::reason;

pub use debug::{BREAKPOINT_ENABLED, DEBUGCTL_BTF, DR6_BD, DR6_BS};

/// Interruptibility bits (SDM table 25-3).
#[allow(missing_docs)]
pub mod blocking {
    pub const STI: u64 = 1 << 0;
    pub const MOV_SS: u64 = 1 << 1;
    pub const NMI: u64 = 1 << 3;
}

/// Activity states (SDM 25.4.2).
const ACTIVITY_HLT: u64 = 1;
const ACTIVITY_WAIT_FOR_SIPI: u64 = 3;

/// What a boundary must know of the instruction before it. All of it is zero after a VM entry. TF, RF and
/// the shadows of STI and MOV SS are the run loop's to age.
#[derive(Clone, Copy, Default, Debug)]
pub struct Events {
    /// The run loop sets it when an instruction ended in [`Stop::Again`]: the same instruction goes on,
    /// and RF is pushed as 1.
    pub iterating: bool,
    /// IRET removed blocking by NMI and has not completed: "NMI unblocking due to IRET" of an exit
    /// that a fault of it causes (SDM vol. 3, 28.2.3).
    pub iret_unblocked_nmi: bool,
    /// An MTF VM exit is pending behind the instruction that was started.
    monitor_trap: bool,
}

impl Events {
    /// An event was delivered in place of the instruction.
    fn after_delivery(&mut self) {
        *self = Self { monitor_trap: self.monitor_trap, ..Self::default() };
    }
}

impl Cpu {
    /// Whether [`Cpu::pending_event`] must be called at this boundary. The run loop asks it after every
    /// block, and executes one instruction at a time while it is true. The preemption timer is not part of
    /// it: the run loop looks up at `timer_deadline`.
    #[inline]
    #[must_use]
    pub fn events_flagged(&self) -> bool {
        self.state.rflags & flag::RF != 0 || self.iterations_flagged()
    }

    /// The same between the iterations of a string instruction: RF, which only holds instruction breakpoints back
    /// until the whole is complete, is no reason to stop there.
    #[inline]
    #[must_use]
    pub(crate) fn iterations_flagged(&self) -> bool {
        let s = &*self.state;
        (s.rflags & flag::TF) | (s.interruptibility & 3) | s.pending_debug | s.activity | (s.dr7 & 0xff) != 0
            || self.ctl.primary & primary::MONITOR_TRAP != 0
            || self.ctl.primary & primary::INTERRUPT_WINDOW != 0 && s.rflags & flag::IF != 0
            || self.ctl.primary & primary::NMI_WINDOW != 0 && s.interruptibility & blocking::NMI == 0
            || self.ctl.trap_exit != 0
            || self.events.monitor_trap
            || self.virtual_interrupt_flagged()
            || self.doorbell.bits.load(Ordering::Relaxed) & (attention::KICK | attention::INTERRUPT) != 0
    }

    /// Forgets what the last run left between boundaries. VM entry calls it before it injects.
    pub fn reset_events(&mut self) {
        self.events = Events::default();
        self.delivering = None;
    }

    /// An MTF VM exit was injected (or an event, with the monitor trap flag at 1): it is pending before
    /// the first instruction (SDM vol. 3, 26.5.2).
    pub fn pend_monitor_trap(&mut self) {
        self.events.monitor_trap = true;
    }

    /// Starts the shadow of STI or MOV SS ([`blocking`]) behind the instruction that executes.
    pub(crate) fn set_shadow(&mut self, bit: u64) {
        self.state.interruptibility = self.state.interruptibility & !3 | bit;
    }

    /// Takes the events that are due at this boundary, by priority (SDM vol. 3, table 6-2, 26.5.2,
    /// 26.7.x): trap-like VM exits, MTF, debug traps, preemption timer, NMI window, interrupt window or virtual interrupt, external
    /// interrupt, kick, instruction
    /// breakpoint. Delivers what goes through the IDT; ends the run with what is a VM exit.
    /// Nothing comes between the attempts at an instruction that exits for its device accesses.
    /// `rip` = `next_rip` = the next instruction. When it returns with `activity` = HLT, nothing is to be
    /// executed: the processor waits.
    ///
    /// # Errors
    /// [`Stop::Exit`] when an event is a VM exit; [`Stop::Again`] when one was delivered, and the boundary
    /// before its handler is to be looked at like any other.
    pub fn pending_event(&mut self) -> Exec {
        let continued = self.state.replay_count != 0 || self.state.assist_done != 0;
        let delivered = !continued && self.one_event()?;
        self.events.iterating = false;
        // A processor that waits executes no instruction that the exit could follow.
        self.events.monitor_trap =
            self.ctl.primary & primary::MONITOR_TRAP != 0 && (delivered || self.state.activity == 0);
        if delivered {
            // The handler's first instruction has a boundary of its own before it.
            self.boundary = true;
            return Err(Stop::Again);
        }
        Ok(())
    }

    /// The first event in the order of priority; true when one was delivered.
    fn one_event(&mut self) -> Exec<bool> {
        if self.ctl.trap_exit != 0 {
            let reason = std::mem::take(&mut self.ctl.trap_exit);
            let stop = self.exit_boundary(reason);
            self.exit.qualification = self.ctl.trap_qualification;
            return Err(stop);
        }
        if self.events.monitor_trap {
            return Err(self.exit_boundary(reason::MONITOR_TRAP));
        }
        // What ends which activity state: SDM vol. 3, 26.5.1, 27.7.3 to 27.7.7.
        let awake = self.state.activity <= ACTIVITY_HLT;
        let waits_for_sipi = self.state.activity == ACTIVITY_WAIT_FOR_SIPI;
        if awake && let Some(payload) = self.take_debug_trap() {
            self.deliver(debug::debug_exception(payload))?;
            return Ok(true);
        }
        if !waits_for_sipi && self.preemption_timer_expired() {
            return Err(self.exit_boundary(reason::PREEMPTION_TIMER));
        }
        let blocked = self.state.interruptibility;
        if !waits_for_sipi
            && self.ctl.primary & primary::NMI_WINDOW != 0
            && blocked & (blocking::NMI | blocking::MOV_SS | blocking::STI) == 0
        {
            return Err(self.exit_boundary(reason::NMI_WINDOW));
        }
        if awake
            && self.ctl.primary & primary::INTERRUPT_WINDOW != 0
            && self.state.rflags & flag::IF != 0
            && blocked & (blocking::MOV_SS | blocking::STI) == 0
        {
            return Err(self.exit_boundary(reason::INTERRUPT_WINDOW));
        }
        if awake && self.virtual_interrupt_flagged() && blocked & (blocking::MOV_SS | blocking::STI) == 0 {
            self.deliver_virtual_interrupt()?;
            return Ok(true);
        }
        if self.doorbell.bits.load(Ordering::Acquire) & attention::INTERRUPT != 0 {
            let Some(vector) = self.take_interrupt() else { return Ok(true) };
            let stop = self.exit_boundary(reason::EXTERNAL_INTERRUPT);
            self.exit.interruption_info = VALID | u32::from(vector);
            return Err(stop);
        }
        if self.doorbell.bits.load(Ordering::Acquire) & attention::KICK != 0 {
            self.doorbell.bits.fetch_and(!attention::KICK, Ordering::AcqRel);
            return Err(self.exit_boundary(reason::EXTERNAL_INTERRUPT));
        }
        if self.state.activity == 0
            && let Some(payload) = self.instruction_breakpoint()
        {
            self.deliver(debug::debug_exception(payload))?;
            return Ok(true);
        }
        Ok(false)
    }

    /// A VM exit between instructions: no instruction length.
    pub(crate) fn exit_boundary(&mut self, reason: u32) -> Stop {
        self.next_rip = self.state.rip;
        self.events.iterating = false;
        self.exit_insn(reason, 0)
    }

    /// A hardware exception that is not the fault of a plain instruction handler.
    #[cold]
    pub(crate) fn raise_event(&mut self, vector: u8, payload: u64) -> Stop {
        self.fault = Event { vector, kind: EventKind::Hardware, error: None, payload, length: 0 };
        Stop::Fault
    }

    /// #DB as a fault, with DR6 bits.
    #[cold]
    pub(crate) fn raise_debug(&mut self, payload: u64) -> Stop {
        self.raise_event(vector::DB, payload)
    }
}
