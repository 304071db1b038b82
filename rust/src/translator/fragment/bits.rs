//! BT, BTS, BTR and BTC of memory with the bit's offset in a register: the operand lies that many bits away.

use super::Builder;
use crate::decode::SLOT_NONE;
use crate::state::seg;
use crate::translator::asm::{Address, reg};
use crate::translator::classify::MemoryOperand;
use crate::translator::encoding::{Encoding, Rm};
use crate::translator::glue::{and_imm, gpr, host, restore_flags, save_flags, state};

impl Builder<'_> {
    /// The host executes it with the offset within the operand, so that only the operand is touched.
    pub(super) fn bit_string(&mut self, n: usize, e: &Encoding<'_>) -> Option<bool> {
        let insn = &self.insns[n];
        let i = &insn.iced;
        let test = i.mnemonic() == iced_x86::Mnemonic::Bt;
        let offset = i.op1_register();
        let size = offset.size() as i32;
        let guest = offset.number() as u8;
        let (narrow, segment) = (insn.address_mask != !0, usize::from(insn.seg));
        let relative = insn.base != SLOT_NONE && self.insns[n].base == crate::decode::SLOT_RIP;
        if relative && narrow {
            return None;
        }
        let live = self.live[n];
        let start = self.a.at();
        if live {
            save_flags(&mut self.a);
        }
        if !self.effective(n, reg::S0, true) {
            self.a.code.truncate(start);
            return None;
        }
        self.bit_offset(guest, size);
        // sar s1, log2 of the operand's bits; it counts operands now
        self.a.op_reg(true, 0xc1, 7, reg::S1);
        self.a.bytes(&[(8 * size).trailing_zeros() as u8]);
        let shift = size.trailing_zeros() as u8;
        self.a.lea(!narrow, reg::S0, Address { base: Some(reg::S0), index: Some(reg::S1), shift, disp: 0 });
        if segment == seg::FS || segment == seg::GS {
            // add s0, [segment's base]
            self.a.op_mem(true, 0x03, reg::S0, Address::base(reg::RSP, state!(seg) + 32 * segment as i32 + 8));
        }
        let m = MemoryOperand { size: size as u16, written: !test, aligned: false };
        let site = self.translate_without_flags(n, m, live);
        self.bit_offset(guest, size);
        and_imm(&mut self.a, reg::S1, 8 * size as u32 - 1);
        if live {
            restore_flags(&mut self.a);
        }
        if test {
            if size == 2 {
                self.a.bytes(&[0x66]);
            }
            self.a.op_mem(size == 8, 0x8b, reg::S0, Address::base(reg::S0, 0));
            self.a.bytes(&[if size == 8 { 0x4d } else { 0x45 }, 0x0f, 0xa3, 0xc0 | (reg::S1 & 7) << 3 | reg::S0 & 7]);
        } else {
            e.write(&mut self.a, reg::S1, Rm::Memory(Address::base(reg::S0, 0)), 0);
        }
        self.resumes_here(site);
        Some(false)
    }

    /// S1 = the bit offset, sign-extended.
    fn bit_offset(&mut self, guest: u8, size: i32) {
        let from = host(guest).unwrap_or_else(|| {
            self.a.load(reg::S1, gpr(guest));
            reg::S1
        });
        match size {
            2 => self.a.bytes(&[0x4c | from >> 3, 0x0f, 0xbf, 0xc0 | (reg::S1 & 7) << 3 | from & 7]),
            4 => self.a.op_reg(true, 0x63, reg::S1, from),
            _ => self.a.mov(reg::S1, from),
        }
    }
}
