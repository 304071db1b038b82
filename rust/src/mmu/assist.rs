//! Accesses that EPT denies, or page tables where every #PF exits: the VM exit with its decode assist, the
//! replay of results that L0 handed back, and the one-shot permit for tracked pages.
//!
//! An instruction with several such accesses exits once for each; at each new attempt the earlier ones are
//! answered from `state.replay` in order. Port I/O uses the same replay.

use super::ept::{self, Miss};
use crate::cpu::Cpu;
use crate::stop::{Exec, Stop};
use crate::vmx::ExitInfo;

/// Kinds of access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum AccessKind {
    /// Data read.
    Read = 0,
    /// Data write (and read-modify-write).
    Write = 1,
    /// Instruction fetch.
    Fetch = 2,
}

/// Basic exit reasons (SDM appendix C).
const EPT_VIOLATION: u32 = 48;
const EPT_MISCONFIGURATION: u32 = 49;

/// Values of `state.assist_kind`.
pub mod assist_kind {
    /// Nothing that L0 could do in the instruction's place.
    pub const NONE: u64 = 0;
    /// A read outside of mapped memory.
    pub const MMIO_READ: u64 = 3;
    /// A write outside of mapped memory.
    pub const MMIO_WRITE: u64 = 4;
    /// A write to a page that may be read only.
    pub const TRACKED_WRITE: u64 = 5;
    /// VMCLEAR, VMPTRLD, VMXON: `assist_data` is the pointer that their memory operand holds.
    pub const POINTER: u64 = 6;
}

/// Values of `state.assist_done`.
mod done {
    pub const RESULT: u64 = 1;
    pub const PERMIT: u64 = 2;
}

/// Who denies an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    /// EPT.
    Ept(Miss),
    /// The guest's own paging, with this error code, where page faults exit and there is no EPT.
    PageFault(u32),
}

/// An access that is denied. Without EPT guest-physical addresses are not known: linear ones stand for them.
#[derive(Clone, Copy, Debug)]
pub struct Denial {
    cause: Cause,
    gpa: u64,
    /// The linear address; none where the access has none (PDPTE loads).
    linear: Option<u64>,
    /// Exit qualification bits 2:0.
    access: u64,
    /// The access is to the translation of the linear address, not to a paging structure.
    translation: bool,
}

impl Denial {
    /// A data access or fetch.
    #[must_use]
    pub fn new(miss: Miss, gpa: u64, linear: Option<u64>, kind: AccessKind) -> Self {
        Self { cause: Cause::Ept(miss), gpa, linear, access: 1 << kind as u8, translation: true }
    }

    /// A data access that page-faults with the error code `error`.
    #[must_use]
    pub fn page_fault(linear: u64, error: u32, kind: AccessKind) -> Self {
        let cause = Cause::PageFault(error);
        Self { cause, gpa: linear, linear: Some(linear), access: 1 << kind as u8, translation: true }
    }

    /// The guest's own paging denies it, and that exits.
    pub(super) fn is_page_fault(&self) -> bool {
        matches!(self.cause, Cause::PageFault(_))
    }

    /// Exit qualification for EPT violations (SDM table 28-7).
    fn qualification(&self) -> u64 {
        match self.cause {
            Cause::Ept(Miss::Misconfiguration) | Cause::PageFault(_) => 0,
            Cause::Ept(Miss::Violation { allowed, .. }) => {
                self.access
                    | u64::from(allowed) << 3
                    | u64::from(self.linear.is_some()) << 7
                    | u64::from(self.linear.is_some() && self.translation) << 8
            }
        }
    }

    /// The same for a byte further on in the page.
    pub(super) fn advance(mut self, bytes: u64) -> Self {
        self.gpa += bytes;
        self.linear = self.linear.map(|l| l.wrapping_add(bytes));
        self
    }

    /// Host-physical address, where the page may be read.
    pub(super) fn readable(&self) -> Option<u64> {
        match self.cause {
            Cause::Ept(Miss::Violation { allowed, host_page }) if allowed & ept::READ != 0 => {
                Some(host_page | (self.gpa & 0xfff))
            }
            _ => None,
        }
    }
}

/// How a denied write goes on.
pub(super) enum Denied {
    /// L0 has done it.
    Done,
    /// L0 permits it, this once, at this host-physical address.
    Permit(u64),
}

impl Cpu {
    /// At VM entry: takes in what L0 answered to the last exit.
    pub fn replay_begin(&mut self) {
        let s = &mut *self.state;
        let count = s.replay_count as usize;
        match s.assist_done {
            done::RESULT if count < s.replay.len() => {
                s.replay[count] = s.assist_result;
                s.replay_count += 1;
                s.assist_done = 0;
            }
            done::PERMIT => {}
            _ => {
                s.replay_count = 0;
                s.assist_done = 0;
            }
        }
        self.replay_cursor = 0;
    }

    /// After an instruction is complete (also with a fault): nothing is left to replay.
    #[inline]
    pub fn replay_end(&mut self) {
        self.replay_cursor = 0;
        self.state.replay_count = 0;
        self.state.assist_done = 0;
    }

