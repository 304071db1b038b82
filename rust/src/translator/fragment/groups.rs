//! Accesses beside the stack that share one check: those of a fragment whose addresses differ by constants only, as they
//! come from the same unmodified base and index, and lie close together. The first of them checks that the whole range
//! lies in one page, readable or writable as the strictest of them needs; the others use the host pointer of the range,
//! which stays in S0 while nothing else needs that, and in the hot data otherwise.
//!
//! Where the range crosses a page, or a group that begins with a read may not write, a plain fragment goes on as it does
//! for the stack. Operands that must be aligned, and those of anything but plain instructions, are checked alone.

use super::super::asm::{Address, cc, reg};
use super::super::classify::{MemoryOperand, Native, Plan};
use super::super::glue::{and_imm, host};
use super::super::hot::{POINTERS, hot};
use super::native::scratch_registers;
use super::operand::Probe;
use super::{Builder, PAGE};
use crate::decode::{Insn, SLOT_NONE, SLOT_RIP};
use crate::state::seg;

/// Bytes that a group spans at most: the longer, the more often a page ends within.
const SPAN: i64 = 256;
/// In place of the last instruction of a group of one.
const ALONE: usize = usize::MAX;
/// Guest RSP: its accesses are those of `stack`.
const RSP: u8 = 4;

/// What the addresses of a group have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Root {
    base: u8,
    index: u8,
    shift: u8,
    /// FS, GS, or another, which has no base.
    segment: u8,
}

/// What a group does with its page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    /// It writes, the first time at once.
    Write,
    /// It reads, and writes later: the page must be one that was written before, as it may not become so too early.
    Mixed,
}

/// Instructions `first` to `last`: what they access lies from `low` to below `high` of the root.
#[derive(Clone, Copy)]
struct Group {
    root: Root,
    first: usize,
    last: usize,
    low: i64,
    high: i64,
    access: Access,
    /// Its host pointer's place in the hot data.
    place: u8,
    /// The pointer has been put there.
    stored: bool,
}

/// The groups of a fragment, and the one whose pointer S0 holds.
#[derive(Default)]
pub(super) struct Groups {
    groups: Vec<Group>,
    /// The group of each instruction.
    members: Vec<Option<u16>>,
    /// Groups that may go on.
    open: Vec<usize>,
    held: Option<usize>,
}

/// What instruction `n`, at `offset` of its page, accesses: the root, from where to where, and whether it writes.
fn access(insn: &Insn, native: &Native, offset: u64) -> Option<(Root, i64, i64, bool)> {
    let m = native.memory.filter(|m| !m.aligned && insn.address_mask == !0 && insn.base != RSP)?;
    let segment = if matches!(usize::from(insn.seg), seg::FS | seg::GS) { insn.seg } else { seg::DS as u8 };
    let start = if insn.base == SLOT_RIP { offset as i64 } else { 0 };
    let low = i64::from(i32::try_from(start + insn.disp as i64).ok()?);
    Some((
        Root { base: insn.base, index: insn.index, shift: insn.shift, segment },
        low,
        low + i64::from(m.size),
        m.written,
    ))
}

impl Group {
    /// With another range and access, if it may.
    fn grown(&self, n: usize, low: i64, high: i64, written: bool) -> Option<Self> {
        let (low, high) = (self.low.min(low), self.high.max(high));
        // The page of an operand beside RIP is known.
        let known = self.root.base == SLOT_RIP && self.root.segment == seg::DS as u8;
        let fits = if known { low.div_euclid(4096) == (high - 1).div_euclid(4096) } else { high - low <= SPAN };
        let access = if written && self.access == Access::Read { Access::Mixed } else { self.access };
        fits.then_some(Self { last: n, low, high, access, ..*self })
    }
}

/// General registers that an instruction changes, as a mask; `None`: a group does not go on behind it.
fn changes(insn: &Insn, plan: &Plan) -> Option<u32> {
    let first = || 1 << insn.iced.op0_register().full_register().number();
    Some(match plan {
        Plan::Native(native) => u32::from(native.changes),
        Plan::Lea | Plan::Pop => first(),
        Plan::Leave => 1 << RSP | 1 << reg::RBP,
        Plan::Divide => 1 << reg::RAX | 1 << reg::RDX,
        Plan::Push | Plan::PushMemory | Plan::PushFlags => 1 << RSP,
        Plan::Jcc | Plan::JumpIfZero | Plan::Jump | Plan::Nothing | Plan::BitString => 0,
        _ => return None,
    })
}

