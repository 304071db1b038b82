//! Host-physical accesses of VT-x structures: bitmaps, virtual-APIC page, MSR areas, VMCS regions.
//!
//! They lie in RAM or pool, at addresses that the entry checks confined to the physical-address width; what
//! lies beyond memory reads as all ones.

use super::vmcs::VmcsPage;
use crate::cpu::Cpu;

pub trait HostMemory {
    fn host_byte(&self, pa: u64) -> u8;
    fn set_host_u32(&self, pa: u64, value: u32);
    fn vmcs_at(&self, host_pa: u64) -> Option<VmcsPage>;
}

impl HostMemory for Cpu {
    fn host_byte(&self, pa: u64) -> u8 {
        self.memory.read(pa)
    }
    fn set_host_u32(&self, pa: u64, value: u32) {
        self.memory.write(pa, value);
    }
    fn vmcs_at(&self, _host_pa: u64) -> Option<VmcsPage> {
        None
    }
}
