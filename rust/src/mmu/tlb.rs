//! One address space's software TLB: three direct-mapped arrays of entries that translated code can
//! compare and add inline.
//!
//! An entry's tags are linear page addresses, so that one compare checks validity, permission and (through
//! the address of the last byte) that the access stays in the page. It does not know how to fill itself.

use super::epochs::CodePages;
use super::given::SupervisorPages;

/// Entries of one array.
pub const ENTRIES: usize = 4096;

/// A tag for slot `n` that no address matches which looks there, neither by its page nor by its distance: it is
/// not canonical, and its page belongs into another slot.
#[inline]
#[must_use]
pub const fn invalid(n: usize) -> u64 {
    1 << 63 | (((n ^ (ENTRIES / 2)) & (ENTRIES - 1)) as u64) << 12
}

/// In an [`invalid`] tag for instruction fetches: translated code asks the TLB for each access to this page, and remembers
/// it nowhere. See [`Context::passing`].
pub const PASSING: u64 = 1;

/// The tag is one of [`invalid`].
#[inline]
#[must_use]
pub const fn is_invalid(tag: u64) -> bool {
    tag >> 62 == 2
}

/// One translation. A tag holds the linear page address if that kind of access may take the fast path.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub struct TlbEntry {
    /// Tag for data reads.
    pub read: u64,
    /// Tag for data writes.
    pub write: u64,
    /// Tag for instruction fetches.
    pub exec: u64,
    /// Host pointer of the page.
    pub host: u64,
}

impl TlbEntry {
    /// Matches nothing in slot `n`.
    #[must_use]
    pub const fn empty(n: usize) -> Self {
        Self { read: invalid(n), write: invalid(n), exec: invalid(n), host: 0 }
    }

    /// Host pointer minus linear address, for an address in the page (wrapping).
    #[inline(always)]
    #[must_use]
    pub fn addend(&self, linear: u64) -> u64 {
        self.host.wrapping_sub(linear & !0xfff)
    }

    /// Translated code shall not remember this page: see [`PASSING`]. False: it may, as code it can fetch.
    pub fn set_passing(&mut self) -> bool {
        let can = is_invalid(self.exec);
        if can {
            self.exec |= PASSING;
        }
        can
    }

    /// The linear page this entry is about, if any.
    fn page(&self) -> Option<u64> {
        [self.read, self.write, self.exec].into_iter().find(|&tag| !is_invalid(tag))
    }
}

/// Index of a linear address in an array.
#[inline(always)]
#[must_use]
pub fn slot(linear: u64) -> usize {
    (linear >> 12) as usize & (ENTRIES - 1)
}

/// An array in which every access misses.
pub static NOTHING: [TlbEntry; ENTRIES] = {
    let mut array = [TlbEntry::empty(0); ENTRIES];
    let mut n = 0;
    while n < ENTRIES {
        array[n] = TlbEntry::empty(n);
        n += 1;
    }
    array
};

/// Which array an access uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum View {
    /// CPL 3.
    User = 0,
    /// CPL below 3 where user pages may be touched (CR4.SMAP = 0 or RFLAGS.AC = 1).
    Supervisor = 1,
    /// CPL below 3, or an implicit access, with SMAP enforced.
    SupervisorSmap = 2,
}

/// What tells address spaces apart (SDM 29.4.1, 4.10.1): TLB tags, and the bits that change what a walk means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Key {
    /// EPT pointer, 0 without EPT.
    pub eptp: u64,
    /// VPID, 0 when disabled.
    pub vpid: u16,
    /// PCID, 0 unless CR4.PCIDE.
    pub pcid: u16,
    /// Paging bits of CR0, CR4 and EFER, packed.
    pub bits: u16,
}

impl Key {
    /// The two differ in their PCID at most: global translations of one are good for the other (SDM 4.10.2.4).
    #[must_use]
    pub fn shares_globals(&self, other: &Self) -> bool {
        Self { pcid: 0, ..*self } == Self { pcid: 0, ..*other }
    }

    /// EP4TA: what INVEPT names.
    #[must_use]
    pub fn ep4ta(&self) -> u64 {
        self.eptp & super::ADDRESS_MASK
    }
}

/// Upper levels of a walk, or all of it for a large page: a paging-structure cache (SDM 4.10.3).
#[derive(Clone, Copy, Debug)]
pub struct Upper {
    /// Linear address / 2 MiB.
    region: u64,
    /// Valid if it is the context's.
    generation: u64,
    /// Host-physical address of the page table; for a large page the guest-physical address of the region.
    pub address: u64,
    /// What the upper levels allow; for a large page what the leaf allows.
    pub rights: Rights,
}

