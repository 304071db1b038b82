//! The interpreter: one executor over decoded blocks.

pub mod events;
pub mod system;
pub mod vector;
