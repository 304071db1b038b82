//! Where the guest's arithmetic flags are while a fragment executes: in the host's, or, from the first check of ours that
//! clobbers those on, in `saved_flags`, until somebody reads or keeps them. Where nobody does, they go on to the next
//! fragment as they are.

use super::super::classify::Plan;
use super::super::flags::{STATUS, is_shift};
use super::super::glue::{flags_aside, flags_back};
use super::{Builder, System};
use crate::decode::Insn;

/// The places where the flags are right, if they live.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Flags {
    /// The host's.
    pub host: bool,
    /// `saved_flags`.
    pub saved: bool,
}

/// The instruction reads status flags, or changes some, and maybe not all.
pub(super) fn is_touched(insn: &Insn) -> bool {
    insn.iced.rflags_read() & STATUS != 0 || may_change(insn)
}

/// Processors differ from the manual where a rotation comes round to where it began.
fn may_change(insn: &Insn) -> bool {
    insn.iced.rflags_modified() & STATUS != 0 || is_shift(insn.iced.mnemonic())
}

/// The code for the plan itself asks for the flags where it needs them; for others they are in the host's before.
pub(super) fn goes_by(plan: &Plan) -> bool {
    matches!(
        plan,
        Plan::Native(_)
            | Plan::Lea
            | Plan::Push
            | Plan::Pop
            | Plan::Leave
            | Plan::Call
            | Plan::CallIndirect
            | Plan::Jump
            | Plan::JumpIndirect
            | Plan::JumpIfZero
            | Plan::Return
            | Plan::PushMemory
            | Plan::Nothing
            | Plan::System(System::Register(_))
    )
}

impl Builder<'_> {
    /// Before code for instruction `n` that clobbers the host's flags and S1. True: they live, and are in `saved_flags`.
    pub(super) fn flags_may_go(&mut self, n: usize) -> bool {
        let live = self.live[n];
        if live && !self.flags.saved {
            flags_aside(&mut self.a);
            self.flags.saved = true;
        }
        self.flags.host = false;
        live
    }

    /// Flags live in the host's before instruction `n`, and there it, or one behind it, reads or keeps them.
    pub(super) fn flags_should_stay(&self, n: usize) -> bool {
        let next = || (n..self.insns.len()).find(|&k| !self.live[k] || is_touched(&self.insns[k]));
        self.live[n] && self.flags.host && next().is_some_and(|k| self.live[k])
    }

    /// Before code for instruction `n` that reads flags or keeps some: they are the host's. Clobbers S1.
    pub(super) fn flags_to_host(&mut self, n: usize) {
        if self.live[n] && !self.flags.host {
            flags_back(&mut self.a);
            self.flags.host = true;
        }
    }

    /// Behind the code for instruction `n`.
    pub(super) fn flags_after(&mut self, n: usize) {
        if may_change(&self.insns[n]) {
            self.flags = Flags { host: true, saved: false };
        }
    }
}