/// What the entries on the way allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Writable.
    pub write: bool,
    /// User pages.
    pub user: bool,
    /// No instruction fetches.
    pub no_execute: bool,
    /// The region is (part of) one large page.
    pub large: bool,
    /// Large page: its dirty flag is set.
    pub dirty: bool,
    /// Large page: it is global.
    pub global: bool,
}

/// Entries of the paging-structure cache.
const UPPER: usize = 256;

const BITMAP: usize = 3 * ENTRIES / 64;

/// The TLB of one address space.
pub struct Context {
    /// Whose translations these are.
    pub key: Key,
    /// When it was last selected.
    pub used: u64,
    /// The three arrays, one after the other.
    entries: Box<[TlbEntry; 3 * ENTRIES]>,
    /// Slots (array * ENTRIES + index) that may hold something, what is not global and what is: those a flush has to visit.
    filled: [Vec<u16>; 2],
    listed: [[u64; BITMAP]; 2],
    /// Slots by the host page they lead to.
    by_host: ByHost,
    /// Slots whose translation is global.
    global: [u64; BITMAP],
    upper: Box<[Upper; UPPER]>,
    /// Counts flushes, so that one of `upper` costs nothing.
    generation: u64,
    /// Number of this space in tags of branch targets, 0 when it needs a new one: see `Cpu::code_epochs`.
    pub epoch: u16,
    /// Pages that code was fetched from under this number.
    pub(super) code_pages: CodePages,
    /// Number of its group in `Mmu::groups`.
    pub(super) group: usize,
    /// What supervisor accesses got that the view behind implicit accesses serves.
    pub supervisor: SupervisorPages,
    /// How often supervisor accesses to the upper half got a translation, and one that is not global.
    upper_fills: [u32; 2],
    /// Hashed 2-MiB regions with a fragment of a large page, so that INVLPG knows when one page is not all.
    large: [u64; 16],
}

fn bit(map: &[u64], n: usize) -> bool {
    map[n / 64] >> (n % 64) & 1 != 0
}

fn large_bit(linear: u64) -> usize {
    ((linear >> 21) ^ (linear >> 31)) as usize & 1023
}

impl Context {
    /// An empty one.
    #[must_use]
    #[cold]
    #[inline(never)]
    pub fn new(key: Key) -> Self {
        // Made on the heap: as an array it would pass through the stack.
        let entries = (0..3 * ENTRIES).map(TlbEntry::empty).collect::<Vec<_>>().into_boxed_slice();
        let entries = entries.try_into().unwrap_or_else(|_| Box::new([TlbEntry::empty(0); 3 * ENTRIES]));
        Self {
            key,
            used: 0,
            entries,
            filled: Default::default(),
            by_host: ByHost::new(),
            listed: [[0; BITMAP]; 2],
            global: [0; BITMAP],
            supervisor: SupervisorPages::default(),
            upper_fills: [0; 2],
            large: [0; 16],
            upper: Box::new([Upper { region: 0, generation: 0, address: 0, rights: Rights::default() }; UPPER]),
            generation: 1,
            epoch: 0,
            code_pages: CodePages::default(),
            group: 0,
        }
    }

    /// What is known of the upper levels for `linear`.
    #[inline]
    pub fn upper(&self, linear: u64) -> Option<&Upper> {
        let region = linear >> 21;
        let upper = &self.upper[region as usize & (UPPER - 1)];
        (upper.region == region && upper.generation == self.generation).then_some(upper)
    }

    /// Remembers the upper levels for `linear`, whose accessed flags are set.
    pub fn set_upper(&mut self, linear: u64, address: u64, rights: Rights) {
        let region = linear >> 21;
        self.upper[region as usize & (UPPER - 1)] = Upper { region, generation: self.generation, address, rights };
    }

    /// The array of a view. The pointer stays valid as long as the context.
    #[must_use]
    pub fn array(&self, view: View) -> *const TlbEntry {
        self.entries[view as usize * ENTRIES..].as_ptr()
    }

    /// Adds a translation: `page` to host page `host`, for the kinds of access that are true. Kinds that the
    /// entry already allows stay allowed if the translation is the same.
    pub fn fill(
        &mut self,
        view: View,
        page: u64,
        host: u64,
        allow: [bool; 3],
        global: bool,
        large: bool,
    ) -> &mut TlbEntry {
        let number = view as usize * ENTRIES + slot(page);
        let entry = &mut self.entries[number];
        if entry.host != host || entry.page() != Some(page) {
            *entry = TlbEntry { host, ..TlbEntry::empty(number) };
        }
        self.by_host.put(number, host);
        if allow[0] {
            entry.read = page;
        }
        if allow[1] {
            entry.write = page;
        }
        if allow[2] {
            entry.exec = page;
        }
        let (word, mask) = (number / 64, 1u64 << (number % 64));
        let list = usize::from(global);
        if self.listed[list][word] & mask == 0 {
            self.listed[list][word] |= mask;
            self.filled[list].push(number as u16);
        }
        self.global[word] = if global { self.global[word] | mask } else { self.global[word] & !mask };
        if large {
            let n = large_bit(page);
            self.large[n / 64] |= 1 << (n % 64);
        }
        &mut self.entries[number]
    }

