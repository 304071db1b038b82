//! The guest's own paging (SDM 4.3 to 4.5): from a linear address to a guest-physical one, with permissions,
//! page-fault error codes, accessed and dirty flags.
//!
//! Paging structures are read and written through EPT. It fills no TLB.

use super::assist::AccessKind;
use super::ept;
use super::tlb::Rights;
use super::translate::Access;
use super::{ADDRESS_MASK, RESERVED_ADDRESS};
use crate::cpu::Cpu;
use crate::state::cr;
use crate::stop::Exec;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// Bits of the page-fault error code (SDM 4.7).
mod error {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const USER: u32 = 4;
    pub const RESERVED: u32 = 8;
    pub const FETCH: u32 = 16;
}

/// What the guest's paging says of a linear page. The access that asked is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Guest-physical address of the 4-KiB page.
    pub page: u64,
    /// What accesses of the same privilege and view may do without another walk: read, write, fetch.
    pub allowed: [bool; 3],
    /// Translation survives a MOV to CR3.
    pub global: bool,
    /// The page is larger than 4 KiB.
    pub large: bool,
}

/// Paging mode (SDM table 4-1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Paging {
    None,
    Bits32,
    Pae,
    Level4,
}

/// An entry on the way: where it lies in host memory and what was read.
#[derive(Clone, Copy, Default)]
struct Step {
    gpa: u64,
    value: u64,
}

impl Cpu {
    fn paging(&self) -> Paging {
        let s = &*self.state;
        if s.cr0 & cr::CR0_PG == 0 {
            Paging::None
        } else if s.cr4 & cr::CR4_PAE == 0 {
            Paging::Bits32
        } else if s.efer & cr::EFER_LMA == 0 {
            Paging::Pae
        } else {
            Paging::Level4
        }
    }

    /// Walks the guest's page tables.
    pub(super) fn walk(&mut self, linear: u64, access: Access) -> Exec<Leaf> {
        let paging = self.paging();
        if paging == Paging::None {
            return Ok(Leaf { page: linear & 0xffff_f000, allowed: [true; 3], global: false, large: false });
        }
        if let Some(leaf) = self.walk_cached(linear, access) {
            return Ok(leaf);
        }
        loop {
            if let Some(leaf) = self.walk_once(paging, linear, access)? {
                return Ok(leaf);
            }
        }
    }

    /// The walk from the paging-structure cache on. `None`: whenever there is more to do than to read one
    /// entry (flags to set, a fault to raise), the whole walk does it, and nothing stale decides.
    #[inline]
    fn walk_cached(&mut self, linear: u64, access: Access) -> Option<Leaf> {
        let upper = self.mmu.contexts.get(self.mmu.current)?.upper(linear)?;
        let write = access.kind == AccessKind::Write;
        let (r, address) = (upper.rights, upper.address);
        let above = if r.write { WRITABLE } else { 0 } | if r.user { USER } else { 0 };
        let (rights, nx, dirty, global, page);
        if r.large {
            rights = above;
            (nx, dirty, global) = (r.no_execute, r.dirty, r.global);
            page = address | (linear & 0x1f_f000);
        } else {
            let entry: u64 = self.memory.read(address + (linear >> 12 & 511) * 8);
            let efer = self.state.efer;
            let reserved = wide_reserved(efer & cr::EFER_LMA != 0, efer & cr::EFER_NXE != 0);
            if entry & (PRESENT | ACCESSED) != PRESENT | ACCESSED || entry & reserved != 0 {
                return None;
            }
            rights = entry & above;
            nx = r.no_execute || entry & NX != 0;
            dirty = entry & DIRTY != 0;
            global = entry & GLOBAL != 0 && self.state.cr4 & cr::CR4_PGE != 0;
            page = entry & ADDRESS_MASK;
        }
        let allowed = self.rights(rights, nx, access);
        if !allowed[access.kind as usize] || write && !dirty {
            return None;
        }
        Some(Leaf { page, allowed: [allowed[0], allowed[1] && dirty, allowed[2]], global, large: r.large })
    }

