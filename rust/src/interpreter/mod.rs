//! The interpreter: one executor over decoded blocks.
//!
//! `run` is the loop; `select` chooses handlers; the integer groups, `system` and `vector` are the handlers.
//! `Cpu` helpers for operands are in `operand`, the stack's in `stack`.

mod alu;
mod atomics;
mod bits;
mod branch;
mod decimal;
pub mod events;
mod mov;
mod muldiv;
pub mod native;
pub mod operand;
mod run;
pub mod select;
mod shift;
mod stack;
mod string;
pub mod system;
pub mod vector;

use iced_x86::{CpuidFeature, Instruction};

use crate::decode::Handler;

/// Asks the integer groups.
fn select_integer(i: &Instruction) -> Option<Handler> {
    alu::select(i)
        .or_else(|| mov::select(i))
        .or_else(|| branch::select(i))
        .or_else(|| stack::select(i))
        .or_else(|| shift::select(i))
        .or_else(|| muldiv::select(i))
        .or_else(|| bits::select(i))
        .or_else(|| atomics::select(i))
        .or_else(|| string::select(i))
        .or_else(|| decimal::select(i))
}

/// Whether an instruction belongs to the integer groups (for tests).
#[must_use]
pub fn is_integer(i: &Instruction) -> bool {
    select_integer(i).is_some()
}

/// Whether the host runs the instructions of a feature that handlers use.
fn host_has(feature: CpuidFeature) -> bool {
    use std::arch::is_x86_feature_detected as has;
    match feature {
        CpuidFeature::ADX => has!("adx"),
        CpuidFeature::BMI1 => has!("bmi1"),
        CpuidFeature::BMI2 => has!("bmi2"),
        CpuidFeature::LZCNT => has!("lzcnt"),
        CpuidFeature::POPCNT => has!("popcnt"),
        CpuidFeature::SSE4_2 => has!("sse4.2"),
        _ => false,
    }
}
