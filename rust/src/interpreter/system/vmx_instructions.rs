//! VMX instructions, CPUID, GETSEC and XSETBV as VMX non-root operation sees them: VM exits.
//!
//! SDM vol. 3, 26.1.2 and chapter 31. VMREAD and VMWRITE ask `vmx` first, for VMCS shadowing.

use iced_x86::{Code, OpKind};

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::state::{cr, gpr};
use crate::stop::Exec;

/// Basic exit reasons (SDM appendix C).
const REASON_CPUID: u32 = 10;
const REASON_XSETBV: u32 = 55;

/// Basic exit reason of a VMX instruction.
fn reason(code: Code) -> u32 {
    match code {
        Code::Vmcall => 18,
        Code::Vmclear_m64 => 19,
        Code::Vmlaunch => 20,
        Code::Vmptrld_m64 => 21,
        Code::Vmptrst_m64 => 22,
        Code::Vmread_rm32_r32 | Code::Vmread_rm64_r64 => 23,
        Code::Vmresume => 24,
        Code::Vmwrite_r32_rm32 | Code::Vmwrite_r64_rm64 => 25,
        Code::Vmxoff => 26,
        Code::Vmxon_m64 => 27,
        Code::Invept_r32_m128 | Code::Invept_r64_m128 => 50,
        _ => 53,
    }
}

/// VMCALL exits from any mode.
pub(super) fn vmcall(cpu: &mut Cpu, insn: &Insn) -> Exec {
    Err(cpu.exit_insn(reason(insn.iced.code()), 0))
}

/// The other VMX instructions: #UD outside of protected mode and in compatibility mode, else a VM exit at
/// any privilege level (SDM vol. 3, 31.3: non-root operation is asked before CPL).
pub(super) fn vmx(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if !cpu.mode.protected || cpu.mode.long && cpu.mode.bits != Bits::B64 {
        return Err(cpu.ud());
    }
    let reason = reason(insn.iced.code());
    match insn.iced.code() {
        Code::Vmread_rm32_r32 | Code::Vmread_rm64_r64 => {
            if cpu.shadow_vmread(insn)? {
                return Ok(());
            }
        }
        Code::Vmwrite_r32_rm32 | Code::Vmwrite_r64_rm64 => {
            if cpu.shadow_vmwrite(insn)? {
                return Ok(());
            }
        }
        _ => {}
    }
    let memory = (0..insn.iced.op_count()).any(|k| insn.iced.op_kind(k) == OpKind::Memory);
    if !memory && matches!(insn.iced.code(), Code::Vmlaunch | Code::Vmresume | Code::Vmxoff) {
        return Err(cpu.exit_insn(reason, 0));
    }
    let displacement = if memory { cpu.displacement(insn) } else { 0 };
    Err(cpu.exit_insn_info(reason, displacement, insn))
}

/// CPUID always exits.
pub(super) fn cpuid(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    Err(cpu.exit_insn(REASON_CPUID, 0))
}

/// XSETBV: #UD without CR4.OSXSAVE, #GP(0) outside CPL 0, then always a VM exit.
pub(super) fn xsetbv(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.state.cr4 & cr::CR4_OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    Err(cpu.exit_insn(REASON_XSETBV, 0))
}

/// XGETBV: XCR0, or (ECX = 1) what of it is in use.
pub(super) fn xgetbv(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.state.cr4 & cr::CR4_OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    let value = match cpu.state.gpr[gpr::RCX] as u32 {
        0 => cpu.state.xcr0,
        1 if cpu.model.has(crate::vmx::features::Feature::Xsavec) => cpu.state.xcr0 & xinuse(cpu),
        _ => return Err(cpu.gp0()),
    };
    cpu.state.gpr[gpr::RAX] = value & 0xffff_ffff;
    cpu.state.gpr[gpr::RDX] = value >> 32;
    Ok(())
}

/// State components that are not in their initial configuration (SDM vol. 1, 13.6). x87 and SSE are
/// always reported in use, which is allowed; the upper halves of YMM are looked at.
fn xinuse(cpu: &Cpu) -> u64 {
    let avx = cpu.state.ymm.iter().any(|r| r[2] | r[3] != 0);
    3 | u64::from(avx) << 2
}

/// GETSEC: there are no safer mode extensions.
pub(super) fn undefined(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    Err(cpu.ud())
}

impl Cpu {
    /// The displacement of a memory operand as exit qualifications report it: of a RIP-relative operand
    /// the address itself less the index (SDM table 28-1).
    pub(super) fn displacement(&self, insn: &Insn) -> u64 {
        insn.iced.memory_displacement64()
    }
}
