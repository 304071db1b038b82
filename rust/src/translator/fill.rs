//! The light way of a memory operand that misses the TLB: the translation is looked up and the operand tries
//! again. The instruction does not leave translated code, as it does for what faults, exits, or has no entry.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::asm::{Address, Asm, cc, reg};
use super::glue::{gpr, vector_move};
use super::hot::hot;
use crate::cpu::Cpu;

/// Guest registers in host registers that Rust may clobber.
const CLOBBERED: [u8; 9] = [0, 1, 2, 6, 7, 8, 9, 10, 11];
/// Stack that [`generate`]'s code uses below the state: the return address, and what aligns the helper's.
const DEPTH: i32 = 16;

/// A routine that a fragment calls with the linear address in S0 and the entry that did not match in S1. Carry
/// clear: the entry is new, and the operand may be tried again. Only the scratch registers and the flags change.
/// `tag` is the offset of the entry's tag.
pub fn generate(a: &mut Asm, avx: bool, written: bool, tag: i32) -> usize {
    let at = a.at();
    a.bytes(&[0x50]); // push rax
    a.mov(reg::RAX, reg::S0);
    a.bytes(&[0x48, 0x25]); // and rax, -4096
    a.bytes(&(-4096i32).to_le_bytes());
    a.op_mem(true, 0x3b, reg::RAX, Address::base(reg::S1, tag));
    a.bytes(&[0x58]); // pop rax
    // The page has a translation: the operand is misaligned, or reaches into the next page.
    let other = a.jcc_later(cc::E);
    a.lea(true, reg::RSP, Address::base(reg::RSP, 8 - DEPTH));
    for n in CLOBBERED {
        a.store(n, gpr(n) + DEPTH);
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
        a.load(n, gpr(n) + DEPTH);
    }
    a.lea(true, reg::RSP, Address::base(reg::RSP, DEPTH - 8));
    a.bytes(&[0xc3]);
    a.bind_here(other);
    a.bytes(&[0xf9, 0xc3]); // stc; ret
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
