//! Instructions that cause VM exits, and those that behave differently in VMX non-root operation.
//!
//! SDM vol. 3, 26.1 and 26.3. Each is asked by the executor after the faults that come first (26.1.1). They
//! execute nothing. Port I/O is in `ports`, the TSC in `time`.

use super::bits::{primary, secondary};
use super::controls::NONE;
use super::reasons::reason;
use crate::cpu::Cpu;
use crate::state::cr;
use crate::stop::{Exec, Stop};

/// Access type of a control-register exit (SDM table 28-3, bits 5:4).
mod cr_access {
    pub const MOV_TO: u64 = 0 << 4;
    pub const MOV_FROM: u64 = 1 << 4;
    pub const CLTS: u64 = 2 << 4;
    pub const LMSW: u64 = 3 << 4;
}

impl Cpu {
    /// An exit if this bit of the primary controls is 1.
    ///
    /// # Errors
    /// The exit.
    #[inline]
    pub fn check_primary(&mut self, bit: u32, reason: u32, qualification: u64) -> Exec {
        if self.ctl.primary & bit != 0 { Err(self.exit_insn(reason, qualification)) } else { Ok(()) }
    }

    /// An exit if this bit of the secondary controls is 1.
    ///
    /// # Errors
    /// The exit.
    #[inline]
    pub fn check_secondary(&mut self, bit: u32, reason: u32, qualification: u64) -> Exec {
        if self.ctl.secondary & bit != 0 { Err(self.exit_insn(reason, qualification)) } else { Ok(()) }
    }

    /// LGDT, LIDT, SGDT, SIDT (reason 46) and LLDT, LTR, SLDT, STR (47) under descriptor-table exiting.
    ///
    /// # Errors
    /// The exit.
    #[inline]
    pub fn check_descriptor_table(&mut self, reason: u32, insn: &crate::decode::Insn) -> Exec {
        if self.ctl.secondary & secondary::DESCRIPTOR_TABLE != 0 {
            return Err(self.exit_insn_memory(reason, insn));
        }
        Ok(())
    }

    /// RDRAND under RDRAND exiting, RDSEED under RDSEED exiting.
    ///
    /// # Errors
    /// The exit.
    pub fn check_random(&mut self, seed: bool, insn: &crate::decode::Insn) -> Exec {
        let (bit, reason) =
            if seed { (secondary::RDSEED, reason::RDSEED) } else { (secondary::RDRAND, reason::RDRAND) };
        if self.ctl.secondary & bit != 0 { Err(self.exit_insn_info(reason, 0, insn)) } else { Ok(()) }
    }

    /// INVPCID: #UD without "enable INVPCID"; an exit under "INVLPG exiting".
    ///
    /// # Errors
    /// The exit or #UD. Ask before CPL and operands.
    pub fn check_invpcid(&mut self, insn: &crate::decode::Insn) -> Exec {
        if !self.enabled(secondary::INVPCID) {
            return Err(self.ud());
        }
        if self.cpl() != 0 {
            return Err(self.gp0());
        }
        if self.ctl.primary & primary::INVLPG != 0 {
            return Err(self.exit_insn_memory(reason::INVPCID, insn));
        }
        Ok(())
    }

    /// XSAVES or XRSTORS: #UD without "enable XSAVES/XRSTORS"; an exit if EDX:EAX and IA32_XSS have a bit in common with
    /// the XSS-exiting bitmap (SDM 26.1.3). Ask after the CPL check.
    ///
    /// # Errors
    /// The exit or #UD.
    pub fn check_xsaves(&mut self, restore: bool, requested: u64, insn: &crate::decode::Insn) -> Exec {
        if !self.enabled(secondary::XSAVES) {
            return Err(self.ud());
        }
        if requested & self.state.xss & self.ctl.xss_exiting != 0 {
            let reason = if restore { reason::XRSTORS } else { reason::XSAVES };
            return Err(self.exit_insn_memory(reason, insn));
        }
        Ok(())
    }

