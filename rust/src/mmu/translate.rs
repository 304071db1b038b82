//! From a linear address to what an access touches: paging, then EPT, then the TLB is filled.
//!
//! It performs no data access. An access that EPT denies is described, not decided: the accessor may have
//! its result already (replay), or L0's permit.

use super::assist::{AccessKind, Denial};
use super::ept::{self, Miss};
use super::tlb::View;
use crate::cpu::Cpu;
use crate::stop::{Exec, Stop};

/// An access, as paging sees it.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Read, write or fetch.
    pub kind: AccessKind,
    /// User-mode access: explicit, at CPL 3.
    pub user: bool,
    /// User pages are denied to supervisor-mode data accesses.
    pub smap: bool,
}

impl Access {
    /// An access through `view`.
    pub fn new(kind: AccessKind, view: View) -> Self {
        Self { kind, user: view == View::User, smap: view == View::SupervisorSmap }
    }
}

/// What an access touches.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// RAM (or the pool), by host-physical address.
    Ram(u64),
    /// The bus, by host-physical address.
    Bus(u64),
    /// The APIC-access page, by guest-physical address.
    Apic(u64),
    /// EPT denies it, or the guest's paging where L0 has every page fault.
    Denied(Denial),
}

impl Cpu {
    /// Translates one access within a page. Faults, and exits for the paging structures themselves, are
    /// errors.
    pub(super) fn translate(&mut self, linear: u64, kind: AccessKind, view: View) -> Exec<Target> {
        if self.mmu.contexts.is_empty() {
            self.mmu_context_changed();
        }
        // Only 4-level paging has linear addresses wider than 32 bits.
        if (linear as i64) << 16 >> 16 != linear as i64 {
            let stop = self.gp0();
            self.fault.payload = linear;
            return Err(stop);
        }
        let access = Access::new(kind, view);
        let leaf = match self.walk(linear, access) {
            Ok(leaf) => leaf,
            Err(stop) => {
                let denial = if stop == Stop::Fault { self.page_fault_denied(linear, kind) } else { None };
                return denial.map(Target::Denied).ok_or(stop);
            }
        };
        let gpa = leaf.page | (linear & 0xfff);
        let need = match kind {
            AccessKind::Read => ept::READ,
            AccessKind::Write => ept::READ | ept::WRITE,
            AccessKind::Fetch => ept::EXECUTE,
        };
        let hit = match self.mmu.ept.translate(&self.memory, gpa, need) {
            Ok(hit) => hit,
            Err(miss) => return Ok(self.denied(miss, gpa, linear, kind)),
        };
        if hit.host_page == self.ctl.apic_access_pa {
            return Ok(Target::Apic(gpa));
        }
        let pa = hit.host_page | (linear & 0xfff);
        if !self.memory.contains(hit.host_page, 4096) {
            return Ok(Target::Bus(pa));
        }
        let page = linear & !0xfff;
        let watched = self.mmu.watch.covers(page);
        let write = leaf.allowed[1] && hit.allowed & ept::WRITE != 0 && self.may_write(kind, hit.host_page);
        let allow = [
            leaf.allowed[0] && hit.allowed & ept::READ != 0 && !watched,
            write && !watched,
            leaf.allowed[2] && hit.allowed & ept::EXECUTE != 0,
        ];
        let host = self.memory.ptr(hit.host_page) as u64;
        let current = self.mmu.current;
        let context = &mut self.mmu.contexts[current];
        if view == self.mmu.implicit_view {
            let passing = context.passing(linear, leaf.global);
            let entry = context.fill(view, page, host, allow, leaf.global, leaf.large);
            let global = leaf.global || passing && entry.set_passing();
            self.mmu.note_supervisor(linear, global);
        } else {
            context.fill(view, page, host, allow, leaf.global, leaf.large);
        }
        Ok(Target::Ram(pa))
    }

    /// May writes to the page pass without notice from now on? Asked for when a write comes; a read takes
    /// the permission along only where that changes nothing.
    fn may_write(&self, kind: AccessKind, host_page: u64) -> bool {
        use crate::memory::page_flag::{CODE, DIRTY, WRITABLE};
        if kind == AccessKind::Write {
            return self.memory.pages().allow_write(host_page);
        }
        self.memory.flags(host_page) & (CODE | DIRTY | WRITABLE) == DIRTY | WRITABLE
    }

    fn denied(&self, miss: Miss, gpa: u64, linear: u64, kind: AccessKind) -> Target {
        Target::Denied(Denial::new(miss, gpa, Some(linear), kind))
    }
}
