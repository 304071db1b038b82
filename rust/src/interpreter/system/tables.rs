//! Descriptor-table registers: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR.
//!
//! SDM vol. 2; vol. 3, 2.4 and 26.1.3 ("descriptor-table exiting").

use iced_x86::Code;

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::state::{Segment, cr, seg};
use crate::stop::{Exec, vector};
use crate::vmx::reason;

use super::segment::{Descriptor, access, canonical, selector_error, system_type};

/// LGDT and LIDT.
pub(super) fn load_table(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    cpu.check_descriptor_table(reason::GDTR_IDTR, insn)?;
    let code = insn.iced.code();
    let wide = cpu.mode.bits == Bits::B64;
    let width = if wide { 8 } else { 4 };
    let linear = cpu.mem(insn, 2 + width, false)?;
    let limit = u64::from(cpu.read::<u16>(linear)?);
    let mut base = cpu.read_width(linear.wrapping_add(2), u64::from(width))?;
    if matches!(code, Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
        base &= 0xff_ffff;
    }
    if wide && !canonical(base) {
        return Err(cpu.gp0());
    }
    let s = &mut cpu.state;
    if matches!(code, Code::Lgdt_m1632_16 | Code::Lgdt_m1632 | Code::Lgdt_m1664) {
        (s.gdtr_base, s.gdtr_limit) = (base, limit);
    } else {
        (s.idtr_base, s.idtr_limit) = (base, limit);
    }
    Ok(())
}

/// SGDT and SIDT.
pub(super) fn store_table(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_umip()?;
    cpu.check_descriptor_table(reason::GDTR_IDTR, insn)?;
    let s = &cpu.state;
    let (base, limit) = match insn.iced.code() {
        Code::Sgdt_m1632_16 | Code::Sgdt_m1632 | Code::Sgdt_m1664 => (s.gdtr_base, s.gdtr_limit),
        _ => (s.idtr_base, s.idtr_limit),
    };
    let width = if cpu.mode.bits == Bits::B64 { 8 } else { 4 };
    let linear = cpu.mem(insn, 2 + width, true)?;
    cpu.probe_write(linear, u64::from(2 + width))?;
    cpu.write::<u16>(linear, limit as u16)?;
    cpu.write_width(linear.wrapping_add(2), u64::from(width), base)
}

/// SLDT and STR: the selector.
pub(super) fn store_selector(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if !cpu.mode.protected {
        return Err(cpu.ud());
    }
    cpu.check_umip()?;
    cpu.check_descriptor_table(reason::LDTR_TR, insn)?;
    let n = if matches!(insn.iced.code(), Code::Sldt_rm16 | Code::Sldt_r32m16 | Code::Sldt_r64m16) {
        seg::LDTR
    } else {
        seg::TR
    };
    let selector = cpu.state.seg[n].selector;
    cpu.set_rm16(insn, 0, selector)
}

/// LLDT.
pub(super) fn lldt(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = cpu.system_selector(insn)?;
    if selector & 0xfffc == 0 {
        let unusable = Segment { selector: u64::from(selector), access: access::UNUSABLE, ..Segment::default() };
        cpu.state.seg[seg::LDTR] = unusable;
        return Ok(());
    }
    let descriptor = cpu.system_descriptor(selector, &[system_type::LDT])?;
    cpu.state.seg[seg::LDTR] = system_segment(descriptor, selector, descriptor.access());
    Ok(())
}

/// LTR: marks the TSS busy.
pub(super) fn ltr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = cpu.system_selector(insn)?;
    if selector & 0xfffc == 0 {
        return Err(cpu.gp0());
    }
    let both = [system_type::TSS32, system_type::TSS16];
    let descriptor = cpu.system_descriptor(selector, if cpu.mode.long { &both[..1] } else { &both })?;
    cpu.update_system::<u8>(descriptor.linear.wrapping_add(5), true, |old| Some(old | 2))?;
    cpu.state.seg[seg::TR] = system_segment(descriptor, selector, descriptor.access() | 2);
    Ok(())
}

/// A system segment register: the type is not "accessed" in bit 0.
fn system_segment(descriptor: Descriptor, selector: u16, access: u64) -> Segment {
    Segment { selector: u64::from(selector), base: descriptor.base(), limit: descriptor.limit(), access }
}

impl Cpu {
    /// The operand of LLDT and LTR after the checks that come first.
    fn system_selector(&mut self, insn: &Insn) -> Exec<u16> {
        if !self.mode.protected {
            return Err(self.ud());
        }
        if self.cpl() != 0 {
            return Err(self.gp0());
        }
        self.check_descriptor_table(reason::LDTR_TR, insn)?;
        self.rm16(insn, 0)
    }

    /// A system descriptor in the GDT, 16 bytes in IA-32e mode, of one of the given types, present.
    fn system_descriptor(&mut self, selector: u16, kinds: &[u64]) -> Exec<Descriptor> {
        if selector & 4 != 0 {
            return Err(self.gp_selector(selector));
        }
        let mut descriptor = self.descriptor(selector, vector::GP)?;
        if descriptor.is_code_or_data() || !kinds.contains(&descriptor.kind()) {
            return Err(self.gp_selector(selector));
        }
        if !descriptor.is_present() {
            return Err(self.raise(vector::NP, selector_error(selector)));
        }
        if self.state.efer & cr::EFER_LMA != 0 {
            if self.descriptor_address(selector, 16).is_none() {
                return Err(self.gp_selector(selector));
            }
            descriptor.high = self.read_system::<u64>(descriptor.linear.wrapping_add(8))?;
            if descriptor.high >> 40 & 0x1f != 0 || !canonical(descriptor.base()) {
                return Err(self.gp_selector(selector));
            }
        }
        Ok(descriptor)
    }
}
