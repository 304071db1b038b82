//! VM entry (SDM chapter 27) and the run between entry and exit.
//!
//! Checks, guest state, MSR loading, event injection, then the run loop. The launch state and VMLAUNCH's
//! distinction from VMRESUME are L0's. Ends in `exit`, whatever happens.

use super::bits::{activity, entry as ctl, primary, secondary};
use super::capabilities::REVISION;
use super::checks::View;
use super::controls::Controls;
use super::fields::{header, slot};
use super::information::{ERROR_CODE_VALID, ExitInfo, VALID};
use super::reasons::reason;
use super::vmcs::VmcsPage;
use crate::clock::Clock;
use crate::cpu::{Cpu, attention};
use crate::state::{State, cr, gpr};
use crate::stop::{Event, EventKind, Exec, Stop};

/// How a VM entry ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A VM exit, or a failed entry (bit 31): the exit reason.
    Exit(u32),
    /// Invalid controls (7) or host state (8): the VM-instruction error.
    Invalid(u8),
    /// Silicon lacks the instruction at RIP. The guest state is saved in the VMCS as for an exit.
    Missing,
    /// VMX abort: the number of its reason (SDM 28.7).
    Abort(u32),
}

/// Bits of CR0 that VM entry does not load (SDM 27.3.2.1): ET, reserved ones, NW and CD.
const CR0_KEPT: u64 = 0x7ffa_ffd0;
/// Slots from the ES selector to the IDTR limit: the same order in [`State`] and in the VMCS.
pub(super) const SEGMENT_SLOTS: usize = slot::GUEST_IDTR_LIMIT - slot::GUEST_ES_SELECTOR + 1;
/// First of these slots in [`State`].
pub(super) const STATE_SEGMENTS: usize = std::mem::offset_of!(State, seg) / 8;
const _: () = assert!(std::mem::offset_of!(State, idtr_limit) / 8 == STATE_SEGMENTS + SEGMENT_SLOTS - 1);

impl Cpu {
    /// Enters the guest that the VMCS at `host_pa` describes and runs it until a VM exit, or until `deadline`
    /// (nanoseconds of the core's clock), which like a kick is an external-interrupt exit.
    pub fn enter(&mut self, vmcs: VmcsPage, deadline: u64) -> Outcome {
        self.vmcs = vmcs;
        if let Some(outcome) = self.check_and_refuse() {
            return outcome;
        }
        self.ctl = Controls::unpack(&self.vmcs);
        self.load_guest_state();
        self.set_structures();
        self.vmcs.set(header::LAUNCH_STATE, 1);
        self.mmu_run_begin();
        self.replay_begin();
        self.reset_events();
        self.update_mode();
        self.mmu_enter();
        self.load_pdpte_registers();
        self.load_virtual_interrupts(self.vmcs.get(slot::GUEST_INTERRUPT_STATUS));
        let loaded = self.load_msrs();
        // The stamps enclose what the guest executes: loading and saving its state is the transition's time.
        self.state.entry_time = self.clock.now(self.state.retired);
        let outcome = match loaded {
            Ok(()) => {
                self.start_preemption_timer(self.vmcs.get32(slot::GUEST_PREEMPTION_TIMER));
                let stop = match self.inject_event() {
                    Ok(()) => self.run_until_exit(deadline),
                    Err(stop) => stop,
                };
                self.state.exit_time = self.clock.now(self.state.retired);
                self.vm_exit(stop)
            }
            Err(number) => {
                self.state.exit_time = self.state.entry_time;
                self.fail_entry(reason::ENTRY_MSR_LOAD, number)
            }
        };
        self.mmu_run_end();
        outcome
    }

    /// The checks; how the entry fails, if it does.
    fn check_and_refuse(&mut self) -> Option<Outcome> {
        let memory = std::sync::Arc::clone(&self.memory);
        let read = |pa: u64| memory.read::<u64>(pa);
        let model = std::sync::Arc::clone(&self.model);
        let vmcs = self.vmcs;
        if vmcs.get32(header::REVISION) != REVISION {
            // VMPTRLD would have refused it: there is no current VMCS (VMfailInvalid has no number).
            self.vt.broken = None;
            return Some(Outcome::Invalid(0));
        }
        let rule = self.vt.check(&View::new(&vmcs, &model, &read), &vmcs)?;
        Some(match rule.error() {
            0 => self.fail_entry(reason::ENTRY_GUEST_STATE, rule.qualification),
            error => {
                vmcs.set(slot::VM_INSTRUCTION_ERROR, u64::from(error));
                Outcome::Invalid(error)
            }
        })
    }

    /// A failed entry (SDM 27.8): exit reason and qualification are all that it writes.
    fn fail_entry(&mut self, basic: u32, qualification: u64) -> Outcome {
        let reason = basic | reason::ENTRY_FAILURE;
        self.vmcs.set(slot::EXIT_REASON, u64::from(reason));
        self.vmcs.set(slot::EXIT_QUALIFICATION, qualification);
        Outcome::Exit(reason)
    }

