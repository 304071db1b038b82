//! The translator against the interpreter and the host, its code's size, and what a running system does to it.

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../native/mod.rs"]
mod native;

mod branches;
mod emitted;
mod fuzz;
mod interrupts;
mod native_blocks;
mod pair;
mod program;
mod registers;
mod stress;
