//! IRETQ at CPL 0 as shared code, for what a kernel does as a rule: to CPL 3 or to CPL 0, with flat segments from a GDT that
//! begins with a page, and flags that neither trap nor check alignment.
//!
//! The descriptors are read each time; whatever differs from this goes to the interpreter's handler (SDM vol. 2, IRET).

use super::asm::{Address, Asm, cc, reg};
use super::crossing::{CODE, DATA, DPL3, change_privilege, flat_segment, load_flags, null_segment, store_imm};
use super::glue::{Glue, and_imm, flags_back, in_state, state};
use super::hot::hot;
use crate::interpreter::events::blocking;
use crate::interpreter::system::segment::access;
use crate::state::{flag, seg};

/// Descriptors of flat segments, accessed: 64-bit code and writable data, without DPL.
const FLAT_CODE: u64 = 0x00af_9b00_0000_ffff;
const FLAT_DATA: u64 = 0x00cf_9300_0000_ffff;
/// Where the DPL lies in a descriptor.
const DESCRIPTOR_DPL: u32 = 45;

/// Offsets in the frame.
const RIP: i32 = 0;
const CS: i32 = 8;
const FLAGS: i32 = 16;
const RSP: i32 = 24;
const SS: i32 = 32;
const FRAME: i32 = 40;

/// RFLAGS bits that are loaded here,
const LOADED: u32 = (flag::STATUS | flag::DF | flag::IF | flag::IOPL | flag::ID) as u32;
/// and those that the handler loads. RF would hold instruction breakpoints back, of which there are none where translated
/// code runs.
const ODD: u32 = (flag::TF | flag::AC | flag::NT | flag::VM | flag::VIF | flag::VIP) as u32;

/// The ways to the handler.
struct Away(Vec<usize>);

impl Away {
    fn when(&mut self, a: &mut Asm, condition: u8) {
        self.0.push(a.jcc_later(condition));
    }

    /// TEST dword `[rsp + disp]`, bits; away where one is set.
    fn if_set(&mut self, a: &mut Asm, disp: i32, bits: u32) {
        a.op_mem(false, 0xf7, 0, Address::base(reg::RSP, disp));
        a.bytes(&bits.to_le_bytes());
        self.when(a, cc::NE);
    }

    fn if_not_zero(&mut self, a: &mut Asm, disp: i32) {
        a.op_mem(true, 0x83, 7, Address::base(reg::RSP, disp)); // cmp qword [disp], 0
        a.bytes(&[0]);
        self.when(a, cc::NE);
    }

    /// CMP reg32, imm32; away on `condition`.
    fn if_compared(&mut self, a: &mut Asm, register: u8, value: u32, condition: u8) {
        a.op_reg(false, 0x81, 7, register);
        a.bytes(&value.to_le_bytes());
        self.when(a, condition);
    }

    /// The selector in ECX names this descriptor, in the first page of the GDT. Clobbers RDX and S1.
    fn unless_descriptor(&mut self, a: &mut Asm, rpl: u32, descriptor: u64) {
        // Not the null selector, within the limit, and in that page.
        self.if_compared(a, reg::RCX, 8, cc::B);
        a.lea(false, reg::RDX, Address::base(reg::RCX, 7 - rpl as i32));
        self.if_compared(a, reg::RDX, 0xfff, cc::A);
        load_word(a, reg::S1, Address::base(reg::RSP, state!(gdtr_limit)));
        a.op_reg(false, 0x39, reg::S1, reg::RDX); // cmp edx, r11d
        self.when(a, cc::A);
        // RPL, and the GDT's: then the selector less the RPL is an offset.
        a.op_reg(false, 0x89, reg::RCX, reg::RDX); // mov edx, ecx
        and_imm(a, reg::RDX, 7);
        self.if_compared(a, reg::RDX, rpl, cc::NE);
        let at = Address { base: Some(reg::S0), index: Some(reg::RCX), shift: 0, disp: -(rpl as i32) };
        a.op_mem(true, 0x8b, reg::RDX, at);
        a.bytes(&[0x49, 0xbb]); // mov r11, imm64
        a.bytes(&(descriptor | u64::from(rpl) << DESCRIPTOR_DPL).to_le_bytes());
        a.op_reg(true, 0x39, reg::S1, reg::RDX); // cmp rdx, r11
        self.when(a, cc::NE);
    }

    /// A data segment that CPL 3 may not use would be dropped. Clobbers S1.
    fn unless_kept(&mut self, a: &mut Asm, register: usize) {
        let rights = Address::base(reg::RSP, state!(seg) + 32 * register as i32 + 24);
        a.op_mem(false, 0x8b, reg::S1, rights);
        a.op_reg(false, 0xf7, 0, reg::S1); // test r11d, unusable
        a.bytes(&(access::UNUSABLE as u32).to_le_bytes());
        let unusable = a.jcc_later(cc::NE);
        and_imm(a, reg::S1, DPL3);
        self.if_compared(a, reg::S1, DPL3, cc::NE);
        a.bind_here(unusable);
    }
}

