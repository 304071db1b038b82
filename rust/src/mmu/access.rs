//! The data accesses of executors: TLB hit inline, everything else in `slow`.
//!
//! Addresses are linear: segmentation is the caller's. A non-canonical address is #GP(0) here, with the address
//! as payload of the event, so that the caller can make it #SS(0).

use crate::cpu::Cpu;
use crate::memory::Int;
use crate::stop::Exec;

/// The page of the last byte: equal to a tag only if the whole access lies in the tag's page.
#[inline(always)]
fn last_page<T: Int>(linear: u64) -> u64 {
    linear.wrapping_add(T::SIZE - 1) & !0xfff
}

impl Cpu {
    /// Reads one value.
    #[inline(always)]
    pub fn read<T: Int>(&mut self, linear: u64) -> Exec<T> {
        let entry = self.mmu.data_entry(linear);
        if entry.read == last_page::<T>(linear) {
            // SAFETY: a tag that matches vouches for the whole page at linear + addend.
            return Ok(unsafe { T::load(linear, entry.addend(linear)) });
        }
        self.read_slow(linear, self.mmu.data_view)
    }

    /// Writes one value.
    #[inline(always)]
    pub fn write<T: Int>(&mut self, linear: u64, value: T) -> Exec {
        let entry = self.mmu.data_entry(linear);
        if entry.write == last_page::<T>(linear) {
            // SAFETY: as in `read`.
            unsafe { T::store(linear, entry.addend(linear), value) };
            return Ok(());
        }
        self.write_slow(linear, value, self.mmu.data_view)
    }

    /// Read-modify-write: `f` gets the old value and gives the new one (`None`: the old one is written back,
    /// as hardware does). `lock`: atomic; `f` may then be called several times. Returns the old value.
    #[inline(always)]
    pub fn update<T: Int>(&mut self, linear: u64, lock: bool, mut f: impl FnMut(T) -> Option<T>) -> Exec<T> {
        let entry = self.mmu.data_entry(linear);
        if entry.write == last_page::<T>(linear) {
            let addend = entry.addend(linear);
            // SAFETY: as in `read`; write permission includes read permission.
            let mut old = unsafe { T::load(linear, addend) };
            if !lock {
                let new = f(old).unwrap_or(old);
                // SAFETY: as above.
                unsafe { T::store(linear, addend, new) };
                return Ok(old);
            }
            loop {
                let new = f(old).unwrap_or(old);
                let pointer = linear.wrapping_add(addend) as *mut u8;
                // SAFETY: as above; 16-byte accesses go through `update128`, which checks alignment.
                match unsafe { T::compare_exchange(pointer, old, new) } {
                    Ok(_) => return Ok(old),
                    Err(found) => old = found,
                }
            }
        }
        self.update_slow(linear, lock, &mut f, self.mmu.data_view)
    }

    /// Atomic read-modify-write of 16 bytes (CMPXCHG16B). The caller raises #GP(0) when misaligned; what is
    /// misaligned all the same is done without atomicity.
    #[inline]
    pub fn update128(&mut self, linear: u64, f: impl FnMut(u128) -> Option<u128>) -> Exec<u128> {
        self.update::<u128>(linear, linear & 15 == 0, f)
    }

    /// Reads one value as an implicit supervisor access (GDT, LDT, IDT, TSS), whatever the CPL.
    #[inline]
    pub fn read_system<T: Int>(&mut self, linear: u64) -> Exec<T> {
        let entry = self.mmu.implicit_entry(linear);
        if entry.read == last_page::<T>(linear) {
            // SAFETY: as in `read`.
            return Ok(unsafe { T::load(linear, entry.addend(linear)) });
        }
        self.read_slow(linear, self.mmu.implicit_view)
    }

    /// Writes one value as an implicit supervisor access.
    #[inline]
    pub fn write_system<T: Int>(&mut self, linear: u64, value: T) -> Exec {
        let entry = self.mmu.implicit_entry(linear);
        if entry.write == last_page::<T>(linear) {
            // SAFETY: as in `read`.
            unsafe { T::store(linear, entry.addend(linear), value) };
            return Ok(());
        }
        self.write_slow(linear, value, self.mmu.implicit_view)
    }

