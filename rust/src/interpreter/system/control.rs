//! Control registers: MOV to and from CR0, CR2, CR3, CR4 and CR8, CLTS, LMSW, SMSW (SDM vol. 3, 2.5).
//!
//! The intercepts of VMX non-root operation are asked by the instructions; [`Cpu::write_cr`] is what
//! remains of a write when no exit happens. EFER lies in `msr`.

use crate::cpu::Cpu;
use crate::stop::{Exec, Stop};

impl Cpu {
    /// Writes control register `n` (0, 2, 3, 4, 8) with all checks of MOV to CR, after intercepts.
    ///
    /// # Errors
    /// #GP(0) where the SDM forbids the value, #UD for a register that does not exist.
    pub fn write_cr(&mut self, _n: u8, _value: u64) -> Exec {
        Err(Stop::Missing)
    }
}
