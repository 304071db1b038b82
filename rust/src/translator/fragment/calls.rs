//! Branches, near calls and returns: by a link where the target lies in the same page, else through the table of branch
//! targets.

use iced_x86::{Code, OpKind};

use super::super::asm::{Address, Asm, cc, reg};
use super::super::classify::MemoryOperand;
use super::super::far;
use super::super::glue::{flags_aside, flags_back, gpr, host};
use super::super::hot::hot;
use super::super::returns;
use super::{Builder, Far, Link, PAGE, Place32};

impl Builder<'_> {
    /// Offset of a direct branch's target from the start of the page.
    pub(super) fn target(&self, n: usize) -> i64 {
        // `imm` is the displacement from the end of the instruction.
        self.offsets[n + 1] as i64 + self.insns[n].imm as i64
    }

    /// `into` = linear address at `offset` from the start of this page.
    pub(super) fn linear_of(&mut self, into: u8, offset: i64) {
        linear_of(&mut self.a, into, offset);
    }

    /// Control goes to `offset` from the start of this page.
    pub(super) fn go_to(&mut self, offset: i64) {
        if is_near(offset) {
            let at = self.a.jmp_later();
            self.branch_to(at, offset);
        } else {
            self.go_far(offset);
        }
    }

    /// The same, to another page.
    fn go_far(&mut self, offset: i64) {
        self.save_flags();
        let expected = far::expected(&mut self.a) as u32;
        let other = far::compare(&mut self.a);
        let pages = (offset & !(PAGE as i64 - 1)) as i32;
        if pages != 0 {
            self.a.op_mem(true, 0x81, 0, Address::base(reg::RSP, hot!(rip_page))); // add qword [rip_page], imm32
            self.a.bytes(&pages.to_le_bytes());
        }
        let jump = self.a.jmp_later() as u32;
        let number = self.context.first_far + self.draft.far.len() as u32;
        self.draft.far.push(Far { expected, jump });
        self.bind_cold(other);
        linear_of(&mut self.c, reg::S0, offset);
        self.c.op_mem(false, 0xfe, 1, Address::base(reg::RSP, far::counter(number))); // dec byte [counter]
        let look_up = self.c.jcc_later(cc::NE);
        self.cold_outside(look_up, self.context.glue.lookup_saved);
        self.c.mov_imm(reg::S1, number);
        let out = self.c.jmp_later();
        self.cold_outside(out, self.context.glue.link_far);
    }

    /// Control goes to the address in S0.
    fn look_up(&mut self) {
        self.jump_out(self.lookup());
    }

    /// In the cold part: control goes to `offset` from the start of this page, through the table of branch targets.
    fn look_up_cold(&mut self, offset: i64) {
        linear_of(&mut self.c, reg::S0, offset);
        let out = self.c.jmp_later();
        self.cold_outside(out, self.lookup());
    }

    /// Flags are in `saved_flags` from here on.
    fn save_flags(&mut self) {
        if !self.flags.saved {
            flags_aside(&mut self.a);
        }
    }

    /// The lookup of a target for flags where they are.
    fn lookup(&self) -> usize {
        let glue = &self.context.glue;
        if self.flags.saved { glue.lookup_saved } else { glue.lookup }
    }

    /// The branch in line whose rel32 is at `at` goes to `offset` from the start of this page: by a link, or
    /// through the table of branch targets.
    pub(super) fn branch_to(&mut self, at: usize, offset: i64) {
        self.bind_cold(at);
        if is_near(offset) {
            self.link(Place32::Line(at as u32), offset as u16, false, self.flags.saved);
        } else {
            self.look_up_cold(offset);
        }
    }

    /// The branch in line at `at` leaves the fragment behind instruction `n`, and what follows does not retire.
    pub(super) fn side_exit(&mut self, n: usize, at: usize, offset: i64) {
        self.bind_cold(at);
        self.give_back((self.insns.len() - n - 1) as i32);
        if is_near(offset) {
            self.link_cold(offset as u16, false, self.flags.saved);
        } else {
            self.look_up_cold(offset);
        }
    }

    /// In the cold part: where the branch at `at` goes until it is linked. `saved`: flags are in `saved_flags` there.
    pub(super) fn link(&mut self, at: Place32, target: u16, plain: bool, saved: bool) {
        let number = self.context.first_link + self.draft.links.len() as u32;
        self.draft.links.push(Link { at, target, plain, saved });
        if saved {
            flags_back(&mut self.c);
        }
        self.c.mov_imm(reg::S1, number);
        let out = self.c.jmp_later();
        self.cold_outside(out, self.context.glue.leave_link);
    }

    /// The same, for a jump in the cold part.
    fn link_cold(&mut self, target: u16, plain: bool, saved: bool) {
        let at = self.c.jmp_later();
        self.c.bind_here(at); // until it is linked: the lines that follow
        self.link(Place32::Cold(at as u32), target, plain, saved);
    }

    /// In the cold part: goes to a fragment without groups that begins with instruction `n`.
    pub(super) fn plain_link(&mut self, n: usize, saved: bool) {
        self.link_cold(self.offsets[n] as u16, true, saved);
    }

    /// Goes on behind instruction `n`, the last of its block.
    pub(super) fn behind(&mut self, n: usize) -> Option<bool> {
        if n + 1 == self.insns.len() {
            self.go_to(self.offsets[n + 1] as i64);
            return Some(true);
        }
        Some(false)
    }

    pub(super) fn call(&mut self, n: usize) -> Option<bool> {
        let to = self.target(n);
        i32::try_from(to).ok()?;
        self.push_return(n);
        self.settle();
        self.put_return_down(n);
        self.go_to(to);
        Some(true)
    }

    /// Where the return of call `n`, whose address is in S1, will go on.
    fn put_return_down(&mut self, n: usize) {
        let offset = self.offsets[n + 1] as i64;
        if !returns::are_kept() || !is_near(offset) {
            return;
        }
        let to = returns::put_down(&mut self.a);
        self.bind_cold(to);
        self.link(Place32::Line(to as u32), offset as u16, false, true);
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
        self.put_return_down(n);
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
        if extra != 0 || !returns::are_kept() {
            self.look_up();
            return Some(true);
        }
        self.save_flags();
        self.jump_out(self.context.glue.returns);
        Some(true)
    }
}

/// `into` = linear address at `offset` from the start of the fragment's page.
fn linear_of(a: &mut Asm, into: u8, offset: i64) {
    a.load(into, hot!(rip_page));
    a.lea(true, into, Address::base(into, offset as i32));
}

/// A branch there can be linked. Near the end of the page an instruction may cross it: its fragment is found by linear
/// address only.
fn is_near(offset: i64) -> bool {
    (0..=PAGE as i64 - 15).contains(&offset)
}
