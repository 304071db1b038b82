//! Which handler executes an instruction: each group is asked in turn.
//!
//! An instruction that no group takes raises #UD where CPUID does not offer it, and else stops the run.

use iced_x86::{CpuidFeature, Instruction, Mnemonic};

use super::{system, vector};
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::stop::{Exec, Stop};

/// The handler of `i`; [`unsupported`] when there is none.
#[must_use]
pub fn select(i: &Instruction) -> Handler {
    find(i).unwrap_or(unsupported)
}

/// The handler of `i`, if some group has it.
#[must_use]
pub fn find(i: &Instruction) -> Option<Handler> {
    super::select_integer(i).or_else(|| system::select(i)).or_else(|| vector::select(i))
}

/// What executes `i` on a processor that lacks a feature of it: nothing (`None`: it lacks none), #UD, or what
/// the encoding means to a processor that does not know it.
#[must_use]
pub fn not_offered(i: &Instruction, offers: &impl Fn(CpuidFeature) -> bool) -> Option<Handler> {
    if i.cpuid_features().iter().all(|f| offers(*f)) {
        return None;
    }
    match i.mnemonic() {
        // LZCNT and TZCNT are BSR and BSF with an ignored prefix.
        Mnemonic::Lzcnt => super::bits::select_scan(i, true),
        Mnemonic::Tzcnt => super::bits::select_scan(i, false),
        // Reserved NOPs: ENDBR, RDSSP, prefetches.
        _ if super::mov::is_nop(i) => None,
        _ => Some(unsupported),
    }
}

/// No handler: #UD if the instruction is not offered, else the run ends so that nobody overlooks it.
pub fn unsupported(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let offered = insn.iced.cpuid_features().iter().all(|f| cpu.model.offers(*f));
    if offered { Err(Stop::Missing) } else { Err(cpu.ud()) }
}

/// Bytes that encode no instruction, or LOCK where it is not allowed: #UD.
pub fn invalid(cpu: &mut Cpu, _: &Insn) -> Exec {
    Err(cpu.ud())
}

/// Longer than 15 bytes: #GP(0).
pub fn too_long(cpu: &mut Cpu, _: &Insn) -> Exec {
    Err(cpu.gp0())
}

/// Features (as the decoder names them) of which every instruction is implemented.
pub static OFFERED: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CPUID,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::CMOV,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::MMX,
    CpuidFeature::FXSR,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::POPCNT,
    CpuidFeature::LZCNT,
    CpuidFeature::BMI1,
    CpuidFeature::BMI2,
    CpuidFeature::ADX,
    CpuidFeature::MOVBE,
    CpuidFeature::AES,
    CpuidFeature::PCLMULQDQ,
    CpuidFeature::SHA,
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::FMA,
    CpuidFeature::F16C,
    CpuidFeature::XSAVE,
    CpuidFeature::XSAVEOPT,
    CpuidFeature::XSAVEC,
    CpuidFeature::XSAVES,
    CpuidFeature::FSGSBASE,
    CpuidFeature::RDTSCP,
    CpuidFeature::RDPID,
    CpuidFeature::TSC,
    CpuidFeature::MSR,
    CpuidFeature::RDPMC,
    CpuidFeature::SEP,
    CpuidFeature::SYSCALL,
    CpuidFeature::MONITOR,
    CpuidFeature::CLFSH,
    CpuidFeature::CLFLUSHOPT,
    CpuidFeature::CLWB,
    CpuidFeature::PAUSE,
    CpuidFeature::RDRAND,
    CpuidFeature::RDSEED,
    CpuidFeature::INVPCID,
    CpuidFeature::SMAP,
    CpuidFeature::PREFETCHW,
    CpuidFeature::VMX,
    CpuidFeature::INVEPT,
    CpuidFeature::INVVPID,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::CET_IBT,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups are asked in turn: an instruction that two of them take would hide the second one's handler,
    /// and with it a check that only that one makes.
    #[test]
    fn no_two_groups_take_one_instruction() {
        let mut twice = Vec::new();
        for code in iced_x86::Code::values() {
            let mut i = Instruction::default();
            i.set_code(code);
            if matches!(i.mnemonic(), Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence)
                || super::super::mov::is_nop(&i)
            {
                continue; // either handler will do: nothing is checked
            }
            let takers = [super::super::select_integer(&i), system::select(&i), vector::select(&i)];
            if takers.iter().flatten().count() > 1 {
                twice.push(code);
            }
        }
        assert_eq!(twice, []);
    }
}
