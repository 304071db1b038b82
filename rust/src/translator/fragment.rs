//! From a decoded block to host code: one fragment.
//!
//! Registers live where `glue::MAP` says, memory operands go through the software TLB, what cannot run as
//! itself calls the interpreter's handler. No RIP and nothing of a level's controls is in the code.

mod bits;
mod calls;
mod groups;
mod operand;
mod stack;
mod status;
mod strings;
mod system;

pub use strings::Repeat;
pub use system::System;

use iced_x86::{OpKind, Register};

use super::asm::{Address, Asm, cc, reg};
use super::classify::{GprOperand, MemoryOperand, Native, Place, Plan, classify};
use super::encoding::{Encoding, Rm};
use super::flags;
use super::glue::{Glue, flags_aside, flags_back, gpr, host, state};
use super::hot::hot;
use super::shape::Shapes;
use super::short::Short;
use super::variant::PLAIN;
use crate::decode::{Insn, SLOT_RIP};
use crate::state::seg;

const PAGE: u64 = 4096;

/// Where a helper is called for instruction `index`.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Instruction in the fragment.
    pub index: u16,
    /// Its offset from the start of the page.
    pub offset: u16,
    /// Offset in the fragment's code where it goes on; `None` after control flow: leave.
    pub resume: Option<u32>,
}

/// A direct branch to be linked: its rel32 and the offset of its target in the page.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The rel32.
    pub at: Place32,
    /// Target in the same physical page.
    pub target: u16,
    /// The target is wanted without groups of stack accesses: see `stack`.
    pub plain: bool,
    /// Flags are in `saved_flags` where the branch is.
    pub saved: bool,
}

/// A place in a fragment's code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place32 {
    /// In what is executed as a rule.
    Line(u32),
    /// In what is rarely executed, which lies elsewhere.
    Cold(u32),
}

/// Where a branch goes.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// Into the same fragment.
    Own(Place32),
    /// To an address.
    Address(u64),
}

/// Code of a fragment, not placed yet.
#[derive(Debug, Default)]
pub struct Draft {
    /// Host code in line.
    pub code: Vec<u8>,
    /// Host code that is rarely executed.
    pub cold: Vec<u8>,
    /// Offset of the entry for flags in the host.
    pub entry: u32,
    /// Offset of the entry for saved flags.
    pub entry_saved: u32,
    /// Offsets in `cold` of the ways out of a stale fragment, for the two entries.
    pub stale: [u32; 2],
    /// rel32s that need the final addresses, and where they go.
    pub branches: Vec<(Place32, Goal)>,
    /// Helper calls; the code has `first_site + n` for number n.
    pub sites: Vec<Site>,
    /// Direct branches.
    pub links: Vec<Link>,
    /// Instructions that run as themselves, for statistics.
    pub native: u32,
    /// Where the code of each guest instruction begins, and the end.
    pub starts: Vec<u32>,
}

/// What stays the same for all fragments.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Address of the shared code.
    pub glue_base: u64,
    /// Its entry points.
    pub glue: Glue,
    /// Number of the next site and link.
    pub first_site: u32,
    /// See `first_site`.
    pub first_link: u32,
    /// What the fragment takes for granted.
    pub variant: u8,
    /// The instruction behind the block, where the last one is STI.
    pub next: Option<&'a Insn>,
    /// Flags are exact at every point where the state can be seen.
    pub exact_flags: bool,
}

/// A way to the helper in the cold part.
struct Cold {
    /// rel32s in line that come here.
    from: Vec<usize>,
    /// Flags are in `saved_flags`.
    saved: bool,
    site: usize,
}

struct Builder<'a> {
    /// Code in line.
    a: Asm,
    /// Code that is rarely executed.
    c: Asm,
    draft: Draft,
    context: &'a Context<'a>,
    insns: &'a [Insn],
    /// Offset in the page of each instruction, and of the end.
    offsets: Vec<u64>,
    cold: Vec<Cold>,
    probes: Vec<operand::Probe>,
    live: Vec<bool>,
    flags: status::Flags,
    groups: Vec<stack::Group>,
    /// Instructions that access the stack in a group.
    stacked: Vec<bool>,
    checks: Vec<stack::Check>,
    shared: groups::Groups,
    /// Guest RSP minus its host register: what pushes and pops have not moved yet.
    pending: i32,
}

