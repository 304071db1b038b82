//! The checks of VM entry (SDM chapter 27) as a list of rules: each with a name, a section and an error number.
//!
//! Entry uses the list, L0 asks it about a vmcs12, tests break each rule alone. A rule only looks; it loads
//! nothing. Rules of features that no model offers are not here: their controls cannot be 1.

mod controls;
mod guest;
mod host;
mod nonregister;
mod segments;
#[cfg(test)]
mod tests;

use super::bits::{entry, primary, secondary};
use super::fields::slot;
use super::model::{LINEAR_BITS, Model};
use super::vmcs::VmcsPage;

/// What a rule is about: which part of the VMCS must change before it is worth asking again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// VM-execution, VM-exit and VM-entry controls (SDM 27.2.1), but for what changes at each entry.
    Controls,
    /// The same where event injection, the TPR or memory decide: asked at each entry.
    Event,
    /// Host state (SDM 27.2.2 to 27.2.4).
    Host,
    /// Guest registers (SDM 27.3.1.1 to 27.3.1.4 and 27.3.1.6), but for RIP and RFLAGS.
    Guest,
    /// RIP, RFLAGS and non-register state (SDM 27.3.1.4, 27.3.1.5): asked at each entry.
    Execution,
}

/// A rule of VM entry.
#[derive(Debug)]
pub struct Rule {
    /// Short name.
    pub name: &'static str,
    /// Section of the SDM, volume 3.
    pub section: &'static str,
    /// What it demands.
    pub text: &'static str,
    /// When it is asked.
    pub phase: Phase,
    /// Exit qualification of a failed entry (SDM 27.8).
    pub qualification: u64,
    holds: fn(&View<'_>) -> bool,
}

impl Rule {
    /// VM-instruction error number: 7 controls, 8 host state, 0 for guest state (a failed entry with exit
    /// reason 33).
    #[must_use]
    pub const fn error(&self) -> u8 {
        match self.phase {
            Phase::Controls | Phase::Event => super::bits::vm_error::INVALID_CONTROL,
            Phase::Host => super::bits::vm_error::INVALID_HOST,
            Phase::Guest | Phase::Execution => 0,
        }
    }

    /// Whether the VMCS obeys it.
    #[inline]
    #[must_use]
    pub fn holds(&self, view: &View<'_>) -> bool {
        (self.holds)(view)
    }
}

/// A rule with exit qualification 0.
const fn rule(
    phase: Phase,
    section: &'static str,
    name: &'static str,
    text: &'static str,
    holds: fn(&View<'_>) -> bool,
) -> Rule {
    Rule { name, section, text, phase, qualification: 0, holds }
}

/// The lists, in the order in which they are checked.
pub const LISTS: &[&[Rule]] = &{
    let mut lists: [&[Rule]; 5 + segments::LISTS.len()] = [&[]; 5 + segments::LISTS.len()];
    (lists[0], lists[1], lists[2], lists[3]) = (controls::RULES, controls::EVENT_RULES, host::RULES, guest::RULES);
    let mut i = 0;
    while i < segments::LISTS.len() {
        lists[4 + i] = segments::LISTS[i];
        i += 1;
    }
    lists[4 + i] = nonregister::RULES;
    lists
};

/// Every rule, in the order in which they are checked.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    LISTS.iter().flat_map(|list| list.iter())
}

/// The first rule that the VMCS breaks.
#[must_use]
pub fn check_entry(view: &View<'_>) -> Option<&'static Rule> {
    rules().find(|rule| !rule.holds(view))
}

/// The same without what cannot have changed since it last passed: controls and host state, guest registers.
#[must_use]
pub fn check_changed(view: &View<'_>, host: bool, guest: bool) -> Option<&'static Rule> {
    fn broken(list: &'static [Rule], view: &View<'_>) -> Option<&'static Rule> {
        list.iter().find(|rule| !rule.holds(view))
    }
    let mut found = None;
    if host {
        found = broken(controls::RULES, view);
    }
    found = found.or_else(|| broken(controls::EVENT_RULES, view));
    if host {
        found = found.or_else(|| broken(host::RULES, view));
    }
    if guest {
        found = found
            .or_else(|| broken(guest::RULES, view))
            .or_else(|| segments::LISTS.iter().find_map(|list| broken(list, view)));
    }
    found.or_else(|| broken(nonregister::RULES, view))
}

/// A VMCS as the rules look at it.
pub struct View<'a> {
    vmcs: &'a VmcsPage,
    model: &'a Model,
    /// Reads eight bytes of memory at a physical address that the VMCS holds.
    read: &'a dyn Fn(u64) -> u64,
    pin: u32,
    primary: u32,
    secondary: u32,
    exit: u32,
    entry: u32,
}

impl<'a> View<'a> {
    /// A view of `vmcs` for a processor `model`. `read` reads eight bytes at a physical address of the
    /// VMCS's owner: for a vmcs12 that is not host-physical.
    #[must_use]
    pub fn new(vmcs: &'a VmcsPage, model: &'a Model, read: &'a dyn Fn(u64) -> u64) -> Self {
        let primary_bits = vmcs.get32(slot::PRIMARY_CONTROLS);
        Self {
            vmcs,
            model,
            read,
            pin: vmcs.get32(slot::PIN_CONTROLS),
            primary: primary_bits,
            secondary: if primary_bits & primary::SECONDARY != 0 { vmcs.get32(slot::SECONDARY_CONTROLS) } else { 0 },
            exit: vmcs.get32(slot::EXIT_CONTROLS),
            entry: vmcs.get32(slot::ENTRY_CONTROLS),
        }
    }

