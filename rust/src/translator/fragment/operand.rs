//! Memory operands: the effective address, and the page that the operand met last.

use super::super::asm::{Address, reg};
use super::super::classify::MemoryOperand;
use super::super::glue::{flags_aside, flags_back, gpr, host, state};
use super::super::hot::{SLOTS, hot, slot_part};
use super::super::probe::leave_page;
use super::super::variant::{SUPERVISOR, world};
use super::Builder;
use super::groups::Access;
use crate::decode::{SLOT_NONE, SLOT_RIP};
use crate::state::seg;

/// A memory operand's second way to its host pointer.
pub(super) struct Probe {
    /// rel32 in line that comes here.
    pub from: usize,
    /// Where it goes on in line.
    pub back: usize,
    pub memory: MemoryOperand,
    flags: Flags,
    pub site: usize,
    /// Displacement of the operand's slot.
    pub slot: i32,
    /// It is that of a whole group, which has such accesses and begins with RSP so far behind: see `groups`.
    pub shared: Option<(Access, i32)>,
}

/// Where the guest's flags are when an operand's slot does not match.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flags {
    /// Nobody will read them.
    Dead,
    /// In `saved_flags`.
    Saved,
    /// In the host; S1 holds the guest's RCX.
    Host,
}

/// What an operand in line must not have in its offset from its page, by the log of its size.
const BEYOND: [i32; 4] = [hot!(beyond), hot!(beyond) + 8, hot!(beyond) + 16, hot!(beyond) + 24];

impl Probe {
    /// Flags are in `saved_flags`.
    pub fn saved(&self) -> bool {
        self.flags == Flags::Saved
    }
}

