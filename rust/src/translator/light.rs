//! Light calls of Rust code, which leave the guest in the host's registers but for what Rust may clobber: a memory operand
//! that misses the TLB, and a branch target that is not remembered.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::asm::{Address, Asm, cc, reg};
use super::glue::{in_state, load_vectors, state, store_vectors};
use super::hot::hot;
use crate::cpu::Cpu;

/// Host registers that Rust may clobber; the guest's registers in the state have no other use meanwhile.
const CLOBBERED: [u8; 9] = [0, 1, 2, 6, 7, 8, 9, 10, 11];
/// Stack in use, so that it is aligned.
const DEPTH: i32 = 16;

/// Calls `function(cpu, s0, third)`; `result` emits code that takes EAX or RAX before the registers come back, and its
/// flags stay.
fn call(a: &mut Asm, avx: bool, function: u64, third: u32, result: impl FnOnce(&mut Asm)) {
    for n in CLOBBERED {
        a.store(n, in_state(n) + DEPTH);
    }
    store_vectors(a, avx, DEPTH);
    a.load(reg::RDI, hot!(cpu) + DEPTH);
    a.mov(reg::RSI, reg::S0);
    a.mov_imm(reg::RDX, third);
    a.bytes(&[0x48, 0xb8]);
    a.bytes(&function.to_le_bytes());
    a.bytes(&[0xff, 0xd0]); // call rax
    load_vectors(a, avx, DEPTH);
    result(a);
    for n in CLOBBERED {
        a.load(n, in_state(n) + DEPTH);
    }
}

/// A routine that probes call with a linear address in S0. Carry clear: the access may be tried again. Only the flags
/// change.
pub fn fill(a: &mut Asm, avx: bool, written: bool) -> usize {
    let at = a.at();
    // The return addresses of a probe and of this leave the stack aligned.
    call(a, avx, filled as *const () as u64, u32::from(written), |a| a.bytes(&[0xf7, 0xd8])); // neg eax
    a.bytes(&[0xc3]);
    at
}

/// Goes on at the fragment for `state.rip`, flags saved, or to `out`; `far`: and links branch `hot.target` to it.
pub fn resolve(a: &mut Asm, avx: bool, out: usize, far: bool) {
    a.load(reg::S0, state!(rip));
    a.lea(true, reg::RSP, Address::base(reg::RSP, -DEPTH));
    call(a, avx, resolved as *const () as u64, u32::from(far), |a| a.mov(reg::S0, reg::RAX));
    a.lea(true, reg::RSP, Address::base(reg::RSP, DEPTH));
    a.op_reg(true, 0x85, reg::S0, reg::S0); // test s0, s0
    let nowhere = a.jcc_later(cc::E);
    a.bind(nowhere, out);
    a.bytes(&[0x41, 0xff, 0xe6]); // jmp r14
}

/// 0: the TLB has an entry now that the access matches.
extern "C" fn filled(cpu: *mut Cpu, linear: u64, write: u32) -> u32 {
    // SAFETY: `hot.cpu` is set at each entry, and the processor is used by nobody else meanwhile.
    let cpu = unsafe { &mut *cpu };
    // A panic comes again where the interpreter's handler does the same, and is reported from there.
    let filled = catch_unwind(AssertUnwindSafe(|| {
        cpu.take_view();
        cpu.fill_data(linear, write != 0)
    }));
    u32::from(!matches!(filled, Ok(true)))
}

/// Entry for saved flags of the fragment at `linear`, or null.
extern "C" fn resolved(cpu: *mut Cpu, linear: u64, far: u32) -> *const u8 {
    // SAFETY: as above.
    let cpu = unsafe { &mut *cpu };
    let found = catch_unwind(AssertUnwindSafe(|| {
        cpu.take_view();
        if far != 0 { cpu.resolve_far(linear) } else { cpu.resolve(linear) }
    }));
    found.ok().flatten().unwrap_or(std::ptr::null())
}
