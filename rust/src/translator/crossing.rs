//! SYSCALL and SYSRETQ as shared code: both privileges of the address space lie ready in the hot data, so that a
//! change of CPL swaps the TLB array and the epochs, and the target is looked up like that of any branch.
//!
//! What is odd goes to the interpreter's handlers (SDM vol. 2, SYSCALL and SYSRET; vol. 3, 5.8.8). The processor's
//! derived mode is brought up to date when Rust code is called next (`take_view`).

use super::asm::{Address, Asm, cc, reg};
use super::glue::{Glue, and_imm, gpr, restore_flags, save_flags, shift_left, shift_right, state};
use super::hot::{Hot, hot};
use crate::cpu::Cpu;
use crate::interpreter::system::segment::access;
use crate::state::{Segment, cr, flag, seg};

const R11: u8 = 11;

/// Access rights of flat 64-bit code and of flat data, without DPL, as SYSCALL loads them.
pub(super) const CODE: u32 = 0xa09b;
pub(super) const DATA: u32 = 0xc093;
pub(super) const DPL3: u32 = 3 << 5;
/// RFLAGS bits that SYSRET loads.
const LOADED: u32 = 0x003c_7fd7;
/// Those that it loads by the helper: a trap is due, or alignment may be checked.
const ODD: u32 = (flag::TF | flag::AC) as u32;

/// Bytes of a segment register in the state.
const SEGMENT: i32 = size_of::<Segment>() as i32;

/// One direction.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// Not 0: the helper does it.
    pub refused: u64,
    /// Selectors.
    pub cs: u64,
    /// See `cs`.
    pub ss: u64,
    /// TLB array of data accesses.
    pub tlb: *const crate::mmu::TlbEntry,
}

impl Cpu {
    /// Fills in both sides for the present address space and MSRs.
    pub(super) fn set_crossing(&mut self) {
        let s = &*self.state;
        let (star, own) = (s.star, u64::from(s.efer & cr::EFER_SCE == 0 || s.cr4 & cr::CR4_TSD != 0));
        let odd = u64::from(s.fmask & flag::AC == 0);
        let (user, kernel, change) = self.privilege_arrays();
        let hot: &mut Hot = self.state.hot();
        let (down, up) = (star >> 32, star >> 48);
        hot.to_kernel =
            Side { refused: own | odd, cs: down & 0xfffc, ss: (down & 0xfffc).wrapping_add(8) & 0xfffc, tlb: kernel };
        hot.to_user =
            Side { refused: own, cs: up.wrapping_add(16) & 0xfffc | 3, ss: up.wrapping_add(8) & 0xfffc | 3, tlb: user };
        hot.epoch_change = u64::from(change) << 48;
    }
}

/// S0 = address behind the instruction, S1 = site.
pub fn syscall(a: &mut Asm, g: &Glue) -> usize {
    let at = a.at();
    a.store(reg::S1, hot!(target));
    a.mov(reg::S1, reg::RCX);
    a.load(reg::RCX, hot!(to_kernel.refused));
    a.bytes(&[0xe3, 0]); // jrcxz: the flags stay for the helper
    let from = a.at();
    a.mov(reg::RCX, reg::S1);
    a.load(reg::S1, hot!(target));
    let refused = a.jmp_later();
    a.bind(refused, g.slow);
    let here = a.at();
    a.code[from - 1] = (here - from) as u8;
    a.mov(reg::RCX, reg::S0);
    // R11 = RFLAGS: the arithmetic flags from the host, the others from the state.
    a.mov(reg::S1, reg::RAX);
    a.bytes(&[0x9f, 0x0f, 0x90, 0xc0, 0x44, 0x0f, 0xb7, 0xf0]); // lahf; seto al; movzx r14d, ax
    a.mov(reg::RAX, reg::S1);
    a.op_reg(false, 0x89, reg::S0, reg::S1); // mov r11d, r14d
    and_imm(a, reg::S1, 1);
    shift_left(a, reg::S1, 11);
    shift_right(a, reg::S0, 8);
    and_imm(a, reg::S0, 0xd5);
    or(a, reg::S0, reg::S1);
    a.load(reg::S1, state!(rflags));
    a.op_reg(true, 0x81, 4, reg::S1); // and r11, imm32, sign-extended
    a.bytes(&(!(flag::STATUS | flag::RF | flag::VM) as u32).to_le_bytes());
    or(a, reg::S0, reg::S1);
    a.store(reg::S0, gpr(R11));
    a.load(reg::S1, state!(fmask));
    a.op_reg(true, 0xf7, 2, reg::S1); // not r11
    a.op_reg(true, 0x21, reg::S1, reg::S0); // and r14, r11
    load_flags(a);
    load_segments(a, hot!(to_kernel), 0);
    a.load(reg::S0, state!(lstar));
    let go = a.jmp_later();
    a.bind(go, g.lookup_saved);
    at
}

