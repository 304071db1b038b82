//! The software TLB, asked by translated code where an operand's slot or the page of stack does not match.
//!
//! Routines that fragments call; one for each kind of operand. What is not in the TLB either, they leave to the caller's
//! way to the helper, which stands behind the caller's next jump.

use super::asm::{Address, Asm, cc, reg};
use super::classify::MemoryOperand;
use super::glue::{and_imm, shift_right};
use super::hot::{BLOCK, hot};
use super::variant::{SMAP, SUPERVISOR};
use crate::mmu::PASSING;

/// Offsets of a TLB entry's fields.
const TAG_READ: i32 = 0;
const TAG_WRITE: i32 = 8;
const TAG_EXEC: i32 = 16;
const HOST: i32 = 24;

/// Sizes that have a routine; others take that of the next larger.
const SIZES: [u16; 6] = [1, 2, 4, 8, 16, 32];
/// Variants: user, supervisor, supervisor with SMAP.
const KINDS: usize = 3;
/// Bytes from where a routine returns to what handles its miss: one JMP rel32.
pub const MISS: i32 = 5;

/// Offsets of the routines in the shared code.
#[derive(Clone, Copy, Debug, Default)]
pub struct Probes {
    /// By variant, written, and size; aligned operands of 16 and 32 bytes behind the others.
    operands: [[[u32; SIZES.len() + 2]; 2]; KINDS],
    /// A page that was written before, by variant.
    written_before: [u32; KINDS],
    /// The page of stack, by SMAP and by written.
    stack: [[u32; 2]; 2],
}

fn kind(variant: u8) -> usize {
    usize::from(variant & SUPERVISOR != 0) + usize::from(variant & SMAP != 0)
}

impl Probes {
    /// For a memory operand. S0 is its address minus the page in its slot, S1 the slot's offset; S0 becomes its host pointer.
    /// It clobbers S1 and the flags. After a miss it returns [`MISS`] bytes further on.
    #[must_use]
    pub fn operand(&self, variant: u8, m: MemoryOperand) -> usize {
        let size = SIZES.iter().position(|&s| s >= m.size).unwrap_or(SIZES.len() - 1);
        let size = if m.aligned { SIZES.len() + usize::from(m.size == 32) } else { size };
        self.operands[kind(variant)][usize::from(m.written)][size] as usize
    }

    /// As `operand` for one byte that is written, but without looking a translation up: the write may not come.
    #[must_use]
    pub fn written_before(&self, variant: u8) -> usize {
        self.written_before[kind(variant)] as usize
    }

    /// For the stack. S0 is an address in it, which an access that is `written` comes to first: its page becomes the
    /// page of stack. Otherwise as `operand`.
    #[must_use]
    pub fn stack(&self, variant: u8, written: bool) -> usize {
        self.stack[usize::from(variant & SMAP != 0)][usize::from(written)] as usize
    }
}

/// Branches away unless S0 is the offset of an operand that lies in one page, aligned where it must be.
pub fn leave_page(a: &mut Asm, m: MemoryOperand) -> usize {
    if m.aligned {
        // In the page and aligned: nothing but bits 11:4 (16 bytes) or 11:5 (32 bytes).
        let mask = !(0xfff & !(i32::from(m.size) - 1));
        a.op_reg(true, 0xf7, 0, reg::S0); // test s0, mask
        a.bytes(&mask.to_le_bytes());
        a.jcc_later(cc::NE)
    } else {
        within(a, i32::from(m.size))
    }
}

/// Branches away unless `size` bytes from offset S0 lie in one page.
pub fn within(a: &mut Asm, size: i32) -> usize {
    a.op_reg(true, 0x81, 7, reg::S0); // cmp s0, 4096 - size
    a.bytes(&(4096 - size).to_le_bytes());
    a.jcc_later(cc::A)
}

/// In a routine the return address lies on the stack.
fn here(field: i32) -> Address {
    Address::base(reg::RSP, field + 8)
}

/// RAX = the TLB entry for the address in S0, in the array at `field`.
fn entry(a: &mut Asm, field: i32) {
    a.mov(reg::RAX, reg::S0);
    shift_right(a, reg::RAX, 7);
    and_imm(a, reg::RAX, (crate::mmu::TLB_ENTRIES as u32 - 1) << 5);
    a.op_mem(true, 0x03, reg::RAX, here(field));
}

/// Returns, or for a miss behind the next jump.
fn back(a: &mut Asm, miss: bool) {
    a.op_mem(true, 0x8b, reg::RAX, here(hot!(saved_rax)));
    if miss {
        a.op_mem(true, 0x83, 0, Address::base(reg::RSP, 0)); // add qword [rsp], 5
        a.bytes(&[MISS as u8]);
    }
    a.bytes(&[0xc3]);
}

fn call(a: &mut Asm, routine: usize) {
    let at = a.call_later();
    a.bind(at, routine);
}