    /// SDM 27.3.2.
    fn load_guest_state(&mut self) {
        let v = self.vmcs;
        let entry = self.ctl.entry;
        let s = &mut *self.state;
        s.rip = v.get(slot::GUEST_RIP);
        s.gpr[gpr::RSP] = v.get(slot::GUEST_RSP);
        s.rflags = v.get(slot::GUEST_RFLAGS);
        s.interruptibility = v.get(slot::GUEST_INTERRUPTIBILITY);
        s.activity = v.get(slot::GUEST_ACTIVITY);
        s.pending_debug = v.get(slot::GUEST_PENDING_DEBUG);
        s.cr0 = v.get(slot::GUEST_CR0) & !CR0_KEPT | s.cr0 & CR0_KEPT | cr::CR0_ET;
        s.cr3 = v.get(slot::GUEST_CR3);
        s.cr4 = v.get(slot::GUEST_CR4);
        let slots = (&raw mut *s).cast::<u64>();
        // SAFETY: SEGMENT_SLOTS slots of `State` from its first segment, as asserted above.
        let segments = unsafe { std::slice::from_raw_parts_mut(slots.add(STATE_SEGMENTS), SEGMENT_SLOTS) };
        v.load(slot::GUEST_ES_SELECTOR, segments);
        s.sysenter_cs = v.get(slot::GUEST_SYSENTER_CS);
        s.sysenter_esp = v.get(slot::GUEST_SYSENTER_ESP);
        s.sysenter_eip = v.get(slot::GUEST_SYSENTER_EIP);
        if entry & ctl::LOAD_DEBUG != 0 {
            // Bits that are fixed in DR7 are forced (SDM 27.3.2.1).
            s.dr7 = v.get(slot::GUEST_DR7) & !0xd000 | 0x400;
            s.debugctl = v.get(slot::GUEST_DEBUGCTL);
        }
        if entry & ctl::LOAD_PAT != 0 {
            s.pat = v.get(slot::GUEST_PAT);
        }
        if entry & ctl::LOAD_EFER != 0 {
            s.efer = v.get(slot::GUEST_EFER);
        } else {
            let long = entry & ctl::IA32E != 0;
            s.efer = s.efer & !cr::EFER_LMA | if long { cr::EFER_LMA } else { 0 };
            if s.cr0 & cr::CR0_PG != 0 {
                s.efer = s.efer & !cr::EFER_LME | if long { cr::EFER_LME } else { 0 };
            }
        }
        s.monitor = 0;
        self.next_rip = self.state.rip;
    }

    /// PAE paging: the PDPTE registers come from the VMCS with EPT, else from memory (SDM 27.3.2.4).
    fn load_pdpte_registers(&mut self) {
        let s = &*self.state;
        let pae = s.cr0 & cr::CR0_PG != 0 && s.cr4 & cr::CR4_PAE != 0 && s.efer & cr::EFER_LMA == 0;
        if !pae {
            return;
        }
        if self.ctl.ept() {
            let v = self.vmcs;
            self.mmu.pdpte =
                [slot::GUEST_PDPTE0, slot::GUEST_PDPTE1, slot::GUEST_PDPTE2, slot::GUEST_PDPTE3].map(|at| v.get(at));
        } else {
            let cr3 = s.cr3;
            // The checks have read the same memory; a table that changed since is as invalid later.
            let _ = self.load_pdptes(cr3);
        }
    }

    /// SDM 27.5 and 27.6: event injection, and a TPR below the threshold.
    fn inject_event(&mut self) -> Exec {
        let both = self.ctl.primary & primary::TPR_SHADOW != 0 && self.ctl.secondary & secondary::APIC_ACCESSES != 0;
        if both && !self.ctl.delivers_interrupts() {
            self.check_tpr_threshold();
        }
        let info = self.vmcs.get32(slot::ENTRY_INTERRUPTION_INFO);
        if info & VALID == 0 {
            return Ok(());
        }
        let kind = match info >> 8 & 7 {
            0 => EventKind::External,
            2 => EventKind::Nmi,
            3 => EventKind::Hardware,
            4 => EventKind::Software,
            5 => EventKind::Privileged,
            6 => EventKind::SoftwareException,
            _ => {
                self.pend_monitor_trap();
                return Ok(());
            }
        };
        let software = matches!(kind, EventKind::Software | EventKind::Privileged | EventKind::SoftwareException);
        let event = Event {
            vector: info as u8,
            kind,
            error: (info & ERROR_CODE_VALID != 0).then(|| self.vmcs.get32(slot::ENTRY_ERROR_CODE)),
            payload: 0,
            length: if software { self.vmcs.get(slot::ENTRY_INSTRUCTION_LENGTH) as u8 } else { 0 },
        };
        // An injected event leaves the processor active (SDM 27.7.2).
        self.state.activity = activity::ACTIVE;
        self.inject(event)
    }

    /// Runs until something ends it; a deadline or a stop is an external-interrupt exit.
    fn run_until_exit(&mut self, mut deadline: u64) -> Stop {
        loop {
            let stop = self.run_begun(deadline);
            if stop != Stop::Again {
                return stop;
            }
            if self.doorbell.bits.load(std::sync::atomic::Ordering::Acquire) & attention::STOP != 0 {
                return self.exit_host_event();
            }
            let now = self.clock.now(self.state.retired);
            if self.replaying() {
                // L0 has made device accesses for the instruction: it must complete, or they would be lost.
                deadline = deadline.max(now.saturating_add(1));
                if matches!(self.clock, Clock::Host { .. }) {
                    deadline = deadline.max(now.saturating_add(1_000_000));
                }
                continue;
            }
            if now >= deadline {
                return self.exit_host_event();
            }
        }
    }

    /// An exit for the host's sake, between instructions.
    fn exit_host_event(&mut self) -> Stop {
        self.exit = ExitInfo { reason: reason::EXTERNAL_INTERRUPT, ..ExitInfo::default() };
        Stop::Exit
    }
}
