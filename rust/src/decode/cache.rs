//! The cache of decoded blocks of one core, by host-physical address and code size.
//!
//! A block remembers the code version of its page; a stale one is compared with memory and, where the bytes
//! changed, decoded again in place, so that a pointer to a block stays good until the whole cache is dropped.
//! It does not translate addresses and holds nothing that depends on RIP.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Insn;
use super::build::{Decoded, decode_block, decode_one};
use crate::cpu::Bits;
#[allow(unused_imports)]
use crate::interpreter::shim::PendingMemory as _;
use crate::memory::Memory;

const PAGE: u64 = 4096;
/// Direct-mapped front of the hash table.
const FRONT: usize = 1 << 14;
/// The cache is dropped as a whole beyond this many decoded instructions (about 250 MiB).
const MAX_CACHED_INSNS: usize = 2_500_000;

/// `second_pa` of a block that lies in one page.
pub const ONE_PAGE: u64 = !0;

/// A run of decoded instructions within one physical page (or one instruction across two).
pub struct Block {
    /// Host-physical address of the first byte.
    pub host_pa: u64,
    /// Host-physical address where the instruction that crosses the page goes on, or [`ONE_PAGE`].
    pub second_pa: u64,
    /// Code size it was decoded for.
    pub bits: Bits,
    /// RIP keeps these bits when it advances.
    pub ip_mask: u64,
    /// Nothing in it changes mode or address space: the next block may be chained to.
    pub chained: bool,
    /// The instructions, at least one.
    pub insns: Vec<Insn>,
    /// Blocks that followed this one in the same page: offset in the page and block.
    pub links: [(u32, *mut Block); 2],
    bytes: Vec<u8>,
    version: Version,
    second_version: Version,
}

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
    /// A page under the block was written since its bytes were read.
    #[inline]
    #[must_use]
    pub fn stale(&self) -> bool {
        self.version.stale()
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn empty(host_pa: u64, second_pa: u64, bits: Bits) -> Self {
        Self {
            host_pa,
            second_pa,
            bits,
            ip_mask: if bits == Bits::B64 { !0 } else { 0xffff_ffff },
            chained: false,
            insns: Vec::new(),
            links: [(!0, std::ptr::null_mut()); 2],
            bytes: Vec::new(),
            version: Version { now: &raw const NO_VERSION, then: 0 },
            second_version: Version { now: &raw const NO_VERSION, then: 0 },
        }
    }

    /// Reads the code again and decodes it if it changed.
    fn refresh(&mut self, memory: &Memory, versions: [u32; 2]) {
        self.version = Version { now: memory.code_version_cell(self.host_pa), then: versions[0] };
        if self.second_pa != ONE_PAGE {
            self.second_version = Version { now: memory.code_version_cell(self.second_pa), then: versions[1] };
        }
        let bytes = self.read_code(memory);
        let same = !self.insns.is_empty() && bytes.starts_with(&self.bytes);
        if same {
            return;
        }
        self.links = [(!0, std::ptr::null_mut()); 2];
        if self.second_pa == ONE_PAGE {
            let (insns, len, chained) = decode_block(&bytes, self.bits);
            self.insns = insns;
            self.chained = chained;
            self.bytes = bytes[..len].to_vec();
        } else {
            self.insns.clear();
            self.chained = false;
            if let Decoded::Insn(insn) = decode_one(&bytes, self.bits) {
                self.bytes = bytes[..usize::from(insn.len).min(bytes.len())].to_vec();
                self.insns.push(insn);
            }
        }
    }

    /// The bytes from the start of the block to the end of its page (or 15, across two pages).
    fn read_code(&self, memory: &Memory) -> Vec<u8> {
        let mut bytes = vec![0; (PAGE - self.host_pa % PAGE) as usize];
        memory.read_bytes(self.host_pa, &mut bytes);
        if self.second_pa != ONE_PAGE {
            let first = bytes.len();
            bytes.resize(15.max(first), 0);
            memory.read_bytes(self.second_pa, &mut bytes[first..]);
        }
        bytes
    }
}

/// Block cache of one core.
pub struct BlockCache {
    front: Box<[(u64, *mut Block)]>,
    /// Owned (`Box::into_raw`); everything else borrows them.
    all: Vec<*mut Block>,
    by_key: HashMap<u64, *mut Block>,
    insns: usize,
    /// Blocks decoded so far (also again), for statistics.
    pub decoded: u64,
}

// SAFETY: the pointers are to blocks that the cache itself owns, and to the `Memory` that its `Cpu` keeps.
unsafe impl Send for BlockCache {}

impl Default for BlockCache {
    fn default() -> Self {
        Self {
            front: vec![(!0, std::ptr::null_mut()); FRONT].into_boxed_slice(),
            all: Vec::new(),
            by_key: HashMap::new(),
            insns: 0,
            decoded: 0,
        }
    }
}

fn key(host_pa: u64, bits: Bits) -> u64 {
    host_pa << 2 | bits as u64
}

impl BlockCache {
    /// The block at `host_pa`, fresh, or null when it must be made with [`BlockCache::make`]. For a block that
    /// crosses its page the caller compares `second_pa`.
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

    /// Decodes the block at `host_pa`, or brings the one that is there up to date.
    ///
    /// `second_pa` is [`ONE_PAGE`] or where the page that follows in linear memory begins. Null: the first
    /// instruction goes on in the next page, so call again with `second_pa`. `versions` are the code versions
    /// of the pages, taken when they were marked as code.
    #[cold]
    pub fn make(
        &mut self,
        memory: &Memory,
        [host_pa, second_pa]: [u64; 2],
        versions: [u32; 2],
        bits: Bits,
    ) -> *mut Block {
        let key = key(host_pa, bits);
        self.decoded += 1;
        if let Some(&block) = self.by_key.get(&key) {
            // SAFETY: blocks in `by_key` are owned by `all`; nobody else holds a reference between blocks.
            let block = unsafe { &mut *block };
            if block.second_pa != second_pa {
                block.second_pa = second_pa;
                block.insns.clear();
            }
            block.refresh(memory, versions);
            if block.insns.is_empty() {
                return std::ptr::null_mut();
            }
            return block;
        }
        if self.insns > MAX_CACHED_INSNS {
            self.clear();
        }
        let mut block = Box::new(Block::empty(host_pa, second_pa, bits));
        block.refresh(memory, versions);
        if block.insns.is_empty() {
            return std::ptr::null_mut();
        }
        self.insns += block.insns.len();
        let pointer = Box::into_raw(block);
        self.all.push(pointer);
        self.by_key.insert(key, pointer);
        pointer
    }

    /// Forgets everything. No pointer to a block may be used afterwards.
    pub fn clear(&mut self) {
        self.front.fill((!0, std::ptr::null_mut()));
        self.by_key.clear();
        self.insns = 0;
        for block in self.all.drain(..) {
            // SAFETY: each came from `Box::into_raw` once, and every other pointer to it was just dropped.
            drop(unsafe { Box::from_raw(block) });
        }
    }

    /// Either page under a block was written since it was decoded.
    #[must_use]
    pub fn stale(block: &Block) -> bool {
        block.version.stale() || block.second_version.stale()
    }
}

impl Drop for BlockCache {
    fn drop(&mut self) {
        self.clear();
    }
}