impl Groups {
    /// Finds the groups of two and more accesses, and a place for the pointer of each; none unless `wanted`.
    pub(super) fn find(&mut self, insns: &[Insn], plans: &[Plan], offsets: &[u64], wanted: bool) {
        let Self { groups, members, open, held } = self;
        groups.clear();
        members.clear();
        open.clear();
        *held = None;
        if !wanted {
            return;
        }
        members.resize(insns.len(), None);
        for (n, (insn, plan)) in insns.iter().zip(plans).enumerate() {
            let found = if let Plan::Native(native) = plan { access(insn, native, offsets[n]) } else { None };
            if let Some((root, low, high, written)) = found {
                let at = open.iter().position(|&g| groups[g].root == root);
                let grown = at.and_then(|at| Some((open[at], groups[open[at]].grown(n, low, high, written)?)));
                if let Some((g, grown)) = grown {
                    groups[g] = grown;
                    members[n] = Some(g as u16);
                } else {
                    let access = if written { Access::Write } else { Access::Read };
                    members[n] = Some(groups.len() as u16);
                    at.map(|at| open.swap_remove(at));
                    open.push(groups.len());
                    groups.push(Group { root, first: n, last: n, low, high, access, place: 0, stored: false });
                }
            }
            match changes(insn, plan) {
                None => open.clear(),
                Some(0) => {}
                Some(mask) => open.retain(|&g| {
                    let Root { base, index, .. } = groups[g].root;
                    mask & (1 << base | 1 << index) == 0
                }),
            }
        }
        // A place is free again behind the last access of its group.
        let mut taken: [Option<usize>; POINTERS] = [None; POINTERS];
        for group in groups.iter_mut() {
            let free = taken.iter().position(|last| last.is_none_or(|last| last < group.first));
            match free.filter(|_| group.last > group.first) {
                Some(place) => (taken[place], group.place) = (Some(group.last), place as u8),
                None => group.last = ALONE,
            }
        }
        for member in members.iter_mut() {
            *member = member.filter(|&g: &u16| groups[usize::from(g)].last != ALONE);
        }
    }

    fn of(&self, n: usize) -> Option<usize> {
        self.members.get(n).copied().flatten().map(usize::from)
    }

    /// The group that begins with instruction `n`.
    fn begins(&self, n: usize) -> Option<usize> {
        self.of(n).filter(|&g| self.groups[g].first == n)
    }
}

