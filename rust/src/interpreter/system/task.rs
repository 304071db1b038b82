//! Task switches, as far as they come in VMX non-root operation: the checks, then always a VM exit.
//!
//! SDM vol. 3, 7.3 and 26.4.2. The switch itself (saving and loading TSS contents) is the hypervisor's.

use crate::cpu::Cpu;
use crate::state::seg;
use crate::stop::{Exec, Stop, vector};
use crate::vmx::reason;

use super::segment::{Descriptor, selector_error, system_type};

/// Bits 31:30 of the exit qualification (SDM table 28-2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum TaskSource {
    Call = 0,
    Iret = 1,
    Jmp = 2,
    IdtGate = 3,
}

impl Cpu {
    /// A task gate's selector, or a TSS selector whose privilege was checked: the exit, or the fault that
    /// comes before it.
    pub(crate) fn task_switch(&mut self, selector: u16, source: TaskSource) -> Stop {
        match self.check_task(selector, source) {
            Ok(()) => self.exit_insn(reason::TASK_SWITCH, u64::from(selector) | (source as u64) << 30),
            Err(stop) => stop,
        }
    }

    /// The TSS must be in the GDT, available (busy for IRET) and present.
    fn check_task(&mut self, selector: u16, source: TaskSource) -> Exec {
        let fault = if source == TaskSource::Iret { vector::TS } else { vector::GP };
        if selector & 4 != 0 || selector & 0xfffc == 0 {
            return Err(self.raise(fault, selector_error(selector)));
        }
        let descriptor = self.descriptor(selector, fault)?;
        let busy = if source == TaskSource::Iret { 2 } else { 0 };
        let expected = [system_type::TSS16 | busy, system_type::TSS32 | busy];
        if descriptor.is_code_or_data() || !expected.contains(&descriptor.kind()) {
            return Err(self.raise(fault, selector_error(selector)));
        }
        if !descriptor.is_present() {
            return Err(self.raise(vector::NP, selector_error(selector)));
        }
        Ok(())
    }

    /// Far CALL or JMP that meets a task gate or a TSS descriptor (SDM vol. 2, CALL and JMP).
    pub(crate) fn far_task(&mut self, selector: u16, descriptor: Descriptor, source: TaskSource) -> Stop {
        let rpl = (selector & 3) as u8;
        if descriptor.dpl() < self.cpl() || descriptor.dpl() < rpl {
            return self.gp_selector(selector);
        }
        if descriptor.kind() != system_type::TASK {
            return self.task_switch(selector, source);
        }
        if !descriptor.is_present() {
            return self.raise(vector::NP, selector_error(selector));
        }
        self.task_switch(descriptor.gate_selector(), source)
    }

    /// IRET with NT = 1: back to the task that the link field of the TSS names.
    pub(crate) fn task_return(&mut self) -> Stop {
        let link = self.state.seg[seg::TR].base & 0xffff_ffff;
        match self.read_system::<u16>(link) {
            Ok(selector) => self.task_switch(selector, TaskSource::Iret),
            Err(stop) => stop,
        }
    }
}