fn operand(a: &mut Asm, kind: usize, m: MemoryOperand, fill: Option<usize>) {
    let slots = hot!(slots);
    let in_slot = |disp: i32| Address { base: Some(reg::RSP), index: Some(reg::S1), shift: 0, disp: 8 + slots + disp };
    a.op_mem(true, 0x03, reg::S0, in_slot(0));
    a.op_mem(true, 0x89, reg::RAX, here(hot!(saved_rax)));
    let again = a.at();
    entry(a, hot!(tlb));
    let tag = if m.written { TAG_WRITE } else { TAG_READ };
    a.op_mem(true, 0x2b, reg::S0, Address::base(reg::RAX, tag)); // sub s0, [tag]
    let miss = leave_page(a, m);
    a.op_mem(true, 0x03, reg::S0, Address::base(reg::RAX, HOST));
    a.op_mem(true, 0x89, reg::RCX, here(hot!(saved_rcx)));
    let mut passing = Vec::new();
    if kind == 2 {
        // Under STAC the page may be the user's, which a later access must not reach.
        a.op_mem(true, 0x8b, reg::RCX, here(hot!(tlb)));
        a.op_mem(true, 0x3b, reg::RCX, here(hot!(tlb_unchecked)));
        passing.push(a.jcc_later(cc::E));
    }
    if kind != 0 {
        a.op_mem(false, 0xf6, 0, Address::base(reg::RAX, TAG_EXEC)); // test byte [tag], PASSING
        a.bytes(&[PASSING as u8]);
        passing.push(a.jcc_later(cc::NE));
    }
    a.op_mem(true, 0x8b, reg::RCX, Address::base(reg::RAX, HOST));
    a.op_mem(true, 0x89, reg::RCX, in_slot(8));
    a.op_mem(true, 0x8b, reg::RCX, Address::base(reg::RAX, tag));
    a.op_mem(true, 0x89, reg::RCX, in_slot(0));
    // Its block now holds a page of this half.
    shift_right(a, reg::RCX, 63);
    a.op_reg(false, 0x83, 0, reg::RCX); // add ecx, 1
    a.bytes(&[1]);
    const _: () = assert!(16 * BLOCK == 1 << 9);
    shift_right(a, reg::S1, 9);
    let block = Address { base: Some(reg::RSP), index: Some(reg::S1), shift: 0, disp: 8 + hot!(filled) };
    a.op_mem(false, 0x08, reg::RCX, block); // or [block], cl
    for at in passing {
        a.bind_here(at);
    }
    a.op_mem(true, 0x8b, reg::RCX, here(hot!(saved_rcx)));
    back(a, false);
    a.bind_here(miss);
    a.op_mem(true, 0x03, reg::S0, Address::base(reg::RAX, tag));
    // The page has a translation: the operand is misaligned, or reaches into the next page.
    a.op_mem(true, 0x8b, reg::RAX, Address::base(reg::RAX, tag));
    a.op_reg(true, 0x31, reg::S0, reg::RAX); // xor rax, s0
    shift_right(a, reg::RAX, 12);
    let other = a.jcc_later(cc::E);
    if let Some(fill) = fill {
        call(a, fill);
        let filled = a.jcc_later(cc::AE);
        a.bind(filled, again);
    }
    a.bind_here(other);
    back(a, true);
}

fn stack(a: &mut Asm, array: i32, fill: usize) {
    a.op_mem(true, 0x89, reg::RAX, here(hot!(saved_rax)));
    let mut found = Vec::new();
    let mut misses = Vec::new();
    for attempt in 0..2 {
        entry(a, array);
        a.op_mem(true, 0x2b, reg::S0, Address::base(reg::RAX, TAG_WRITE)); // sub s0, [tag]
        let miss = within(a, 1);
        found.push(a.jmp_later());
        a.bind_here(miss);
        if attempt == 0 {
            a.op_mem(true, 0x03, reg::S0, Address::base(reg::RAX, TAG_WRITE));
            call(a, fill);
            misses.push(a.jcc_later(cc::B));
        }
    }
    for at in misses {
        a.bind_here(at);
    }
    back(a, true);
    for at in found {
        a.bind_here(at);
    }
    a.op_mem(true, 0x8b, reg::S0, Address::base(reg::RAX, TAG_WRITE));
    a.op_mem(true, 0x89, reg::S0, here(hot!(stack_page)));
    a.op_mem(true, 0x8b, reg::STACK, Address::base(reg::RAX, HOST));
    a.op_reg(true, 0x29, reg::S0, reg::STACK); // sub stack, s0
    a.op_mem(true, 0x89, reg::STACK, here(hot!(stack_delta)));
    back(a, false);
}

/// Generates the routines; `fills` are those of [`super::light`] for reads and for writes.
pub fn generate(a: &mut Asm, fills: [usize; 2]) -> Probes {
    let mut probes = Probes::default();
    for (kind, of_kind) in probes.operands.iter_mut().enumerate() {
        for (written, of_access) in of_kind.iter_mut().enumerate() {
            for (n, at) in of_access.iter_mut().enumerate() {
                let aligned = n >= SIZES.len();
                let size = if aligned { [16, 32][n - SIZES.len()] } else { SIZES[n] };
                *at = a.at() as u32;
                operand(a, kind, MemoryOperand { size, written: written == 1, aligned }, Some(fills[written]));
            }
        }
        probes.written_before[kind] = a.at() as u32;
        operand(a, kind, MemoryOperand { size: 1, written: true, aligned: false }, None);
    }
    for (checked, of_array) in probes.stack.iter_mut().enumerate() {
        for (written, at) in of_array.iter_mut().enumerate() {
            *at = a.at() as u32;
            stack(a, if checked == 1 { hot!(tlb_checked) } else { hot!(tlb) }, fills[written]);
        }
    }
    probes
}
