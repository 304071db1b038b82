//! The cache of decoded blocks of one core, by host-physical address and code size.
//!
//! A block remembers the code version of its page; a stale one is compared with memory and, where the bytes
//! changed, decoded again in place, so that a pointer to a block stays good until the whole cache is dropped.
//! It does not translate addresses and holds nothing that depends on RIP.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::CpuidFeature;

use super::Insn;
use super::build::{Decoded as One, decode_block, decode_one};
use super::settled::Settled;
use super::store::{Decoded, Store};
use crate::address_hash::AddressHash;
use crate::cpu::Bits;
use crate::interpreter::select;
use crate::memory::Memory;

const PAGE: u64 = 4096;
/// Direct-mapped front of the hash table.
const FRONT: usize = 1 << 14;
/// The cache is dropped as a whole beyond this many decoded instructions (about 280 MiB), those included that others
/// replaced: a chunk of the store goes when nothing in it is used.
const MAX_CACHED_INSNS: usize = 2_500_000;

/// Bytes of a block at most.
const LONGEST: usize = 512;

/// `second_pa` of a block that lies in one page.
pub const ONE_PAGE: u64 = !0;

/// A run of decoded instructions within one physical page (or one instruction across two).
#[repr(C, align(64))]
pub struct Block {
    /// The instructions, at least one.
    pub insns: Decoded,
    /// `Memory::code_epoch` at which the block was last known to be fresh.
    pub epoch: u64,
    /// Code size it was decoded for.
    pub bits: Bits,
    /// Nothing in it changes mode or address space: the next block may be chained to.
    pub chained: bool,
    /// Offsets in the page of blocks that followed this one there.
    pub near: [u32; 2],
    /// Those blocks.
    pub near_block: [*mut Block; 2],
    /// Blocks in other pages, or reached from other pages, that followed: host-physical address and block.
    pub far: [(u64, *mut Block); 2],
    /// Where the first instructions of `near_block` and of `far[0]` lie, only to be prefetched.
    ahead: [*const Insn; 3],
    /// Host-physical address of the first byte.
    pub host_pa: u64,
    /// Host-physical address where the instruction that crosses the page goes on, or [`ONE_PAGE`].
    pub second_pa: u64,
    /// Times it was found by the run loop, up to the translator's threshold.
    pub warmth: u16,
    /// Where a branch was taken before its last instruction, if one was: instructions up to there.
    pub left: Cell<u8>,
    version: Version,
    second_version: Version,
}

/// An offset or address that no block has.
const NOWHERE: u32 = !0;

/// A page's code version and what it was when the bytes were read.
#[derive(Clone, Copy)]
struct Version {
    now: *const AtomicU32,
    then: u32,
}

impl Version {
    #[inline]
    fn stale(self) -> bool {
        // SAFETY: points into the `Memory` that the owner of the cache keeps alive, or to `NO_VERSION`.
        unsafe { (*self.now).load(Ordering::Acquire) != self.then }
    }
}

static NO_VERSION: AtomicU32 = AtomicU32::new(0);

impl Block {
    /// A page under the block was written since its bytes were read. Looks at the versions only when the
    /// epoch has moved.
    #[inline]
    pub fn stale(&mut self, epoch: u64) -> bool {
        if self.epoch == epoch {
            return false;
        }
        if self.version.stale() || self.second_version.stale() {
            return true;
        }
        self.epoch = epoch;
        false
    }

    /// RIP keeps these bits when it advances.
    #[inline(always)]
    #[must_use]
    pub fn ip_mask(&self) -> u64 {
        if self.bits == Bits::B64 { !0 } else { 0xffff_ffff }
    }

    /// Remembers that `next` followed, at `offset` of the same page.
    ///
    /// # Safety
    /// `next` is a live block.
    pub unsafe fn link_near(&mut self, offset: u32, next: *mut Self) {
        self.near = [offset, self.near[0]];
        self.near_block = [next, self.near_block[0]];
        // SAFETY: by contract.
        self.ahead = [unsafe { (*next).insns.as_ptr() }, self.ahead[0], self.ahead[2]];
    }

    /// Remembers that `next` followed, at host-physical address `host_pa`.
    ///
    /// # Safety
    /// `next` is a live block.
    pub unsafe fn link_far(&mut self, host_pa: u64, next: *mut Self) {
        self.far = [(host_pa, next), self.far[0]];
        // SAFETY: by contract.
        self.ahead[2] = unsafe { (*next).insns.as_ptr() };
    }

