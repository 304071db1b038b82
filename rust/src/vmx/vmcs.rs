//! A VMCS region: 512 slots of 64 bits in RAM, laid out by `fields`.
//!
//! Reads and writes are plain: a VMCS is used by one core at a time, and L0 touches it between runs only. It
//! checks no values.

/// Slots in a region.
pub const SLOTS: usize = 512;

/// A VMCS region in RAM.
#[derive(Clone, Copy, Debug)]
pub struct VmcsPage {
    /// Host-physical address, 4-KiB aligned.
    pub host_pa: u64,
    /// Host address of the region; null = no VMCS.
    page: *mut u64,
}

// SAFETY: a `VmcsPage` is a pointer into `Memory`, which outlives the `Cpu` that holds both; who runs the
// core is the only one to use it.
unsafe impl Send for VmcsPage {}
// SAFETY: as above; nothing is reached through a shared reference that a copy would not reach.
unsafe impl Sync for VmcsPage {}

impl Default for VmcsPage {
    fn default() -> Self {
        Self { host_pa: !0, page: std::ptr::null_mut() }
    }
}

impl VmcsPage {
    /// The region at `host_pa`.
    ///
    /// # Safety
    /// `page` must be the host address of 4096 bytes of memory at `host_pa` that stay mapped while this is used.
    #[must_use]
    pub const unsafe fn new(host_pa: u64, page: *mut u64) -> Self {
        Self { host_pa, page }
    }

    /// Whether there is one.
    #[inline]
    #[must_use]
    pub const fn is_some(&self) -> bool {
        !self.page.is_null()
    }

    /// Reads a slot.
    #[inline]
    #[must_use]
    pub fn get(&self, slot: usize) -> u64 {
        if self.page.is_null() || slot >= SLOTS {
            return 0;
        }
        // SAFETY: within the region, by `new`.
        unsafe { self.page.add(slot).read_volatile() }
    }

    /// Reads a slot of which 32 bits matter.
    #[inline]
    #[must_use]
    pub fn get32(&self, slot: usize) -> u32 {
        self.get(slot) as u32
    }

    /// Writes a slot.
    #[inline]
    pub fn set(&self, slot: usize, value: u64) {
        if !self.page.is_null() && slot < SLOTS {
            // SAFETY: within the region, by `new`.
            unsafe { self.page.add(slot).write_volatile(value) };
        }
    }

    /// Copies a run of slots out.
    #[inline]
    pub fn load(&self, slot: usize, out: &mut [u64]) {
        if !self.page.is_null() && slot + out.len() <= SLOTS {
            // SAFETY: within the region, by `new`; `out` is Rust data, so not in it.
            unsafe { std::ptr::copy_nonoverlapping(self.page.add(slot), out.as_mut_ptr(), out.len()) };
        }
    }

    /// Copies a run of slots in.
    #[inline]
    pub fn store(&self, slot: usize, from: &[u64]) {
        if !self.page.is_null() && slot + from.len() <= SLOTS {
            // SAFETY: as in `load`.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.page.add(slot), from.len()) };
        }
    }

    /// Whether a run of slots holds exactly this.
    #[inline]
    #[must_use]
    pub fn equals(&self, slot: usize, other: &[u64]) -> bool {
        if self.page.is_null() || slot + other.len() > SLOTS {
            return false;
        }
        // SAFETY: within the region, by `new`; nobody writes it during the comparison.
        unsafe { std::slice::from_raw_parts(self.page.add(slot), other.len()) == other }
    }
}
