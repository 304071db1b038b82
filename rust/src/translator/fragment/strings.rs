//! REP STOS and REP MOVS in line, where the whole run lies in one page (each of source and destination) that the TLB
//! has, goes upwards, and fits the budget: each iteration counts as one instruction. Everything else is the helper's.

use iced_x86::Mnemonic as M;

use super::{Builder, Cold, PAGE};
use crate::decode::Insn;
use crate::state::{flag, seg};
use crate::translator::asm::{Address, cc, reg};
use crate::translator::classify::MemoryOperand;
use crate::translator::glue::{and_imm, restore_flags, save_flags, state};
use crate::translator::hot::hot;

/// REP STOS or REP MOVS of elements of some size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repeat {
    moves: bool,
    size: u16,
}

impl Repeat {
    /// The one that `insn` is, if any.
    #[must_use]
    pub fn of(insn: &Insn) -> Option<Self> {
        let i = &insn.iced;
        let (moves, size) = match i.mnemonic() {
            M::Stosb => (false, 1),
            M::Stosw => (false, 2),
            M::Stosd => (false, 4),
            M::Stosq => (false, 8),
            M::Movsb => (true, 1),
            M::Movsw => (true, 2),
            M::Movsd => (true, 4),
            M::Movsq => (true, 8),
            _ => return None,
        };
        let plain = !moves || !matches!(usize::from(insn.seg), seg::FS | seg::GS);
        let repeated = i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix());
        (repeated && plain && insn.address_mask == !0).then_some(Self { moves, size })
    }
}

impl Builder<'_> {
    pub(super) fn repeat(&mut self, n: usize, r: Repeat) -> Option<bool> {
        let live = self.live[n];
        if live {
            save_flags(&mut self.a);
        }
        self.a.op_reg(true, 0x85, reg::RCX, reg::RCX); // test rcx, rcx
        let nothing = self.a.jcc_later(cc::E);
        let mut away = Vec::new();
        self.a.op_mem(false, 0xf7, 0, Address::base(reg::RSP, state!(rflags))); // test dword [rflags], DF
        self.a.bytes(&(flag::DF as u32).to_le_bytes());
        away.push(self.a.jcc_later(cc::NE));
        self.a.lea(true, reg::S1, Address::base(reg::RCX, -1));
        self.a.op_mem(true, 0x3b, reg::S1, Address::base(reg::RSP, hot!(budget))); // cmp s1, [budget]
        away.push(self.a.jcc_later(cc::A));
        let pointers: &[u8] = if r.moves { &[reg::RSI, reg::RDI] } else { &[reg::RDI] };
        for &pointer in pointers {
            // The last element begins in the same page, and ends there.
            self.a.op_reg(false, 0x89, pointer, reg::S0);
            and_imm(&mut self.a, reg::S0, PAGE as u32 - 1);
            let shift = r.size.trailing_zeros() as u8;
            let last = Address { base: Some(reg::S0), index: Some(reg::S1), shift, disp: 0 };
            self.a.lea(true, reg::S0, last);
            self.a.op_reg(true, 0x81, 7, reg::S0); // cmp s0, 4096 - size
            self.a.bytes(&(PAGE as u32 - u32::from(r.size)).to_le_bytes());
            away.push(self.a.jcc_later(cc::A));
        }
        let element = |written| MemoryOperand { size: r.size, written, aligned: false };
        if r.moves {
            self.a.mov(reg::S0, reg::RSI);
            self.translate_without_flags(n, element(false), live);
            self.a.store(reg::S0, hot!(target));
        }
        self.a.mov(reg::S0, reg::RDI);
        self.translate_without_flags(n, element(true), live);
        self.a.lea(true, reg::S1, Address::base(reg::RCX, -1));
        self.a.op_mem(true, 0x29, reg::S1, Address::base(reg::RSP, hot!(budget))); // sub [budget], s1
        self.enter_host(reg::RDI, reg::S1);
        if r.moves {
            self.a.load(reg::S0, hot!(target));
            // sub rsi, s0; the difference waits in `target`
            self.a.op_reg(true, 0x29, reg::S0, reg::RSI);
            self.a.store(reg::RSI, hot!(target));
            self.a.mov(reg::RSI, reg::S0);
        }
        if r.size == 2 {
            self.a.bytes(&[0x66]);
        }
        self.a.bytes(&[0xf3]);
        if r.size == 8 {
            self.a.bytes(&[0x48]);
        }
        self.a.bytes(&[if r.moves { 0xa4 } else { 0xaa } | u8::from(r.size != 1)]);
        self.a.op_reg(true, 0x01, reg::S1, reg::RDI); // add rdi, s1
        if r.moves {
            self.a.op_mem(true, 0x03, reg::RSI, Address::base(reg::RSP, hot!(target)));
        }
        self.a.bind_here(nothing);
        if live {
            restore_flags(&mut self.a);
        }
        let site = self.site(n, None);
        self.cold.push(Cold { from: away, saved: live, site });
        self.behind(n)
    }

    /// `pointer` = S0, and `difference` what it was before, less S0.
    fn enter_host(&mut self, pointer: u8, difference: u8) {
        self.a.mov(difference, pointer);
        self.a.op_reg(true, 0x29, reg::S0, difference); // sub difference, s0
        self.a.mov(pointer, reg::S0);
    }
}
