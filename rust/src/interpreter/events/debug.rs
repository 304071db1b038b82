//! Debug exceptions: traps and breakpoints that are due, and what #DB does to DR6 and DR7.
//!
//! SDM vol. 3, 17.2 to 17.4. TF is the run loop's and data breakpoints are the data path's to note; moves to and from the
//! debug registers are `system::debug_registers`.

use crate::cpu::{Bits, Cpu};
use crate::state::{flag, seg};
use crate::stop::{Event, EventKind, vector};

use super::blocking;

/// Pending debug exceptions (SDM table 25-4): an enabled breakpoint was met.
pub const BREAKPOINT_ENABLED: u64 = 1 << 12;
/// DR6: access to a debug register with DR7.GD = 1.
pub const DR6_BD: u64 = 1 << 13;
/// DR6 and pending debug exceptions: single step.
pub const DR6_BS: u64 = 1 << 14;
const DR7_GD: u64 = 1 << 13;
const DEBUGCTL_LBR: u64 = 1 << 0;
/// IA32_DEBUGCTL: single-step on branches.
pub const DEBUGCTL_BTF: u64 = 1 << 1;

/// #DB with the given DR6 bits.
pub(super) fn debug_exception(payload: u64) -> Event {
    Event { vector: vector::DB, kind: EventKind::Hardware, error: None, payload, length: 0 }
}

impl Cpu {
    /// DR6, DR7 and IA32_DEBUGCTL as a delivered debug exception leaves them (SDM vol. 3, 17.2.3, 17.4.1):
    /// B0 to B3 are replaced, BD and BS are sticky; GD, LBR and BTF are cleared.
    pub(super) fn enter_debug_exception(&mut self, payload: u64) {
        self.state.dr6 = self.state.dr6 & !15 | payload & (15 | DR6_BD | DR6_BS);
        self.state.dr7 &= !DR7_GD;
        self.state.debugctl &= !(DEBUGCTL_LBR | DEBUGCTL_BTF);
    }

    /// Debug traps that are due and not held back by MOV SS: their DR6 bits.
    pub(super) fn take_debug_trap(&mut self) -> Option<u64> {
        let pending = self.state.pending_debug;
        if pending == 0 || self.state.interruptibility & blocking::MOV_SS != 0 {
            return None;
        }
        self.state.pending_debug = 0;
        (pending & (BREAKPOINT_ENABLED | DR6_BS) != 0).then_some(pending & (15 | DR6_BS))
    }

    /// Breakpoints of a kind (R/W field) that are enabled, as a mask of B0 to B3.
    pub(crate) fn armed_breakpoints(&self, kind: u64) -> u64 {
        let dr7 = self.state.dr7;
        (0..4).filter(|n| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 == kind).map(|n| 1 << n).sum()
    }

    /// DR6 bits of the instruction breakpoints at the next instruction, unless RF or MOV SS hold them.
    pub(super) fn instruction_breakpoint(&self) -> Option<u64> {
        let s = &*self.state;
        if s.dr7 & 0xff == 0 || s.rflags & flag::RF != 0 || s.interruptibility & blocking::MOV_SS != 0 {
            return None;
        }
        let linear = self.linear_rip();
        let armed = self.armed_breakpoints(0);
        let hits: u64 = (0..4).filter(|&n| armed >> n & 1 != 0 && s.dr[n] == linear).map(|n| 1 << n).sum();
        (hits != 0).then_some(hits)
    }

    /// Linear address of the next instruction.
    pub(crate) fn linear_rip(&self) -> u64 {
        if self.mode.bits == Bits::B64 {
            self.state.rip
        } else {
            self.state.seg[seg::CS].base.wrapping_add(self.state.rip) & 0xffff_ffff
        }
    }
}