    /// A supervisor access to `linear` gets a translation. True: it is one of few that are not global among many that are,
    /// in the upper half, and translated code should not remember it, so that what it remembers is all global.
    pub fn passing(&mut self, linear: u64, global: bool) -> bool {
        if linear >> 63 == 0 {
            return false;
        }
        let [all, others] = &mut self.upper_fills;
        *all = all.saturating_add(1);
        *others = others.saturating_add(u32::from(!global));
        !global && u64::from(*others) * 4 < u64::from(*all) + 64
    }

    /// Whether the translation of `linear` in a view is global, and whether it may be a part of a large page.
    #[must_use]
    pub fn kind_of(&self, view: View, linear: u64) -> (bool, bool) {
        (bit(&self.global, view as usize * ENTRIES + slot(linear)), self.may_be_large(linear))
    }

    /// The translation of `linear` may be a part of a large page.
    #[must_use]
    pub fn may_be_large(&self, linear: u64) -> bool {
        bit(&self.large, large_bit(linear))
    }

    /// Drops everything (`keep_global`: but for global translations).
    pub fn flush(&mut self, keep_global: bool) {
        self.generation += 1;
        self.forget_targets();
        for list in 0..if keep_global { 1 } else { 2 } {
            for number in self.filled[list].drain(..) {
                let n = usize::from(number);
                self.listed[list][n / 64] &= !(1 << (n % 64));
                if !keep_global || !bit(&self.global, n) {
                    self.entries[n] = TlbEntry::empty(n);
                }
            }
        }
        if self.filled[1].is_empty() {
            self.large = [0; 16];
            self.supervisor = SupervisorPages::default();
        }
        self.supervisor.forget_not_global();
    }

    /// Drops the translation of one linear address (the whole page it was part of, if that was large).
    pub fn flush_linear(&mut self, linear: u64, keep_global: bool) {
        self.generation += 1; // INVLPG drops all of the paging-structure caches (SDM 4.10.4.1)
        let page = linear & !0xfff;
        if self.code_pages.may_have(page) {
            self.forget_targets();
        }
        if self.may_be_large(linear) {
            // Fragments of a 2-MiB or 4-MiB page lie in two regions at most; a 1-GiB page has all regions
            // marked that were touched. Dropping the whole gigabyte covers all of them.
            self.forget_targets();
            self.flush_if(keep_global, |entry| entry.page().is_some_and(|p| p >> 30 == page >> 30));
            return;
        }
        for array in 0..3 {
            let n = array * ENTRIES + slot(page);
            let entry = &mut self.entries[n];
            if entry.page() == Some(page) && !(keep_global && bit(&self.global, n)) {
                *entry = TlbEntry::empty(n);
            }
        }
    }

    /// Branch targets that were found under the present number may lead elsewhere now.
    pub(super) fn forget_targets(&mut self) {
        if self.epoch != 0 {
            self.epoch = 0;
            self.code_pages = CodePages::default();
        }
    }

    fn flush_if(&mut self, keep_global: bool, matches: impl Fn(&TlbEntry) -> bool) {
        for &number in self.filled.iter().flatten() {
            let n = usize::from(number);
            let entry = &mut self.entries[n];
            if matches(entry) && !(keep_global && bit(&self.global, n)) {
                *entry = TlbEntry::empty(n);
            }
        }
    }

    /// Takes the fast path for writes away from one host page (`None`: from all).
    pub fn write_protect(&mut self, host: Option<u64>) {
        let entries = &mut self.entries;
        let mut protect = |n: usize| {
            let entry = &mut entries[n];
            if !is_invalid(entry.write) && host.is_none_or(|host| entry.host == host) {
                entry.write = invalid(n);
            }
        };
        match host {
            Some(host) => self.by_host.slots_of(host).for_each(protect),
            None => self.filled.iter().flatten().for_each(|&n| protect(usize::from(n))),
        }
    }
}

/// Slots in chains by a hash of their host page, so that taking writes away from a page need not look at all. A
/// slot stays in its chain when its entry is dropped: who walks a chain looks at the entries.
struct ByHost {
    heads: Box<[u16]>,
    next: Box<[u16]>,
    /// The chain of each slot.
    chain: Box<[u16]>,
}

/// Chains, and what stands for "none".
const CHAINS: usize = 4096;
const NONE: u16 = !0;

