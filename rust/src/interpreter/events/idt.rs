//! Gates: from a vector to a handler, in real-address, protected and IA-32e mode.
//!
//! SDM vol. 3, 6.10 to 6.14 and 20.1.4; vol. 2, "INT n". Task gates end in the task-switch VM exit.

use crate::cpu::Cpu;
use crate::interpreter::system::segment::{Descriptor, access, canonical, null_stack, selector_error, system_type};
use crate::interpreter::system::task::TaskSource;
use crate::state::{Segment, flag, gpr, seg};
use crate::stop::{Event, EventKind, Exec, vector};

use super::frame::Stack;

/// Error code of a fault that concerns an IDT entry: its index, and IDT = 1.
fn idt_error(vector: u8) -> Option<u32> {
    Some(u32::from(vector) << 3 | 2)
}

/// INT n, INT3 and INTO, which the gate's DPL must admit. INT1 is not one of them.
fn is_checked(event: &Event) -> bool {
    matches!(event.kind, EventKind::Software | EventKind::SoftwareException)
}

impl Cpu {
    /// Real-address mode: a far pointer in the table at IDTR, no error codes (SDM vol. 3, 20.1.4).
    pub(super) fn deliver_real(&mut self, event: &Event) -> Exec {
        let entry = u64::from(event.vector) * 4;
        if entry + 3 > self.state.idtr_limit & 0xffff {
            return Err(self.raise(vector::GP, idt_error(event.vector)));
        }
        let pointer = self.read_system::<u32>(self.state.idtr_base.wrapping_add(entry) & 0xffff_ffff)?;
        let stack = self.current_stack();
        let values = [self.state.rflags, self.state.seg[seg::CS].selector, self.return_rip(event)];
        self.state.gpr[gpr::RSP] = self.push_frame(&stack, 2, &values)?;
        self.load_segment_real(seg::CS, (pointer >> 16) as u16);
        self.state.rip = u64::from(pointer & 0xffff);
        self.state.rflags &= !(flag::IF | flag::TF | flag::AC | flag::RF);
        self.update_mode();
        Ok(())
    }

    /// Protected and virtual-8086 mode, 8-byte gates (SDM vol. 3, 6.12 and 20.3).
    pub(super) fn deliver_protected(&mut self, event: &Event, injected: bool) -> Exec {
        let entry = u64::from(event.vector) * 8;
        if entry + 7 > self.state.idtr_limit & 0xffff {
            return Err(self.raise(vector::GP, idt_error(event.vector)));
        }
        let linear = self.state.idtr_base.wrapping_add(entry) & 0xffff_ffff;
        let gate = Descriptor { low: self.read_system::<u64>(linear)?, high: 0, linear };
        let kind = gate.kind();
        let known = matches!(
            kind,
            system_type::TASK | system_type::INT16 | system_type::TRAP16 | system_type::INT32 | system_type::TRAP32
        );
        self.check_gate(event, gate, known)?;
        if kind == system_type::TASK {
            return self.task_gate(gate.gate_selector(), TaskSource::IdtGate);
        }

        let descriptor = self.handler_segment(gate)?;
        let width = if kind & 8 != 0 { 4 } else { 2 };
        let cpl = self.cpl();
        let inward = !descriptor.is_conforming() && descriptor.dpl() < cpl;
        if self.mode.v8086 && (descriptor.is_conforming() || descriptor.dpl() != 0) {
            return Err(self.gp_selector(gate.gate_selector()));
        }
        let target = if kind & 8 != 0 { gate.gate_offset() } else { gate.gate_offset() & 0xffff };
        let target = target & 0xffff_ffff;

        let new_cpl = if inward { descriptor.dpl() } else { cpl };
        let stack = if inward {
            let (segment, pointer) = self.tss_stack(new_cpl)?;
            let error = selector_error(segment.selector as u16).unwrap_or(0);
            Stack { segment, pointer, flat: false, inner: true, error }
        } else {
            self.current_stack()
        };
        if target > descriptor.limit() {
            return Err(self.gp0());
        }

        let s = &self.state;
        let mut frame = [0_u64; 10];
        let mut n = 0;
        let mut push = |value: u64| {
            frame[n] = value;
            n += 1;
        };
        if inward {
            if s.rflags & flag::VM != 0 {
                for register in [seg::GS, seg::FS, seg::DS, seg::ES] {
                    push(s.seg[register].selector);
                }
            }
            push(s.seg[seg::SS].selector);
            push(s.gpr[gpr::RSP]);
        }
        push(self.pushed_flags(event, injected));
        push(s.seg[seg::CS].selector);
        push(self.return_rip(event));
        if let Some(code) = event.error {
            push(u64::from(code));
        }
        let pointer = self.push_frame(&stack, width, &frame[..n])?;
        self.mark_accessed(descriptor)?;

        if inward {
            self.state.seg[seg::SS] = stack.segment;
            if self.mode.v8086 {
                for register in [seg::ES, seg::DS, seg::FS, seg::GS] {
                    self.state.seg[register] = Segment { access: access::UNUSABLE, ..Segment::default() };
                }
            }
        }
        self.state.gpr[gpr::RSP] = pointer;
        self.enter_handler(descriptor, gate.gate_selector(), new_cpl, target, kind & 1 == 0);
        Ok(())
    }