    /// PAUSE: "PAUSE exiting" counts at every privilege level.
    ///
    /// # Errors
    /// The exit.
    #[inline]
    pub fn check_pause(&mut self) -> Exec {
        self.check_primary(primary::PAUSE, reason::PAUSE, 0)
    }

    // --- control registers ---

    /// MOV to CR`n` (0, 3, 4, 8) of `value` from general register `gpr`: the value to write, in which bits
    /// that the host owns are kept; bits of CR0 and CR4 that VMX operation fixes are #GP(0).
    ///
    /// # Errors
    /// The exit or #GP(0).
    pub fn check_cr_write(&mut self, n: u8, gpr: u8, value: u64) -> Exec<u64> {
        let qualification = u64::from(n & 15) | cr_access::MOV_TO | u64::from(gpr & 15) << 8;
        match n {
            0 => {
                if (value ^ self.ctl.cr0_shadow) & self.ctl.cr0_mask != 0 {
                    return Err(self.exit_insn(reason::CR_ACCESS, qualification));
                }
                let merged = merge(self.state.cr0, value, self.ctl.cr0_mask);
                self.check_cr0_fixed(merged)?;
                Ok(merged)
            }
            4 => {
                if (value ^ self.ctl.cr4_shadow) & self.ctl.cr4_mask != 0 {
                    return Err(self.exit_insn(reason::CR_ACCESS, qualification));
                }
                let merged = merge(self.state.cr4, value, self.ctl.cr4_mask);
                if merged & self.model.vmx.cr4_fixed0 != self.model.vmx.cr4_fixed0 {
                    return Err(self.gp0());
                }
                Ok(merged)
            }
            3 => {
                if self.ctl.primary & primary::CR3_LOAD != 0 {
                    let count = self.ctl.cr3_target_count.min(4) as usize;
                    if !self.ctl.cr3_targets.iter().take(count).any(|&target| target == value) {
                        return Err(self.exit_insn(reason::CR_ACCESS, qualification));
                    }
                }
                Ok(value)
            }
            8 => {
                self.check_primary(primary::CR8_LOAD, reason::CR_ACCESS, qualification)?;
                Ok(value)
            }
            _ => Ok(value),
        }
    }

    /// #GP(0) for a CR0 that VMX operation does not support (SDM 24.8): NE must be 1, and PE and PG unless the
    /// guest is unrestricted.
    fn check_cr0_fixed(&mut self, value: u64) -> Exec {
        let mut fixed = self.model.vmx.cr0_fixed0;
        if self.ctl.unrestricted() {
            fixed &= !(cr::CR0_PE | cr::CR0_PG);
        }
        if value & fixed == fixed { Ok(()) } else { Err(self.gp0()) }
    }

    /// MOV from CR`n` to general register `gpr`.
    ///
    /// # Errors
    /// The exit.
    pub fn check_cr_read(&mut self, n: u8, gpr: u8) -> Exec {
        let qualification = u64::from(n & 15) | cr_access::MOV_FROM | u64::from(gpr & 15) << 8;
        match n {
            3 => self.check_primary(primary::CR3_STORE, reason::CR_ACCESS, qualification),
            8 => self.check_primary(primary::CR8_STORE, reason::CR_ACCESS, qualification),
            _ => Ok(()),
        }
    }

    /// What the guest reads from CR`n` (MOV from CR, SMSW): host-owned bits come from the read shadows.
    #[must_use]
    pub fn cr_read_value(&mut self, n: u8) -> u64 {
        match n {
            0 => merge(self.ctl.cr0_shadow, self.state.cr0, self.ctl.cr0_mask),
            2 => self.state.cr2,
            3 => self.state.cr3,
            4 => merge(self.ctl.cr4_shadow, self.state.cr4, self.ctl.cr4_mask),
            8 => self.cr8(),
            _ => 0,
        }
    }

