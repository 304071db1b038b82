//! The VM-entry MSR-load area and the VM-exit MSR-store area (SDM 27.4, 28.4).
//!
//! The VM-exit MSR-load area holds host values, which silicon does not load; its address is checked only.

use super::fields::slot;
use crate::cpu::Cpu;
use crate::interpreter::system::msr::number::TSC;
use crate::state::cr;
use crate::stop::Stop;

/// Entries beyond this are not processed: a count that no software means.
const MOST: u64 = 512;

/// An MSR that an area may not name for loading (SDM 27.4).
fn forbidden(index: u32) -> bool {
    // FS_BASE and GS_BASE belong to the segments; x2APIC registers; microcode update; SMM monitor control.
    matches!(index, 0xc000_0100 | 0xc000_0101 | 0x800..=0x8ff | 0x79 | 0x8b | 0x9b)
}

impl Cpu {
    /// Loads MSRs at VM entry; the number (from 1) of the entry that cannot be loaded.
    pub(super) fn load_msrs(&mut self) -> Result<(), u64> {
        let count = self.vmcs.get(slot::ENTRY_MSR_LOAD_COUNT) & 0xffff_ffff;
        let area = self.vmcs.get(slot::ENTRY_MSR_LOAD_ADDRESS);
        if count > MOST {
            return Err(MOST + 1);
        }
        for n in 0..count {
            let index: u64 = self.memory.read(area + 16 * n);
            let value: u64 = self.memory.read(area + 16 * n + 8);
            // Bits 127:64 of the entry: the index and reserved bits.
            if index >> 32 != 0 || forbidden(index as u32) || !self.load_msr(index as u32, value) {
                return Err(n + 1);
            }
        }
        Ok(())
    }

    /// As WRMSR at CPL 0 would; false where that raises #GP.
    fn load_msr(&mut self, index: u32, value: u64) -> bool {
        const EFER: u32 = 0xc000_0080;
        if index == EFER {
            // EFER.LME and LMA cannot be changed this way while paging is on.
            const MODE: u64 = cr::EFER_LME | cr::EFER_LMA;
            if (value ^ self.state.efer) & MODE != 0 && self.state.cr0 & cr::CR0_PG != 0 {
                return false;
            }
        }
        self.write_msr(index, value).is_ok()
    }

    /// Stores MSRs at VM exit. Err: an MSR that does not exist (VMX abort 1).
    pub(super) fn store_msrs(&mut self) -> Result<(), Stop> {
        let count = (self.vmcs.get(slot::EXIT_MSR_STORE_COUNT) & 0xffff_ffff).min(MOST);
        let area = self.vmcs.get(slot::EXIT_MSR_STORE_ADDRESS);
        for n in 0..count {
            let index: u64 = self.memory.read(area + 16 * n);
            if index >> 32 != 0 || matches!(index as u32, 0x800..=0x8ff) {
                return Err(Stop::Fault);
            }
            // The time-stamp counter is stored as it is: offset and multiplier apply to what the guest executes.
            let value = if index as u32 == TSC { self.host_tsc() } else { self.read_msr(index as u32)? };
            self.memory.write(area + 16 * n + 8, value);
        }
        Ok(())
    }
}
