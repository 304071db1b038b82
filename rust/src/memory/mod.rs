//! Host-physical RAM.

/// RAM of the machine.
#[derive(Default)]
pub struct Memory {}
