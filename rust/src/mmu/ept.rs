//! Extended page tables (SDM 29.3): the walk, its misconfigurations and violations, and the cache of
//! guest-physical mappings.
//!
//! It says what a guest-physical address is; which exit follows is decided by its callers.

use super::{ADDRESS_MASK, RESERVED_ADDRESS};
use crate::memory::Memory;

/// Permission bits as they lie in EPT entries.
pub const READ: u8 = 1;
/// See [`READ`].
pub const WRITE: u8 = 2;
/// See [`READ`].
pub const EXECUTE: u8 = 4;

/// EPTP bit 6: accessed and dirty flags.
const EPTP_AD: u64 = 1 << 6;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const LARGE: u64 = 1 << 7;

/// A guest-physical page that may be accessed as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Host-physical page address.
    pub host_page: u64,
    /// What may be done to it without another walk.
    pub allowed: u8,
}

/// Why a guest-physical access is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// EPT violation. The AND of bits 2:0 of the entries used; where they end in a page, its address.
    Violation {
        /// Permissions of the page, 0 when it is not present.
        allowed: u8,
        /// Host-physical page address (0 when not present).
        host_page: u64,
    },
    /// EPT misconfiguration.
    Misconfiguration,
}

/// What the processor supports of EPT; an entry that uses more is misconfigured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    /// Entries that allow fetches only.
    pub execute_only: bool,
    /// 1-GiB pages.
    pub huge: bool,
}

impl Default for Support {
    fn default() -> Self {
        Self { execute_only: true, huge: true }
    }
}

/// Is the entry misconfigured (SDM 29.3.3.1)? `level` 4 = PML4E … 1 = PTE. The entry is present.
fn misconfigured(entry: u64, level: u32, leaf: bool, support: Support) -> bool {
    if entry & 7 == 4 && !support.execute_only || leaf && level == 3 && !support.huge {
        return true;
    }
    if entry & 0b011 == 0b010 || entry & RESERVED_ADDRESS != 0 {
        return true; // writable but not readable; address beyond MAXPHYADDR
    }
    if !leaf {
        // Bits 6:3 are reserved where the entry references a table, and bit 7 in a PML4E.
        return entry & 0x78 != 0 || level == 4 && entry & LARGE != 0;
    }
    let memory_type = entry >> 3 & 7;
    let reserved_low = match level {
        3 => 0x3fff_f000,
        2 => 0x001f_f000,
        _ => 0,
    };
    matches!(memory_type, 2 | 3 | 7) || entry & reserved_low != 0
}

/// What the entries above a page say of its 2-MiB region: a guest-physical paging-structure-cache entry, or all of
/// the mapping where that is as large (SDM 29.4.2).
#[derive(Clone, Copy)]
enum Upper {
    /// The EPT page table, and what the entries above it allow.
    Table(u64, u8),
    /// Host-physical address of the region, and what may be done to it without another walk.
    Large(u64, u8),
}

/// Walks the tables of `eptp` for `gpa`; `need` is what the access needs (bits of [`READ`], …).
fn walk(memory: &Memory, eptp: u64, gpa: u64, need: u8, support: Support) -> Result<(Hit, Upper), Miss> {
    'retry: loop {
        let mut table = eptp & ADDRESS_MASK;
        let mut allowed = READ | WRITE | EXECUTE;
        let mut path = [(0u64, 0u64); 4];
        let mut level = 4u32;
        let (leaf, host_page, above) = loop {
            let shift = 3 + 9 * level;
            let pa = table + (gpa >> shift & 511) * 8;
            let entry: u64 = memory.read(pa);
            path[level as usize - 1] = (pa, entry);
            if entry & 7 == 0 {
                return Err(Miss::Violation { allowed: 0, host_page: 0 });
            }
            let leaf = level == 1 || entry & LARGE != 0 && level != 4;
            if misconfigured(entry, level, leaf, support) {
                return Err(Miss::Misconfiguration);
            }
            let above = allowed;
            allowed &= (entry & 7) as u8;
            if leaf {
                let within = (1u64 << shift) - 1;
                break (level as usize - 1, (entry & ADDRESS_MASK & !within) | (gpa & within & !0xfff), above);
            }
            table = entry & ADDRESS_MASK;
            level -= 1;
        };
        if need & !allowed != 0 {
            return Err(Miss::Violation { allowed, host_page });
        }
        if eptp & EPTP_AD != 0 {
            for (i, &(pa, entry)) in path.iter().enumerate().skip(leaf).rev() {
                let dirty = if i == leaf && need & WRITE != 0 { DIRTY } else { 0 };
                let want = entry | ACCESSED | dirty;
                if want != entry && memory.compare_exchange(pa, entry, want).is_err() && memory.contains(pa, 8) {
                    continue 'retry;
                }
            }
            if need & WRITE == 0 && path[leaf].1 & DIRTY == 0 {
                allowed &= !WRITE; // a later write has to come back for the dirty flag
            }
        }
        let region = host_page & !0x1f_ffff;
        let upper = if leaf == 0 { Upper::Table(table, above) } else { Upper::Large(region, allowed) };
        return Ok((Hit { host_page, allowed }, upper));
    }
}

