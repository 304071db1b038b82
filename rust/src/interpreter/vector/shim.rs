//! Stand-ins for other layers' access methods until those exist; inherent methods of [`Cpu`] go before them.
//!
//! They reach no memory.

use crate::cpu::Cpu;
use crate::decode::Insn;
use crate::stop::{Exec, Stop};

#[allow(dead_code)]
pub(super) trait Shim {
    fn mem(&mut self, _: &Insn, _: u32, _: bool) -> Exec<u64> {
        Err(Stop::Missing)
    }
    fn ea(&mut self, _: &Insn) -> u64 {
        0
    }
    fn segmented(&mut self, _: u8, offset: u64, _: u32, _: bool) -> Exec<u64> {
        Ok(offset)
    }
    fn read_bytes(&mut self, _: u64, _: &mut [u8]) -> Exec {
        Err(Stop::Missing)
    }
    fn write_bytes(&mut self, _: u64, _: &[u8]) -> Exec {
        Err(Stop::Missing)
    }
    fn probe_write(&mut self, _: u64, _: u32) -> Exec {
        Err(Stop::Missing)
    }
    fn read<T: Default>(&mut self, _: u64) -> Exec<T> {
        Err(Stop::Missing)
    }
    fn write<T>(&mut self, _: u64, _: T) -> Exec {
        Err(Stop::Missing)
    }
}

impl Shim for Cpu {}
