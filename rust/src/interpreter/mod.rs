//! The interpreter: one executor over decoded blocks.

pub mod vector;
