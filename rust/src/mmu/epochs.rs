//! Numbers under which translated code remembers where branches lead: one for the lower half of an address space,
//! one for its upper half.
//!
//! Kernels map their code as global pages in the upper half. Such a translation serves every PCID (SDM 4.10.2.4), so
//! what was found through it is remembered for the whole group of address spaces, across MOV to CR3.

use super::space::Mmu;
use super::tlb::{Context, Key};
use crate::cpu::Cpu;

/// Numbers are 11 bits, above two of the view and two that are left to who uses them ([`EPOCH_SPARE`]): bit 15 stays clear,
/// so that canonical addresses under different numbers never look alike.
const NUMBERS: u16 = 1 << 11;
/// The first of two bits of [`Cpu::code_epochs`] that are always 0.
pub const EPOCH_SPARE: u32 = 2;
/// Groups are found anew when there are more.
const GROUPS: usize = 64;

/// A set of pages that may say yes where no is right.
#[derive(Clone, Debug)]
pub struct CodePages([u64; 128]);

impl Default for CodePages {
    fn default() -> Self {
        Self([0; 128])
    }
}

impl CodePages {
    fn bit(linear: u64) -> usize {
        ((linear >> 12) ^ (linear >> 25)) as usize & 8191
    }

    fn mark(&mut self, linear: u64) {
        let n = Self::bit(linear);
        self.0[n / 64] |= 1 << (n % 64);
    }

    /// False: the page was not marked.
    #[must_use]
    pub fn may_have(&self, linear: u64) -> bool {
        let n = Self::bit(linear);
        self.0[n / 64] >> (n % 64) & 1 != 0
    }
}

/// Address spaces that share global translations: all PCIDs of a VPID, under one EPT pointer and in one paging mode.
#[derive(Debug)]
pub struct Group {
    /// Their key, with PCID 0.
    key: Key,
    /// Number of the upper half, 0 when it needs a new one.
    epoch: u16,
    /// Pages that code was fetched from under it.
    code_pages: CodePages,
    /// Some of them are parts of large pages.
    large: bool,
    /// Code of the upper half is not all global: each address space has its own number for it.
    private: bool,
}

impl Group {
    fn forget(&mut self) {
        if self.epoch != 0 {
            self.epoch = 0;
            self.code_pages = CodePages::default();
            self.large = false;
        }
    }
}

fn upper(linear: u64) -> bool {
    (linear as i64) < 0
}

impl Mmu {
    /// The group of an address space.
    pub(super) fn group(&mut self, key: Key) -> usize {
        let key = Key { pcid: 0, ..key };
        if let Some(found) = self.groups.iter().position(|g| g.key == key) {
            return found;
        }
        self.groups.push(Group { key, epoch: 0, code_pages: CodePages::default(), large: false, private: false });
        self.groups.len() - 1
    }

    /// Groups of spaces that are gone are dropped, when there are many.
    pub(super) fn tidy_groups(&mut self) {
        if self.groups.len() > GROUPS {
            self.groups.clear();
            for n in 0..self.contexts.len() {
                self.contexts[n].group = self.group(self.contexts[n].key);
            }
        }
    }

    /// A branch to `linear` of the current space is about to be remembered.
    fn note_code(&mut self, linear: u64, global: bool, large: bool) {
        let Some(context) = self.contexts.get_mut(self.current) else { return };
        let Some(group) = self.groups.get_mut(context.group) else { return };
        if upper(linear) && !group.private {
            if global {
                group.code_pages.mark(linear);
                group.large |= large;
                return;
            }
            group.forget();
            group.private = true;
        }
        context.code_pages.mark(linear);
    }

    /// Translations were dropped: all of the spaces that `matches` names, global ones too, or of one address
    /// there.
    pub(super) fn forget_global_targets(&mut self, linear: Option<u64>, matches: impl Fn(&Key) -> bool) {
        for group in self.groups.iter_mut().filter(|g| matches(&g.key)) {
            match linear {
                None => {
                    group.forget();
                    group.private = false;
                }
                Some(linear) if upper(linear) && (group.large || group.code_pages.may_have(linear)) => group.forget(),
                Some(_) => {}
            }
        }
    }

