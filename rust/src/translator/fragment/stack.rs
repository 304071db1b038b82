//! Accesses to the stack. All that a fragment makes at known distances from one value of RSP are a group: one check that
//! the whole range lies in the page of stack, before the first of them, serves all, and RSP itself moves once.
//!
//! Where the range does not lie in that page, a fragment without groups goes on ([`super::super::variant::PLAIN`]).

use iced_x86::{Mnemonic, OpKind, Register};

use super::super::asm::{Address, cc, reg};
use super::super::classify::{MemoryOperand, Native, Plan};
use super::super::glue::shift_right;
use super::super::hot::hot;
use super::super::probe::within;
use super::Builder;
use crate::decode::{Insn, SLOT_NONE};
use crate::state::seg;

/// Bytes that a group spans at most.
const SPAN: i32 = 1024;
/// Guest RSP.
const RSP: u8 = 4;

/// Instructions `first` to `last`: what they access lies from `low` to below `high` of RSP before `first`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    first: usize,
    last: usize,
    low: i32,
    high: i32,
    /// Its first access is a write.
    written: bool,
}

/// A check in line that may fail.
pub(super) struct Check {
    /// rel32 in line that comes here.
    from: usize,
    /// Where it is checked again.
    again: usize,
    group: Group,
    /// Flags are in `saved_flags`.
    saved: bool,
}

/// What an instruction does with the stack.
struct Use {
    /// The range it accesses, from RSP before it, and whether it writes.
    access: Option<(i32, i32, bool)>,
    /// RSP moves by so much; `None`: by something else, or the group ends for another reason.
    moves: Option<i32>,
}

fn is_stack_operand(insn: &Insn) -> bool {
    let segment = usize::from(insn.seg);
    insn.base == RSP
        && insn.index == SLOT_NONE
        && insn.address_mask == !0
        && segment != seg::FS
        && segment != seg::GS
        && i32::try_from(insn.disp as i64).is_ok_and(|disp| disp.abs() < SPAN)
}

/// LEA RSP, [RSP + disp] moves RSP by this.
pub(super) fn moved_by_lea(insn: &Insn) -> Option<i32> {
    let to = insn.iced.op0_register();
    (to == Register::RSP && is_stack_operand(insn)).then_some(insn.disp as i32)
}

/// ADD or SUB RSP, imm moves it by this.
fn moved_by_alu(insn: &Insn) -> Option<i32> {
    let i = &insn.iced;
    let immediate = matches!(i.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64);
    if i.op_count() != 2 || !immediate || i.op0_register() != Register::RSP {
        return None;
    }
    let by = i32::try_from(insn.imm as i64).ok().filter(|by| by.abs() < SPAN)?;
    match i.mnemonic() {
        Mnemonic::Add => Some(by),
        Mnemonic::Sub => Some(-by),
        _ => None,
    }
}

fn native_use(insn: &Insn, native: &Native) -> Use {
    let access = native.memory.filter(|m| !m.aligned && is_stack_operand(insn)).map(|m| {
        let disp = insn.disp as i32;
        (disp, disp + i32::from(m.size), m.written)
    });
    let moves = if native.gprs.iter().any(|g| g.guest == RSP && g.written) { moved_by_alu(insn) } else { Some(0) };
    Use { access, moves }
}

fn stack_use(insn: &Insn, plan: &Plan) -> Use {
    match plan {
        Plan::Push | Plan::PushMemory | Plan::PushFlags | Plan::Call | Plan::CallIndirect => {
            Use { access: Some((-8, 0, true)), moves: Some(-8) }
        }
        Plan::Pop => {
            let moves = (insn.iced.op0_register() != Register::RSP).then_some(8);
            Use { access: Some((0, 8, false)), moves }
        }
        Plan::PopMemory => Use { access: Some((0, 8, false)), moves: Some(8) },
        Plan::Return => Use { access: Some((0, 8, false)), moves: None },
        Plan::Lea if insn.iced.op0_register().full_register() == Register::RSP => {
            Use { access: None, moves: moved_by_lea(insn) }
        }
        Plan::Native(native) => native_use(insn, native),
        Plan::Lea | Plan::Jcc | Plan::Jump | Plan::JumpIndirect | Plan::JumpIfZero | Plan::Nothing | Plan::Divide => {
            Use { access: None, moves: Some(0) }
        }
        // The helper may do anything.
        _ => Use { access: None, moves: None },
    }
}

