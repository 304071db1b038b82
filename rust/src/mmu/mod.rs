//! Software TLBs, page walks, EPT, and the data accesses of executors.

/// Address spaces and their TLBs.
#[derive(Default)]
pub struct Mmu {}
