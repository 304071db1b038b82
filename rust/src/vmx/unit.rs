//! What a core remembers between VM entries: which VMCS areas passed the checks, the rule that failed, the digest.
//!
//! Nothing of it is architectural: without it an entry checks everything again.

use super::checks::{self, Rule, View};
use super::fields::{END, slot};
use super::vmcs::VmcsPage;
use crate::state::flag;

/// VMCSs remembered. A machine with two levels uses two in turn.
const REMEMBERED: usize = 8;

/// Host state and what changes with the controls: one run of slots.
const STATIC: std::ops::Range<usize> = slot::HOST_CR0..slot::CR0_MASK;
/// Guest state but for RIP, RSP, RFLAGS, non-register state, link pointer and timer.
const GUEST: std::ops::Range<usize> = slot::GUEST_CR0..slot::GUEST_SMBASE;
/// All guest state.
const SAVED: std::ops::Range<usize> = slot::GUEST_RIP..slot::GUEST_PREEMPTION_TIMER + 1;

/// Contents of a VMCS that passed.
struct Passed {
    host_pa: u64,
    slots: [u64; END],
}

/// See the module.
#[derive(Default)]
pub struct Unit {
    passed: Vec<Passed>,
    current: usize,
    /// The rule that the last entry found broken.
    pub broken: Option<&'static Rule>,
    /// Hash of (retired, reason, RIP) of all exits.
    pub digest: u64,
}

impl Unit {
    /// The checks of VM entry, without those whose subject has not changed since it passed.
    pub fn check(&mut self, view: &View<'_>, vmcs: &VmcsPage) -> Option<&'static Rule> {
        let found = self.passed.iter().position(|p| p.host_pa == vmcs.host_pa);
        let (host_changed, guest_changed) = match found {
            Some(at) => {
                let old = &self.passed[at].slots;
                let host_changed = !vmcs.equals(STATIC.start, &old[STATIC]);
                let vm = (vmcs.get(slot::GUEST_RFLAGS) ^ old[slot::GUEST_RFLAGS]) & flag::VM != 0;
                (host_changed, host_changed || vm || !vmcs.equals(GUEST.start, &old[GUEST]))
            }
            None => (true, true),
        };
        let broken = checks::check_changed(view, host_changed, guest_changed);
        self.broken = broken;
        if broken.is_some() {
            return broken;
        }
        self.current = found.unwrap_or_else(|| {
            if self.passed.len() == REMEMBERED {
                self.passed.remove(0);
            }
            self.passed.push(Passed { host_pa: vmcs.host_pa, slots: [0; END] });
            self.passed.len() - 1
        });
        let slots = &mut self.passed[self.current].slots;
        if host_changed {
            vmcs.load(STATIC.start, &mut slots[STATIC]);
        }
        if guest_changed {
            vmcs.load(SAVED.start, &mut slots[SAVED]);
        }
        None
    }

    /// A VM exit saved guest state: what the processor saves need not be checked again.
    pub fn saved(&mut self, vmcs: &VmcsPage) {
        if let Some(passed) = self.passed.get_mut(self.current) {
            vmcs.load(SAVED.start, &mut passed.slots[SAVED]);
        }
    }

    /// Adds an exit to the digest; the VMCS stands for the level, for L0 has one for each.
    pub fn add_exit(&mut self, retired: u64, vmcs: u64, reason: u32, rip: u64) {
        for word in [retired, vmcs, u64::from(reason), rip] {
            self.digest = (self.digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }
}
