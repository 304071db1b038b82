//! The light way of a memory operand that misses the TLB: the translation is looked up and the operand tries
//! again. The instruction does not leave translated code, as it does for what faults, exits, or has no entry.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::asm::{Asm, reg};
use super::glue::{in_state, vector_move};
use super::hot::hot;
use crate::cpu::Cpu;

/// Host registers that Rust may clobber; the guest's registers in the state have no other use meanwhile.
const CLOBBERED: [u8; 9] = [0, 1, 2, 6, 7, 8, 9, 10, 11];
/// Stack in use: the return addresses of a probe and of [`generate`]'s code, which leave it aligned.
const DEPTH: i32 = 16;

/// A routine that probes call with a linear address in S0. Carry clear: the access may be tried again. Only the flags
/// change.
pub fn generate(a: &mut Asm, avx: bool, written: bool) -> usize {
    let at = a.at();
    for n in CLOBBERED {
        a.store(n, in_state(n) + DEPTH);
    }
    for n in 0..16 {
        vector_move(a, avx, true, n, DEPTH);
    }
    a.load(reg::RDI, hot!(cpu) + DEPTH);
    a.mov(reg::RSI, reg::S0);
    a.mov_imm(reg::RDX, u32::from(written));
    a.bytes(&[0x48, 0xb8]);
    a.bytes(&(fill as *const () as u64).to_le_bytes());
    a.bytes(&[0xff, 0xd0]); // call rax
    a.bytes(&[0xf7, 0xd8]); // neg eax: carry unless it is 0
    for n in 0..16 {
        vector_move(a, avx, false, n, DEPTH);
    }
    for n in CLOBBERED {
        a.load(n, in_state(n) + DEPTH);
    }
    a.bytes(&[0xc3]);
    at
}

/// 0: the TLB has an entry now that the access matches.
extern "C" fn fill(cpu: *mut Cpu, linear: u64, write: u32) -> u32 {
    // SAFETY: `hot.cpu` is set at each entry, and the processor is used by nobody else meanwhile.
    let cpu = unsafe { &mut *cpu };
    // A panic comes again where the interpreter's handler does the same, and is reported from there.
    let filled = catch_unwind(AssertUnwindSafe(|| {
        cpu.take_view();
        cpu.fill_data(linear, write != 0)
    }));
    u32::from(!matches!(filled, Ok(true)))
}