/// S1 = site.
pub fn sysret(a: &mut Asm, g: &Glue) -> usize {
    let at = a.at();
    a.store(reg::S1, hot!(target));
    save_flags(a);
    a.op_mem(true, 0x83, 7, Address::base(reg::RSP, hot!(to_user.refused))); // cmp qword [refused], 0
    a.bytes(&[0]);
    let refused = a.jcc_later(cc::NE);
    // IF may become 1.
    a.op_mem(true, 0x83, 7, Address::base(reg::RSP, hot!(window))); // cmp qword [window], 0
    a.bytes(&[0]);
    let window = a.jcc_later(cc::NE);
    a.load(reg::S0, gpr(R11));
    a.op_reg(false, 0xf7, 0, reg::S0); // test r14d, imm32
    a.bytes(&ODD.to_le_bytes());
    let odd = a.jcc_later(cc::NE);
    a.mov(reg::S0, reg::RCX);
    shift_left_wide(a, reg::S0, 16);
    a.op_reg(true, 0xc1, 7, reg::S0); // sar r14, 16
    a.bytes(&[16]);
    a.op_reg(true, 0x39, reg::RCX, reg::S0); // cmp r14, rcx
    let beyond = a.jcc_later(cc::NE);
    a.load(reg::S0, gpr(R11));
    and_imm(a, reg::S0, LOADED);
    load_flags(a);
    load_segments(a, hot!(to_user), DPL3);
    a.mov(reg::S0, reg::RCX);
    let go = a.jmp_later();
    a.bind(go, g.lookup_saved);
    for away in [refused, window, odd, beyond] {
        a.bind_here(away);
    }
    restore_flags(a);
    a.load(reg::S1, hot!(target));
    let slow = a.jmp_later();
    a.bind(slow, g.slow);
    at
}

/// RFLAGS from S0, the arithmetic ones to `saved_flags` as well.
pub(super) fn load_flags(a: &mut Asm) {
    a.op_reg(false, 0x83, 1, reg::S0); // or r14d, 2
    a.bytes(&[2]);
    a.store(reg::S0, state!(rflags));
    a.op_reg(false, 0x89, reg::S0, reg::S1); // mov r11d, r14d
    and_imm(a, reg::S1, 0xd5);
    shift_left(a, reg::S1, 8);
    shift_right(a, reg::S0, 11);
    and_imm(a, reg::S0, 1);
    or(a, reg::S1, reg::S0);
    a.store(reg::S1, hot!(saved_flags));
}

/// CS, SS and all that goes with the other privilege.
fn load_segments(a: &mut Asm, side: i32, dpl: u32) {
    a.load(reg::S1, side + std::mem::offset_of!(Side, cs) as i32);
    flat_segment(a, seg::CS, CODE | dpl);
    a.load(reg::S1, side + std::mem::offset_of!(Side, ss) as i32);
    flat_segment(a, seg::SS, DATA | dpl);
    change_privilege(a, side);
}

/// A flat segment with the selector in S1, which it clobbers.
pub(super) fn flat_segment(a: &mut Asm, register: usize, access: u32) {
    let at = state!(seg) + SEGMENT * register as i32;
    a.store(reg::S1, at);
    store_imm(a, at + 8, 0);
    a.mov_imm(reg::S1, !0);
    a.store(reg::S1, at + 16);
    store_imm(a, at + 24, access);
}

/// What a null selector with RPL 0 leaves in SS.
pub(super) fn null_segment(a: &mut Asm, register: usize) {
    let at = state!(seg) + SEGMENT * register as i32;
    for (field, value) in [(0, 0), (8, 0), (16, 0), (24, access::UNUSABLE as u32)] {
        store_imm(a, at + field, value);
    }
}

/// The TLB array, the epochs and the stack of the other privilege. Clobbers S0 and S1.
pub(super) fn change_privilege(a: &mut Asm, side: i32) {
    a.load(reg::S1, side + std::mem::offset_of!(Side, tlb) as i32);
    a.store(reg::S1, hot!(tlb));
    a.load(reg::S1, hot!(epoch_change));
    for n in 0..2 {
        // xor [epoch], r11
        a.op_mem(true, 0x31, reg::S1, Address::base(reg::RSP, hot!(epochs) + 8 * n));
    }
    a.load(reg::S0, hot!(stack_page));
    a.load(reg::S1, hot!(other_stack));
    a.store(reg::S1, hot!(stack_page));
    a.store(reg::S0, hot!(other_stack));
    a.load(reg::S1, hot!(other_stack) + 8);
    a.store(reg::STACK, hot!(other_stack) + 8);
    a.store(reg::S1, hot!(stack_delta));
    a.mov(reg::STACK, reg::S1);
    a.op_mem(false, 0x80, 6, Address::base(reg::RSP, hot!(supervisor_stack))); // xor byte [supervisor_stack], 1
    a.bytes(&[1]);
}

/// MOV qword [rsp + disp], imm32 below 2^31.
pub(super) fn store_imm(a: &mut Asm, disp: i32, value: u32) {
    a.op_mem(true, 0xc7, 0, Address::base(reg::RSP, disp));
    a.bytes(&value.to_le_bytes());
}

/// OR of two registers, 64 bits.
fn or(a: &mut Asm, to: u8, from: u8) {
    a.op_reg(true, 0x09, from, to);
}

/// SHL reg64, n.
fn shift_left_wide(a: &mut Asm, reg: u8, n: u8) {
    a.op_reg(true, 0xc1, 4, reg);
    a.bytes(&[n]);
}
