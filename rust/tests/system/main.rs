//! System instructions and event delivery on hand-built tables, without a VMCS behind them.
//!
//! Each test cites the paragraph of Intel's SDM that it holds silicon to.

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
