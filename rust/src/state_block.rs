//! Where the flat state lives: above a stack of its own and the translator's hot data, in one mapping.
//!
//! Translated code keeps the address of the hot data in the host's stack pointer; helpers that it calls then
//! run on the stack below. Everybody else sees a [`State`] through `Deref`.

use std::io;
use std::ops::{Deref, DerefMut};

use crate::state::State;
use crate::translator::hot::Hot;

/// Stack for helpers, which may call into Python (a bus upcall).
const STACK: usize = 8 << 20;
/// The block begins at a multiple of this, so that the host may back it, which is read all over, by large pages.
const HUGE: usize = 2 << 20;

/// The state with its surroundings.
#[repr(C, align(64))]
struct Block {
    hot: Hot,
    state: State,
}

/// Owner of one [`State`] at a fixed address.
pub struct StateBlock {
    mapping: *mut u8,
    block: *mut Block,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for StateBlock {}

impl StateBlock {
    /// A block that holds `state`.
    ///
    /// # Panics
    /// When the host has no memory for it.
    #[must_use]
    pub fn new(state: State) -> Self {
        let size = size_of::<Block>().next_multiple_of(HUGE);
        let len = STACK + size + HUGE;
        // SAFETY: a fresh private mapping; the lowest page becomes a guard.
        let mapping = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let p = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert!(p != libc::MAP_FAILED, "no memory for a processor: {}", io::Error::last_os_error());
            libc::mprotect(p, 4096, libc::PROT_NONE);
            p.cast::<u8>()
        };
        let before = STACK + (mapping as usize).wrapping_neg() % HUGE;
        // SAFETY: the block lies in the mapping and is aligned, STACK being a multiple of HUGE; zero is a valid `Hot`.
        let block = unsafe { mapping.add(before).cast::<Block>() };
        // SAFETY: the range lies in the mapping. Where the host knows no large pages, small ones serve.
        unsafe { libc::madvise(block.cast(), size, libc::MADV_HUGEPAGE) };
        // SAFETY: as above.
        unsafe { (*block).state = state };
        Self { mapping, block, len }
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

impl Drop for StateBlock {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length.
        unsafe { libc::munmap(self.mapping.cast(), self.len) };
    }
}

/// Offset of the state from the hot data.
pub const STATE_OFFSET: usize = std::mem::offset_of!(Block, state);
