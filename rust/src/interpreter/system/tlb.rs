//! INVLPG, INVPCID, INVD, WBINVD (SDM vol. 2; vol. 3, 4.10.4).
//!
//! What is dropped from the TLBs is the `mmu`'s matter. There are no caches to write back.

use iced_x86::Code;

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::stop::Exec;
use crate::vmx::bits::{primary, secondary};
use crate::vmx::reason;

use super::operand::number;

/// INVLPG.
pub(super) fn invlpg(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    // The address is not accessed: no limit or canonicality check.
    let offset = cpu.ea(insn);
    let linear = cpu.flat_address(usize::from(insn.seg), offset);
    cpu.check_primary(primary::INVLPG, reason::INVLPG, linear)?;
    cpu.invlpg(linear);
    Ok(())
}

/// INVPCID: #UD without "enable INVPCID" (SDM vol. 3, 26.3).
pub(super) fn invpcid(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if cpu.mode.v8086 {
        return Err(cpu.ud());
    }
    cpu.check_invpcid(insn)?;
    let mask = if insn.iced.code() == Code::Invpcid_r64_m128 { !0 } else { 0xffff_ffff };
    let kind = cpu.state.gpr[number(insn.iced.op0_register())] & mask;
    let linear = cpu.mem(insn, 16, false)?;
    let descriptor = cpu.read::<u128>(linear)?;
    cpu.invpcid(kind, descriptor as u64, (descriptor >> 64) as u64)
}

/// INVD always exits (SDM vol. 3, 26.1.2).
pub(super) fn invd(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    Err(cpu.exit_always(reason::INVD))
}

/// WBINVD and WBNOINVD.
pub(super) fn wbinvd(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    cpu.check_secondary(secondary::WBINVD, reason::WBINVD, 0)
}

impl Cpu {
    /// Base + offset, cut to the mode's address size, unchecked.
    pub(super) fn flat_address(&self, n: usize, offset: u64) -> u64 {
        let base = self.state.seg[n & 7].base;
        if self.mode.bits == Bits::B64 {
            if n >= 4 { base.wrapping_add(offset) } else { offset }
        } else {
            base.wrapping_add(offset) & 0xffff_ffff
        }
    }
}