/// The walk from the page table on. `None`: the whole walk has to find what is the matter, or flags to set.
#[inline]
fn walk_page(memory: &Memory, table: u64, above: u8, ad: bool, gpa: u64, need: u8, support: Support) -> Option<Hit> {
    let entry: u64 = memory.read(table + (gpa >> 12 & 511) * 8);
    let mut allowed = (entry & 7) as u8 & above;
    if need & !allowed != 0 || misconfigured(entry, 1, true, support) {
        return None;
    }
    if ad {
        if entry & ACCESSED == 0 || need & WRITE != 0 && entry & DIRTY == 0 {
            return None;
        }
        if entry & DIRTY == 0 {
            allowed &= !WRITE;
        }
    }
    Some(Hit { host_page: entry & ADDRESS_MASK, allowed })
}

const CACHE: usize = 4096;
const REGIONS: usize = 512;
/// In the value of a region: it is an EPT page table's address.
const TABLE: u64 = 8;
const IDS: u64 = 0xfff;

#[derive(Clone, Copy)]
struct Cached {
    /// Guest-physical page | number of the EPT pointer; !0 matches nothing.
    tag: u64,
    /// Host-physical page | permissions.
    value: u64,
}

/// Guest-physical mappings (SDM 29.4.1), direct-mapped, tagged by EPT pointer.
pub struct EptCache {
    entries: Box<[Cached]>,
    /// What is known of 2-MiB regions: the host-physical address of the region, or with [`TABLE`] that of its EPT page
    /// table; and what the entries on the way there allow.
    regions: Box<[Cached]>,
    /// EPT pointers in use and their numbers.
    numbers: Vec<(u64, u64)>,
    last_number: u64,
    /// Set at VM entry.
    pub support: Support,
    eptp: u64,
    number: u64,
}

impl Default for EptCache {
    fn default() -> Self {
        Self {
            entries: vec![Cached { tag: !0, value: 0 }; CACHE].into_boxed_slice(),
            regions: vec![Cached { tag: !0, value: 0 }; REGIONS].into_boxed_slice(),
            numbers: Vec::new(),
            last_number: 0,
            support: Support::default(),
            eptp: 0,
            number: 0,
        }
    }
}

impl EptCache {
    /// Makes `eptp` (0: no EPT) the current one.
    pub fn select(&mut self, eptp: u64) {
        if self.eptp == eptp && (eptp == 0 || self.number != 0) {
            return;
        }
        self.eptp = eptp;
        self.number = match self.numbers.iter().find(|(e, _)| *e == eptp) {
            Some(&(_, number)) => number,
            None if eptp == 0 => 0,
            None => self.new_number(eptp),
        };
    }

    fn new_number(&mut self, eptp: u64) -> u64 {
        if self.last_number == IDS {
            self.entries.fill(Cached { tag: !0, value: 0 });
            self.regions.fill(Cached { tag: !0, value: 0 });
            self.numbers.clear();
            self.last_number = 0;
        }
        self.last_number += 1;
        self.numbers.push((eptp, self.last_number));
        self.last_number
    }

