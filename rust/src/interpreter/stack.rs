//! The stack: push and pop with the rules of the stack's size, PUSH, POP, PUSHA, POPA, ENTER, LEAVE.
//!
//! In 64-bit mode the stack pointer is RSP; else ESP or SP by SS.B (SDM vol. 1, 6.2.3). Segment registers and
//! flags are pushed and popped by the system group, with the helpers here.

use iced_x86::{Code, Instruction, OpKind};

use super::operand::Word;
use crate::cpu::{Bits, Cpu};
use crate::decode::{Handler, Insn};
use crate::state::{gpr, seg};
use crate::stop::{Exec, Stop, vector};

const SS: u8 = seg::SS as u8;
const BP: u8 = 40;

impl Cpu {
    /// Mask of the stack pointer's width.
    #[inline(always)]
    #[must_use]
    pub fn stack_mask(&self) -> u64 {
        match (self.mode.bits, self.mode.stack32) {
            (Bits::B64, _) => !0,
            (_, true) => 0xffff_ffff,
            (_, false) => 0xffff,
        }
    }

    /// Sets the stack pointer, of which only the stack's width changes.
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, v: u64) {
        let mask = self.stack_mask();
        let rsp = &mut self.state.gpr[gpr::RSP];
        *rsp = if mask == 0xffff { *rsp & !0xffff | v & 0xffff } else { v & mask };
    }

    /// A fault of an implicit stack access: non-canonical is #SS(0) there.
    #[cold]
    fn stack_fault(&mut self, stop: Stop) -> Stop {
        if stop == Stop::Fault && self.fault.vector == vector::GP && self.fault.payload != 0 {
            self.fault.vector = vector::SS;
        }
        stop
    }

    /// Reads the stack at `offset` (cut to the stack's width) in SS.
    #[inline(always)]
    pub fn stack_read<T: Word>(&mut self, offset: u64) -> Exec<T> {
        let offset = offset & self.stack_mask();
        let linear = self.segmented(SS, offset, T::BYTES, false)?;
        match self.read::<T>(linear) {
            Err(stop) => Err(self.stack_fault(stop)),
            ok => ok,
        }
    }

    /// Writes the stack at `offset` (cut to the stack's width) in SS.
    #[inline(always)]
    pub fn stack_write<T: Word>(&mut self, offset: u64, v: T) -> Exec {
        let offset = offset & self.stack_mask();
        let linear = self.segmented(SS, offset, T::BYTES, true)?;
        match self.write::<T>(linear, v) {
            Err(stop) => Err(self.stack_fault(stop)),
            ok => ok,
        }
    }

    /// Pushes; the stack pointer moves only if the write succeeds.
    #[inline(always)]
    pub fn push<T: Word>(&mut self, v: T) -> Exec {
        let sp = self.state.gpr[gpr::RSP].wrapping_sub(u64::from(T::BYTES));
        self.stack_write(sp, v)?;
        self.set_stack_pointer(sp);
        Ok(())
    }

    /// Pops; the stack pointer moves only if the read succeeds.
    #[inline(always)]
    pub fn pop<T: Word>(&mut self) -> Exec<T> {
        let sp = self.state.gpr[gpr::RSP];
        let v = self.stack_read(sp)?;
        self.set_stack_pointer(sp.wrapping_add(u64::from(T::BYTES)));
        Ok(v)
    }

    /// Pushes 2, 4 or 8 bytes.
    pub fn push_sized(&mut self, bytes: u32, v: u64) -> Exec {
        match bytes {
            2 => self.push(v as u16),
            4 => self.push(v as u32),
            _ => self.push(v),
        }
    }

    /// Pops 2, 4 or 8 bytes.
    pub fn pop_sized(&mut self, bytes: u32) -> Exec<u64> {
        match bytes {
            2 => self.pop::<u16>().map(u64::from),
            4 => self.pop::<u32>().map(u64::from),
            _ => self.pop::<u64>(),
        }
    }
}

fn push_r<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let v = cpu.reg::<T>(insn.r[0]);
    cpu.push(v)
}

fn push_i<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.push(T::of(insn.imm))
}

fn push_m<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, false)?;
    let v = cpu.read::<T>(linear)?;
    cpu.push(v)
}

/// POP rSP: the popped value wins over the increment.
fn pop_r<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let v = cpu.pop::<T>()?;
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

/// POP to memory: the address is computed with the incremented stack pointer (SDM vol. 2, POP); a fault of
/// the write leaves the stack pointer as it was.
fn pop_m<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let before = cpu.state.gpr[gpr::RSP];
    let v = cpu.pop::<T>()?;
    let done = cpu.mem(insn, T::BYTES, true).and_then(|linear| cpu.write(linear, v));
    if done.is_err() {
        cpu.state.gpr[gpr::RSP] = before;
    }
    done
}

