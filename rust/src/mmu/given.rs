//! What translated code may remember of the TLB: numbers that tell when translations that it was given out are void.
//!
//! They are kept apart by who was given them: accesses at CPL 3, and those at CPL 0 by the half of the address space.
//! Kernels map their half as global pages, which every PCID shares (SDM 4.10.2.4), so that it survives switches between
//! processes. Which translations the TLB itself drops is not decided here.

use super::Invalidation;
use super::invalidate::names;
use super::space::Mmu;
use super::tlb::Key;
use crate::cpu::Cpu;

/// Single pages that are remembered as lost; who looks more seldom has lost everything.
const LOST: usize = 16;

/// Numbers that stay the same while every translation that the TLB gave out for explicit data accesses holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamps {
    /// Of accesses at CPL 3.
    pub user: u64,
    /// Of accesses at CPL 0 (with SMAP: those that it checks), to the lower and to the upper half.
    pub supervisor: [u64; 2],
    /// How often a single page was lost; see [`Mmu::lost_since`].
    pub lost: u64,
}

/// A single page that was lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// Writes to the page at a host pointer have to be noticed again.
    Writes {
        /// The host pointer.
        host: u64,
    },
    /// Accesses at CPL 3 to a linear page.
    User {
        /// Its address.
        page: u64,
    },
}

/// What is known of all translations for supervisor accesses to one half of the address space, in few bits.
#[derive(Clone, Copy, Debug, Default)]
struct Half {
    /// One of them is not global.
    not_global: bool,
    /// The regions of 512 GiB that they lie in.
    regions: [u64; 4],
}

/// What is known of all translations for supervisor accesses, by half.
#[derive(Clone, Copy, Debug, Default)]
pub struct SupervisorPages([Half; 2]);

impl SupervisorPages {
    /// The half, and in it the word and the bit of the region.
    fn region(linear: u64) -> (usize, usize, u64) {
        ((linear >> 63) as usize, (linear >> 45) as usize & 3, 1 << (linear >> 39 & 63))
    }

    #[inline]
    fn note(&mut self, linear: u64, global: bool) {
        let (half, word, bit) = Self::region(linear);
        self.0[half].regions[word] |= bit;
        self.0[half].not_global |= !global;
    }

    /// What is not global was dropped.
    pub fn forget_not_global(&mut self) {
        self.0.iter_mut().for_each(|half| half.not_global = false);
    }

    /// One of them may be in the same large page as `linear`.
    fn reach(&self, linear: u64) -> bool {
        let (half, word, bit) = Self::region(linear);
        self.0[half].regions[word] & bit != 0
    }
}

impl Half {
    /// Those of `other`, too.
    fn add(&mut self, other: &Self) {
        self.not_global |= other.not_global;
        self.regions.iter_mut().zip(other.regions).for_each(|(region, other)| *region |= other);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Given {
    stamps: Stamps,
    /// The last pages that were lost, by their number.
    lost: [Option<Lost>; LOST],
    /// What the translations are that supervisor accesses may have been given out under the present stamps.
    supervisor: SupervisorPages,
}

impl Given {
    fn lose(&mut self, what: Lost) {
        self.lost[self.stamps.lost as usize % LOST] = Some(what);
        self.stamps.lost += 1;
    }
}

impl Mmu {
    /// See [`Stamps`].
    #[inline]
    #[must_use]
    pub fn stamps(&self) -> Stamps {
        self.given.stamps
    }

    /// What was lost since [`Stamps::lost`] was `since`; `None`: it may have been anything.
    #[must_use]
    pub fn lost_since(&self, since: u64) -> Option<impl Iterator<Item = Lost> + '_> {
        let now = self.given.stamps.lost;
        (now.wrapping_sub(since) <= LOST as u64)
            .then(|| (since..now).filter_map(|n| self.given.lost[n as usize % LOST]))
    }

    /// What supervisor accesses to a half were given is void; only that of the current space may come again.
    fn forget_half(&mut self, half: usize) {
        self.given.stamps.supervisor[half] += 1;
        self.given.supervisor.0[half] =
            self.contexts.get(self.current).map_or_else(Default::default, |c| c.supervisor.0[half]);
    }

    fn forget_given(&mut self) {
        self.given.stamps.user += 1;
        (0..2).for_each(|half| self.forget_half(half));
    }

    /// Another space was selected; `before` is the key of the one before, if any.
    pub(super) fn space_changed(&mut self, before: Option<Key>) {
        self.given.stamps.user += 1;
        let Some(context) = self.contexts.get(self.current) else { return };
        let (shares, pages) = (before.is_some_and(|before| before.shares_globals(&context.key)), context.supervisor);
        for half in 0..2 {
            if shares && !self.given.supervisor.0[half].not_global {
                self.given.supervisor.0[half].add(&pages.0[half]);
            } else {
                self.forget_half(half);
            }
        }
    }

    /// A supervisor access was given a translation that stays when its privilege is all that is asked for.
    #[inline]
    pub(super) fn note_supervisor(&mut self, linear: u64, global: bool) {
        self.given.supervisor.note(linear, global);
        self.contexts[self.current].supervisor.note(linear, global);
    }

    /// `what` was dropped; `base` is where memory begins.
    pub(super) fn drop_given_out(&mut self, what: &Invalidation, base: u64) {
        let Some(context) = self.contexts.get(self.current) else { return self.forget_given() };
        // Everything that was given out is of this space, or global in one that differs in the PCID alone.
        let key = context.key;
        match *what {
            Invalidation::Ept { eptp } if key.eptp == 0 || !names(eptp, &key) => {}
            Invalidation::Vpid { vpid } | Invalidation::VpidRetainingGlobals { vpid } if key.vpid != vpid => {}
            Invalidation::Address { vpid, .. } if key.vpid != vpid => {}
            Invalidation::Pcid { vpid, pcid } if (key.vpid, key.pcid) != (vpid, pcid) => {}
            Invalidation::AllVpids if key.vpid == 0 => {}
            Invalidation::Pcid { .. } | Invalidation::VpidRetainingGlobals { .. } => {
                self.given.stamps.user += 1;
                for half in 0..2 {
                    if self.given.supervisor.0[half].not_global {
                        self.forget_half(half);
                    }
                }
            }
            Invalidation::Address { linear, .. } => {
                // Accesses at CPL 3 were given this space's translations only, so that it knows of large pages.
                if context.may_be_large(linear) {
                    self.given.stamps.user += 1;
                } else {
                    self.given.lose(Lost::User { page: linear & !0xfff });
                }
                if self.given.supervisor.reach(linear) {
                    self.forget_half((linear >> 63) as usize);
                }
            }
            Invalidation::WriteProtect { page: Some(page) } => {
                self.given.lose(Lost::Writes { host: base.wrapping_add(page & !0xfff) });
            }
            _ => self.forget_given(),
        }
    }
}

impl Cpu {
    /// See [`Stamps`]. Those of supervisor accesses survive a switch to another address space that shares the global
    /// translations, where no other was given out, and the loss of addresses far from all of them.
    #[inline]
    #[must_use]
    pub fn translation_stamps(&self) -> Stamps {
        self.mmu.stamps()
    }
}
