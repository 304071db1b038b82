//! From bytes to blocks of decoded instructions, shared by both engines.
//!
//! A block is a run of instructions within one physical page, decoded for one mode. `Insn` holds what the
//! interpreter's hot handlers need, ready to use, and iced's full instruction for the rest.

mod build;
mod cache;
mod settled;
mod store;

use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::stop::Exec;

pub use build::{Decoded as DecodedInsn, MAX_INSNS, decode_one};
pub use cache::{Block, BlockCache, Draft, ONE_PAGE};
pub use store::Decoded;

/// An instruction's executor. On success the run loop moves `rip` to `cpu.next_rip` and counts it retired.
///
/// While it runs `state.rip` is the instruction's own address and `next_rip` that of the following one
/// (so `cpu.insn_len()` holds); only an instruction that ends its block may change `next_rip`.
pub type Handler = fn(&mut Cpu, &Insn) -> Exec;

/// Slot of [`Insn::base`] and [`Insn::index`] that stands for "none": `state.zero`.
pub const SLOT_NONE: u8 = 16;
/// Slot of [`Insn::base`] for RIP-relative operands: `state.rip`, the start of the instruction.
pub const SLOT_RIP: u8 = 17;

/// A decoded instruction: first what most handlers need, then what rare ones ask.
#[repr(C)]
pub struct Insn {
    /// What executes it.
    pub run: Handler,
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// Register operand 0, 1, 2: byte offset into `state.gpr` for general registers (AH, CH, DH, BH are
    /// offset + 1), else the register's number (segment, control, debug, vector, mask registers).
    pub r: [u8; 3],
    /// Memory operand: slot in `state.gpr` of base and index (16 = `state.zero`, 17 = `state.rip`).
    pub base: u8,
    /// See `base`.
    pub index: u8,
    /// Memory operand: log2 of the scale.
    pub shift: u8,
    /// Memory operand: segment number, with the override applied (in 64-bit mode CS, DS, ES, SS
    /// overrides are ignored, as the processor does).
    pub seg: u8,
    /// Memory operand: displacement (RIP-relative: from the start of the instruction).
    pub disp: u64,
    /// Memory operand: mask of the address size (0xffff, 0xffff_ffff, !0). Also set for string instructions,
    /// and for near branches, where it is the operand size's.
    pub address_mask: u64,
    /// Immediate, sign- or zero-extended as the instruction uses it; for near branches the displacement.
    pub imm: u64,
    /// The vector unit's native stub of this instruction (`Default::default()` when decoded).
    pub stub: StubSlot,
    /// iced's instruction, for everything else. It was decoded at address 0.
    pub iced: Instruction,
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
