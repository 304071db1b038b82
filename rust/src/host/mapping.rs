//! Anonymous memory: behind the guest's and its tables, decoded instructions, and the state of a processor.

use std::io;

use super::ahead::{Ahead, Base, Window};

/// Size of the host's huge pages, to which large mappings are aligned: a huge page of the host is then one region of
/// 2 MiB of the guest, which guests fill as a whole more often.
pub const HUGE: usize = 2 << 20;
/// Size of its small ones.
const PAGE: usize = 4096;

/// Fresh private memory of whole pages, zero at first, at a multiple of [`HUGE`] where there is so much.
pub(super) fn aligned(len: usize, prot: libc::c_int) -> io::Result<*mut u8> {
    let len = len.max(1).next_multiple_of(PAGE);
    let room = if len < HUGE { 0 } else { HUGE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh anonymous mapping aliases nothing.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), len + room, prot, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = if room == 0 { 0 } else { base.align_offset(HUGE) };
    let aligned = base.wrapping_byte_add(before);
    // SAFETY: our own mapping, from which what lies before and behind the aligned part is given back.
    unsafe {
        if before != 0 {
            libc::munmap(base, before);
        }
        if room != before {
            libc::munmap(aligned.byte_add(len), room - before);
        }
    }
    Ok(aligned.cast())
}

/// An anonymous private mapping, zero at first.
pub struct Mapping {
    /// Its first byte, aligned to [`HUGE`] where there is so much.
    pub base: *mut u8,
    len: usize,
}

// SAFETY: the mapping is plain memory; who shares it answers for how it is accessed (`Memory`: by single instructions of
// `raw`).
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes (or a page), which the host backs by huge pages where it can.
    ///
    /// # Errors
    /// When the host has no address space for it.
    pub fn new(len: usize) -> io::Result<Self> {
        let base = aligned(len, libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: our own mapping. Huge pages are a wish: failure changes nothing but speed.
        unsafe { libc::madvise(base.cast(), len, libc::MADV_HUGEPAGE) };
        Ok(Self { base, len: len.max(1).next_multiple_of(PAGE) })
    }

    /// A thread that has the host provide the first `len` bytes shortly before they are first used. It has to end before the
    /// mapping does.
    pub(crate) fn ahead(&self, name: &str, len: usize, window: Window) -> Ahead {
        let base = Base(self.base);
        Ahead::new(name, len.min(self.len) / HUGE, window, move |region| populate(base.region(region)))
    }

    /// Has the host provide the whole huge pages of `len` bytes from `at` on, now. False: this host does not do that.
    pub(crate) fn provide(&self, at: usize, len: usize) -> bool {
        let regions = at.div_ceil(HUGE)..at.saturating_add(len).min(self.len) / HUGE;
        regions.into_iter().all(|region| populate(Base(self.base).region(region)))
    }
}

/// Has the host provide a huge page of a mapping, which no byte of it shows. False: this host does not do that.
fn populate(region: *mut libc::c_void) -> bool {
    // SAFETY: it accesses nothing; where no mapping is, it fails.
    unsafe { libc::madvise(region, HUGE, libc::MADV_POPULATE_WRITE) == 0 }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; whoever hands out pointers keeps the `Memory` alive.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_provided_ahead_keeps_its_bytes() {
        const REGIONS: usize = 32;
        let mapping = Mapping::new(REGIONS * HUGE).unwrap();
        let window = Window { first: 16, itself: false, up: 8, down: 2 };
        let ahead = mapping.ahead("test", REGIONS * HUGE, window);
        for region in (0..REGIONS).rev() {
            // SAFETY: inside the mapping, which this test alone writes.
            unsafe { mapping.base.add(region * HUGE + 5).write(region as u8 + 1) };
            ahead.used(region);
        }
        drop(ahead);
        for region in 0..REGIONS {
            // SAFETY: as above; the thread has ended.
            assert_eq!(unsafe { mapping.base.add(region * HUGE + 5).read() }, region as u8 + 1);
        }
    }
}
