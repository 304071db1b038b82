//! System instructions: segmentation, far transfers, control and debug registers, MSRs, port I/O.
//!
//! Everything here runs in VMX non-root operation; what must exit goes through the intercepts of `vmx`.
//! Delivery of events through the IDT is in `events`; ordinary integer instructions are elsewhere.

mod control;
mod debug_registers;
mod far;
mod far_return;
mod fast;
mod flags;
mod interrupt;
mod io;
pub mod msr;
mod operand;
mod rights;
pub mod segment;
mod segment_moves;
mod select;
mod tables;
pub(crate) mod task;
mod time;
mod tlb;
mod vmx_instructions;
mod wait;

pub use select::select;

use crate::cpu::Cpu;
use crate::stop::Exec;
use crate::vmx::Feature;

impl Cpu {
    /// #UD where the model lacks a feature.
    fn needs(&mut self, feature: Feature) -> Exec {
        if self.model.has(feature) { Ok(()) } else { Err(self.ud()) }
    }
}

/// Segment register number of iced's name.
fn segment_index(register: iced_x86::Register) -> usize {
    ((register as u32).wrapping_sub(iced_x86::Register::ES as u32) & 7) as usize
}
