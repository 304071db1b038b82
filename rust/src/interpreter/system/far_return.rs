//! RET far and IRET: back to a segment of the same or of an outer privilege level.
//!
//! SDM vol. 2, RET and IRET/IRETD/IRETQ; vol. 3, 5.8.6, 6.12.1, 20.3. IRET with NT is a task switch (`task`).

use iced_x86::Code;

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::interpreter::events::blocking;
use crate::state::{Segment, cr, flag, gpr, seg};
use crate::stop::{Exec, vector};

use super::segment::{Descriptor, access, null_stack, selector_error};

/// Pin-based controls (SDM table 25-5).
const NMI_EXITING: u32 = 1 << 3;
const VIRTUAL_NMIS: u32 = 1 << 5;

/// RFLAGS bits that IRET and POPF load from a 16-bit image whatever the privilege.
const FLAGS_ALWAYS: u64 = flag::STATUS | flag::TF | flag::DF | flag::NT;

/// What a return to an outer privilege level, or an IRET in 64-bit mode, puts in SS:RSP.
struct OuterStack {
    segment: Segment,
    pointer: u64,
}

/// RET far, with or without an immediate.
pub(super) fn ret_far(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (width, extra) = match insn.iced.code() {
        Code::Retfw => (2, 0),
        Code::Retfw_imm16 => (2, u64::from(insn.iced.immediate16())),
        Code::Retfd => (4, 0),
        Code::Retfd_imm16 => (4, u64::from(insn.iced.immediate16())),
        Code::Retfq_imm16 => (8, u64::from(insn.iced.immediate16())),
        _ => (8, 0),
    };
    let rip = cpu.peek(width, 0)?;
    let selector = cpu.peek(width, width)? as u16;
    if !cpu.mode.protected {
        cpu.enter_code_real(selector, rip)?;
        cpu.drop_stack(2 * width + extra);
        return Ok(());
    }
    let descriptor = cpu.return_segment(selector)?;
    let rpl = (selector & 3) as u8;
    if rpl == cpu.cpl() {
        cpu.check_offset(descriptor, rip)?;
        cpu.mark_accessed(descriptor)?;
        cpu.drop_stack(2 * width + extra);
        return cpu.enter_code(descriptor, selector, rpl, rip);
    }
    let stack = cpu.outer_stack(descriptor, rpl, width, 2 * width + extra)?;
    cpu.check_offset(descriptor, rip)?;
    cpu.return_outward(descriptor, selector, rip, stack)?;
    cpu.drop_stack(extra);
    Ok(())
}

/// IRET, IRETD, IRETQ.
pub(super) fn iret(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let width = match insn.iced.code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    cpu.unblock_nmi();
    let done = if cpu.mode.v8086 {
        cpu.iret_v8086(width)
    } else if cpu.mode.protected {
        cpu.iret_protected(width)
    } else {
        cpu.iret_real(width)
    };
    if done.is_ok() {
        cpu.events.iret_unblocked_nmi = false;
        cpu.state.monitor = 0;
    }
    done
}

impl Cpu {
    /// IRET ends blocking by NMI, real or virtual, even when it faults (SDM vol. 3, 26.3 and 6.7.1).
    fn unblock_nmi(&mut self) {
        let concerned = self.ctl.pin & NMI_EXITING == 0 || self.ctl.pin & VIRTUAL_NMIS != 0;
        if concerned && self.state.interruptibility & blocking::NMI != 0 {
            self.state.interruptibility &= !blocking::NMI;
            self.events.iret_unblocked_nmi = true;
        }
    }

    fn iret_real(&mut self, width: u64) -> Exec {
        let (rip, selector, flags) =
            (self.peek(width, 0)?, self.peek(width, width)? as u16, self.peek(width, 2 * width)?);
        self.enter_code_real(selector, rip)?;
        self.drop_stack(3 * width);
        let mut mask = FLAGS_ALWAYS | flag::IF | flag::IOPL;
        if width == 4 {
            mask |= flag::RF | flag::AC | flag::ID;
        }
        self.load_flags(flags, mask);
        Ok(())
    }

    /// IRET in virtual-8086 mode: IOPL 3, or the virtual interrupt flag (SDM vol. 3, 20.2.8 and 20.3).
    fn iret_v8086(&mut self, width: u64) -> Exec {
        let iopl3 = self.state.rflags & flag::IOPL == flag::IOPL;
        let virtual_if = !iopl3 && self.state.cr4 & cr::CR4_VME != 0 && width == 2;
        if !iopl3 && !virtual_if {
            return Err(self.gp0());
        }
        let (rip, selector, mut flags) =
            (self.peek(width, 0)?, self.peek(width, width)? as u16, self.peek(width, 2 * width)?);
        let mut mask = FLAGS_ALWAYS;
        if virtual_if {
            if flags & flag::TF != 0 || flags & flag::IF != 0 && self.state.rflags & flag::VIP != 0 {
                return Err(self.gp0());
            }
            mask |= flag::VIF;
            flags = flags & !flag::VIF | if flags & flag::IF != 0 { flag::VIF } else { 0 };
        } else {
            mask |= flag::IF;
            if width == 4 {
                mask |= flag::RF | flag::AC | flag::ID;
            }
        }
        self.enter_code_real(selector, rip)?;
        self.drop_stack(3 * width);
        self.load_flags(flags, mask);
        Ok(())
    }

