//! Operands of system instructions: general registers by iced's name, and r/m operands of any width.
//!
//! System instructions are rare; they read iced's form instead of the prepared fields of `Insn`.

use iced_x86::{OpKind, Register};

use crate::cpu::Cpu;
use crate::decode::Insn;
use crate::stop::Exec;

/// Number of a general-purpose register (of 16, 32 or 64 bits).
pub(super) fn number(register: Register) -> usize {
    register.full_register().number() & 15
}

impl Cpu {
    /// General-purpose register operand `k`, all 64 bits.
    pub(super) fn gpr_operand(&self, insn: &Insn, k: u32) -> u64 {
        self.state.gpr[number(insn.iced.op_register(k))]
    }

    /// Writes general-purpose register operand `k` by its own width: 32 bits zero-extend.
    pub(super) fn set_gpr_operand(&mut self, insn: &Insn, k: u32, value: u64) {
        let register = insn.iced.op_register(k);
        self.set_gpr(number(register), register.size() as u64, value);
    }

    /// Writes `width` bytes of general-purpose register `n`: 32 bits zero-extend.
    pub(super) fn set_gpr(&mut self, n: usize, width: u64, value: u64) {
        let slot = &mut self.state.gpr[n & 15];
        *slot = match width {
            1 => *slot & !0xff | value & 0xff,
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// Reads 16 bits from an r/m operand.
    pub(super) fn rm16(&mut self, insn: &Insn, k: u32) -> Exec<u16> {
        if insn.iced.op_kind(k) == OpKind::Register {
            return Ok(self.gpr_operand(insn, k) as u16);
        }
        let linear = self.mem(insn, 2, false)?;
        self.read::<u16>(linear)
    }

    /// Writes a selector-like value: 16 bits to memory, the operand's width to a register.
    pub(super) fn set_rm16(&mut self, insn: &Insn, k: u32, value: u64) -> Exec {
        if insn.iced.op_kind(k) == OpKind::Register {
            self.set_gpr_operand(insn, k, value);
            return Ok(());
        }
        let linear = self.mem(insn, 2, true)?;
        self.write::<u16>(linear, value as u16)
    }

    /// Reads `width` bytes at a linear address, zero-extended.
    pub(super) fn read_width(&mut self, linear: u64, width: u64) -> Exec<u64> {
        Ok(match width {
            1 => u64::from(self.read::<u8>(linear)?),
            2 => u64::from(self.read::<u16>(linear)?),
            4 => u64::from(self.read::<u32>(linear)?),
            _ => self.read::<u64>(linear)?,
        })
    }

    /// Writes `width` bytes at a linear address.
    pub(super) fn write_width(&mut self, linear: u64, width: u64, value: u64) -> Exec {
        match width {
            1 => self.write::<u8>(linear, value as u8),
            2 => self.write::<u16>(linear, value as u16),
            4 => self.write::<u32>(linear, value as u32),
            _ => self.write::<u64>(linear, value),
        }
    }
}
