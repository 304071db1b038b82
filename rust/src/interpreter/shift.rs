//! Shifts and rotates: ROL to SAR, SHLD, SHRD, and BMI2's RORX, SARX, SHLX, SHRX.
//!
//! The host shifts; counts of zero leave flags alone because the host does so.

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind};

use super::alu::{by_dword, by_wide, by_width, width};
use super::native::Native;
use super::operand::Word;
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::stop::Exec;

/// Offset of CL.
const CL: u8 = 8;

/// Where the count comes from.
const BY_CL: bool = true;

#[inline(always)]
fn count<const CL_COUNT: bool>(cpu: &Cpu, insn: &Insn) -> u8 {
    if CL_COUNT { cpu.reg::<u8>(CL) } else { insn.imm as u8 }
}

fn shift_r<T: Native, const N: u8, const C: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (v, f) = T::shift::<N>(cpu.reg::<T>(insn.r[0]), count::<C>(cpu, insn), cpu.state.rflags);
    cpu.state.rflags = f;
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

fn shift_m<T: Native, const N: u8, const C: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, true)?;
    let by = count::<C>(cpu, insn);
    let before = cpu.state.rflags;
    let mut after = before;
    cpu.update::<T>(linear, false, |a| {
        let (v, f) = T::shift::<N>(a, by, before);
        after = f;
        Some(v)
    })?;
    cpu.state.rflags = after;
    Ok(())
}

fn select_shift<const N: u8>(i: &Instruction) -> Option<Handler> {
    let w = width(i, 0);
    // "shift by 1" has the immediate 1 as an operand too.
    match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_width!(w, shift_r, [], [N, BY_CL]),
        (OpKind::Register, _) => by_width!(w, shift_r, [], [N, false]),
        (_, OpKind::Register) => by_width!(w, shift_m, [], [N, BY_CL]),
        _ => by_width!(w, shift_m, [], [N, false]),
    }
}

fn double_r<T: Native, const LEFT: bool, const C: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (a, b) = (cpu.reg::<T>(insn.r[0]), cpu.reg::<T>(insn.r[1]));
    let (v, f) = T::double_shift::<LEFT>(a, b, count::<C>(cpu, insn), cpu.state.rflags);
    cpu.state.rflags = f;
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

fn double_m<T: Native, const LEFT: bool, const C: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, true)?;
    let by = count::<C>(cpu, insn);
    let b = cpu.reg::<T>(insn.r[1]);
    let before = cpu.state.rflags;
    let mut after = before;
    cpu.update::<T>(linear, false, |a| {
        let (v, f) = T::double_shift::<LEFT>(a, b, by, before);
        after = f;
        Some(v)
    })?;
    cpu.state.rflags = after;
    Ok(())
}

fn select_double<const LEFT: bool>(i: &Instruction) -> Option<Handler> {
    let w = width(i, 0);
    let cl = i.op2_kind() == OpKind::Register;
    match (i.op0_kind() == OpKind::Register, cl) {
        (true, true) => by_wide!(w, double_r, [], [LEFT, BY_CL]),
        (true, false) => by_wide!(w, double_r, [], [LEFT, false]),
        (false, true) => by_wide!(w, double_m, [], [LEFT, BY_CL]),
        (false, false) => by_wide!(w, double_m, [], [LEFT, false]),
    }
}

/// A shift that leaves flags alone.
trait Flagless {
    fn run(a: u64, by: u32, bits: u32) -> u64;
}
struct Rorx;
impl Flagless for Rorx {
    fn run(a: u64, by: u32, bits: u32) -> u64 {
        if bits == 64 { a.rotate_right(by) } else { u64::from((a as u32).rotate_right(by)) }
    }
}
struct Sarx;
impl Flagless for Sarx {
    fn run(a: u64, by: u32, bits: u32) -> u64 {
        if bits == 64 { ((a as i64) >> by) as u64 } else { ((a as i32) >> by) as u32 as u64 }
    }
}
struct Shlx;
impl Flagless for Shlx {
    fn run(a: u64, by: u32, _: u32) -> u64 {
        a << by
    }
}
struct Shrx;
impl Flagless for Shrx {
    fn run(a: u64, by: u32, _: u32) -> u64 {
        a >> by
    }
}

fn flagless<O: Flagless, T: Word, const MEM: bool, const IMM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let a = if MEM {
        let linear = cpu.mem(insn, T::BYTES, false)?;
        cpu.read::<T>(linear)?
    } else {
        cpu.reg::<T>(insn.r[1])
    };
    let by = if IMM { insn.imm } else { cpu.reg::<T>(insn.r[2]).u64() };
    let bits = T::BYTES * 8;
    cpu.set_reg(insn.r[0], T::of(O::run(a.u64(), by as u32 & (bits - 1), bits)));
    Ok(())
}

fn select_flagless<O: Flagless>(i: &Instruction) -> Option<Handler> {
    if !super::host_has(CpuidFeature::BMI2) {
        return None;
    }
    let w = width(i, 0);
    let memory = i.op1_kind() == OpKind::Memory;
    let imm = i.op2_kind() != OpKind::Register;
    match (memory, imm) {
        (true, true) => by_dword!(w, flagless_mi, [O]),
        (true, false) => by_dword!(w, flagless_mr, [O]),
        (false, true) => by_dword!(w, flagless_ri, [O]),
        (false, false) => by_dword!(w, flagless_rr, [O]),
    }
}

fn flagless_mi<O: Flagless, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    flagless::<O, T, true, true>(cpu, insn)
}
fn flagless_mr<O: Flagless, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    flagless::<O, T, true, false>(cpu, insn)
}
fn flagless_ri<O: Flagless, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    flagless::<O, T, false, true>(cpu, insn)
}
fn flagless_rr<O: Flagless, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    flagless::<O, T, false, false>(cpu, insn)
}

/// The handler of an instruction of this group.
#[must_use]
pub fn select(i: &Instruction) -> Option<Handler> {
    match i.mnemonic() {
        Mnemonic::Rol => select_shift::<0>(i),
        Mnemonic::Ror => select_shift::<1>(i),
        Mnemonic::Rcl => select_shift::<2>(i),
        Mnemonic::Rcr => select_shift::<3>(i),
        Mnemonic::Shl | Mnemonic::Sal => select_shift::<4>(i),
        Mnemonic::Shr => select_shift::<5>(i),
        Mnemonic::Sar => select_shift::<7>(i),
        Mnemonic::Shld => select_double::<true>(i),
        Mnemonic::Shrd => select_double::<false>(i),
        Mnemonic::Rorx => select_flagless::<Rorx>(i),
        Mnemonic::Sarx => select_flagless::<Sarx>(i),
        Mnemonic::Shlx => select_flagless::<Shlx>(i),
        Mnemonic::Shrx => select_flagless::<Shrx>(i),
        _ => None,
    }
}
