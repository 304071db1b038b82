//! Stand-ins for methods of other layers that are not written yet, by their agreed signatures.
//!
//! An inherent method of the same name takes precedence, so each falls out of use when the real one lands.

#![allow(dead_code, missing_docs)]

use std::sync::atomic::AtomicU32;

use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::interpreter::operand::Word;
use crate::stop::{Exec, Stop};

pub trait PendingCpu {
    fn fetch(&mut self, _linear: u64) -> Exec<u64> {
        Err(Stop::Missing)
    }
    fn mark_code(&mut self, _pa: u64) -> u32 {
        0
    }
    fn service_shootdown(&mut self) {}
    fn read<T: Word>(&mut self, _linear: u64) -> Exec<T> {
        Err(Stop::Missing)
    }
    fn write<T: Word>(&mut self, _linear: u64, _value: T) -> Exec {
        Err(Stop::Missing)
    }
    fn update<T: Word>(&mut self, _linear: u64, _lock: bool, _f: impl FnMut(T) -> Option<T>) -> Exec<T> {
        Err(Stop::Missing)
    }
    fn update128(&mut self, _linear: u64, _f: impl FnMut(u128) -> Option<u128>) -> Exec<u128> {
        Err(Stop::Missing)
    }
    fn check_primary(&mut self, _bit: u32, _reason: u32, _qualification: u64) -> Exec {
        Ok(())
    }
}

impl PendingCpu for Cpu {}

static NO_VERSION: AtomicU32 = AtomicU32::new(0);

pub trait PendingMemory {
    fn code_version_cell(&self, _pa: u64) -> &AtomicU32 {
        &NO_VERSION
    }
    fn read_bytes(&self, _pa: u64, _out: &mut [u8]) {}
}

impl PendingMemory for Memory {}
