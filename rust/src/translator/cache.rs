//! The fragments of one core: found by host-physical address, linked to each other, dropped when the code
//! under them changes or the cache is full.

use iced_x86::Mnemonic;

use super::asm::Asm;
use super::far::{COUNTERS, FarLink};
use super::fragment::{self, Context, Goal, Place32};
use super::front::{Front, Known};
use super::glue::{self, Glue};
use super::hot::Hot;
use super::index::{Index, NOBODY, Place, key};
use super::variant::PLAIN;
use crate::decode::{Block, Decoded, Insn, ONE_PAGE};
use crate::host::code_memory::{CodeMemory, CodeMemoryError};
use crate::host::time;

/// Host code kept by default, in bytes: what L1 and L2 that both compile have warm (gcc in two levels takes 130 MB).
pub const DEFAULT_BYTES: usize = 256 << 20;
/// The least: the shared code and a few fragments.
const LEAST_BYTES: usize = 1 << 20;
/// The most: branches between fragments reach 2 GB.
const MOST_BYTES: usize = 1 << 30;
/// Times that a block is interpreted before it is translated, by default.
const WARM: u16 = 3;
/// Room that the largest fragment may need.
const MARGIN: usize = 256 << 10;
/// Stale fragments that lead to the one that took their place; from older ones the way is through the run loop.
const OLD: usize = 4;
/// Bytes at a fragment's entry that a stale fragment's way out replaces.
const PATCH: usize = 5;

/// One fragment.
pub struct Fragment {
    /// Where it enters with flags in the host.
    pub entry: *const u8,
    /// Where it enters with saved flags.
    pub entry_saved: *const u8,
    /// The instructions, for helpers; the block shares them.
    pub insns: Decoded,
    /// Where its host code begins, and its length: in line, and what is rarely executed.
    pub(super) line: (*const u8, u32),
    pub(super) cold: (*const u8, u32),
    pub(super) variant: u8,
    /// Host-physical address of the first.
    pub host_pa: u64,
    /// Where its one instruction goes on in the next page, or `ONE_PAGE`.
    second_pa: u64,
    /// Ways out for the two entries.
    outs: [*const u8; 2],
    /// Its entries lead out; `kept` are the bytes that stood there.
    pub(super) stale: bool,
    kept: [[u8; PATCH]; 2],
    /// What it takes for granted of the instruction behind it: see `behind_sti`.
    harmless_next: bool,
    /// Those whose place it took, the most recent one first: their entries lead here.
    old: [u32; OLD],
}

impl Fragment {
    fn known(&self) -> Known {
        Known { entry: self.entry, entry_saved: self.entry_saved, len: self.insns.len() as u32 }
    }
}

/// What is to be looked at before a fragment goes on behind an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changes {
    /// Only what any instruction may change.
    Little,
    /// What MSRs say.
    Msrs,
    /// Whether vector instructions may run natively.
    Vector,
}

impl Changes {
    fn by(mnemonic: Mnemonic) -> Self {
        use Mnemonic as M;
        match mnemonic {
            M::Wrmsr => Self::Msrs,
            M::Ldmxcsr | M::Vldmxcsr | M::Fxrstor | M::Fxrstor64 => Self::Vector,
            M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64 => Self::Vector,
            _ => Self::Little,
        }
    }
}

/// Where a helper is called, with all that the helper asks: who comes here has been elsewhere meanwhile, and each thing that is
/// looked up is a miss of the host's cache.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// The instruction, which its fragment keeps: sites and fragments are dropped together.
    pub insn: *const Insn,
    /// Where it goes on; null: leave.
    pub resume: *const u8,
    /// Offset of the instruction in its page.
    pub offset: u16,
    /// Instructions of the fragment behind it.
    pub rest: u8,
    /// What the fragment takes for granted,
    pub variant: u8,
    /// and what the instruction may have changed of it.
    pub changes: Changes,
    /// What it is called.
    pub mnemonic: Mnemonic,
}

/// A direct branch that may be linked.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Address of its rel32.
    pub at: *const u8,
    /// Host-physical address of its target.
    pub target: u64,
    /// Variant of the fragment that it wants.
    pub variant: u8,
    /// The next one that waits for that fragment, or `NOBODY`.
    next: u32,
    /// Flags are in `saved_flags` there.
    pub saved: bool,
}

/// A key that no fragment has.
const NO_KEY: u64 = !0;

