//! System instructions: segmentation, far transfers, control and debug registers, MSRs, port I/O.
//!
//! Everything here runs in VMX non-root operation; what must exit goes through the intercepts of `vmx`.
//! Delivery of events through the IDT is in `events`; ordinary integer instructions are elsewhere.

pub mod control;
pub mod msr;
pub mod segment;
mod shim;

use iced_x86::Instruction;

use crate::decode::Handler;

/// The executor of a system instruction, or none if this group does not know it.
#[must_use]
pub fn select(_instruction: &Instruction) -> Option<Handler> {
    None
}