    /// Remembers the upper levels of a walk that succeeded. `above`: rights and no-execute without the page
    /// table's entry, or for a large page with its own.
    fn remember_upper(&mut self, linear: u64, leaf: &Leaf, table_gpa: u64, above: (u64, bool), dirty: bool) {
        let (rights, no_execute) = above;
        let rights = Rights {
            write: rights & WRITABLE != 0,
            user: rights & USER != 0,
            no_execute,
            large: leaf.large,
            dirty,
            global: leaf.global,
        };
        let address = if leaf.large {
            leaf.page & !0x1f_ffff
        } else {
            let need = if self.mmu.ept.walks_write() { ept::READ | ept::WRITE } else { ept::READ };
            match self.mmu.ept.translate(&self.memory, table_gpa, need) {
                Ok(hit) if self.memory.contains(hit.host_page, 4096) => hit.host_page,
                _ => return,
            }
        };
        let current = self.mmu.current;
        if let Some(context) = self.mmu.contexts.get_mut(current) {
            context.set_upper(linear, address, rights);
        }
    }

    #[cold]
    fn page_fault<T>(&mut self, linear: u64, access: Access, flags: u32) -> Exec<T> {
        let s = &*self.state;
        let no_execute = s.cr4 & cr::CR4_PAE != 0 && s.efer & cr::EFER_NXE != 0;
        let kind = match access.kind {
            AccessKind::Write => error::WRITE,
            AccessKind::Fetch if no_execute || s.cr4 & cr::CR4_SMEP != 0 => error::FETCH,
            _ => 0,
        };
        Err(self.raise_pf(linear, flags | kind | if access.user { error::USER } else { 0 }))
    }

    /// One attempt; `None` when an entry changed under the walk.
    fn walk_once(&mut self, paging: Paging, linear: u64, access: Access) -> Exec<Option<Leaf>> {
        let nxe = self.state.efer & cr::EFER_NXE != 0;
        let (mut table, mut level, bits, wide) = match paging {
            Paging::Level4 => (self.state.cr3 & ADDRESS_MASK, 4u32, 9u32, true),
            Paging::Pae => {
                // PDPTEs are registers: read at MOV to CR3 and at VM entry (SDM 4.4.1).
                let pdpte = self.mmu.pdpte[(linear >> 30 & 3) as usize];
                if pdpte & PRESENT == 0 {
                    return self.page_fault(linear, access, 0);
                }
                (pdpte & ADDRESS_MASK, 2, 9, true)
            }
            _ => (self.state.cr3 & 0xffff_f000, 2, 10, false),
        };
        let large_allowed = wide || self.state.cr4 & cr::CR4_PSE != 0;
        let reserved_always = if wide { wide_reserved(paging == Paging::Level4, nxe) } else { 0 };
        let mut path = [Step::default(); 4];
        let mut depth = 0;
        let (mut rights, mut nx) = (WRITABLE | USER, false);
        let mut above;
        let (leaf, page, large) = loop {
            let shift = 12 + bits * (level - 1);
            let index = linear >> shift & ((1 << bits) - 1);
            let gpa = table + index * if wide { 8 } else { 4 };
            let value = self.read_paging_entry(gpa, wide, linear)?;
            if value & PRESENT == 0 {
                return self.page_fault(linear, access, 0);
            }
            let large = level != 1 && value & LARGE != 0 && large_allowed && level != 4;
            let mut reserved = reserved_always;
            if large {
                reserved |= match (wide, level) {
                    (true, 2) => 0x001f_e000,
                    (true, _) => 0x3fff_e000,
                    // PSE-36: bits 20:13 are address bits 39:32, bit 21 is reserved.
                    (false, _) => 1 << 21,
                };
            } else if level == 4 {
                reserved |= LARGE;
            }
            if value & reserved != 0 {
                return self.page_fault(linear, access, error::PRESENT | error::RESERVED);
            }
            path[depth] = Step { gpa, value };
            depth += 1;
            above = (rights, nx);
            rights &= value;
            nx |= wide && nxe && value & NX != 0;
            if large {
                above = (rights, nx);
            }
            if large || level == 1 {
                let within = (1u64 << shift) - 1;
                let base = match (wide, large) {
                    (false, true) => (value & 0xffc0_0000) | (value & 0x001f_e000) << 19,
                    (false, false) => value & 0xffff_f000,
                    (true, _) => value & ADDRESS_MASK & !within,
                };
                break (value, base | (linear & within & !0xfff), large);
            }
            table = if wide { value & ADDRESS_MASK } else { value & 0xffff_f000 };
            level -= 1;
        };
        let allowed = self.rights(rights, nx, access);
        if !allowed[access.kind as usize] {
            return self.page_fault(linear, access, error::PRESENT);
        }
        let write = access.kind == AccessKind::Write;
        for (i, step) in path.iter().enumerate().take(depth) {
            let dirty = if write && i + 1 == depth { DIRTY } else { 0 };
            let missing = (ACCESSED | dirty) & !step.value;
            if missing != 0 && !self.set_paging_flags(step.gpa, step.value, missing, wide, linear)? {
                return Ok(None);
            }
        }
        let leaf_dirty = write || leaf & DIRTY != 0;
        let found = Leaf {
            page,
            allowed: [allowed[0], allowed[1] && leaf_dirty, allowed[2]],
            global: leaf & GLOBAL != 0 && self.state.cr4 & cr::CR4_PGE != 0,
            large,
        };
        if wide {
            self.remember_upper(linear, &found, table, above, leaf_dirty);
        }
        Ok(Some(found))
    }

