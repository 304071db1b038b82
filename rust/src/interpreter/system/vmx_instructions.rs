//! VMX instructions, CPUID, GETSEC and XSETBV as VMX non-root operation sees them: VM exits.
//!
//! SDM vol. 3, 26.1.2 and chapter 31. VMREAD and VMWRITE ask `vmx` first, for VMCS shadowing.

use iced_x86::{Code, OpKind};

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::mmu::assist_kind;
use crate::state::{cr, gpr};
use crate::stop::Exec;
use crate::vmx::{Feature, reason};

/// Basic exit reason of a VMX instruction.
fn exit_reason(code: Code) -> u32 {
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
    Err(cpu.exit_always(exit_reason(insn.iced.code())))
}

/// The other VMX instructions: #UD outside of protected mode and in compatibility mode, else a VM exit at
/// any privilege level (SDM vol. 3, 31.3: non-root operation is asked before CPL).
pub(super) fn vmx(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.needs(Feature::Vmx)?;
    if !cpu.mode.protected || cpu.mode.long && cpu.mode.bits != Bits::B64 {
        return Err(cpu.ud());
    }
    let reason = exit_reason(insn.iced.code());
    Err(match insn.iced.code() {
        Code::Vmread_rm32_r32 | Code::Vmread_rm64_r64 => return vmread(cpu, insn),
        Code::Vmwrite_r32_rm32 | Code::Vmwrite_r64_rm64 => return vmwrite(cpu, insn),
        Code::Vmlaunch | Code::Vmresume | Code::Vmxoff => cpu.exit_always(reason),
        Code::Vmclear_m64 | Code::Vmptrld_m64 | Code::Vmxon_m64 => {
            let stop = cpu.exit_insn_memory(reason, insn);
            assist_pointer(cpu, insn);
            stop
        }
        _ => cpu.exit_insn_memory(reason, insn),
    })
}

/// Decode assist for an instruction that exits with its operand in memory: the operand, if it can be had without a
/// fault, an exit or anything else that would be seen.
fn assist_pointer(cpu: &mut Cpu, insn: &Insn) {
    let (exit, fault) = (cpu.exit, cpu.fault);
    let operand =
        cpu.mem(insn, 8, false).ok().filter(|linear| linear & 0xfff <= 0xff8 && cpu.fill_data(*linear, false));
    // The TLB has an entry for the whole operand now: reading it cannot fail.
    let pointer = operand.and_then(|linear| cpu.read::<u64>(linear).ok());
    cpu.state.assist_kind = if pointer.is_some() { assist_kind::POINTER } else { assist_kind::NONE };
    cpu.state.assist_data = pointer.unwrap_or(0);
    (cpu.exit, cpu.fault) = (exit, fault);
}

/// VMREAD r/m, field: from the shadow VMCS where that is allowed.
fn vmread(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let encoding = cpu.gpr_operand(insn, 1);
    let Some(value) = cpu.shadow_vmread(encoding, insn)? else { return Ok(()) };
    if insn.iced.op_kind(0) == OpKind::Register {
        cpu.set_gpr_operand(insn, 0, value);
    } else {
        let width = operand_width(cpu);
        let linear = cpu.mem(insn, width, true)?;
        cpu.write_width(linear, u64::from(width), value)?;
    }
    cpu.vm_succeed();
    Ok(())
}

/// VMWRITE field, r/m: to the shadow VMCS where that is allowed.
fn vmwrite(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let encoding = cpu.gpr_operand(insn, 0);
    cpu.shadow_vmwrite(encoding, insn, |cpu| {
        if insn.iced.op_kind(1) == OpKind::Register {
            return Ok(cpu.gpr_operand(insn, 1));
        }
        let width = operand_width(cpu);
        let linear = cpu.mem(insn, width, false)?;
        cpu.read_width(linear, u64::from(width))
    })
}

/// The operands of VMREAD and VMWRITE have 64 bits in 64-bit mode, else 32.
fn operand_width(cpu: &Cpu) -> u32 {
    if cpu.mode.bits == Bits::B64 { 8 } else { 4 }
}

/// CPUID always exits.
pub(super) fn cpuid(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    Err(cpu.exit_always(reason::CPUID))
}

/// XSETBV: #UD without CR4.OSXSAVE, #GP(0) outside CPL 0, then always a VM exit.
pub(super) fn xsetbv(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.state.cr4 & cr::CR4_OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    Err(cpu.exit_always(reason::XSETBV))
}

/// XGETBV: XCR0, or (ECX = 1) what of it is in use.
pub(super) fn xgetbv(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.state.cr4 & cr::CR4_OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    let value = match cpu.state.gpr[gpr::RCX] as u32 {
        0 => cpu.state.xcr0,
        1 if cpu.model.has(Feature::Xsavec) => cpu.state.xcr0 & xinuse(cpu),
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
