//! Port I/O: IN, OUT, INS, OUTS, with the I/O permission bitmap of the TSS.
//!
//! SDM vol. 1, 19.5; vol. 3, 26.1.3. What exits and what a port
//! answers is `vmx`'s, with the results that L0 hands back (`state.replay`).

use iced_x86::{Code, OpKind, Register};

use crate::cpu::Cpu;
use crate::decode::Insn;
use crate::interpreter::events::BREAKPOINT_ENABLED;
use crate::state::{cr, flag, gpr, seg};
use crate::stop::{Exec, Stop};

use super::segment::access;

/// DR7 R/W field: I/O.
const BREAK_IO: u64 = 2;

/// An access to a port.
#[derive(Clone, Copy)]
struct Access {
    port: u16,
    width: u32,
    input: bool,
    string: bool,
    rep: bool,
    immediate: bool,
}

impl Cpu {
    /// IOPL, else the bits of the TSS for every byte of the access (SDM vol. 1, 19.5.2).
    fn check_io_permission(&mut self, port: u16, width: u32) -> Exec {
        let iopl = (self.state.rflags & flag::IOPL) >> 12;
        if !self.mode.v8086 && u64::from(self.cpl()) <= iopl {
            return Ok(());
        }
        let tr = self.state.seg[seg::TR];
        if tr.access & access::UNUSABLE != 0 || tr.access & 8 == 0 || tr.limit < 103 {
            return Err(self.gp0());
        }
        let at = |offset: u64| tr.base.wrapping_add(offset);
        let map = u64::from(self.read_system::<u16>(at(102))?);
        let offset = map + u64::from(port / 8);
        // Two bytes are read whatever the width.
        if offset + 1 > tr.limit {
            return Err(self.gp0());
        }
        let bits = self.read_system::<u16>(at(offset))?;
        if bits >> (port % 8) & ((1 << width) - 1) != 0 {
            return Err(self.gp0());
        }
        Ok(())
    }

    /// The access itself, after permission: the replayed result, or the VM exit, or nothing there.
    fn port(&mut self, a: Access, data: u64, insn: &Insn) -> Exec<u64> {
        if a.string {
            self.state.assist_data = data;
        }
        let width = a.width as u8;
        self.check_port(a.port, width, a.input, a.string, a.rep, a.immediate, insn)?;
        let value = if a.input {
            self.port_in(a.port, width)
        } else {
            self.port_out(a.port, width, data);
            0
        };
        self.io_breakpoint(a.port, a.width);
        Ok(value)
    }

    /// I/O breakpoints, with CR4.DE (SDM vol. 3, 17.2.4 and 17.3.1.2).
    fn io_breakpoint(&mut self, port: u16, width: u32) {
        if self.state.dr7 & 0xff == 0 || self.state.cr4 & cr::CR4_DE == 0 {
            return;
        }
        let armed = self.armed_breakpoints(BREAK_IO);
        let (first, last) = (u64::from(port), u64::from(port) + u64::from(width) - 1);
        for n in 0..4 {
            let length = self.state.dr7 >> (18 + 4 * n) & 3;
            let start = self.state.dr[n] & !length;
            if armed >> n & 1 != 0 && start <= last && first <= start + length {
                self.state.pending_debug |= 1 << n | BREAKPOINT_ENABLED;
            }
        }
    }
}

/// IN.
pub(super) fn input(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let a = plain(cpu, insn);
    cpu.check_io_permission(a.port, a.width)?;
    let value = cpu.port(a, 0, insn)?;
    cpu.set_gpr(gpr::RAX, u64::from(a.width), value);
    Ok(())
}

/// OUT.
pub(super) fn output(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let a = plain(cpu, insn);
    cpu.check_io_permission(a.port, a.width)?;
    let data = cpu.state.gpr[gpr::RAX] & (!0 >> (64 - 8 * a.width));
    cpu.port(a, data, insn)?;
    Ok(())
}

