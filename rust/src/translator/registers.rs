//! VMREAD from the shadow VMCS, VMWRITE of what it holds already, and RDMSR and WRMSR of what a hypervisor and a kernel
//! touch all the time, as shared code: calls that come back with the instruction done, or leave for the interpreter's
//! handler.
//!
//! Nothing is done here that exits or faults (SDM 25.6.9, 26.1.3; vol. 4): bitmaps and values are looked at first.

use super::asm::{Address, Asm, cc, reg};
use super::glue::{Glue, flags_back, in_state, shift_right, state};
use super::hot::hot;
use crate::interpreter::system::msr::{SPEC_CTRL_BITS, number};
use crate::vmx::fields::READS;

/// Offset of the bits for writes in the MSR bitmaps.
const WRITES: u32 = 2048;

/// What WRMSR takes.
#[derive(Clone, Copy)]
enum Takes {
    /// A canonical address.
    Address,
    /// These bits.
    Bits(u64),
}

/// In a routine the return address lies on the stack.
fn here(field: i32) -> Address {
    Address::base(reg::RSP, field + 8)
}

/// RAX is what it was when the routine began.
fn reload_rax(a: &mut Asm) {
    a.op_mem(true, 0x8b, reg::RAX, here(in_state(reg::RAX)));
}

/// A routine under construction: S1 is the site, S0 and the flags are its own, RAX is put aside.
struct Routine<'a> {
    a: &'a mut Asm,
    /// Ways to the handler.
    away: Vec<usize>,
}

impl<'a> Routine<'a> {
    fn begin(a: &'a mut Asm) -> Self {
        a.op_mem(true, 0x89, reg::S1, here(hot!(target)));
        a.op_mem(true, 0x89, reg::RAX, here(in_state(reg::RAX)));
        Self { a, away: Vec::new() }
    }

    fn away_when(&mut self, condition: u8) {
        self.away.push(self.a.jcc_later(condition));
    }

    /// S1 = the pointer at `field`; away where it is null.
    fn pointer(&mut self, field: i32) {
        self.a.op_mem(true, 0x8b, reg::S1, here(field));
        self.a.op_reg(true, 0x85, reg::S1, reg::S1); // test s1, s1
        self.away_when(cc::E);
    }

    /// Away unless the bit for `msr` in the bitmaps at S1 is clear.
    fn bitmap(&mut self, msr: u32, write: bool) {
        let high = if msr >= 0xc000_0000 { 1024 } else { 0 };
        let at = (if write { WRITES } else { 0 }) + high + (msr & 0x1fff) / 8;
        self.a.op_mem(false, 0xf6, 0, Address::base(reg::S1, at as i32)); // test byte [s1 + at], bit
        self.a.bytes(&[1 << (msr % 8)]);
        self.away_when(cc::NE);
    }

    /// Goes to the place that is bound next unless ECX is `msr`.
    fn unless(&mut self, msr: u32) -> usize {
        self.a.op_reg(false, 0x81, 7, reg::RCX); // cmp ecx, msr
        self.a.bytes(&msr.to_le_bytes());
        self.a.jcc_later(cc::NE)
    }

    /// For the field whose encoding is in S0: S0 = its value in the shadow VMCS, S1 = in bits 31:16 by how much it is shifted up
    /// and down for its width. Away where the bitmap, a pointer at `bitmap`, says so.
    fn field(&mut self, bitmap: i32) {
        // Reserved bits, and the high half of a field.
        self.a.op_reg(true, 0xf7, 0, reg::S0); // test s0, imm32
        self.a.bytes(&(!0x6c7e_u32).to_le_bytes());
        self.away_when(cc::NE);
        self.pointer(bitmap);
        self.a.bytes(&[0x4d, 0x0f, 0xa3, 0x33]); // bt [r11], r14
        self.away_when(cc::B);
        self.a.bytes(&[0x48, 0xb8]); // mov rax, imm64
        self.a.bytes(&(READS.as_ptr() as u64).to_le_bytes());
        let entry = Address { base: Some(reg::RAX), index: Some(reg::S0), shift: 1, disp: 0 };
        self.a.op_mem(false, 0x8b, reg::S1, entry);
        self.a.op_reg(false, 0x85, reg::S1, reg::S1); // test r11d, r11d
        self.away_when(cc::E);
        self.a.bytes(&[0x41, 0x0f, 0xb7, 0xc3]); // movzx eax, r11w
        self.a.op_mem(true, 0x03, reg::RAX, here(hot!(structures.shadow)));
        self.a.op_mem(true, 0x8b, reg::S0, Address::base(reg::RAX, 0));
    }

    /// Returns with the flags of VMsucceed.
    fn succeed(&mut self) {
        reload_rax(self.a);
        // 0 + 1 leaves all six flags clear.
        self.a.mov_imm(reg::S1, 0);
        self.a.op_reg(false, 0x83, 0, reg::S1);
        self.a.bytes(&[1, RET]);
    }

