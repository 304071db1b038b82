//! Instructions that run as themselves, with their registers where the guest's are, and those that come close to it: LEA,
//! LEAVE, DIV and IDIV.

use iced_x86::{OpKind, Register};

use super::{Builder, Cold, stack, status};
use crate::decode::{Insn, SLOT_RIP};
use crate::translator::asm::{Address, cc, reg};
use crate::translator::classify::{GprOperand, MemoryOperand, Native, Place};
use crate::translator::encoding::{Encoding, Rm};
use crate::translator::glue::{flags_aside, flags_back, gpr, host};
use crate::translator::hot::hot;
use crate::translator::short::Short;

impl Builder<'_> {
    /// An instruction as itself, with its registers where the guest's are.
    pub(super) fn native(&mut self, n: usize, native: &Native, e: &Encoding<'_>) -> Option<bool> {
        let grouped = native.memory.and_then(|_| self.grouped(n));
        let pointed = native.memory.is_some() && grouped.is_none();
        let moved = scratch_registers(native, pointed, grouped.is_some())?;
        let (site, mut memory) = match (native.memory, grouped) {
            (Some(_), Some(address)) => (None, Some(address)),
            (Some(m), None) => match self.pointed(n) {
                Some(address) => (None, Some(address)),
                None => (Some(self.operand(n, m)?), Some(Address::base(reg::S0, 0))),
            },
            (None, _) => (None, None),
        };
        if status::is_touched(&self.insns[n]) {
            self.flags_to_host(n);
        }
        let find = |g: &GprOperand| {
            host(g.guest).or_else(|| moved.iter().find(|m| m.0 == g.guest).map(|m| m.1)).unwrap_or(reg::S1)
        };
        for &(guest, scratch) in &moved {
            if native.gprs.iter().any(|g| g.guest == guest && g.read) {
                self.a.load(scratch, gpr(guest));
            }
        }
        let of = |place: Place| native.gprs.iter().find(|g| g.place == place).map(find);
        let (mut of_reg, mut of_rm) = (of(Place::Reg), of(Place::Rm));
        // With AH to BH no REX prefix may appear: what would need one changes places with a low register meanwhile.
        let mut lent = None;
        if native.high_byte {
            if let (Some(address), true) = (memory, grouped.is_some()) {
                self.a.lea(true, reg::S0, address);
                memory = Some(Address::base(reg::S0, 0));
            }
            let base = memory.as_mut().and_then(|m| m.base.as_mut());
            let high = [&mut of_reg, &mut of_rm].into_iter().filter_map(Option::as_mut).chain(base).find(|r| **r >= 8);
            if let Some(register) = high {
                let low = if uses_bh(&self.insns[n]) { reg::RDX } else { reg::RBX };
                lent = Some((low, *register));
                *register = low;
            }
        }
        let r = of_reg.unwrap_or(e.reg());
        let rm = match (of_rm, memory) {
            (Some(register), _) => Rm::Register(register),
            (None, Some(address)) => Rm::Memory(address),
            (None, None) => Rm::Register(e.rm()),
        };
        let vvvv = of(Place::Vvvv).unwrap_or(e.vvvv());
        if let Some((low, high)) = lent {
            self.a.op_reg(true, 0x87, low, high); // xchg
        }
        e.write(&mut self.a, r, rm, vvvv);
        if let Some((low, high)) = lent {
            self.a.op_reg(true, 0x87, low, high);
        }
        for &(guest, scratch) in &moved {
            if native.gprs.iter().any(|g| g.guest == guest && g.written) {
                self.a.store(scratch, gpr(guest));
            }
            if scratch == reg::STACK {
                self.a.load(reg::STACK, hot!(stack_delta));
            }
        }
        if let Some(site) = site {
            self.resumes_here(site);
        }
        Some(false)
    }

    pub(super) fn lea(&mut self, n: usize, e: &Encoding<'_>) -> Option<bool> {
        let i = &self.insns[n].iced;
        let size = i.op0_register().size();
        let guest = e.reg();
        let into = host(guest).unwrap_or(reg::S0);
        if size == 2 || size == 4 && self.insns[n].base == SLOT_RIP {
            return None;
        }
        if let Some(by) = stack::moved_by_lea(&self.insns[n]) {
            self.pending += by;
            return Some(false);
        }
        if guest == 4 {
            self.settle();
        }
        let start = self.a.at();
        // A 32-bit address or a 32-bit result are both the low half.
        if !self.effective(n, into, size == 8) {
            self.a.code.truncate(start);
            return None;
        }
        if host(guest).is_none() {
            self.a.store(into, gpr(guest));
        }
        Some(false)
    }

    pub(super) fn load_guest(&mut self, guest: u8, from: Address) {
        let into = host(guest).unwrap_or(reg::S0);
        self.a.op_mem(true, 0x8b, into, from);
        if host(guest).is_none() {
            self.a.store(into, gpr(guest));
        }
    }

    pub(super) fn leave(&mut self, n: usize) -> Option<bool> {
        self.a.mov(reg::S0, reg::RBP);
        let site = self.translate_address(n, MemoryOperand { size: 8, written: false, aligned: false });
        self.a.lea(true, reg::GUEST_RSP, Address::base(reg::RBP, 8));
        self.a.op_mem(true, 0x8b, reg::RBP, Address::base(reg::S0, 0));
        self.resumes_here(site);
        Some(false)
    }

    /// DIV and IDIV, with what would raise #DE (and a little more) left to the helper. The flags that the
    /// instruction leaves undefined are those of the host, given the flags from before.
    pub(super) fn divide(&mut self, n: usize, e: &Encoding<'_>) -> Option<bool> {
        let i = &self.insns[n].iced;
        let signed = i.mnemonic() == iced_x86::Mnemonic::Idiv;
        let register = i.op0_kind() == OpKind::Register;
        let size = if register { i.op0_register().size() } else { i.memory_size().size() };
        let wide = size == 8;
        if register {
            let guest = e.rm();
            match host(guest) {
                Some(from) => self.a.mov(reg::S0, from),
                None => self.a.load(reg::S0, gpr(guest)),
            }
        } else {
            let m = MemoryOperand { size: size as u16, written: false, aligned: false };
            self.operand_keeping_flags(n, m)?;
            self.a.op_mem(wide, 0x8b, reg::S0, Address::base(reg::S0, 0));
        }
        if !self.flags.saved {
            flags_aside(&mut self.a);
        }
        let mut misses = Vec::new();
        if signed {
            // RDX is the sign of RAX, and the divisor neither 0 nor -1.
            self.a.op_reg(wide, 0x89, reg::RAX, reg::S1);
            self.a.op_reg(wide, 0xc1, 7, reg::S1); // sar
            self.a.bytes(&[if wide { 63 } else { 31 }]);
            self.a.op_reg(wide, 0x39, reg::RDX, reg::S1); // cmp s1, rdx
            misses.push(self.a.jcc_later(cc::NE));
            self.a.lea(wide, reg::S1, Address::base(reg::S0, 1));
            self.a.op_reg(wide, 0x83, 7, reg::S1); // cmp s1, 1
            self.a.bytes(&[1]);
            misses.push(self.a.jcc_later(cc::BE));
        } else {
            self.a.op_reg(wide, 0x39, reg::S0, reg::RDX); // cmp rdx, s0
            misses.push(self.a.jcc_later(cc::AE));
        }
        flags_back(&mut self.a);
        self.a.op_reg(wide, 0xf7, if signed { 7 } else { 6 }, reg::S0);
        let site = self.site(n, None);
        self.cold.push(Cold { from: misses, saved: true, site });
        for site in 0..self.draft.sites.len() {
            if usize::from(self.draft.sites[site].index) == n {
                self.resumes_here(site);
            }
        }
        Some(false)
    }
}