    /// CLTS: whether TS is to be cleared (not, when the host owns it and the guest believes it clear).
    ///
    /// # Errors
    /// The exit.
    pub fn check_clts(&mut self) -> Exec<bool> {
        if self.ctl.cr0_mask & cr::CR0_TS == 0 {
            return Ok(true);
        }
        if self.ctl.cr0_shadow & cr::CR0_TS != 0 {
            return Err(self.exit_insn(reason::CR_ACCESS, cr_access::CLTS));
        }
        Ok(false)
    }

    /// LMSW of `source`, from memory at `linear` or from a register: the CR0 to write.
    ///
    /// # Errors
    /// The exit or #GP(0).
    pub fn check_lmsw(&mut self, source: u16, linear: Option<u64>) -> Exec<u64> {
        const LOW: u64 = cr::CR0_PE | cr::CR0_MP | cr::CR0_EM | cr::CR0_TS;
        let value = u64::from(source) & LOW;
        let (mask, shadow) = (self.ctl.cr0_mask, self.ctl.cr0_shadow);
        // PE can only be set; the other three must match the shadow where the host owns them.
        let sets_pe = value & mask & !shadow & cr::CR0_PE != 0;
        let differs = (value ^ shadow) & mask & LOW & !cr::CR0_PE != 0;
        if sets_pe || differs {
            let memory = if linear.is_some() { 1 << 6 } else { 0 };
            let stop = self.exit_insn(reason::CR_ACCESS, cr_access::LMSW | memory | u64::from(source) << 16);
            self.exit.guest_linear = linear.unwrap_or(0);
            return Err(stop);
        }
        let wanted = (self.state.cr0 & !LOW | value) | self.state.cr0 & cr::CR0_PE;
        let merged = merge(self.state.cr0, wanted, mask);
        self.check_cr0_fixed(merged)?;
        Ok(merged)
    }

    /// MOV to or from DR`n`.
    ///
    /// # Errors
    /// The exit.
    #[inline]
    pub fn check_dr(&mut self, n: u8, gpr: u8, write: bool) -> Exec {
        let direction = if write { 0 } else { 1 << 4 };
        self.check_primary(primary::MOV_DR, reason::MOV_DR, u64::from(n & 7) | direction | u64::from(gpr & 15) << 8)
    }

    // --- MSRs ---

    /// RDMSR of `msr` after the CPL check.
    ///
    /// # Errors
    /// The exit.
    #[inline]
    pub fn check_rdmsr(&mut self, msr: u32) -> Exec {
        if self.msr_exits(msr, 0) { Err(self.exit_insn(reason::RDMSR, 0)) } else { Ok(()) }
    }

    /// WRMSR of `msr` after the CPL check.
    ///
    /// # Errors
    /// The exit.
    #[inline]
    pub fn check_wrmsr(&mut self, msr: u32) -> Exec {
        if self.msr_exits(msr, 2048) { Err(self.exit_insn(reason::WRMSR, 0)) } else { Ok(()) }
    }

    /// SDM 25.6.9: four quarters of 1024 bytes, read low, read high, write low, write high.
    fn msr_exits(&self, msr: u32, quarter: u64) -> bool {
        if self.ctl.msr_bitmap == NONE {
            return true;
        }
        let at = match msr {
            0..=0x1fff => quarter,
            0xc000_0000..=0xc000_1fff => quarter + 1024,
            _ => return true,
        };
        let bit = u64::from(msr & 0x1fff);
        self.host_byte(self.ctl.msr_bitmap.wrapping_add(at + bit / 8)) >> (bit % 8) & 1 != 0
    }
}

/// `kept` where `mask` is 1, else `new`.
const fn merge(kept: u64, new: u64, mask: u64) -> u64 {
    kept & mask | new & !mask
}

/// A VM exit of an instruction that always causes one (CPUID, GETSEC, INVD, XSETBV, VMX instructions).
impl Cpu {
    /// The exit of CPUID, GETSEC, INVD, XSETBV, VMCALL, VMLAUNCH, VMRESUME, VMXOFF: no qualification.
    #[cold]
    pub fn exit_always(&mut self, reason: u32) -> Stop {
        self.exit_insn(reason, 0)
    }
}
