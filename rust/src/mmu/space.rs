//! The address space in force: which TLB context and which of its arrays accesses use.
//!
//! Selecting a space never flushes; what the SDM flushes is in `invalidate`.

use super::Invalidation;
use super::epochs::Group;
use super::ept::EptCache;
use super::given::Given;
use super::tlb::{Context, Key, NOTHING, TlbEntry, View, slot};
use super::watch::Watch;
use crate::cpu::Cpu;
use crate::state::cr;
use crate::vmx::capabilities::ept_vpid;

/// Address spaces kept at most; the least recently used one makes room.
const CONTEXTS: usize = 64;

/// Address spaces and their TLBs. The three pointers come first and in this order: translated code loads them.
#[repr(C)]
pub struct Mmu {
    /// Array of explicit data accesses.
    pub(super) data: *const TlbEntry,
    /// Array of implicit supervisor accesses (GDT, IDT, TSS).
    pub(super) implicit: *const TlbEntry,
    /// Array of instruction fetches.
    pub(super) code: *const TlbEntry,
    /// View behind `data`.
    pub(super) data_view: View,
    /// View behind `implicit`.
    pub(super) implicit_view: View,
    /// View behind `code`.
    pub(super) code_view: View,
    /// PDPTE registers of PAE paging. VM entry loads them from the VMCS when EPT is on, VM exit stores them.
    pub pdpte: [u64; 4],
    /// TLB contexts.
    pub(super) contexts: Vec<Context>,
    /// Their keys, close together for the search.
    keys: Vec<Key>,
    /// The context in force.
    pub(super) current: usize,
    pub(super) clock: u64,
    /// What translated code was given.
    pub(super) given: Given,
    /// Address spaces that share global translations.
    pub(super) groups: Vec<Group>,
    /// Last number given out by [`Cpu::code_epochs`].
    pub(super) last_epoch: u16,
    /// Guest-physical mappings.
    pub(super) ept: EptCache,
    /// Data breakpoints.
    pub(super) watch: Watch,
}

// SAFETY: the pointers point into the boxed arrays of the contexts of the same structure (or a static) and are used by
// whoever has the structure.
unsafe impl Send for Mmu {}

impl Default for Mmu {
    fn default() -> Self {
        let nothing = NOTHING.as_ptr();
        Self {
            data: nothing,
            implicit: nothing,
            code: nothing,
            data_view: View::Supervisor,
            implicit_view: View::Supervisor,
            code_view: View::Supervisor,
            pdpte: [0; 4],
            contexts: Vec::new(),
            keys: Vec::new(),
            current: 0,
            clock: 0,
            given: Given::default(),
            groups: Vec::new(),
            last_epoch: 0,
            ept: EptCache::default(),
            watch: Watch::default(),
        }
    }
}

impl Mmu {
    /// The entry that a data access to `linear` has to match.
    #[inline(always)]
    pub(super) fn data_entry(&self, linear: u64) -> &TlbEntry {
        // SAFETY: `data` points to an array of ENTRIES entries; `slot` is below that.
        unsafe { &*self.data.add(slot(linear)) }
    }

    /// As [`Mmu::data_entry`], for implicit supervisor accesses.
    #[inline(always)]
    pub(super) fn implicit_entry(&self, linear: u64) -> &TlbEntry {
        // SAFETY: as above.
        unsafe { &*self.implicit.add(slot(linear)) }
    }

    /// As [`Mmu::data_entry`], for instruction fetches.
    #[inline(always)]
    pub(super) fn code_entry(&self, linear: u64) -> &TlbEntry {
        // SAFETY: as above.
        unsafe { &*self.code.add(slot(linear)) }
    }

    /// Makes the context of `key` the current one.
    pub(super) fn select(&mut self, key: Key) {
        self.clock += 1;
        let mut evicted = false;
        if let Some(found) = self.keys.iter().position(|k| *k == key) {
            self.current = found;
        } else if self.contexts.len() < CONTEXTS {
            self.current = self.contexts.len();
            self.contexts.push(Context::new(key));
            self.keys.push(key);
            self.contexts[self.current].group = self.group(key);
        } else {
            let oldest = self.contexts.iter().enumerate().min_by_key(|(_, c)| c.used).map_or(0, |(i, _)| i);
            self.contexts[oldest].flush(false);
            self.contexts[oldest].key = key;
            self.keys[oldest] = key;
            evicted = true;
            self.current = oldest;
            self.contexts[oldest].group = self.group(key);
            self.tidy_groups();
        }
        self.contexts[self.current].used = self.clock;
        self.space_selected(evicted);
    }

