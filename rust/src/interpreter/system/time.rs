//! RDTSC, RDTSCP, RDPID, RDPMC, RDRAND, RDSEED.
//!
//! SDM vol. 2; vol. 3, 26.1.3 and 26.3. The counter with the VMCS's offset and scaling is `vmx`'s.

use iced_x86::Code;

use crate::clock::Clock;
use crate::cpu::Cpu;
use crate::decode::Insn;
use crate::state::{cr, flag, gpr};
use crate::stop::Exec;
use crate::vmx::bits::{primary, secondary};
use crate::vmx::{Feature, reason};

impl Cpu {
    fn check_time_stamp(&mut self) -> Exec {
        if self.state.cr4 & cr::CR4_TSD != 0 && self.cpl() != 0 {
            return Err(self.gp0());
        }
        Ok(())
    }

    fn set_edx_eax(&mut self, value: u64) {
        self.state.gpr[gpr::RAX] = value & 0xffff_ffff;
        self.state.gpr[gpr::RDX] = value >> 32;
    }
}

/// RDTSC.
pub(super) fn rdtsc(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    cpu.check_time_stamp()?;
    cpu.check_primary(primary::RDTSC, reason::RDTSC, 0)?;
    let value = cpu.read_tsc()?;
    cpu.set_edx_eax(value);
    Ok(())
}

/// RDTSCP: #UD without "enable RDTSCP".
pub(super) fn rdtscp(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if !cpu.enabled(secondary::RDTSCP) {
        return Err(cpu.ud());
    }
    cpu.check_time_stamp()?;
    cpu.check_primary(primary::RDTSC, reason::RDTSCP, 0)?;
    let value = cpu.read_tsc()?;
    cpu.set_edx_eax(value);
    cpu.state.gpr[gpr::RCX] = cpu.state.tsc_aux & 0xffff_ffff;
    Ok(())
}

/// RDPID: #UD without "enable RDTSCP".
pub(super) fn rdpid(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if !cpu.enabled(secondary::RDTSCP) {
        return Err(cpu.ud());
    }
    let value = cpu.state.tsc_aux & 0xffff_ffff;
    cpu.set_gpr_operand(insn, 0, value);
    Ok(())
}

/// RDPMC: there are no counters.
pub(super) fn rdpmc(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.state.cr4 & cr::CR4_PCE == 0 && cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    cpu.check_primary(primary::RDPMC, reason::RDPMC, 0)?;
    Err(cpu.gp0())
}

/// RDRAND and RDSEED: CF = 1, the other status flags 0.
pub(super) fn random(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let seed = matches!(insn.iced.code(), Code::Rdseed_r16 | Code::Rdseed_r32 | Code::Rdseed_r64);
    cpu.needs(if seed { Feature::Rdseed } else { Feature::Rdrand })?;
    cpu.check_random(seed, insn)?;
    let value = random_word(cpu);
    cpu.set_gpr_operand(insn, 0, value);
    cpu.state.rflags = cpu.state.rflags & !flag::STATUS | flag::CF;
    Ok(())
}

/// The host's random numbers; under virtual time a function of the instruction count alone, so that two
/// runs are the same.
fn random_word(cpu: &Cpu) -> u64 {
    if matches!(cpu.clock, Clock::Host { .. }) {
        let mut bytes = [0_u8; 8];
        // SAFETY: `bytes` has room for the 8 bytes that the kernel may write.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got == bytes.len() as isize {
            return u64::from_le_bytes(bytes);
        }
    }
    // The finalizer of SplitMix64.
    let mut z = cpu.state.retired.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
