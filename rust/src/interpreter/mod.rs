//! The interpreter: one executor over decoded blocks.
//!
//! `run` is the loop; `select` chooses handlers; the integer groups, `system` and `vector` are the handlers.
//! `Cpu` helpers for operands are in `operand`, the stack's in `stack`.

pub mod events;
pub mod operand;
mod run;
pub mod select;
pub(crate) mod shim;
pub mod system;
pub mod vector;

use iced_x86::Instruction;

use crate::decode::Handler;

/// Asks the integer groups.
fn select_integer(_i: &Instruction) -> Option<Handler> {
    None
}
