//! `silicon`: x86-64 processors with ONE level of VT-x, in software.
//!
//! It knows nothing of nesting: what it runs is always VMX non-root code described by a VMCS, and
//! every VM exit returns to the caller (L0, in Python). Layers, lowest first: `memory` (host-physical

#[cfg(feature = "python")]
mod python;