/// IN and OUT: port in an immediate byte or in DX.
fn plain(cpu: &Cpu, insn: &Insn) -> Access {
    let code = insn.iced.code();
    let input = matches!(
        code,
        Code::In_AL_imm8 | Code::In_AX_imm8 | Code::In_EAX_imm8 | Code::In_AL_DX | Code::In_AX_DX | Code::In_EAX_DX
    );
    let width = match code {
        Code::In_AL_imm8 | Code::In_AL_DX | Code::Out_imm8_AL | Code::Out_DX_AL => 1,
        Code::In_AX_imm8 | Code::In_AX_DX | Code::Out_imm8_AX | Code::Out_DX_AX => 2,
        _ => 4,
    };
    let operand = u32::from(input);
    let immediate = insn.iced.op_kind(operand) == OpKind::Immediate8;
    let port = if immediate { u16::from(insn.iced.immediate8()) } else { cpu.state.gpr[gpr::RDX] as u16 };
    Access { port, width, input, string: false, rep: false, immediate }
}

/// INS and OUTS, one iteration; with REP the instruction comes back for the next.
pub(super) fn string(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let iced = &insn.iced;
    let (width, input) = match iced.code() {
        Code::Insb_m8_DX => (1, true),
        Code::Insw_m16_DX => (2, true),
        Code::Insd_m32_DX => (4, true),
        Code::Outsb_DX_m8 => (1, false),
        Code::Outsw_DX_m16 => (2, false),
        _ => (4, false),
    };
    let mask = match iced.op_kind(u32::from(!input)) {
        OpKind::MemoryESDI | OpKind::MemorySegSI => 0xffff,
        OpKind::MemoryESEDI | OpKind::MemorySegESI => 0xffff_ffff,
        _ => !0,
    };
    let rep = iced.has_rep_prefix() || iced.has_repne_prefix();
    if rep && cpu.state.gpr[gpr::RCX] & mask == 0 {
        return Ok(());
    }
    let port = cpu.state.gpr[gpr::RDX] as u16;
    let a = Access { port, width, input, string: true, rep, immediate: false };
    cpu.check_io_permission(port, width)?;
    let (index, n) = if input {
        (gpr::RDI, seg::ES)
    } else {
        (gpr::RSI, (iced.memory_segment() as u32).wrapping_sub(Register::ES as u32) as usize)
    };
    let offset = cpu.state.gpr[index] & mask;
    let linear = cpu.linear(n, offset, width, input)?;
    if input {
        // The destination must be writable before the port is read; not asked again when L0 has read it.
        if cpu.state.replay_count == 0 {
            cpu.probe_write(linear, u64::from(width))?;
        }
        let value = cpu.port(a, 0, insn)?;
        cpu.write_width(linear, u64::from(width), value)?;
    } else {
        let value = cpu.read_width(linear, u64::from(width))?;
        cpu.port(a, value, insn)?;
    }
    advance(cpu, index, mask, u64::from(width));
    if rep {
        let count = (cpu.state.gpr[gpr::RCX] & mask).wrapping_sub(1);
        set_masked(cpu, gpr::RCX, mask, count);
        if count & mask != 0 {
            cpu.replay_end();
            cpu.state.retired = cpu.state.retired.wrapping_add(1);
            return Err(Stop::Again);
        }
    }
    Ok(())
}

/// Moves an index register by one element, in the direction of DF.
fn advance(cpu: &mut Cpu, index: usize, mask: u64, width: u64) {
    let step = if cpu.state.rflags & flag::DF != 0 { width.wrapping_neg() } else { width };
    let next = cpu.state.gpr[index].wrapping_add(step);
    set_masked(cpu, index, mask, next);
}

/// Writes a register by address size: 16 bits keep the rest, 32 bits zero-extend.
fn set_masked(cpu: &mut Cpu, n: usize, mask: u64, value: u64) {
    let width = match mask {
        0xffff => 2,
        0xffff_ffff => 4,
        _ => 8,
    };
    cpu.set_gpr(n, width, value);
}