/// What translation of one fragment leaves to that of the next: its result, and room.
#[derive(Default)]
pub struct Scratch {
    /// The fragment translated last.
    pub draft: Draft,
    code: [Vec<u8>; 2],
    plans: Vec<Plan>,
    offsets: Vec<u64>,
    cold: Vec<Cold>,
    probes: Vec<operand::Probe>,
    live: Vec<bool>,
    groups: Vec<stack::Group>,
    stacked: Vec<bool>,
    checks: Vec<stack::Check>,
    shared: groups::Groups,
    shapes: Shapes,
}

impl Draft {
    /// As new, with the room it had.
    fn reset(&mut self) {
        self.code.clear();
        self.cold.clear();
        self.branches.clear();
        self.sites.clear();
        self.links.clear();
        self.starts.clear();
        self.native = 0;
    }
}

/// Room for what a fragment needs, empty.
fn room<T>(of: &mut Vec<T>) -> Vec<T> {
    of.clear();
    std::mem::take(of)
}

/// Translates `insns`, whose bytes are `bytes` at offset `offset` of their page, into `scratch.draft`.
pub fn translate(insns: &[Insn], bytes: &[u8], offset: u64, context: &Context<'_>, scratch: &mut Scratch) {
    let mut plans = room(&mut scratch.plans);
    plans.extend(insns.iter().map(|i| classify(i, context.variant, &mut scratch.shapes)));
    flags::live(insns, &plans, context.exact_flags, &mut scratch.live);
    let mut offsets = room(&mut scratch.offsets);
    let mut end = offset;
    offsets.push(end);
    for insn in insns {
        end += u64::from(insn.len);
        offsets.push(end);
    }
    let (mut groups, mut stacked) = (room(&mut scratch.groups), room(&mut scratch.stacked));
    stacked.resize(insns.len(), false);
    if context.variant & PLAIN == 0 {
        stack::groups(insns, &plans, &mut groups, &mut stacked);
    }
    let mut shared = std::mem::take(&mut scratch.shared);
    shared.find(insns, &plans, &offsets, context.variant & PLAIN == 0);
    scratch.draft.reset();
    let [line, cold] = &mut scratch.code;
    let mut b = Builder {
        a: Asm { code: room(line) },
        c: Asm { code: room(cold) },
        draft: std::mem::take(&mut scratch.draft),
        context,
        insns,
        offsets,
        cold: room(&mut scratch.cold),
        probes: room(&mut scratch.probes),
        live: std::mem::take(&mut scratch.live),
        flags: status::Flags::default(),
        groups,
        stacked,
        checks: room(&mut scratch.checks),
        shared,
        pending: 0,
    };
    b.entry();
    let mut at = 0;
    let mut ended = false;
    for (n, plan) in plans.iter().enumerate() {
        let len = usize::from(insns[n].len);
        b.draft.starts.push(b.a.at() as u32);
        ended = b.instruction(n, plan, &bytes[at..at + len]);
        at += len;
    }
    if !ended {
        b.settle();
        let end = b.offsets[insns.len()];
        b.go_to(end as i64);
    }
    b.finish();
    std::mem::swap(&mut b.a.code, &mut b.draft.code);
    std::mem::swap(&mut b.c.code, &mut b.draft.cold);
    scratch.code = [b.a.code, b.c.code];
    (scratch.draft, scratch.plans, scratch.offsets, scratch.live) = (b.draft, plans, b.offsets, b.live);
    (scratch.cold, scratch.probes, scratch.checks) = (b.cold, b.probes, b.checks);
    (scratch.groups, scratch.stacked, scratch.shared) = (b.groups, b.stacked, b.shared);
}