    /// Is there something to replay or permit? The run loop calls [`Cpu::replay_end`] only then, and takes
    /// no event before the instruction.
    #[inline]
    #[must_use]
    pub fn replaying(&self) -> bool {
        self.state.replay_count | self.state.assist_done != 0
    }

    /// The result of this instruction's next port or MMIO access, if L0 has handed it back already.
    #[inline]
    pub fn replay_next(&mut self) -> Option<u64> {
        let cursor = self.replay_cursor;
        if cursor >= self.state.replay_count {
            return None;
        }
        self.replay_cursor += 1;
        self.state.replay.get(cursor as usize).copied()
    }

    fn deny(&mut self, denial: Denial, kind: u64, width: u32, data: u64) -> Stop {
        if let Cause::PageFault(error) = denial.cause {
            self.assist(denial.gpa, kind, width, data);
            let fault = self.raise_pf(denial.gpa, error);
            // The exit at once: a fault would end the instruction, and what is to be replayed with it.
            let event = self.fault;
            return self.check_exception(&event).unwrap_or(fault);
        }
        if self.replay_cursor as usize >= self.state.replay.len() {
            return Stop::Missing; // more accesses than can be replayed
        }
        let reason =
            if denial.cause == Cause::Ept(Miss::Misconfiguration) { EPT_MISCONFIGURATION } else { EPT_VIOLATION };
        self.exit = ExitInfo {
            reason,
            qualification: denial.qualification(),
            guest_physical: denial.gpa,
            guest_linear: denial.linear.unwrap_or(0),
            ..ExitInfo::default()
        };
        self.assist(denial.gpa, kind, width, data);
        Stop::Exit
    }

    fn assist(&mut self, address: u64, kind: u64, width: u32, data: u64) {
        let s = &mut *self.state;
        s.assist_kind = kind;
        s.assist_address = address;
        s.assist_width = u64::from(width);
        s.assist_data = data;
    }

    /// What is to become of a page fault of the guest's paging: a denied access where every #PF exits and there
    /// is no EPT, so that L0 can answer for a device; else the fault, which L0 cannot do anything for.
    pub(super) fn page_fault_denied(&mut self, linear: u64, kind: AccessKind) -> Option<Denial> {
        const PF: u8 = crate::stop::vector::PF;
        if self.ctl.exception_bitmap >> PF & 1 == 0 || self.ctl.ept() || self.fault.vector != PF {
            return None;
        }
        self.state.assist_kind = assist_kind::NONE;
        match kind {
            AccessKind::Fetch => None,
            _ => Some(Denial::page_fault(linear, self.fault.error.unwrap_or(0), kind)),
        }
    }

    fn permitted(&self, gpa: u64) -> bool {
        self.state.assist_done == done::PERMIT && self.state.assist_address >> 12 == gpa >> 12
    }

    /// Host-physical address of a denied write that L0 permits this once.
    pub(super) fn permitted_address(&self, denial: &Denial) -> Option<u64> {
        let readable = denial.readable().filter(|&pa| self.memory.contains(pa, 1));
        readable.filter(|_| self.permitted(denial.gpa))
    }

    /// A denied read of `width` bytes. `modify`: it belongs to a read-modify-write.
    pub(super) fn denied_read(&mut self, mut denial: Denial, width: u32, modify: bool) -> Exec<u64> {
        if let Some(value) = self.replay_next() {
            return Ok(value);
        }
        denial.access = if modify { 3 } else { 1 };
        Err(self.deny(denial, assist_kind::MMIO_READ, width, 0))
    }

    /// A denied write.
    pub(super) fn denied_write(&mut self, denial: Denial, width: u32, data: u64) -> Exec<Denied> {
        if let Some(pa) = self.permitted_address(&denial) {
            return Ok(Denied::Permit(pa));
        }
        let readable = denial.readable().filter(|&pa| self.memory.contains(pa, 1));
        if self.replay_next().is_some() {
            return Ok(Denied::Done);
        }
        let kind = if readable.is_some() { assist_kind::TRACKED_WRITE } else { assist_kind::MMIO_WRITE };
        Err(self.deny(denial, kind, width, data))
    }

    /// A denied fetch, or another access that L0 cannot do in the instruction's place.
    pub(super) fn denied_fetch(&mut self, denial: Denial) -> Stop {
        self.deny(denial, assist_kind::NONE, 0, 0)
    }

    /// A denied access to a paging-structure entry (of `linear`, or a PDPTE load).
    #[cold]
    pub(super) fn paging_entry_denied(&mut self, miss: Miss, gpa: u64, need: u8, linear: Option<u64>) -> Exec<u64> {
        let denial = Denial { cause: Cause::Ept(miss), gpa, linear, access: u64::from(need), translation: false };
        let tracked = need & ept::WRITE != 0 && denial.readable().is_some();
        if tracked
            && self.permitted(gpa)
            && let Some(pa) = denial.readable()
        {
            return Ok(pa);
        }
        Err(self.deny(denial, if tracked { assist_kind::TRACKED_WRITE } else { assist_kind::NONE }, 8, 0))
    }
}
