//! RFLAGS as a system register: CLI, STI, PUSHF, POPF, CLAC, STAC.
//!
//! SDM vol. 2; vol. 3, 20.2.8 (VME), 20.4 (PVI). Arithmetic flags belong to the integer instructions.

use iced_x86::Code;

use crate::cpu::Cpu;
use crate::decode::Insn;
use crate::interpreter::events::blocking;
use crate::state::{cr, flag, gpr};
use crate::stop::Exec;
use crate::vmx::Feature;

/// What an instruction that changes IF may touch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Real,
    Virtual,
}

/// Bits that POPF loads at any privilege.
const POPF_ALWAYS: u64 = flag::STATUS | flag::TF | flag::DF | flag::NT;

impl Cpu {
    /// IOPL.
    fn iopl(&self) -> u8 {
        (self.state.rflags >> 12 & 3) as u8
    }

    /// CLI and STI: IF, VIF, or #GP(0) (SDM vol. 2, table 3-6).
    fn interrupt_flag(&mut self) -> Exec<Which> {
        if self.cpl() <= self.iopl() {
            return Ok(Which::Real);
        }
        let extension = if self.mode.v8086 { cr::CR4_VME } else { cr::CR4_PVI };
        if self.state.cr4 & extension != 0 && self.cpl() == 3 {
            return Ok(Which::Virtual);
        }
        Err(self.gp0())
    }
}

/// CLI.
pub(super) fn cli(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    let bit = match cpu.interrupt_flag()? {
        Which::Real => flag::IF,
        Which::Virtual => flag::VIF,
    };
    cpu.state.rflags &= !bit;
    Ok(())
}

/// STI: blocks interrupts for one more instruction when IF was 0.
pub(super) fn sti(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    match cpu.interrupt_flag()? {
        Which::Real if cpu.state.rflags & flag::IF == 0 => {
            cpu.state.rflags |= flag::IF;
            cpu.set_shadow(blocking::STI);
        }
        Which::Real => {}
        Which::Virtual if cpu.state.rflags & flag::VIP != 0 => return Err(cpu.gp0()),
        Which::Virtual => cpu.state.rflags |= flag::VIF,
    }
    Ok(())
}

fn width(code: Code) -> u64 {
    match code {
        Code::Pushfw | Code::Popfw => 2,
        Code::Pushfd | Code::Popfd => 4,
        _ => 8,
    }
}

/// PUSHF, PUSHFD, PUSHFQ: VM and RF read as 0.
pub(super) fn pushf(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let width = width(insn.iced.code());
    let mut image = cpu.state.rflags & !(flag::VM | flag::RF);
    if cpu.mode.v8086 && cpu.iopl() < 3 {
        if cpu.state.cr4 & cr::CR4_VME == 0 || width != 2 {
            return Err(cpu.gp0());
        }
        let virtual_if = if image & flag::VIF != 0 { flag::IF } else { 0 };
        image = image & !flag::IF | virtual_if | flag::IOPL;
    }
    let stack = cpu.current_stack();
    cpu.state.gpr[gpr::RSP] = cpu.push_frame(&stack, width, &[image])?;
    Ok(())
}

/// POPF, POPFD, POPFQ.
pub(super) fn popf(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let width = width(insn.iced.code());
    let mut mask = POPF_ALWAYS | if width == 2 { 0 } else { flag::AC | flag::ID };
    let virtual_if = cpu.mode.v8086 && cpu.iopl() < 3;
    if virtual_if && (cpu.state.cr4 & cr::CR4_VME == 0 || width != 2) {
        return Err(cpu.gp0());
    }
    let mut image = cpu.peek(width, 0)?;
    if virtual_if {
        if image & flag::TF != 0 || image & flag::IF != 0 && cpu.state.rflags & flag::VIP != 0 {
            return Err(cpu.gp0());
        }
        mask |= flag::VIF;
        image = image & !flag::VIF | if image & flag::IF != 0 { flag::VIF } else { 0 };
    } else {
        if cpu.cpl() <= cpu.iopl() {
            mask |= flag::IF;
        }
        if cpu.cpl() == 0 {
            mask |= flag::IOPL;
        }
    }
    cpu.drop_stack(width);
    cpu.load_flags(image & !flag::RF, mask | flag::RF);
    Ok(())
}

/// CLAC and STAC: #UD outside CPL 0.
pub(super) fn clac_stac(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.needs(Feature::Smap)?;
    if cpu.cpl() != 0 {
        return Err(cpu.ud());
    }
    if insn.iced.code() == Code::Stac {
        cpu.state.rflags |= flag::AC;
    } else {
        cpu.state.rflags &= !flag::AC;
    }
    cpu.update_mode();
    Ok(())
}