    /// Points the three arrays at the current context.
    fn point(&mut self, smap: bool, cpl: u8, ac: bool, align_check: bool) {
        let Some(context) = self.contexts.get(self.current) else { return };
        self.implicit_view = if smap { View::SupervisorSmap } else { View::Supervisor };
        self.data_view = match (cpl, smap && !ac) {
            (3, _) => View::User,
            (_, true) => View::SupervisorSmap,
            (_, false) => View::Supervisor,
        };
        self.code_view = if cpl == 3 { View::User } else { self.implicit_view };
        // With alignment checking every access takes the slow path, which is where #AC is raised.
        self.data = if align_check { NOTHING.as_ptr() } else { context.array(self.data_view) };
        self.implicit = context.array(self.implicit_view);
        self.code = context.array(self.code_view);
    }
}

impl Cpu {
    /// The TLB array of explicit data accesses, for translated code.
    #[must_use]
    pub fn data_array(&self) -> *const TlbEntry {
        self.mmu.data
    }

    /// The array of supervisor accesses that SMAP checks, or of those that it does not.
    #[must_use]
    pub fn view_array(&self, checked: bool) -> *const TlbEntry {
        let view = if checked { View::SupervisorSmap } else { View::Supervisor };
        self.mmu.contexts.get(self.mmu.current).map_or(NOTHING.as_ptr(), |c| c.array(view))
    }

    /// The arrays of data accesses at CPL 3 and at CPL 0 with RFLAGS.AC = 0, and how the views of code differ, as bits of
    /// a number of [`Cpu::code_epochs`].
    #[must_use]
    pub fn privilege_arrays(&self) -> (*const TlbEntry, *const TlbEntry, u16) {
        let kernel = self.mmu.implicit_view;
        let nothing = (NOTHING.as_ptr(), NOTHING.as_ptr());
        let context = self.mmu.contexts.get(self.mmu.current);
        let (user, own) = context.map_or(nothing, |c| (c.array(View::User), c.array(kernel)));
        (user, own, View::User as u16 ^ kernel as u16)
    }

    /// At VM entry, when `ctl` and the guest state are loaded: selects the address space. With VPID disabled
    /// a VM transition flushes linear and combined mappings of VPID 0 (SDM 29.4.3.1).
    pub fn mmu_enter(&mut self) {
        if self.ctl.vpid == 0 {
            self.invalidate(Invalidation::Vpid { vpid: 0 });
        }
        let capability = self.model.vmx.ept_vpid;
        self.mmu.ept.support = super::ept::Support {
            execute_only: capability & ept_vpid::EXECUTE_ONLY != 0,
            huge: capability & ept_vpid::PAGE_1G != 0,
        };
        self.mmu_debug_changed();
        self.mmu_context_changed();
    }

    /// Selects the address space of the present CR0, CR3, CR4, EFER and VMCS. Flushes nothing: see
    /// [`Cpu::mmu_cr_written`] for what MOV CR flushes.
    pub fn mmu_context_changed(&mut self) {
        let s = &*self.state;
        let pg = s.cr0 & cr::CR0_PG != 0;
        let pcid = if s.cr4 & cr::CR4_PCIDE != 0 { (s.cr3 & 0xfff) as u16 } else { 0 };
        let bit = |set: bool, n: u16| u16::from(set) << n;
        let bits = bit(pg, 0)
            | bit(s.cr0 & cr::CR0_WP != 0, 1)
            | bit(s.cr4 & cr::CR4_PAE != 0, 2)
            | bit(s.cr4 & cr::CR4_PSE != 0, 3)
            | bit(s.cr4 & cr::CR4_SMEP != 0, 4)
            | bit(s.cr4 & cr::CR4_SMAP != 0, 5)
            | bit(s.efer & cr::EFER_NXE != 0, 6)
            | bit(s.efer & cr::EFER_LMA != 0, 7)
            | bit(s.cr4 & cr::CR4_PGE != 0, 8);
        let key = Key { eptp: self.ctl.ept_pointer, vpid: self.ctl.vpid, pcid, bits: if pg { bits } else { 0 } };
        self.mmu.select(key);
        self.mmu.ept.select(key.eptp);
        self.mmu_view_changed();
    }

    /// Selects the TLB arrays of the present CPL and RFLAGS.AC. [`Cpu::update_mode`] calls it.
    #[inline]
    pub fn mmu_view_changed(&mut self) {
        let s = &*self.state;
        let smap = s.cr4 & cr::CR4_SMAP != 0 && s.cr0 & cr::CR0_PG != 0;
        let ac = s.rflags & crate::state::flag::AC != 0;
        self.mmu.point(smap, self.mode.cpl, ac, self.mode.align_check);
    }
}
