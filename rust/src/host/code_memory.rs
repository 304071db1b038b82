//! Executable memory for generated code, mapped twice: writable here, executable there, never both.
//!
//! It does not know what the code does; `overwrite` is for branches that are linked later.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use super::mapping::aligned;
use super::{Ahead, Base, HUGE, Window};

/// The host refuses executable memory.
#[derive(Debug)]
pub struct CodeMemoryError {
    step: &'static str,
    source: io::Error,
}

impl fmt::Display for CodeMemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the host refuses executable memory ({}: {}); silicon runs vector instructions natively and needs it: \
             allow memfd mappings with PROT_EXEC (SELinux, seccomp or a noexec policy forbids them)",
            self.step, self.source
        )
    }
}

impl CodeMemoryError {
    /// Nor has it memory for what belongs to code.
    #[must_use]
    pub fn no_memory(source: io::Error) -> Self {
        Self { step: "mmap", source }
    }
}

impl std::error::Error for CodeMemoryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// One chunk of generated code.
#[derive(Debug)]
pub struct CodeMemory {
    writable: *mut u8,
    executable: *const u8,
    len: usize,
    used: usize,
    /// Rarely executed code fills the other end, from here on.
    cold: usize,
    /// Has the host provide huge pages where code comes next, where there is room for several: code is executed all over,
    /// and thousands of small pages take long to make, and more entries than the processor's TLB has.
    ahead: Ahead,
}

// SAFETY: the mappings belong to this value alone; nothing in it is tied to a thread.
unsafe impl Send for CodeMemory {}
// SAFETY: through a shared reference the code can only be executed.
unsafe impl Sync for CodeMemory {}

/// Code starts at multiples of this.
const ALIGN: usize = 16;
/// Code grows from both ends.
const WINDOW: Window = Window { first: 0, itself: true, up: 1, down: 1 };

impl CodeMemory {
    /// Maps `len` bytes (a multiple of 4096).
    ///
    /// # Errors
    /// When the host refuses the memory, or to execute it.
    pub fn new(len: usize) -> Result<Self, CodeMemoryError> {
        let refused = |step| move |source| CodeMemoryError { step, source };
        let file = memory_file().map_err(refused("memfd_create"))?;
        file.set_len(len as u64).map_err(refused("ftruncate"))?;
        let writable = map(&file, len, libc::PROT_READ | libc::PROT_WRITE).map_err(refused("mmap, writable"))?;
        let executable = map(&file, len, libc::PROT_READ | libc::PROT_EXEC).map_err(|source| {
            // SAFETY: mapped just now, and nobody has seen it.
            unsafe { libc::munmap(writable.cast(), len) };
            refused("mmap, executable")(source)
        })?;
        let ahead = if len < 4 * HUGE { Ahead::default() } else { huge_pages(Base(writable), len / HUGE) };
        Ok(Self { writable, executable, len, used: 0, cold: len, ahead })
    }

    /// Where the next code will lie.
    #[must_use]
    pub fn next(&self) -> *const u8 {
        self.executable.wrapping_add(self.used)
    }

    /// Code comes to these bytes.
    fn comes_to(&self, start: usize, end: usize) {
        if start / HUGE != end / HUGE || start == 0 {
            self.ahead.used(start / HUGE);
            self.ahead.used(end / HUGE);
        }
    }

    /// Appends code; `None` when the chunk is full.
    pub fn append(&mut self, code: &[u8]) -> Option<*const u8> {
        let end = self.used.checked_add(code.len())?;
        if end > self.cold {
            return None;
        }
        self.comes_to(self.used, end);
        let entry = self.next();
        // SAFETY: `used..end` lies in our writable mapping and holds no code yet.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(self.used), code.len()) };
        self.used = end.next_multiple_of(ALIGN).min(self.cold);
        Some(entry)
    }

    /// As [`CodeMemory::append`], for code that is rarely executed: it lies apart.
    pub fn append_cold(&mut self, code: &[u8]) -> Option<*const u8> {
        let start = self.cold.checked_sub(code.len()).filter(|&start| start >= self.used)?;
        self.comes_to(start, self.cold);
        // SAFETY: `start..cold` lies in our writable mapping and holds no code yet.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(start), code.len()) };
        self.cold = start;
        Some(self.executable.wrapping_add(start))
    }

    /// Bytes that are left.
    #[must_use]
    pub fn free(&self) -> usize {
        self.cold - self.used
    }

    /// Forgets all code. Nothing of it may run any more.
    pub fn clear(&mut self) {
        self.used = 0;
        self.cold = self.len;
    }

    /// Code was appended at `len` bytes from `offset`.
    fn holds(&self, offset: usize, len: usize) -> bool {
        let end = offset.saturating_add(len);
        end <= self.used || offset >= self.cold && end <= self.len
    }