    fn end(self, g: &Glue) {
        let a = self.a;
        for at in self.away {
            a.bind_here(at);
        }
        reload_rax(a);
        a.lea(true, reg::RSP, Address::base(reg::RSP, 8));
        flags_back(a);
        a.load(reg::S1, hot!(target));
        let slow = a.jmp_later();
        a.bind(slow, g.slow);
    }
}

/// RET.
const RET: u8 = 0xc3;

/// S0 = encoding, S1 = site; flags saved. S0 becomes the value, and the flags those of VMsucceed.
pub fn vmread(a: &mut Asm, g: &Glue) -> usize {
    let at = a.at();
    let mut r = Routine::begin(a);
    r.field(hot!(structures.vmread_bitmap));
    r.a.mov(reg::RAX, reg::RCX);
    shift_right(r.a, reg::S1, 16);
    r.a.op_reg(false, 0x89, reg::S1, reg::RCX); // mov ecx, r11d
    r.a.op_reg(true, 0xd3, 4, reg::S0); // shl r14, cl
    r.a.op_reg(true, 0xd3, 5, reg::S0); // shr r14, cl
    r.a.mov(reg::RCX, reg::RAX);
    r.succeed();
    r.end(g);
    at
}

/// S0 = encoding, `saved_rcx` = value, S1 = site; flags saved. The flags become those of VMsucceed. A field that changes is
/// written by the handler: who copies a VMCS from memory finds most fields as they are.
pub fn vmwrite(a: &mut Asm, g: &Glue) -> usize {
    let at = a.at();
    let mut r = Routine::begin(a);
    r.field(hot!(structures.vmwrite_bitmap));
    r.a.op_mem(true, 0x8b, reg::RAX, here(hot!(saved_rcx)));
    r.a.op_mem(true, 0x89, reg::RCX, here(hot!(saved_rcx)));
    shift_right(r.a, reg::S1, 16);
    r.a.op_reg(false, 0x89, reg::S1, reg::RCX); // mov ecx, r11d
    r.a.op_reg(true, 0xd3, 4, reg::RAX); // shl rax, cl
    r.a.op_reg(true, 0xd3, 5, reg::RAX); // shr rax, cl
    r.a.op_mem(true, 0x8b, reg::RCX, here(hot!(saved_rcx)));
    r.a.op_reg(true, 0x39, reg::RAX, reg::S0); // cmp s0, rax
    r.away_when(cc::NE);
    r.succeed();
    r.end(g);
    at
}

/// S1 = site; flags saved.
pub fn rdmsr(a: &mut Asm, g: &Glue) -> usize {
    let at = a.at();
    let mut r = Routine::begin(a);
    r.pointer(hot!(structures.msr_bitmap));
    for (msr, field) in [
        (number::KERNEL_GS_BASE, state!(kernel_gs_base)),
        (number::SPEC_CTRL, state!(spec_ctrl)),
        (number::DEBUGCTL, state!(debugctl)),
    ] {
        let other = r.unless(msr);
        r.bitmap(msr, false);
        r.a.op_mem(true, 0x8b, reg::RDX, here(field));
        r.a.op_reg(false, 0x89, reg::RDX, reg::RAX); // mov eax, edx
        shift_right(r.a, reg::RDX, 32);
        r.a.bytes(&[RET]);
        r.a.bind_here(other);
    }
    r.end(g);
    at
}

/// S1 = site; flags saved.
pub fn wrmsr(a: &mut Asm, g: &Glue) -> usize {
    let at = a.at();
    let mut r = Routine::begin(a);
    r.pointer(hot!(structures.msr_bitmap));
    r.a.mov(reg::S0, reg::RDX);
    r.a.op_reg(true, 0xc1, 4, reg::S0); // shl r14, 32
    r.a.bytes(&[32]);
    r.a.op_reg(false, 0x89, reg::RAX, reg::RAX); // mov eax, eax
    r.a.op_reg(true, 0x09, reg::RAX, reg::S0); // or r14, rax
    for (msr, field, takes) in [
        (number::KERNEL_GS_BASE, state!(kernel_gs_base), Takes::Address),
        (number::SPEC_CTRL, state!(spec_ctrl), Takes::Bits(SPEC_CTRL_BITS)),
        (number::LSTAR, state!(lstar), Takes::Address),
    ] {
        let other = r.unless(msr);
        r.bitmap(msr, true);
        match takes {
            Takes::Address => {
                r.a.mov(reg::RAX, reg::S0);
                r.a.bytes(&[0x48, 0xc1, 0xe0, 16, 0x48, 0xc1, 0xf8, 16]); // shl rax, 16; sar rax, 16
                r.a.op_reg(true, 0x39, reg::S0, reg::RAX); // cmp rax, r14
            }
            Takes::Bits(bits) => {
                r.a.op_reg(true, 0xf7, 0, reg::S0); // test r14, imm32, sign-extended
                r.a.bytes(&(!bits as u32).to_le_bytes());
            }
        }
        r.away_when(cc::NE);
        r.a.op_mem(true, 0x89, reg::S0, here(field));
        reload_rax(r.a);
        r.a.bytes(&[RET]);
        r.a.bind_here(other);
    }
    r.end(g);
    at
}
