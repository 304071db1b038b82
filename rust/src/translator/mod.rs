//! The translator: 64-bit guest code becomes host code that keeps guest registers in host registers, guest
//! flags in host flags, and runs vector instructions as themselves.
//!
//! It takes decoded blocks when they have become warm; the interpreter runs everything else and stays the
//! oracle. `fragment` makes code, `glue` is what fragments share, `cache` keeps and links them, `run` goes
//! in and out.

mod asm;
mod cache;
mod classify;
mod encoding;
mod flags;
mod fragment;
mod glue;
pub mod hot;
mod run;

pub use cache::{DEFAULT_BYTES, Statistics, Translator};
pub(crate) use run::Outcome;
