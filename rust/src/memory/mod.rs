//! Host-physical memory: RAM, then the pool of L0's own pages, then the bus.
//!
//! Addresses are offsets into one mapping: RAM is `[0, ram)`, the pool `[ram, ram + pool)`. Everything here
//! may be used from several threads at once; guest accesses come from `mmu`, which checks nothing twice.
//! It knows no paging.

mod bus;
mod code_log;
mod pages;
mod raw;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub use bus::{Bus, BusRegion};
pub use pages::page_flag;
pub use raw::Int;

use crate::cpu::Doorbell;
use crate::host::{Ahead, HUGE, Mapping, Window};
use pages::Pages;

/// Size of a page.
pub const PAGE: u64 = 4096;

/// Kernels are loaded low and hand out free memory mostly upwards; so much more than a guest uses is taken of the host at
/// most, where it goes on in one direction.
const WINDOW: Window = Window { first: 16, itself: false, up: 8, down: 2 };
/// A smaller memory is not worth a thread.
const LEAST: u64 = 32 * HUGE as u64;

/// Memory of the machine.
pub struct Memory {
    // Before the mapping, so that its thread ends before the mapping does.
    pages: Pages,
    mapping: Mapping,
    ram: u64,
    total: u64,
    bus: Bus,
    cores: Mutex<Vec<Weak<Doorbell>>>,
    split_lock: Mutex<()>,
}

impl Memory {
    /// `ram` bytes of RAM and a pool of `pool` bytes for L0; both are rounded up to whole pages.
    ///
    /// # Errors
    /// When the host has no address space for it.
    pub fn new(ram: u64, pool: u64) -> io::Result<Self> {
        let too_big = || io::Error::new(io::ErrorKind::OutOfMemory, "memory size does not fit a host address");
        let ram = ram.checked_next_multiple_of(PAGE).ok_or_else(too_big)?;
        let pool = pool.checked_next_multiple_of(PAGE).ok_or_else(too_big)?;
        let total = ram.checked_add(pool).filter(|&t| t < 1 << 46).ok_or_else(too_big)?;
        let mapping = Mapping::new(total as usize)?;
        let ahead = match ram {
            ..LEAST => Ahead::default(),
            _ => mapping.ahead("memory-ahead", ram as usize, WINDOW),
        };
        Ok(Self {
            pages: Pages::new((total / PAGE) as usize, ahead)?,
            mapping,
            ram,
            total,
            bus: Bus::default(),
            cores: Mutex::default(),
            split_lock: Mutex::default(),
        })
    }

    /// Bytes of RAM: where the pool begins.
    #[inline]
    #[must_use]
    pub fn ram_size(&self) -> u64 {
        self.ram
    }

