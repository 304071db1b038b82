//! What instructions and VM transitions invalidate (SDM 4.10.4, 29.4.3).
//!
//! Linear and combined mappings live in the TLB contexts, guest-physical mappings in the EPT cache. Where
//! the SDM lets more be dropped than it demands, the simpler thing is dropped.

use super::tlb::Key;
use crate::cpu::Cpu;
use crate::state::cr;
use crate::stop::{Exec, vector};

/// A set of cached translations to drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidation {
    /// INVEPT: combined mappings of one EP4TA (any EPT pointer value with it), or of all; and the
    /// guest-physical ones.
    Ept {
        /// EPT pointer; `None` for all-context.
        eptp: Option<u64>,
    },
    /// Linear and combined mappings of one VPID, all PCIDs, global ones too.
    Vpid {
        /// The VPID.
        vpid: u16,
    },
    /// As `Vpid`, but global translations may stay.
    VpidRetainingGlobals {
        /// The VPID.
        vpid: u16,
    },
    /// One linear address of a VPID, in all PCIDs, global or not.
    Address {
        /// The VPID.
        vpid: u16,
        /// The linear address.
        linear: u64,
    },
    /// One PCID of a VPID; global translations may stay.
    Pcid {
        /// The VPID.
        vpid: u16,
        /// The PCID.
        pcid: u16,
    },
    /// Linear and combined mappings of all VPIDs but 0 (INVVPID type 2).
    AllVpids,
    /// All there is.
    Everything,
    /// Nothing is dropped but the fast path for writes to one host page, or (`None`) to all.
    WriteProtect {
        /// Host-physical page.
        page: Option<u64>,
    },
}

/// Does an INVEPT of `eptp` (`None`: all) reach the address space?
pub(super) fn names(eptp: Option<u64>, key: &Key) -> bool {
    eptp.is_none_or(|eptp| eptp & super::ADDRESS_MASK == key.ep4ta())
}

impl Cpu {
    /// Drops cached translations of this core.
    pub fn invalidate(&mut self, what: Invalidation) {
        let base = self.memory.base() as u64;
        self.drop_cached(what, base);
        self.mmu.drop_given_out(&what, base);
    }

    fn drop_cached(&mut self, what: Invalidation, base: u64) {
        let mmu = &mut self.mmu;
        if let Invalidation::Ept { eptp } = what {
            mmu.ept.invalidate(eptp.map(|e| e & super::ADDRESS_MASK));
        } else if what == Invalidation::Everything {
            mmu.ept.invalidate(None);
        }
        match what {
            Invalidation::Ept { eptp } => mmu.forget_global_targets(None, |key| key.eptp != 0 && names(eptp, key)),
            Invalidation::Vpid { vpid } => mmu.forget_global_targets(None, |key| key.vpid == vpid),
            Invalidation::Address { vpid, linear } => mmu.forget_global_targets(Some(linear), |key| key.vpid == vpid),
            Invalidation::AllVpids => mmu.forget_global_targets(None, |key| key.vpid != 0),
            Invalidation::Everything => mmu.forget_global_targets(None, |_| true),
            Invalidation::VpidRetainingGlobals { .. }
            | Invalidation::Pcid { .. }
            | Invalidation::WriteProtect { .. } => {}
        }
        for context in &mut mmu.contexts {
            let key = context.key;
            match what {
                Invalidation::Ept { eptp } if key.eptp != 0 && names(eptp, &key) => context.flush(false),
                Invalidation::Vpid { vpid } if key.vpid == vpid => context.flush(false),
                Invalidation::VpidRetainingGlobals { vpid } if key.vpid == vpid => context.flush(true),
                Invalidation::Address { vpid, linear } if key.vpid == vpid => context.flush_linear(linear, false),
                Invalidation::Pcid { vpid, pcid } if key.vpid == vpid && key.pcid == pcid => context.flush(true),
                Invalidation::AllVpids if key.vpid != 0 => context.flush(false),
                Invalidation::Everything => context.flush(false),
                Invalidation::WriteProtect { page } => {
                    context.write_protect(page.map(|pa| base.wrapping_add(pa & !0xfff)));
                }
                _ => {}
            }
        }
    }

    /// After MOV to CR0, CR3 or CR4 (`state` holds the new value, `old` the one before): invalidates what
    /// SDM 4.10.4.1 says and selects the address space. `no_flush`: bit 63 of the source of MOV to CR3
    /// with CR4.PCIDE = 1.
    pub fn mmu_cr_written(&mut self, n: u8, old: u64, no_flush: bool) {
        let vpid = self.ctl.vpid;
        let s = &*self.state;
        match n {
            0 if (s.cr0 ^ old) & cr::CR0_PG != 0 => self.invalidate(Invalidation::Vpid { vpid }),
            3 if !no_flush => {
                let pcid = if s.cr4 & cr::CR4_PCIDE != 0 { (s.cr3 & 0xfff) as u16 } else { 0 };
                self.invalidate(Invalidation::Pcid { vpid, pcid });
            }
            4 => {
                let changed = s.cr4 ^ old;
                let set_smep = changed & s.cr4 & cr::CR4_SMEP != 0;
                let cleared_pcide = changed & old & cr::CR4_PCIDE != 0;
                if changed & (cr::CR4_PGE | cr::CR4_PAE | cr::CR4_PSE) != 0 || set_smep || cleared_pcide {
                    self.invalidate(Invalidation::Vpid { vpid });
                }
            }
            _ => {}
        }
        self.mmu_context_changed();
    }

    /// INVLPG: one address in the current PCID, and global translations of it in all.
    pub fn invlpg(&mut self, linear: u64) {
        self.invalidate(Invalidation::Address { vpid: self.ctl.vpid, linear });
    }

    /// INVPCID. #GP(0) for bad types and descriptors (SDM vol. 2); CPL and #UD are the caller's.
    pub fn invpcid(&mut self, kind: u64, pcid: u64, linear: u64) -> Exec {
        let vpid = self.ctl.vpid;
        let canonical = (linear as i64) << 16 >> 16 == linear as i64;
        let pcid_allowed = self.state.cr4 & cr::CR4_PCIDE != 0 || pcid & 0xfff == 0;
        let bad = match kind {
            0 => pcid >> 12 != 0 || !pcid_allowed || !canonical,
            1 => pcid >> 12 != 0 || !pcid_allowed,
            2 | 3 => pcid >> 12 != 0,
            _ => true,
        };
        if bad {
            return Err(self.raise(vector::GP, Some(0)));
        }
        self.invalidate(match kind {
            0 => Invalidation::Address { vpid, linear },
            1 => Invalidation::Pcid { vpid, pcid: pcid as u16 },
            2 => Invalidation::Vpid { vpid },
            _ => Invalidation::VpidRetainingGlobals { vpid },
        });
        Ok(())
    }
}