    /// Fetches into the cache what is likely to follow, while this block executes.
    #[inline(always)]
    pub fn prefetch(&self) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(self.near_block[0].cast());
            _mm_prefetch::<_MM_HINT_T0>(self.ahead[0].cast());
            _mm_prefetch::<_MM_HINT_T0>(self.near_block[1].cast());
            _mm_prefetch::<_MM_HINT_T0>(self.ahead[1].cast());
            _mm_prefetch::<_MM_HINT_T0>(self.far[0].1.cast());
            _mm_prefetch::<_MM_HINT_T0>(self.ahead[2].cast());
        }
    }

    fn new(draft: &Draft, insns: Decoded, memory: &Memory) -> Self {
        let now = |pa: u64, then: u32| Version { now: memory.code_version_cell(pa), then };
        Self {
            insns,
            // Never the present one: the first use looks at the versions.
            epoch: !0,
            bits: draft.bits,
            chained: draft.chained,
            near: [NOWHERE; 2],
            near_block: [std::ptr::null_mut(); 2],
            far: [(!0, std::ptr::null_mut()); 2],
            ahead: [std::ptr::null(); 3],
            host_pa: draft.host_pa,
            second_pa: draft.second_pa,
            warmth: 0,
            left: Cell::new(0),
            version: now(draft.host_pa, draft.versions[0]),
            second_version: if draft.second_pa == ONE_PAGE {
                Version { now: &raw const NO_VERSION, then: 0 }
            } else {
                now(draft.second_pa, draft.versions[1])
            },
        }
    }
}

/// What decoding found: a block that is not in a cache yet.
pub struct Draft {
    host_pa: u64,
    second_pa: u64,
    bits: Bits,
    insns: Vec<Insn>,
    bytes: Vec<u8>,
    chained: bool,
    /// Code versions of the two pages when they were marked as code.
    pub versions: [u32; 2],
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            host_pa: 0,
            second_pa: ONE_PAGE,
            bits: Bits::B64,
            insns: Vec::new(),
            bytes: Vec::new(),
            chained: false,
            versions: [0; 2],
        }
    }
}

impl Draft {
    /// Length in bytes.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Instructions that the processor does not offer raise #UD, or do what their encoding did before them.
    pub fn keep_offered(&mut self, offers: impl Fn(CpuidFeature) -> bool) {
        for insn in &mut self.insns {
            if let Some(run) = select::not_offered(&insn.iced, &offers) {
                insn.run = run;
            }
        }
    }

    /// Memory still holds these bytes (of a block in one page).
    #[must_use]
    pub fn matches(&self, memory: &Memory) -> bool {
        same_bytes(memory, self.host_pa, &self.bytes)
    }

    /// Decodes the block at `host_pa`; false if its first instruction goes on in the next page.
    #[must_use]
    pub fn in_page(&mut self, memory: &Memory, host_pa: u64, bits: Bits) -> bool {
        self.bytes.resize(LONGEST.min((PAGE - host_pa % PAGE) as usize), 0);
        memory.read_bytes(host_pa, &mut self.bytes);
        self.insns.clear();
        let (length, chained) = decode_block(&self.bytes, bits, &mut self.insns);
        self.bytes.truncate(length);
        self.chained = chained;
        (self.host_pa, self.second_pa, self.bits, self.versions) = (host_pa, ONE_PAGE, bits, [0; 2]);
        !self.insns.is_empty()
    }

    /// Decodes the one instruction that begins at the first address and goes on at the second.
    pub fn across(&mut self, memory: &Memory, [host_pa, second_pa]: [u64; 2], versions: [u32; 2], bits: Bits) {
        let first = ((PAGE - host_pa % PAGE) as usize).min(15);
        self.bytes.resize(15, 0);
        let (bytes, more) = self.bytes.split_at_mut(first);
        memory.read_bytes(host_pa, bytes);
        memory.read_bytes(second_pa, more);
        self.insns.clear();
        // With 15 bytes the decoder always comes to an end.
        if let One::Insn(insn) = decode_one(&self.bytes, bits) {
            self.insns.push(insn);
        }
        self.bytes.truncate(self.insns.first().map_or(15, |i| usize::from(i.len)));
        (self.host_pa, self.second_pa, self.bits) = (host_pa, second_pa, bits);
        (self.chained, self.versions) = (false, versions);
    }
}

