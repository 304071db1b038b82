//! Near calls, returns and indirect branches.

use iced_x86::{Code, OpKind};

use super::super::asm::{Address, reg};
use super::super::classify::MemoryOperand;
use super::super::glue::{gpr, host};
use super::super::hot::hot;
use super::Builder;

impl Builder<'_> {
    pub(super) fn call(&mut self, n: usize) -> Option<bool> {
        let to = self.target(n);
        i32::try_from(to).ok()?;
        self.push_return(n);
        self.settle();
        self.go_to(to);
        Some(true)
    }

    /// S0 = target of an indirect branch.
    fn indirect_target(&mut self, n: usize) -> Option<()> {
        let i = &self.insns[n].iced;
        if i.op0_kind() == OpKind::Register {
            let guest = i.op0_register().number() as u8;
            match host(guest) {
                Some(from) => self.a.mov(reg::S0, from),
                None => self.a.load(reg::S0, gpr(guest)),
            }
        } else {
            self.operand(n, MemoryOperand { size: 8, written: false, aligned: false })?;
            self.a.op_mem(true, 0x8b, reg::S0, Address::base(reg::S0, 0));
        }
        Some(())
    }

    pub(super) fn jump_indirect(&mut self, n: usize) -> Option<bool> {
        self.indirect_target(n)?;
        self.look_up();
        Some(true)
    }

    pub(super) fn call_indirect(&mut self, n: usize) -> Option<bool> {
        self.indirect_target(n)?;
        self.a.store(reg::S0, hot!(target));
        self.push_return(n);
        self.settle();
        self.a.load(reg::S0, hot!(target));
        self.look_up();
        Some(true)
    }

    pub(super) fn ret(&mut self, n: usize) -> Option<bool> {
        let i = &self.insns[n].iced;
        let extra = if i.code() == Code::Retnq_imm16 { i32::from(i.immediate16()) } else { 0 };
        let from = if self.in_group(n) {
            self.on_stack(0)
        } else {
            self.stack(n, 0, false);
            Address::base(reg::S0, 0)
        };
        self.a.op_mem(true, 0x8b, reg::S0, from);
        self.pending += 8 + extra;
        self.settle();
        self.look_up();
        Some(true)
    }
}
