//! Masked moves and gathers: each element is its own access, and may fault alone.
//!
//! A masked-out element is not accessed at all. A gather that faults keeps the elements before it and clears
//! their mask bits, so that it can be started again (SDM vol. 2, VPGATHERDD).

use iced_x86::{Code, Register};

use super::stub::Gate;
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::stop::Exec;

/// The executor of a masked move or gather.
pub(super) fn select(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Maskmovq_rDI_mm_mm => maskmovq,
        Code::Maskmovdqu_rDI_xmm_xmm => maskmovdqu::<false>,
        Code::VEX_Vmaskmovdqu_rDI_xmm_xmm => maskmovdqu::<true>,
        Code::VEX_Vmaskmovps_xmm_xmm_m128 | Code::VEX_Vpmaskmovd_xmm_xmm_m128 => mask_load::<4, 4>,
        Code::VEX_Vmaskmovps_ymm_ymm_m256 | Code::VEX_Vpmaskmovd_ymm_ymm_m256 => mask_load::<4, 8>,
        Code::VEX_Vmaskmovpd_xmm_xmm_m128 | Code::VEX_Vpmaskmovq_xmm_xmm_m128 => mask_load::<8, 2>,
        Code::VEX_Vmaskmovpd_ymm_ymm_m256 | Code::VEX_Vpmaskmovq_ymm_ymm_m256 => mask_load::<8, 4>,
        Code::VEX_Vmaskmovps_m128_xmm_xmm | Code::VEX_Vpmaskmovd_m128_xmm_xmm => mask_store::<4, 4>,
        Code::VEX_Vmaskmovps_m256_ymm_ymm | Code::VEX_Vpmaskmovd_m256_ymm_ymm => mask_store::<4, 8>,
        Code::VEX_Vmaskmovpd_m128_xmm_xmm | Code::VEX_Vpmaskmovq_m128_xmm_xmm => mask_store::<8, 2>,
        Code::VEX_Vmaskmovpd_m256_ymm_ymm | Code::VEX_Vpmaskmovq_m256_ymm_ymm => mask_store::<8, 4>,
        Code::VEX_Vpgatherdd_xmm_vm32x_xmm | Code::VEX_Vgatherdps_xmm_vm32x_xmm => gather::<4, 4, 4>,
        Code::VEX_Vpgatherdd_ymm_vm32y_ymm | Code::VEX_Vgatherdps_ymm_vm32y_ymm => gather::<4, 4, 8>,
        Code::VEX_Vpgatherdq_xmm_vm32x_xmm | Code::VEX_Vgatherdpd_xmm_vm32x_xmm => gather::<8, 4, 2>,
        Code::VEX_Vpgatherdq_ymm_vm32x_ymm | Code::VEX_Vgatherdpd_ymm_vm32x_ymm => gather::<8, 4, 4>,
        Code::VEX_Vpgatherqd_xmm_vm64x_xmm | Code::VEX_Vgatherqps_xmm_vm64x_xmm => gather::<4, 8, 2>,
        Code::VEX_Vpgatherqd_xmm_vm64y_xmm | Code::VEX_Vgatherqps_xmm_vm64y_xmm => gather::<4, 8, 4>,
        Code::VEX_Vpgatherqq_xmm_vm64x_xmm | Code::VEX_Vgatherqpd_xmm_vm64x_xmm => gather::<8, 8, 2>,
        Code::VEX_Vpgatherqq_ymm_vm64y_ymm | Code::VEX_Vgatherqpd_ymm_vm64y_ymm => gather::<8, 8, 4>,
        _ => return None,
    })
}

/// Element `n` of `size` bytes (4 or 8) of a vector.
fn element(v: &[u64; 4], size: usize, n: usize) -> u64 {
    if size == 8 { v[n & 3] } else { v[(n / 2) & 3] >> (32 * (n & 1)) & 0xffff_ffff }
}

fn set_element(v: &mut [u64; 4], size: usize, n: usize, value: u64) {
    if size == 8 {
        v[n & 3] = value;
    } else {
        let shift = 32 * (n & 1);
        let slot = &mut v[(n / 2) & 3];
        *slot = *slot & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
    }
}

/// An element's mask is its sign bit.
fn selected(mask: &[u64; 4], size: usize, n: usize) -> bool {
    element(mask, size, n) >> (8 * size - 1) & 1 != 0
}

fn vector(cpu: &Cpu, insn: &Insn, n: u32) -> [u64; 4] {
    cpu.state.ymm[insn.iced.op_register(n).number() & 15]
}

fn read_element(cpu: &mut Cpu, linear: u64, size: usize) -> Exec<u64> {
    if size == 8 { cpu.read::<u64>(linear) } else { Ok(u64::from(cpu.read::<u32>(linear)?)) }
}