fn same_bytes(memory: &Memory, host_pa: u64, bytes: &[u8]) -> bool {
    let mut now = [0; LONGEST];
    let Some(now) = now.get_mut(..bytes.len()) else { return false };
    memory.read_bytes(host_pa, now);
    now == bytes
}

/// Block cache of one core.
pub struct BlockCache {
    front: Box<[(u64, *mut Block)]>,
    /// The blocks; everything else borrows them.
    all: Settled<Block>,
    by_key: HashMap<u64, *mut Block, AddressHash>,
    store: Store,
    /// Instructions put into the store.
    insns: usize,
    /// Room to decode in.
    draft: Draft,
    /// Blocks decoded so far (also again), for statistics.
    pub decoded: u64,
}

// SAFETY: the pointers are to blocks that the cache itself owns, and to the `Memory` that its `Cpu` keeps.
unsafe impl Send for BlockCache {}

impl Default for BlockCache {
    fn default() -> Self {
        Self {
            front: vec![(!0, std::ptr::null_mut()); FRONT].into_boxed_slice(),
            all: Settled::default(),
            by_key: HashMap::default(),
            store: Store::default(),
            insns: 0,
            draft: Draft::default(),
            decoded: 0,
        }
    }
}

fn key(host_pa: u64, bits: Bits) -> u64 {
    host_pa << 2 | bits as u64
}

impl BlockCache {
    /// The block at `host_pa`, fresh, or null. It may be stale; for a block that crosses its page the mapping may
    /// have changed too.
    #[inline]
    pub fn find(&mut self, host_pa: u64, bits: Bits) -> *mut Block {
        let key = key(host_pa, bits);
        let slot = &self.front[(host_pa ^ (host_pa >> 12)) as usize & (FRONT - 1)];
        if slot.0 == key { slot.1 } else { self.find_slow(host_pa, key) }
    }

    #[cold]
    fn find_slow(&mut self, host_pa: u64, key: u64) -> *mut Block {
        let Some(&block) = self.by_key.get(&key) else { return std::ptr::null_mut() };
        self.front[(host_pa ^ (host_pa >> 12)) as usize & (FRONT - 1)] = (key, block);
        block
    }

    /// Length in bytes of a cached block of one page, to be marked as code again before
    /// [`BlockCache::renew`].
    #[must_use]
    pub fn stale_length(&self, host_pa: u64, bits: Bits) -> Option<u64> {
        let block = *self.by_key.get(&key(host_pa, bits))?;
        // SAFETY: blocks in `by_key` are alive.
        let block = unsafe { &*block };
        (block.second_pa == ONE_PAGE).then_some(block.insns.bytes().len() as u64)
    }

    /// The cached block at `host_pa` under a new code version, if memory still holds its bytes.
    pub fn renew(&mut self, memory: &Memory, host_pa: u64, bits: Bits, version: u32) -> Option<*mut Block> {
        let block = *self.by_key.get(&key(host_pa, bits))?;
        // SAFETY: as above; between blocks nobody else holds a reference.
        let b = unsafe { &mut *block };
        if !same_bytes(memory, host_pa, b.insns.bytes()) {
            return None;
        }
        b.version.then = version;
        b.epoch = !0;
        Some(block)
    }

    /// Room to decode a block in, for who brings it back.
    pub fn draft(&mut self) -> Draft {
        std::mem::take(&mut self.draft)
    }

    /// Puts a block in, in place of the one at its address.
    pub fn insert(&mut self, memory: &Memory, mut draft: Draft) -> *mut Block {
        self.decoded += 1;
        if self.insns > MAX_CACHED_INSNS {
            self.clear();
        }
        self.insns += draft.insns.len();
        let mut insns = std::mem::take(&mut draft.insns);
        let decoded = self.store.keep(&mut insns, &draft.bytes);
        let block = Block::new(&draft, decoded, memory);
        let key = key(draft.host_pa, draft.bits);
        self.draft = Draft { insns, ..draft };
        if let Some(&old) = self.by_key.get(&key) {
            // SAFETY: as above; the address stays, so links to it stay good.
            unsafe { *old = block };
            return old;
        }
        let pointer = self.all.push(block);
        self.by_key.insert(key, pointer);
        pointer
    }

    /// Forgets everything. No pointer to a block may be used afterwards.
    pub fn clear(&mut self) {
        self.front.fill((!0, std::ptr::null_mut()));
        self.by_key.clear();
        self.insns = 0;
        self.all.clear();
    }
}