impl Builder<'_> {
    /// The host register of a guest register used in an address; loads it into `scratch` if it has none.
    pub(super) fn address_register(&mut self, slot: u8, scratch: u8) -> u8 {
        host(slot).unwrap_or_else(|| {
            self.a.load(scratch, gpr(slot));
            scratch
        })
    }

    /// S0 = effective address (without segment base), or into `into`. False: it cannot be expressed.
    pub(super) fn effective(&mut self, n: usize, into: u8, wide: bool) -> bool {
        self.effective_with(n, self.insns[n].disp as i64, into, wide)
    }

    /// The same with another displacement.
    fn effective_with(&mut self, n: usize, disp: i64, into: u8, wide: bool) -> bool {
        let insn = &self.insns[n];
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
        let pending = if insn.base == 4 { i64::from(self.pending) } else { 0 };
        let Ok(disp) = i32::try_from(disp + pending) else { return false };
        let base = (insn.base != SLOT_NONE).then(|| self.address_register(insn.base, reg::S0));
        let index = (insn.index != SLOT_NONE).then(|| self.address_register(insn.index, reg::S1));
        let address = Address { base, index, shift: insn.shift, disp };
        self.a.lea(wide && insn.address_mask == !0, into, address);
        true
    }

    /// S0 = host pointer of the linear address in S0, through the TLB; otherwise to the cold part. Clobbers S1, and the
    /// host's flags unless they will soon be read there.
    pub(super) fn translate_address(&mut self, n: usize, m: MemoryOperand) -> usize {
        let beside = m.size.is_power_of_two() && m.size <= 8 && is_x86_feature_detected!("bmi2");
        if beside && self.flags_should_stay(n) {
            return self.translate_beside_flags(n, m);
        }
        let saved = self.flags_may_go(n);
        self.translate_without_flags(n, m, saved)
    }

    /// The next site, for an access by instruction `n`, and where its slot lies.
    fn slot(&mut self, n: usize, m: MemoryOperand) -> (usize, i32) {
        let variant = self.context.variant;
        let part = slot_part(m.written, variant & SUPERVISOR != 0, world(variant));
        let site = self.site(n, None);
        let number = (self.context.first_site as usize + site) % SLOTS;
        (site, hot!(slots) + 16 * (part + number) as i32)
    }

    /// As [`Builder::translate_address`] with flags that may be clobbered; `saved`: the helper finds the guest's in
    /// `saved_flags`.
    pub(super) fn translate_without_flags(&mut self, n: usize, m: MemoryOperand, saved: bool) -> usize {
        let (site, slot) = self.slot(n, m);
        // The page that this operand met last; the TLB is asked in the cold part.
        self.a.op_mem(true, 0x2b, reg::S0, Address::base(reg::RSP, slot)); // sub s0, [slot's page]
        let from = leave_page(&mut self.a, m);
        self.a.op_mem(true, 0x03, reg::S0, Address::base(reg::RSP, slot + 8)); // add s0, [slot's host pointer]
        let back = self.a.at();
        let flags = if saved { Flags::Saved } else { Flags::Dead };
        self.probes.push(Probe { from, back, memory: m, flags, site, slot, shared: None });
        site
    }

    /// The same with flags that live, by instructions that have none: an operand at a multiple of its size goes on, others
    /// are looked at again in the cold part. To save and restore flags is what costs most in arithmetic of many words.
    fn translate_beside_flags(&mut self, n: usize, m: MemoryOperand) -> usize {
        let sum = |disp| Address { base: Some(reg::S0), index: Some(reg::S1), shift: 0, disp };
        let (site, slot) = self.slot(n, m);
        self.a.load(reg::S1, slot);
        self.a.op_reg(true, 0xf7, 2, reg::S1); // not s1
        self.a.lea(true, reg::S0, sum(1));
        self.a.mov(reg::S1, reg::RCX);
        // pext rcx, s0, [beyond]
        self.a.bytes(&[0xc4, 0xe2, 0x82 | (!reg::S0 & 15) << 3, 0xf5]);
        self.a.modrm(reg::RCX, Address::base(reg::RSP, BEYOND[m.size.trailing_zeros() as usize]));
        self.a.bytes(&[0xe3, 5]); // jrcxz over the jump
        let from = self.a.jmp_later();
        self.a.mov(reg::RCX, reg::S1);
        self.a.load(reg::S1, slot + 8);
        self.a.lea(true, reg::S0, sum(0));
        let back = self.a.at();
        self.probes.push(Probe { from, back, memory: m, flags: Flags::Host, site, slot, shared: None });
        site
    }

    /// In the cold part: the TLB, for an operand whose slot has another page; what misses goes to the helper.
    pub(super) fn probe(&mut self, p: &Probe) {
        self.bind_cold(p.from);
        if let Some((access, pending)) = p.shared {
            self.probe_shared(p, access, pending);
            return;
        }
        let beside = p.flags == Flags::Host;
        let mut beyond = 0;
        if beside {
            self.c.mov(reg::RCX, reg::S1);
            flags_aside(&mut self.c);
            beyond = leave_page(&mut self.c, p.memory);
            self.c.op_mem(true, 0x03, reg::S0, Address::base(reg::RSP, p.slot + 8));
        }
        let found = self.c.at();
        if beside {
            flags_back(&mut self.c);
            let back = self.c.jmp_later();
            self.cold_line(back, p.back);
            self.c.bind_here(beyond);
        }
        self.c.mov_imm(reg::S1, (p.slot - hot!(slots)) as u32);
        let call = self.c.call_later();
        self.cold_outside(call, self.context.glue.probes.operand(self.context.variant, p.memory));
        let back = self.c.jmp_later();
        if beside {
            self.c.bind(back, found);
        } else {
            self.cold_line(back, p.back);
        }
        // The routine returns behind that jump where there is no translation.
        self.call_handler(p.flags != Flags::Dead, p.site);
    }

    /// S0 = linear address that the memory operand would have with this displacement. False: it cannot be expressed, and
    /// nothing was emitted.
    pub(super) fn linear(&mut self, n: usize, disp: i64) -> bool {
        let start = self.a.at();
        if !self.effective_with(n, disp, reg::S0, true) {
            self.a.code.truncate(start);
            return false;
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
        true
    }

    /// S0 = host pointer of the memory operand. `None`: it cannot be expressed.
    pub(super) fn operand(&mut self, n: usize, m: MemoryOperand) -> Option<usize> {
        let disp = self.insns[n].disp as i64;
        self.linear(n, disp).then(|| self.translate_address(n, m))
    }

    /// As `operand`, with the flags from before even where nobody will read them.
    pub(super) fn operand_keeping_flags(&mut self, n: usize, m: MemoryOperand) -> Option<usize> {
        let live = std::mem::replace(&mut self.live[n], true);
        let site = self.operand(n, m);
        self.live[n] = live;
        site
    }
}
