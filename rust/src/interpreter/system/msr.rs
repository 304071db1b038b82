//! Model-specific registers: RDMSR, WRMSR and the list that silicon has (SDM vol. 4).
//!
//! An MSR that is not in the list raises #GP(0). Which accesses exit is the MSR bitmaps' matter (`vmx`).

use crate::cpu::Cpu;
use crate::decode::Insn;
use crate::state::{cr, gpr, seg};
use crate::stop::Exec;
use crate::vmx::model::ARCH_CAPABILITIES;

use super::segment::canonical;

/// MSR numbers (SDM vol. 4, table 2-2).
#[allow(missing_docs)]
pub mod number {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRRCAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const FLUSH_CMD: u32 = 0x10b;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const MTRR_PHYSBASE0: u32 = 0x200;
    pub const MTRR_PHYSMASK7: u32 = 0x20f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const VMX_BASIC: u32 = 0x480;
    pub const VMX_LAST: u32 = 0x493;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const XSS: u32 = 0xda0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

use number as n;

/// Eight variable ranges, fixed ranges, write-combining.
const MTRRCAP_VALUE: u64 = 0x508;
/// Microcode revision 1, in the upper half.
const MICROCODE_REVISION: u64 = 1 << 32;
/// IBRS, STIBP, SSBD, BHI_DIS_S.
pub const SPEC_CTRL_BITS: u64 = 0x407;
/// LBR and BTF.
const DEBUGCTL_BITS: u64 = 3;
/// Fast strings, performance monitoring, BTS and PEBS unavailable, MONITOR, XD disable, and the rest
/// that IA32_MISC_ENABLE defines.
const MISC_ENABLE_BITS: u64 = 0x4_00c5_1889;
const APIC_BSP: u64 = 1 << 8;
const APIC_EXTD: u64 = 1 << 10;
const APIC_EN: u64 = 1 << 11;

/// The slot of a fixed-range MTRR in `state.mtrr_fixed`.
fn fixed_mtrr(msr: u32) -> Option<usize> {
    Some(match msr {
        0x250 => 0,
        0x258 | 0x259 => 1 + (msr - 0x258) as usize,
        0x268..=0x26f => 3 + (msr - 0x268) as usize,
        _ => return None,
    })
}

/// A memory type that MTRRs take (SDM table 12-8).
fn mtrr_type(kind: u64) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

/// A value that IA32_PAT takes (SDM vol. 3, 12.12.2).
#[must_use]
pub fn pat_valid(value: u64) -> bool {
    value.to_le_bytes().into_iter().all(|entry| matches!(entry, 0 | 1 | 4..=7))
}

/// RDMSR.
pub(super) fn rdmsr(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    let msr = cpu.state.gpr[gpr::RCX] as u32;
    cpu.check_rdmsr(msr)?;
    let value = cpu.read_msr(msr)?;
    cpu.state.gpr[gpr::RAX] = value & 0xffff_ffff;
    cpu.state.gpr[gpr::RDX] = value >> 32;
    Ok(())
}

/// WRMSR.
pub(super) fn wrmsr(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    let msr = cpu.state.gpr[gpr::RCX] as u32;
    cpu.check_wrmsr(msr)?;
    let value = cpu.state.gpr[gpr::RAX] & 0xffff_ffff | cpu.state.gpr[gpr::RDX] << 32;
    cpu.write_msr(msr, value)
}

impl Cpu {
    /// Reads an MSR as RDMSR does at CPL 0 once it has not exited.
    ///
    /// # Errors
    /// #GP(0) for an MSR that does not exist.
    pub fn read_msr(&mut self, msr: u32) -> Exec<u64> {
        if matches!(msr, n::X2APIC_FIRST..=n::X2APIC_LAST) {
            return self.x2apic_read(msr).ok_or_else(|| self.gp0());
        }
        let s = &*self.state;
        Ok(match msr {
            n::TSC => self.tsc(),
            n::PLATFORM_ID | n::MCG_CAP | n::MCG_STATUS => 0,
            n::APIC_BASE => s.apic_base,
            n::FEATURE_CONTROL => s.feature_control,
            n::TSC_ADJUST => s.tsc_adjust,
            n::SPEC_CTRL => s.spec_ctrl,
            n::BIOS_SIGN_ID => MICROCODE_REVISION,
            n::MTRRCAP => MTRRCAP_VALUE,
            n::ARCH_CAPABILITIES => ARCH_CAPABILITIES,
            n::SYSENTER_CS => s.sysenter_cs,
            n::SYSENTER_ESP => s.sysenter_esp,
            n::SYSENTER_EIP => s.sysenter_eip,
            n::MISC_ENABLE => s.misc_enable,
            n::DEBUGCTL => s.debugctl,
            n::MTRR_PHYSBASE0..=n::MTRR_PHYSMASK7 => s.mtrr_var[(msr - n::MTRR_PHYSBASE0) as usize],
            n::PAT => s.pat,
            n::MTRR_DEF_TYPE => s.mtrr_def_type,
            n::TSC_DEADLINE => s.tsc_deadline,
            n::XSS if self.has_xsaves() => s.xss,
            n::EFER => s.efer,
            n::STAR => s.star,
            n::LSTAR => s.lstar,
            n::CSTAR => s.cstar,
            n::FMASK => s.fmask,
            n::FS_BASE => s.seg[seg::FS].base,
            n::GS_BASE => s.seg[seg::GS].base,
            n::KERNEL_GS_BASE => s.kernel_gs_base,
            n::TSC_AUX => s.tsc_aux,
            n::VMX_BASIC..=n::VMX_LAST => match self.model.vmx.msr(msr) {
                Some(value) => value,
                None => return Err(self.gp0()),
            },
            _ => match fixed_mtrr(msr) {
                Some(slot) => s.mtrr_fixed[slot],
                None => return Err(self.gp0()),
            },
        })
    }

