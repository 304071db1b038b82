//! Native execution of vector and x87 instructions.

/// Stubs and their memory.
#[derive(Default)]
pub struct VectorUnit {}

/// The executor of a vector or x87 instruction.
#[must_use]
pub fn select(_instruction: &iced_x86::Instruction) -> Option<crate::decode::Handler> {
    None
}
