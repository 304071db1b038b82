//! What translated code may remember of the TLB: numbers that tell when translations that it was given out are void.
//!
//! Several times over: address spaces under different EPT pointers, as those of a guest and of its guests, keep what they
//! were given while the other ones run ([`WORLDS`]).
//! They are kept apart by who was given them: accesses at CPL 3, and those at CPL 0 by the half of the address space.
//! Kernels map their half as global pages, which every PCID shares (SDM 4.10.2.4), so that it survives switches between
//! processes. Which translations the TLB itself drops is not decided here.

use super::Invalidation;
use super::invalidate::names;
use super::space::Mmu;
use super::tlb::{Context, Key};
use crate::cpu::Cpu;

/// EPT pointers whose address spaces keep what they were given apart; the least recently used one makes room.
pub const WORLDS: usize = 4;

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
    /// Which of the [`WORLDS`] this is about.
    pub world: usize,
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

/// What one of the [`WORLDS`] was given.
#[derive(Debug, Default)]
struct World {
    /// Its EPT pointer.
    eptp: u64,
    /// When it was last selected.
    used: u64,
    /// The address space that was selected last, by its place among the contexts, and its key.
    space: Option<(usize, Key)>,
    stamps: Stamps,
    /// The last pages that were lost, by their number.
    lost: [Option<Lost>; LOST],
    /// What the translations are that supervisor accesses may have been given out under the present stamps.
    supervisor: SupervisorPages,
}

/// See the module.
#[derive(Debug)]
pub struct Given {
    worlds: [World; WORLDS],
    current: usize,
}

impl Default for Given {
    fn default() -> Self {
        let world = |world| World { stamps: Stamps { world, ..Stamps::default() }, ..World::default() };
        Self { worlds: std::array::from_fn(world), current: 0 }
    }
}

impl World {
    fn lose(&mut self, what: Lost) {
        self.lost[self.stamps.lost as usize % LOST] = Some(what);
        self.stamps.lost += 1;
    }

    fn context<'a>(&self, contexts: &'a [Context]) -> Option<&'a Context> {
        self.space.and_then(|(at, _)| contexts.get(at))
    }

    /// What supervisor accesses to a half were given is void; only that of the space selected last may come again.
    fn forget_half(&mut self, half: usize, contexts: &[Context]) {
        self.stamps.supervisor[half] += 1;
        self.supervisor.0[half] = self.context(contexts).map_or_else(Default::default, |c| c.supervisor.0[half]);
    }

    fn forget(&mut self, contexts: &[Context]) {
        self.stamps.user += 1;
        (0..2).for_each(|half| self.forget_half(half, contexts));
    }

    /// The space at a place among the contexts is selected, under `key`.
    fn select(&mut self, at: usize, key: Key, contexts: &[Context]) {
        let before = self.space.replace((at, key));
        if before == Some((at, key)) {
            return;
        }
        self.stamps.user += 1;
        let shares = before.is_some_and(|(_, before)| before.shares_globals(&key));
        for half in 0..2 {
            if shares && !self.supervisor.0[half].not_global {
                let pages = self.context(contexts).map_or_else(Default::default, |c| c.supervisor.0[half]);
                self.supervisor.0[half].add(&pages);
            } else {
                self.forget_half(half, contexts);
            }
        }
    }

    /// `what` was dropped; `base` is where memory begins.
    fn drop_given_out(&mut self, what: &Invalidation, base: u64, contexts: &[Context]) {
        let Some((_, key)) = self.space else { return self.forget(contexts) };
        // Everything that was given out is of this space, or global in one that differs in the PCID alone.
        match *what {
            Invalidation::Ept { eptp } if key.eptp == 0 || !names(eptp, &key) => {}
            Invalidation::Vpid { vpid } | Invalidation::VpidRetainingGlobals { vpid } if key.vpid != vpid => {}
            Invalidation::Address { vpid, .. } if key.vpid != vpid => {}
            Invalidation::Pcid { vpid, pcid } if (key.vpid, key.pcid) != (vpid, pcid) => {}
            Invalidation::AllVpids if key.vpid == 0 => {}
            Invalidation::Pcid { .. } | Invalidation::VpidRetainingGlobals { .. } => {
                self.stamps.user += 1;
                for half in 0..2 {
                    if self.supervisor.0[half].not_global {
                        self.forget_half(half, contexts);
                    }
                }
            }
            Invalidation::Address { linear, .. } => {
                // Accesses at CPL 3 were given this space's translations only, so that it knows of large pages.
                if self.context(contexts).is_none_or(|context| context.may_be_large(linear)) {
                    self.stamps.user += 1;
                } else {
                    self.lose(Lost::User { page: linear & !0xfff });
                }
                if self.supervisor.reach(linear) {
                    self.forget_half((linear >> 63) as usize, contexts);
                }
            }
            Invalidation::WriteProtect { page: Some(page) } => {
                self.lose(Lost::Writes { host: base.wrapping_add(page & !0xfff) });
            }
            _ => self.forget(contexts),
        }
    }
}

impl Mmu {
    /// See [`Stamps`].
    #[inline]
    #[must_use]
    pub fn stamps(&self) -> Stamps {
        self.world().stamps
    }

    /// What was lost since [`Stamps::lost`] was `since`; `None`: it may have been anything.
    #[must_use]
    pub fn lost_since(&self, since: u64) -> Option<impl Iterator<Item = Lost> + '_> {
        let world = self.world();
        let now = world.stamps.lost;
        (now.wrapping_sub(since) <= LOST as u64).then(|| (since..now).filter_map(|n| world.lost[n as usize % LOST]))
    }

    /// Which of the [`WORLDS`] runs.
    #[inline]
    #[must_use]
    pub fn world_number(&self) -> usize {
        self.given.current
    }

    fn world(&self) -> &World {
        &self.given.worlds[self.given.current]
    }

    /// A space was selected; `evicted`: another one had its place among the contexts.
    pub(super) fn space_selected(&mut self, evicted: bool) {
        let (at, clock) = (self.current, self.clock);
        let Some(key) = self.contexts.get(at).map(|context| context.key) else { return };
        let (given, contexts) = (&mut self.given, &self.contexts);
        if evicted {
            for world in given.worlds.iter_mut().filter(|world| world.space.is_some_and(|(place, _)| place == at)) {
                world.space = None;
                world.forget(contexts);
            }
        }
        let mut new = false;
        if given.worlds[given.current].eptp != key.eptp {
            let known = given.worlds.iter().position(|world| world.eptp == key.eptp);
            new = known.is_none();
            let oldest = || (0..WORLDS).min_by_key(|&n| given.worlds[n].used);
            given.current = known.or_else(oldest).unwrap_or_default();
        }
        let world = &mut given.worlds[given.current];
        (world.eptp, world.used) = (key.eptp, clock);
        world.select(at, key, contexts);
        if new {
            self.forget_targets_under(key.eptp);
        }
    }

    /// A supervisor access was given a translation that stays when its privilege is all that is asked for. `global`: what
    /// translated code remembers of it is good for every PCID.
    #[inline]
    pub(super) fn note_supervisor(&mut self, linear: u64, global: bool) {
        self.given.worlds[self.given.current].supervisor.note(linear, global);
        self.contexts[self.current].supervisor.note(linear, global);
    }

    /// `what` was dropped; `base` is where memory begins.
    pub(super) fn drop_given_out(&mut self, what: &Invalidation, base: u64) {
        let (given, contexts) = (&mut self.given, &self.contexts);
        given.worlds.iter_mut().for_each(|world| world.drop_given_out(what, base, contexts));
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
