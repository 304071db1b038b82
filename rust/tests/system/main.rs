//! System instructions and event delivery on hand-built tables, without a VMCS behind them.
//!
//! Each test cites the paragraph of Intel's SDM that it holds silicon to.

// The tables of cases are typed where they stand: a type apart would hide what the columns are.
#![allow(clippy::type_complexity)]

mod control;
mod debug;
mod far;
mod io;
mod long;
mod machine;
mod protected;
mod random;
mod real;
mod segments;
mod virtual8086;