    fn iret_protected(&mut self, width: u64) -> Exec {
        if self.state.rflags & flag::NT != 0 {
            return Err(if self.mode.long { self.gp0() } else { self.task_return() });
        }
        let (rip, selector, flags) =
            (self.peek(width, 0)?, self.peek(width, width)? as u16, self.peek(width, 2 * width)?);
        let cpl = self.cpl();
        if flags & flag::VM != 0 && width == 4 && cpl == 0 && !self.mode.long {
            return self.iret_to_v8086(rip, selector, flags);
        }
        let in_64 = self.mode.bits == Bits::B64;
        let descriptor = self.return_segment(selector)?;
        let rpl = (selector & 3) as u8;
        let mask = self.iret_flags_mask(width);
        if rpl == cpl && !in_64 {
            self.check_offset(descriptor, rip)?;
            self.mark_accessed(descriptor)?;
            self.drop_stack(3 * width);
            self.enter_code(descriptor, selector, rpl, rip)?;
        } else {
            let stack = self.outer_stack(descriptor, rpl, width, 3 * width)?;
            self.check_offset(descriptor, rip)?;
            self.return_outward(descriptor, selector, rip, stack)?;
        }
        self.load_flags(flags, mask);
        Ok(())
    }

    /// Flags that IRET may change at the current privilege (SDM vol. 2, IRET).
    fn iret_flags_mask(&self, width: u64) -> u64 {
        let cpl = u64::from(self.cpl());
        let mut mask = FLAGS_ALWAYS;
        if width != 2 {
            mask |= flag::RF | flag::AC | flag::ID;
        }
        if cpl <= (self.state.rflags & flag::IOPL) >> 12 {
            mask |= flag::IF;
        }
        if cpl == 0 {
            mask |= flag::IOPL;
            if width != 2 {
                mask |= flag::VIF | flag::VIP;
            }
        }
        mask
    }

    /// Return to virtual-8086 mode (SDM vol. 3, 20.2.5).
    fn iret_to_v8086(&mut self, rip: u64, selector: u16, flags: u64) -> Exec {
        let mut words = [0_u64; 6];
        for (k, word) in words.iter_mut().enumerate() {
            *word = self.peek(4, 12 + 4 * k as u64)?;
        }
        if rip > 0xffff {
            return Err(self.gp0());
        }
        let all = FLAGS_ALWAYS | flag::RF | flag::AC | flag::ID | flag::IF | flag::IOPL | flag::VIF | flag::VIP;
        self.load_flags(flags, all | flag::VM);
        self.update_mode();
        self.state.gpr[gpr::RSP] = words[0] & 0xffff_ffff;
        let registers = [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS];
        for (register, word) in registers.into_iter().zip(&words[1..]) {
            self.load_segment_real(register, *word as u16);
        }
        self.load_segment_real(seg::CS, selector);
        self.update_mode();
        self.next_rip = rip;
        Ok(())
    }

    /// The code segment of a far return (SDM vol. 2, RET and IRET).
    fn return_segment(&mut self, selector: u16) -> Exec<Descriptor> {
        if selector & 0xfffc == 0 {
            return Err(self.gp0());
        }
        let descriptor = self.descriptor(selector, vector::GP)?;
        let rpl = (selector & 3) as u8;
        let dpl = descriptor.dpl();
        let allowed = if descriptor.is_conforming() { dpl <= rpl } else { dpl == rpl };
        if !descriptor.is_code() || rpl < self.cpl() || !allowed {
            return Err(self.gp_selector(selector));
        }
        self.check_code_size(selector, descriptor)?;
        if !descriptor.is_present() {
            return Err(self.raise(vector::NP, selector_error(selector)));
        }
        Ok(descriptor)
    }

    /// SS:RSP from the frame, `offset` bytes above the top, with their checks.
    fn outer_stack(&mut self, code: Descriptor, rpl: u8, width: u64, offset: u64) -> Exec<OuterStack> {
        let pointer = self.peek(width, offset)?;
        let selector = self.peek(width, offset + width)? as u16;
        if selector & 0xfffc == 0 {
            let to_64 = self.mode.long && code.access() & access::LONG != 0;
            if !to_64 || rpl == 3 || (selector & 3) as u8 != rpl {
                return Err(self.gp0());
            }
            return Ok(OuterStack { segment: null_stack(selector, rpl), pointer });
        }
        Ok(OuterStack { segment: self.stack_segment_for(selector, rpl, vector::GP)?, pointer })
    }

    /// Loads CS:RIP and SS:RSP and drops data segments that the outer level may not use
    /// (SDM vol. 3, 5.8.6).
    fn return_outward(&mut self, code: Descriptor, selector: u16, rip: u64, stack: OuterStack) -> Exec {
        let rpl = (selector & 3) as u8;
        let outward = rpl > self.cpl();
        self.mark_accessed(code)?;
        let old_pointer = self.state.gpr[gpr::RSP];
        self.state.seg[seg::SS] = stack.segment;
        self.enter_code(code, selector, rpl, rip)?;
        self.state.gpr[gpr::RSP] = if self.mode.bits == Bits::B64 || self.mode.stack32 {
            stack.pointer
        } else {
            old_pointer & !0xffff | stack.pointer & 0xffff
        };
        if outward {
            for register in [seg::ES, seg::DS, seg::FS, seg::GS] {
                let segment = &mut self.state.seg[register];
                let conforming = access::CODE | access::DOWN_CONFORMING;
                let dpl = (segment.access >> 5 & 3) as u8;
                if segment.access & access::UNUSABLE == 0 && segment.access & conforming != conforming && dpl < rpl {
                    // The base stays: nested hypervisors leave FS null but usable, with a base that must survive.
                    *segment = Segment { access: access::UNUSABLE, base: segment.base, ..Segment::default() };
                }
            }
        }
        Ok(())
    }

    /// Replaces the RFLAGS bits in `mask`.
    pub(super) fn load_flags(&mut self, flags: u64, mask: u64) {
        self.state.rflags = self.state.rflags & !mask | flags & mask | 2;
        self.update_mode();
    }
}