    /// Read-modify-write as an implicit supervisor access (accessed and busy bits of descriptors).
    pub fn update_system<T: Int>(&mut self, linear: u64, lock: bool, mut f: impl FnMut(T) -> Option<T>) -> Exec<T> {
        self.update_slow(linear, lock, &mut f, self.mmu.implicit_view)
    }

    /// Translates an instruction fetch. The result may lie outside RAM: read it with `Memory::read`.
    #[inline(always)]
    pub fn fetch(&mut self, linear: u64) -> Exec<u64> {
        match self.fetch_known(linear) {
            Some(pa) => Ok(pa),
            None => self.fetch_slow(linear),
        }
    }

    /// As [`Cpu::fetch`], if the TLB has it.
    #[inline]
    #[must_use]
    pub fn fetch_known(&self, linear: u64) -> Option<u64> {
        let entry = self.mmu.code_entry(linear);
        (entry.exec == linear & !0xfff)
            .then(|| linear.wrapping_add(entry.addend(linear)).wrapping_sub(self.memory.base() as u64))
    }

    /// Reads bytes in ascending order; several pages are all translated before the first is read.
    #[inline]
    pub fn read_bytes(&mut self, linear: u64, out: &mut [u8]) -> Exec {
        if let Some(from) = self.hit_read(linear, out.len() as u64) {
            // SAFETY: the TLB vouches for the page; `out` is Rust data and so not guest memory.
            unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
            return Ok(());
        }
        self.read_bytes_slow(linear, out)
    }

    /// Writes bytes; all pages are probed before the first byte is written.
    #[inline]
    pub fn write_bytes(&mut self, linear: u64, data: &[u8]) -> Exec {
        if let Some(to) = self.hit_write(linear, data.len() as u64) {
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
            return Ok(());
        }
        self.write_bytes_slow(linear, data)
    }

    /// Host pointer for reading `len` bytes of one page, if the TLB has it already.
    #[inline(always)]
    pub(crate) fn hit_read(&self, linear: u64, len: u64) -> Option<*const u8> {
        let entry = self.mmu.data_entry(linear);
        let hit = len != 0 && linear.wrapping_add(len - 1) & !0xfff == entry.read && len <= 4096;
        hit.then(|| linear.wrapping_add(entry.addend(linear)) as *const u8)
    }

    /// As [`Cpu::hit_read`], for writing.
    #[inline(always)]
    pub(crate) fn hit_write(&self, linear: u64, len: u64) -> Option<*mut u8> {
        let entry = self.mmu.data_entry(linear);
        let hit = len != 0 && linear.wrapping_add(len - 1) & !0xfff == entry.write && len <= 4096;
        hit.then(|| linear.wrapping_add(entry.addend(linear)) as *mut u8)
    }

    /// Host pointer for reading `len` bytes that lie in one page of plain memory; `None` where the access
    /// has to go one by one (fault, MMIO, breakpoint, crossing). Valid until the next access or boundary.
    #[inline]
    pub fn host_read_ptr(&mut self, linear: u64, len: u64) -> Option<*const u8> {
        if let Some(pointer) = self.hit_read(linear, len) {
            return Some(pointer);
        }
        self.warm(linear, super::AccessKind::Read, self.mmu.data_view);
        self.hit_read(linear, len)
    }

    /// As [`Cpu::host_read_ptr`], for writing. Pages with decoded code have no such pointer.
    #[inline]
    pub fn host_write_ptr(&mut self, linear: u64, len: u64) -> Option<*mut u8> {
        if let Some(pointer) = self.hit_write(linear, len) {
            return Some(pointer);
        }
        self.warm(linear, super::AccessKind::Write, self.mmu.data_view);
        self.hit_write(linear, len)
    }

    /// Raises the fault that writing `len` bytes at `linear` would raise; writes nothing.
    pub fn probe_write(&mut self, linear: u64, len: u64) -> Exec {
        if len == 0 || self.hit_write(linear, len).is_some() {
            return Ok(());
        }
        self.probe_slow(linear, len, self.mmu.data_view)
    }

    /// As [`Cpu::probe_write`], for an implicit supervisor access.
    pub fn probe_write_system(&mut self, linear: u64, len: u64) -> Exec {
        self.probe_slow(linear, len, self.mmu.implicit_view)
    }
}
