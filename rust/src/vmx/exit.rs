//! VM exit (SDM chapter 28): exit information, guest state, MSR storing.
//!
//! Host state is not loaded: the caller of `enter` is the host. What the exit reports was put into
//! `Cpu::exit` where it was caused.

use super::bits::{entry, exit as ctl};
use super::capabilities::misc;
use super::entry::{Outcome, SEGMENT_SLOTS, STATE_SEGMENTS};
use super::fields::{header, slot};
use super::information::{VALID, interruption};
use super::reasons::reason;
use crate::cpu::Cpu;
use crate::state::{cr, flag, gpr};
use crate::stop::{EventKind, Stop, vector};

/// Exit qualification of EPT violations, bit 12: NMI unblocking due to IRET.
const EPT_NMI_UNBLOCKING: u64 = 1 << 12;
/// What an interrupt controller answers when it has nothing.
const SPURIOUS_VECTOR: u32 = 0xff;
/// VMX-abort indicator: a guest MSR could not be saved (SDM 28.7).
const ABORT_SAVING_MSRS: u32 = 1;

impl Cpu {
    /// Ends the run that `stop` ended: a VM exit, or the stop for an instruction that silicon lacks.
    pub(super) fn vm_exit(&mut self, stop: Stop) -> Outcome {
        if stop != Stop::Exit {
            self.save_guest_state();
            return Outcome::Missing;
        }
        self.write_information();
        self.save_guest_state();
        self.vt.saved(&self.vmcs);
        let reason = self.exit.reason;
        self.vt.add_exit(self.state.retired, self.vmcs.host_pa, reason, self.state.rip);
        if self.store_msrs().is_err() {
            let abort = u64::from(ABORT_SAVING_MSRS) << 32;
            self.vmcs.set(header::REVISION, self.vmcs.get(header::REVISION) & 0xffff_ffff | abort);
            return Outcome::Abort(ABORT_SAVING_MSRS);
        }
        Outcome::Exit(reason)
    }

    /// SDM 28.2: basic information, the event that was being delivered, interruption information.
    fn write_information(&mut self) {
        let (mut vectoring, mut vectoring_error) = (0, 0);
        let exit = &mut self.exit;
        match self.delivering {
            Some(event) => {
                vectoring = interruption(&event);
                vectoring_error = event.error.unwrap_or(0);
                if matches!(event.kind, EventKind::Software | EventKind::SoftwareException | EventKind::Privileged) {
                    exit.instruction_length = u32::from(event.length);
                }
                if event.kind == EventKind::Nmi {
                    // The delivery did not complete: blocking by NMI did not begin (SDM 28.3.4).
                    self.state.interruptibility &= !super::bits::interruptibility::NMI;
                }
            }
            None if self.events.iret_unblocked_nmi => match exit.reason {
                reason::EPT_VIOLATION => exit.qualification |= EPT_NMI_UNBLOCKING,
                reason::EXCEPTION_OR_NMI if exit.interruption_info as u8 != vector::DF => {
                    exit.interruption_info |= super::information::NMI_UNBLOCKING;
                }
                _ => {}
            },
            None => {}
        }
        if self.exit.reason == reason::EXTERNAL_INTERRUPT {
            // A kick and a deadline have no vector: acknowledging gives the spurious one.
            self.exit.interruption_info = match self.exit.interruption_info {
                _ if self.ctl.exit & ctl::ACKNOWLEDGE == 0 => 0,
                0 => SPURIOUS_VECTOR | VALID,
                info => info,
            };
        }
        self.save_resume_flag(vectoring);
        let exit = &self.exit;
        let information = [
            u64::from(exit.reason),
            exit.qualification,
            exit.guest_physical,
            exit.guest_linear,
            u64::from(exit.interruption_info),
            u64::from(exit.interruption_error),
            u64::from(vectoring),
            u64::from(vectoring_error),
            u64::from(exit.instruction_length),
            u64::from(exit.instruction_info),
        ];
        const _: () = assert!(slot::EXIT_INSTRUCTION_INFO == slot::EXIT_REASON + 9);
        self.vmcs.store(slot::EXIT_REASON, &information);
        // The valid bit of the injected event is cleared (SDM 28.2.5).
        let injected = self.vmcs.get(slot::ENTRY_INTERRUPTION_INFO);
        self.vmcs.set(slot::ENTRY_INTERRUPTION_INFO, injected & !u64::from(VALID));
    }

