//! Segment registers as operands: MOV, PUSH, POP, LDS to LGS; SWAPGS and the FS/GS base instructions.
//!
//! The checks of a load are in `segment`.

use iced_x86::Code;

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::interpreter::events::blocking;
use crate::state::{cr, gpr, seg};
use crate::stop::Exec;

use super::segment::canonical;
use super::segment_index;

/// MOV r/m, Sreg.
pub(super) fn mov_from(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = cpu.state.seg[segment_index(insn.iced.op1_register())].selector;
    cpu.set_rm16(insn, 0, selector)
}

/// MOV Sreg, r/m. A load of SS holds interrupts and debug traps back for one instruction.
pub(super) fn mov_to(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let n = segment_index(insn.iced.op0_register());
    if n == seg::CS {
        return Err(cpu.ud());
    }
    let selector = cpu.rm16(insn, 1)?;
    cpu.load_segment(n, selector)?;
    if n == seg::SS {
        cpu.set_shadow(blocking::MOV_SS);
    }
    Ok(())
}

fn stack_width(code: Code) -> u64 {
    match code {
        Code::Pushw_ES
        | Code::Pushw_CS
        | Code::Pushw_SS
        | Code::Pushw_DS
        | Code::Pushw_FS
        | Code::Pushw_GS
        | Code::Popw_ES
        | Code::Popw_SS
        | Code::Popw_DS
        | Code::Popw_FS
        | Code::Popw_GS => 2,
        Code::Pushq_FS | Code::Pushq_GS | Code::Popq_FS | Code::Popq_GS => 8,
        _ => 4,
    }
}

/// PUSH Sreg: zero-extended.
pub(super) fn push(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = cpu.state.seg[segment_index(insn.iced.op0_register())].selector;
    let stack = cpu.current_stack();
    cpu.state.gpr[gpr::RSP] = cpu.push_frame(&stack, stack_width(insn.iced.code()), &[selector])?;
    Ok(())
}

/// POP Sreg.
pub(super) fn pop(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let n = segment_index(insn.iced.op0_register());
    let width = stack_width(insn.iced.code());
    let selector = cpu.peek(width, 0)? as u16;
    // The pointer moves by the size of the old stack.
    let old = cpu.state.gpr[gpr::RSP];
    cpu.drop_stack(width);
    let moved = std::mem::replace(&mut cpu.state.gpr[gpr::RSP], old);
    cpu.load_segment(n, selector)?;
    cpu.state.gpr[gpr::RSP] = moved;
    if n == seg::SS {
        cpu.set_shadow(blocking::MOV_SS);
    }
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS.
pub(super) fn load_far(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (n, width) = match insn.iced.code() {
        Code::Les_r16_m1616 => (seg::ES, 2),
        Code::Les_r32_m1632 => (seg::ES, 4),
        Code::Lds_r16_m1616 => (seg::DS, 2),
        Code::Lds_r32_m1632 => (seg::DS, 4),
        Code::Lss_r16_m1616 => (seg::SS, 2),
        Code::Lss_r32_m1632 => (seg::SS, 4),
        Code::Lss_r64_m1664 => (seg::SS, 8),
        Code::Lfs_r16_m1616 => (seg::FS, 2),
        Code::Lfs_r32_m1632 => (seg::FS, 4),
        Code::Lfs_r64_m1664 => (seg::FS, 8),
        Code::Lgs_r16_m1616 => (seg::GS, 2),
        Code::Lgs_r32_m1632 => (seg::GS, 4),
        _ => (seg::GS, 8),
    };
    let linear = cpu.mem(insn, width + 2, false)?;
    let offset = cpu.read_width(linear, u64::from(width))?;
    let selector = cpu.read::<u16>(linear.wrapping_add(u64::from(width)))?;
    cpu.load_segment(n, selector)?;
    cpu.set_gpr_operand(insn, 0, offset);
    Ok(())
}

/// SWAPGS: 64-bit mode, CPL 0.
pub(super) fn swapgs(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.mode.bits != Bits::B64 {
        return Err(cpu.ud());
    }
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    let s = &mut *cpu.state;
    std::mem::swap(&mut s.kernel_gs_base, &mut s.seg[seg::GS].base);
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE: 64-bit mode with CR4.FSGSBASE.
pub(super) fn base(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if cpu.mode.bits != Bits::B64 || cpu.state.cr4 & cr::CR4_FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let (n, write, width) = match insn.iced.code() {
        Code::Rdfsbase_r32 => (seg::FS, false, 4),
        Code::Rdfsbase_r64 => (seg::FS, false, 8),
        Code::Rdgsbase_r32 => (seg::GS, false, 4),
        Code::Rdgsbase_r64 => (seg::GS, false, 8),
        Code::Wrfsbase_r32 => (seg::FS, true, 4),
        Code::Wrfsbase_r64 => (seg::FS, true, 8),
        Code::Wrgsbase_r32 => (seg::GS, true, 4),
        _ => (seg::GS, true, 8),
    };
    if !write {
        let value = cpu.state.seg[n].base;
        cpu.set_gpr_operand(insn, 0, value);
        return Ok(());
    }
    let value = cpu.gpr_operand(insn, 0) & if width == 4 { 0xffff_ffff } else { !0 };
    if !canonical(value) {
        return Err(cpu.gp0());
    }
    cpu.state.seg[n].base = value;
    Ok(())
}
