//! What must be enabled before a vector or x87 instruction may execute: #UD, #NM and pending #MF.
//!
//! Order as in the SDM's exception tables (vol. 2, 2.4 and 23.25.3): #UD, then #NM, then #MF, then memory.

use super::stub::Gate;
use crate::cpu::Cpu;
use crate::state::cr;
use crate::stop::{Exec, vector};

/// FSW.ES: an unmasked x87 exception is pending.
pub const FSW_ES: u64 = 1 << 7;

impl Cpu {
    /// The checks before an instruction of kind `gate`.
    #[inline]
    pub(super) fn vector_gate(&mut self, gate: Gate) -> Exec {
        let s = &*self.state;
        let ok = match gate {
            Gate::None => true,
            Gate::Sse => s.cr0 & (cr::CR0_EM | cr::CR0_TS) == 0 && s.cr4 & cr::CR4_OSFXSR != 0,
            Gate::Avx => {
                s.cr0 & cr::CR0_TS == 0 && s.cr4 & cr::CR4_OSXSAVE != 0 && s.xcr0 & 6 == 6 && self.mode.protected
            }
            Gate::X87 | Gate::Mmx => s.cr0 & (cr::CR0_EM | cr::CR0_TS) == 0 && s.fsw & FSW_ES == 0,
            Gate::MmxSse => {
                s.cr0 & (cr::CR0_EM | cr::CR0_TS) == 0 && s.cr4 & cr::CR4_OSFXSR != 0 && s.fsw & FSW_ES == 0
            }
        };
        if ok { Ok(()) } else { Err(self.vector_refused(gate)) }
    }

    #[cold]
    fn vector_refused(&mut self, gate: Gate) -> crate::stop::Stop {
        let s = &*self.state;
        let undefined = match gate {
            Gate::None | Gate::X87 => false,
            Gate::Mmx => s.cr0 & cr::CR0_EM != 0,
            Gate::Sse | Gate::MmxSse => s.cr0 & cr::CR0_EM != 0 || s.cr4 & cr::CR4_OSFXSR == 0,
            Gate::Avx => s.cr4 & cr::CR4_OSXSAVE == 0 || s.xcr0 & 6 != 6 || !self.mode.protected,
        };
        let unavailable = s.cr0 & cr::CR0_TS != 0 || gate == Gate::X87 && s.cr0 & cr::CR0_EM != 0;
        if undefined {
            self.ud()
        } else if unavailable {
            self.raise(vector::NM, None)
        } else {
            self.raise(vector::MF, None)
        }
    }

    /// x87 control instructions that do not wait: only #NM.
    #[inline]
    pub(super) fn x87_no_wait(&mut self) -> Exec {
        if self.state.cr0 & (cr::CR0_EM | cr::CR0_TS) == 0 { Ok(()) } else { Err(self.raise(vector::NM, None)) }
    }
}
