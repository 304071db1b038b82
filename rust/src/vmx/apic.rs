//! The virtual APIC as far as it goes without virtual-interrupt delivery: TPR shadow, virtualized APIC accesses,
//! x2APIC mode (SDM vol. 3, chapter 30).
//!
//! Only the task-priority register is virtualized; every other register of the APIC exits.

use super::bits::{primary, secondary};
use super::controls::NONE;
use super::reasons::reason;
use crate::cpu::Cpu;
use crate::stop::Exec;

/// Offset of VTPR in the virtual-APIC page.
const VTPR: u64 = 0x80;
/// IA32_X2APIC_TPR.
const MSR_TPR: u32 = 0x808;

/// How an instruction came to the APIC-access page (SDM table 28-6, bits 15:12).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ApicAccess {
    /// Linear read during instruction execution.
    Read = 0,
    /// Linear write during instruction execution.
    Write = 1,
    /// Instruction fetch.
    Fetch = 2,
    /// Linear access during event delivery.
    Delivery = 3,
    /// Guest-physical access during event delivery.
    PhysicalDelivery = 10,
    /// Guest-physical access for an instruction fetch or during execution (page walks).
    Physical = 15,
}

impl Cpu {
    /// CR8 as MOV from CR8 reads it: VTPR 7:4 under "use TPR shadow".
    #[must_use]
    pub fn cr8(&mut self) -> u64 {
        if self.ctl.primary & primary::TPR_SHADOW != 0 { self.vtpr() >> 4 & 15 } else { self.state.cr8 }
    }

    /// MOV to CR8 that did not exit; bits 63:4 were checked by the caller.
    pub fn set_cr8(&mut self, value: u64) {
        if self.ctl.primary & primary::TPR_SHADOW != 0 {
            self.set_vtpr((value & 15) << 4);
        } else {
            self.state.cr8 = value & 15;
        }
    }

    fn vtpr(&self) -> u64 {
        u64::from(self.host_byte(self.ctl.virtual_apic_pa.wrapping_add(VTPR)))
    }

    /// A VTPR below the threshold causes an exit, at entry or after the instruction that wrote it.
    pub(super) fn check_tpr_threshold(&mut self) {
        if (self.vtpr() >> 4 & 15) < u64::from(self.ctl.tpr_threshold & 15) {
            self.ctl.trap_exit = reason::TPR_BELOW_THRESHOLD;
            self.boundary = true;
        }
    }

    /// Writes VTPR and virtualizes the TPR (SDM 30.1.2): below the threshold an exit is due after the instruction.
    fn set_vtpr(&mut self, value: u64) {
        self.set_host_u32(self.ctl.virtual_apic_pa.wrapping_add(VTPR), value as u32 & 0xff);
        self.check_tpr_threshold();
    }

    /// RDMSR of an x2APIC register that "virtualize x2APIC mode" answers; none: the physical APIC's.
    #[must_use]
    pub fn x2apic_read(&mut self, msr: u32) -> Option<u64> {
        let on = self.ctl.secondary & secondary::X2APIC != 0 && self.ctl.virtual_apic_pa != NONE;
        (on && msr == MSR_TPR).then(|| self.vtpr())
    }

    /// WRMSR of an x2APIC register: true when "virtualize x2APIC mode" took it.
    ///
    /// # Errors
    /// #GP(0) for a value with reserved bits.
    pub fn x2apic_write(&mut self, msr: u32, value: u64) -> Exec<bool> {
        let on = self.ctl.secondary & secondary::X2APIC != 0 && self.ctl.virtual_apic_pa != NONE;
        if !on || msr != MSR_TPR {
            return Ok(false);
        }
        if value > 0xff {
            return Err(self.gp0());
        }
        self.set_vtpr(value);
        Ok(true)
    }

    /// An access that ended in the APIC-access page, at `guest_physical` (of which bits 11:0 are the
    /// register): virtualized, or an exit with the assist filled. A read returns its data.
    ///
    /// # Errors
    /// The exit.
    pub fn apic_access(
        &mut self,
        linear: u64,
        guest_physical: u64,
        access: ApicAccess,
        width: u32,
        data: u64,
    ) -> Exec<u64> {
        let offset = guest_physical & 0xfff;
        let access = match access {
            ApicAccess::Read | ApicAccess::Write if self.delivering.is_some() => ApicAccess::Delivery,
            other => other,
        };
        // SDM 30.4.2 and 30.4.3: only TPR, within its 32 bits, from an instruction.
        let inside = offset >= VTPR && offset + u64::from(width) <= VTPR + 4;
        if self.ctl.primary & primary::TPR_SHADOW != 0 && inside {
            let pa = self.ctl.virtual_apic_pa.wrapping_add(offset);
            match access {
                ApicAccess::Read => {
                    let mut value = 0;
                    for n in 0..u64::from(width) {
                        value |= u64::from(self.host_byte(pa.wrapping_add(n))) << (8 * n);
                    }
                    return Ok(value);
                }
                ApicAccess::Write => {
                    let mut bytes = self.vtpr();
                    if offset == VTPR {
                        bytes = data & 0xff;
                    }
                    self.set_vtpr(bytes); // bytes 3:1 of the TPR are cleared (SDM 30.4.3.2)
                    return Ok(0);
                }
                _ => {}
            }
        }
        let stop = self.exit_insn(reason::APIC_ACCESS, offset | (access as u64) << 12);
        self.exit.guest_linear = linear;
        let write = matches!(access, ApicAccess::Write);
        self.state.assist_kind = if write { 4 } else { 3 };
        self.state.assist_address = guest_physical;
        self.state.assist_width = u64::from(width);
        self.state.assist_data = if write { data } else { 0 };
        Err(stop)
    }
}
