//! Which executor belongs to a system instruction.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::decode::Handler;

use super::{
    control, debug_registers, far, far_return, fast, flags, interrupt, io, msr, rights, segment_moves, tables, time,
    tlb, vmx_instructions, wait,
};

/// The executor of a system instruction, or none if this group does not know it.
#[must_use]
pub fn select(instruction: &Instruction) -> Option<Handler> {
    by_code(instruction).or_else(|| by_mnemonic(instruction.mnemonic()))
}

/// Instructions whose mnemonic is shared with others.
fn by_code(instruction: &Instruction) -> Option<Handler> {
    let segment =
        |k: u32| instruction.op_kind(k) == OpKind::Register && instruction.op_register(k).is_segment_register();
    Some(match instruction.code() {
        Code::Mov_r32_cr | Code::Mov_r64_cr => control::mov_from_cr,
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => control::mov_to_cr,
        Code::Mov_r32_dr | Code::Mov_r64_dr => debug_registers::mov_from_dr,
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => debug_registers::mov_to_dr,
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => segment_moves::mov_from,
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => segment_moves::mov_to,
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 | Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 => far::jmp_far,
        Code::Call_ptr1616 | Code::Call_ptr1632 | Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664 => {
            far::call_far
        }
        Code::Insb_m8_DX
        | Code::Insw_m16_DX
        | Code::Insd_m32_DX
        | Code::Outsb_DX_m8
        | Code::Outsw_DX_m16
        | Code::Outsd_DX_m32 => io::string,
        _ => match instruction.mnemonic() {
            Mnemonic::Push if segment(0) => segment_moves::push,
            Mnemonic::Pop if segment(0) => segment_moves::pop,
            _ => return None,
        },
    })
}

fn by_mnemonic(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Retf => far_return::ret_far,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => far_return::iret,
        Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Into | Mnemonic::Int1 => interrupt::int,
        Mnemonic::Syscall => fast::syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => fast::sysret,
        Mnemonic::Sysenter => fast::sysenter,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => fast::sysexit,
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => segment_moves::load_far,
        Mnemonic::Swapgs => segment_moves::swapgs,
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => segment_moves::base,
        Mnemonic::Clts => control::clts,
        Mnemonic::Lmsw => control::lmsw,
        Mnemonic::Smsw => control::smsw,
        Mnemonic::Lgdt | Mnemonic::Lidt => tables::load_table,
        Mnemonic::Sgdt | Mnemonic::Sidt => tables::store_table,
        Mnemonic::Sldt | Mnemonic::Str => tables::store_selector,
        Mnemonic::Lldt => tables::lldt,
        Mnemonic::Ltr => tables::ltr,
        Mnemonic::Lar => rights::lar,
        Mnemonic::Lsl => rights::lsl,
        Mnemonic::Verr => rights::verr,
        Mnemonic::Verw => rights::verw,
        Mnemonic::Arpl => rights::arpl,
        Mnemonic::Invlpg => tlb::invlpg,
        Mnemonic::Invpcid => tlb::invpcid,
        Mnemonic::Invd => tlb::invd,
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => tlb::wbinvd,
        Mnemonic::Rdmsr => msr::rdmsr,
        Mnemonic::Wrmsr => msr::wrmsr,
        Mnemonic::Rdtsc => time::rdtsc,
        Mnemonic::Rdtscp => time::rdtscp,
        Mnemonic::Rdpid => time::rdpid,
        Mnemonic::Rdpmc => time::rdpmc,
        Mnemonic::Rdrand | Mnemonic::Rdseed => time::random,
        Mnemonic::Cli => flags::cli,
        Mnemonic::Sti => flags::sti,
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => flags::pushf,
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => flags::popf,
        Mnemonic::Clac | Mnemonic::Stac => flags::clac_stac,
        Mnemonic::In => io::input,
        Mnemonic::Out => io::output,
        Mnemonic::Hlt => wait::hlt,
        Mnemonic::Monitor => wait::monitor,
        Mnemonic::Mwait => wait::mwait,
        Mnemonic::Cpuid => vmx_instructions::cpuid,
        Mnemonic::Xsetbv => vmx_instructions::xsetbv,
        Mnemonic::Xgetbv => vmx_instructions::xgetbv,
        Mnemonic::Vmcall => vmx_instructions::vmcall,
        Mnemonic::Vmclear
        | Mnemonic::Vmlaunch
        | Mnemonic::Vmptrld
        | Mnemonic::Vmptrst
        | Mnemonic::Vmread
        | Mnemonic::Vmresume
        | Mnemonic::Vmwrite
        | Mnemonic::Vmxoff
        | Mnemonic::Vmxon
        | Mnemonic::Invept
        | Mnemonic::Invvpid => vmx_instructions::vmx,
        Mnemonic::Getsec | Mnemonic::Vmfunc | Mnemonic::Rsm | Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => {
            vmx_instructions::undefined
        }
        _ => return None,
    })
}
