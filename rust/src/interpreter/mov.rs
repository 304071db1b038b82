//! Data movement without arithmetic: MOV, MOVZX, MOVSX, LEA, XCHG of registers, BSWAP, MOVBE, CMOVcc, SETcc, XLAT,
//! sign extension in the accumulator, flag instructions, and the instructions that do nothing.
//!
//! MOV to and from segment, control and debug registers belongs to the system group.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::alu::{Form, by_dword, by_wide, by_width, form, width};
use super::native::bswap16;
use super::operand::Word;
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::state::{flag, gpr};
use crate::stop::Exec;

fn mov_rr<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let v = cpu.reg::<T>(insn.r[1]);
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

fn mov_ri<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.set_reg(insn.r[0], T::of(insn.imm));
    Ok(())
}

fn mov_rm<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, false)?;
    let v = cpu.read::<T>(linear)?;
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

fn mov_mr<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, true)?;
    let v = cpu.reg::<T>(insn.r[1]);
    cpu.write(linear, v)
}

fn mov_mi<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, true)?;
    cpu.write(linear, T::of(insn.imm))
}

fn extend_r<D: Word, S: Word, const SIGNED: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let v = cpu.reg::<S>(insn.r[1]);
    cpu.set_reg(insn.r[0], if SIGNED { D::of(v.i64() as u64) } else { D::of(v.u64()) });
    Ok(())
}

fn extend_m<D: Word, S: Word, const SIGNED: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, S::BYTES, false)?;
    let v = cpu.read::<S>(linear)?;
    cpu.set_reg(insn.r[0], if SIGNED { D::of(v.i64() as u64) } else { D::of(v.u64()) });
    Ok(())
}

fn select_extend<const SIGNED: bool>(i: &Instruction) -> Option<Handler> {
    macro_rules! pick {
        ($f:ident) => {
            match (width(i, 0), width(i, 1)) {
                (2, 1) => Some($f::<u16, u8, SIGNED> as Handler),
                (4, 1) => Some($f::<u32, u8, SIGNED>),
                (8, 1) => Some($f::<u64, u8, SIGNED>),
                (2, 2) => Some($f::<u16, u16, SIGNED>),
                (4, 2) => Some($f::<u32, u16, SIGNED>),
                (8, 2) => Some($f::<u64, u16, SIGNED>),
                (2, 4) => Some($f::<u16, u32, SIGNED>),
                (4, 4) => Some($f::<u32, u32, SIGNED>),
                (8, 4) => Some($f::<u64, u32, SIGNED>),
                _ => None,
            }
        };
    }
    if i.op1_kind() == OpKind::Register { pick!(extend_r) } else { pick!(extend_m) }
}

fn lea<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let v = cpu.ea(insn);
    cpu.set_reg(insn.r[0], T::of(v));
    Ok(())
}

fn xchg_rr<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (a, b) = (cpu.reg::<T>(insn.r[0]), cpu.reg::<T>(insn.r[1]));
    cpu.set_reg(insn.r[0], b);
    cpu.set_reg(insn.r[1], a);
    Ok(())
}

/// XCHG with memory locks without being told to. The register is the operand that is not memory.
fn xchg_mem<T: Word, const REG: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, true)?;
    let v = cpu.reg::<T>(insn.r[REG]);
    let old = cpu.update::<T>(linear, true, |_| Some(v))?;
    cpu.set_reg(insn.r[REG], old);
    Ok(())
}

trait Swap: Word {
    fn swap(self) -> Self;
}
impl Swap for u16 {
    fn swap(self) -> Self {
        self.swap_bytes()
    }
}
impl Swap for u32 {
    fn swap(self) -> Self {
        self.swap_bytes()
    }
}
impl Swap for u64 {
    fn swap(self) -> Self {
        self.swap_bytes()
    }
}

fn bswap<T: Swap>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let v = cpu.reg::<T>(insn.r[0]);
    cpu.set_reg(insn.r[0], v.swap());
    Ok(())
}

fn bswap_16(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let v = cpu.reg::<u16>(insn.r[0]);
    cpu.set_reg(insn.r[0], bswap16(v));
    Ok(())
}

fn movbe_load<T: Swap>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, false)?;
    let v = cpu.read::<T>(linear)?;
    cpu.set_reg(insn.r[0], v.swap());
    Ok(())
}

fn movbe_store<T: Swap>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, true)?;
    let v = cpu.reg::<T>(insn.r[1]);
    cpu.write(linear, v.swap())
}

/// Condition `CC` (the low four bits of the opcode) in RFLAGS.
#[inline(always)]
#[must_use]
pub fn condition<const CC: u8>(f: u64) -> bool {
    let less = (f >> 7 ^ f >> 11) & 1 != 0;
    let yes = match CC >> 1 {
        0 => f & flag::OF != 0,
        1 => f & flag::CF != 0,
        2 => f & flag::ZF != 0,
        3 => f & (flag::CF | flag::ZF) != 0,
        4 => f & flag::SF != 0,
        5 => f & flag::PF != 0,
        6 => less,
        _ => f & flag::ZF != 0 || less,
    };
    yes != (CC & 1 != 0)
}

