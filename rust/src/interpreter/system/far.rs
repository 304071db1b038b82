//! Far JMP and CALL: code segments, call gates; task gates and TSSs go on to `task`.
//!
//! SDM vol. 2, JMP and CALL; vol. 3, 5.8. Far returns are in `far_return`.

use iced_x86::{Code, OpKind};

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::interpreter::events::Stack;
use crate::state::{Segment, gpr, seg};
use crate::stop::{Exec, vector};

use super::segment::{Descriptor, access, canonical, null_stack, selector_error, system_type};
use super::task::TaskSource;

/// Operand size in bytes of a far pointer.
fn pointer_width(code: Code) -> u64 {
    match code {
        Code::Jmp_ptr1616 | Code::Jmp_m1616 | Code::Call_ptr1616 | Code::Call_m1616 => 2,
        Code::Jmp_m1664 | Code::Call_m1664 => 8,
        _ => 4,
    }
}

/// Where a call gate leads.
struct Gate {
    descriptor: Descriptor,
    selector: u16,
    offset: u64,
    /// Width of what a CALL pushes.
    width: u64,
    /// Parameters that a CALL to another stack copies.
    count: u64,
}

/// JMP ptr16:16/32 and m16:16/32/64.
pub(super) fn jmp_far(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (selector, offset) = cpu.far_pointer(insn, pointer_width(insn.iced.code()))?;
    let cpl = cpu.cpl();
    if !cpu.mode.protected {
        return cpu.enter_code_real(selector, offset);
    }
    let descriptor = cpu.far_target(selector)?;
    if descriptor.is_code_or_data() {
        cpu.check_direct(selector, descriptor)?;
        cpu.check_offset(descriptor, offset)?;
        return cpu.enter_code(descriptor, selector, cpl, offset);
    }
    let gate = cpu.call_gate(selector, descriptor, TaskSource::Jmp)?;
    if !gate.descriptor.is_conforming() && gate.descriptor.dpl() != cpl {
        return Err(cpu.gp_selector(gate.selector));
    }
    cpu.check_gate_target(&gate)?;
    cpu.enter_code(gate.descriptor, gate.selector, cpl, gate.offset)
}

/// CALL ptr16:16/32 and m16:16/32/64.
pub(super) fn call_far(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let width = pointer_width(insn.iced.code());
    let (selector, offset) = cpu.far_pointer(insn, width)?;
    let cpl = cpu.cpl();
    let back = [cpu.state.seg[seg::CS].selector, cpu.next_rip];
    let stack = cpu.current_stack();
    if !cpu.mode.protected {
        if offset > cpu.state.seg[seg::CS].limit {
            return Err(cpu.gp0());
        }
        let pointer = cpu.push_frame(&stack, width, &back)?;
        cpu.enter_code_real(selector, offset)?;
        cpu.state.gpr[gpr::RSP] = pointer;
        return Ok(());
    }
    let descriptor = cpu.far_target(selector)?;
    if descriptor.is_code_or_data() {
        cpu.check_direct(selector, descriptor)?;
        cpu.check_offset(descriptor, offset)?;
        let pointer = cpu.push_frame(&stack, width, &back)?;
        cpu.enter_code(descriptor, selector, cpl, offset)?;
        cpu.state.gpr[gpr::RSP] = pointer;
        return Ok(());
    }
    let gate = cpu.call_gate(selector, descriptor, TaskSource::Call)?;
    cpu.check_gate_target(&gate)?;
    if gate.descriptor.is_conforming() || gate.descriptor.dpl() == cpl {
        let pointer = cpu.push_frame(&stack, gate.width, &back)?;
        cpu.enter_code(gate.descriptor, gate.selector, cpl, gate.offset)?;
        cpu.state.gpr[gpr::RSP] = pointer;
        return Ok(());
    }
    cpu.call_inward(&gate, back)
}

impl Cpu {
    /// The far pointer in the instruction or in memory.
    fn far_pointer(&mut self, insn: &Insn, width: u64) -> Exec<(u16, u64)> {
        let iced = &insn.iced;
        match iced.op_kind(0) {
            OpKind::FarBranch16 => Ok((iced.far_branch_selector(), u64::from(iced.far_branch16()))),
            OpKind::FarBranch32 => Ok((iced.far_branch_selector(), u64::from(iced.far_branch32()))),
            _ => {
                let linear = self.mem(insn, width as u32 + 2, false)?;
                let offset = self.read_width(linear, width)?;
                let selector = self.read::<u16>(linear.wrapping_add(width))?;
                Ok((selector, offset))
            }
        }
    }

    /// The descriptor of a far pointer: not null, within its table.
    fn far_target(&mut self, selector: u16) -> Exec<Descriptor> {
        if selector & 0xfffc == 0 {
            return Err(self.gp0());
        }
        self.descriptor(selector, vector::GP)
    }

    /// A code segment reached without a gate (SDM vol. 3, 5.8.1).
    fn check_direct(&mut self, selector: u16, descriptor: Descriptor) -> Exec {
        let cpl = self.cpl();
        let rpl = (selector & 3) as u8;
        let allowed =
            if descriptor.is_conforming() { descriptor.dpl() <= cpl } else { rpl <= cpl && descriptor.dpl() == cpl };
        if !descriptor.is_code() || !allowed {
            return Err(self.gp_selector(selector));
        }
        self.check_code_size(selector, descriptor)?;
        if !descriptor.is_present() {
            return Err(self.raise(vector::NP, selector_error(selector)));
        }
        Ok(())
    }

