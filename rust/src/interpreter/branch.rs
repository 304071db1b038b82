//! Near branches: Jcc, JMP, CALL, RET, LOOP, JrCXZ; PAUSE; BOUND.
//!
//! A target outside the code segment, or not canonical, faults at the branch. Far transfers belong to the
//! system group.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::alu::{by_wide, width};
use super::mov::{by_condition, condition, condition_code};
use super::operand::Word;
use super::system::segment::canonical;
use crate::cpu::{Bits, Cpu};
use crate::decode::{Handler, Insn};
use crate::state::{flag, gpr, seg};
use crate::stop::{Exec, vector};

impl Cpu {
    /// #GP(0) unless code may be at `target`.
    #[inline(always)]
    pub fn check_branch(&mut self, target: u64) -> Exec {
        let good =
            if self.mode.bits == Bits::B64 { canonical(target) } else { target <= self.state.seg[seg::CS].limit };
        if good { Ok(()) } else { Err(self.gp0()) }
    }

    /// Makes `target` the next RIP, if code may be there.
    #[inline(always)]
    pub fn branch(&mut self, target: u64) -> Exec {
        self.check_branch(target)?;
        self.next_rip = target;
        Ok(())
    }

    /// The target of a relative branch. `address_mask` is the operand size's.
    #[inline(always)]
    fn relative(&mut self, insn: &Insn) -> Exec {
        self.branch(self.next_rip.wrapping_add(insn.imm) & insn.address_mask)
    }
}

fn jcc<const CC: u8>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if condition::<CC>(cpu.state.rflags) { cpu.relative(insn) } else { Ok(()) }
}

fn jmp(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.relative(insn)
}

fn jmp_r<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let target = cpu.reg::<T>(insn.r[0]).u64();
    cpu.branch(target)
}

fn jmp_m<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, false)?;
    let target = cpu.read::<T>(linear)?.u64();
    cpu.branch(target)
}

/// Pushes the return address, then branches; neither happens if the other faults.
#[inline(always)]
fn call_to<T: Word>(cpu: &mut Cpu, target: u64) -> Exec {
    cpu.check_branch(target)?;
    cpu.push(T::of(cpu.next_rip))?;
    cpu.next_rip = target;
    Ok(())
}

fn call<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let target = cpu.next_rip.wrapping_add(insn.imm) & insn.address_mask;
    call_to::<T>(cpu, target)
}

fn call_r<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let target = cpu.reg::<T>(insn.r[0]).u64();
    call_to::<T>(cpu, target)
}

fn call_m<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, false)?;
    let target = cpu.read::<T>(linear)?.u64();
    call_to::<T>(cpu, target)
}

/// RET, with the bytes to release in `imm`.
fn ret<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let sp = cpu.state.gpr[gpr::RSP];
    let target = cpu.stack_read::<T>(sp)?.u64();
    cpu.branch(target)?;
    cpu.set_stack_pointer(sp.wrapping_add(u64::from(T::BYTES)).wrapping_add(insn.imm & 0xffff));
    Ok(())
}

/// rCX of the width of `A`, minus one where `A` counts.
fn loop_<A: Word, const KIND: u8>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    const CX: u8 = 8;
    let zero = cpu.state.rflags & flag::ZF != 0;
    let mut count = cpu.reg::<A>(CX);
    if KIND != JCXZ {
        count = A::of(count.u64().wrapping_sub(1));
    }
    let taken = match KIND {
        LOOPE => count.u64() != 0 && zero,
        LOOPNE => count.u64() != 0 && !zero,
        LOOP => count.u64() != 0,
        _ => count.u64() == 0,
    };
    if taken {
        cpu.relative(insn)?;
    }
    if KIND != JCXZ {
        cpu.set_reg(CX, count);
    }
    Ok(())
}

const LOOP: u8 = 0;
const LOOPE: u8 = 1;
const LOOPNE: u8 = 2;
const JCXZ: u8 = 3;

fn pause(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_pause()?;
    std::hint::spin_loop();
    Ok(())
}

/// BOUND: #BR if the signed register lies outside the two bounds in memory.
fn bound<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let offset = cpu.ea(insn);
    let linear = cpu.segmented(insn.seg, offset, T::BYTES, false)?;
    let low = cpu.read::<T>(linear)?.i64();
    let offset = offset.wrapping_add(u64::from(T::BYTES)) & insn.address_mask;
    let linear = cpu.segmented(insn.seg, offset, T::BYTES, false)?;
    let high = cpu.read::<T>(linear)?.i64();
    let index = cpu.reg::<T>(insn.r[0]).i64();
    if index < low || index > high { Err(cpu.raise(vector::BR, None)) } else { Ok(()) }
}

fn select_loop<const KIND: u8>(i: &Instruction) -> Option<Handler> {
    Some(match i.code() {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX
        | Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32 => loop_::<u16, KIND>,
        Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX
        | Code::Jrcxz_rel8_16
        | Code::Jrcxz_rel8_64 => loop_::<u64, KIND>,
        _ => loop_::<u32, KIND>,
    })
}

/// The handler of an instruction of this group.
#[must_use]
pub fn select(i: &Instruction) -> Option<Handler> {
    if i.is_jcc_short_or_near() {
        return by_condition!(condition_code(i), jcc);
    }
    let register = i.op0_kind() == OpKind::Register;
    let w = width(i, 0);
    match i.mnemonic() {
        Mnemonic::Jmp if i.is_jmp_short_or_near() => Some(jmp),
        Mnemonic::Jmp if i.is_jmp_near_indirect() && register => by_wide!(w, jmp_r, []),
        Mnemonic::Jmp if i.is_jmp_near_indirect() => by_wide!(w, jmp_m, []),
        Mnemonic::Call if i.is_call_near() => match i.op0_kind() {
            OpKind::NearBranch16 => Some(call::<u16>),
            OpKind::NearBranch32 => Some(call::<u32>),
            _ => Some(call::<u64>),
        },
        Mnemonic::Call if i.is_call_near_indirect() && register => by_wide!(w, call_r, []),
        Mnemonic::Call if i.is_call_near_indirect() => by_wide!(w, call_m, []),
        Mnemonic::Ret => match i.code() {
            Code::Retnw | Code::Retnw_imm16 => Some(ret::<u16>),
            Code::Retnd | Code::Retnd_imm16 => Some(ret::<u32>),
            Code::Retnq | Code::Retnq_imm16 => Some(ret::<u64>),
            _ => None,
        },
        Mnemonic::Loop => select_loop::<LOOP>(i),
        Mnemonic::Loope => select_loop::<LOOPE>(i),
        Mnemonic::Loopne => select_loop::<LOOPNE>(i),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => select_loop::<JCXZ>(i),
        Mnemonic::Pause => Some(pause),
        Mnemonic::Bound if w == 2 => Some(bound::<u16>),
        Mnemonic::Bound => Some(bound::<u32>),
        _ => None,
    }
}
