//! Host-physical accesses to VT-x structures: bitmaps, the virtual-APIC page, VMCS regions.
//!
//! The entry checks confined their addresses to the physical-address width; what lies beyond memory reads as
//! all ones, which for a bitmap means that everything exits.

use super::vmcs::VmcsPage;
use crate::cpu::Cpu;
use crate::memory::PAGE;

impl Cpu {
    /// A byte of a bitmap.
    #[inline]
    pub(super) fn host_byte(&self, pa: u64) -> u8 {
        if self.memory.contains(pa, 1) { self.memory.read(pa) } else { 0xff }
    }

    /// Four bytes of the virtual-APIC page.
    pub(super) fn host_u32(&self, pa: u64) -> u32 {
        if self.memory.contains(pa, 4) { self.memory.read(pa) } else { !0 }
    }

    /// Writes them.
    pub(super) fn set_host_u32(&self, pa: u64, value: u32) {
        if self.memory.contains(pa, 4) {
            self.memory.write(pa, value);
        }
    }

    /// The VMCS region at `host_pa`, if there is memory.
    #[must_use]
    pub fn vmcs_at(&self, host_pa: u64) -> Option<VmcsPage> {
        if host_pa % PAGE != 0 || !self.memory.contains(host_pa, PAGE) {
            return None;
        }
        // SAFETY: 4096 bytes inside of memory, which the `Cpu` keeps alive.
        Some(unsafe { VmcsPage::new(host_pa, self.memory.ptr(host_pa).cast()) })
    }
}
