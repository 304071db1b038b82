//! The translator: 64-bit guest code becomes host code that keeps guest registers in host registers, guest
//! flags in host flags, and runs vector instructions as themselves.
//!
//! It takes decoded blocks when they have become warm; the interpreter runs everything else and stays the
//! oracle. `fragment` makes code, `glue` is what fragments share, `cache` keeps and links them, `run` goes
//! in and out.

mod asm;
mod behind_sti;
mod cache;
mod classify;
mod controls;
mod crossing;
mod encoding;
mod far;
mod flags;
mod fragment;
mod front;
mod glue;
pub mod hot;
mod index;
mod interrupt_return;
mod light;
mod listing;
mod probe;
mod registers;
/// What a fragment takes for granted: bits of its variant.
pub mod variant {
    /// SSE may run natively.
    pub const SSE: u8 = 1;
    /// AVX may.
    pub const AVX: u8 = 2;
    /// CPL is 0.
    pub const SUPERVISOR: u8 = 4;
    /// CR4.SMAP is 1, and CPL is 0.
    pub const SMAP: u8 = 8;
    /// Each access to the stack is checked alone.
    pub const PLAIN: u8 = 16;
    /// Which part of the slots is its own: two bits, from bit
    pub const WORLD: u32 = 5;

    /// The part of the slots.
    #[inline]
    #[must_use]
    pub const fn world(variant: u8) -> usize {
        (variant >> WORLD & 3) as usize
    }
    const _: () = assert!(crate::mmu::WORLDS == 4);
}
mod returns;
mod run;
mod shape;
mod short;

pub use cache::{DEFAULT_BYTES, Statistics, Translator};
pub use listing::Listing;
pub(crate) use run::Outcome;
