//! Operands: registers by offset, effective and linear addresses of memory operands.
//!
//! The accessors of memory itself belong to the MMU; segmentation outside 64-bit mode to the system group.

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::state::State;
use crate::stop::Exec;

/// A general-purpose operand: u8, u16, u32, u64.
pub trait Word: crate::memory::Int + Eq + Ord + 'static {
    /// Bytes.
    const BYTES: u32 = size_of::<Self>() as u32;
    /// Truncates.
    fn of(v: u64) -> Self;
    /// Zero-extends.
    fn u64(self) -> u64;
    /// Sign-extends.
    fn i64(self) -> i64;
    /// Reads a register at a byte offset in `gpr`.
    fn read_reg(s: &State, off: u8) -> Self;
    /// Writes it; a 32-bit one zero-extends.
    fn write_reg(s: &mut State, off: u8, v: Self);
}

macro_rules! word {
    ($t:ty, $signed:ty, $v:ident => $store:expr, $st:ty) => {
        impl Word for $t {
            #[inline(always)]
            fn of(v: u64) -> Self {
                v as Self
            }
            #[inline(always)]
            fn u64(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn i64(self) -> i64 {
                i64::from(self as $signed)
            }
            #[inline(always)]
            fn read_reg(s: &State, off: u8) -> Self {
                // SAFETY: `off & 127` plus 8 bytes lies within `gpr` and the fields that follow it in `State`.
                unsafe { (&raw const *s).cast::<u8>().add(usize::from(off & 127)).cast::<Self>().read_unaligned() }
            }
            #[inline(always)]
            fn write_reg(s: &mut State, off: u8, $v: Self) {
                // SAFETY: as in `read_reg`; decoded offsets are multiples of 8 (or AH.. with one byte), in `gpr`.
                unsafe { (&raw mut *s).cast::<u8>().add(usize::from(off & 127)).cast::<$st>().write_unaligned($store) }
            }
        }
    };
}
word!(u8, i8, v => v, u8);
word!(u16, i16, v => v, u16);
word!(u32, i32, v => u64::from(v), u64);
word!(u64, i64, v => v, u64);

impl Cpu {
    /// Register at byte offset `off` (see [`Insn::r`]).
    #[inline(always)]
    #[must_use]
    pub fn reg<T: Word>(&self, off: u8) -> T {
        T::read_reg(&self.state, off)
    }

    /// Writes a register; a 32-bit write clears the upper half.
    #[inline(always)]
    pub fn set_reg<T: Word>(&mut self, off: u8, v: T) {
        T::write_reg(&mut self.state, off, v);
    }

    /// Effective address of the memory operand: the offset within its segment.
    #[inline(always)]
    #[must_use]
    pub fn ea(&self, insn: &Insn) -> u64 {
        let slots = (&raw const *self.state).cast::<u64>();
        // SAFETY: base and index are at most 17 (masked to 31): `State` has far more slots than that.
        let (base, index) =
            unsafe { (*slots.add(usize::from(insn.base & 31)), *slots.add(usize::from(insn.index & 31))) };
        base.wrapping_add(index << (insn.shift & 3)).wrapping_add(insn.disp) & insn.address_mask
    }

    /// Linear address of the memory operand of `size` bytes, after segmentation. Alignment (#AC) is checked
    /// at the access.
    #[inline(always)]
    pub fn mem(&mut self, insn: &Insn, size: u32, write: bool) -> Exec<u64> {
        let offset = self.ea(insn);
        self.segmented(insn.seg, offset, size, write)
    }

    /// Linear address of `offset` in segment `seg`. A non-canonical one is for the MMU to find.
    #[inline(always)]
    pub fn segmented(&mut self, seg: u8, offset: u64, size: u32, write: bool) -> Exec<u64> {
        if self.mode.bits == Bits::B64 {
            return Ok(if seg >= 4 { offset.wrapping_add(self.state.seg[usize::from(seg & 7)].base) } else { offset });
        }
        self.linear(usize::from(seg & 7), offset, size, write)
    }
}
