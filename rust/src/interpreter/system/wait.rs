//! HLT, MONITOR, MWAIT (SDM vol. 2; vol. 3, 26.1.3 and 26.3).
//!
//! How a halted core waits is the run loop's matter.

use iced_x86::Code;

use crate::cpu::Cpu;
use crate::decode::Insn;
use crate::state::gpr;
use crate::stop::Exec;
use crate::vmx::bits::primary;
use crate::vmx::{Feature, reason};

/// Activity state.
const HALTED: u64 = 1;

/// HLT.
pub(super) fn hlt(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    cpu.check_primary(primary::HLT, reason::HLT, 0)?;
    cpu.state.activity = HALTED;
    Ok(())
}

/// MONITOR: #UD outside CPL 0; the address is checked as a load of a byte.
pub(super) fn monitor(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.needs(Feature::Monitor)?;
    if cpu.cpl() != 0 {
        return Err(cpu.ud());
    }
    cpu.check_primary(primary::MONITOR, reason::MONITOR, 0)?;
    if cpu.state.gpr[gpr::RCX] as u32 != 0 {
        return Err(cpu.gp0());
    }
    let mask = match insn.iced.code() {
        Code::Monitorw => 0xffff,
        Code::Monitord => 0xffff_ffff,
        _ => !0,
    };
    let n = insn.iced.segment_prefix();
    let n = if n == iced_x86::Register::None { crate::state::seg::DS } else { super::segment_index(n) };
    let offset = cpu.state.gpr[gpr::RAX] & mask;
    let linear = cpu.linear(n, offset, 1, false)?;
    cpu.read::<u8>(linear)?;
    cpu.state.monitor = (linear >> 12).wrapping_add(1);
    Ok(())
}

/// MWAIT. Where it does not exit it ends at once: waking early is allowed (SDM vol. 2, MWAIT).
pub(super) fn mwait(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    cpu.needs(Feature::Monitor)?;
    if cpu.cpl() != 0 {
        return Err(cpu.ud());
    }
    let armed = u64::from(cpu.state.monitor != 0);
    cpu.check_primary(primary::MWAIT, reason::MWAIT, armed)?;
    if cpu.state.gpr[gpr::RCX] as u32 > 1 {
        return Err(cpu.gp0());
    }
    cpu.state.monitor = 0;
    Ok(())
}
