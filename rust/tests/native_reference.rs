//! The reference itself: that it runs exactly one instruction and reports faults as the processor does.

mod native;

use native::{Area, Native, NativeState, Outcome};

fn run(native: &mut Native, bytes: &[u8], state: &mut NativeState) -> Outcome {
    let mut code = Area::new(0x1000_0000, 1);
    code.bytes()[..bytes.len()].copy_from_slice(bytes);
    state.rip = 0x1000_0000;
    native.step(state)
}

#[test]
fn integer_instruction() {
    let mut native = Native::new();
    let mut s = NativeState::default();
    s.gpr[0] = u64::MAX;
    s.gpr[1] = 1;
    assert_eq!(run(&mut native, &[0x48, 0x01, 0xc8], &mut s), Outcome::Done); // add rax, rcx
    assert_eq!((s.gpr[0], s.gpr[1], s.rip), (0, 1, 0x1000_0003));
    assert_eq!(s.rflags & 0x8d5, 0x55);
}

#[test]
fn vector_and_x87_state() {
    let mut native = Native::new();
    let mut s = NativeState::default();
    s.ymm[1] = [1, 2, 3, 4];
    s.ymm[2] = [10, 20, 30, 40];
    assert_eq!(run(&mut native, &[0x66, 0x0f, 0xd4, 0xca], &mut s), Outcome::Done); // paddq xmm1, xmm2
    assert_eq!(s.ymm[1], [11, 22, 3, 4]);
    assert_eq!(run(&mut native, &[0xd9, 0xe8], &mut s), Outcome::Done); // fld1
    assert_eq!(s.fsw, 7 << 11);
    assert_eq!(s.ftw, 0x80);
    assert_eq!(s.st[0], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
}

#[test]
fn faults() {
    let mut native = Native::new();
    let mut s = NativeState::default();
    s.gpr[0] = 0x10;
    let fault = run(&mut native, &[0x48, 0x89, 0x08], &mut s); // mov [rax], rcx
    assert_eq!(fault, Outcome::Fault { vector: 14, error: 6, address: 0x10 });
    assert_eq!(s.rip, 0x1000_0000);
    assert!(matches!(run(&mut native, &[0x0f, 0x0b], &mut s), Outcome::Fault { vector: 6, .. })); // ud2
    s.gpr[1] = 0;
    assert!(matches!(run(&mut native, &[0x48, 0xf7, 0xf1], &mut s), Outcome::Fault { vector: 0, .. })); // div rcx
}

#[test]
fn code_of_32_bits() {
    let mut native = Native::new();
    let mut s = NativeState { code32: true, ..NativeState::default() };
    (s.gpr[0], s.gpr[1]) = (0xffff_ffff, 5);
    assert_eq!(run(&mut native, &[0x40], &mut s), Outcome::Done); // inc eax, a REX prefix in 64-bit code
    assert_eq!((s.gpr[0], s.gpr[1], s.rip), (0, 5, 0x1000_0001));
    assert_eq!(run(&mut native, &[0xd5, 0x0a], &mut s), Outcome::Done); // aad
    s.code32 = false;
    assert!(matches!(run(&mut native, &[0xd5, 0x0a], &mut s), Outcome::Fault { vector: 6, .. }));
}
