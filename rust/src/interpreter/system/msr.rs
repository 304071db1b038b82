//! Model-specific registers: RDMSR, WRMSR and the list that silicon has (SDM vol. 4).
//!
//! An MSR that is not in the list raises #GP(0). Which accesses exit is the MSR bitmaps' matter (`vmx`).

use crate::cpu::Cpu;
use crate::stop::{Exec, Stop};

impl Cpu {
    /// Reads an MSR as RDMSR does at CPL 0 once it has not exited.
    ///
    /// # Errors
    /// #GP(0) for an MSR that does not exist.
    pub fn read_msr(&mut self, _msr: u32) -> Exec<u64> {
        Err(Stop::Missing)
    }

    /// Writes an MSR as WRMSR does at CPL 0 once it has not exited.
    ///
    /// # Errors
    /// #GP(0) for an MSR that does not exist or a value that it does not take.
    pub fn write_msr(&mut self, _msr: u32, _value: u64) -> Exec {
        Err(Stop::Missing)
    }
}
