//! From bytes to blocks of decoded instructions, shared by both engines.
//!
//! A block is a run of instructions within one physical page, decoded for one mode. `Insn` holds what the
//! interpreter's hot handlers need, ready to use, and iced's full instruction for the rest.

use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::stop::Exec;

/// An instruction's executor. On success the run loop moves `rip` to `cpu.next_rip` and counts it retired.
pub type Handler = fn(&mut Cpu, &Insn) -> Exec;

/// A decoded instruction.
#[derive(Clone)]
pub struct Insn {
    /// What executes it.
    pub run: Handler,
    /// Immediate, sign- or zero-extended as the instruction uses it; for near branches the displacement.
    pub imm: u64,
    /// Memory operand: displacement.
    pub disp: u64,
    /// Memory operand: mask of the address size (0xffff, 0xffff_ffff, !0).
    pub address_mask: u64,
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// Byte offset into `state.gpr` of register operand 0, 1, 2 (AH, CH, DH, BH are offset + 1).
    pub r: [u8; 3],
    /// Memory operand: slot in `state.gpr` of base and index (16 = `state.zero`).
    pub base: u8,
    /// See `base`.
    pub index: u8,
    /// Memory operand: log2 of the scale.
    pub shift: u8,
    /// Memory operand: segment number.
    pub seg: u8,
    /// iced's instruction, for everything else.
    pub iced: Instruction,
    /// The vector unit's native stub of this instruction (`Default::default()` when decoded).
    pub stub: StubSlot,
}

/// Number of the native stub that the vector unit made for an instruction; 0 before its first execution.
#[derive(Default, Debug)]
pub struct StubSlot(AtomicU32);

impl StubSlot {
    /// The stub's number, or 0.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Remembers the stub's number.
    #[inline]
    pub fn set(&self, number: u32) {
        self.0.store(number, Ordering::Relaxed);
    }
}

impl Clone for StubSlot {
    fn clone(&self) -> Self {
        Self(AtomicU32::new(self.get()))
    }
}

/// Block cache of one core.
#[derive(Default)]
pub struct BlockCache {}
