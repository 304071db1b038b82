//! What follows STI. Where that is harmless nobody can see that interrupts are blocked until it has executed, and STI may
//! open them at once (SDM volume 2, STI).

use iced_x86::{Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::decode::{Block, DecodedInsn, Insn, decode_one};
use crate::memory::PAGE;

impl Cpu {
    /// The block ends in STI, and the instruction behind it, in the same page, neither faults nor exits. From here on that is
    /// watched as the block is: who writes it makes the block's fragment stale.
    pub(super) fn is_harmless_behind(&mut self, block: &Block) -> bool {
        let at = block.host_pa + block.insns.bytes().len() as u64;
        let ends_in_sti = block.insns.last().is_some_and(|insn| insn.iced.mnemonic() == Mnemonic::Sti);
        if !ends_in_sti || at / PAGE != block.host_pa / PAGE {
            return false;
        }
        let mut bytes = [0; 15];
        let bytes = &mut bytes[..15.min(PAGE - at % PAGE) as usize];
        self.mark_code_range(at, bytes.len() as u64);
        self.memory.read_bytes(at, bytes);
        matches!(decode_one(bytes, block.bits), DecodedInsn::Insn(next) if neither_faults_nor_exits(&next))
    }
}

/// Register moves, NOPs and direct jumps: they neither fault nor exit, and read no flags.
fn neither_faults_nor_exits(insn: &Insn) -> bool {
    use Mnemonic as M;
    let i = &insn.iced;
    let registers = (0..i.op_count()).all(|n| match i.op_kind(n) {
        OpKind::Register => i.op_register(n).is_gpr(),
        kind => {
            matches!(kind, OpKind::Immediate8 | OpKind::Immediate32 | OpKind::Immediate8to32 | OpKind::Immediate8to64)
        }
    });
    match i.mnemonic() {
        M::Nop => true,
        M::Jmp => i.is_jmp_short_or_near(),
        M::Mov | M::Xor | M::And | M::Or | M::Add | M::Sub | M::Test | M::Cmp => registers,
        M::Lea => true,
        _ => false,
    }
}