/// The handlers of the sixteen conditions: `by_condition!(cc, f::<T>)`.
macro_rules! by_condition {
    ($cc:expr, $f:ident $(, $t:ty)*) => {
        match $cc {
            0 => Some($f::<$($t,)* 0> as $crate::decode::Handler),
            1 => Some($f::<$($t,)* 1>),
            2 => Some($f::<$($t,)* 2>),
            3 => Some($f::<$($t,)* 3>),
            4 => Some($f::<$($t,)* 4>),
            5 => Some($f::<$($t,)* 5>),
            6 => Some($f::<$($t,)* 6>),
            7 => Some($f::<$($t,)* 7>),
            8 => Some($f::<$($t,)* 8>),
            9 => Some($f::<$($t,)* 9>),
            10 => Some($f::<$($t,)* 10>),
            11 => Some($f::<$($t,)* 11>),
            12 => Some($f::<$($t,)* 12>),
            13 => Some($f::<$($t,)* 13>),
            14 => Some($f::<$($t,)* 14>),
            15 => Some($f::<$($t,)* 15>),
            _ => None,
        }
    };
}
pub(super) use by_condition;

/// The condition's number, as in opcodes.
pub(super) fn condition_code(i: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match i.condition_code() {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
        C::None => 16,
    }
}

/// A 32-bit CMOVcc clears the upper half also when it does not move.
fn cmov_r<T: Word, const CC: u8>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let from = if condition::<CC>(cpu.state.rflags) { insn.r[1] } else { insn.r[0] };
    let v = cpu.reg::<T>(from);
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

/// The memory operand is read, and can fault, also when nothing moves.
fn cmov_m<T: Word, const CC: u8>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, T::BYTES, false)?;
    let v = cpu.read::<T>(linear)?;
    let old = cpu.reg::<T>(insn.r[0]);
    cpu.set_reg(insn.r[0], if condition::<CC>(cpu.state.rflags) { v } else { old });
    Ok(())
}

fn set_r<const CC: u8>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let v = u8::from(condition::<CC>(cpu.state.rflags));
    cpu.set_reg(insn.r[0], v);
    Ok(())
}

fn set_m<const CC: u8>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, 1, true)?;
    let v = u8::from(condition::<CC>(cpu.state.rflags));
    cpu.write(linear, v)
}

/// XLATB: AL = [rBX + AL].
fn xlat(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let offset = cpu.state.gpr[gpr::RBX].wrapping_add(cpu.state.gpr[gpr::RAX] & 0xff) & insn.address_mask;
    let linear = cpu.segmented(insn.seg, offset, 1, false)?;
    let v = cpu.read::<u8>(linear)?;
    cpu.set_reg(0, v);
    Ok(())
}

const AX: u8 = 0;
const DX: u8 = 16;

fn cbw(cpu: &mut Cpu, _: &Insn) -> Exec {
    let v = cpu.reg::<u8>(AX) as i8;
    cpu.set_reg(AX, v as u16);
    Ok(())
}

fn cwde(cpu: &mut Cpu, _: &Insn) -> Exec {
    let v = cpu.reg::<u16>(AX) as i16;
    cpu.set_reg(AX, v as u32);
    Ok(())
}

fn cdqe(cpu: &mut Cpu, _: &Insn) -> Exec {
    let v = cpu.reg::<u32>(AX) as i32;
    cpu.set_reg(AX, v as u64);
    Ok(())
}

fn sign_to_dx<T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let v = cpu.reg::<T>(AX).i64() >> 63;
    cpu.set_reg(DX, T::of(v as u64));
    Ok(())
}

fn lahf(cpu: &mut Cpu, _: &Insn) -> Exec {
    let v = (cpu.state.rflags & 0xd5 | 2) as u8;
    cpu.set_reg(AX + 1, v);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Insn) -> Exec {
    let v = u64::from(cpu.reg::<u8>(AX + 1));
    cpu.state.rflags = cpu.state.rflags & !0xd5 | v & 0xd5;
    Ok(())
}

fn clear_flag<const MASK: u64>(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.state.rflags &= !MASK;
    Ok(())
}

fn set_flag<const MASK: u64>(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.state.rflags |= MASK;
    Ok(())
}

fn cmc(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.state.rflags ^= flag::CF;
    Ok(())
}

fn salc(cpu: &mut Cpu, _: &Insn) -> Exec {
    let v = if cpu.state.rflags & flag::CF != 0 { 0xff_u8 } else { 0 };
    cpu.set_reg(AX, v);
    Ok(())
}

