//! Physical devices: host-physical ranges outside RAM whose accesses are upcalls instead of VM exits.
//!
//! Devices that L0 emulates are not here (their accesses are EPT violations); what nobody claims reads
//! as all ones.

use std::sync::{Arc, PoisonError, RwLock};

/// A physical device on the bus. Accesses are 1 to 8 bytes.
pub trait BusRegion: Send + Sync {
    /// Reads `width` bytes at `offset` of the region.
    fn read(&self, offset: u64, width: u32) -> u64;
    /// Writes the low `width` bytes of `value` at `offset`.
    fn write(&self, offset: u64, width: u32, value: u64);
}

/// Base address, length, and who answers there.
type Claim = (u64, u64, Arc<dyn BusRegion>);

/// The regions by address.
#[derive(Default)]
pub struct Bus {
    regions: RwLock<Vec<Claim>>,
}

impl Bus {
    /// Adds a device at `[pa, pa + len)`. Later additions hide earlier ones.
    pub fn add(&self, pa: u64, len: u64, region: Arc<dyn BusRegion>) {
        self.regions.write().unwrap_or_else(PoisonError::into_inner).push((pa, len, region));
    }

    fn find(&self, pa: u64) -> Option<(u64, Arc<dyn BusRegion>)> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let (base, _, region) = regions.iter().rev().find(|(base, len, _)| pa.wrapping_sub(*base) < *len)?;
        Some((pa - base, Arc::clone(region)))
    }

    /// Reads; all ones (of `width` bytes) where nobody answers.
    #[must_use]
    pub fn read(&self, pa: u64, width: u32) -> u64 {
        let mask = if width >= 8 { !0 } else { (1 << (8 * width)) - 1 };
        self.find(pa).map_or(!0, |(offset, region)| region.read(offset, width)) & mask
    }

    /// Writes; dropped where nobody listens.
    pub fn write(&self, pa: u64, width: u32, value: u64) {
        if let Some((offset, region)) = self.find(pa) {
            region.write(offset, width, value);
        }
    }
}
