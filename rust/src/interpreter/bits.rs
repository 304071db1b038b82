//! Bit operations: BT to BTC, BSF, BSR, LZCNT, TZCNT, POPCNT, BMI1, PDEP, PEXT, BZHI, CRC32.
//!
//! A bit string in memory indexed by a register reaches beyond its operand (SDM vol. 2, BT).

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind};

use super::alu::{Form, by_dword, by_wide, by_width, form, width};
use super::native::{self, Bmi, Extended, Native};
use super::operand::Word;
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::stop::Exec;

/// BT, BTS, BTR, BTC.
trait BitTest {
    const STORES: bool = true;
    fn run<T: Native>(a: T, b: T, f: u64) -> (T, u64);
}

macro_rules! bit_tests {
    ($($name:ident $stores:literal $method:ident;)*) => {
        $(
            struct $name;
            impl BitTest for $name {
                const STORES: bool = $stores;
                #[inline(always)]
                fn run<T: Native>(a: T, b: T, f: u64) -> (T, u64) {
                    T::$method(a, b, f)
                }
            }
        )*
    };
}
bit_tests! {
    Bt false bt;
    Bts true bts;
    Btr true btr;
    Btc true btc;
}

fn bit_reg<O: BitTest, T: Native, const IMM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = if IMM { T::of(insn.imm) } else { cpu.reg::<T>(insn.r[1]) };
    let (v, f) = O::run(cpu.reg::<T>(insn.r[0]), b, cpu.state.rflags);
    cpu.state.rflags = f;
    if O::STORES {
        cpu.set_reg(insn.r[0], v);
    }
    Ok(())
}

fn bit_mem<O: BitTest, T: Native, const IMM: bool, const LOCK: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let mut offset = cpu.ea(insn);
    let b = if IMM {
        T::of(insn.imm)
    } else {
        let b = cpu.reg::<T>(insn.r[1]);
        let operand = b.i64() >> (T::BYTES * 8).trailing_zeros();
        offset = offset.wrapping_add((operand as u64).wrapping_mul(u64::from(T::BYTES))) & insn.address_mask;
        b
    };
    let linear = cpu.segmented(insn.seg, offset, T::BYTES, O::STORES)?;
    let before = cpu.state.rflags;
    let mut after = before;
    if O::STORES {
        cpu.update::<T>(linear, LOCK, |a| {
            let (v, f) = O::run(a, b, before);
            after = f;
            Some(v)
        })?;
    } else {
        after = O::run(cpu.read::<T>(linear)?, b, before).1;
    }
    cpu.state.rflags = after;
    Ok(())
}

fn select_bit<O: BitTest>(i: &Instruction) -> Option<Handler> {
    let w = width(i, 0);
    let lock = i.has_lock_prefix();
    match form(i) {
        Form::RegReg => by_wide!(w, bit_reg, [O], [false]),
        Form::RegImm => by_wide!(w, bit_reg, [O], [true]),
        Form::MemReg if lock => by_wide!(w, bit_mem, [O], [false, true]),
        Form::MemReg => by_wide!(w, bit_mem, [O], [false, false]),
        Form::MemImm if lock => by_wide!(w, bit_mem, [O], [true, true]),
        Form::MemImm => by_wide!(w, bit_mem, [O], [true, false]),
        _ => None,
    }
}

#[inline(always)]
fn source<T: Word, const MEM: bool>(cpu: &mut Cpu, insn: &Insn, n: usize) -> Exec<T> {
    if MEM {
        let linear = cpu.mem(insn, T::BYTES, false)?;
        cpu.read::<T>(linear)
    } else {
        Ok(cpu.reg::<T>(insn.r[n]))
    }
}

/// An operation of one source; the old destination matters to BSF and BSR of zero.
macro_rules! unary {
    ($name:ident: $bound:ident, |$old:ident, $a:ident, $f:ident| $e:expr) => {
        fn $name<T: $bound, const MEM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let $a = source::<T, MEM>(cpu, insn, 1)?;
            let ($old, $f) = (cpu.reg::<T>(insn.r[0]), cpu.state.rflags);
            let _ = $old;
            let (v, f) = $e;
            cpu.state.rflags = f;
            cpu.set_reg(insn.r[0], v);
            Ok(())
        }
    };
}
/// A 64-bit register keeps its upper half where the host's does, so a 32-bit BSF or BSR of zero is told apart.
macro_rules! scan {
    ($name:ident, $method:ident) => {
        fn $name<T: Native, const MEM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let a = source::<T, MEM>(cpu, insn, 1)?;
            let (v, f) = T::$method(cpu.reg::<T>(insn.r[0]), a, cpu.state.rflags);
            cpu.state.rflags = f;
            if a.u64() != 0 {
                cpu.set_reg(insn.r[0], v);
            }
            Ok(())
        }
    };
}
scan!(bsf, bsf);
scan!(bsr, bsr);
unary!(lzcnt: Extended, |old, a, f| T::lzcnt(a, f));
unary!(tzcnt: Extended, |old, a, f| T::tzcnt(a, f));
unary!(popcnt: Extended, |old, a, f| T::popcnt(a, f));