fn nop(_: &mut Cpu, _: &Insn) -> Exec {
    Ok(())
}

/// Orders this core's stores before its loads, and with other cores' (SDM vol. 3, 9.2.5).
fn fence(_: &mut Cpu, _: &Insn) -> Exec {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// CLFLUSH and CLWB touch their operand as a byte load does; caches are the host's matter.
fn cache_line(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.mem(insn, 1, false)?;
    cpu.read::<u8>(linear)?;
    Ok(())
}

fn select_mov(i: &Instruction) -> Option<Handler> {
    let special = |n: u32| i.op_kind(n) == OpKind::Register && !i.op_register(n).is_gpr();
    if special(0) || special(1) {
        return None;
    }
    let w = width(i, 0);
    match form(i) {
        Form::RegReg => by_width!(w, mov_rr, []),
        Form::RegMem => by_width!(w, mov_rm, []),
        Form::RegImm => by_width!(w, mov_ri, []),
        Form::MemReg => by_width!(w, mov_mr, []),
        Form::MemImm => by_width!(w, mov_mi, []),
        Form::Other => None,
    }
}

fn select_xchg(i: &Instruction) -> Option<Handler> {
    let w = width(i, 0);
    match form(i) {
        Form::RegReg => by_width!(w, xchg_rr, []),
        Form::MemReg => by_width!(w, xchg_mem, [], [1]),
        Form::RegMem => by_width!(w, xchg_mem, [], [0]),
        _ => None,
    }
}

fn select_swap(i: &Instruction) -> Option<Handler> {
    let w = width(i, 0);
    match (i.mnemonic(), form(i)) {
        (Mnemonic::Bswap, _) if w == 2 => Some(bswap_16),
        (Mnemonic::Bswap, _) => by_dword!(w, bswap, []),
        (_, Form::RegMem) => by_wide!(w, movbe_load, []),
        (_, Form::MemReg) => by_wide!(w, movbe_store, []),
        _ => None,
    }
}

fn select_conditional(i: &Instruction) -> Option<Handler> {
    let cc = condition_code(i);
    if i.op_count() == 1 {
        return match i.op0_kind() {
            OpKind::Register if i.op0_register().size() == 1 => by_condition!(cc, set_r),
            OpKind::Memory => by_condition!(cc, set_m),
            _ => None,
        };
    }
    match (form(i), width(i, 0)) {
        (Form::RegReg, 2) => by_condition!(cc, cmov_r, u16),
        (Form::RegReg, 4) => by_condition!(cc, cmov_r, u32),
        (Form::RegReg, 8) => by_condition!(cc, cmov_r, u64),
        (Form::RegMem, 2) => by_condition!(cc, cmov_m, u16),
        (Form::RegMem, 4) => by_condition!(cc, cmov_m, u32),
        (Form::RegMem, 8) => by_condition!(cc, cmov_m, u64),
        _ => None,
    }
}

/// The handler of an instruction of this group.
#[must_use]
pub fn select(i: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match i.mnemonic() {
        M::Mov => return select_mov(i),
        M::Movzx => return select_extend::<false>(i),
        M::Movsx | M::Movsxd => return select_extend::<true>(i),
        M::Lea => return by_wide!(width(i, 0), lea, []),
        M::Xchg => return select_xchg(i),
        M::Bswap | M::Movbe => return select_swap(i),
        M::Movnti => return by_dword!(width(i, 0), mov_mr, []),
        M::Xlatb => xlat,
        M::Cbw => cbw,
        M::Cwde => cwde,
        M::Cdqe => cdqe,
        M::Cwd => sign_to_dx::<u16>,
        M::Cdq => sign_to_dx::<u32>,
        M::Cqo => sign_to_dx::<u64>,
        M::Lahf => lahf,
        M::Sahf => sahf,
        M::Clc => clear_flag::<{ flag::CF }>,
        M::Stc => set_flag::<{ flag::CF }>,
        M::Cmc => cmc,
        M::Cld => clear_flag::<{ flag::DF }>,
        M::Std => set_flag::<{ flag::DF }>,
        M::Salc => salc,
        _ if is_nop(i) => nop,
        M::Mfence | M::Lfence | M::Sfence => fence,
        M::Clflush | M::Clflushopt | M::Clwb => cache_line,
        _ if i.condition_code() != iced_x86::ConditionCode::None && !i.is_jcc_short_or_near() => {
            return select_conditional(i);
        }
        _ => return None,
    })
}

/// NOP and what does nothing here: prefetches never fault; ENDBR and RDSSP are NOPs without CET.
pub(super) fn is_nop(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Nop
            | M::Reservednop
            | M::Endbr32
            | M::Endbr64
            | M::Rdsspd
            | M::Rdsspq
            | M::Prefetch
            | M::Prefetchw
            | M::Prefetchwt1
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Prefetchnta
            | M::Prefetchit0
            | M::Prefetchit1
    )
}
