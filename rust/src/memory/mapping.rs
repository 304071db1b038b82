//! The anonymous mapping behind memory, its tables, and the state of a processor. It knows nothing of what lies in it.

use std::io;

use super::PAGE;
use super::ahead::{Ahead, Base, Window};

/// Size of the host's huge pages, to which large mappings are aligned: a huge page of the host is then one region of
/// 2 MiB of the guest, which guests fill as a whole more often.
pub const HUGE: usize = 2 << 20;

/// Kernels are loaded low and hand out free memory mostly upwards; so much more than a guest uses is taken of the host at
/// most, where it goes on in one direction.
const WINDOW: Window = Window { first: 16, itself: false, up: 8, down: 2 };
/// A smaller memory is not worth a thread.
const LEAST: usize = 32 * HUGE;

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
        let len = len.max(PAGE as usize);
        let room = if len < HUGE { 0 } else { HUGE };
        // SAFETY: a fresh anonymous mapping aliases nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len + room,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = if room == 0 { 0 } else { base.align_offset(HUGE) };
        // SAFETY: our own mapping, from which what lies before and behind the aligned part is given back. Huge pages
        // are a wish: failure changes nothing but speed.
        unsafe {
            let aligned = base.add(before);
            if before != 0 {
                libc::munmap(base, before);
            }
            if room - before != 0 {
                libc::munmap(aligned.add(len.next_multiple_of(PAGE as usize)), room - before);
            }
            libc::madvise(aligned, len, libc::MADV_HUGEPAGE);
            Ok(Self { base: aligned.cast(), len })
        }
    }

    /// A thread that has the host provide the `len` first bytes shortly before they are first written. It has to end before
    /// the mapping does.
    pub(super) fn ahead(&self, len: usize) -> Ahead {
        if len < LEAST {
            return Ahead::default();
        }
        let base = Base(self.base);
        Ahead::new("memory-ahead", len.min(self.len) / HUGE, WINDOW, move |region| populate(base.region(region)))
    }

    /// Has the host provide its first huge page now.
    pub(crate) fn provide(&self) {
        if self.len >= HUGE {
            populate(self.base.cast());
        }
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
        let mapping = Mapping::new(LEAST).unwrap();
        let ahead = mapping.ahead(LEAST);
        for region in (0..LEAST / HUGE).rev() {
            // SAFETY: inside the mapping, which this test alone writes.
            unsafe { mapping.base.add(region * HUGE + 5).write(region as u8 + 1) };
            ahead.used(region);
        }
        drop(ahead);
        for region in 0..LEAST / HUGE {
            // SAFETY: as above; the thread has ended.
            assert_eq!(unsafe { mapping.base.add(region * HUGE + 5).read() }, region as u8 + 1);
        }
    }
}