/// MOVZX reg32, word [address].
fn load_word(a: &mut Asm, register: u8, address: Address) {
    let rex = 0x40 | (register >> 3) << 2 | address.base.unwrap_or(0) >> 3;
    a.bytes(&[rex, 0x0f, 0xb7]);
    a.modrm(register, address);
}

fn in_frame(field: i32) -> Address {
    Address::base(reg::RAX, field)
}

/// S0 = host pointer of the first page of the GDT, should that begin with a page; S1 = site; flags saved.
pub fn generate(a: &mut Asm, g: &Glue) -> usize {
    let at = a.at();
    a.store(reg::S1, hot!(target));
    let used = [reg::RAX, reg::RCX, reg::RDX];
    for register in used {
        a.store(register, in_state(register));
    }
    let mut away = Away(Vec::new());
    away.if_set(a, state!(rflags), (flag::NT | flag::AC) as u32);
    away.if_set(a, state!(interruptibility), blocking::NMI as u32);
    away.if_set(a, state!(gdtr_base), 0xfff);
    // The frame lies in the page of stack.
    a.mov(reg::RAX, reg::GUEST_RSP);
    a.op_mem(true, 0x2b, reg::RAX, Address::base(reg::RSP, hot!(stack_page)));
    a.op_reg(true, 0x81, 7, reg::RAX); // cmp rax, 4096 - 40
    a.bytes(&(4096 - FRAME).to_le_bytes());
    away.when(a, cc::A);
    a.lea(true, reg::RAX, Address { base: Some(reg::GUEST_RSP), index: Some(reg::STACK), shift: 0, disp: 0 });
    a.op_mem(false, 0xf7, 0, in_frame(FLAGS)); // test dword [flags], odd
    a.bytes(&ODD.to_le_bytes());
    away.when(a, cc::NE);
    // IF may become 1.
    a.op_mem(false, 0xf7, 0, in_frame(FLAGS)); // test dword [flags], IF
    a.bytes(&(flag::IF as u32).to_le_bytes());
    let blocked = a.jcc_later(cc::E);
    away.if_not_zero(a, hot!(window));
    a.bind_here(blocked);
    // RIP is canonical.
    a.op_mem(true, 0x8b, reg::RCX, in_frame(RIP));
    a.mov(reg::RDX, reg::RCX);
    a.bytes(&[0x48, 0xc1, 0xe2, 16, 0x48, 0xc1, 0xfa, 16]); // shl rdx, 16; sar rdx, 16
    a.op_reg(true, 0x39, reg::RCX, reg::RDX); // cmp rdx, rcx
    away.when(a, cc::NE);
    load_word(a, reg::RCX, in_frame(CS));
    a.bytes(&[0xf6, 0xc1, 3]); // test cl, 3
    let inward = a.jcc_later(cc::E);
    away.if_not_zero(a, hot!(to_user.refused));
    for register in [seg::ES, seg::DS, seg::FS, seg::GS] {
        away.unless_kept(a, register);
    }
    leave(a, g, &mut away, 3);
    a.bind_here(inward);
    leave(a, g, &mut away, 0);
    for at in away.0 {
        a.bind_here(at);
    }
    for register in used {
        a.load(register, in_state(register));
    }
    flags_back(a);
    a.load(reg::S1, hot!(target));
    let slow = a.jmp_later();
    a.bind(slow, g.slow);
    at
}

/// ECX is the selector of CS, RAX the frame.
fn leave(a: &mut Asm, g: &Glue, away: &mut Away, rpl: u32) {
    away.unless_descriptor(a, rpl, FLAT_CODE);
    load_word(a, reg::RCX, in_frame(SS));
    // A null selector will do within CPL 0: there it is what interrupts leave in SS.
    let null = (rpl == 0).then(|| {
        a.op_reg(false, 0x85, reg::RCX, reg::RCX); // test ecx, ecx
        a.jcc_later(cc::E)
    });
    away.unless_descriptor(a, rpl, FLAT_DATA);
    // Nothing is in the way any more.
    a.mov(reg::S1, reg::RCX);
    flat_segment(a, seg::SS, DATA | rpl << 5);
    if let Some(null) = null {
        let flat = a.jmp_later();
        a.bind_here(null);
        null_segment(a, seg::SS);
        a.bind_here(flat);
    }
    load_word(a, reg::S1, in_frame(CS));
    flat_segment(a, seg::CS, CODE | rpl << 5);
    store_imm(a, state!(monitor), 0);
    a.op_mem(false, 0x8b, reg::S0, in_frame(FLAGS));
    and_imm(a, reg::S0, LOADED);
    load_flags(a);
    a.op_mem(true, 0x8b, reg::GUEST_RSP, in_frame(RSP));
    a.op_mem(true, 0x8b, reg::RCX, in_frame(RIP));
    if rpl == 3 {
        change_privilege(a, hot!(to_user));
    }
    a.mov(reg::S0, reg::RCX);
    for register in [reg::RAX, reg::RCX, reg::RDX] {
        a.load(register, in_state(register));
    }
    let go = a.jmp_later();
    a.bind(go, g.lookup_saved);
}
