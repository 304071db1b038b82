//! Data breakpoints (SDM 18.2): pages that hold one never enter the fast path, so that `slow` sees every
//! access to them. Instruction and I/O breakpoints are not here.

use super::Invalidation;
use crate::cpu::Cpu;

/// One armed data breakpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Armed {
    address: u64,
    /// Length in bytes; 0 when the register is not armed for data.
    len: u64,
    /// Reads match too.
    read: bool,
}

/// The armed data breakpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watch {
    armed: [Armed; 4],
    any: bool,
}

impl Watch {
    fn new(dr: &[u64; 4], dr7: u64) -> Self {
        let mut watch = Self::default();
        for (i, armed) in watch.armed.iter_mut().enumerate() {
            let enabled = dr7 >> (2 * i) & 3 != 0;
            let control = dr7 >> (16 + 4 * i);
            let kind = control & 3;
            if !enabled || kind & 1 == 0 {
                continue; // 0 is execution, 2 is I/O
            }
            let len = match control >> 2 & 3 {
                0 => 1,
                1 => 2,
                2 => 8,
                _ => 4,
            };
            *armed = Armed { address: dr[i] & !(len - 1), len, read: kind == 3 };
            watch.any = true;
        }
        watch
    }

    /// Is any breakpoint armed?
    #[inline]
    pub fn any(&self) -> bool {
        self.any
    }

    /// Does the page hold an armed byte?
    #[inline]
    pub fn covers(&self, page: u64) -> bool {
        self.any && self.armed.iter().any(|a| a.len != 0 && a.address & !0xfff == page)
    }

    /// Bits 3:0: the breakpoints that an access meets.
    fn hits(&self, linear: u64, len: u64, write: bool) -> u64 {
        let mut bits = 0;
        for (i, a) in self.armed.iter().enumerate() {
            let overlap = a.address.wrapping_sub(linear) < len || linear.wrapping_sub(a.address) < a.len;
            if a.len != 0 && overlap && (write || a.read) {
                bits |= 1 << i;
            }
        }
        bits
    }
}

/// "Enabled breakpoint" in the pending debug exceptions (SDM table 25-4).
const ENABLED_BREAKPOINT: u64 = 1 << 12;

impl Cpu {
    /// After a change of DR0..DR3 or DR7.
    pub fn mmu_debug_changed(&mut self) {
        let watch = Watch::new(&self.state.dr, self.state.dr7);
        if watch == self.mmu.watch {
            return;
        }
        self.mmu.watch = watch;
        if watch.any {
            self.invalidate(Invalidation::Everything);
        }
    }

    /// An access was made: sets the pending debug exceptions of the breakpoints it met.
    #[inline]
    pub(super) fn watch_access(&mut self, linear: u64, len: u64, write: bool) {
        if !self.mmu.watch.any {
            return;
        }
        let bits = self.mmu.watch.hits(linear, len, write);
        if bits != 0 {
            self.state.pending_debug |= bits | ENABLED_BREAKPOINT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_match_by_overlap_and_kind() {
        // DR0: write, 4 bytes at 0x1004; DR1: read or write, 8 bytes at 0x2000; DR2: execution.
        let dr7 = 0b01_01_01 | 0b1101 << 16 | 0b1011 << 20;
        let watch = Watch::new(&[0x1004, 0x2003, 0x3000, 0x4000], dr7);
        assert_eq!(watch.hits(0x1000, 4, true), 0);
        assert_eq!(watch.hits(0x1000, 5, true), 1);
        assert_eq!(watch.hits(0x1007, 1, true), 1);
        assert_eq!(watch.hits(0x1007, 1, false), 0);
        assert_eq!(watch.hits(0x2007, 1, false), 2);
        assert_eq!(watch.hits(0x2008, 1, false), 0);
        assert!(watch.covers(0x1000) && watch.covers(0x2000) && !watch.covers(0x3000) && !watch.covers(0x4000));
    }
}
