//! MUL, IMUL, MULX, DIV, IDIV.
//!
//! Quotients are tested before the host divides, so that #DE is the guest's and never a signal.

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind};

use super::alu::{by_dword, by_wide, by_width, width};
use super::native::Native;
use super::operand::Word;
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::stop::{Exec, vector};

const AX: u8 = 0;
const DX: u8 = 16;

/// The operand `n`, register or memory.
#[inline(always)]
fn source<T: Word, const MEM: bool>(cpu: &mut Cpu, insn: &Insn, n: usize) -> Exec<T> {
    if MEM {
        let linear = cpu.mem(insn, T::BYTES, false)?;
        cpu.read::<T>(linear)
    } else {
        Ok(cpu.reg::<T>(insn.r[n]))
    }
}

/// MUL and IMUL of the accumulator.
fn multiply<T: Native, const SIGNED: bool, const MEM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = source::<T, MEM>(cpu, insn, 0)?;
    let (low, high, f) = T::multiply::<SIGNED>(cpu.reg::<T>(AX), b, cpu.state.rflags);
    cpu.state.rflags = f;
    if T::BYTES == 1 {
        cpu.set_reg(AX, (high.u64() << 8 | low.u64()) as u16);
    } else {
        cpu.set_reg(AX, low);
        cpu.set_reg(DX, high);
    }
    Ok(())
}

/// The quotient of high:low by `by` does not fit `T`.
#[inline(always)]
fn overflows<T: Word, const SIGNED: bool>(high: T, low: T, by: T) -> bool {
    if by.u64() == 0 {
        return true;
    }
    if !SIGNED {
        return high.u64() >= by.u64();
    }
    let bits = T::BYTES * 8;
    let dividend = i128::from(high.i64()) << bits | i128::from(low.u64());
    let quotient = dividend.wrapping_div(i128::from(by.i64()));
    let half = 1_i128 << (bits - 1);
    quotient < -half || quotient >= half
}

fn divide<T: Native, const SIGNED: bool, const MEM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let by = source::<T, MEM>(cpu, insn, 0)?;
    let low = cpu.reg::<T>(AX);
    let high = if T::BYTES == 1 { T::of(u64::from(cpu.reg::<u8>(AX + 1))) } else { cpu.reg::<T>(DX) };
    if overflows::<T, SIGNED>(high, low, by) {
        return Err(cpu.raise(vector::DE, None));
    }
    let (quotient, rest, f) = T::divide::<SIGNED>(high, low, by, cpu.state.rflags);
    cpu.state.rflags = f;
    if T::BYTES == 1 {
        cpu.set_reg(AX, (rest.u64() << 8 | quotient.u64()) as u16);
    } else {
        cpu.set_reg(AX, quotient);
        cpu.set_reg(DX, rest);
    }
    Ok(())
}

/// IMUL with two or three operands.
fn imul<T: Native, const MEM: bool, const IMM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = source::<T, MEM>(cpu, insn, 1)?;
    let a = if IMM { T::of(insn.imm) } else { cpu.reg::<T>(insn.r[0]) };
    let (v, f) = T::imul2(a, b, cpu.state.rflags);
    cpu.state.rflags = f;
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

/// MULX: rDX times operand 2, high half to operand 0, low half to operand 1 (which loses if they are one).
fn mulx<T: Native, const MEM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = source::<T, MEM>(cpu, insn, 2)?;
    let (low, high, _) = T::multiply::<false>(cpu.reg::<T>(DX), b, 0);
    cpu.set_reg(insn.r[1], low);
    cpu.set_reg(insn.r[0], high);
    Ok(())
}

/// The handler of an instruction of this group.
#[must_use]
pub fn select(i: &Instruction) -> Option<Handler> {
    let memory = |n: u32| i.op_kind(n) == OpKind::Memory;
    let w = width(i, 0);
    match (i.mnemonic(), i.op_count()) {
        (Mnemonic::Mul, _) if memory(0) => by_width!(w, multiply, [], [false, true]),
        (Mnemonic::Mul, _) => by_width!(w, multiply, [], [false, false]),
        (Mnemonic::Imul, 1) if memory(0) => by_width!(w, multiply, [], [true, true]),
        (Mnemonic::Imul, 1) => by_width!(w, multiply, [], [true, false]),
        (Mnemonic::Div, _) if memory(0) => by_width!(w, divide, [], [false, true]),
        (Mnemonic::Div, _) => by_width!(w, divide, [], [false, false]),
        (Mnemonic::Idiv, _) if memory(0) => by_width!(w, divide, [], [true, true]),
        (Mnemonic::Idiv, _) => by_width!(w, divide, [], [true, false]),
        (Mnemonic::Imul, 2) if memory(1) => by_wide!(w, imul, [], [true, false]),
        (Mnemonic::Imul, 2) => by_wide!(w, imul, [], [false, false]),
        (Mnemonic::Imul, 3) if memory(1) => by_wide!(w, imul, [], [true, true]),
        (Mnemonic::Imul, 3) => by_wide!(w, imul, [], [false, true]),
        (Mnemonic::Mulx, _) if !super::host_has(CpuidFeature::BMI2) => None,
        (Mnemonic::Mulx, _) if memory(2) => by_dword!(w, mulx, [], [true]),
        (Mnemonic::Mulx, _) => by_dword!(w, mulx, [], [false]),
        _ => None,
    }
}