    /// Forgets mappings of one EP4TA, or of all.
    pub fn invalidate(&mut self, ep4ta: Option<u64>) {
        self.numbers.retain(|(e, _)| ep4ta.is_some_and(|ep4ta| e & ADDRESS_MASK != ep4ta));
        let eptp = self.eptp;
        self.eptp = 0;
        self.number = 0;
        self.select(eptp);
    }

    fn slot(&self, gpa: u64) -> usize {
        ((gpa >> 12) ^ (self.number << 5)) as usize & (CACHE - 1)
    }

    fn region(&self, gpa: u64) -> usize {
        ((gpa >> 21) ^ (self.number << 5)) as usize & (REGIONS - 1)
    }

    /// Translates a guest-physical address for an access that needs `need`. Without EPT it is the host's.
    #[inline]
    pub fn translate(&mut self, memory: &Memory, gpa: u64, need: u8) -> Result<Hit, Miss> {
        if self.eptp == 0 {
            return Ok(Hit { host_page: gpa & !0xfff, allowed: READ | WRITE | EXECUTE });
        }
        let region = self.region(gpa);
        let upper = self.regions[region];
        let known = upper.tag == (gpa & !0x1f_ffff) | self.number;
        if known && upper.value & TABLE == 0 && need & !(upper.value as u8) == 0 {
            let host_page = upper.value & !0xfff | gpa & 0x1f_f000;
            return Ok(Hit { host_page, allowed: upper.value as u8 & 7 });
        }
        let slot = self.slot(gpa);
        let cached = self.entries[slot];
        let tag = (gpa & !0xfff) | self.number;
        if cached.tag == tag && need & !(cached.value as u8) == 0 {
            return Ok(Hit { host_page: cached.value & !0xfff, allowed: cached.value as u8 & 7 });
        }
        if known && upper.value & TABLE != 0 {
            let above = upper.value as u8 & 7;
            let ad = self.walks_write();
            if let Some(hit) = walk_page(memory, upper.value & !0xfff, above, ad, gpa, need, self.support) {
                self.entries[slot] = Cached { tag, value: hit.host_page | u64::from(hit.allowed) };
                return Ok(hit);
            }
        }
        self.walk(memory, gpa, need)
    }

    /// The whole walk. A violation drops what is cached of the address (SDM 29.4.3.1).
    #[cold]
    #[inline(never)]
    fn walk(&mut self, memory: &Memory, gpa: u64, need: u8) -> Result<Hit, Miss> {
        let (slot, region) = (self.slot(gpa), self.region(gpa));
        let (tag, region_tag) = ((gpa & !0xfff) | self.number, (gpa & !0x1f_ffff) | self.number);
        match walk(memory, self.eptp, gpa, need, self.support) {
            Ok((hit, upper)) => {
                let value = match upper {
                    Upper::Table(table, above) => {
                        self.entries[slot] = Cached { tag, value: hit.host_page | u64::from(hit.allowed) };
                        table | TABLE | u64::from(above)
                    }
                    Upper::Large(base, allowed) => {
                        // The region is looked at first, but another may take its place.
                        self.drop_page(slot, tag);
                        base | u64::from(allowed)
                    }
                };
                self.regions[region] = Cached { tag: region_tag, value };
                Ok(hit)
            }
            Err(miss) => {
                self.drop_page(slot, tag);
                if self.regions[region].tag == region_tag {
                    self.regions[region].tag = !0;
                }
                Err(miss)
            }
        }
    }

    fn drop_page(&mut self, slot: usize, tag: u64) {
        if self.entries[slot].tag == tag {
            self.entries[slot].tag = !0;
        }
    }

