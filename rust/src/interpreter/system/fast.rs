//! SYSCALL, SYSRET, SYSENTER, SYSEXIT: privilege changes with fixed flat segments.
//!
//! SDM vol. 2; vol. 3, 5.8.7 and 5.8.8. Nothing is read from descriptor tables.

use iced_x86::Code;

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::state::{Segment, cr, flag, gpr, seg};
use crate::stop::Exec;

use super::segment::{access, canonical};

/// Flat 4-GiB segment, present, accessed; `kind` holds the type.
fn flat(selector: u64, kind: u64, cpl: u64, size: u64) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        access: kind | access::S | cpl << 5 | access::PRESENT | size | access::GRANULARITY,
    }
}

/// CS (execute, read, accessed) and SS (read, write, accessed).
fn load_flat(cpu: &mut Cpu, cs: u64, ss: u64, cpl: u8, code_size: u64) {
    let rpl = u64::from(cpl);
    cpu.state.seg[seg::CS] = flat(cs & 0xfffc | rpl, 11, rpl, code_size);
    cpu.state.seg[seg::SS] = flat(ss & 0xfffc | rpl, 3, rpl, access::BIG);
    cpu.update_mode();
}

/// SYSCALL: 64-bit mode only, as on Intel processors.
pub(super) fn syscall(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.mode.bits != Bits::B64 || cpu.state.efer & cr::EFER_SCE == 0 {
        return Err(cpu.ud());
    }
    let star = cpu.state.star >> 32 & 0xfffc;
    cpu.state.gpr[gpr::RCX] = cpu.next_rip;
    cpu.state.gpr[11] = cpu.state.rflags & !flag::RF;
    cpu.next_rip = cpu.state.lstar;
    cpu.state.rflags = cpu.state.rflags & !cpu.state.fmask & !flag::RF | 2;
    load_flat(cpu, star, star + 8, 0, access::LONG);
    Ok(())
}

/// SYSRET.
pub(super) fn sysret(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if cpu.mode.bits != Bits::B64 || cpu.state.efer & cr::EFER_SCE == 0 {
        return Err(cpu.ud());
    }
    let rip = cpu.state.gpr[gpr::RCX];
    let to_64 = insn.iced.code() == Code::Sysretq;
    if cpu.cpl() != 0 || to_64 && !canonical(rip) {
        return Err(cpu.gp0());
    }
    let star = cpu.state.star >> 48;
    cpu.state.rflags = cpu.state.gpr[11] & 0x003c_7fd7 | 2;
    if to_64 {
        cpu.next_rip = rip;
        load_flat(cpu, star + 16, star + 8, 3, access::LONG);
    } else {
        cpu.next_rip = rip & 0xffff_ffff;
        load_flat(cpu, star, star + 8, 3, access::BIG);
    }
    Ok(())
}

/// SYSENTER.
pub(super) fn sysenter(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    let cs = cpu.state.sysenter_cs;
    if cpu.state.cr0 & cr::CR0_PE == 0 || cs & 0xfffc == 0 {
        return Err(cpu.gp0());
    }
    cpu.state.rflags &= !(flag::VM | flag::IF | flag::RF);
    let long = cpu.mode.long;
    let mask = if long { !0 } else { 0xffff_ffff };
    cpu.state.gpr[gpr::RSP] = cpu.state.sysenter_esp & mask;
    cpu.next_rip = cpu.state.sysenter_eip & mask;
    load_flat(cpu, cs, (cs & 0xfffc) + 8, 0, if long { access::LONG } else { access::BIG });
    Ok(())
}

/// SYSEXIT.
pub(super) fn sysexit(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let cs = cpu.state.sysenter_cs & 0xffff;
    let to_64 = insn.iced.code() == Code::Sysexitq;
    let (rip, rsp) = (cpu.state.gpr[gpr::RDX], cpu.state.gpr[gpr::RCX]);
    if cs & 0xfffc == 0 || !cpu.mode.protected || cpu.cpl() != 0 || to_64 && !(canonical(rip) && canonical(rsp)) {
        return Err(cpu.gp0());
    }
    if to_64 {
        cpu.state.gpr[gpr::RSP] = rsp;
        cpu.next_rip = rip;
        load_flat(cpu, cs + 32, cs + 40, 3, access::LONG);
    } else {
        cpu.state.gpr[gpr::RSP] = rsp & 0xffff_ffff;
        cpu.next_rip = rip & 0xffff_ffff;
        load_flat(cpu, cs + 16, cs + 24, 3, access::BIG);
    }
    Ok(())
}
