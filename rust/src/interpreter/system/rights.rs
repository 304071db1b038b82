//! LAR, LSL, VERR, VERW, ARPL: questions about a selector that never fault on it (SDM vol. 3, 5.10).
//!
//! The descriptor is read without marking it accessed.

use crate::cpu::Cpu;
use crate::decode::Insn;
use crate::state::flag;
use crate::stop::Exec;

use super::operand::number;
use super::segment::{Descriptor, system_type};

impl Cpu {
    /// The descriptor that `selector` names and the current privilege may see, if any.
    fn visible(&mut self, selector: u16) -> Exec<Option<Descriptor>> {
        if selector & 0xfffc == 0 {
            return Ok(None);
        }
        let Some(linear) = self.descriptor_address(selector, 8) else { return Ok(None) };
        let descriptor = Descriptor { low: self.read_system::<u64>(linear)?, high: 0, linear };
        let level = self.cpl().max((selector & 3) as u8);
        Ok((descriptor.is_conforming() || descriptor.dpl() >= level).then_some(descriptor))
    }

    fn set_zf(&mut self, zf: bool) {
        self.state.rflags = self.state.rflags & !flag::ZF | if zf { flag::ZF } else { 0 };
    }

    /// Real-address and virtual-8086 mode do not know these instructions.
    fn protected_only(&mut self) -> Exec {
        if self.mode.protected { Ok(()) } else { Err(self.ud()) }
    }
}

/// Types of system descriptors that LAR knows (SDM vol. 2, LAR).
fn lar_type(kind: u64, long: bool) -> bool {
    use system_type::{CALL16, CALL32, LDT, TASK, TSS16, TSS16_BUSY, TSS32, TSS32_BUSY};
    matches!(kind, LDT | TSS32 | TSS32_BUSY | CALL32) || !long && matches!(kind, TSS16 | TSS16_BUSY | CALL16 | TASK)
}

/// Types of system descriptors that LSL knows (SDM vol. 2, LSL).
fn lsl_type(kind: u64, long: bool) -> bool {
    use system_type::{LDT, TSS16, TSS16_BUSY, TSS32, TSS32_BUSY};
    matches!(kind, LDT | TSS32 | TSS32_BUSY) || !long && matches!(kind, TSS16 | TSS16_BUSY)
}

/// LAR.
pub(super) fn lar(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.protected_only()?;
    let selector = cpu.rm16(insn, 1)?;
    let long = cpu.mode.long;
    let found = cpu.visible(selector)?.filter(|d| d.is_code_or_data() || lar_type(d.kind(), long));
    if let Some(descriptor) = found {
        cpu.set_gpr_operand(insn, 0, descriptor.low >> 32 & 0x00ff_ff00);
    }
    cpu.set_zf(found.is_some());
    Ok(())
}

/// LSL.
pub(super) fn lsl(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.protected_only()?;
    let selector = cpu.rm16(insn, 1)?;
    let long = cpu.mode.long;
    let found = cpu.visible(selector)?.filter(|d| d.is_code_or_data() || lsl_type(d.kind(), long));
    if let Some(descriptor) = found {
        cpu.set_gpr_operand(insn, 0, descriptor.limit());
    }
    cpu.set_zf(found.is_some());
    Ok(())
}

/// VERR.
pub(super) fn verr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.protected_only()?;
    let selector = cpu.rm16(insn, 0)?;
    let zf = cpu.visible(selector)?.is_some_and(Descriptor::is_readable);
    cpu.set_zf(zf);
    Ok(())
}

/// VERW.
pub(super) fn verw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.protected_only()?;
    let selector = cpu.rm16(insn, 0)?;
    let zf = cpu.visible(selector)?.is_some_and(Descriptor::is_writable);
    cpu.set_zf(zf);
    Ok(())
}

/// ARPL.
pub(super) fn arpl(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.protected_only()?;
    let rpl = (cpu.state.gpr[number(insn.iced.op1_register())] & 3) as u16;
    let raised = |old: u16| if old & 3 < rpl { Some(old & !3 | rpl) } else { None };
    let old = if insn.iced.op0_kind() == iced_x86::OpKind::Register {
        let n = number(insn.iced.op0_register());
        let old = cpu.state.gpr[n] as u16;
        if let Some(new) = raised(old) {
            cpu.set_gpr(n, 2, u64::from(new));
        }
        old
    } else {
        let linear = cpu.mem(insn, 2, true)?;
        cpu.update::<u16>(linear, false, raised)?
    };
    cpu.set_zf(old & 3 < rpl);
    Ok(())
}