    fn get(&self, slot: usize) -> u64 {
        self.vmcs.get(slot)
    }

    fn secondary(&self, bit: u32) -> bool {
        self.secondary & bit != 0
    }

    fn primary(&self, bit: u32) -> bool {
        self.primary & bit != 0
    }

    /// With virtual-interrupt delivery the TPR threshold is not looked at.
    fn uses_tpr_threshold(&self) -> bool {
        self.primary(primary::TPR_SHADOW) && !self.secondary(secondary::VIRTUAL_INTERRUPT)
    }

    fn unrestricted(&self) -> bool {
        self.secondary(secondary::UNRESTRICTED)
    }

    /// "IA-32e mode guest".
    fn ia32e(&self) -> bool {
        self.entry & entry::IA32E != 0
    }

    /// Within the physical-address width.
    fn physical(&self, address: u64) -> bool {
        address & !self.model.physical_mask() == 0
    }

    /// A page within the physical-address width.
    fn page(&self, slot: usize) -> bool {
        let address = self.get(slot);
        address & 0xfff == 0 && self.physical(address)
    }

    /// VM-entry interruption information, if valid.
    fn injected(&self) -> Option<Injected> {
        let info = self.vmcs.get32(slot::ENTRY_INTERRUPTION_INFO);
        (info >> 31 != 0).then_some(Injected { vector: info as u8, kind: info >> 8 & 7, info })
    }
}

/// An event to inject.
#[derive(Clone, Copy)]
struct Injected {
    vector: u8,
    kind: u32,
    info: u32,
}

/// Interruption types.
mod kind {
    pub const EXTERNAL: u32 = 0;
    pub const RESERVED: u32 = 1;
    pub const NMI: u32 = 2;
    pub const HARDWARE: u32 = 3;
    pub const SOFTWARE: u32 = 4;
    pub const PRIVILEGED: u32 = 5;
    pub const SOFTWARE_EXCEPTION: u32 = 6;
    pub const OTHER: u32 = 7;
}

/// Canonical for the linear-address width.
const fn canonical(address: u64) -> bool {
    let shift = 64 - LINEAR_BITS;
    ((address << shift) as i64 >> shift) as u64 == address
}

/// A value that IA32_PAT takes: each byte 0, 1, 4, 5, 6 or 7.
const fn pat_valid(pat: u64) -> bool {
    let mut i = 0;
    while i < 8 {
        if !matches!(pat >> (8 * i) & 0xff, 0 | 1 | 4..=7) {
            return false;
        }
        i += 1;
    }
    true
}

/// Bits that IA32_EFER takes: SCE, LME, LMA, NXE.
const EFER_BITS: u64 = 0xd01;
