//! Stack frames of events and far transfers: several words pushed or peeked as one step.
//!
//! Nothing here changes registers, so that a fault in the middle leaves the instruction restartable.

use crate::cpu::{Bits, Cpu};
use crate::interpreter::system::segment::{access, canonical, within};
use crate::state::{Segment, gpr, seg};
use crate::stop::{Exec, vector};

/// The stack that a frame goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    /// SS with its hidden part; not looked at when `flat`.
    pub segment: Segment,
    /// Stack pointer before the frame.
    pub pointer: u64,
    /// 64-bit mode: no segmentation, canonical addresses.
    pub flat: bool,
    /// Another privilege level's stack: written with supervisor rights.
    pub inner: bool,
    /// Error code of #SS when the frame does not fit.
    pub error: u32,
}

impl Stack {
    fn mask(&self) -> u64 {
        if self.flat {
            !0
        } else if self.segment.access & access::BIG != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }
}

impl Cpu {
    /// The stack in use.
    pub(crate) fn current_stack(&self) -> Stack {
        Stack {
            segment: self.state.seg[seg::SS],
            pointer: self.state.gpr[gpr::RSP],
            flat: self.mode.bits == Bits::B64,
            inner: false,
            error: 0,
        }
    }

    /// Pushes `values` in order, `width` bytes each, and returns the new stack pointer. The whole frame
    /// is checked against the segment before the first write (SDM vol. 2, INT n).
    ///
    /// # Errors
    /// #SS with `stack.error`, or a page fault.
    pub(crate) fn push_frame(&mut self, stack: &Stack, width: u64, values: &[u64]) -> Exec<u64> {
        let mask = stack.mask();
        let mut pointer = stack.pointer;
        for _ in values {
            pointer = pointer.wrapping_sub(width) & mask;
            let fits = if stack.flat {
                canonical(pointer) && canonical(pointer.wrapping_add(width - 1))
            } else {
                within(&stack.segment, pointer, width as u32)
            };
            if !fits {
                return Err(self.raise(vector::SS, Some(stack.error)));
            }
        }
        pointer = stack.pointer;
        for &value in values {
            pointer = pointer.wrapping_sub(width) & mask;
            let linear = if stack.flat { pointer } else { stack.segment.base.wrapping_add(pointer) & 0xffff_ffff };
            match (width, stack.inner) {
                (2, false) => self.write::<u16>(linear, value as u16)?,
                (4, false) => self.write::<u32>(linear, value as u32)?,
                (_, false) => self.write::<u64>(linear, value)?,
                (2, true) => self.write_system::<u16>(linear, value as u16)?,
                (4, true) => self.write_system::<u32>(linear, value as u32)?,
                (_, true) => self.write_system::<u64>(linear, value)?,
            }
        }
        Ok(stack.pointer & !mask | pointer)
    }

    /// Reads the word `offset` bytes above the top of the current stack.
    ///
    /// # Errors
    /// #SS(0), or a page fault.
    pub(crate) fn peek(&mut self, width: u64, offset: u64) -> Exec<u64> {
        let stack = self.current_stack();
        let pointer = stack.pointer.wrapping_add(offset) & stack.mask();
        let linear = self.linear(seg::SS, pointer, width as u32, false)?;
        Ok(match width {
            2 => u64::from(self.read::<u16>(linear)?),
            4 => u64::from(self.read::<u32>(linear)?),
            _ => self.read::<u64>(linear)?,
        })
    }

    /// Moves the stack pointer up by `bytes`, within its size.
    pub(crate) fn drop_stack(&mut self, bytes: u64) {
        let mask = self.current_stack().mask();
        let pointer = self.state.gpr[gpr::RSP];
        self.state.gpr[gpr::RSP] = pointer & !mask | pointer.wrapping_add(bytes) & mask;
    }
}
