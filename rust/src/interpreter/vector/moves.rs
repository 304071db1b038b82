//! The most frequent vector instructions, written out: moves and XOR need no stub.
//!
//! They take no flags, no MXCSR and cannot fail but in memory.

use iced_x86::{Code, Instruction, OpKind};

use super::stub::Gate;
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::stop::Exec;

/// The direct executor of a move or XOR.
pub(super) fn select(i: &Instruction) -> Option<Handler> {
    let memory = |n: u32| i.op_kind(n) == OpKind::Memory;
    Some(match i.code() {
        Code::Movups_xmm_xmmm128 | Code::Movupd_xmm_xmmm128 | Code::Movdqu_xmm_xmmm128 | Code::Lddqu_xmm_m128 => {
            if memory(1) {
                load::<false, 16, 0>
            } else {
                copy::<false, 16, 0, 1>
            }
        }
        Code::Movaps_xmm_xmmm128 | Code::Movapd_xmm_xmmm128 | Code::Movdqa_xmm_xmmm128 => {
            if memory(1) {
                load::<false, 16, 15>
            } else {
                copy::<false, 16, 0, 1>
            }
        }
        Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm | Code::Movdqu_xmmm128_xmm => {
            if memory(0) {
                store::<false, 16, 0>
            } else {
                copy::<false, 16, 0, 1>
            }
        }
        Code::Movaps_xmmm128_xmm | Code::Movapd_xmmm128_xmm | Code::Movdqa_xmmm128_xmm => {
            if memory(0) {
                store::<false, 16, 15>
            } else {
                copy::<false, 16, 0, 1>
            }
        }
        Code::Movntps_m128_xmm | Code::Movntpd_m128_xmm | Code::Movntdq_m128_xmm => store::<false, 16, 15>,
        Code::Movntdqa_xmm_m128 => load::<false, 16, 15>,
        Code::Movq_xmm_xmmm64 => {
            if memory(1) {
                load::<false, 8, 0>
            } else {
                copy::<false, 8, 0, 1>
            }
        }
        Code::Movq_xmmm64_xmm => {
            if memory(0) {
                store::<false, 8, 0>
            } else {
                copy::<false, 8, 0, 1>
            }
        }
        Code::Movsd_xmm_xmmm64 if memory(1) => load::<false, 8, 0>,
        Code::Movss_xmm_xmmm32 if memory(1) => load::<false, 4, 0>,
        Code::Movsd_xmmm64_xmm if memory(0) => store::<false, 8, 0>,
        Code::Movss_xmmm32_xmm if memory(0) => store::<false, 4, 0>,
        Code::Movd_xmm_rm32 => {
            if memory(1) {
                load::<false, 4, 0>
            } else {
                from_gpr::<false, 4>
            }
        }
        Code::Movq_xmm_rm64 => {
            if memory(1) {
                load::<false, 8, 0>
            } else {
                from_gpr::<false, 8>
            }
        }
        Code::Movd_rm32_xmm => {
            if memory(0) {
                store::<false, 4, 0>
            } else {
                to_gpr::<false, 4>
            }
        }
        Code::Movq_rm64_xmm => {
            if memory(0) {
                store::<false, 8, 0>
            } else {
                to_gpr::<false, 8>
            }
        }
        Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64 => half_load::<0>,
        Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64 => half_load::<1>,
        Code::Movlps_m64_xmm | Code::Movlpd_m64_xmm => half_store::<0>,
        Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm => half_store::<1>,
        Code::Pxor_xmm_xmmm128 | Code::Xorps_xmm_xmmm128 | Code::Xorpd_xmm_xmmm128 if !memory(1) => xor::<false, 16>,

        Code::VEX_Vmovups_xmm_xmmm128
        | Code::VEX_Vmovupd_xmm_xmmm128
        | Code::VEX_Vmovdqu_xmm_xmmm128
        | Code::VEX_Vlddqu_xmm_m128 => {
            if memory(1) {
                load::<true, 16, 0>
            } else {
                copy::<true, 16, 0, 1>
            }
        }
        Code::VEX_Vmovups_ymm_ymmm256
        | Code::VEX_Vmovupd_ymm_ymmm256
        | Code::VEX_Vmovdqu_ymm_ymmm256
        | Code::VEX_Vlddqu_ymm_m256 => {
            if memory(1) {
                load::<true, 32, 0>
            } else {
                copy::<true, 32, 0, 1>
            }
        }
        Code::VEX_Vmovaps_xmm_xmmm128 | Code::VEX_Vmovapd_xmm_xmmm128 | Code::VEX_Vmovdqa_xmm_xmmm128 => {
            if memory(1) {
                load::<true, 16, 15>
            } else {
                copy::<true, 16, 0, 1>
            }
        }
        Code::VEX_Vmovaps_ymm_ymmm256 | Code::VEX_Vmovapd_ymm_ymmm256 | Code::VEX_Vmovdqa_ymm_ymmm256 => {
            if memory(1) {
                load::<true, 32, 31>
            } else {
                copy::<true, 32, 0, 1>
            }
        }
        Code::VEX_Vmovups_xmmm128_xmm | Code::VEX_Vmovupd_xmmm128_xmm | Code::VEX_Vmovdqu_xmmm128_xmm => {
            if memory(0) {
                store::<true, 16, 0>
            } else {
                copy::<true, 16, 0, 1>
            }
        }
        Code::VEX_Vmovups_ymmm256_ymm | Code::VEX_Vmovupd_ymmm256_ymm | Code::VEX_Vmovdqu_ymmm256_ymm => {
            if memory(0) {
                store::<true, 32, 0>
            } else {
                copy::<true, 32, 0, 1>
            }
        }
        Code::VEX_Vmovaps_xmmm128_xmm | Code::VEX_Vmovapd_xmmm128_xmm | Code::VEX_Vmovdqa_xmmm128_xmm => {
            if memory(0) {
                store::<true, 16, 15>
            } else {
                copy::<true, 16, 0, 1>
            }
        }
        Code::VEX_Vmovaps_ymmm256_ymm | Code::VEX_Vmovapd_ymmm256_ymm | Code::VEX_Vmovdqa_ymmm256_ymm => {
            if memory(0) {
                store::<true, 32, 31>
            } else {
                copy::<true, 32, 0, 1>
            }
        }
        Code::VEX_Vmovntps_m128_xmm | Code::VEX_Vmovntpd_m128_xmm | Code::VEX_Vmovntdq_m128_xmm => {
            store::<true, 16, 15>
        }
        Code::VEX_Vmovntps_m256_ymm | Code::VEX_Vmovntpd_m256_ymm | Code::VEX_Vmovntdq_m256_ymm => {
            store::<true, 32, 31>
        }
        Code::VEX_Vmovntdqa_xmm_m128 => load::<true, 16, 15>,
        Code::VEX_Vmovntdqa_ymm_m256 => load::<true, 32, 31>,
        Code::VEX_Vmovq_xmm_xmmm64 => {
            if memory(1) {
                load::<true, 8, 0>
            } else {
                copy::<true, 8, 0, 1>
            }
        }
        Code::VEX_Vmovq_xmmm64_xmm => {
            if memory(0) {
                store::<true, 8, 0>
            } else {
                copy::<true, 8, 0, 1>
            }
        }
        Code::VEX_Vmovsd_xmm_m64 => load::<true, 8, 0>,
        Code::VEX_Vmovss_xmm_m32 => load::<true, 4, 0>,
        Code::VEX_Vmovsd_m64_xmm => store::<true, 8, 0>,
        Code::VEX_Vmovss_m32_xmm => store::<true, 4, 0>,
        Code::VEX_Vmovd_xmm_rm32 => {
            if memory(1) {
                load::<true, 4, 0>
            } else {
                from_gpr::<true, 4>
            }
        }
        Code::VEX_Vmovq_xmm_rm64 => {
            if memory(1) {
                load::<true, 8, 0>
            } else {
                from_gpr::<true, 8>
            }
        }
        Code::VEX_Vmovd_rm32_xmm => {
            if memory(0) {
                store::<true, 4, 0>
            } else {
                to_gpr::<true, 4>
            }
        }
        Code::VEX_Vmovq_rm64_xmm => {
            if memory(0) {
                store::<true, 8, 0>
            } else {
                to_gpr::<true, 8>
            }
        }
        Code::VEX_Vpxor_xmm_xmm_xmmm128 | Code::VEX_Vxorps_xmm_xmm_xmmm128 | Code::VEX_Vxorpd_xmm_xmm_xmmm128
            if !memory(2) =>
        {
            xor::<true, 16>
        }
        Code::VEX_Vpxor_ymm_ymm_ymmm256 | Code::VEX_Vxorps_ymm_ymm_ymmm256 | Code::VEX_Vxorpd_ymm_ymm_ymmm256
            if !memory(2) =>
        {
            xor::<true, 32>
        }
        _ => return None,
    })
}