impl ByHost {
    fn new() -> Self {
        let none = |len: usize| vec![NONE; len].into_boxed_slice();
        Self { heads: none(CHAINS), next: none(3 * ENTRIES), chain: none(3 * ENTRIES) }
    }

    fn hash(host: u64) -> u16 {
        (host >> 12 ^ host >> 24) as u16 & (CHAINS as u16 - 1)
    }

    /// Slot `n` leads to `host` from now on.
    #[inline]
    fn put(&mut self, n: usize, host: u64) {
        let chain = Self::hash(host);
        if self.chain[n] != chain {
            self.take(n);
            self.chain[n] = chain;
            self.next[n] = std::mem::replace(&mut self.heads[usize::from(chain)], n as u16);
        }
    }

    fn take(&mut self, n: usize) {
        if self.chain[n] == NONE {
            return;
        }
        let behind = self.next[n];
        let mut link = &mut self.heads[usize::from(self.chain[n])];
        while *link != NONE {
            if usize::from(*link) == n {
                *link = behind;
                return;
            }
            link = &mut self.next[usize::from(*link)];
        }
    }

    /// Slots that may lead to `host`.
    fn slots_of(&self, host: u64) -> impl Iterator<Item = usize> + '_ {
        let some = |n: u16| (n != NONE).then_some(usize::from(n));
        std::iter::successors(some(self.heads[usize::from(Self::hash(host))]), move |&n| some(self.next[n]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [bool; 3] = [true, true, true];

    fn entry(context: &Context, view: View, linear: u64) -> TlbEntry {
        context.entries[view as usize * ENTRIES + slot(linear)]
    }

    #[test]
    fn fill_adds_kinds_but_never_mixes_translations() {
        let mut c = Context::new(Key::default());
        c.fill(View::User, 0x5000, 0x10_0000, [true, false, false], false, false);
        c.fill(View::User, 0x5000, 0x10_0000, [false, false, true], false, false);
        let e = entry(&c, View::User, 0x5000);
        assert_eq!((e.read, is_invalid(e.write), e.exec), (0x5000, true, 0x5000));
        assert_eq!(e.addend(0x5123).wrapping_add(0x5123), 0x10_0123);
        c.fill(View::User, 0x5000, 0x20_0000, [false, true, false], false, false);
        let e = entry(&c, View::User, 0x5000);
        assert_eq!((is_invalid(e.read), e.write, is_invalid(e.exec)), (true, 0x5000, true));
    }

    #[test]
    fn flush_spares_global_entries_only_when_asked() {
        let mut c = Context::new(Key::default());
        c.fill(View::Supervisor, 0x1000, 0x1000, ALL, true, false);
        c.fill(View::Supervisor, 0x2000, 0x2000, ALL, false, false);
        c.flush(true);
        assert_eq!(entry(&c, View::Supervisor, 0x1000).read, 0x1000);
        assert!(is_invalid(entry(&c, View::Supervisor, 0x2000).read));
        c.flush(false);
        assert!(is_invalid(entry(&c, View::Supervisor, 0x1000).read));
    }

    #[test]
    fn flush_linear_takes_all_fragments_of_a_large_page() {
        let mut c = Context::new(Key::default());
        c.fill(View::User, 0x20_0000, 0x20_0000, ALL, false, true);
        c.fill(View::User, 0x2f_f000, 0x2f_f000, ALL, false, true);
        c.fill(View::User, 0x4000_1000, 0x1000, ALL, false, false);
        c.flush_linear(0x20_1000, false);
        assert!(is_invalid(entry(&c, View::User, 0x20_0000).read));
        assert!(is_invalid(entry(&c, View::User, 0x2f_f000).read));
        assert_eq!(entry(&c, View::User, 0x4000_1000).read, 0x4000_1000);
        c.flush_linear(0x4000_1fff, false);
        assert!(is_invalid(entry(&c, View::User, 0x4000_1000).read));
    }

    #[test]
    fn write_protect_reaches_every_alias_of_a_host_page() {
        let mut c = Context::new(Key::default());
        c.fill(View::User, 0x1000, 0x9000, ALL, false, false);
        c.fill(View::Supervisor, 0xffff_8000_0000_7000, 0x9000, ALL, false, false);
        c.fill(View::User, 0x3000, 0xa000, ALL, false, false);
        c.write_protect(Some(0x9000));
        assert!(is_invalid(entry(&c, View::User, 0x1000).write));
        assert!(is_invalid(entry(&c, View::Supervisor, 0xffff_8000_0000_7000).write));
        assert_eq!(entry(&c, View::User, 0x1000).read, 0x1000);
        assert_eq!(entry(&c, View::User, 0x3000).write, 0x3000);
    }
}
