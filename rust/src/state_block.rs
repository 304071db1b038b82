//! Where the flat state lives: above a stack of its own and the translator's hot data, in one mapping.
//!
//! Translated code keeps the address of the hot data in the host's stack pointer; helpers that it calls then
//! run on the stack below. Everybody else sees a [`State`] through `Deref`.

use std::ops::{Deref, DerefMut};

use crate::host::{HUGE, Mapping};
use crate::memory::PAGE;
use crate::state::State;
use crate::translator::hot::Hot;

/// Stack for helpers, which may call into Python (a bus upcall).
const STACK: usize = 8 << 20;

/// The state with its surroundings.
#[repr(C, align(64))]
struct Block {
    hot: Hot,
    state: State,
}

/// Owner of one [`State`] at a fixed address.
pub struct StateBlock {
    block: *mut Block,
    _mapping: Mapping,
}

// SAFETY: the block lies in the mapping, which belongs to this value alone.
unsafe impl Send for StateBlock {}

// The block is read all over, and begins where a huge page may.
const _: () = assert!(STACK % HUGE == 0);

impl StateBlock {
    /// A block that holds `state`.
    ///
    /// # Panics
    /// When the host has no memory for it.
    #[must_use]
    pub fn new(state: State) -> Self {
        let size = size_of::<Block>().next_multiple_of(HUGE);
        let mapping = Mapping::new(STACK + size).unwrap_or_else(|e| panic!("no memory for a processor: {e}"));
        // SAFETY: the stack lies in the mapping; little of it is used, and its lowest page becomes a guard.
        unsafe {
            libc::madvise(mapping.base.cast(), STACK, libc::MADV_NOHUGEPAGE);
            libc::mprotect(mapping.base.cast(), PAGE as usize, libc::PROT_NONE);
        }
        // SAFETY: the block lies in the mapping and is aligned; zero is a valid `Hot`.
        let block = unsafe { mapping.base.add(STACK).cast::<Block>() };
        // SAFETY: as above.
        unsafe { (*block).state = state };
        Self { block, _mapping: mapping }
    }

    /// The translator's data.
    #[inline(always)]
    pub fn hot(&mut self) -> &mut Hot {
        // SAFETY: the block lives as long as `self`.
        unsafe { &mut (*self.block).hot }
    }

    /// Address of the block: what translated code has in its stack pointer.
    #[inline(always)]
    #[must_use]
    pub fn address(&self) -> *mut Hot {
        self.block.cast()
    }
}

impl Deref for StateBlock {
    type Target = State;

    #[inline(always)]
    fn deref(&self) -> &State {
        // SAFETY: the block lives as long as `self`.
        unsafe { &(*self.block).state }
    }
}

impl DerefMut for StateBlock {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut State {
        // SAFETY: as above.
        unsafe { &mut (*self.block).state }
    }
}

/// Offset of the state from the hot data.
pub const STATE_OFFSET: usize = std::mem::offset_of!(Block, state);