#[inline(always)]
fn gate(cpu: &mut Cpu, vex: bool) -> Exec {
    cpu.vector_gate(if vex { Gate::Avx } else { Gate::Sse })
}

/// A vector register's number from [`Insn::r`], which the decoder fills with it.
#[inline(always)]
fn number(r: u8) -> usize {
    usize::from(r & 15)
}

/// Number of vector register operand `n`.
#[inline(always)]
fn register(insn: &Insn, n: u32) -> usize {
    match n {
        0 => number(insn.r[0]),
        1 => number(insn.r[1]),
        _ => number(insn.r[2]),
    }
}

/// Writes the low 16 bytes, and with VEX the upper ones too.
#[inline(always)]
fn put(cpu: &mut Cpu, vex: bool, n: usize, value: [u64; 4]) {
    let ymm = &mut cpu.state.ymm[n & 15];
    if vex {
        *ymm = value;
    } else {
        (ymm[0], ymm[1]) = (value[0], value[1]);
    }
}

fn load<const VEX: bool, const SIZE: u32, const ALIGN: u64>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    gate(cpu, VEX)?;
    let linear = cpu.mem(insn, SIZE, false)?;
    if linear & ALIGN != 0 {
        return Err(cpu.gp0());
    }
    let value = match SIZE {
        4 => [u64::from(cpu.read::<u32>(linear)?), 0, 0, 0],
        8 => [cpu.read::<u64>(linear)?, 0, 0, 0],
        16 => {
            let v = cpu.read::<u128>(linear)?;
            [v as u64, (v >> 64) as u64, 0, 0]
        }
        _ => cpu.read_256(linear)?,
    };
    put(cpu, VEX, register(insn, 0), value);
    Ok(())
}