/// What the translator has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Fragments made.
    pub fragments: u64,
    /// Guest instructions in them, and how many of these run as themselves.
    pub instructions: u64,
    /// See `instructions`.
    pub native: u64,
    /// Bytes of host code made.
    pub bytes: u64,
    /// Branch targets that were not in their table, and were found for it.
    pub resolved: u64,
    /// Times the whole cache was dropped.
    pub evictions: u64,
    /// Fragments that went stale because their code was written.
    pub stale: u64,
    /// Nanoseconds spent translating.
    pub translating_ns: u64,
    /// Times translated code was entered.
    pub entries: u64,
    /// Instructions that fragments gave to the interpreter.
    pub helped: u64,
}

/// Fragments and their memory.
pub struct Translator {
    pub(super) code: CodeMemory,
    pub(super) glue_base: *const u8,
    /// Shared code.
    pub glue: Glue,
    /// All fragments, by number.
    pub fragments: Vec<Fragment>,
    pub(super) index: Index,
    /// Fresh fragments of one page.
    front: Front,
    /// A key whose fragment was asked for in vain: who does not find it in translated code asks again from without.
    missed: u64,
    /// Helper calls, by number.
    pub sites: Vec<Site>,
    /// Direct branches, by number.
    pub links: Vec<Link>,
    /// Those to other pages, by number.
    pub(super) far: Vec<FarLink>,
    pub(super) scratch: fragment::Scratch,
    limit: usize,
    /// Flags are exact wherever the state can be seen: for lockstep with the interpreter.
    pub exact_flags: bool,
    /// Times that a block is interpreted before it is translated.
    pub warm: u16,
    /// Calls of helpers by mnemonic: what to translate next.
    pub helped_by: Vec<u64>,
    /// What it has done.
    pub statistics: Statistics,
    /// Position in the memory's log of written code.
    pub seen: u64,
    /// What is executed next does not group its accesses to the stack.
    pub plain: bool,
}

// SAFETY: the pointers lead into code memory that this value owns.
unsafe impl Send for Translator {}

impl Translator {
    /// Takes executable memory, about `bytes` of it, and generates the shared code.
    ///
    /// # Errors
    /// When the host refuses executable memory.
    pub fn new(helper: u64, bytes: usize) -> Result<Self, CodeMemoryError> {
        let limit = bytes.clamp(LEAST_BYTES, MOST_BYTES).next_multiple_of(4096);
        let mut code = CodeMemory::new(limit)?;
        let mut asm = Asm::default();
        let glue = glue::generate(&mut asm, is_x86_feature_detected!("avx"), helper);
        let glue_base = code.append(&asm.code).unwrap_or(std::ptr::null());
        let front = Front::new(glue_base).map_err(CodeMemoryError::no_memory)?;
        Ok(Self {
            code,
            glue_base,
            glue,
            fragments: Vec::new(),
            index: Index::default(),
            front,
            missed: NO_KEY,
            sites: Vec::new(),
            links: Vec::new(),
            far: Vec::new(),
            scratch: fragment::Scratch::default(),
            limit,
            exact_flags: false,
            warm: WARM,
            helped_by: vec![0; 4096],
            statistics: Statistics::default(),
            seen: 0,
            plain: false,
        })
    }