    /// IA-32e mode: L and D may not both be 1.
    pub(super) fn check_code_size(&mut self, selector: u16, descriptor: Descriptor) -> Exec {
        let both = access::LONG | access::BIG;
        if self.mode.long && descriptor.access() & both == both {
            return Err(self.gp_selector(selector));
        }
        Ok(())
    }

    /// The target offset must be canonical, or within the new segment.
    pub(super) fn check_offset(&mut self, descriptor: Descriptor, offset: u64) -> Exec {
        let long = self.mode.long && descriptor.access() & access::LONG != 0;
        if long && canonical(offset) || !long && offset <= descriptor.limit() {
            return Ok(());
        }
        Err(self.gp0())
    }

    /// A descriptor that is not code or data: a call gate, or the task switch behind it
    /// (SDM vol. 3, 5.8.3 and 5.8.3.1).
    fn call_gate(&mut self, selector: u16, descriptor: Descriptor, source: TaskSource) -> Exec<Gate> {
        let kind = descriptor.kind();
        let is_gate = kind == system_type::CALL32 || kind == system_type::CALL16 && !self.mode.long;
        let is_task = matches!(kind, system_type::TASK | system_type::TSS16 | system_type::TSS32);
        if is_task && !self.mode.long {
            return Err(self.far_task(selector, descriptor, source));
        }
        if !is_gate || descriptor.dpl() < self.cpl() || (selector & 3) as u8 > descriptor.dpl() {
            return Err(self.gp_selector(selector));
        }
        let mut gate = descriptor;
        if self.mode.long {
            if self.descriptor_address(selector, 16).is_none() {
                return Err(self.gp_selector(selector));
            }
            gate.high = self.read_system::<u64>(descriptor.linear.wrapping_add(8))?;
            if gate.high >> 40 & 0x1f != 0 {
                return Err(self.gp_selector(selector));
            }
        }
        if !gate.is_present() {
            return Err(self.raise(vector::NP, selector_error(selector)));
        }
        let target = self.far_target(gate.gate_selector())?;
        if !target.is_code() || target.dpl() > self.cpl() {
            return Err(self.gp_selector(gate.gate_selector()));
        }
        if self.mode.long && target.access() & (access::LONG | access::BIG) != access::LONG {
            return Err(self.gp_selector(gate.gate_selector()));
        }
        if !target.is_present() {
            return Err(self.raise(vector::NP, selector_error(gate.gate_selector())));
        }
        let (width, mask) = match (self.mode.long, kind) {
            (true, _) => (8, !0),
            (false, system_type::CALL16) => (2, 0xffff),
            (false, _) => (4, 0xffff_ffff),
        };
        Ok(Gate {
            descriptor: target,
            selector: gate.gate_selector(),
            offset: gate.gate_offset() & mask,
            width,
            count: if self.mode.long { 0 } else { gate.low >> 32 & 31 },
        })
    }

    fn check_gate_target(&mut self, gate: &Gate) -> Exec {
        self.check_offset(gate.descriptor, gate.offset)
    }

    /// CALL through a gate to a more privileged segment: another stack, with the parameters copied
    /// (SDM vol. 3, 5.8.5).
    fn call_inward(&mut self, gate: &Gate, back: [u64; 2]) -> Exec {
        let cpl = gate.descriptor.dpl();
        let stack = if self.mode.long {
            let pointer = self.tss_word64(4 + u64::from(cpl) * 8)?;
            Stack { segment: Segment::default(), pointer, flat: true, inner: true, error: 0 }
        } else {
            let (segment, pointer) = self.tss_stack(cpl)?;
            let error = selector_error(segment.selector as u16).unwrap_or(0);
            Stack { segment, pointer, flat: false, inner: true, error }
        };
        let mut frame = [0_u64; 4 + 31];
        frame[0] = self.state.seg[seg::SS].selector;
        frame[1] = self.state.gpr[gpr::RSP];
        let mut n = 2;
        for k in (0..gate.count).rev() {
            frame[n] = self.peek(gate.width, k * gate.width)?;
            n += 1;
        }
        frame[n..n + 2].copy_from_slice(&back);
        let pointer = self.push_frame(&stack, gate.width, &frame[..n + 2])?;
        self.mark_accessed(gate.descriptor)?;
        self.state.seg[seg::SS] = if self.mode.long { null_stack(u16::from(cpl), cpl) } else { stack.segment };
        self.state.gpr[gpr::RSP] = pointer;
        self.enter_code(gate.descriptor, gate.selector, cpl, gate.offset)
    }

    /// Real-address and virtual-8086 mode: CS = selector, base = selector * 16.
    pub(super) fn enter_code_real(&mut self, selector: u16, offset: u64) -> Exec {
        if offset > self.state.seg[seg::CS].limit {
            return Err(self.gp0());
        }
        self.load_segment_real(seg::CS, selector);
        self.next_rip = offset;
        self.update_mode();
        Ok(())
    }

    /// Loads CS and the instruction pointer; `cpl` becomes CS.RPL.
    pub(super) fn enter_code(&mut self, descriptor: Descriptor, selector: u16, cpl: u8, offset: u64) -> Exec {
        self.mark_accessed(descriptor)?;
        self.state.seg[seg::CS] = descriptor.segment(selector & !3 | u16::from(cpl));
        self.set_cpl(cpl);
        self.next_rip = if self.mode.bits == Bits::B64 { offset } else { offset & 0xffff_ffff };
        Ok(())
    }
}