fn store<const VEX: bool, const SIZE: u32, const ALIGN: u64>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    gate(cpu, VEX)?;
    let linear = cpu.mem(insn, SIZE, true)?;
    if linear & ALIGN != 0 {
        return Err(cpu.gp0());
    }
    let v = cpu.state.ymm[register(insn, 1)];
    match SIZE {
        4 => cpu.write(linear, v[0] as u32),
        8 => cpu.write(linear, v[0]),
        16 => cpu.write(linear, u128::from(v[0]) | u128::from(v[1]) << 64),
        _ => cpu.write_256(linear, v),
    }
}

/// Register to register, the rest of 16 (or with VEX 32) bytes zeroed.
fn copy<const VEX: bool, const SIZE: u32, const TO: u32, const FROM: u32>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    gate(cpu, VEX)?;
    let v = cpu.state.ymm[register(insn, FROM)];
    let value = match SIZE {
        8 => [v[0], 0, 0, 0],
        16 => [v[0], v[1], 0, 0],
        _ => v,
    };
    put(cpu, VEX, register(insn, TO), value);
    Ok(())
}

fn from_gpr<const VEX: bool, const SIZE: u32>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    gate(cpu, VEX)?;
    let v: u64 = cpu.reg(insn.r[1]);
    put(cpu, VEX, register(insn, 0), [if SIZE == 4 { v & 0xffff_ffff } else { v }, 0, 0, 0]);
    Ok(())
}

fn to_gpr<const VEX: bool, const SIZE: u32>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    gate(cpu, VEX)?;
    let v = cpu.state.ymm[register(insn, 1)][0];
    cpu.set_reg::<u64>(insn.r[0], if SIZE == 4 { v & 0xffff_ffff } else { v });
    Ok(())
}

fn half_load<const HALF: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    gate(cpu, false)?;
    let linear = cpu.mem(insn, 8, false)?;
    cpu.state.ymm[register(insn, 0)][HALF & 1] = cpu.read(linear)?;
    Ok(())
}

fn half_store<const HALF: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    gate(cpu, false)?;
    let linear = cpu.mem(insn, 8, true)?;
    cpu.write(linear, cpu.state.ymm[register(insn, 1)][HALF & 1])
}

fn xor<const VEX: bool, const SIZE: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    gate(cpu, VEX)?;
    let (a, b) = if VEX { (register(insn, 1), register(insn, 2)) } else { (register(insn, 0), register(insn, 1)) };
    let (a, b) = (cpu.state.ymm[a], cpu.state.ymm[b]);
    let value = std::array::from_fn(|n| if n < SIZE / 8 { a[n] ^ b[n] } else { 0 });
    put(cpu, VEX, register(insn, 0), value);
    Ok(())
}