    /// IA-32e mode, 16-byte gates, interrupt stack table (SDM vol. 3, 6.14).
    pub(super) fn deliver_long(&mut self, event: &Event, injected: bool) -> Exec {
        let entry = u64::from(event.vector) * 16;
        if entry + 15 > self.state.idtr_limit & 0xffff {
            return Err(self.raise(vector::GP, idt_error(event.vector)));
        }
        let linear = self.state.idtr_base.wrapping_add(entry);
        let low = self.read_system::<u64>(linear)?;
        let high = self.read_system::<u64>(linear.wrapping_add(8))?;
        let gate = Descriptor { low, high, linear };
        let known = matches!(gate.kind(), system_type::INT32 | system_type::TRAP32);
        self.check_gate(event, gate, known)?;
        let descriptor = self.handler_segment(gate)?;
        if descriptor.access() & (access::LONG | access::BIG) != access::LONG {
            return Err(self.gp_selector(gate.gate_selector()));
        }
        let cpl = self.cpl();
        let inward = !descriptor.is_conforming() && descriptor.dpl() < cpl;
        let new_cpl = if inward { descriptor.dpl() } else { cpl };
        let ist = low >> 32 & 7;
        let pointer = if ist != 0 {
            self.tss_word64(0x24 + (ist - 1) * 8)?
        } else if inward {
            self.tss_word64(4 + u64::from(new_cpl) * 8)?
        } else {
            self.state.gpr[gpr::RSP]
        };
        if !canonical(pointer) {
            return Err(self.raise(vector::SS, Some(0)));
        }
        let target = gate.gate_offset();
        if !canonical(target) {
            return Err(self.gp0());
        }
        let s = &self.state;
        let frame = [
            s.seg[seg::SS].selector,
            s.gpr[gpr::RSP],
            self.pushed_flags(event, injected),
            s.seg[seg::CS].selector,
            self.return_rip(event),
            u64::from(event.error.unwrap_or(0)),
        ];
        let frame = if event.error.is_some() { &frame[..] } else { &frame[..5] };
        let stack = Stack { segment: Segment::default(), pointer: pointer & !15, flat: true, inner: inward, error: 0 };
        let pointer = self.push_frame(&stack, 8, frame)?;
        self.mark_accessed(descriptor)?;
        if inward {
            self.state.seg[seg::SS] = null_stack(u16::from(new_cpl), new_cpl);
        }
        self.state.gpr[gpr::RSP] = pointer;
        self.enter_handler(descriptor, gate.gate_selector(), new_cpl, target, gate.kind() & 1 == 0);
        Ok(())
    }