/// The groups of a fragment, in order, and which instructions access the stack in one (all false before).
pub(super) fn groups(insns: &[Insn], plans: &[Plan], groups: &mut Vec<Group>, stacked: &mut [bool]) {
    // The last group goes on, and RSP is so far from where it began.
    let mut open: Option<i32> = None;
    for (n, (insn, plan)) in insns.iter().zip(plans).enumerate() {
        let used = stack_use(insn, plan);
        if let Some((low, high, written)) = used.access {
            stacked[n] = true;
            let grown = open.zip(groups.last_mut()).and_then(|(at, group)| {
                let (low, high) = (group.low.min(at + low), group.high.max(at + high));
                (high - low <= SPAN).then(|| (group.last, group.low, group.high) = (n, low, high))
            });
            if grown.is_none() {
                groups.push(Group { first: n, last: n, low, high, written });
                open = Some(0);
            }
        }
        open = open.zip(used.moves).map(|(at, by)| at + by).filter(|at| at.abs() <= 4 * SPAN);
    }
}

impl Builder<'_> {
    /// A group is checked before instruction `n`.
    pub(super) fn begins_on_stack(&self, n: usize) -> bool {
        self.groups.iter().any(|g| g.first == n)
    }

    /// The instruction needs no RSP in its register, or knows of `pending`.
    pub(super) fn leaves_stack_pending(&self, n: usize, plan: &Plan) -> bool {
        let first = self.begins_on_stack(n);
        let rsp = || self.insns[n].iced.op0_register() == Register::RSP;
        !first
            && match plan {
                Plan::Push | Plan::Pop => self.in_group(n) && !rsp(),
                Plan::Call | Plan::Return => self.in_group(n),
                Plan::Lea | Plan::Nothing => true,
                Plan::Native(native) => {
                    (native.memory.is_none() || self.in_group(n) || self.is_shared(n))
                        && !native.gprs.iter().any(|g| g.guest == RSP)
                }
                _ => false,
            }
    }

    /// RSP is in its register again.
    pub(super) fn settle(&mut self) {
        let by = std::mem::take(&mut self.pending);
        if by != 0 {
            self.a.lea(true, reg::GUEST_RSP, Address::base(reg::GUEST_RSP, by));
        }
    }

    pub(super) fn in_group(&self, n: usize) -> bool {
        self.stacked[n]
    }

    /// Where `disp` bytes from guest RSP lie, in a group.
    pub(super) fn on_stack(&self, disp: i32) -> Address {
        let disp = disp + self.pending;
        Address { base: Some(reg::GUEST_RSP), index: Some(reg::STACK), shift: 0, disp }
    }

    /// Where the stack operand of instruction `n` lies, if its group has been checked.
    pub(super) fn grouped(&self, n: usize) -> Option<Address> {
        self.in_group(n).then(|| self.on_stack(self.insns[n].disp as i32))
    }

    /// Before the first instruction of a group: it lies in the page of stack.
    pub(super) fn check_stack(&mut self, n: usize) {
        let Some(&group) = self.groups.iter().find(|g| g.first == n) else { return };
        let saved = self.flags_may_go(n);
        let again = self.a.at();
        self.a.lea(true, reg::S0, Address::base(reg::GUEST_RSP, group.low));
        self.a.op_mem(true, 0x2b, reg::S0, Address::base(reg::RSP, hot!(stack_page))); // sub s0, [stack_page]
        let from = within(&mut self.a, group.high - group.low);
        self.checks.push(Check { from, again, group, saved });
    }

    /// In the cold part: the stack has moved to another page, or the group does not lie in one.
    pub(super) fn other_stack(&mut self, check: &Check) {
        let group = check.group;
        self.bind_cold(check.from);
        self.c.lea(true, reg::S0, Address::base(reg::GUEST_RSP, group.low));
        self.c.lea(true, reg::S1, Address::base(reg::GUEST_RSP, group.high - 1));
        self.c.op_reg(true, 0x31, reg::S0, reg::S1); // xor s1, s0
        shift_right(&mut self.c, reg::S1, 12);
        let crosses = self.c.jcc_later(cc::NE);
        let call = self.c.call_later();
        self.cold_outside(call, self.context.glue.probes.stack(self.context.variant, group.written));
        let again = self.c.jmp_later();
        self.cold_line(again, check.again);
        self.c.bind_here(crosses);
        self.give_back((self.insns.len() - group.first) as i32);
        self.plain_link(group.first, check.saved);
    }

    /// S0 = pointer to the eight bytes at guest RSP + `disp`, outside of a group.
    pub(super) fn stack(&mut self, n: usize, disp: i32, written: bool) -> usize {
        self.a.lea(true, reg::S0, Address::base(reg::GUEST_RSP, disp));
        self.translate_address(n, MemoryOperand { size: 8, written, aligned: false })
    }

    /// Where to push: the address, and the site unless it is in a group.
    fn pushed(&mut self, n: usize) -> (Address, Option<usize>) {
        if self.in_group(n) {
            return (self.on_stack(-8), None);
        }
        let site = self.stack(n, -8, true);
        (Address::base(reg::S0, 0), Some(site))
    }

    fn resumes_at(&mut self, site: Option<usize>) {
        if let Some(site) = site {
            self.settle();
            self.resumes_here(site);
        }
    }

    pub(super) fn push(&mut self, n: usize) -> Option<bool> {
        let i = &self.insns[n].iced;
        let site = if i.op0_kind() == OpKind::Register {
            let guest = i.op0_register().number() as u8;
            let (to, site) = self.pushed(n);
            let from = self.address_register(guest, reg::S1);
            self.a.op_mem(true, 0x89, from, to);
            site
        } else {
            let value = i32::try_from(self.insns[n].imm as i64).ok()?;
            let (to, site) = self.pushed(n);
            self.a.op_mem(true, 0xc7, 0, to);
            self.a.bytes(&value.to_le_bytes());
            site
        };
        self.pending -= 8;
        self.resumes_at(site);
        Some(false)
    }

    pub(super) fn pop(&mut self, n: usize) -> Option<bool> {
        let guest = self.insns[n].iced.op0_register().number() as u8;
        let (from, site) = if self.in_group(n) {
            (self.on_stack(0), None)
        } else {
            let site = self.stack(n, 0, false);
            (Address::base(reg::S0, 0), Some(site))
        };
        if guest == RSP {
            self.pending = 0;
        } else {
            self.pending += 8;
            if site.is_some() {
                self.settle();
            }
        }
        self.load_guest(guest, from);
        self.resumes_at(site);
        Some(false)
    }

    /// Pushes `hot.target`.
    pub(super) fn push_target(&mut self, n: usize) -> Option<usize> {
        let (to, site) = self.pushed(n);
        self.a.load(reg::S1, hot!(target));
        self.a.op_mem(true, 0x89, reg::S1, to);
        self.pending -= 8;
        self.settle();
        site
    }

    /// Pushes the address behind instruction `n`.
    pub(super) fn push_return(&mut self, n: usize) {
        let (to, _) = self.pushed(n);
        let next = self.offsets[n + 1] as i64;
        self.linear_of(reg::S1, next);
        self.a.op_mem(true, 0x89, reg::S1, to);
        self.pending -= 8;
    }

    pub(super) fn push_memory(&mut self, n: usize) -> Option<bool> {
        self.operand(n, MemoryOperand { size: 8, written: false, aligned: false })?;
        self.a.op_mem(true, 0x8b, reg::S0, Address::base(reg::S0, 0));
        self.a.store(reg::S0, hot!(target));
        let read = self.draft.sites.len() - 1;
        let site = self.push_target(n);
        self.resumes_here(read);
        if let Some(site) = site {
            self.resumes_here(site);
        }
        Some(false)
    }

    pub(super) fn pop_memory(&mut self, n: usize) -> Option<bool> {
        // RSP has moved when the address is made.
        if !self.in_group(n) || self.insns[n].base == 4 {
            return None;
        }
        let site = self.operand(n, MemoryOperand { size: 8, written: true, aligned: false })?;
        let from = self.on_stack(0);
        self.a.op_mem(true, 0x8b, reg::S1, from);
        self.a.op_mem(true, 0x89, reg::S1, Address::base(reg::S0, 0));
        self.pending += 8;
        self.settle();
        self.resumes_here(site);
        Some(false)
    }
}