macro_rules! bmi_unary {
    ($($name:ident)*) => {
        $(fn $name<T: Bmi, const MEM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let a = source::<T, MEM>(cpu, insn, 1)?;
            let (v, f) = T::$name(a, cpu.state.rflags);
            cpu.state.rflags = f;
            cpu.set_reg(insn.r[0], v);
            Ok(())
        })*
    };
}
bmi_unary!(blsi blsmsk blsr);

/// Operand order of ANDN, PDEP, PEXT: the second source is the one that may be memory.
macro_rules! bmi_second {
    ($($name:ident)*) => {
        $(fn $name<T: Bmi, const MEM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let b = source::<T, MEM>(cpu, insn, 2)?;
            let (v, f) = T::$name(cpu.reg::<T>(insn.r[1]), b, cpu.state.rflags);
            cpu.state.rflags = f;
            cpu.set_reg(insn.r[0], v);
            Ok(())
        })*
    };
}
bmi_second!(andn pdep pext);

/// Operand order of BEXTR and BZHI: the first source may be memory.
macro_rules! bmi_first {
    ($($name:ident)*) => {
        $(fn $name<T: Bmi, const MEM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let a = source::<T, MEM>(cpu, insn, 1)?;
            let (v, f) = T::$name(a, cpu.reg::<T>(insn.r[2]), cpu.state.rflags);
            cpu.state.rflags = f;
            cpu.set_reg(insn.r[0], v);
            Ok(())
        })*
    };
}
bmi_first!(bextr bzhi);

fn crc32<T: Word, const MEM: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let data = source::<T, MEM>(cpu, insn, 1)?;
    let v = native::crc32(cpu.reg::<u32>(insn.r[0]), data);
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

/// BSR (`reverse`) or BSF with the operands of `i`.
pub(super) fn select_scan(i: &Instruction, reverse: bool) -> Option<Handler> {
    let w = width(i, 0);
    match (reverse, i.op_kind(1) == OpKind::Memory) {
        (true, true) => by_wide!(w, bsr, [], [true]),
        (true, false) => by_wide!(w, bsr, [], [false]),
        (false, true) => by_wide!(w, bsf, [], [true]),
        (false, false) => by_wide!(w, bsf, [], [false]),
    }
}

/// The handler of an instruction of this group.
#[must_use]
pub fn select(i: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let w = width(i, 0);
    let memory = |n: u32| i.op_kind(n) == OpKind::Memory;
    macro_rules! pick {
        ($by:ident, $f:ident, $n:literal) => {
            if memory($n) { $by!(w, $f, [], [true]) } else { $by!(w, $f, [], [false]) }
        };
    }
    let needs = |feature: CpuidFeature| super::host_has(feature).then_some(());
    match i.mnemonic() {
        M::Bt => select_bit::<Bt>(i),
        M::Bts => select_bit::<Bts>(i),
        M::Btr => select_bit::<Btr>(i),
        M::Btc => select_bit::<Btc>(i),
        M::Bsf => select_scan(i, false),
        M::Bsr => select_scan(i, true),
        M::Lzcnt => needs(CpuidFeature::LZCNT).and_then(|()| pick!(by_wide, lzcnt, 1)),
        M::Tzcnt => needs(CpuidFeature::BMI1).and_then(|()| pick!(by_wide, tzcnt, 1)),
        M::Popcnt => needs(CpuidFeature::POPCNT).and_then(|()| pick!(by_wide, popcnt, 1)),
        M::Blsi => needs(CpuidFeature::BMI1).and_then(|()| pick!(by_dword, blsi, 1)),
        M::Blsmsk => needs(CpuidFeature::BMI1).and_then(|()| pick!(by_dword, blsmsk, 1)),
        M::Blsr => needs(CpuidFeature::BMI1).and_then(|()| pick!(by_dword, blsr, 1)),
        M::Andn => needs(CpuidFeature::BMI1).and_then(|()| pick!(by_dword, andn, 2)),
        M::Bextr if i.op_count() == 3 => needs(CpuidFeature::BMI1).and_then(|()| pick!(by_dword, bextr, 1)),
        M::Bzhi => needs(CpuidFeature::BMI2).and_then(|()| pick!(by_dword, bzhi, 1)),
        M::Pdep => needs(CpuidFeature::BMI2).and_then(|()| pick!(by_dword, pdep, 2)),
        M::Pext => needs(CpuidFeature::BMI2).and_then(|()| pick!(by_dword, pext, 2)),
        M::Crc32 => {
            let w = width(i, 1);
            needs(CpuidFeature::SSE4_2).and_then(|()| {
                if memory(1) { by_width!(w, crc32, [], [true]) } else { by_width!(w, crc32, [], [false]) }
            })
        }
        _ => None,
    }
}
