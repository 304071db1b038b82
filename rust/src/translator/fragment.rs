//! From a decoded block to host code: one fragment.
//!
//! Registers live where `glue::MAP` says, memory operands go through the software TLB, what cannot run as
//! itself calls the interpreter's handler. No RIP and nothing of a level's controls is in the code.

mod bits;
mod strings;
mod system;

pub use strings::Repeat;
pub use system::System;

use iced_x86::{InstructionInfoFactory, OpKind};

use super::asm::{Address, Asm, cc, reg};
use super::classify::{GprOperand, MemoryOperand, Native, Place, Plan, classify};
use super::encoding::{Encoding, Rm};
use super::flags;
use super::glue::{Glue, and_imm, gpr, host, restore_flags, save_flags, shift_right, state};
use super::hot::{SLOTS, hot, slot_part};
use super::variant::{SMAP, SUPERVISOR};
use crate::decode::{Insn, SLOT_NONE, SLOT_RIP};
use crate::state::seg;

const PAGE: u64 = 4096;
/// Offsets of a TLB entry's fields.
pub const TAG_READ: i32 = 0;
/// See [`TAG_READ`].
pub const TAG_WRITE: i32 = 8;
const HOST: i32 = 24;

/// Where a helper is called for instruction `index`.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Instruction in the fragment.
    pub index: u16,
    /// Offset in the fragment's code where it goes on; `None` after control flow: leave.
    pub resume: Option<u32>,
}

/// A direct branch to be linked: its rel32 and the offset of its target in the page.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Offset of the rel32 in the fragment's code.
    pub at: u32,
    /// Target in the same physical page.
    pub target: u16,
}

/// Code of a fragment, not placed yet. Branches to the shared code are listed in `outside`.
#[derive(Debug, Default)]
pub struct Draft {
    /// Host code.
    pub code: Vec<u8>,
    /// Offset of the entry for flags in the host.
    pub entry: u32,
    /// Offset of the entry for saved flags.
    pub entry_saved: u32,
    /// Offsets of the ways out of a stale fragment, for the two entries.
    pub stale: [u32; 2],
    /// Offsets of rel32s and the address they go to.
    pub outside: Vec<(u32, u64)>,
    /// Helper calls; the code has `first_site + n` for number n.
    pub sites: Vec<Site>,
    /// Direct branches.
    pub links: Vec<Link>,
    /// Instructions that run as themselves, for statistics.
    pub native: u32,
    /// Where the code of each guest instruction begins, and where what is rarely executed does.
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

struct Cold {
    /// rel32s that come here.
    from: Vec<usize>,
    index: u16,
    /// Flags are in `saved_flags`.
    saved: bool,
    /// Site number and whether it resumes.
    site: usize,
}

/// A memory operand's second way to its host pointer.
struct Probe {
    from: usize,
    back: usize,
    slot: i32,
    memory: MemoryOperand,
    saved: bool,
    site: usize,
}

struct Builder<'a> {
    a: Asm,
    draft: Draft,
    context: &'a Context<'a>,
    insns: &'a [Insn],
    /// Offset in the page of each instruction, and of the end.
    offsets: Vec<u64>,
    cold: Vec<Cold>,
    probes: Vec<Probe>,
    live: Vec<bool>,
}

/// Translates `insns`, whose bytes are `bytes` at offset `offset` of their page.
#[must_use]
pub fn translate(
    insns: &[Insn],
    bytes: &[u8],
    offset: u64,
    context: &Context<'_>,
    infos: &mut InstructionInfoFactory,
) -> Draft {
    let plans: Vec<Plan> = insns.iter().map(|i| classify(i, context.variant, infos)).collect();
    let live = flags::live(insns, &plans, context.exact_flags);
    let mut offsets = vec![offset];
    for insn in insns {
        offsets.push(offsets[offsets.len() - 1] + u64::from(insn.len));
    }
    let mut b = Builder {
        a: Asm::default(),
        draft: Draft::default(),
        context,
        insns,
        offsets,
        cold: Vec::new(),
        probes: Vec::new(),
        live,
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
        let end = b.offsets[insns.len()];
        b.go_to(end as i64);
    }
    b.finish()
}