impl Builder<'_> {
    /// The pointer in S0 is needed behind instruction `n`, and is put where it stays.
    pub(super) fn put_pointer_aside(&mut self, n: usize) {
        let Some(g) = self.shared.held else { return };
        let group = &mut self.shared.groups[g];
        if group.last > n && !group.stored {
            group.stored = true;
            self.a.store(reg::S0, hot!(pointers) + 8 * i32::from(group.place));
        }
    }

    /// The code for instruction `n` changes S0, other than to a pointer of its group.
    fn takes_pointer(&self, n: usize, plan: &Plan) -> bool {
        let insn = &self.insns[n];
        let own = |slot: u8| slot == SLOT_NONE || slot != SLOT_RIP && host(slot).is_some();
        let has_own = || host(insn.iced.op0_register().full_register().number() as u8).is_some();
        match plan {
            Plan::Native(native) => {
                let stacked = native.memory.is_some() && self.in_group(n);
                let member = self.shared.of(n).is_some();
                let moved = scratch_registers(native, member, stacked);
                native.memory.is_some() && !stacked && !member
                    || native.high_byte && stacked
                    || moved.is_none_or(|moved| moved.iter().any(|m| m.1 == reg::S0))
            }
            Plan::Lea => !own(insn.base) || !own(insn.index) || !has_own(),
            Plan::Push => !self.in_group(n),
            Plan::Pop => !self.in_group(n) || !has_own(),
            Plan::Nothing => false,
            _ => true,
        }
    }

    /// Before instruction `n`: what is in S0 goes aside where that is needed, and a group that begins here is checked.
    /// The stack's check comes behind it, and takes S0: so nothing that is in a group may access the stack as well.
    pub(super) fn begin_shared(&mut self, n: usize, plan: &Plan) {
        let Some(own) = self.shared.of(n) else {
            if self.begins_on_stack(n) || self.takes_pointer(n, plan) {
                self.put_pointer_aside(n);
            }
            return;
        };
        debug_assert!(!self.begins_on_stack(n), "the pointer would be lost");
        let begins = self.shared.begins(n) == Some(own);
        let takes = self.takes_pointer(n, plan);
        if begins || takes || self.shared.held != Some(own) {
            self.put_pointer_aside(n);
        }
        if begins {
            self.check_shared(n, own);
            if takes {
                self.put_pointer_aside(n);
            }
        }
    }

    /// Behind instruction `n`.
    pub(super) fn end_shared(&mut self, n: usize, plan: &Plan) {
        if self.begins_on_stack(n) || self.takes_pointer(n, plan) {
            self.shared.held = None;
        }
    }

    /// Behind a call of the helper.
    pub(super) fn forget_pointer(&mut self) {
        self.shared.held = None;
    }

    /// S0 = host pointer of the range of group `g`, whose first instruction is `n`.
    fn check_shared(&mut self, n: usize, g: usize) {
        let group = self.shared.groups[g];
        let written = group.access != Access::Read;
        let m = MemoryOperand { size: (group.high - group.low) as u16, written, aligned: false };
        if !self.linear(n, group.low - self.root_offset(n)) {
            // It was asked before whether the displacement fits: nothing was emitted.
            self.shared.members.iter_mut().filter(|m| **m == Some(g as u16)).for_each(|m| *m = None);
            return;
        }
        let saved = self.flags_may_go(n);
        self.translate_without_flags(n, m, saved);
        if let Some(probe) = self.probes.last_mut() {
            probe.shared = Some((group.access, self.pending));
        }
        self.shared.held = Some(g);
    }

    /// What the displacement of instruction `n` counts from, from the root of its group.
    fn root_offset(&self, n: usize) -> i64 {
        if self.insns[n].base == SLOT_RIP { self.offsets[n] as i64 } else { 0 }
    }

    /// The operand of instruction `n` is in a group.
    pub(super) fn is_shared(&self, n: usize) -> bool {
        self.shared.of(n).is_some()
    }

    /// Where the operand of instruction `n` lies, if its group has been checked.
    pub(super) fn pointed(&mut self, n: usize) -> Option<Address> {
        let g = self.shared.of(n)?;
        let group = self.shared.groups[g];
        if self.shared.held != Some(g) {
            self.a.load(reg::S0, hot!(pointers) + 8 * i32::from(group.place));
            self.shared.held = Some(g);
        }
        let disp = self.root_offset(n) + self.insns[n].disp as i64 - group.low;
        Some(Address::base(reg::S0, disp as i32))
    }

    /// In the cold part: the TLB, for a group whose page is another. The first access may find none: it goes to the helper,
    /// and what follows is another fragment's, as the pointer is not known.
    pub(super) fn probe_shared(&mut self, p: &Probe, access: Access, pending: i32) {
        let n = usize::from(self.draft.sites[p.site].index);
        self.c.op_reg(false, 0x89, reg::S0, reg::S1); // mov s1, s0: the offset from the page in the slot
        and_imm(&mut self.c, reg::S1, PAGE as u32 - 1);
        self.c.op_reg(false, 0x81, 7, reg::S1); // cmp s1, 4096 - size
        self.c.bytes(&(PAGE as u32 - u32::from(p.memory.size)).to_le_bytes());
        let crosses = self.c.jcc_later(cc::A);
        self.c.mov_imm(reg::S1, (p.slot - hot!(slots)) as u32);
        let call = self.c.call_later();
        let (probes, variant) = (&self.context.glue.probes, self.context.variant);
        self.cold_outside(
            call,
            match access {
                Access::Mixed => probes.written_before(variant),
                _ => probes.operand(variant, MemoryOperand { size: 1, ..p.memory }),
            },
        );
        let back = self.c.jmp_later();
        self.cold_line(back, p.back);
        // The routine returns behind that jump where there is no translation.
        if access != Access::Mixed {
            self.settle_cold(pending);
            self.call_handler(p.saved(), p.site);
        }
        self.c.bind_here(crosses);
        self.settle_cold(pending);
        self.give_back((self.insns.len() - n) as i32);
        self.plain_link(n, p.saved());
    }

    /// In the cold part: RSP is in its register.
    fn settle_cold(&mut self, pending: i32) {
        if pending != 0 {
            self.c.lea(true, reg::GUEST_RSP, Address::base(reg::GUEST_RSP, pending));
        }
    }
}
