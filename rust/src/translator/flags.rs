//! Liveness of the arithmetic flags within a fragment.

use iced_x86::{Mnemonic, OpKind, RflagsBits};

use super::classify::Plan;
use super::fragment::System;
use crate::decode::Insn;

/// CF, PF, AF, ZF, SF, OF as iced names them.
pub const STATUS: u32 =
    RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;

/// For each instruction: must the flags that stand before it survive until it has executed? The last
/// element tells it of the end. `exact`: they always must.
pub fn live(insns: &[Insn], plans: &[Plan], exact: bool, result: &mut Vec<bool>) {
    let mut live = STATUS;
    result.clear();
    result.resize(insns.len() + 1, true);
    for n in (0..insns.len()).rev() {
        let i = &insns[n].iced;
        if exact
            || matches!(plans[n], Plan::Jcc)
            || matches!(
                plans[n],
                Plan::Interpret
                    | Plan::System(System::Call | System::Return | System::InterruptReturn | System::Register(_))
            )
        {
            live = STATUS;
        } else {
            // What the instruction itself still needs or leaves standing must survive its address check.
            live = live & !i.rflags_modified() | i.rflags_read() & STATUS;
            if may_keep_flags(&insns[n]) {
                live = STATUS;
            }
        }
        result[n] = live != 0;
    }
}

/// A shift by CL writes no flags when CL is 0.
fn may_keep_flags(insn: &Insn) -> bool {
    let i = &insn.iced;
    let by_one_or_more = i.op_kind(i.op_count().saturating_sub(1)) == OpKind::Immediate8 && insn.imm & 31 != 0;
    !by_one_or_more && is_shift(i.mnemonic())
}

/// Shifts and rotations.
pub fn is_shift(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(m, M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd)
}