    /// Bytes of RAM and pool together: the first address that is on the bus.
    #[inline]
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.total
    }

    /// Host address of host-physical address 0. The mapping never moves.
    #[inline(always)]
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.mapping.base
    }

    /// Do `len` bytes at `pa` lie in RAM or pool?
    #[inline]
    #[must_use]
    pub fn contains(&self, pa: u64, len: u64) -> bool {
        pa < self.total && len <= self.total - pa
    }

    /// Host pointer of `pa`, which must be inside ([`Memory::contains`]); otherwise a pointer to address 0 of RAM.
    #[inline]
    #[must_use]
    pub fn ptr(&self, pa: u64) -> *mut u8 {
        let offset = if pa < self.total { pa as usize } else { 0 };
        // SAFETY: `offset` is inside the mapping (which has at least one page).
        unsafe { self.mapping.base.add(offset) }
    }

    /// Reads one value; outside RAM and pool from the bus.
    #[inline]
    #[must_use]
    pub fn read<T: Int>(&self, pa: u64) -> T {
        if self.contains(pa, T::SIZE) {
            // SAFETY: inside the mapping.
            unsafe { T::load(self.mapping.base as u64, pa) }
        } else {
            self.read_outside(pa)
        }
    }

    #[cold]
    fn read_outside<T: Int>(&self, pa: u64) -> T {
        let low = self.bus.read(pa, T::SIZE.min(8) as u32);
        let high = if T::SIZE > 8 { self.bus.read(pa.wrapping_add(8), 8) } else { 0 };
        T::from_u128(u128::from(low) | u128::from(high) << 64)
    }

    /// Writes one value: marks the page dirty and drops code decoded from these bytes.
    #[inline]
    pub fn write<T: Int>(&self, pa: u64, value: T) {
        if self.contains(pa, T::SIZE) {
            // SAFETY: inside the mapping.
            unsafe { T::store(self.mapping.base as u64, pa, value) };
            self.written(pa, T::SIZE);
        } else {
            self.write_outside(pa, value);
        }
    }

    #[cold]
    fn write_outside<T: Int>(&self, pa: u64, value: T) {
        self.bus.write(pa, T::SIZE.min(8) as u32, value.to_u64());
        if T::SIZE > 8 {
            self.bus.write(pa.wrapping_add(8), 8, (value.to_u128() >> 64) as u64);
        }
    }

    /// Atomic compare and exchange (naturally aligned, or it is not done): `Err(found)` if it was not `old`.
    ///
    /// # Errors
    /// The value found, when it differs from `old`; zero outside RAM and pool or when misaligned.
    pub fn compare_exchange<T: Int>(&self, pa: u64, old: T, new: T) -> Result<T, T> {
        if !self.contains(pa, T::SIZE) || pa & (T::SIZE - 1) != 0 {
            return Err(T::default());
        }
        // SAFETY: inside the mapping and aligned.
        let result = unsafe { T::compare_exchange(self.ptr(pa), old, new) };
        if result.is_ok() {
            self.written(pa, T::SIZE);
        }
        result
    }

    /// Copies out. Bytes outside RAM and pool read as all ones.
    pub fn read_bytes(&self, pa: u64, out: &mut [u8]) {
        let inside = self.total.saturating_sub(pa).min(out.len() as u64) as usize;
        let (head, tail) = out.split_at_mut(inside);
        if !head.is_empty() {
            // SAFETY: inside the mapping; a concurrent writer can tear the copy, as it can a DMA transfer.
            unsafe { std::ptr::copy_nonoverlapping(self.ptr(pa), head.as_mut_ptr(), head.len()) };
        }
        tail.fill(0xff);
    }

    /// Whether `data` is what lies at `pa`; false where any of it is outside RAM and pool.
    #[must_use]
    pub fn same_bytes(&self, pa: u64, data: &[u8]) -> bool {
        // SAFETY: inside the mapping, which stays; memcmp only reads, and a concurrent writer makes it see old bytes
        // or new ones.
        self.contains(pa, data.len() as u64)
            && unsafe { libc::memcmp(self.ptr(pa).cast(), data.as_ptr().cast(), data.len()) == 0 }
    }

    /// Copies in. Bytes outside RAM and pool are dropped.
    pub fn write_bytes(&self, pa: u64, data: &[u8]) {
        let inside = self.total.saturating_sub(pa).min(data.len() as u64) as usize;
        if inside != 0 {
            // SAFETY: as in `read_bytes`; `data` is Rust data and so not in the mapping.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.ptr(pa), inside) };
            self.written(pa, inside as u64);
        }
    }

    /// Copies within memory (ranges may overlap); what lies outside RAM and pool is not copied.
    pub fn copy(&self, dst: u64, src: u64, len: u64) {
        let len = len.min(self.total.saturating_sub(src)).min(self.total.saturating_sub(dst));
        if len != 0 {
            // SAFETY: both ranges are inside the mapping.
            unsafe { std::ptr::copy(self.ptr(src), self.ptr(dst), len as usize) };
            self.written(dst, len);
        }
    }

    /// Fills with one byte.
    pub fn fill(&self, pa: u64, len: u64, byte: u8) {
        let len = len.min(self.total.saturating_sub(pa));
        if len != 0 {
            // SAFETY: inside the mapping.
            unsafe { std::ptr::write_bytes(self.ptr(pa), byte, len as usize) };
            self.written(pa, len);
        }
    }

    /// Accounts for a write that was made through a pointer: marks pages dirty, drops decoded code.
    /// Returns true when decoded code was dropped.
    #[inline]
    pub fn written(&self, pa: u64, len: u64) -> bool {
        self.pages.written(pa, len)
    }

    /// Flags of the page of `pa` (see [`page_flag`]).
    #[inline]
    #[must_use]
    pub fn flags(&self, pa: u64) -> u8 {
        self.pages.flags(pa)
    }

    /// How often decoded code of the page of `pa` was dropped. A decoded block remembers what
    /// `Cpu::mark_code` returned; it is stale when this differs.
    #[inline]
    #[must_use]
    pub fn code_version(&self, pa: u64) -> u32 {
        self.pages.code_version(pa)
    }

    /// The counter behind [`Memory::code_version`], for translated code that tests it in place.
    #[inline]
    #[must_use]
    pub fn code_version_cell(&self, pa: u64) -> &std::sync::atomic::AtomicU32 {
        self.pages.version_cell(pa)
    }

    /// Has the host provide bytes (whole huge pages of it) now; what they hold stays. False: this host does not do that.
    #[must_use]
    pub fn provide(&self, pa: u64, len: u64) -> bool {
        self.mapping.provide(pa as usize, len as usize)
    }

    /// A counter that moves whenever any page's code version does: one test in place of one for each block.
    #[inline(always)]
    #[must_use]
    pub fn code_epoch(&self) -> u64 {
        self.pages.log.position()
    }

    /// Pages that lost their decoded code.
    #[inline]
    pub fn code_log(&self) -> &code_log::CodeLog {
        &self.pages.log
    }

    pub(crate) fn pages(&self) -> &Pages {
        &self.pages
    }

    /// Physical devices.
    #[inline]
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The lock under which LOCK-prefixed accesses that cross a page are done.
    pub(crate) fn split_lock(&self) -> MutexGuard<'_, ()> {
        self.split_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a core known to shootdown. Called once for each `Cpu`.
    pub fn register_core(&self, doorbell: &Arc<Doorbell>) {
        let mut cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        cores.retain(|core| core.strong_count() != 0);
        cores.push(Arc::downgrade(doorbell));
    }

    /// The cores that run over this memory.
    pub(crate) fn cores(&self) -> Vec<Arc<Doorbell>> {
        let cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        cores.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Default for Memory {
    /// One page of RAM: a placeholder for tests that touch none.
    fn default() -> Self {
        Self::new(PAGE, 0).expect("one page of memory")
    }
}
