//! VT-x with one level: VMCS, capabilities, VM entry, VM exit, intercepts (SDM vol. 3, chapters 24 to 29).
//!
//! Silicon is always in VMX non-root operation: an exit returns to the caller of [`Cpu::enter`], and host
//! state is checked but never loaded. What nested virtualization is made of is L0's matter, not known here.

pub mod apic;
pub mod bits;
pub mod capabilities;
pub mod checks;
pub mod controls;
pub mod entry;
mod exit;
pub mod features;
pub mod fields;
mod host;
pub mod information;
pub mod intercepts;
mod kick;
pub mod model;
mod msr_areas;
pub mod ports;
pub mod reasons;
pub mod shadow;
pub mod time;
pub mod unit;
mod virtual_interrupts;
pub mod vmcs;

pub use apic::ApicAccess;
pub use capabilities::Capabilities;
pub use controls::Controls;
pub use entry::Outcome;
pub use features::{Feature, FeatureSet};
pub use information::ExitInfo;
pub use model::{Model, ModelError};
pub use reasons::reason;
pub use unit::Unit;
pub use vmcs::VmcsPage;