    /// Bytes of host code in use and the limit.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.limit - self.code.free(), self.limit)
    }

    /// Address of shared code at an offset of [`Glue`].
    #[must_use]
    pub fn shared(&self, offset: usize) -> *const u8 {
        self.glue_base.wrapping_add(offset)
    }

    /// The fragment at `host_pa` in one page, fresh.
    #[inline]
    #[must_use]
    pub fn find(&mut self, host_pa: u64, variant: u8) -> Option<Known> {
        let key = key(host_pa, false, variant);
        if key == self.missed {
            return None;
        }
        self.front.find(key).or_else(|| self.find_slow(key))
    }

    #[cold]
    fn find_slow(&mut self, key: u64) -> Option<Known> {
        let known = self.index.get(key).and_then(|place| self.fresh(place));
        match known {
            Some(known) => self.front.put(key, known),
            None => self.missed = key,
        }
        known
    }

    /// The fragment of a place, if there is one that is fresh.
    fn fresh(&self, place: Place) -> Option<Known> {
        let fragment = self.fragments.get(place.fragment as usize)?;
        (!fragment.stale).then(|| fragment.known())
    }

    /// The fragment of a block that is fresh.
    #[inline]
    #[must_use]
    pub fn find_block(&mut self, block: &Block, variant: u8) -> Option<Known> {
        if block.second_pa == ONE_PAGE {
            return self.find(block.host_pa, variant);
        }
        let place = self.index.get(key(block.host_pa, true, variant))?;
        let fragment = self.fragments.get(place.fragment as usize)?;
        (!fragment.stale && fragment.second_pa == block.second_pa).then(|| fragment.known())
    }

    /// Drops everything.
    pub fn clear(&mut self, hot: &mut Hot) {
        self.fragments.clear();
        self.index.clear();
        self.front.clear();
        self.missed = NO_KEY;
        self.sites.clear();
        self.links.clear();
        self.far.clear();
        self.code.clear();
        // The shared code is made again at the same address.
        let mut asm = Asm::default();
        let helper = super::run::helper_address();
        self.glue = glue::generate(&mut asm, is_x86_feature_detected!("avx"), helper);
        self.glue_base = self.code.append(&asm.code).unwrap_or(std::ptr::null());
        hot.forget_targets();
        self.statistics.evictions += 1;
    }

    /// Translates a block that is fresh; `harmless_next`: see `behind_sti`. `None`: it is not to be had now.
    pub fn make(&mut self, block: &Block, variant: u8, harmless_next: bool, hot: &mut Hot) -> Option<Known> {
        let host_pa = block.host_pa;
        let crossing = block.second_pa != ONE_PAGE;
        let key = key(host_pa, crossing, variant);
        let place = self.index.place(key);
        let (number, mut waiting) = (place.fragment, place.waiting);
        let mut old = None;
        if let Some(f) = self.fragments.get(number as usize)
            && f.second_pa == block.second_pa
        {
            if block.insns.bytes().starts_with(f.insns.bytes()) && f.harmless_next == harmless_next {
                let known = f.known();
                place.waiting = NOBODY;
                self.missed = NO_KEY;
                self.revive(number);
                self.link_waiting(known, waiting);
                return Some(known);
            }
            self.page_written(host_pa / 4096);
            old = Some(number);
        }
        let begin = time::now();
        if self.code.free() < MARGIN {
            self.clear(hot);
            (old, waiting) = (None, NOBODY);
        }
        let first_link = self.links.len() as u32;
        let context = Context {
            glue_base: self.glue_base as u64,
            glue: self.glue,
            first_site: self.sites.len() as u32,
            first_link,
            first_far: self.far.len() as u32,
            variant,
            harmless_next,
            exact_flags: self.exact_flags,
        };
        let insns = match block.left.get() {
            0 => block.insns.clone(),
            // What follows a branch that was taken is another fragment's.
            left => block.insns.up_to(usize::from(left)),
        };
        fragment::translate(&insns, insns.bytes(), host_pa % 4096, &context, &mut self.scratch);
        let count = insns.len() as u64;
        let draft = &self.scratch.draft;
        let line = self.code.append(&draft.code)?;
        let cold = self.code.append_cold(&draft.cold)?;
        let address = |place: Place32| match place {
            Place32::Line(at) => line.wrapping_add(at as usize),
            Place32::Cold(at) => cold.wrapping_add(at as usize),
        };
        for &(at, goal) in &draft.branches {
            let at = address(at);
            let target = match goal {
                Goal::Own(place) => address(place) as i64,
                Goal::Address(target) => target as i64,
            };
            self.code.overwrite(at, &((target - (at as i64 + 4)) as i32).to_le_bytes());
        }
        let number = self.fragments.len() as u32;
        for site in &draft.sites {
            let resume = site.resume.map_or(std::ptr::null(), |at| line.wrapping_add(at as usize));
            let insn = &insns[usize::from(site.index)];
            let (rest, mnemonic) = (insns.len() - usize::from(site.index) - 1, insn.iced.mnemonic());
            self.sites.push(Site {
                insn,
                resume,
                offset: site.offset,
                rest: rest as u8,
                variant,
                changes: Changes::by(mnemonic),
                mnemonic,
            });
        }
        for link in &draft.links {
            let target = host_pa & !4095 | u64::from(link.target);
            let variant = variant & !PLAIN | if link.plain { PLAIN } else { 0 };
            self.links.push(Link { at: address(link.at), target, variant, saved: link.saved, next: NOBODY });
        }
        for far in &draft.far {
            hot.countdown[self.far.len() % COUNTERS] = 1;
            let in_line = |at: u32| line.wrapping_add(at as usize);
            self.far.push(FarLink::new(far, in_line));
        }
        let fragment = Fragment {
            entry: line.wrapping_add(draft.entry as usize),
            entry_saved: line.wrapping_add(draft.entry_saved as usize),
            insns,
            line: (line, draft.code.len() as u32),
            cold: (cold, draft.cold.len() as u32),
            variant,
            host_pa,
            second_pa: block.second_pa,
            outs: draft.stale.map(|at| cold.wrapping_add(at as usize)),
            stale: false,
            kept: [[0; PATCH]; 2],
            harmless_next,
            old: [NOBODY; OLD],
        };
        let known = fragment.known();
        self.fragments.push(fragment);
        let s = &mut self.statistics;
        s.fragments += 1;
        s.instructions += count;
        s.native += u64::from(draft.native);
        s.bytes += (draft.code.len() + draft.cold.len()) as u64;
        if let Some(old) = old {
            self.redirect(old, number);
        }
        let place = self.index.place(key);
        (place.fragment, place.waiting) = (number, NOBODY);
        self.missed = NO_KEY;
        if crossing {
            self.index.cross([host_pa / 4096, block.second_pa / 4096], number, old);
        } else {
            self.front.put(key, known);
            self.link_waiting(known, waiting);
        }
        for link in first_link..self.links.len() as u32 {
            self.link_or_wait(link, key);
        }
        self.statistics.translating_ns += time::now().saturating_sub(begin);
        Some(known)
    }

    /// Links a new branch, or lets it wait for its target; `own` is the key of the fragment that it is in.
    fn link_or_wait(&mut self, number: u32, own: u64) {
        let link = self.links[number as usize];
        let wanted = key(link.target, false, link.variant);
        if link.variant & PLAIN != 0 && wanted == own {
            return; // out of a stale fragment, to what will take its place
        }
        let place = self.index.place(wanted);
        match self.fragments.get(place.fragment as usize) {
            Some(fragment) if !fragment.stale => {
                let to = fragment.known();
                self.link(link, to);
            }
            _ => self.links[number as usize].next = std::mem::replace(&mut place.waiting, number),
        }
    }

    /// Links those that waited for a fragment, from `next` on.
    fn link_waiting(&mut self, to: Known, mut next: u32) {
        while let Some(&link) = self.links.get(next as usize) {
            self.link(link, to);
            next = link.next;
        }
    }

    /// Lets a direct branch go straight to a fragment.
    pub fn link(&mut self, link: Link, to: Known) {
        let entry = if link.saved { to.entry_saved } else { to.entry };
        let relative = (entry as i64 - (link.at as i64 + 4)) as i32;
        self.code.overwrite(link.at, &relative.to_le_bytes());
    }

    /// The code of a page was written: its fragments lead out at once wherever they are entered.
    pub fn page_written(&mut self, page: u64) {
        for number in self.index.of_page(page) {
            let f = &mut self.fragments[number as usize];
            if f.stale {
                continue;
            }
            f.stale = true;
            self.statistics.stale += 1;
            if f.second_pa == ONE_PAGE {
                self.front.forget(key(f.host_pa, false, f.variant));
            }
            for (n, entry) in [f.entry, f.entry_saved].into_iter().enumerate() {
                f.kept[n] = self.code.read(entry, PATCH).try_into().unwrap_or_default();
            }
            lead(&mut self.code, f, f.outs);
        }
    }

    /// Whoever enters the old fragment, or one whose place that took, goes to the new one of the same address.
    fn redirect(&mut self, old: u32, new: u32) {
        let [first, second, third, last] = std::mem::replace(&mut self.fragments[old as usize].old, [NOBODY; OLD]);
        self.fragments[new as usize].old = [old, first, second, third];
        let to = &self.fragments[new as usize];
        for number in [old, first, second, third, last] {
            let Some(from) = self.fragments.get(number as usize) else { continue };
            // A fragment may not know where the flags are.
            let knows = from.entry != from.entry_saved || to.entry == to.entry_saved;
            let leads = knows && number != last;
            lead(&mut self.code, from, if leads { [to.entry, to.entry_saved] } else { from.outs });
        }
    }

    fn revive(&mut self, number: u32) {
        let f = &mut self.fragments[number as usize];
        if f.stale {
            f.stale = false;
            for n in [1, 0] {
                let entry = [f.entry, f.entry_saved][n];
                self.code.overwrite(entry, &f.kept[n]);
            }
        }
    }
}

/// A fragment's two entries lead elsewhere.
fn lead(code: &mut CodeMemory, from: &Fragment, to: [*const u8; 2]) {
    for (entry, to) in [from.entry, from.entry_saved].into_iter().zip(to) {
        code.overwrite(entry, &jump(entry, to));
    }
}

/// JMP rel32 at `from`.
fn jump(from: *const u8, to: *const u8) -> [u8; PATCH] {
    let mut code = [0xe9, 0, 0, 0, 0];
    code[1..].copy_from_slice(&((to as i64 - (from as i64 + 5)) as i32).to_le_bytes());
    code
}
