//! Stand-ins for methods of other layers that are not written yet, by their agreed signatures.
//!
//! An inherent method of `Cpu` with the same name takes precedence, so that each of these falls out of
//! use when the real one lands. Nothing here does anything.

#![allow(dead_code, missing_docs)]

use crate::cpu::Cpu;
use crate::decode::Insn;
use crate::stop::{Event, Exec, Stop};

pub trait Word: Copy + Default {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}
impl Word for u128 {}

pub trait Pending {
    fn read<T: Word>(&mut self, _linear: u64) -> Exec<T> {
        Err(Stop::Missing)
    }
    fn write<T: Word>(&mut self, _linear: u64, _value: T) -> Exec {
        Err(Stop::Missing)
    }
    fn read_system<T: Word>(&mut self, _linear: u64) -> Exec<T> {
        Err(Stop::Missing)
    }
    fn write_system<T: Word>(&mut self, _linear: u64, _value: T) -> Exec {
        Err(Stop::Missing)
    }
    fn update_system<T: Word>(&mut self, _linear: u64, _lock: bool, _f: impl FnMut(T) -> Option<T>) -> Exec<T> {
        Err(Stop::Missing)
    }
    fn exit_insn(&mut self, _reason: u32, _qualification: u64) -> Stop {
        Stop::Exit
    }
    fn exit_insn_info(&mut self, _reason: u32, _qualification: u64, _insn: &Insn) -> Stop {
        Stop::Exit
    }
    fn check_exception(&mut self, _event: &Event) -> Option<Stop> {
        None
    }
}

impl Pending for Cpu {}
