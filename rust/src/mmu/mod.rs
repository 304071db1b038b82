//! Software TLBs, page walks, EPT, and the data accesses of executors (SDM vol. 3, chapters 4 and 29).
//!
//! The hot path is a tag compare and one host access (`access`); everything else is behind one cold call
//! per kind (`slow`). Translations are cached per address space, so that switching between spaces flushes
//! nothing. Memory types are checked where the SDM demands it, and have no effect.

mod access;
mod apic;
mod assist;
mod epochs;
mod ept;
mod given;
mod invalidate;
mod shootdown;
mod slow;
mod space;
mod tlb;
mod translate;
mod walk;
mod watch;

pub use assist::{AccessKind, assist_kind};
pub use epochs::EPOCH_SPARE;
pub use given::{Lost, Stamps, WORLDS};
pub use invalidate::Invalidation;
pub use space::Mmu;
pub use tlb::{ENTRIES as TLB_ENTRIES, PASSING, TlbEntry, View};
pub use walk::pdpte_valid;

/// Width of physical addresses (CPUID 80000008H reports the same).
pub const PHYSICAL_BITS: u32 = 40;

/// Bits 51:12: where an entry's address may lie.
pub const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

/// Bits 51:MAXPHYADDR: reserved in every entry.
pub const RESERVED_ADDRESS: u64 = ADDRESS_MASK & !((1 << PHYSICAL_BITS) - 1);