    /// Type, privilege and presence of an IDT entry, in the SDM's order.
    fn check_gate(&mut self, event: &Event, gate: Descriptor, known: bool) -> Exec {
        let privileged = is_checked(event) && gate.dpl() < self.cpl();
        if gate.is_code_or_data() || !known || privileged {
            return Err(self.raise(vector::GP, idt_error(event.vector)));
        }
        if !gate.is_present() {
            return Err(self.raise(vector::NP, idt_error(event.vector)));
        }
        Ok(())
    }

    /// The code segment of an interrupt or trap gate.
    fn handler_segment(&mut self, gate: Descriptor) -> Exec<Descriptor> {
        let selector = gate.gate_selector();
        if selector & 0xfffc == 0 {
            return Err(self.gp0());
        }
        let descriptor = self.descriptor(selector, vector::GP)?;
        if !descriptor.is_code() || descriptor.dpl() > self.cpl() {
            return Err(self.gp_selector(selector));
        }
        if !descriptor.is_present() {
            return Err(self.raise(vector::NP, selector_error(selector)));
        }
        Ok(descriptor)
    }

    /// SS:ESP for privilege level `cpl` from the current TSS, with the checks of a stack switch
    /// (SDM vol. 3, 5.8.5 and 6.12.1).
    ///
    /// # Errors
    /// #TS, #SS, or a page fault.
    pub(crate) fn tss_stack(&mut self, cpl: u8) -> Exec<(Segment, u64)> {
        let tr = self.state.seg[seg::TR];
        let wide = tr.access & 8 != 0;
        let (offset, last) = if wide {
            (u64::from(cpl) * 8 + 4, u64::from(cpl) * 8 + 9)
        } else {
            (u64::from(cpl) * 4 + 2, u64::from(cpl) * 4 + 5)
        };
        if tr.access & access::UNUSABLE != 0 || last > tr.limit {
            return Err(self.raise(vector::TS, selector_error(tr.selector as u16)));
        }
        let linear = tr.base.wrapping_add(offset) & 0xffff_ffff;
        let (pointer, selector) = if wide {
            let pointer = self.read_system::<u32>(linear)?;
            (u64::from(pointer), self.read_system::<u16>(linear.wrapping_add(4) & 0xffff_ffff)?)
        } else {
            let pointer = self.read_system::<u16>(linear)?;
            (u64::from(pointer), self.read_system::<u16>(linear.wrapping_add(2) & 0xffff_ffff)?)
        };
        if selector & 0xfffc == 0 {
            return Err(self.raise(vector::TS, Some(0)));
        }
        Ok((self.stack_segment_for(selector, cpl, vector::TS)?, pointer))
    }

    /// A 64-bit word of the current TSS: RSPn or an IST entry (SDM vol. 3, 7.7).
    ///
    /// # Errors
    /// #TS with TR's selector beyond the limit, or a page fault.
    pub(crate) fn tss_word64(&mut self, offset: u64) -> Exec<u64> {
        let tr = self.state.seg[seg::TR];
        if offset + 7 > tr.limit {
            return Err(self.raise(vector::TS, selector_error(tr.selector as u16)));
        }
        self.read_system::<u64>(tr.base.wrapping_add(offset))
    }

    /// The last step, in which nothing can fault.
    fn enter_handler(&mut self, descriptor: Descriptor, selector: u16, cpl: u8, target: u64, interrupt_gate: bool) {
        self.state.seg[seg::CS] = descriptor.segment(selector & !3 | u16::from(cpl));
        self.state.rip = target;
        self.state.rflags &= !(flag::TF | flag::NT | flag::VM | flag::RF);
        if interrupt_gate {
            self.state.rflags &= !flag::IF;
        }
        self.set_cpl(cpl);
    }

    /// Records the privilege level where the VMCS keeps it, in SS.DPL, and derives the mode.
    pub(crate) fn set_cpl(&mut self, cpl: u8) {
        let ss = &mut self.state.seg[seg::SS];
        ss.access = ss.access & !(3 << 5) | u64::from(cpl) << 5;
        self.update_mode();
    }

    /// A gate's or a selector's task switch: never returns without one.
    pub(crate) fn task_gate(&mut self, selector: u16, source: TaskSource) -> Exec {
        Err(self.task_switch(selector, source))
    }
}