    /// Writes an MSR as WRMSR does at CPL 0 once it has not exited.
    ///
    /// # Errors
    /// #GP(0) for an MSR that does not exist or a value that it does not take.
    pub fn write_msr(&mut self, msr: u32, value: u64) -> Exec {
        if matches!(msr, n::X2APIC_FIRST..=n::X2APIC_LAST) && self.x2apic_write(msr, value)? {
            return Ok(());
        }
        if !self.msr_takes(msr, value) {
            return Err(self.gp0());
        }
        let s = &mut *self.state;
        match msr {
            n::TSC => {
                // The write moves IA32_TSC_ADJUST by as much (SDM vol. 3, 18.17.3).
                let now = self.host_tsc();
                let s = &mut *self.state;
                s.tsc_adjust = s.tsc_adjust.wrapping_add(value.wrapping_sub(now));
            }
            n::APIC_BASE => s.apic_base = value,
            n::FEATURE_CONTROL => s.feature_control = value,
            n::TSC_ADJUST => s.tsc_adjust = value,
            n::SPEC_CTRL => s.spec_ctrl = value,
            n::SYSENTER_CS => s.sysenter_cs = value & 0xffff_ffff,
            n::SYSENTER_ESP => s.sysenter_esp = value,
            n::SYSENTER_EIP => s.sysenter_eip = value,
            n::MISC_ENABLE => s.misc_enable = value,
            n::DEBUGCTL => s.debugctl = value,
            n::MTRR_PHYSBASE0..=n::MTRR_PHYSMASK7 => s.mtrr_var[(msr - n::MTRR_PHYSBASE0) as usize] = value,
            n::PAT => s.pat = value,
            n::MTRR_DEF_TYPE => s.mtrr_def_type = value,
            n::TSC_DEADLINE => s.tsc_deadline = value,
            n::XSS => s.xss = value,
            n::EFER => {
                s.efer = value & !cr::EFER_LMA | s.efer & cr::EFER_LMA;
                self.update_mode();
                self.mmu_context_changed();
            }
            n::STAR => s.star = value,
            n::LSTAR => s.lstar = value,
            n::CSTAR => s.cstar = value,
            n::FMASK => s.fmask = value,
            n::FS_BASE => s.seg[seg::FS].base = value,
            n::GS_BASE => s.seg[seg::GS].base = value,
            n::KERNEL_GS_BASE => s.kernel_gs_base = value,
            n::TSC_AUX => s.tsc_aux = value,
            _ => {
                if let Some(slot) = fixed_mtrr(msr) {
                    s.mtrr_fixed[slot] = value;
                }
            }
        }
        Ok(())
    }

    /// Whether WRMSR of `value` to `msr` is without fault: the MSR exists, is writable, and no reserved
    /// bit or impossible transition is in the value.
    fn msr_takes(&self, msr: u32, value: u64) -> bool {
        let s = &*self.state;
        let physical = self.model.physical_mask();
        match msr {
            n::TSC | n::TSC_ADJUST | n::SYSENTER_CS | n::STAR | n::TSC_DEADLINE | n::BIOS_SIGN_ID => true,
            n::MCG_STATUS => value == 0,
            n::APIC_BASE => {
                let reserved = !(physical & !0xfff | APIC_BSP | APIC_EXTD | APIC_EN);
                let extd = value & APIC_EXTD != 0;
                let enabled = value & APIC_EN != 0;
                let was = s.apic_base & (APIC_EN | APIC_EXTD);
                // x2APIC mode is entered from xAPIC mode only, and left by disabling (SDM figure 11-27).
                value & reserved == 0
                    && (enabled || !extd)
                    && !(was == APIC_EN | APIC_EXTD && enabled && !extd)
                    && !(was == 0 && extd)
            }
            n::FEATURE_CONTROL => s.feature_control & 1 == 0 && value & !7 == 0,
            n::SPEC_CTRL => value & !SPEC_CTRL_BITS == 0,
            n::PRED_CMD | n::FLUSH_CMD => value & !1 == 0,
            n::SYSENTER_ESP | n::SYSENTER_EIP | n::LSTAR | n::CSTAR | n::FS_BASE | n::GS_BASE | n::KERNEL_GS_BASE => {
                canonical(value)
            }
            n::MISC_ENABLE => value & !MISC_ENABLE_BITS == 0,
            n::DEBUGCTL => value & !DEBUGCTL_BITS == 0,
            n::MTRR_PHYSBASE0..=n::MTRR_PHYSMASK7 if msr & 1 == 0 => {
                mtrr_type(value & 0xff) && value & !(physical & !0xfff | 0xff) == 0
            }
            n::MTRR_PHYSBASE0..=n::MTRR_PHYSMASK7 => value & !(physical & !0xfff | 0x800) == 0,
            n::PAT => pat_valid(value),
            n::MTRR_DEF_TYPE => mtrr_type(value & 0xff) && value & !0xcff == 0,
            n::XSS => self.has_xsaves() && value == 0,
            n::EFER => {
                let bits = cr::EFER_SCE | cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
                let paging = s.cr0 & cr::CR0_PG != 0;
                value & !bits == 0 && !(paging && (value ^ s.efer) & cr::EFER_LME != 0)
            }
            n::FMASK | n::TSC_AUX => value >> 32 == 0,
            _ => fixed_mtrr(msr).is_some() && value.to_le_bytes().into_iter().all(|kind| mtrr_type(u64::from(kind))),
        }
    }

    fn has_xsaves(&self) -> bool {
        self.model.has(crate::vmx::Feature::Xsaves)
    }
}
