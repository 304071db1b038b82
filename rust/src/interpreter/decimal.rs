//! Decimal adjustment: DAA, DAS, AAA, AAS, AAM, AAD. Not in 64-bit mode.
//!
//! The host cannot run these, so their undefined flags are chosen: SF, ZF, PF follow the result, OF is 0.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::state::flag;
use crate::stop::{Exec, vector};

const AX: u8 = 0;

/// SF, ZF and PF of a byte; CF and AF as given.
fn flags(cpu: &mut Cpu, v: u8, carry: bool, adjust: bool) {
    let mut f = cpu.state.rflags & !flag::STATUS;
    f |= if v & 0x80 != 0 { flag::SF } else { 0 };
    f |= if v == 0 { flag::ZF } else { 0 };
    f |= if v.count_ones() & 1 == 0 { flag::PF } else { 0 };
    f |= if carry { flag::CF } else { 0 };
    f |= if adjust { flag::AF } else { 0 };
    cpu.state.rflags = f;
}

fn packed<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let old = cpu.reg::<u8>(AX);
    let carry = cpu.state.rflags & flag::CF != 0;
    let adjust = cpu.state.rflags & flag::AF != 0 || old & 15 > 9;
    let high = carry || old > 0x99;
    let mut v = old;
    let mut borrow = false;
    let mut step = |by: u8| {
        let (next, over) = if SUBTRACT { v.overflowing_sub(by) } else { v.overflowing_add(by) };
        v = next;
        over
    };
    if adjust {
        borrow = step(6);
    }
    if high {
        step(0x60);
    }
    let carry = high || SUBTRACT && adjust && (carry || borrow);
    cpu.set_reg(AX, v);
    flags(cpu, v, carry, adjust);
    Ok(())
}

fn ascii<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let old = cpu.reg::<u16>(AX);
    let adjust = cpu.state.rflags & flag::AF != 0 || old & 15 > 9;
    let mut v = old;
    if adjust {
        v = if SUBTRACT { old.wrapping_sub(6).wrapping_sub(0x100) } else { old.wrapping_add(0x106) };
    }
    v &= 0xff0f;
    cpu.set_reg(AX, v);
    flags(cpu, v as u8, adjust, adjust);
    Ok(())
}

fn aam(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (v, by) = (cpu.reg::<u8>(AX), insn.imm as u8);
    if by == 0 {
        return Err(cpu.raise(vector::DE, None));
    }
    cpu.set_reg(AX, u16::from(v / by) << 8 | u16::from(v % by));
    flags(cpu, v % by, false, false);
    Ok(())
}

fn aad(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let v = cpu.reg::<u16>(AX);
    let v = (v as u8).wrapping_add(((v >> 8) as u8).wrapping_mul(insn.imm as u8));
    cpu.set_reg(AX, u16::from(v));
    flags(cpu, v, false, false);
    Ok(())
}

/// The handler of an instruction of this group.
#[must_use]
pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Daa => packed::<false>,
        Mnemonic::Das => packed::<true>,
        Mnemonic::Aaa => ascii::<false>,
        Mnemonic::Aas => ascii::<true>,
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        _ => return None,
    })
}