    /// Replaces bytes at `at`, an address inside appended code. The caller is the only thread that runs it.
    pub fn overwrite(&mut self, at: *const u8, bytes: &[u8]) {
        let offset = (at as usize).wrapping_sub(self.executable as usize);
        if self.holds(offset, bytes.len()) {
            // SAFETY: the range lies in code that was appended before.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.writable.add(offset), bytes.len()) };
        }
    }

    /// The code at `at`, empty where there is none.
    #[must_use]
    pub fn read(&self, at: *const u8, len: usize) -> &[u8] {
        let offset = (at as usize).wrapping_sub(self.executable as usize);
        if !self.holds(offset, len) {
            return &[];
        }
        // SAFETY: the range lies in code that was appended before, and that changes by `overwrite` only.
        unsafe { std::slice::from_raw_parts(self.writable.add(offset), len) }
    }
}

/// The thread that has huge pages put under code. The kernel wants to see a page in each; what lies there stays.
fn huge_pages(writable: Base, regions: usize) -> Ahead {
    Ahead::new("code-ahead", regions, WINDOW, move |region| {
        let start = writable.region(region);
        // SAFETY: a whole region of the writable mapping; neither changes a byte of it.
        unsafe {
            let refused = libc::madvise(start, 1, libc::MADV_POPULATE_WRITE) != 0
                || libc::madvise(start, HUGE, libc::MADV_COLLAPSE) != 0;
            // Another refusal may be about this region only.
            !(refused && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL))
        }
    })
}

/// A file in memory that nobody else has.
fn memory_file() -> io::Result<File> {
    // SAFETY: a plain system call; what it gives is ours.
    unsafe {
        match libc::memfd_create(c"silicon-code".as_ptr(), libc::MFD_CLOEXEC) {
            ..0 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

/// Maps `len` bytes of a file at a multiple of a huge page's size, where there is so much.
fn map(file: &File, len: usize, prot: libc::c_int) -> io::Result<*mut u8> {
    let base = aligned(len, libc::PROT_NONE)?.cast();
    // SAFETY: it takes the place of what was mapped just now.
    unsafe {
        if libc::mmap(base, len, prot, libc::MAP_SHARED | libc::MAP_FIXED, file.as_raw_fd(), 0) == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            libc::munmap(base, len);
            return Err(error);
        }
    }
    Ok(base.cast())
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        self.ahead.stop();
        // SAFETY: both mappings are ours, and nobody executes code of a value that is dropped.
        unsafe {
            libc::munmap(self.writable.cast(), self.len);
            libc::munmap(self.executable.cast_mut().cast(), self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_and_no_mapping_is_writable_and_executable() {
        let mut memory = CodeMemory::new(4096).expect("code memory");
        let entry = memory.append(&[0xb8, 42, 0, 0, 0, 0xc3]).expect("space"); // mov eax, 42; ret
        // SAFETY: the code above is a complete function of that type.
        let function = unsafe { std::mem::transmute::<*const u8, extern "C" fn() -> u32>(entry) };
        assert_eq!(function(), 42);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let ours: Vec<&str> = maps.lines().filter(|line| line.contains("silicon-code")).collect();
        assert!(ours.iter().any(|line| line.contains("r-xs")), "{ours:?}");
        assert!(ours.iter().all(|line| !line.contains("rwx")), "{ours:?}");
    }

    #[test]
    fn code_at_both_ends_stays_while_more_is_added() {
        let len = 7 * HUGE + 4096;
        let mut memory = CodeMemory::new(len).expect("code memory");
        let piece = |n: u32| n.to_le_bytes().repeat(HUGE / 16);
        let mut places = Vec::new();
        for n in 0..u32::MAX {
            let place = if n % 3 == 0 { memory.append_cold(&piece(n)) } else { memory.append(&piece(n)) };
            let Some(place) = place else { break };
            places.push(place);
        }
        assert_eq!(places.len(), 28, "all is used but what aligning takes");
        assert!(places.iter().zip(0..).all(|(&place, n)| memory.read(place, HUGE / 4) == piece(n)));
        // SAFETY: the executable mapping is readable.
        assert!(places.iter().zip(0..).all(|(&place, n)| unsafe { place.cast::<u32>().read_unaligned() } == n));
    }

    #[test]
    fn a_full_chunk_takes_no_more() {
        let mut memory = CodeMemory::new(4096).expect("code memory");
        assert!(memory.append(&[0x90; 4090]).is_some());
        assert!(memory.append(&[0x90; 16]).is_none());
        assert!(memory.append_cold(&[0x90; 1]).is_none());
        assert!(memory.append(&[0x90; usize::pow(2, 13)]).is_none());
    }
}
