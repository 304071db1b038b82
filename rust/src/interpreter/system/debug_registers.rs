//! MOV to and from the debug registers (SDM vol. 3, 17.2).
//!
//! What the registers do is in `events::debug` and, for data breakpoints, in the data path.

use iced_x86::Register;

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::interpreter::events::DR6_BD;
use crate::state::cr;
use crate::stop::Exec;

use super::operand::number;

const DR7_GD: u64 = 1 << 13;
/// Bits of DR6 that a write changes: B0 to B3, BD, BS, BT. The others read as 1 (bit 12 as 0).
const DR6_WRITABLE: u64 = 0xe00f;
const DR6_FIXED: u64 = 0xffff_0ff0;
/// Bits of DR7 that a write changes; bit 10 reads as 1.
const DR7_WRITABLE: u64 = 0xffff_23ff;
const DR7_FIXED: u64 = 0x400;

/// DR0..DR7 as iced names them.
fn debug_number(register: Register) -> u8 {
    (register as u32).wrapping_sub(Register::DR0 as u32) as u8
}

/// Checks common to both directions, in the SDM's order (vol. 2, MOV; vol. 3, 26.1.3): the VM exit, which comes before
/// faults of privilege here, #UD for DR4 and DR5 with CR4.DE, privilege, then DR7.GD.
fn check(cpu: &mut Cpu, register: Register, gpr: usize, write: bool) -> Exec<u8> {
    let mut n = debug_number(register);
    if n > 7 {
        return Err(cpu.ud());
    }
    cpu.check_dr(n, gpr as u8, write)?;
    if matches!(n, 4 | 5) && cpu.state.cr4 & cr::CR4_DE != 0 {
        return Err(cpu.ud());
    }
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    if cpu.state.dr7 & DR7_GD != 0 {
        return Err(cpu.raise_debug(DR6_BD));
    }
    if matches!(n, 4 | 5) {
        n += 2;
    }
    Ok(n)
}

/// MOV r, DRn.
pub(super) fn mov_from_dr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let n = check(cpu, insn.iced.op1_register(), number(insn.iced.op0_register()), false)?;
    let value = match n {
        6 => cpu.state.dr6,
        7 => cpu.state.dr7,
        _ => cpu.state.dr[usize::from(n & 3)],
    };
    cpu.set_gpr_operand(insn, 0, value);
    Ok(())
}

/// MOV DRn, r.
pub(super) fn mov_to_dr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let n = check(cpu, insn.iced.op0_register(), number(insn.iced.op1_register()), true)?;
    let mask = if cpu.mode.bits == Bits::B64 { !0 } else { 0xffff_ffff };
    let value = cpu.gpr_operand(insn, 1) & mask;
    if n >= 6 && value >> 32 != 0 {
        return Err(cpu.gp0());
    }
    match n {
        6 => cpu.state.dr6 = value & DR6_WRITABLE | DR6_FIXED,
        7 => cpu.state.dr7 = value & DR7_WRITABLE | DR7_FIXED,
        _ => cpu.state.dr[usize::from(n & 3)] = value,
    }
    cpu.mmu_debug_changed();
    Ok(())
}
