//! Arithmetic and logic of two operands and of one: ADD to CMP, TEST, INC, DEC, NEG, NOT, ADCX, ADOX.
//!
//! Each operation is compiled once for each size and form. With LOCK the memory forms are atomic.

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind};

use super::native::{Bmi, Native};
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::stop::Exec;

/// An operation on two operands.
pub trait Binary {
    /// Stores its result (CMP and TEST do not).
    const STORES: bool = true;
    /// Result and RFLAGS.
    fn run<T: Native>(a: T, b: T, f: u64) -> (T, u64);
}

/// An operation on one operand.
pub trait Unary {
    /// Result and RFLAGS.
    fn run<T: Native>(a: T, f: u64) -> (T, u64);
}

macro_rules! binary {
    ($($name:ident $stores:literal $method:ident;)*) => {
        $(
            struct $name;
            impl Binary for $name {
                const STORES: bool = $stores;
                #[inline(always)]
                fn run<T: Native>(a: T, b: T, f: u64) -> (T, u64) {
                    T::$method(a, b, f)
                }
            }
        )*
    };
}
binary! {
    Add true add;
    Or true or;
    Adc true adc;
    Sbb true sbb;
    And true and;
    Sub true sub;
    Xor true xor;
    Cmp false sub;
    Test false and;
}

struct Inc;
impl Unary for Inc {
    #[inline(always)]
    fn run<T: Native>(a: T, f: u64) -> (T, u64) {
        T::inc(a, f)
    }
}
struct Dec;
impl Unary for Dec {
    #[inline(always)]
    fn run<T: Native>(a: T, f: u64) -> (T, u64) {
        T::dec(a, f)
    }
}
struct Neg;
impl Unary for Neg {
    #[inline(always)]
    fn run<T: Native>(a: T, f: u64) -> (T, u64) {
        T::neg(a, f)
    }
}
struct Not;
impl Unary for Not {
    #[inline(always)]
    fn run<T: Native>(a: T, f: u64) -> (T, u64) {
        (T::of(!a.u64()), f)
    }
}

fn reg_reg<O: Binary, T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (v, f) = O::run(cpu.reg::<T>(insn.r[0]), cpu.reg::<T>(insn.r[1]), cpu.state.rflags);
    cpu.state.rflags = f;
    if O::STORES {
        cpu.set_reg(insn.r[0], v);
    }
    Ok(())
}

fn reg_imm<O: Binary, T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (v, f) = O::run(cpu.reg::<T>(insn.r[0]), T::of(insn.imm), cpu.state.rflags);
    cpu.state.rflags = f;
    if O::STORES {
        cpu.set_reg(insn.r[0], v);
    }
    Ok(())
}

fn reg_mem<O: Binary, T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, false)?;
    let b = cpu.read::<T>(linear)?;
    let (v, f) = O::run(cpu.reg::<T>(insn.r[0]), b, cpu.state.rflags);
    cpu.state.rflags = f;
    if O::STORES {
        cpu.set_reg(insn.r[0], v);
    }
    Ok(())
}

#[inline(always)]
fn to_mem<O: Binary, T: Native>(cpu: &mut Cpu, insn: &Insn, b: T, lock: bool) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, O::STORES)?;
    let before = cpu.state.rflags;
    let mut after = before;
    if O::STORES {
        cpu.update::<T>(linear, lock, |a| {
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

fn mem_reg<O: Binary, T: Native, const LOCK: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = cpu.reg::<T>(insn.r[1]);
    to_mem::<O, T>(cpu, insn, b, LOCK)
}

fn mem_imm<O: Binary, T: Native, const LOCK: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    to_mem::<O, T>(cpu, insn, T::of(insn.imm), LOCK)
}

fn reg_one<O: Unary, T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (v, f) = O::run(cpu.reg::<T>(insn.r[0]), cpu.state.rflags);
    cpu.state.rflags = f;
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

fn mem_one<O: Unary, T: Native, const LOCK: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, true)?;
    let before = cpu.state.rflags;
    let mut after = before;
    cpu.update::<T>(linear, LOCK, |a| {
        let (v, f) = O::run(a, before);
        after = f;
        Some(v)
    })?;
    cpu.state.rflags = after;
    Ok(())
}

/// Size in bytes of operand `n`.
#[must_use]
pub(super) fn width(i: &Instruction, n: u32) -> usize {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size(),
        _ => i.memory_size().size(),
    }
}

/// A handler for the width of an instruction: `by_width!(width, f::<Op, _>)` with `_` the operand type.
macro_rules! by_width {
    ($w:expr, $f:ident, [$($before:ty),*]) => { by_width!($w, $f, [$($before),*], []) };
    ($w:expr, $f:ident, [$($before:ty),*], [$($after:expr),*]) => {
        match $w {
            1 => Some($f::<$($before,)* u8 $(,{ $after })*> as $crate::decode::Handler),
            2 => Some($f::<$($before,)* u16 $(,{ $after })*> as $crate::decode::Handler),
            4 => Some($f::<$($before,)* u32 $(,{ $after })*> as $crate::decode::Handler),
            8 => Some($f::<$($before,)* u64 $(,{ $after })*> as $crate::decode::Handler),
            _ => None,
        }
    };
}
pub(super) use by_width;

