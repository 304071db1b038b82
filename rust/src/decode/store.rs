//! Where decoded instructions and their bytes lie: one behind the other in chunks, which go when nobody uses anything in
//! them. Thousands of blocks need no allocation of their own, and are not freed one by one.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use super::Insn;
use super::settled::chunk;
use crate::host::{HUGE, Mapping};

/// Bytes of a chunk.
const CHUNK: usize = HUGE;
// Instructions are forgotten with their chunk, not dropped.
const _: () = assert!(!std::mem::needs_drop::<Insn>());

/// Decoded instructions with their bytes.
#[derive(Clone)]
pub struct Decoded {
    /// What they lie in.
    _chunk: Arc<Mapping>,
    /// The instructions; behind them their bytes.
    first: NonNull<Insn>,
    count: u16,
    length: u16,
    /// Instructions before the bytes.
    kept: u16,
}

impl Decoded {
    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `Store::keep` wrote them there, and the chunk is alive.
        unsafe {
            let bytes: *const u8 = self.first.as_ptr().add(usize::from(self.kept)).cast();
            std::slice::from_raw_parts(bytes, usize::from(self.length))
        }
    }

    /// The first `count` of them.
    #[must_use]
    pub fn up_to(&self, count: usize) -> Self {
        let count = count.min(usize::from(self.count));
        let length = self[..count].iter().map(|i| u16::from(i.len)).sum();
        Self { count: count as u16, length, ..self.clone() }
    }
}

impl Deref for Decoded {
    type Target = [Insn];

    #[inline(always)]
    fn deref(&self) -> &[Insn] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), usize::from(self.count)) }
    }
}

/// Where new ones go.
pub struct Store {
    chunk: Arc<Mapping>,
    used: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self { chunk: Arc::new(chunk()), used: 0 }
    }
}

impl Store {
    /// Takes the instructions out of `insns`, with their bytes. No block is longer than [`super::MAX_INSNS`].
    pub fn keep(&mut self, insns: &mut Vec<Insn>, bytes: &[u8]) -> Decoded {
        let (count, length) = (insns.len(), bytes.len());
        let size = (count * size_of::<Insn>() + length).next_multiple_of(align_of::<Insn>());
        assert!(size <= CHUNK, "a block fits into a chunk");
        if CHUNK - self.used < size {
            *self = Self::default();
        }
        // SAFETY: `size` bytes from `used` on lie in the chunk, are aligned, not at null, and nobody else has them; the
        // instructions move, as `insns` forgets them.
        let first = unsafe {
            let first: NonNull<Insn> = NonNull::new_unchecked(self.chunk.base).add(self.used).cast();
            insns.set_len(0);
            first.copy_from_nonoverlapping(NonNull::new_unchecked(insns.as_mut_ptr()), count);
            first.add(count).cast::<u8>().as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), length);
            first
        };
        self.used += size;
        Decoded {
            _chunk: Arc::clone(&self.chunk),
            first,
            count: count as u16,
            length: length as u16,
            kept: count as u16,
        }
    }
}
