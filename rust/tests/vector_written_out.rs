//! The instructions of the vector unit that do not run natively, one by one: FXSAVE, the XSAVE family, the x87
//! environment, masked moves and gathers, and the conditions before any of them (#UD, #NM, #MF).

mod engine;
mod native;

use engine::{CODE, DATA, DATA_PAGES, Engine, Result, random_state};
use iced_x86::Code;
use native::{Area, Native, Outcome};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use silicon::cpu::Bits;
use silicon::state::cr;

const UD: Result = Result::Fault { vector: 6, error: 0, address: 0 };
const NM: Result = Result::Fault { vector: 7, error: 0, address: 0 };
const GP: Result = Result::Fault { vector: 13, error: 0, address: 0 };
const MF: Result = Result::Fault { vector: 16, error: 0, address: 0 };
const UNMAPPED: u64 = DATA + (DATA_PAGES as u64 - 1) * 4096;

fn seed() -> StdRng {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn dword(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

/// An engine with RBX = DATA and a random vector state.
fn engine(rng: &mut StdRng) -> Engine {
    let mut e = Engine::new();
    let mut state = random_state(rng, Code::Nopd);
    state.fcw = 0x37f;
    state.fsw &= 0x7f00;
    state.mxcsr = 0x1f80 | state.mxcsr & 0x603f;
    state.gpr[3] = DATA;
    engine::load(&mut e.cpu, &state);
    e
}

// --- what must be enabled ---

#[test]
fn enabling_conditions() {
    if !is_x86_feature_detected!("avx2") {
        return;
    }
    let mut rng = seed();
    const X87: &[u8] = &[0xd9, 0xe8]; // fld1
    const MMX: &[u8] = &[0x0f, 0xef, 0xc0]; // pxor mm0, mm0
    const SSE: &[u8] = &[0x0f, 0x58, 0xc0]; // addps xmm0, xmm0
    const MOVE: &[u8] = &[0x0f, 0x28, 0xc1]; // movaps xmm0, xmm1
    const AVX: &[u8] = &[0xc5, 0xf8, 0x58, 0xc0]; // vaddps xmm0, xmm0, xmm0
    const BOTH: &[u8] = &[0x0f, 0x2a, 0xc1]; // cvtpi2ps xmm0, mm1
    const FXSAVE: &[u8] = &[0x0f, 0xae, 0x03];
    const XSAVE: &[u8] = &[0x0f, 0xae, 0x23];
    const WAIT: &[u8] = &[0x9b];
    const CONTROL: &[u8] = &[0xd9, 0x3b]; // fnstcw [rbx]
    const FENCE: &[u8] = &[0x0f, 0xae, 0xf8];
    const MOVNTI: &[u8] = &[0x0f, 0xc3, 0x03];
    let done = Result::Done;
    // Instruction: with CR0.EM, CR0.TS, without CR4.OSFXSR, without CR4.OSXSAVE, XCR0 = 3, pending x87 exception.
    let table: &[(&[u8], [Result; 6])] = &[
        (X87, [NM, NM, done, done, done, MF]),
        (MMX, [UD, NM, done, done, done, MF]),
        (SSE, [UD, NM, UD, done, done, done]),
        (MOVE, [UD, NM, UD, done, done, done]),
        (AVX, [done, NM, done, UD, UD, done]),
        (BOTH, [UD, NM, UD, done, done, MF]),
        (FXSAVE, [NM, NM, done, done, done, done]),
        (XSAVE, [done, NM, done, UD, done, done]),
        (WAIT, [done, NM, done, done, done, MF]),
        (CONTROL, [NM, NM, done, done, done, done]),
        (FENCE, [done, done, done, done, done, done]),
        (MOVNTI, [done, done, done, done, done, done]),
    ];
    for (bytes, expected) in table {
        for (n, want) in expected.iter().enumerate() {
            let mut e = engine(&mut rng);
            let s = &mut e.cpu.state;
            match n {
                0 => s.cr0 |= cr::CR0_EM,
                1 => s.cr0 |= cr::CR0_TS,
                2 => s.cr4 &= !cr::CR4_OSFXSR,
                3 => s.cr4 &= !cr::CR4_OSXSAVE,
                4 => s.xcr0 = 3,
                _ => (s.fcw, s.fsw) = (0x37e, 0x8081),
            }
            assert_eq!(e.exec(bytes, Bits::B64), *want, "{bytes:02x?}, condition {n}");
        }
    }
    // EM and TS: #UD goes before #NM for SSE and MMX.
    let mut e = engine(&mut rng);
    e.cpu.state.cr0 |= cr::CR0_EM | cr::CR0_TS;
    assert_eq!(e.exec(SSE, Bits::B64), UD);
    assert_eq!(e.exec(MMX, Bits::B64), UD);
    assert_eq!(e.exec(X87, Bits::B64), NM);
    // FWAIT looks at TS only together with MP.
    let mut e = engine(&mut rng);
    e.cpu.state.cr0 = e.cpu.state.cr0 & !cr::CR0_MP | cr::CR0_TS;
    assert_eq!(e.exec(WAIT, Bits::B64), done);
}

#[test]
fn vex_is_undefined_in_real_mode() {
    if !is_x86_feature_detected!("avx2") {
        return;
    }
    let mut e = engine(&mut seed());
    e.mode(Bits::B16, false);
    assert_eq!(e.exec(&[0xc5, 0xf8, 0x58, 0xc0], Bits::B16), UD);
    assert_eq!(e.exec(&[0x0f, 0x58, 0xc0], Bits::B16), Result::Done);
}

#[test]
fn unmasked_simd_exception_without_osxmmexcpt_is_undefined() {
    let mut e = engine(&mut seed());
    e.cpu.state.mxcsr = 0;
    e.cpu.state.ymm[0] = [0x3f80_0000, 0, 0, 0];
    e.cpu.state.ymm[1] = [0; 4];
    let before = e.cpu.state.ymm;
    let divss = [0xf3, 0x0f, 0x5e, 0xc1];
    assert_eq!(e.exec(&divss, Bits::B64), Result::Fault { vector: 19, error: 0, address: 0 });
    assert_eq!(e.cpu.state.mxcsr, 4, "ZE is set");
    assert_eq!(e.cpu.state.ymm, before, "nothing is written");
    e.cpu.state.cr4 &= !cr::CR4_OSXMMEXCPT;
    assert_eq!(e.exec(&divss, Bits::B64), UD);
}

#[test]
fn ldmxcsr_refuses_reserved_bits() {
    if !is_x86_feature_detected!("avx2") {
        return;
    }
    let mut e = engine(&mut seed());
    e.cpu.memory.write(DATA, 0x1_1f80u32);
    let before = e.cpu.state.mxcsr;
    assert_eq!(e.exec(&[0x0f, 0xae, 0x13], Bits::B64), GP);
    assert_eq!(e.exec(&[0xc5, 0xf8, 0xae, 0x13], Bits::B64), GP);
    assert_eq!(e.cpu.state.mxcsr, before);
    e.cpu.memory.write(DATA, 0xffffu32);
    assert_eq!(e.exec(&[0x0f, 0xae, 0x13], Bits::B64), Result::Done);
    assert_eq!(e.cpu.state.mxcsr, 0xffff);
    assert_eq!(e.exec(&[0xc5, 0xf8, 0xae, 0x5b, 0x08], Bits::B64), Result::Done); // vstmxcsr [rbx+8]
    assert_eq!(dword(&e.bytes(DATA, 16), 8), 0xffff);
}

// --- x87 pointers and environment ---

#[test]
fn instruction_and_data_pointers_are_the_guests() {
    let mut e = engine(&mut seed());
    e.cpu.state.ftw = 0xffff;
    e.cpu.state.rip = 0x1234_5678_9abc;
    assert_eq!(e.exec(&[0xdd, 0x43, 0x10], Bits::B64), Result::Done); // fld qword [rbx+16]
    let s = &e.cpu.state;
    assert_eq!((s.fip, s.fdp, s.fop), (0x1234_5678_9abc, DATA + 16, 0));
    // No memory operand: FDP stays. A control instruction changes neither.
    assert_eq!(e.exec(&[0xd9, 0xe8], Bits::B64), Result::Done);
    assert_eq!((e.cpu.state.fip, e.cpu.state.fdp), (0x1234_5678_9abf, DATA + 16));
    assert_eq!(e.exec(&[0xd9, 0x3b], Bits::B64), Result::Done); // fnstcw [rbx]
    assert_eq!((e.cpu.state.fip, e.cpu.state.fdp), (0x1234_5678_9abf, DATA + 16));
    // An unmasked exception sets FOP: fdiv qword [rbx+rcx] by zero, with prefix and REX.
    e.cpu.state.fcw = 0x37b;
    e.cpu.state.gpr[1] = 64;
    e.cpu.memory.write(DATA + 64, 0u64);
    e.cpu.state.st[0] = [1 << 63, 0x3fff];
    assert_eq!(e.exec(&[0x3e, 0x40, 0xdc, 0x34, 0x0b], Bits::B64), Result::Done);
    assert_eq!((e.cpu.state.fop, e.cpu.state.fsw & 0x8084), (0x434, 0x8084));
    assert_eq!(e.exec(&[0xd9, 0xe8], Bits::B64), MF);
    assert_eq!(e.exec(&[0xdb, 0xe2], Bits::B64), Result::Done); // fnclex
    assert_eq!(e.exec(&[0xd9, 0xe8], Bits::B64), Result::Done);
}

/// A state with recognizable numbers: TOP = 3, two registers in use.
fn environment_state(e: &mut Engine) {
    let s = &mut *e.cpu.state;
    (s.fcw, s.fsw) = (0x37e, 0x8081 | 3 << 11);
    s.st = std::array::from_fn(|n| [0x8000_0000_0000_0000 | n as u64, 0x3fff + n as u64]);
    s.st[1] = [0, 0];
    s.ftw = 0xffff & !(15 << 6); // physical 3 and 4
    (s.fip, s.fdp, s.fop) = (0xabcd_1234, 0x5678_9abc, 0x5a5);
    (s.gpr[3], s.gpr[7]) = (DATA, DATA);
}

#[test]
fn fnstenv_formats() {
    let mut rng = seed();
    // 32-bit protected mode (and 64-bit).
    for bits in [Bits::B64, Bits::B32] {
        let mut e = engine(&mut rng);
        e.mode(bits, true);
        environment_state(&mut e);
        assert_eq!(e.exec(&[0xd9, 0x33], bits), Result::Done);
        let m = e.bytes(DATA, 28);
        let words: Vec<u32> = (0..7).map(|n| dword(&m, 4 * n)).collect();
        // Tags: register 3 valid, register 4 (ST1) zero.
        let tags = 0xffff_0000 | (0xffff & !(15 << 6)) | 1 << 8;
        assert_eq!(words, [0xffff_037e, 0xffff_9881, tags, 0xabcd_1234, 0x05a5_0000, 0x5678_9abc, 0xffff_0000]);
        // All exceptions are masked then, and none is pending.
        assert_eq!((e.cpu.state.fcw, e.cpu.state.fsw), (0x37f, 0x1801));
    }
    // 16-bit protected mode.
    let mut e = engine(&mut rng);
    e.mode(Bits::B32, true);
    environment_state(&mut e);
    assert_eq!(e.exec(&[0x66, 0xd9, 0x33], Bits::B32), Result::Done);
    let m = e.bytes(DATA, 14);
    let words: Vec<u16> = (0..7).map(|n| half(&m, 2 * n)).collect();
    assert_eq!(words, [0x37e, 0x9881, 0xfd3f, 0x1234, 0, 0x9abc, 0]);
    // Real mode, 16- and 32-bit format.
    let mut e = engine(&mut rng);
    e.mode(Bits::B16, false);
    environment_state(&mut e);
    e.cpu.state.seg.iter_mut().for_each(|s| s.base = DATA);
    e.cpu.state.gpr[3] = 0;
    assert_eq!(e.exec(&[0xd9, 0x37], Bits::B16), Result::Done); // fnstenv [bx]
    let m = e.bytes(DATA, 14);
    let words: Vec<u16> = (0..7).map(|n| half(&m, 2 * n)).collect();
    assert_eq!(words[..4], [0x37e, 0x9881, 0xfd3f, 0x1234]);
    assert_eq!(words[4..], [0xd5a5, 0x9abc, 0x8000]);
    environment_state(&mut e);
    e.cpu.state.gpr[3] = 0;
    assert_eq!(e.exec(&[0x66, 0xd9, 0x37], Bits::B16), Result::Done);
    let m = e.bytes(DATA, 28);
    let words: Vec<u32> = (3..7).map(|n| dword(&m, 4 * n)).collect();
    assert_eq!(words, [0xffff_1234, 0x0abc_d5a5, 0xffff_9abc, 0x0567_8000]);
}

#[test]
fn fldenv_and_frstor_read_what_was_stored() {
    let mut rng = seed();
    for (bits, protected, prefix) in [
        (Bits::B64, true, false),
        (Bits::B32, true, false),
        (Bits::B32, true, true),
        (Bits::B16, false, false),
        (Bits::B16, false, true),
    ] {
        for save in [false, true] {
            let mut e = engine(&mut rng);
            e.mode(bits, protected);
            environment_state(&mut e);
            let s = &mut e.cpu.state;
            if bits == Bits::B16 {
                s.seg.iter_mut().for_each(|s| s.base = DATA);
                s.gpr[7] = 0;
                s.gpr[3] = 0;
            }
            let before = e.cpu.state.clone();
            let wide = (bits != Bits::B16) != prefix;
            let mut store = vec![if save { 0xdd } else { 0xd9 }, if bits == Bits::B16 { 0x35 } else { 0x37 }];
            let mut load = vec![store[0], if bits == Bits::B16 { 0x25 } else { 0x27 }];
            if prefix {
                store.insert(0, 0x66);
                load.insert(0, 0x66);
            }
            assert_eq!(e.exec(&store, bits), Result::Done);
            if save {
                let s = &e.cpu.state;
                assert_eq!((s.fcw, s.fsw, s.ftw, s.fip, s.fdp, s.fop), (0x37f, 0, 0xffff, 0, 0, 0), "FNINIT");
                e.cpu.state.st = [[0; 2]; 8];
            } else {
                e.cpu.state.fsw = 0;
                e.cpu.state.st.rotate_right(3); // the same registers, with TOP = 0
            }
            assert_eq!(e.exec(&load, bits), Result::Done);
            let s = &e.cpu.state;
            assert_eq!((s.fcw, s.fsw), (before.fcw, before.fsw), "{bits:?} {prefix}");
            assert_eq!(s.st, before.st);
            assert_eq!(s.ftw, 0xfd3f);
            let pointer = if wide {
                0xabcd_1234
            } else if protected {
                0x1234
            } else {
                0xd1234
            };
            assert_eq!(s.fip, pointer, "{bits:?} {prefix}");
            assert_eq!(s.fop, if wide || !protected { 0x5a5 } else { 0 });
        }
    }
}

#[test]
fn a_store_that_faults_leaves_the_stack() {
    let mut e = engine(&mut seed());
    environment_state(&mut e);
    e.cpu.state.fcw = 0x37f;
    e.cpu.state.fsw = 3 << 11;
    e.cpu.state.gpr[3] = UNMAPPED - 4;
    let before = e.cpu.state.clone();
    for store in [&[0xdd, 0x1b][..], &[0xdb, 0x3b], &[0xdf, 0x33], &[0xdd, 0x33], &[0xd9, 0x33]] {
        let fault = e.exec(store, Bits::B64);
        assert_eq!(fault, Result::Fault { vector: 14, error: 6, address: UNMAPPED });
        assert_eq!(*e.cpu.state, before, "{store:02x?}");
    }
}

// --- MMX ---

#[test]
fn mmx_makes_all_tags_valid_and_undoes_it_on_a_fault() {
    let mut e = engine(&mut seed());
    environment_state(&mut e);
    (e.cpu.state.fcw, e.cpu.state.fsw) = (0x37f, 3 << 11);
    e.cpu.state.ftw = 0xffff;
    let before = e.cpu.state.clone();
    // movq [unmapped], mm3
    e.cpu.state.gpr[3] = UNMAPPED;
    assert!(matches!(e.exec(&[0x0f, 0x7f, 0x1b], Bits::B64), Result::Fault { vector: 14, .. }));
    e.cpu.state.gpr[3] = DATA;
    assert_eq!(*e.cpu.state, before);
    // movq [rbx], mm3: MM3 is register 3, ST0 with TOP = 3.
    assert_eq!(e.exec(&[0x0f, 0x7f, 0x1b], Bits::B64), Result::Done);
    assert_eq!(word(&e.bytes(DATA, 8), 0), before.st[0][0]);
    assert_eq!((e.cpu.state.fsw, e.cpu.state.ftw), (0, 0));
    assert_eq!(e.cpu.state.st[3], before.st[0]);
    // CVTPI2PS from memory: MMX state too; CVTPI2PD from memory: not.
    for (bytes, mmx) in [(&[0x0f, 0x2a, 0x03][..], true), (&[0x66, 0x0f, 0x2a, 0x03], false)] {
        *e.cpu.state = before.clone();
        e.cpu.state.gpr[3] = DATA;
        assert_eq!(e.exec(bytes, Bits::B64), Result::Done);
        assert_eq!(e.cpu.state.ftw == 0, mmx);
    }
}

#[test]
fn maskmovq_faults_by_byte_and_leaves_the_x87_state() {
    let mut e = engine(&mut seed());
    (e.cpu.state.fsw, e.cpu.state.ftw) = (0, 0xffff);
    e.cpu.state.st[0] = [0x1122_3344_5566_7788, 0xffff];
    e.cpu.state.st[1] = [0x0000_0000_0000_8080, 0xffff]; // two bytes
    e.cpu.state.gpr[7] = UNMAPPED - 2;
    assert_eq!(e.exec(&[0x0f, 0xf7, 0xc1], Bits::B64), Result::Done);
    assert_eq!(half(&e.bytes(UNMAPPED - 2, 2), 0), 0x7788);
    (e.cpu.state.fsw, e.cpu.state.ftw) = (2 << 11, 0xffff);
    e.cpu.state.st.rotate_left(2);
    e.cpu.state.st[7] = [0x0000_0000_0080_8080, 0xffff]; // register 1: a third byte, in the unmapped page
    let before = e.cpu.state.clone();
    let fault = e.exec(&[0x0f, 0xf7, 0xc1], Bits::B64);
    assert_eq!(fault, Result::Fault { vector: 14, error: 6, address: UNMAPPED });
    assert_eq!(*e.cpu.state, before);
}

// --- masked moves and gathers ---

const NEGATIVE: u64 = 1 << 63 | 1 << 31;

#[test]
fn vmaskmov_touches_selected_elements_only() {
    if !is_x86_feature_detected!("avx2") {
        return;
    }
    let mut e = engine(&mut seed());
    let at = UNMAPPED - 16;
    e.cpu.state.gpr[3] = at;
    e.cpu.memory.write(at, 0x1111_1111_2222_2222u64);
    e.cpu.memory.write(at + 8, 0x3333_3333_4444_4444u64);
    e.cpu.state.ymm[2] = [NEGATIVE, 1 << 31, 0, 0];
    // vmaskmovps ymm1, ymm2, [rbx]: the upper half would fault.
    assert_eq!(e.exec(&[0xc4, 0xe2, 0x6d, 0x2c, 0x0b], Bits::B64), Result::Done);
    assert_eq!(e.cpu.state.ymm[1], [0x1111_1111_2222_2222, 0x4444_4444, 0, 0]);
    e.cpu.state.ymm[2][2] = 1 << 31;
    let before = e.cpu.state.clone();
    let fault = e.exec(&[0xc4, 0xe2, 0x6d, 0x2c, 0x0b], Bits::B64);
    assert_eq!(fault, Result::Fault { vector: 14, error: 4, address: UNMAPPED });
    assert_eq!(*e.cpu.state, before);
    // A store that faults in its last element writes none.
    let fault = e.exec(&[0xc4, 0xe2, 0x6d, 0x2e, 0x0b], Bits::B64); // vmaskmovps [rbx], ymm2, ymm1
    assert_eq!(fault, Result::Fault { vector: 14, error: 6, address: UNMAPPED });
    assert_eq!(word(&e.bytes(at, 8), 0), 0x1111_1111_2222_2222);
    e.cpu.state.ymm[2] = [1 << 63, 0, 0, 0];
    e.cpu.state.ymm[1] = [0xaaaa_aaaa_bbbb_bbbb, 0, 0, 0];
    assert_eq!(e.exec(&[0xc4, 0xe2, 0x6d, 0x2e, 0x0b], Bits::B64), Result::Done);
    assert_eq!(word(&e.bytes(at, 8), 0), 0xaaaa_aaaa_2222_2222);
}

#[test]
fn a_gather_that_faults_keeps_what_it_did() {
    if !is_x86_feature_detected!("avx2") {
        return;
    }
    let mut e = engine(&mut seed());
    e.cpu.state.gpr[3] = DATA;
    e.cpu.memory.write(DATA, 0x1111_1111u32);
    e.cpu.memory.write(DATA + 4, 0x2222_2222u32);
    let far = UNMAPPED - DATA;
    e.cpu.state.ymm[2] = [4 << 32, far, 0, 0]; // indices 0, 4, far, 0
    e.cpu.state.ymm[3] = [NEGATIVE, NEGATIVE, 7, 7];
    e.cpu.state.ymm[1] = [!0, !0, !0, !0];
    let gather = [0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x13]; // vpgatherdd xmm1, [rbx+xmm2], xmm3
    let fault = e.exec(&gather, Bits::B64);
    assert_eq!(fault, Result::Fault { vector: 14, error: 4, address: UNMAPPED });
    assert_eq!(e.cpu.state.ymm[1][..2], [0x2222_2222_1111_1111, !0]);
    assert_eq!(e.cpu.state.ymm[3][..2], [0, NEGATIVE]);
    // Started again with the page in place, it finishes.
    e.cpu.state.ymm[2][1] = 0;
    assert_eq!(e.exec(&gather, Bits::B64), Result::Done);
    assert_eq!(e.cpu.state.ymm[1], [0x2222_2222_1111_1111, 0x1111_1111_1111_1111, 0, 0]);
    assert_eq!(e.cpu.state.ymm[3], [0; 4]);
    // The same register twice is #UD.
    assert_eq!(e.exec(&[0xc4, 0xe2, 0x71, 0x90, 0x0c, 0x13], Bits::B64), UD);
}

// --- VZEROUPPER, FXSAVE, XSAVE ---

#[test]
fn only_eight_registers_outside_64_bit_mode() {
    if !is_x86_feature_detected!("avx2") {
        return;
    }
    let mut rng = seed();
    let mut e = engine(&mut rng);
    e.mode(Bits::B32, true);
    let before = e.cpu.state.clone();
    assert_eq!(e.exec(&[0xc5, 0xfc, 0x77], Bits::B32), Result::Done); // vzeroall
    assert_eq!(e.cpu.state.ymm[..8], [[0; 4]; 8]);
    assert_eq!(e.cpu.state.ymm[8..], before.ymm[8..]);

    let mut e = engine(&mut rng);
    e.mode(Bits::B32, true);
    e.cpu.memory.fill(DATA, 1024, 0xcc);
    assert_eq!(e.exec(&[0x0f, 0xae, 0x03], Bits::B32), Result::Done); // fxsave
    let m = e.bytes(DATA, 512);
    assert_eq!(word(&m, 160 + 7 * 16), e.cpu.state.ymm[7][0]);
    assert!(m[288..].iter().all(|&b| b == 0xcc), "XMM8 and what follows are not written");
    e.cpu.memory.fill(DATA, 1024, 0xcc);
    e.cpu.memory.fill(DATA + 512, 64, 0);
    (e.cpu.state.gpr[0], e.cpu.state.gpr[2]) = (7, 0);
    assert_eq!(e.exec(&[0x0f, 0xae, 0x23], Bits::B32), Result::Done); // xsave
    let m = e.bytes(DATA, 832);
    assert_eq!(word(&m, 160 + 7 * 16), e.cpu.state.ymm[7][0]);
    assert!(m[288..512].iter().all(|&b| b == 0xcc));
    assert!(m[576 + 128..].iter().all(|&b| b == 0xcc));
}

#[test]
fn fxsave_and_fxrstor() {
    let mut rng = seed();
    for wide in [false, true] {
        let mut e = engine(&mut rng);
        environment_state(&mut e);
        e.cpu.state.fip = 0xffff_8000_abcd_1234;
        e.cpu.memory.fill(DATA, 512, 0xcc);
        let rex = if wide { 0x48 } else { 0x40 };
        assert_eq!(e.exec(&[rex, 0x0f, 0xae, 0x03], Bits::B64), Result::Done);
        let m = e.bytes(DATA, 512);
        let s = e.cpu.state.clone();
        assert_eq!((half(&m, 0), half(&m, 2), m[4], m[5], half(&m, 6)), (0x37e, 0x9881, 0x18, 0, 0x5a5));
        assert_eq!(word(&m, 8), if wide { s.fip } else { 0xabcd_1234 });
        assert_eq!(word(&m, 16), s.fdp);
        assert_eq!((u64::from(dword(&m, 24)), dword(&m, 28)), (s.mxcsr, 0xffff));
        for n in 0..8 {
            assert_eq!((word(&m, 32 + 16 * n), half(&m, 40 + 16 * n)), (s.st[n][0], s.st[n][1] as u16));
        }
        for n in 0..16 {
            assert_eq!((word(&m, 160 + 16 * n), word(&m, 168 + 16 * n)), (s.ymm[n][0], s.ymm[n][1]));
        }
        assert!(m[416..].iter().all(|&b| b == 0xcc));

        let other = engine(&mut rng).cpu.state.clone();
        *e.cpu.state = other;
        e.cpu.state.gpr[3] = DATA;
        assert_eq!(e.exec(&[rex, 0x0f, 0xae, 0x0b], Bits::B64), Result::Done);
        let r = &e.cpu.state;
        assert_eq!((r.fcw, r.fsw, r.ftw, r.fop, r.mxcsr), (s.fcw, s.fsw, 0xfd3f, s.fop, s.mxcsr));
        assert_eq!((r.fip, r.fdp), (if wide { s.fip } else { 0xabcd_1234 }, s.fdp));
        assert_eq!(r.st, s.st);
        for n in 0..16 {
            assert_eq!(r.ymm[n][..2], s.ymm[n][..2]);
        }
    }
    // Alignment, reserved bits of MXCSR, faults in the second page.
    let mut e = engine(&mut rng);
    e.cpu.state.gpr[3] = DATA + 8;
    assert_eq!(e.exec(&[0x0f, 0xae, 0x03], Bits::B64), GP);
    assert_eq!(e.exec(&[0x0f, 0xae, 0x0b], Bits::B64), GP);
    e.cpu.state.gpr[3] = UNMAPPED - 256;
    let fault = Result::Fault { vector: 14, error: 6, address: UNMAPPED };
    assert_eq!(e.exec(&[0x0f, 0xae, 0x03], Bits::B64), fault);
    e.cpu.state.gpr[3] = DATA;
    e.cpu.memory.write(DATA + 24, 0x1_0000u32);
    let before = e.cpu.state.clone();
    assert_eq!(e.exec(&[0x0f, 0xae, 0x0b], Bits::B64), GP);
    assert_eq!(*e.cpu.state, before);
}

/// FXRSTOR of anything: what the control, status and tag words become.
#[test]
fn fxrstor_against_the_host() {
    let mut rng = seed();
    let mut code = Area::new(CODE, 1);
    let mut data = Area::new(DATA, DATA_PAGES);
    let mut native = Native::new();
    let mut e = Engine::new();
    let restore = [0x48, 0x0f, 0xae, 0x0b];
    code.bytes()[..4].copy_from_slice(&restore);
    for round in 0..2000 {
        let mut memory = vec![0; (DATA_PAGES - 1) * 4096];
        engine::fill_random(&mut rng, &mut memory[..512]);
        (memory[26], memory[27]) = (0, 0); // MXCSR
        let mut start = random_state(&mut rng, Code::Nopd);
        (start.fcw, start.fsw, start.gpr[3]) = (0x37f, 0, DATA);
        data.bytes()[..memory.len()].copy_from_slice(&memory);
        let mut wanted = start.clone();
        assert_eq!(native.step(&mut wanted), Outcome::Done);
        let (result, mut found) = e.run(&restore, &start, &memory);
        assert_eq!(result, Result::Done);
        found.rflags = wanted.rflags;
        assert_eq!(found, wanted, "round {round}: {:02x?}", &memory[..8]);
    }
}

/// Bytes of an XSAVE area that depend on the processor's maker or its tracking of initial state.
fn ignore_pointers(area: &mut [u8]) {
    area[6..24].fill(0); // FOP, FIP, FDP
    area[28..32].fill(0); // MXCSR_MASK
}

/// XSAVE, XSAVEOPT and XSAVEC with random masks against the host, then XRSTOR of what the host wrote.
#[test]
fn xsave_against_the_host() {
    if !is_x86_feature_detected!("avx") || !is_x86_feature_detected!("xsavec") {
        return;
    }
    let mut rng = seed();
    let mut code = Area::new(CODE, 1);
    let mut data = Area::new(DATA, DATA_PAGES);
    let mut native = Native::new();
    let mut e = Engine::new();
    let usable = (DATA_PAGES - 1) * 4096;
    let encodings: [(&str, &[u8]); 3] = [
        ("xsave64", &[0x48, 0x0f, 0xae, 0x23]),
        ("xsaveopt64", &[0x48, 0x0f, 0xae, 0x33]),
        ("xsavec64", &[0x48, 0x0f, 0xc7, 0x23]),
    ];
    for round in 0..3000 {
        let mut state = random_state(&mut rng, Code::Nopd);
        // Nothing of FCW's and FSW's pending exceptions: the host's area has its own pointers then.
        (state.fcw, state.fsw) = (0x37f, state.fsw & 0x7f00);
        state.gpr[3] = DATA;
        state.gpr[0] = rng.random_range(0..8) | rng.random::<u64>() << 32;
        state.gpr[2] = 0;
        // Components in their initial state.
        if rng.random() {
            state.ymm.iter_mut().for_each(|y| (y[0], y[1]) = (0, 0));
        }
        if rng.random() {
            state.ymm.iter_mut().for_each(|y| (y[2], y[3]) = (0, 0));
        }
        if rng.random() {
            (state.fsw, state.ftw, state.st) = (0, 0, [[0; 10]; 8]);
        }
        let (name, bytes) = encodings[rng.random_range(0..3)];
        let mut memory = vec![0xccu8; usable];
        memory[512..576].fill(0);
        if name != "xsavec64" {
            memory[512] = rng.random_range(0..8);
        }
        code.bytes()[..bytes.len()].copy_from_slice(bytes);
        data.bytes()[..usable].copy_from_slice(&memory);
        let mut after = state.clone();
        let outcome = native.step(&mut after);
        assert_eq!(outcome, Outcome::Done);
        let (result, _) = e.run(bytes, &state, &memory);
        assert_eq!(result, Result::Done);
        let mut got = e.memory()[..1024].to_vec();
        let mut want = data.bytes()[..1024].to_vec();
        // The host may call a component in use that is in its initial state; then it writes it too.
        let (used, hosts) = (got[512], want[512]);
        assert_eq!(used & !hosts, 0, "{name} round {round}: XSTATE_BV {used:x}, host {hosts:x}");
        ignore_pointers(&mut got);
        ignore_pointers(&mut want);
        let same = |from: usize, to: usize| {
            assert_eq!(got[from..to], want[from..to], "{name} round {round} bytes {from}..{to}");
        };
        same(520, 576);
        let extra = hosts & !used;
        let compacted = name == "xsavec64";
        if extra & 1 == 0 {
            same(0, 24);
            same(32, 160);
        }
        if !(compacted && extra & 2 != 0) {
            same(24, 28);
        }
        if extra & 2 == 0 {
            same(160, 512);
        }
        if extra & 4 == 0 {
            same(576, 1024);
        }

        // XRSTOR on both sides of the host's area, into another state, some bits of the header spoilt.
        let mut area = data.bytes()[..usable].to_vec();
        match rng.random_range(0..8) {
            0 => area[512 + rng.random_range(0..64)] ^= 1 << rng.random_range(0..8),
            1 => area[24 + rng.random_range(0..4)] = rng.random(),
            2 => area[512] = rng.random_range(0..8),
            _ => {}
        }
        // Components that this host has and silicon lacks are not the same question.
        let foreign = |at: usize| area[at] & 0xf8 != 0 || area[at + 1..at + 7].iter().any(|&b| b != 0);
        if foreign(512) || foreign(520) || area[519] != 0 || area[527] & 0x7f != 0 {
            continue;
        }
        let mut start = random_state(&mut rng, Code::Nopd);
        (start.gpr[3], start.gpr[2]) = (DATA, 0);
        start.gpr[0] = rng.random_range(0..8);
        (start.fcw, start.fsw) = (0x37f, start.fsw & 0x7f00);
        let restore = [0x48, 0x0f, 0xae, 0x2b];
        code.bytes()[..4].copy_from_slice(&restore);
        data.bytes()[..usable].copy_from_slice(&area);
        let mut wanted = start.clone();
        let outcome = native.step(&mut wanted);
        let (result, mut found) = e.run(&restore, &start, &area);
        let expected = match outcome {
            Outcome::Done => Result::Done,
            Outcome::Fault { vector, .. } => Result::Fault { vector, error: 0, address: 0 },
        };
        let header: Vec<u8> = area[512..576].to_vec();
        if area[26] & 2 != 0 && outcome == Outcome::Done && result == GP {
            continue; // MXCSR bit 17 exists on AMD's hosts
        }
        assert_eq!(result, expected, "xrstor round {round}, header {header:02x?}, mxcsr {:02x?}", &area[24..28]);
        found.rflags = wanted.rflags;
        assert_eq!(found, wanted, "xrstor round {round}, RFBM {:x}, header {header:02x?}", start.gpr[0]);
    }
}

#[test]
fn xsave_rules() {
    if !is_x86_feature_detected!("avx2") {
        return;
    }
    let mut rng = seed();
    let mut e = engine(&mut rng);
    let xsave = [0x0f, 0xae, 0x23];
    let xrstor = [0x0f, 0xae, 0x2b];
    (e.cpu.state.gpr[0], e.cpu.state.gpr[2]) = (7, 0);
    e.cpu.memory.fill(DATA, 1024, 0);
    e.cpu.state.gpr[3] = DATA + 16;
    assert_eq!(e.exec(&xsave, Bits::B64), GP);
    assert_eq!(e.exec(&xrstor, Bits::B64), GP);
    e.cpu.state.gpr[3] = DATA;
    assert_eq!(e.exec(&xrstor, Bits::B64), Result::Done);
    let init = e.cpu.state.clone();
    assert_eq!((init.fcw, init.ftw, init.mxcsr, init.ymm), (0x37f, 0xffff, 0, [[0; 4]; 16]));
    // Standard format: a component outside XCR0, or header bytes 8 to 23.
    for (at, bit) in [(512, 8), (513, 1), (528, 1), (535, 1)] {
        e.cpu.memory.fill(DATA + 512, 64, 0);
        e.cpu.memory.write(DATA + at, bit as u8);
        assert_eq!(e.exec(&xrstor, Bits::B64), GP, "{at}");
    }
    e.cpu.memory.fill(DATA + 512, 64, 0);
    e.cpu.memory.write(DATA + 536, 1u8);
    assert_eq!(e.exec(&xrstor, Bits::B64), Result::Done, "bytes 24 to 63 are ignored in the standard format");
    // Compacted format: XSTATE_BV beyond XCOMP_BV, XCOMP_BV beyond XCR0, anything after.
    for (state, format, tail) in [(4u64, 3u64, 0u64), (0, 8, 0), (0, 7, 1)] {
        e.cpu.memory.write(DATA + 512, state);
        e.cpu.memory.write(DATA + 520, format | 1 << 63);
        e.cpu.memory.write(DATA + 560, tail);
        assert_eq!(e.exec(&xrstor, Bits::B64), GP);
    }
    e.cpu.memory.fill(DATA + 512, 64, 0);
    e.cpu.memory.write(DATA + 520, 7u64 | 1 << 63);
    e.cpu.state.mxcsr = 0;
    assert_eq!(e.exec(&xrstor, Bits::B64), Result::Done);
    assert_eq!(e.cpu.state.mxcsr, 0x1f80, "MXCSR goes with SSE in the compacted format");
}

#[test]
fn xsaves_and_xrstors() {
    if !is_x86_feature_detected!("avx2") {
        return;
    }
    use silicon::vmx::bits::secondary;
    let mut rng = seed();
    let mut e = engine(&mut rng);
    (e.cpu.state.gpr[0], e.cpu.state.gpr[2], e.cpu.state.gpr[3]) = (7, 0, DATA);
    let (xsaves, xrstors) = ([0x48, 0x0f, 0xc7, 0x2b], [0x48, 0x0f, 0xc7, 0x1b]);
    assert_eq!(e.exec(&xsaves, Bits::B64), UD, "without the VM-execution control");
    e.cpu.ctl.secondary |= secondary::XSAVES;
    assert_eq!(e.exec(&xsaves, Bits::B64), GP, "at CPL 3");
    assert_eq!(e.exec(&xrstors, Bits::B64), GP);
    e.mode(Bits::B64, true);
    e.cpu.memory.fill(DATA, 1024, 0);
    assert_eq!(e.exec(&xrstors, Bits::B64), GP, "the standard format");
    assert_eq!(e.exec(&xsaves, Bits::B64), Result::Done);
    let m = e.bytes(DATA, 832);
    assert_eq!((m[512], word(&m, 520)), (7, 7 | 1 << 63));
    let saved = e.cpu.state.clone();
    e.cpu.state.ymm = [[5; 4]; 16];
    e.cpu.state.st = [[9; 2]; 8];
    assert_eq!(e.exec(&xrstors, Bits::B64), Result::Done);
    assert_eq!((e.cpu.state.ymm, e.cpu.state.st), (saved.ymm, saved.st));
}

#[test]
fn stubs_are_shared_and_made_again() {
    let mut rng = seed();
    let mut e = engine(&mut rng);
    // paddd xmm1, [rbx], with two displacements: one stub.
    assert_eq!(e.exec(&[0x66, 0x0f, 0xfe, 0x0b], Bits::B64), Result::Done);
    let stubs = e.cpu.vector.stub_count();
    assert_eq!(e.exec(&[0x66, 0x0f, 0xfe, 0x4b, 0x10], Bits::B64), Result::Done);
    assert_eq!(e.cpu.vector.stub_count(), stubs);
    assert_eq!(e.exec(&[0x66, 0x0f, 0xfe, 0x53, 0x10], Bits::B64), Result::Done);
    assert_eq!(e.cpu.vector.stub_count(), stubs + 1);
}

/// A guest that executes ever new instructions cannot make the stubs grow without end.
#[test]
fn all_stubs_are_dropped_when_there_are_too_many() {
    use silicon::decode::{DecodedInsn, decode_one};
    let mut e = engine(&mut seed());
    let add = [0x66, 0x0f, 0xfe, 0xca]; // paddd xmm1, xmm2
    let DecodedInsn::Insn(old) = decode_one(&add, Bits::B64) else { panic!("decode") };
    e.cpu.state.ymm[1] = [1, 0, 0, 0];
    e.cpu.state.ymm[2] = [2, 0, 0, 0];
    (old.run)(&mut e.cpu, &old).unwrap();
    assert_eq!(e.cpu.state.ymm[1][0], 3);
    let (mut most, mut dropped) = (0, false);
    'all: for prefix in [0x66, 0xf2, 0xf3] {
        for modrm in 0xc0..=0xffu8 {
            for rex in 0x40..=0x45u8 {
                for immediate in 0..=255u8 {
                    // PSHUFD, PSHUFLW, PSHUFHW between any two registers.
                    if rex & 2 == 0 {
                        assert_eq!(e.exec(&[prefix, rex, 0x0f, 0x70, modrm, immediate], Bits::B64), Result::Done);
                    }
                    dropped |= e.cpu.vector.stub_count() < most;
                    most = most.max(e.cpu.vector.stub_count());
                    if dropped {
                        break 'all;
                    }
                }
            }
        }
    }
    println!("{most} stubs at most");
    assert!(dropped);
    e.cpu.state.ymm[1] = [1, 0, 0, 0];
    e.cpu.state.ymm[2] = [2, 0, 0, 0];
    (old.run)(&mut e.cpu, &old).unwrap();
    assert_eq!(e.cpu.state.ymm[1][0], 3);
}
