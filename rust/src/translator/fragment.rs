//! From a decoded block to host code: one fragment.
//!
//! Registers live where `glue::MAP` says, memory operands go through the software TLB, what cannot run as
//! itself calls the interpreter's handler. No RIP and nothing of a level's controls is in the code.

mod bits;
mod calls;
mod groups;
mod native;
mod operand;
mod stack;
mod status;
mod strings;
mod system;

pub use strings::Repeat;
pub use system::System;

use iced_x86::{OpKind, Register};

use super::asm::{Address, Asm, cc, reg};
use super::classify::{Plan, classify};
use super::encoding::Encoding;
use super::flags;
use super::glue::{Glue, flags_aside, flags_back};
use super::hot::hot;
use super::shape::Shapes;
use super::variant::PLAIN;
use crate::decode::Insn;

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

/// A direct branch to another page: offsets in line of what it is compared with and of its rel32; see [`super::far`].
#[derive(Clone, Copy, Debug)]
pub struct Far {
    /// The imm64.
    pub expected: u32,
    /// The rel32.
    pub jump: u32,
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
    /// Those to other pages.
    pub far: Vec<Far>,
    /// Instructions that run as themselves, for statistics.
    pub native: u32,
    /// Where the code of each guest instruction begins, and the end.
    pub starts: Vec<u32>,
}

/// What stays the same for all fragments.
#[derive(Clone, Copy)]
pub struct Context {
    /// Address of the shared code.
    pub glue_base: u64,
    /// Its entry points.
    pub glue: Glue,
    /// Number of the next site and link.
    pub first_site: u32,
    /// See `first_site`.
    pub first_link: u32,
    /// See `first_site`.
    pub first_far: u32,
    /// What the fragment takes for granted.
    pub variant: u8,
    /// See [`super::behind_sti`].
    pub harmless_next: bool,
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
    context: &'a Context,
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
        self.far.clear();
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
pub fn translate(insns: &[Insn], bytes: &[u8], offset: u64, context: &Context, scratch: &mut Scratch) {
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
    pub(super) fn give_back(&mut self, n: i32) {
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
        if n + 1 < self.insns.len() {
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
                if n + 1 < self.insns.len() {
                    self.side_exit(n, taken, to);
                    Some(false)
                } else {
                    self.branch_to(taken, to);
                    self.go_to(self.offsets[n + 1] as i64);
                    Some(true)
                }
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

    /// Where the helper of `site` goes on: here.
    fn resumes_here(&mut self, site: usize) {
        self.draft.sites[site].resume = Some(self.a.at() as u32);
    }

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

/// Jcc condition codes by iced's `ConditionCode`: none, o, no, b, ae, e, ne, be, a, s, ns, p, np, l, ge, le, g.
const CONDITIONS: [u8; 17] = [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// An instruction that ends its block and changes neither mode nor privilege, as a rule: the helper knows when it did.
fn is_calm(insn: &Insn) -> bool {
    use iced_x86::Mnemonic as M;
    let i = &insn.iced;
    match i.mnemonic() {
        M::Vmread | M::Vmwrite | M::Rdmsr | M::Wrmsr | M::Rdpmc | M::Invlpg | M::Lgdt | M::Lidt => true,
        M::Xsaves | M::Xsaves64 | M::Xrstors | M::Xrstors64 => true,
        M::Mov | M::Pop => {
            let data = [Register::DS, Register::ES, Register::FS, Register::GS];
            i.op0_kind() == OpKind::Register && data.contains(&i.op0_register())
        }
        _ => false,
    }
}
