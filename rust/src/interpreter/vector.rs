//! Native execution of vector and x87 instructions.

/// Stubs and their memory.
#[derive(Default)]
pub struct VectorUnit {}
