//! The x87 state: tag words, the FXSAVE form of it, MMX aliasing.
//!
//! FIP, FDP and FOP are the guest's own and kept by software: the host's never show. FCS and FDS are always
//! zero, as on processors with CPUID.(EAX=7,ECX=0):EBX bit 13, which a model must report.

use crate::cpu::{Bits, Cpu};
use crate::state::State;
use crate::stop::Exec;

/// FCW after FNINIT.
pub const FCW_INIT: u64 = 0x37f;

/// FSW.TOP.
#[inline]
pub fn top(s: &State) -> usize {
    (s.fsw >> 11 & 7) as usize
}

/// Abridged tag word (a set bit for a register that is not empty) from a full one.
#[inline]
#[must_use]
pub fn abridged(ftw: u64) -> u8 {
    (0..8).fold(0, |bits, n| bits | u8::from(ftw >> (2 * n) & 3 != 3) << n)
}

/// Tag of a register that is not empty, by its contents (SDM vol. 1, 8.1.7).
fn tag(st: [u64; 2]) -> u64 {
    let exponent = st[1] & 0x7fff;
    let integer = st[0] >> 63 != 0;
    if exponent == 0 && st[0] == 0 {
        1
    } else if exponent == 0 || exponent == 0x7fff || !integer {
        2
    } else {
        0
    }
}

/// Full tag word by the registers' contents.
#[must_use]
pub fn full_tags(s: &State, abridged: u8) -> u64 {
    (0..8).fold(0, |tags, n| {
        let tag = if abridged >> n & 1 == 0 { 3 } else { tag(s.st[(n + 8 - top(s)) & 7]) };
        tags | tag << (2 * n)
    })
}

/// ES and B as FCW and the exception flags have them (after loads of either).
pub fn update_es(s: &mut State) {
    let pending = s.fsw & !s.fcw & 0x3f != 0;
    s.fsw = if pending { s.fsw | 0x8080 } else { s.fsw & !0x8080 };
}

/// FCW as it reads back: bit 6 is one, 7 and 15:13 are zero.
#[must_use]
pub fn control(value: u16) -> u64 {
    u64::from(value & 0x1f7f | 0x40)
}

/// Writes FSW. The registers stay where they are, so another TOP makes each another ST(i).
pub fn set_status(s: &mut State, fsw: u64) {
    let before = top(s);
    s.fsw = fsw;
    s.st.rotate_right(before);
    let after = top(s);
    s.st.rotate_left(after);
}

/// FNINIT. The registers keep their contents.
pub fn init(s: &mut State) {
    set_status(s, 0);
    (s.fcw, s.ftw) = (FCW_INIT, 0xffff);
    (s.fop, s.fip, s.fdp, s.fcs, s.fds) = (0, 0, 0, 0, 0);
}

/// x87 state component in its initial configuration (SDM vol. 1, 13.6).
#[must_use]
pub fn is_init(s: &State) -> bool {
    s.fcw == FCW_INIT
        && s.fsw == 0
        && s.ftw == 0xffff
        && s.fop | s.fip | s.fdp | s.fcs | s.fds == 0
        && s.st.iter().all(|st| *st == [0, 0])
}

impl Cpu {
    /// Vector registers that exist in this mode.
    #[inline]
    pub(super) fn vector_registers(&self) -> usize {
        if self.mode.bits == Bits::B64 { 16 } else { 8 }
    }

    /// Runs `body` with the x87 registers as MMX registers (`st[n]` is MMn, TOP is 0, all tags valid).
    /// When it fails, the x87 state is as before.
    pub(super) fn with_mmx(&mut self, body: impl FnOnce(&mut Self) -> Exec) -> Exec {
        let (top, fsw, ftw) = (top(&self.state), self.state.fsw, self.state.ftw);
        // st[0] is register TOP: register n is st[n - TOP].
        self.state.st.rotate_right(top);
        self.state.fsw &= !(7 << 11);
        self.state.ftw = 0;
        let result = body(self);
        if result.is_err() {
            self.state.st.rotate_left(top);
            (self.state.fsw, self.state.ftw) = (fsw, ftw);
        }
        result
    }
}