fn mask_load<const SIZE: usize, const COUNT: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.vector_gate(Gate::Avx)?;
    let mask = vector(cpu, insn, 1);
    let offset = cpu.ea(insn);
    let mut out = [0; 4];
    for n in (0..COUNT).filter(|&n| selected(&mask, SIZE, n)) {
        let at = offset.wrapping_add((n * SIZE) as u64) & insn.address_mask;
        let linear = cpu.segmented(insn.seg, at, SIZE as u32, false)?;
        set_element(&mut out, SIZE, n, read_element(cpu, linear, SIZE)?);
    }
    cpu.state.ymm[insn.iced.op_register(0).number() & 15] = out;
    Ok(())
}

fn mask_store<const SIZE: usize, const COUNT: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.vector_gate(Gate::Avx)?;
    let mask = vector(cpu, insn, 1);
    let value = vector(cpu, insn, 2);
    let offset = cpu.ea(insn);
    let mut targets = [0; COUNT];
    for n in (0..COUNT).filter(|&n| selected(&mask, SIZE, n)) {
        let at = offset.wrapping_add((n * SIZE) as u64) & insn.address_mask;
        let linear = cpu.segmented(insn.seg, at, SIZE as u32, true)?;
        cpu.probe_write(linear, SIZE as u64)?;
        targets[n] = linear;
    }
    for n in (0..COUNT).filter(|&n| selected(&mask, SIZE, n)) {
        let v = element(&value, SIZE, n);
        if SIZE == 8 {
            cpu.write(targets[n], v)?;
        } else {
            cpu.write(targets[n], v as u32)?;
        }
    }
    Ok(())
}

/// MASKMOVQ and MASKMOVDQU store the bytes whose mask byte has its sign bit set at [rDI].
fn mask_bytes(cpu: &mut Cpu, insn: &Insn, value: &[u64], mask: &[u64]) -> Exec {
    let on = |n: usize| mask[n / 8] >> (8 * (n & 7) + 7) & 1 != 0;
    let count = 8 * value.len();
    let offset = cpu.state.gpr[crate::state::gpr::RDI];
    let address_mask = match insn.iced.op0_kind() {
        iced_x86::OpKind::MemorySegDI => 0xffff,
        iced_x86::OpKind::MemorySegEDI => 0xffff_ffff,
        _ => u64::MAX,
    };
    let segment = segment_number(insn.iced.memory_segment());
    let mut targets = [0; 16];
    for n in (0..count).filter(|&n| on(n)) {
        let at = offset.wrapping_add(n as u64) & address_mask;
        let linear = cpu.segmented(segment, at, 1, true)?;
        cpu.probe_write(linear, 1)?;
        targets[n] = linear;
    }
    for n in (0..count).filter(|&n| on(n)) {
        cpu.write(targets[n], (value[n / 8] >> (8 * (n & 7))) as u8)?;
    }
    Ok(())
}

fn segment_number(register: Register) -> u8 {
    match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    }
}

fn maskmovdqu<const VEX: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.vector_gate(if VEX { Gate::Avx } else { Gate::Sse })?;
    let (value, mask) = (vector(cpu, insn, 1), vector(cpu, insn, 2));
    mask_bytes(cpu, insn, &value[..2], &mask[..2])
}

fn maskmovq(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.vector_gate(Gate::Mmx)?;
    let (value, mask) = (insn.iced.op1_register().number() & 7, insn.iced.op2_register().number() & 7);
    cpu.with_mmx(|cpu| {
        let (value, mask) = (cpu.state.st[value][0], cpu.state.st[mask][0]);
        mask_bytes(cpu, insn, &[value], &[mask])
    })
}

/// VGATHER and VPGATHER: `SIZE` bytes a value, `INDEX` bytes an index, `COUNT` elements.
fn gather<const SIZE: usize, const INDEX: usize, const COUNT: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.vector_gate(Gate::Avx)?;
    let i = &insn.iced;
    let destination = i.op_register(0).number() & 15;
    let index = i.memory_index().number() & 15;
    let mask = i.op_register(2).number() & 15;
    if destination == index || destination == mask || index == mask {
        return Err(cpu.ud());
    }
    let base = match i.memory_base() {
        Register::None => 0,
        register => cpu.state.gpr[register.full_register().number() & 15],
    };
    let indices = cpu.state.ymm[index];
    let scale = i.memory_index_scale();
    for n in 0..COUNT {
        if selected(&cpu.state.ymm[mask], SIZE, n) {
            let raw = element(&indices, INDEX, n);
            let signed = if INDEX == 4 { i64::from(raw as u32 as i32) as u64 } else { raw };
            let offset =
                base.wrapping_add(signed.wrapping_mul(u64::from(scale))).wrapping_add(i.memory_displacement64())
                    & insn.address_mask;
            let linear = cpu.segmented(insn.seg, offset, SIZE as u32, false)?;
            let value = read_element(cpu, linear, SIZE)?;
            set_element(&mut cpu.state.ymm[destination], SIZE, n, value);
        }
        set_element(&mut cpu.state.ymm[mask], SIZE, n, 0);
    }
    // Everything above the elements is zeroed, and all of the mask.
    cpu.state.ymm[mask] = [0; 4];
    let bytes = SIZE * COUNT;
    for (slot, value) in cpu.state.ymm[destination].iter_mut().enumerate() {
        if slot * 8 >= bytes {
            *value = 0;
        }
    }
    Ok(())
}