/// Where the guest registers of an instruction that stay in memory are meanwhile. `pointed`: S0 points to its memory
/// operand; what is read before anything is written may then be written to S0, too. `stacked`: the operand is reached
/// through [`reg::STACK`], which is else lent as well, and loaded again.
pub(super) fn scratch_registers(native: &Native, pointed: bool, stacked: bool) -> Option<Short<(u8, u8), 3>> {
    let pure = pointed && native.memory.is_some_and(|m| !m.written);
    let mut moved: Short<(u8, u8), 3> = Short::default();
    for g in &native.gprs {
        if host(g.guest).is_some() || moved.iter().any(|m| m.0 == g.guest) {
            continue;
        }
        let read = native.gprs.iter().any(|other| other.guest == g.guest && other.read);
        let scratch = [reg::S1, reg::S0, reg::STACK].into_iter().find(|&r| match r {
            _ if moved.iter().any(|m| m.1 == r) => false,
            reg::S0 => !pointed || pure && !read,
            reg::STACK => !stacked,
            _ => true,
        })?;
        if !moved.push((g.guest, scratch)) {
            return None;
        }
    }
    Some(moved)
}

/// BH is among the operands.
fn uses_bh(insn: &Insn) -> bool {
    (0..insn.iced.op_count())
        .any(|n| insn.iced.op_kind(n) == OpKind::Register && insn.iced.op_register(n) == Register::BH)
}
