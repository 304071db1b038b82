//! Direct branches to another page. Where the target lies is known once the branch was executed, and holds while the
//! branch runs in the same linear page under the same epoch: the code compares both and goes straight there, without the
//! table of branch targets. Half of all lookups of a kernel were calls to another page.
//!
//! Where that does not hold, the table is asked as for any branch, and every [`AGAIN`]th time the branch is linked anew:
//! code that several address spaces share in turns costs little more than the lookup.

use super::asm::{Address, Asm, cc, reg};
use super::cache::Translator;
use super::fragment::Far;
use super::hot::hot;
use crate::cpu::Cpu;

/// Times that a branch does not find itself where it was linked, until it is linked again.
const AGAIN: u8 = 64;
/// No page under any epoch: what a branch is compared with until it is linked.
const NEVER: u64 = 1;
/// Counters of branches; they share them beyond that.
pub const COUNTERS: usize = 1 << 16;

/// Where the counter of branch `number` lies.
pub fn counter(number: u32) -> i32 {
    hot!(countdown) + (number as usize % COUNTERS) as i32
}

/// MOV S1, imm64 of a page and its epoch, which a link fills in; the offset of the immediate.
pub fn expected(a: &mut Asm) -> usize {
    a.bytes(&[0x49, 0xbb]);
    a.bytes(&NEVER.to_le_bytes());
    a.at() - 8
}

/// Branches away unless S1, which it clobbers, is the present page under its epoch.
pub fn compare(a: &mut Asm) -> usize {
    a.op_mem(true, 0x33, reg::S1, Address::base(reg::RSP, hot!(page_epoch))); // xor s1, [page_epoch]
    a.op_mem(true, 0x3b, reg::S1, Address::base(reg::RSP, hot!(rip_page))); // cmp s1, [rip_page]
    a.jcc_later(cc::NE)
}

/// A branch of a fragment.
#[derive(Clone, Copy, Debug)]
pub struct FarLink {
    expected: *const u8,
    jump: *const u8,
}

impl FarLink {
    /// One of a draft whose code was placed at `address`.
    pub fn new(far: &Far, address: impl Fn(u32) -> *const u8) -> Self {
        Self { expected: address(far.expected), jump: address(far.jump) }
    }
}

impl Translator {
    /// Branches are looked up until they are linked again.
    pub fn unlink_far(&mut self) {
        for link in &self.far {
            self.code.overwrite(link.expected, &NEVER.to_le_bytes());
        }
    }
}

impl Cpu {
    /// The code for branch number `hot.target` to `linear`, to which it is linked; entered with saved flags.
    pub(super) fn resolve_far(&mut self, linear: u64) -> Option<*const u8> {
        let hot = self.state.hot();
        let (number, page) = (hot.target as u32, hot.rip_page);
        let code = hot.target_of(linear).or_else(|| self.resolve(linear))?;
        let hot = self.state.hot();
        let epoch = hot.page_epoch;
        hot.set_page(linear);
        hot.countdown[number as usize % COUNTERS] = AGAIN;
        let same = hot.page_epoch == epoch;
        let translator = self.translator.as_mut()?;
        let link = *translator.far.get(number as usize)?;
        // What holds for the page of the branch holds for its target only in the same half of the address space.
        if same && page >> 63 == linear >> 63 {
            let relative = (code as i64 - (link.jump as i64 + 4)) as i32;
            translator.code.overwrite(link.jump, &relative.to_le_bytes());
            translator.code.overwrite(link.expected, &(page ^ epoch).to_le_bytes());
        }
        Some(code)
    }
}
