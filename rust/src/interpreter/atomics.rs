//! XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B, with and without LOCK.
//!
//! (XCHG with memory is in `mov`, LOCK forms of arithmetic in `alu`, of bit tests in `bits`.)

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::alu::{by_width, width};
use super::native::Native;
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::state::{flag, gpr};
use crate::stop::Exec;

const AX: u8 = 0;

fn xadd_reg<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (a, b) = (cpu.reg::<T>(insn.r[0]), cpu.reg::<T>(insn.r[1]));
    let (v, f) = T::add(a, b, cpu.state.rflags);
    cpu.state.rflags = f;
    cpu.set_reg(insn.r[1], a);
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

fn xadd_mem<T: Native, const LOCK: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, true)?;
    let b = cpu.reg::<T>(insn.r[1]);
    let before = cpu.state.rflags;
    let mut after = before;
    let old = cpu.update::<T>(linear, LOCK, |a| {
        let (v, f) = T::add(a, b, before);
        after = f;
        Some(v)
    })?;
    cpu.state.rflags = after;
    cpu.set_reg(insn.r[1], old);
    Ok(())
}

fn cmpxchg_reg<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (old, expected) = (cpu.reg::<T>(insn.r[0]), cpu.reg::<T>(AX));
    cpu.state.rflags = T::sub(expected, old, cpu.state.rflags).1;
    if old == expected {
        let v = cpu.reg::<T>(insn.r[1]);
        cpu.set_reg(insn.r[0], v);
    } else {
        cpu.set_reg(AX, old);
    }
    Ok(())
}

fn cmpxchg_mem<T: Native, const LOCK: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, true)?;
    let (new, expected) = (cpu.reg::<T>(insn.r[1]), cpu.reg::<T>(AX));
    let old = cpu.update::<T>(linear, LOCK, |a| (a == expected).then_some(new))?;
    cpu.state.rflags = T::sub(expected, old, cpu.state.rflags).1;
    if old != expected {
        cpu.set_reg(AX, old);
    }
    Ok(())
}

fn cmpxchg8b<const LOCK: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, 8, true)?;
    let g = &cpu.state.gpr;
    let pair = |high: usize, low: usize| g[high] << 32 | g[low] & 0xffff_ffff;
    let (expected, new) = (pair(gpr::RDX, gpr::RAX), pair(gpr::RCX, gpr::RBX));
    let old = cpu.update::<u64>(linear, LOCK, |a| (a == expected).then_some(new))?;
    if old == expected {
        cpu.state.rflags |= flag::ZF;
    } else {
        cpu.state.rflags &= !flag::ZF;
        cpu.state.gpr[gpr::RAX] = old & 0xffff_ffff;
        cpu.state.gpr[gpr::RDX] = old >> 32;
    }
    Ok(())
}

/// The operand must be aligned to 16 bytes: else #GP(0).
fn cmpxchg16b(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, 16, true)?;
    if linear & 15 != 0 {
        return Err(cpu.gp0());
    }
    let g = &cpu.state.gpr;
    let pair = |high: usize, low: usize| u128::from(g[high]) << 64 | u128::from(g[low]);
    let (expected, new) = (pair(gpr::RDX, gpr::RAX), pair(gpr::RCX, gpr::RBX));
    let old = cpu.update128(linear, |a| (a == expected).then_some(new))?;
    if old == expected {
        cpu.state.rflags |= flag::ZF;
    } else {
        cpu.state.rflags &= !flag::ZF;
        cpu.state.gpr[gpr::RAX] = old as u64;
        cpu.state.gpr[gpr::RDX] = (old >> 64) as u64;
    }
    Ok(())
}

/// The handler of an instruction of this group.
#[must_use]
pub fn select(i: &Instruction) -> Option<Handler> {
    let w = width(i, 0);
    let register = i.op0_kind() == OpKind::Register;
    let lock = i.has_lock_prefix();
    match i.mnemonic() {
        Mnemonic::Xadd if register => by_width!(w, xadd_reg, []),
        Mnemonic::Xadd if lock => by_width!(w, xadd_mem, [], [true]),
        Mnemonic::Xadd => by_width!(w, xadd_mem, [], [false]),
        Mnemonic::Cmpxchg if register => by_width!(w, cmpxchg_reg, []),
        Mnemonic::Cmpxchg if lock => by_width!(w, cmpxchg_mem, [], [true]),
        Mnemonic::Cmpxchg => by_width!(w, cmpxchg_mem, [], [false]),
        Mnemonic::Cmpxchg8b if lock => Some(cmpxchg8b::<true>),
        Mnemonic::Cmpxchg8b => Some(cmpxchg8b::<false>),
        Mnemonic::Cmpxchg16b => Some(cmpxchg16b),
        _ => None,
    }
}