impl Builder<'_> {
    /// The rel32 at `at` in line goes to shared code.
    fn outside(&mut self, at: usize, target: usize) {
        let goal = Goal::Address(self.context.glue_base + target as u64);
        self.draft.branches.push((Place32::Line(at as u32), goal));
    }

    /// The rel32 at `at` in the cold part goes to shared code.
    fn cold_outside(&mut self, at: usize, target: usize) {
        let goal = Goal::Address(self.context.glue_base + target as u64);
        self.draft.branches.push((Place32::Cold(at as u32), goal));
    }

    /// The rel32 at `at` in line goes to what comes next in the cold part.
    fn bind_cold(&mut self, at: usize) {
        let goal = Goal::Own(Place32::Cold(self.c.at() as u32));
        self.draft.branches.push((Place32::Line(at as u32), goal));
    }

    /// The rel32 at `at` in the cold part goes to `line`.
    fn cold_line(&mut self, at: usize, line: usize) {
        self.draft.branches.push((Place32::Cold(at as u32), Goal::Own(Place32::Line(line as u32))));
    }

    fn jump_out(&mut self, target: usize) {
        let at = self.a.jmp_later();
        self.outside(at, target);
    }

    /// The budget, with the flags out of the way where somebody still needs them.
    fn entry(&mut self) {
        let needed = self.live[0];
        self.draft.entry = 0;
        if needed {
            flags_aside(&mut self.a);
        } else {
            // The two ways in stay apart: where the code goes stale, what replaces it may need the flags.
            self.a.bytes(&[0x0f, 0x1f, 0x44, 0x00, 0x00]);
        }
        self.draft.entry_saved = self.a.at() as u32;
        let n = self.insns.len() as u8;
        self.a.op_mem(true, 0x83, 5, Address::base(reg::RSP, hot!(budget))); // sub qword [budget], n
        self.a.bytes(&[n]);
        let over = self.a.jcc_later(cc::S);
        self.flags = status::Flags { host: false, saved: needed };
        // The budget does not reach: give it back and leave before the first instruction.
        self.bind_cold(over);
        self.give_back(i32::from(n));
        let offset = self.offsets[0] as u32;
        self.leave_at(offset, needed);
    }

    /// In the cold part: `n` instructions do not retire.
    fn give_back(&mut self, n: i32) {
        self.c.load(reg::S1, hot!(budget));
        self.c.lea(true, reg::S1, Address::base(reg::S1, n));
        self.c.store(reg::S1, hot!(budget));
    }

    /// In the cold part: leaves with RIP at `offset` from the start of the page.
    fn leave_at(&mut self, offset: u32, saved: bool) {
        self.c.mov_imm(reg::S1, offset);
        let at = self.c.jmp_later();
        let out = if saved { self.context.glue.leave_saved } else { self.context.glue.leave_here };
        self.cold_outside(at, out);
    }

    fn site(&mut self, index: usize, resume: Option<u32>) -> usize {
        self.draft.sites.push(Site { index: index as u16, offset: self.offsets[index] as u16, resume });
        self.draft.sites.len() - 1
    }

    /// Calls the interpreter's handler for instruction `n`.
    fn interpret(&mut self, n: usize) {
        self.put_pointer_aside(n);
        self.forget_pointer();
        self.flags_to_host(n);
        let site = self.site(n, None);
        self.a.mov_imm(reg::S1, self.context.first_site + site as u32);
        self.jump_out(self.context.glue.slow);
        if n + 1 < self.insns.len() && !changes_variant(&self.insns[n]) {
            self.draft.sites[site].resume = Some(self.a.at() as u32);
        }
        self.flags = status::Flags { host: true, saved: true };
    }

    /// Emits instruction `n`; true if control does not go on behind it.
    fn instruction(&mut self, n: usize, plan: &Plan, bytes: &[u8]) -> bool {
        if self.pending != 0 && !self.leaves_stack_pending(n, plan) {
            self.settle();
        }
        self.begin_shared(n, plan);
        self.check_stack(n);
        if !status::goes_by(plan) {
            self.flags_to_host(n);
        }
        let done = match plan {
            Plan::Interpret => None,
            Plan::Native(native) => Encoding::parse(bytes).and_then(|e| self.native(n, native, &e)),
            Plan::Lea => Encoding::parse(bytes).and_then(|e| self.lea(n, &e)),
            Plan::Push => self.push(n),
            Plan::Pop => self.pop(n),
            Plan::Leave => self.leave(n),
            Plan::Jcc | Plan::Jump if i32::try_from(self.target(n)).is_err() => None,
            Plan::Jcc => {
                let condition = self.insns[n].iced.condition_code() as u8;
                let taken = self.a.jcc_later(CONDITIONS[usize::from(condition).min(16)]);
                let to = self.target(n);
                self.branch_to(taken, to);
                self.go_to(self.offsets[n + 1] as i64);
                Some(true)
            }
            Plan::JumpIfZero => {
                self.a.bytes(&[0xe3, 5]); // over the jump
                let past = self.a.jmp_later();
                let to = self.target(n);
                self.go_to(to);
                self.a.bind_here(past);
                self.go_to(self.offsets[n + 1] as i64);
                Some(true)
            }
            Plan::Jump => {
                let to = self.target(n);
                self.go_to(to);
                Some(true)
            }
            Plan::Call => self.call(n),
            Plan::JumpIndirect => self.jump_indirect(n),
            Plan::CallIndirect => self.call_indirect(n),
            Plan::Return => self.ret(n),
            Plan::PushMemory => self.push_memory(n),
            Plan::PopMemory => self.pop_memory(n),
            Plan::PushFlags => self.push_flags(n),
            Plan::Nothing => Some(false),
            Plan::Divide => Encoding::parse(bytes).and_then(|e| self.divide(n, &e)),
            Plan::SwapGs => self.swap_gs(),
            Plan::Cli => self.cli(n),
            Plan::Sti => self.sti(n),
            Plan::AccessCheck(off) => self.access_check(n, *off),
            Plan::BitString => Encoding::parse(bytes).and_then(|e| self.bit_string(n, &e)),
            Plan::System(system) => self.system(n, *system),
            Plan::Repeat(repeat) => self.repeat(n, *repeat),
        };
        if let Some(ended) = done {
            self.flags_after(n);
            self.end_shared(n, plan);
            self.draft.native += 1;
            return ended;
        }
        self.settle();
        self.interpret(n);
        if n + 1 < self.insns.len() {
            return false;
        }
        // The last instruction leaves from its helper, unless what comes next is as it was.
        if is_calm(&self.insns[n]) {
            let site = self.draft.sites.len() - 1;
            self.resumes_here(site);
            self.go_to(self.offsets[n + 1] as i64);
        }
        true
    }

    /// Offset of a direct branch's target from the start of the page.
    fn target(&self, n: usize) -> i64 {
        // `imm` is the displacement from the end of the instruction.
        self.offsets[n + 1] as i64 + self.insns[n].imm as i64
    }

    /// `into` = linear address at `offset` from the start of this page.
    fn linear_of(&mut self, into: u8, offset: i64) {
        self.a.load(into, hot!(rip_page));
        self.a.lea(true, into, Address::base(into, offset as i32));
    }

    /// Control goes to `offset` from the start of this page.
    fn go_to(&mut self, offset: i64) {
        if is_near(offset) {
            let at = self.a.jmp_later();
            self.branch_to(at, offset);
        } else {
            self.linear_of(reg::S0, offset);
            self.look_up();
        }
    }

    /// Control goes to the address in S0.
    fn look_up(&mut self) {
        self.jump_out(self.lookup());
    }

    /// The lookup of a target for flags where they are.
    fn lookup(&self) -> usize {
        let glue = &self.context.glue;
        if self.flags.saved { glue.lookup_saved } else { glue.lookup }
    }

    /// The branch in line whose rel32 is at `at` goes to `offset` from the start of this page: by a link, or
    /// through the table of branch targets.
    fn branch_to(&mut self, at: usize, offset: i64) {
        self.bind_cold(at);
        if is_near(offset) {
            self.link(Place32::Line(at as u32), offset as u16, false, self.flags.saved);
        } else {
            self.c.load(reg::S0, hot!(rip_page));
            self.c.lea(true, reg::S0, Address::base(reg::S0, offset as i32));
            let out = self.c.jmp_later();
            self.cold_outside(out, self.lookup());
        }
    }

    /// In the cold part: where the branch at `at` goes until it is linked. `saved`: flags are in `saved_flags` there.
    fn link(&mut self, at: Place32, target: u16, plain: bool, saved: bool) {
        let number = self.context.first_link + self.draft.links.len() as u32;
        self.draft.links.push(Link { at, target, plain, saved });
        if saved {
            flags_back(&mut self.c);
        }
        self.c.mov_imm(reg::S1, number);
        let out = self.c.jmp_later();
        self.cold_outside(out, self.context.glue.leave_link);
    }

    /// In the cold part: goes to a fragment without groups that begins with instruction `n`.
    fn plain_link(&mut self, n: usize, saved: bool) {
        let at = self.c.jmp_later();
        self.c.bind_here(at); // until it is linked: the lines that follow
        self.link(Place32::Cold(at as u32), self.offsets[n] as u16, true, saved);
    }

    /// Where the helper of `site` goes on: here.
    fn resumes_here(&mut self, site: usize) {
        self.draft.sites[site].resume = Some(self.a.at() as u32);
    }

    // --- instructions ---

    /// An instruction as itself, with its registers where the guest's are.
    fn native(&mut self, n: usize, native: &Native, e: &Encoding<'_>) -> Option<bool> {
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

    fn lea(&mut self, n: usize, e: &Encoding<'_>) -> Option<bool> {
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

    fn load_guest(&mut self, guest: u8, from: Address) {
        let into = host(guest).unwrap_or(reg::S0);
        self.a.op_mem(true, 0x8b, into, from);
        if host(guest).is_none() {
            self.a.store(into, gpr(guest));
        }
    }

    fn leave(&mut self, n: usize) -> Option<bool> {
        self.a.mov(reg::S0, reg::RBP);
        let site = self.translate_address(n, MemoryOperand { size: 8, written: false, aligned: false });
        self.a.lea(true, reg::GUEST_RSP, Address::base(reg::RBP, 8));
        self.a.op_mem(true, 0x8b, reg::RBP, Address::base(reg::S0, 0));
        self.resumes_here(site);
        Some(false)
    }

    // --- system instructions ---

    fn push_memory(&mut self, n: usize) -> Option<bool> {
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

    fn pop_memory(&mut self, n: usize) -> Option<bool> {
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

    /// S0 or S1 = its bits in the mask at `[rsp + mask]`, flags untouched (PEXT, PDEP).
    fn select_bits(&mut self, register: u8, mask: i32) {
        for pp in [2, 3] {
            // VEX.LZ.F3/F2.0F38.W1 F5 /r: register = register pext/pdep [mask]
            self.a.bytes(&[0xc4, 0x42 | 0x20, 0x80 | (!register & 15) << 3 | pp, 0xf5]);
            self.a.modrm(register, Address::base(reg::RSP, mask));
        }
    }

    fn push_flags(&mut self, n: usize) -> Option<bool> {
        self.a.bytes(&[0x9c, 0x41, 0x5b]); // pushfq; pop r11
        self.select_bits(reg::S1, hot!(status_mask));
        self.a.load(reg::S0, state!(rflags));
        self.select_bits(reg::S0, hot!(pushed_mask));
        let both = Address { base: Some(reg::S0), index: Some(reg::S1), shift: 0, disp: 0 };
        self.a.lea(true, reg::S0, both);
        self.a.store(reg::S0, hot!(target));
        if let Some(site) = self.push_target(n) {
            self.resumes_here(site);
        }
        Some(false)
    }

    /// DIV and IDIV, with what would raise #DE (and a little more) left to the helper. The flags that the
    /// instruction leaves undefined are those of the host, given the flags from before.
    fn divide(&mut self, n: usize, e: &Encoding<'_>) -> Option<bool> {
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

    fn swap_gs(&mut self) -> Option<bool> {
        let base = state!(seg) + 32 * seg::GS as i32 + 8;
        self.a.load(reg::S0, base);
        self.a.load(reg::S1, state!(kernel_gs_base));
        self.a.store(reg::S1, base);
        self.a.store(reg::S0, state!(kernel_gs_base));
        Some(false)
    }

    /// RFLAGS without IF, in S0.
    fn without_interrupts(&mut self) {
        self.a.load(reg::S0, state!(rflags));
        self.select_bits(reg::S0, hot!(no_interrupts_mask));
    }

    fn cli(&mut self, n: usize) -> Option<bool> {
        self.without_interrupts();
        self.a.store(reg::S0, state!(rflags));
        self.behind(n)
    }

    /// Goes on behind instruction `n`, the last of its block.
    fn behind(&mut self, n: usize) -> Option<bool> {
        if n + 1 == self.insns.len() {
            self.go_to(self.offsets[n + 1] as i64);
            return Some(true);
        }
        Some(false)
    }

    /// STI where its shadow cannot be seen: what follows is an instruction that neither faults nor exits, it
    /// will execute before the budget ends, and nobody waits for an interrupt window.
    fn sti(&mut self, n: usize) -> Option<bool> {
        let next = self.context.next?;
        if !is_harmless(next) {
            return None;
        }
        flags_aside(&mut self.a);
        self.a.op_mem(true, 0x83, 7, Address::base(reg::RSP, hot!(window))); // cmp qword [window], 0
        self.a.bytes(&[0]);
        let window = self.a.jcc_later(cc::NE);
        self.a.op_mem(true, 0x83, 7, Address::base(reg::RSP, hot!(budget))); // cmp qword [budget], 64
        self.a.bytes(&[64]);
        let short = self.a.jcc_later(cc::L);
        flags_back(&mut self.a);
        self.without_interrupts();
        self.a.lea(true, reg::S0, Address::base(reg::S0, crate::state::flag::IF as i32));
        self.a.store(reg::S0, state!(rflags));
        let site = self.site(n, None);
        self.cold.push(Cold { from: vec![window, short], saved: true, site });
        self.behind(n)
    }

    /// STAC and CLAC: the flag, and the TLB array that goes with it.
    fn access_check(&mut self, n: usize, off: bool) -> Option<bool> {
        self.a.load(reg::S0, state!(rflags));
        self.select_bits(reg::S0, hot!(no_ac_mask));
        if off {
            self.a.lea(true, reg::S0, Address::base(reg::S0, crate::state::flag::AC as i32));
        }
        self.a.store(reg::S0, state!(rflags));
        self.a.load(reg::S0, if off { hot!(tlb_unchecked) } else { hot!(tlb_checked) });
        self.a.store(reg::S0, hot!(tlb));
        self.behind(n)
    }

    // --- the end ---

    /// In the cold part: calls the interpreter's handler.
    fn call_handler(&mut self, saved: bool, site: usize) {
        if saved {
            flags_back(&mut self.c);
        }
        self.c.mov_imm(reg::S1, self.context.first_site + site as u32);
        let at = self.c.jmp_later();
        self.cold_outside(at, self.context.glue.slow);
    }

    fn finish(&mut self) {
        self.draft.starts.push(self.a.at() as u32);
        let probes = std::mem::take(&mut self.probes);
        for probe in &probes {
            self.probe(probe);
        }
        let checks = std::mem::take(&mut self.checks);
        for check in &checks {
            self.other_stack(check);
        }
        let cold = std::mem::take(&mut self.cold);
        for cold in &cold {
            for &at in &cold.from {
                self.bind_cold(at);
            }
            self.call_handler(cold.saved, cold.site);
        }
        (self.probes, self.checks, self.cold) = (probes, checks, cold);
        for n in 0..2 {
            self.draft.stale[n] = self.c.at() as u32;
            if self.context.variant & PLAIN == 0 {
                let offset = self.offsets[0] as u32;
                self.leave_at(offset, n == 1);
                continue;
            }
            // Who came here must not go on with the groups that failed.
            self.plain_link(0, n == 1);
        }
    }
}

/// A branch there can be linked. Near the end of the page an instruction may cross it: its fragment is found by linear
/// address only.
fn is_near(offset: i64) -> bool {
    (0..=PAGE as i64 - 15).contains(&offset)
}

/// Where the guest registers of an instruction that stay in memory are meanwhile. `pointed`: S0 points to its memory
/// operand; what is read before anything is written may then be written to S0, too. `stacked`: the operand is reached
/// through [`reg::STACK`], which is else lent as well, and loaded again.
fn scratch_registers(native: &Native, pointed: bool, stacked: bool) -> Option<Short<(u8, u8), 3>> {
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

/// Jcc condition codes by iced's `ConditionCode`: none, o, no, b, ae, e, ne, be, a, s, ns, p, np, l, ge, le, g.
const CONDITIONS: [u8; 17] = [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Whether vector instructions may run natively can differ behind it.
fn changes_variant(insn: &Insn) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(
        insn.iced.mnemonic(),
        M::Ldmxcsr | M::Vldmxcsr | M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64
    )
}

/// An instruction that ends its block and changes neither mode nor privilege, as a rule: the helper knows when it did.
fn is_calm(insn: &Insn) -> bool {
    use iced_x86::Mnemonic as M;
    let i = &insn.iced;
    match i.mnemonic() {
        M::Vmread | M::Vmwrite | M::Rdmsr | M::Wrmsr | M::Rdpmc | M::Invlpg | M::Lgdt | M::Lidt => true,
        M::Xsaves | M::Xsaves64 => true,
        M::Mov | M::Pop => {
            let data = [Register::DS, Register::ES, Register::FS, Register::GS];
            i.op0_kind() == OpKind::Register && data.contains(&i.op0_register())
        }
        _ => false,
    }
}

/// Register moves and NOPs: they neither fault nor exit, and read no flags.
fn is_harmless(insn: &Insn) -> bool {
    use iced_x86::Mnemonic as M;
    let i = &insn.iced;
    let registers = (0..i.op_count()).all(|n| match i.op_kind(n) {
        OpKind::Register => i.op_register(n).is_gpr(),
        kind => {
            matches!(kind, OpKind::Immediate8 | OpKind::Immediate32 | OpKind::Immediate8to32 | OpKind::Immediate8to64)
        }
    });
    match i.mnemonic() {
        M::Nop => true,
        M::Mov | M::Xor | M::And | M::Or | M::Add | M::Sub | M::Test | M::Cmp => registers,
        M::Lea => true,
        _ => false,
    }
}