fn pusha<T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let before = cpu.state.gpr[gpr::RSP];
    for n in 0..8 {
        let v = if n == gpr::RSP { T::of(before) } else { cpu.reg::<T>(n as u8 * 8) };
        if let Err(stop) = cpu.push(v) {
            cpu.state.gpr[gpr::RSP] = before;
            return Err(stop);
        }
    }
    Ok(())
}

/// Registers are loaded one by one, also before a fault; the stack pointer moves at the end, so that the
/// instruction can be started again.
fn popa<T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let sp = cpu.state.gpr[gpr::RSP];
    for k in 0..8 {
        let v = cpu.stack_read::<T>(sp.wrapping_add(k * u64::from(T::BYTES)))?;
        if 7 - k != gpr::RSP as u64 {
            cpu.set_reg((7 - k) as u8 * 8, v);
        }
    }
    cpu.set_stack_pointer(sp.wrapping_add(8 * u64::from(T::BYTES)));
    Ok(())
}

/// ENTER (SDM vol. 2): `T` is the operand size; the frame pointer's width is the stack's.
fn enter<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let size = u64::from(T::BYTES);
    let level = u64::from(insn.iced.immediate8_2nd() & 31);
    let rsp = cpu.state.gpr[gpr::RSP];
    let rbp = cpu.state.gpr[gpr::RBP];
    let mut sp = rsp.wrapping_sub(size);
    cpu.stack_write(sp, T::of(rbp))?;
    let frame = sp;
    for n in 1..level {
        let v = cpu.stack_read::<T>(rbp.wrapping_sub(n * size))?;
        sp = sp.wrapping_sub(size);
        cpu.stack_write(sp, v)?;
    }
    if level > 0 {
        sp = sp.wrapping_sub(size);
        cpu.stack_write(sp, T::of(frame))?;
    }
    sp = sp.wrapping_sub(insn.imm & 0xffff);
    // The new stack top must be writable (SDM: a page fault or #SS there is ENTER's).
    let top = sp & cpu.stack_mask();
    let linear = cpu.segmented(SS, top, T::BYTES, true)?;
    cpu.probe_write(linear, size).map_err(|stop| cpu.stack_fault(stop))?;
    let mask = cpu.stack_mask();
    if T::BYTES == 2 || mask == 0xffff {
        cpu.set_reg(BP, frame as u16);
    } else {
        cpu.set_reg(BP, frame & mask);
    }
    cpu.set_stack_pointer(sp);
    Ok(())
}

fn leave<T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let bp = cpu.reg::<u64>(BP);
    let v = cpu.stack_read::<T>(bp)?;
    cpu.set_stack_pointer(bp.wrapping_add(u64::from(T::BYTES)));
    cpu.set_reg(BP, v);
    Ok(())
}

/// The handler of an instruction of this group.
#[must_use]
pub fn select(i: &Instruction) -> Option<Handler> {
    Some(match i.code() {
        Code::Push_r16 => push_r::<u16>,
        Code::Push_r32 => push_r::<u32>,
        Code::Push_r64 => push_r::<u64>,
        Code::Push_imm16 | Code::Pushw_imm8 => push_i::<u16>,
        Code::Pushd_imm32 | Code::Pushd_imm8 => push_i::<u32>,
        Code::Pushq_imm32 | Code::Pushq_imm8 => push_i::<u64>,
        Code::Push_rm16 if i.op0_kind() == OpKind::Register => push_r::<u16>,
        Code::Push_rm32 if i.op0_kind() == OpKind::Register => push_r::<u32>,
        Code::Push_rm64 if i.op0_kind() == OpKind::Register => push_r::<u64>,
        Code::Push_rm16 => push_m::<u16>,
        Code::Push_rm32 => push_m::<u32>,
        Code::Push_rm64 => push_m::<u64>,
        Code::Pop_r16 => pop_r::<u16>,
        Code::Pop_r32 => pop_r::<u32>,
        Code::Pop_r64 => pop_r::<u64>,
        Code::Pop_rm16 if i.op0_kind() == OpKind::Register => pop_r::<u16>,
        Code::Pop_rm32 if i.op0_kind() == OpKind::Register => pop_r::<u32>,
        Code::Pop_rm64 if i.op0_kind() == OpKind::Register => pop_r::<u64>,
        Code::Pop_rm16 => pop_m::<u16>,
        Code::Pop_rm32 => pop_m::<u32>,
        Code::Pop_rm64 => pop_m::<u64>,
        Code::Pushaw => pusha::<u16>,
        Code::Pushad => pusha::<u32>,
        Code::Popaw => popa::<u16>,
        Code::Popad => popa::<u32>,
        Code::Enterw_imm16_imm8 => enter::<u16>,
        Code::Enterd_imm16_imm8 => enter::<u32>,
        Code::Enterq_imm16_imm8 => enter::<u64>,
        Code::Leavew => leave::<u16>,
        Code::Leaved => leave::<u32>,
        Code::Leaveq => leave::<u64>,
        _ => return None,
    })
}