    /// Which accesses of this privilege and view the page allows (SDM 4.6.1).
    fn rights(&self, rights: u64, nx: bool, access: Access) -> [bool; 3] {
        let s = &*self.state;
        let (writable, user_page) = (rights & WRITABLE != 0, rights & USER != 0);
        if access.user {
            return [user_page, user_page && writable, user_page && !nx];
        }
        let touch = !(user_page && access.smap);
        let write = writable || s.cr0 & cr::CR0_WP == 0;
        [touch, touch && write, !(nx || user_page && s.cr4 & cr::CR4_SMEP != 0)]
    }

    fn read_paging_entry(&mut self, gpa: u64, wide: bool, linear: u64) -> Exec<u64> {
        let need = if self.mmu.ept.walks_write() { ept::READ | ept::WRITE } else { ept::READ };
        let pa = self.paging_entry_address(gpa, need, linear)?;
        Ok(if wide { self.memory.read::<u64>(pa) } else { u64::from(self.memory.read::<u32>(pa)) })
    }

    /// Sets flags atomically; false when the entry is no longer what was read.
    fn set_paging_flags(&mut self, gpa: u64, old: u64, flags: u64, wide: bool, linear: u64) -> Exec<bool> {
        let pa = self.paging_entry_address(gpa, ept::READ | ept::WRITE, linear)?;
        if !self.memory.contains(pa, 8) {
            return Ok(true); // tables on the bus: nothing to set
        }
        Ok(if wide {
            self.memory.compare_exchange(pa, old, old | flags).is_ok()
        } else {
            self.memory.compare_exchange(pa, old as u32, (old | flags) as u32).is_ok()
        })
    }

    /// Host-physical address of a paging-structure entry.
    fn paging_entry_address(&mut self, gpa: u64, need: u8, linear: u64) -> Exec<u64> {
        match self.mmu.ept.translate(&self.memory, gpa, need) {
            Ok(hit) => Ok(hit.host_page | (gpa & 0xfff)),
            Err(miss) => self.paging_entry_denied(miss, gpa, need, Some(linear)),
        }
    }

    /// Loads the PDPTE registers from the table that `cr3` points to (SDM 4.4.1): #GP(0) when a present
    /// one has reserved bits; then nothing is loaded. The caller checks that PAE paging is (to be) in use.
    pub fn load_pdptes(&mut self, cr3: u64) -> Exec {
        let mut loaded = [0; 4];
        for (i, entry) in loaded.iter_mut().enumerate() {
            let gpa = (cr3 & 0xffff_ffe0) + 8 * i as u64;
            let pa = match self.mmu.ept.translate(&self.memory, gpa, ept::READ) {
                Ok(hit) => hit.host_page | (gpa & 0xfff),
                Err(miss) => self.paging_entry_denied(miss, gpa, ept::READ, None)?,
            };
            *entry = self.memory.read(pa);
            if !pdpte_valid(*entry) {
                return Err(self.gp0());
            }
        }
        self.mmu.pdpte = loaded;
        Ok(())
    }
}

/// Bits that are reserved in every 64-bit entry: beyond MAXPHYADDR, bit 63 without NXE, and in PAE paging
/// bits 62:52.
fn wide_reserved(level4: bool, nxe: bool) -> u64 {
    let no_execute = if nxe { 0 } else { NX };
    RESERVED_ADDRESS | no_execute | if level4 { 0 } else { 0x7ff << 52 }
}

/// May the PDPTE register hold this value (SDM 4.4.1, 27.3.1.6)?
#[must_use]
pub fn pdpte_valid(entry: u64) -> bool {
    entry & PRESENT == 0 || entry & (0x1e6 | RESERVED_ADDRESS | 0xfff << 52) == 0
}