    /// Are accesses to guest paging structures writes, as far as EPT is concerned (SDM 29.3.3.2)?
    pub fn walks_write(&self) -> bool {
        self.eptp & EPTP_AD != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE;

    fn walk(memory: &Memory, eptp: u64, gpa: u64, need: u8, support: Support) -> Result<Hit, Miss> {
        super::walk(memory, eptp, gpa, need, support).map(|(hit, _)| hit)
    }

    const EPTP: u64 = 0x1e; // write-back, four levels, tables from address 0

    /// One path of tables in pages 0..3, a leaf at `level` with `bits`, for guest-physical address 0.
    fn memory_with(level: u32, bits: u64) -> Memory {
        let memory = Memory::new(16 * PAGE, 0).unwrap();
        for l in (level + 1..=4).rev() {
            let table = u64::from(4 - l) * PAGE;
            memory.write(table, (table + PAGE) | 7);
        }
        memory.write(u64::from(4 - level) * PAGE, bits);
        memory
    }

    #[test]
    fn permissions_are_the_and_of_all_levels() {
        let memory = memory_with(1, 0x5000 | 0x30 | 7);
        memory.write(PAGE, (2 * PAGE) | 5u64);
        assert_eq!(walk(&memory, EPTP, 0x123, READ, Support::default()), Ok(Hit { host_page: 0x5000, allowed: 5 }));
        let violation = Err(Miss::Violation { allowed: 5, host_page: 0x5000 });
        assert_eq!(walk(&memory, EPTP, 0x123, WRITE, Support::default()), violation);
        assert_eq!(
            walk(&memory, EPTP, 0x1000, READ, Support::default()),
            Err(Miss::Violation { allowed: 0, host_page: 0 })
        );
    }

    #[test]
    fn large_pages_keep_the_offset() {
        let memory = memory_with(2, 0x4000_0000 | 0x30 | LARGE | 7);
        assert_eq!(walk(&memory, EPTP, 0x12_3456, READ, Support::default()).map(|h| h.host_page), Ok(0x4012_3000));
        let memory = memory_with(3, 0x4000_0000 | 0x30 | LARGE | 4);
        assert_eq!(walk(&memory, EPTP, 0x1234_5678, EXECUTE, Support::default()).map(|h| h.host_page), Ok(0x5234_5000));
        assert!(walk(&memory, EPTP, 0x1234_5678, READ, Support::default()).is_err(), "execute-only");
    }

    #[test]
    fn each_misconfiguration_is_found() {
        for (level, bits) in [
            (1, 0x5000 | 2),            // write-only
            (1, 0x5000 | 6),            // write and execute without read
            (1, 0x5000 | 0x10 | 7),     // memory type 2
            (1, 0x5000 | 0x18 | 7),     // memory type 3
            (1, 0x5000 | 0x38 | 7),     // memory type 7
            (1, 1 << 40 | 0x30 | 7),    // beyond MAXPHYADDR
            (2, 0x1000 | LARGE | 7),    // low bits of a 2-MiB page
            (2, 0x5000 | 0x8 | 7),      // memory type in an entry that references a table
            (3, 0x20_0000 | LARGE | 7), // low bits of a 1-GiB page
            (4, 0x1000 | LARGE | 7),    // bit 7 of a PML4E
        ] {
            let memory = memory_with(level, bits);
            assert_eq!(
                walk(&memory, EPTP, 0, READ, Support::default()),
                Err(Miss::Misconfiguration),
                "level {level}, entry {bits:#x}"
            );
        }
        assert!(
            walk(&memory_with(1, 0x5000 | 0x30 | 1 << 10 | 7), EPTP, 0, READ, Support::default()).is_ok(),
            "bit 10 is ignored"
        );
    }

    #[test]
    fn what_is_not_supported_is_misconfigured() {
        let less = Support { execute_only: false, huge: false };
        let memory = memory_with(1, 0x5000 | 0x30 | 4);
        assert!(walk(&memory, EPTP, 0, EXECUTE, Support::default()).is_ok());
        assert_eq!(walk(&memory, EPTP, 0, EXECUTE, less), Err(Miss::Misconfiguration));
        let memory = memory_with(3, 0x30 | LARGE | 7);
        assert!(walk(&memory, EPTP, 0, READ, Support::default()).is_ok());
        assert_eq!(walk(&memory, EPTP, 0, READ, less), Err(Miss::Misconfiguration));
    }

    #[test]
    fn accessed_and_dirty_flags_are_set_only_when_enabled() {
        let memory = memory_with(1, 0x5000 | 0x30 | 7);
        assert!(walk(&memory, EPTP, 0, WRITE, Support::default()).is_ok());
        assert_eq!(memory.read::<u64>(3 * PAGE), 0x5037);
        let hit = walk(&memory, EPTP | EPTP_AD, 0, READ, Support::default()).unwrap();
        assert_eq!(hit.allowed, READ | EXECUTE, "a write must return for the dirty flag");
        assert_eq!(memory.read::<u64>(3 * PAGE), 0x5137);
        assert_eq!(memory.read::<u64>(0) & ACCESSED, ACCESSED);
        assert_eq!(walk(&memory, EPTP | EPTP_AD, 0, WRITE, Support::default()).unwrap().allowed, 7);
        assert_eq!(memory.read::<u64>(3 * PAGE), 0x5337);
    }

    #[test]
    fn mappings_live_until_invalidated_or_violated() {
        let memory = memory_with(1, 0x5000 | 0x30 | 7);
        let mut cache = EptCache::default();
        cache.select(EPTP);
        assert!(cache.translate(&memory, 0, READ).is_ok());
        memory.write(3 * PAGE, 0x6000u64 | 0x30 | 1);
        assert_eq!(cache.translate(&memory, 0, READ).unwrap().host_page, 0x5000, "cached");
        cache.invalidate(Some(0x9000));
        assert_eq!(cache.translate(&memory, 0, READ).unwrap().host_page, 0x5000, "another EP4TA");
        cache.invalidate(Some(0));
        assert_eq!(cache.translate(&memory, 0, READ).unwrap().host_page, 0x6000);
        assert!(cache.translate(&memory, 0, WRITE).is_err());
        memory.write(3 * PAGE, 0x7000u64 | 0x30 | 1);
        assert_eq!(cache.translate(&memory, 0, READ).unwrap().host_page, 0x7000, "dropped by the violation");
    }

    #[test]
    fn upper_levels_live_until_invalidated_and_never_hide_what_a_page_says() {
        let memory = memory_with(1, 0x5000 | 0x30 | 7);
        let page = |n: u64, entry: u64| memory.write(3 * PAGE + 8 * n, entry);
        let mut cache = EptCache::default();
        cache.select(EPTP | EPTP_AD);
        assert!(cache.translate(&memory, 0, READ).is_ok());
        // From now on only the page table is read: the page directory leads nowhere.
        let directory: u64 = memory.read(2 * PAGE);
        memory.write(2 * PAGE, 0u64);
        page(1, 0x6000 | ACCESSED | 0x30 | 7);
        assert_eq!(cache.translate(&memory, 0x1000, READ), Ok(Hit { host_page: 0x6000, allowed: READ | EXECUTE }));
        assert!(cache.translate(&memory, 0x2000, READ).is_err(), "what is not present is looked for from the top");
        memory.write(2 * PAGE, directory);
        page(2, 0x7000 | 0x30 | 7);
        assert!(cache.translate(&memory, 0x2000, READ).is_ok());
        assert_eq!(memory.read::<u64>(3 * PAGE + 16) & ACCESSED, ACCESSED, "flags are set by the whole walk");
        page(3, 0x8000 | ACCESSED | DIRTY | 0x18 | 7);
        assert_eq!(cache.translate(&memory, 0x3000, READ), Err(Miss::Misconfiguration));
    }

    #[test]
    fn a_large_mapping_serves_its_region() {
        let memory = memory_with(2, 0x4000_0000 | 0x30 | LARGE | 3);
        let mut cache = EptCache::default();
        cache.select(EPTP);
        assert!(cache.translate(&memory, 0, READ).is_ok());
        memory.write(2 * PAGE, 0u64);
        let hit = Hit { host_page: 0x401f_f000, allowed: READ | WRITE };
        assert_eq!(cache.translate(&memory, 0x1f_f123, WRITE), Ok(hit));
        assert!(cache.translate(&memory, 0x20_0000, READ).is_err(), "the next region");
        assert!(cache.translate(&memory, 0, EXECUTE).is_err());
        assert!(cache.translate(&memory, 0, READ).is_err(), "dropped by the violation");
    }
}
