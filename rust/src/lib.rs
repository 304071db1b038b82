//! `silicon`: x86-64 processors with ONE level of VT-x, in software.
//!
//! It knows nothing of nesting: what it runs is always VMX non-root code described by a VMCS, and
//! every VM exit returns to the caller (L0, in Python). Layers, lowest first: `host` (what the host
//! provides), `memory` (host-physical RAM), `state` (the flat architectural state), `mmu` (software TLBs, walks, EPT), `decode` (blocks of
//! decoded instructions), `interpreter` (their executor), `vmx` (VMCS, entry, exit), `python` (the face).

mod address_hash;
pub mod clock;
pub mod cpu;
pub mod decode;
pub mod host;
pub mod interpreter;
pub mod memory;
pub mod mmu;
pub mod slots;
pub mod state;
pub mod state_block;
pub mod stop;
pub mod translator;
pub mod vmx;

#[cfg(feature = "python")]
mod python;