    /// RF in the saved RFLAGS (SDM 28.3.3): 1 for what restarts the instruction, as its delivery would push.
    fn save_resume_flag(&mut self, vectoring: u32) {
        let restarts = match self.exit.reason {
            reason::EXCEPTION_OR_NMI => {
                let info = self.exit.interruption_info;
                info >> 8 & 7 == EventKind::Hardware as u32 && info as u8 != vector::DB && vectoring & VALID == 0
            }
            reason::EPT_VIOLATION | reason::EPT_MISCONFIGURATION | reason::APIC_ACCESS => vectoring & VALID == 0,
            _ => false,
        };
        if restarts {
            self.state.rflags |= flag::RF;
        }
    }

    /// SDM 28.3.
    fn save_guest_state(&mut self) {
        let v = self.vmcs;
        let s = &*self.state;
        let execution = [s.rip, s.gpr[gpr::RSP], s.rflags, s.interruptibility, s.activity, s.pending_debug];
        const _: () = assert!(slot::GUEST_PENDING_DEBUG == slot::GUEST_RIP + 5);
        v.store(slot::GUEST_RIP, &execution);
        v.store(slot::GUEST_CR0, &[s.cr0, s.cr3, s.cr4]);
        const _: () = assert!(slot::GUEST_CR4 == slot::GUEST_CR0 + 2);
        let slots = (&raw const *s).cast::<u64>();
        // SAFETY: SEGMENT_SLOTS slots of `State` from its first segment, as `entry` asserts.
        let segments = unsafe { std::slice::from_raw_parts(slots.add(STATE_SEGMENTS), SEGMENT_SLOTS) };
        v.store(slot::GUEST_ES_SELECTOR, segments);
        v.store(slot::GUEST_SYSENTER_CS, &[s.sysenter_cs, s.sysenter_esp, s.sysenter_eip]);
        const _: () = assert!(slot::GUEST_SYSENTER_EIP == slot::GUEST_SYSENTER_CS + 2);
        let exit = self.ctl.exit;
        if exit & ctl::SAVE_DEBUG != 0 {
            v.set(slot::GUEST_DR7, s.dr7);
            v.set(slot::GUEST_DEBUGCTL, s.debugctl);
        }
        if exit & ctl::SAVE_PAT != 0 {
            v.set(slot::GUEST_PAT, s.pat);
        }
        if exit & ctl::SAVE_EFER != 0 {
            v.set(slot::GUEST_EFER, s.efer);
        }
        if exit & ctl::SAVE_TIMER != 0 {
            let left = if self.exit.reason == reason::PREEMPTION_TIMER { 0 } else { self.preemption_timer_value() };
            v.set(slot::GUEST_PREEMPTION_TIMER, u64::from(left));
        }
        if let Some(status) = self.interrupt_status() {
            v.set(slot::GUEST_INTERRUPT_STATUS, status);
        }
        let long = s.efer & cr::EFER_LMA != 0;
        if self.model.vmx.misc & misc::EXIT_STORES_LMA != 0 {
            let controls = v.get(slot::ENTRY_CONTROLS) & !u64::from(entry::IA32E);
            v.set(slot::ENTRY_CONTROLS, controls | if long { u64::from(entry::IA32E) } else { 0 });
        }
        if self.ctl.ept() && !long && s.cr0 & cr::CR0_PG != 0 && s.cr4 & cr::CR4_PAE != 0 {
            v.store(slot::GUEST_PDPTE0, &self.mmu.pdpte);
        }
    }
}