    /// What is remembered for spaces under an EPT pointer is of no use: they have another of the
    /// [`super::given::WORLDS`], where code is not the same.
    pub(super) fn forget_targets_under(&mut self, eptp: u64) {
        self.contexts.iter_mut().filter(|c| c.key.eptp == eptp).for_each(Context::forget_targets);
        self.groups.iter_mut().filter(|g| g.key.eptp == eptp).for_each(Group::forget);
    }

    fn new_number(&mut self, ran_out: &mut bool) -> u16 {
        self.last_epoch += 1;
        if self.last_epoch >= NUMBERS {
            self.last_epoch = 1;
            self.contexts.iter_mut().for_each(|c| c.epoch = 0);
            self.groups.iter_mut().for_each(|g| g.epoch = 0);
            *ran_out = true;
        }
        self.last_epoch
    }
}

impl Cpu {
    /// Numbers for the lower and the upper half of the present address space, with the privilege, under which
    /// branch targets may be remembered: one changes when a mapping that code was fetched through is dropped.
    /// When numbers run out, `forget` is called: everything remembered is to be dropped.
    pub fn code_epochs(&mut self, forget: impl FnOnce(&mut Self)) -> [u16; 2] {
        let mmu = &mut self.mmu;
        let view = mmu.code_view;
        let current = mmu.current;
        let Some(context) = mmu.contexts.get(current) else { return [0; 2] };
        let group = context.group;
        let mut ran_out = false;
        // Twice, because a new number may have made the other one void.
        for _ in 0..2 {
            if mmu.contexts[current].epoch == 0 {
                mmu.contexts[current].epoch = mmu.new_number(&mut ran_out);
            }
            if mmu.groups[group].epoch == 0 {
                mmu.groups[group].epoch = mmu.new_number(&mut ran_out);
            }
        }
        let lower = mmu.contexts[current].epoch;
        let upper = if mmu.groups[group].private { lower } else { mmu.groups[group].epoch };
        if ran_out {
            forget(self);
        }
        [lower << 4 | view as u16, upper << 4 | view as u16]
    }

    /// A branch to `linear`, where code was just fetched from, is about to be remembered under the numbers that
    /// [`Cpu::code_epochs`] tells afterwards.
    pub fn note_code(&mut self, linear: u64) {
        let mmu = &mut self.mmu;
        let Some(context) = mmu.contexts.get(mmu.current) else { return };
        let (global, large) = context.kind_of(mmu.code_view, linear);
        mmu.note_code(linear, global, large);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: u64 = 0xffff_ffff_8100_0000;

    fn mmu() -> Mmu {
        let mut mmu = Mmu::default();
        for pcid in [1, 2] {
            mmu.select(Key { vpid: 1, pcid, ..Key::default() });
        }
        mmu
    }

    #[test]
    fn global_code_is_remembered_for_all_pcids() {
        let mut mmu = mmu();
        assert_eq!(mmu.contexts[0].group, mmu.contexts[1].group);
        mmu.note_code(KERNEL, true, false);
        mmu.groups[0].epoch = 7;
        mmu.forget_global_targets(Some(0x1000), |_| true);
        mmu.forget_global_targets(Some(KERNEL + 0x1000), |_| true);
        mmu.forget_global_targets(Some(KERNEL), |key| key.vpid == 2);
        assert_eq!(mmu.groups[0].epoch, 7);
        mmu.forget_global_targets(Some(KERNEL), |key| key.vpid == 1);
        assert_eq!(mmu.groups[0].epoch, 0);
    }

    #[test]
    fn code_that_is_not_global_makes_the_upper_half_private() {
        let mut mmu = mmu();
        mmu.note_code(KERNEL, false, false);
        assert!(mmu.groups[0].private);
        assert!(mmu.contexts[1].code_pages.may_have(KERNEL));
        mmu.forget_global_targets(None, |_| true);
        assert!(!mmu.groups[0].private);
    }

    #[test]
    fn numbers_that_ran_out_are_given_anew_to_everybody() {
        let mut mmu = mmu();
        mmu.last_epoch = NUMBERS - 2;
        mmu.contexts[0].epoch = 5;
        let mut ran_out = false;
        assert_eq!(mmu.new_number(&mut ran_out), NUMBERS - 1);
        assert!(!ran_out);
        assert_eq!(mmu.new_number(&mut ran_out), 1);
        assert!(ran_out && mmu.contexts[0].epoch == 0);
    }
}
