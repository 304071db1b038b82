//! Returns. A call puts down where its return goes: the address, the epoch, and the code of the fragment there, in a small
//! table by the place on the guest's stack. A return that finds its address and the present epoch at its place goes
//! straight on; any other is looked up as a branch.
//!
//! What is put down holds for itself: nothing depends on calls and returns being paired. The code is that of a link, and
//! leaves translated code until there is a fragment.

use super::asm::{Address, Asm, cc, reg};
use super::glue::{go_to_page, state};
use super::hot::hot;

/// Places on the stack, of eight bytes each.
pub const PLACES: usize = 256;

/// Returns that calls have put down, by their place on the stack: three arrays, so that those of a stack lie together.
#[repr(C)]
#[derive(Debug)]
pub struct Returns {
    /// Linear address.
    pub linear: [u64; PLACES],
    /// `hot.page_epoch` at the call.
    pub epoch: [u64; PLACES],
    /// Where its code is entered with saved flags.
    pub code: [*const u8; PLACES],
}

impl Returns {
    /// Forgets them.
    pub fn forget(&mut self) {
        // No address under no epoch.
        self.epoch = [!0; PLACES];
    }
}

/// Calls can put down their returns.
pub fn are_kept() -> bool {
    is_x86_feature_detected!("bmi2")
}

fn at(field: i32, index: u8) -> Address {
    Address { base: Some(reg::RSP), index: Some(index), shift: 3, disp: field }
}

/// `index` = place of the stack address in `from`.
fn place(a: &mut Asm, index: u8, from: u8) {
    // rorx index, from, 3
    a.bytes(&[0xc4, 0x43 | (!index >> 3 & 1) << 7 | (!from >> 3 & 1) << 5, 0xfb, 0xf0]);
    a.bytes(&[0xc0 | (index & 7) << 3 | from & 7, 3]);
    // movzx index32, index8
    a.bytes(&[0x45, 0x0f, 0xb6, 0xc0 | (index & 7) << 3 | index & 7]);
}

/// Behind a call that has pushed the address in S1, before it goes: puts that down. Clobbers S0 and S1; the flags stay.
/// The offset of a rel32 that leads to the code.
pub fn put_down(a: &mut Asm) -> usize {
    place(a, reg::S0, reg::GUEST_RSP);
    a.op_mem(true, 0x89, reg::S1, at(hot!(returns.linear), reg::S0));
    a.load(reg::S1, hot!(page_epoch));
    a.op_mem(true, 0x89, reg::S1, at(hot!(returns.epoch), reg::S0));
    a.bytes(&[0x4c, 0x8d, 0x05 | (reg::S1 & 7) << 3, 0, 0, 0, 0]); // lea r11, [rip + ...]
    let to = a.at() - 4;
    a.op_mem(true, 0x89, reg::S1, at(hot!(returns.code), reg::S0));
    to
}

/// Shared code for a return to the address in S0, whose place is before RSP; flags saved. Else goes to `lookup`.
pub fn generate(a: &mut Asm, lookup: usize) -> usize {
    let begin = a.at();
    a.lea(true, reg::S1, Address::base(reg::GUEST_RSP, -8));
    place(a, reg::S1, reg::S1);
    a.op_mem(true, 0x3b, reg::S0, at(hot!(returns.linear), reg::S1)); // cmp s0, [linear]
    let other = a.jcc_later(cc::NE);
    a.bind(other, lookup);
    a.store(reg::S0, state!(rip));
    a.load(reg::S0, hot!(page_epoch));
    a.op_mem(true, 0x3b, reg::S0, at(hot!(returns.epoch), reg::S1)); // cmp s0, [epoch]
    a.load(reg::S0, state!(rip));
    let changed = a.jcc_later(cc::NE);
    a.bind(changed, lookup);
    go_to_page(a, at(hot!(returns.code), reg::S1));
    begin
}