impl Builder<'_> {
    fn outside(&mut self, at: usize, target: usize) {
        self.draft.outside.push((at as u32, self.context.glue_base + target as u64));
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
            save_flags(&mut self.a);
        } else {
            // The two ways in stay apart: where the code goes stale, what replaces it may need the flags.
            self.a.bytes(&[0x0f, 0x1f, 0x44, 0x00, 0x00]);
        }
        self.draft.entry_saved = self.a.at() as u32;
        let n = self.insns.len() as i32;
        // sub qword [budget], n
        self.a.op_mem(true, 0x81, 5, Address::base(reg::RSP, hot!(budget)));
        self.a.bytes(&n.to_le_bytes());
        let over = self.a.jcc_later(cc::S);
        if needed {
            restore_flags(&mut self.a);
        }
        // The way out lies in the cold part; see `finish`.
        self.cold.push(Cold { from: vec![over], index: u16::MAX, saved: needed, site: 0 });
    }

    fn site(&mut self, index: usize, resume: Option<u32>) -> usize {
        self.draft.sites.push(Site { index: index as u16, resume });
        self.draft.sites.len() - 1
    }

    /// Calls the interpreter's handler for instruction `n`.
    fn interpret(&mut self, n: usize) {
        let site = self.site(n, None);
        self.a.mov_imm(reg::S1, self.context.first_site + site as u32);
        self.jump_out(self.context.glue.slow);
        if n + 1 < self.insns.len() && !changes_variant(&self.insns[n]) {
            self.draft.sites[site].resume = Some(self.a.at() as u32);
        }
    }

    /// Emits instruction `n`; true if control does not go on behind it.
    fn instruction(&mut self, n: usize, plan: &Plan, bytes: &[u8]) -> bool {
        let done = match plan {
            Plan::Interpret => None,
            Plan::Native(native) => Encoding::parse(bytes).and_then(|e| self.native(n, native, &e)),
            Plan::Lea => Encoding::parse(bytes).and_then(|e| self.lea(n, &e)),
            Plan::Push => self.push(n),
            Plan::Pop => self.pop(n),
            Plan::Leave => self.leave(n),
            Plan::Jcc | Plan::Jump if i32::try_from(self.target(n)).is_err() => None,
            Plan::Jcc => {
                let to = self.target(n);
                let condition = self.insns[n].iced.condition_code() as u8;
                let taken = self.a.jcc_later(CONDITIONS[usize::from(condition).min(16)]);
                self.go_to(self.offsets[n + 1] as i64);
                self.a.bind_here(taken);
                self.go_to(to);
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
            self.draft.native += 1;
            return ended;
        }
        self.interpret(n);
        // The last instruction leaves from its helper.
        n + 1 == self.insns.len()
    }

    /// Offset of a direct branch's target from the start of the page.
    fn target(&self, n: usize) -> i64 {
        // `imm` is the displacement from the end of the instruction.
        self.offsets[n + 1] as i64 + self.insns[n].imm as i64
    }

    /// S0 = linear address at `offset` from the start of this page.
    fn linear_of(&mut self, into: u8, offset: i64) {
        self.a.load(into, hot!(rip_page));
        self.a.lea(true, into, Address::base(into, offset as i32));
    }

    /// Control goes to `offset` from the start of this page; flags are in the host.
    fn go_to(&mut self, offset: i64) {
        // Near the end of the page an instruction may cross it: its fragment is found by linear address only.
        if (0..=PAGE as i64 - 15).contains(&offset) {
            let link = self.draft.links.len() as u32;
            let at = self.a.jmp_later();
            self.a.bind_here(at); // until it is linked: the lines that follow
            self.linear_of(reg::S0, offset);
            self.a.store(reg::S0, state!(rip));
            self.a.mov_imm(reg::S1, self.context.first_link + link);
            self.jump_out(self.context.glue.leave_link);
            self.draft.links.push(Link { at: at as u32, target: offset as u16 });
        } else {
            self.linear_of(reg::S0, offset);
            self.jump_out(self.context.glue.lookup);
        }
    }

    // --- memory ---

    /// The host register of a guest register used in an address; loads it into `scratch` if it has none.
    fn address_register(&mut self, slot: u8, scratch: u8) -> u8 {
        host(slot).unwrap_or_else(|| {
            self.a.load(scratch, gpr(slot));
            scratch
        })
    }

    /// S0 = effective address (without segment base), or into `into`. False: it cannot be expressed.
    fn effective(&mut self, n: usize, into: u8, wide: bool) -> bool {
        let insn = &self.insns[n];
        let disp = insn.disp as i64;
        if insn.base == SLOT_RIP {
            let offset = self.offsets[n] as i64 + disp;
            let Ok(_) = i32::try_from(offset) else { return false };
            if insn.address_mask != !0 {
                return false;
            }
            self.a.load(reg::S0, hot!(rip_page));
            self.a.lea(wide, into, Address::base(reg::S0, offset as i32));
            return true;
        }
        let disp = if insn.address_mask == !0 { disp } else { i64::from(insn.disp as u32 as i32) };
        let Ok(disp) = i32::try_from(disp) else { return false };
        let base = (insn.base != SLOT_NONE).then(|| self.address_register(insn.base, reg::S0));
        let index = (insn.index != SLOT_NONE).then(|| self.address_register(insn.index, reg::S1));
        let address = Address { base, index, shift: insn.shift, disp };
        self.a.lea(wide && insn.address_mask == !0, into, address);
        true
    }

    /// S0 = host pointer of the linear address in S0, through the TLB; otherwise to the cold part.
    /// Clobbers S1 and the flags, unless they live: then they are saved and restored.
    fn translate_address(&mut self, n: usize, m: MemoryOperand) -> usize {
        let live = self.live[n];
        if live {
            save_flags(&mut self.a);
        }
        let supervisor = self.context.variant & SUPERVISOR != 0;
        let site = self.site(n, None);
        let number = (self.context.first_site as usize + site) % SLOTS;
        let slot = hot!(slots) + 16 * (slot_part(m.written, supervisor) + number) as i32;
        // The page that this operand met last; the TLB is asked in the cold part.
        self.a.op_mem(true, 0x2b, reg::S0, Address::base(reg::RSP, slot)); // sub s0, [slot's page]
        let from = self.leave_page(m);
        self.a.op_mem(true, 0x03, reg::S0, Address::base(reg::RSP, slot + 8)); // add s0, [slot's host pointer]
        let back = self.a.at();
        if live {
            restore_flags(&mut self.a);
        }
        self.probes.push(Probe { from, back, slot, memory: m, saved: live, site });
        site
    }

    /// Branches away unless S0 is the offset of an operand that lies in one page, aligned where it must be.
    fn leave_page(&mut self, m: MemoryOperand) -> usize {
        if m.aligned {
            // In the page and aligned: nothing but bits 11:4 (16 bytes) or 11:5 (32 bytes).
            let mask = !(0xfff & !(i32::from(m.size) - 1));
            self.a.op_reg(true, 0xf7, 0, reg::S0); // test s0, mask
            self.a.bytes(&mask.to_le_bytes());
            self.a.jcc_later(cc::NE)
        } else {
            self.a.op_reg(true, 0x81, 7, reg::S0); // cmp s0, 4096 - size
            self.a.bytes(&(4096 - i32::from(m.size)).to_le_bytes());
            self.a.jcc_later(cc::A)
        }
    }

    /// The TLB, for an operand whose slot has another page; what misses goes to the helper.
    fn probe(&mut self, p: &Probe) {
        self.a.bind_here(p.from);
        self.a.op_mem(true, 0x03, reg::S0, Address::base(reg::RSP, p.slot));
        let again = self.a.at();
        self.a.mov(reg::S1, reg::S0);
        shift_right(&mut self.a, reg::S1, 7);
        and_imm(&mut self.a, reg::S1, (crate::mmu::TLB_ENTRIES as u32 - 1) << 5);
        self.a.op_mem(true, 0x03, reg::S1, Address::base(reg::RSP, hot!(tlb)));
        let tag = if p.memory.written { TAG_WRITE } else { TAG_READ };
        self.a.op_mem(true, 0x2b, reg::S0, Address::base(reg::S1, tag)); // sub s0, [tag]
        let miss = self.leave_page(p.memory);
        self.a.op_mem(true, 0x03, reg::S0, Address::base(reg::S1, HOST));
        self.a.store(reg::RAX, hot!(saved_rax));
        let mut unchecked = None;
        if self.context.variant & SMAP != 0 {
            // Under STAC the page may be the user's, which a later access must not reach.
            self.a.load(reg::RAX, hot!(tlb));
            self.a.op_mem(true, 0x3b, reg::RAX, Address::base(reg::RSP, hot!(tlb_unchecked)));
            unchecked = Some(self.a.jcc_later(cc::E));
        }
        self.a.op_mem(true, 0x8b, reg::RAX, Address::base(reg::S1, tag));
        self.a.store(reg::RAX, p.slot);
        self.a.op_mem(true, 0x8b, reg::RAX, Address::base(reg::S1, HOST));
        self.a.store(reg::RAX, p.slot + 8);
        if let Some(at) = unchecked {
            self.a.bind_here(at);
        }
        self.a.load(reg::RAX, hot!(saved_rax));
        let out = self.a.jmp_later();
        self.a.bind(out, p.back);
        self.a.bind_here(miss);
        self.a.op_mem(true, 0x03, reg::S0, Address::base(reg::S1, tag));
        let fill = self.a.call_later();
        self.outside(fill, self.context.glue.fill[usize::from(p.memory.written)]);
        let filled = self.a.jcc_later(cc::AE);
        self.a.bind(filled, again);
        self.call_handler(p.saved, p.site);
    }

    /// S0 = host pointer of the memory operand. `None`: it cannot be expressed.
    fn operand(&mut self, n: usize, m: MemoryOperand) -> Option<usize> {
        let start = self.a.at();
        if !self.effective(n, reg::S0, true) {
            self.a.code.truncate(start);
            return None;
        }
        let segment = usize::from(self.insns[n].seg);
        if segment == seg::FS || segment == seg::GS {
            let base = state!(seg) + 32 * segment as i32 + 8;
            if self.live[n] {
                // lea keeps the flags
                self.a.load(reg::S1, base);
                self.a.lea(true, reg::S0, Address { base: Some(reg::S0), index: Some(reg::S1), shift: 0, disp: 0 });
            } else {
                self.a.op_mem(true, 0x03, reg::S0, Address::base(reg::RSP, base));
            }
        }
        Some(self.translate_address(n, m))
    }

    /// Where the helper of `site` goes on: here.
    fn resumes_here(&mut self, site: usize) {
        self.draft.sites[site].resume = Some(self.a.at() as u32);
    }

    // --- instructions ---

    /// An instruction as itself, with its registers where the guest's are.
    fn native(&mut self, n: usize, native: &Native, e: &Encoding<'_>) -> Option<bool> {
        // Registers that stay in the state need scratch registers: S1, and S0 where no pointer is in it.
        let mut scratch = [reg::S1, reg::S0].into_iter();
        let count = if native.memory.is_some() { 1 } else { 2 };
        let mut moved: Vec<(u8, u8)> = Vec::new();
        for g in &native.gprs {
            if host(g.guest).is_none() && !moved.iter().any(|m| m.0 == g.guest) {
                if moved.len() == count {
                    return None;
                }
                moved.push((g.guest, scratch.next()?));
            }
        }
        // With AH to BH no REX prefix may appear.
        let extended = |g: &GprOperand| host(g.guest).is_none_or(|h| h >= 8);
        if native.high_byte && (native.memory.is_some() || native.gprs.iter().any(extended)) {
            return None;
        }
        let site = match native.memory {
            Some(m) => Some(self.operand(n, m)?),
            None => None,
        };
        let find = |g: &GprOperand, moved: &[(u8, u8)]| {
            host(g.guest).or_else(|| moved.iter().find(|m| m.0 == g.guest).map(|m| m.1)).unwrap_or(reg::S1)
        };
        for &(guest, scratch) in &moved {
            if native.gprs.iter().any(|g| g.guest == guest && g.read) {
                self.a.load(scratch, gpr(guest));
            }
        }
        let of = |place: Place| native.gprs.iter().find(|g| g.place == place).map(|g| find(g, &moved));
        let r = of(Place::Reg).unwrap_or(e.reg());
        let rm = match (of(Place::Rm), native.memory) {
            (Some(register), _) => Rm::Register(register),
            (None, Some(_)) => Rm::Pointer,
            (None, None) => Rm::Register(e.rm()),
        };
        let vvvv = of(Place::Vvvv).unwrap_or(e.vvvv());
        e.write(&mut self.a, r, rm, vvvv);
        for &(guest, scratch) in &moved {
            if native.gprs.iter().any(|g| g.guest == guest && g.written) {
                self.a.store(scratch, gpr(guest));
            }
        }
        if let Some(site) = site {
            self.resumes_here(site);
        }
        Some(false)
    }

    fn lea(&mut self, n: usize, e: &Encoding<'_>) -> Option<bool> {
        let i = &self.insns[n].iced;
        let target = i.op0_register();
        let size = target.size();
        let guest = e.reg();
        let into = host(guest).unwrap_or(reg::S0);
        if size == 2 || size == 4 && self.insns[n].base == SLOT_RIP {
            return None;
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

    /// S0 = pointer to the eight bytes at guest RSP + `disp`.
    fn stack(&mut self, n: usize, disp: i32, written: bool) -> usize {
        self.a.lea(true, reg::S0, Address::base(reg::GUEST_RSP, disp));
        self.translate_address(n, MemoryOperand { size: 8, written, aligned: false })
    }

    fn move_rsp(&mut self, by: i32) {
        self.a.lea(true, reg::GUEST_RSP, Address::base(reg::GUEST_RSP, by));
    }

    fn push(&mut self, n: usize) -> Option<bool> {
        let i = &self.insns[n].iced;
        let site;
        if i.op0_kind() == OpKind::Register {
            let guest = i.op0_register().number() as u8;
            site = self.stack(n, -8, true);
            let from = self.address_register(guest, reg::S1);
            self.a.op_mem(true, 0x89, from, Address::base(reg::S0, 0));
        } else {
            let value = i32::try_from(self.insns[n].imm as i64).ok()?;
            site = self.stack(n, -8, true);
            self.a.op_mem(true, 0xc7, 0, Address::base(reg::S0, 0));
            self.a.bytes(&value.to_le_bytes());
        }
        self.move_rsp(-8);
        self.resumes_here(site);
        Some(false)
    }

    fn pop(&mut self, n: usize) -> Option<bool> {
        let guest = self.insns[n].iced.op0_register().number() as u8;
        let site = self.stack(n, 0, false);
        if guest != 4 {
            self.move_rsp(8);
        }
        self.load_guest(guest, Address::base(reg::S0, 0));
        self.resumes_here(site);
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

    /// Pushes the address behind instruction `n`.
    fn push_return(&mut self, n: usize) {
        self.stack(n, -8, true);
        let next = self.offsets[n + 1] as i64;
        self.linear_of(reg::S1, next);
        self.a.op_mem(true, 0x89, reg::S1, Address::base(reg::S0, 0));
        self.move_rsp(-8);
    }

    fn call(&mut self, n: usize) -> Option<bool> {
        let to = self.target(n);
        i32::try_from(to).ok()?;
        self.push_return(n);
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

    fn jump_indirect(&mut self, n: usize) -> Option<bool> {
        self.indirect_target(n)?;
        self.jump_out(self.context.glue.lookup);
        Some(true)
    }

    fn call_indirect(&mut self, n: usize) -> Option<bool> {
        self.indirect_target(n)?;
        self.a.store(reg::S0, hot!(target));
        self.push_return(n);
        self.a.load(reg::S0, hot!(target));
        self.jump_out(self.context.glue.lookup);
        Some(true)
    }

    fn ret(&mut self, n: usize) -> Option<bool> {
        let i = &self.insns[n].iced;
        let extra = if i.op_count() == 1 { i32::from(i.immediate16()) } else { 0 };
        self.stack(n, 0, false);
        self.a.op_mem(true, 0x8b, reg::S0, Address::base(reg::S0, 0));
        self.move_rsp(8 + extra);
        self.jump_out(self.context.glue.lookup);
        Some(true)
    }

    // --- system instructions ---

    fn push_memory(&mut self, n: usize) -> Option<bool> {
        self.operand(n, MemoryOperand { size: 8, written: false, aligned: false })?;
        self.a.op_mem(true, 0x8b, reg::S0, Address::base(reg::S0, 0));
        self.a.store(reg::S0, hot!(target));
        let read = self.draft.sites.len() - 1;
        let site = self.stack(n, -8, true);
        self.a.load(reg::S1, hot!(target));
        self.a.op_mem(true, 0x89, reg::S1, Address::base(reg::S0, 0));
        self.move_rsp(-8);
        self.resumes_here(read);
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
        self.a.bytes(&[0x9c, 0x41, 0x5d]); // pushfq; pop r13
        self.select_bits(reg::S1, hot!(status_mask));
        self.a.load(reg::S0, state!(rflags));
        self.select_bits(reg::S0, hot!(pushed_mask));
        let both = Address { base: Some(reg::S0), index: Some(reg::S1), shift: 0, disp: 0 };
        self.a.lea(true, reg::S0, both);
        self.a.store(reg::S0, hot!(target));
        let site = self.stack(n, -8, true);
        self.a.load(reg::S1, hot!(target));
        self.a.op_mem(true, 0x89, reg::S1, Address::base(reg::S0, 0));
        self.move_rsp(-8);
        self.resumes_here(site);
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
        save_flags(&mut self.a);
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
        restore_flags(&mut self.a);
        self.a.op_reg(wide, 0xf7, if signed { 7 } else { 6 }, reg::S0);
        let site = self.site(n, None);
        self.cold.push(Cold { from: misses, index: n as u16, saved: true, site });
        for site in 0..self.draft.sites.len() {
            if usize::from(self.draft.sites[site].index) == n {
                self.resumes_here(site);
            }
        }
        Some(false)
    }

    /// As `operand`, with the flags from before even where nobody will read them.
    fn operand_keeping_flags(&mut self, n: usize, m: MemoryOperand) -> Option<usize> {
        let live = std::mem::replace(&mut self.live[n], true);
        let site = self.operand(n, m);
        self.live[n] = live;
        site
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
        save_flags(&mut self.a);
        self.a.op_mem(true, 0x83, 7, Address::base(reg::RSP, hot!(window))); // cmp qword [window], 0
        self.a.bytes(&[0]);
        let window = self.a.jcc_later(cc::NE);
        self.a.op_mem(true, 0x83, 7, Address::base(reg::RSP, hot!(budget))); // cmp qword [budget], 64
        self.a.bytes(&[64]);
        let short = self.a.jcc_later(cc::L);
        restore_flags(&mut self.a);
        self.without_interrupts();
        self.a.lea(true, reg::S0, Address::base(reg::S0, crate::state::flag::IF as i32));
        self.a.store(reg::S0, state!(rflags));
        let site = self.site(n, None);
        self.cold.push(Cold { from: vec![window, short], index: n as u16, saved: true, site });
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

    /// Calls the interpreter's handler from the cold part.
    fn call_handler(&mut self, saved: bool, site: usize) {
        if saved {
            restore_flags(&mut self.a);
        }
        self.a.mov_imm(reg::S1, self.context.first_site + site as u32);
        self.jump_out(self.context.glue.slow);
    }

    fn finish(mut self) -> Draft {
        for probe in std::mem::take(&mut self.probes) {
            self.probe(&probe);
        }
        self.draft.starts.push(self.a.at() as u32);
        for cold in std::mem::take(&mut self.cold) {
            for at in cold.from {
                self.a.bind_here(at);
            }
            if cold.index == u16::MAX {
                // The budget does not reach: give it back and leave before the first instruction.
                let n = self.insns.len() as i32;
                self.a.load(reg::S1, hot!(budget));
                self.a.lea(true, reg::S1, Address::base(reg::S1, n));
                self.a.store(reg::S1, hot!(budget));
                let offset = self.offsets[0] as i64;
                self.linear_of(reg::S0, offset);
                self.a.store(reg::S0, state!(rip));
                let out = if cold.saved { self.context.glue.leave_saved } else { self.context.glue.leave_here };
                self.jump_out(out);
                continue;
            }
            self.call_handler(cold.saved, cold.site);
        }
        for n in 0..2 {
            self.draft.stale[n] = self.a.at() as u32;
            let offset = self.offsets[0] as i64;
            self.linear_of(reg::S0, offset);
            self.a.store(reg::S0, state!(rip));
            self.jump_out([self.context.glue.leave_here, self.context.glue.leave_saved][n]);
        }
        self.draft.code = self.a.code;
        self.draft
    }
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