/// As `by_width!`, without bytes.
macro_rules! by_wide {
    ($w:expr, $f:ident, [$($before:ty),*]) => { by_wide!($w, $f, [$($before),*], []) };
    ($w:expr, $f:ident, [$($before:ty),*], [$($after:expr),*]) => {
        match $w {
            2 => Some($f::<$($before,)* u16 $(,{ $after })*> as $crate::decode::Handler),
            4 => Some($f::<$($before,)* u32 $(,{ $after })*> as $crate::decode::Handler),
            8 => Some($f::<$($before,)* u64 $(,{ $after })*> as $crate::decode::Handler),
            _ => None,
        }
    };
}
pub(super) use by_wide;

/// As `by_width!`, for 32 and 64 bits.
macro_rules! by_dword {
    ($w:expr, $f:ident, [$($before:ty),*]) => { by_dword!($w, $f, [$($before),*], []) };
    ($w:expr, $f:ident, [$($before:ty),*], [$($after:expr),*]) => {
        match $w {
            4 => Some($f::<$($before,)* u32 $(,{ $after })*> as $crate::decode::Handler),
            8 => Some($f::<$($before,)* u64 $(,{ $after })*> as $crate::decode::Handler),
            _ => None,
        }
    };
}
pub(super) use by_dword;

/// Where the operands of a two-operand instruction lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    RegReg,
    RegMem,
    RegImm,
    MemReg,
    MemImm,
    Other,
}

pub(super) fn form(i: &Instruction) -> Form {
    match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Register, OpKind::Register) => Form::RegReg,
        (OpKind::Register, OpKind::Memory) => Form::RegMem,
        (OpKind::Memory, OpKind::Register) => Form::MemReg,
        (OpKind::Register, k) if is_immediate(k) => Form::RegImm,
        (OpKind::Memory, k) if is_immediate(k) => Form::MemImm,
        _ => Form::Other,
    }
}

fn is_immediate(k: OpKind) -> bool {
    matches!(
        k,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

fn two<O: Binary>(i: &Instruction) -> Option<Handler> {
    let w = width(i, 0);
    let lock = i.has_lock_prefix();
    match form(i) {
        Form::RegReg => by_width!(w, reg_reg, [O]),
        Form::RegMem => by_width!(w, reg_mem, [O]),
        Form::RegImm => by_width!(w, reg_imm, [O]),
        Form::MemReg if lock => by_width!(w, mem_reg, [O], [true]),
        Form::MemReg => by_width!(w, mem_reg, [O], [false]),
        Form::MemImm if lock => by_width!(w, mem_imm, [O], [true]),
        Form::MemImm => by_width!(w, mem_imm, [O], [false]),
        Form::Other => None,
    }
}

fn one<O: Unary>(i: &Instruction) -> Option<Handler> {
    let w = width(i, 0);
    match i.op0_kind() {
        OpKind::Register => by_width!(w, reg_one, [O]),
        _ if i.has_lock_prefix() => by_width!(w, mem_one, [O], [true]),
        _ => by_width!(w, mem_one, [O], [false]),
    }
}

fn adx_reg<T: Bmi, const O: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    adx::<T, O>(cpu, insn, cpu.reg::<T>(insn.r[1]))
}

fn adx_mem<T: Bmi, const O: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, false)?;
    let b = cpu.read::<T>(linear)?;
    adx::<T, O>(cpu, insn, b)
}

fn adx<T: Bmi, const O: bool>(cpu: &mut Cpu, insn: &Insn, b: T) -> Exec {
    let a = cpu.reg::<T>(insn.r[0]);
    let (v, f) = if O { T::adox(a, b, cpu.state.rflags) } else { T::adcx(a, b, cpu.state.rflags) };
    cpu.state.rflags = f;
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

fn select_adx(i: &Instruction) -> Option<Handler> {
    let w = width(i, 0);
    match (form(i), i.mnemonic() == Mnemonic::Adox) {
        (Form::RegReg, true) => by_dword!(w, adx_reg, [], [true]),
        (Form::RegReg, false) => by_dword!(w, adx_reg, [], [false]),
        (Form::RegMem, true) => by_dword!(w, adx_mem, [], [true]),
        (Form::RegMem, false) => by_dword!(w, adx_mem, [], [false]),
        _ => None,
    }
}

/// The handler of an instruction of this group.
#[must_use]
pub fn select(i: &Instruction) -> Option<Handler> {
    match i.mnemonic() {
        Mnemonic::Add => two::<Add>(i),
        Mnemonic::Or => two::<Or>(i),
        Mnemonic::Adc => two::<Adc>(i),
        Mnemonic::Sbb => two::<Sbb>(i),
        Mnemonic::And => two::<And>(i),
        Mnemonic::Sub => two::<Sub>(i),
        Mnemonic::Xor => two::<Xor>(i),
        Mnemonic::Cmp => two::<Cmp>(i),
        Mnemonic::Test => two::<Test>(i),
        Mnemonic::Inc => one::<Inc>(i),
        Mnemonic::Dec => one::<Dec>(i),
        Mnemonic::Neg => one::<Neg>(i),
        Mnemonic::Not => one::<Not>(i),
        Mnemonic::Adcx | Mnemonic::Adox if super::host_has(CpuidFeature::ADX) && i.code() != Code::INVALID => {
            select_adx(i)
        }
        _ => None,
    }
}
