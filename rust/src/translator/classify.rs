//! What the translator does with an instruction: run it as itself, rewrite its control flow, or call the
//! interpreter's handler.

use iced_x86::{Code, Mnemonic as M, OpKind, Register};

use super::fragment::{Repeat, System};
use super::shape::Shapes;
use super::short::Short;
use super::variant::{SMAP, SUPERVISOR};
use crate::decode::Insn;

/// Where an operand's register stands in the encoding.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Place {
    /// ModRM.reg.
    #[default]
    Reg,
    /// ModRM.rm, or the low bits of the opcode.
    Rm,
    /// VEX.vvvv.
    Vvvv,
}

/// A general-purpose register operand that the rewrite may have to move.
#[derive(Clone, Copy, Default, Debug)]
pub struct GprOperand {
    /// Guest register number.
    pub guest: u8,
    /// Where.
    pub place: Place,
    /// The instruction reads it (also: writes only a part of it).
    pub read: bool,
    /// The instruction writes it.
    pub written: bool,
}

/// The memory operand.
#[derive(Clone, Copy, Debug)]
pub struct MemoryOperand {
    /// Bytes.
    pub size: u16,
    /// It is written.
    pub written: bool,
    /// Misaligned is #GP.
    pub aligned: bool,
}

/// An instruction that runs as itself.
#[derive(Clone, Copy, Debug)]
pub struct Native {
    /// General-purpose registers in the encoding.
    pub gprs: Short<GprOperand, 4>,
    /// General registers that change, as a mask by number.
    pub changes: u16,
    /// Memory operand.
    pub memory: Option<MemoryOperand>,
    /// AH, CH, DH or BH is among the operands.
    pub high_byte: bool,
}

/// How an instruction is translated.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// By the interpreter's handler.
    Interpret,
    /// As itself.
    Native(Native),
    /// LEA.
    Lea,
    /// PUSH of a register or an immediate.
    Push,
    /// POP of a register.
    Pop,
    /// LEAVE.
    Leave,
    /// Jcc rel.
    Jcc,
    /// JRCXZ.
    JumpIfZero,
    /// JMP rel.
    Jump,
    /// CALL rel.
    Call,
    /// JMP r/m64.
    JumpIndirect,
    /// CALL r/m64.
    CallIndirect,
    /// RET, RET imm16.
    Return,
    /// PUSH m64.
    PushMemory,
    /// POP m64.
    PopMemory,
    /// PUSHFQ.
    PushFlags,
    /// A hint that touches nothing.
    Nothing,
    /// DIV, IDIV of 32 or 64 bits.
    Divide,
    /// SWAPGS, at CPL 0.
    SwapGs,
    /// CLI, at CPL 0.
    Cli,
    /// STI, at CPL 0.
    Sti,
    /// STAC (true), CLAC, at CPL 0.
    AccessCheck(bool),
    /// BT, BTS, BTR, BTC of memory with the bit's offset in a register.
    BitString,
    /// See [`System`].
    System(System),
    /// REP STOS, REP MOVS.
    Repeat(Repeat),
}

/// Chooses the plan in a variant; see [`super::variant`].
pub fn classify(insn: &Insn, variant: u8, shapes: &mut Shapes) -> Plan {
    let i = &insn.iced;
    if i.is_invalid() || i.code() == Code::INVALID {
        return Plan::Interpret;
    }
    let m = i.mnemonic();
    if i.is_jcc_short_or_near() {
        return Plan::Jcc;
    }
    if i.code() == Code::Jrcxz_rel8_64 {
        return Plan::JumpIfZero;
    }
    if i.is_jmp_short_or_near() {
        return if i.op0_kind() == OpKind::NearBranch64 { Plan::Jump } else { Plan::Interpret };
    }
    if let Some(system) = System::of(insn, variant) {
        return Plan::System(system);
    }
    if let Some(repeat) = Repeat::of(insn) {
        return Plan::Repeat(repeat);
    }
    let wide = |r: Register| r.is_gpr64();
    match m {
        M::Bt | M::Bts | M::Btr | M::Btc if is_bit_string(insn) => return Plan::BitString,
        M::Call if i.is_call_near() && i.op0_kind() == OpKind::NearBranch64 => return Plan::Call,
        M::Call | M::Jmp if i.is_call_near_indirect() || i.is_jmp_near_indirect() => {
            let ok = match i.op0_kind() {
                OpKind::Register => wide(i.op0_register()),
                OpKind::Memory => i.memory_size().size() == 8,
                _ => false,
            };
            return match (ok, m) {
                (true, M::Call) => Plan::CallIndirect,
                (true, _) => Plan::JumpIndirect,
                _ => Plan::Interpret,
            };
        }
        M::Ret if matches!(i.code(), Code::Retnq | Code::Retnq_imm16) => return Plan::Return,
        M::Push => {
            return match i.code() {
                Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 => Plan::Push,
                Code::Push_rm64 if i.op0_kind() == OpKind::Memory => Plan::PushMemory,
                Code::Push_rm64 => Plan::Push,
                _ => Plan::Interpret,
            };
        }
        M::Pop if i.code() == Code::Pop_r64 => return Plan::Pop,
        M::Pop if i.code() == Code::Pop_rm64 => {
            return match i.op0_kind() {
                OpKind::Memory => Plan::PopMemory,
                _ => Plan::Interpret,
            };
        }
        M::Leave if i.code() == Code::Leaveq => return Plan::Leave,
        M::Lea if insn.address_mask != 0xffff => return Plan::Lea,
        M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchnta | M::Prefetchw => return Plan::Nothing,
        M::Pushfq if is_x86_feature_detected!("bmi2") => return Plan::PushFlags,
        M::Div | M::Idiv if i.op_count() == 1 && !i.has_lock_prefix() => {
            let size = match i.op0_kind() {
                OpKind::Register => i.op0_register().size(),
                _ => i.memory_size().size(),
            };
            return if size >= 4 { Plan::Divide } else { Plan::Interpret };
        }
        _ if variant & SUPERVISOR == 0 || !is_x86_feature_detected!("bmi2") => {}
        M::Swapgs => return Plan::SwapGs,
        M::Cli => return Plan::Cli,
        M::Sti => return Plan::Sti,
        M::Stac | M::Clac if code_offered_smap(variant) => return Plan::AccessCheck(m == M::Stac),
        _ => {}
    }
    native(insn, variant, shapes).map_or(Plan::Interpret, Plan::Native)
}

/// A bit offset in a register reaches beyond the operand in memory.
fn is_bit_string(insn: &Insn) -> bool {
    let i = &insn.iced;
    i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register && insn.address_mask != 0xffff
}

/// STAC and CLAC are valid and choose between two TLB arrays.
fn code_offered_smap(variant: u8) -> bool {
    variant & SMAP != 0
}

fn native(insn: &Insn, variant: u8, shapes: &mut Shapes) -> Option<Native> {
    let i = &insn.iced;
    let shape = shapes.of(i)?;
    let mut memory = shape.memory;
    if variant & shape.needs != shape.needs || memory.is_some() && insn.address_mask == 0xffff {
        return None;
    }
    if i.has_lock_prefix() {
        memory.as_mut()?.written = true;
    }
    let mut gprs = Short::default();
    let mut high_byte = false;
    let mut changes = shape.implied;
    for operand in &shape.registers {
        let r = i.op_register(u32::from(operand.number));
        let guest = r.full_register().number() as u8;
        changes |= u16::from(operand.written) << guest;
        if matches!(r, Register::AH | Register::BH | Register::CH | Register::DH) {
            high_byte = true;
            continue;
        }
        // A write of 8 or 16 bits keeps the rest; a conditional one may keep all.
        let read = operand.read || operand.written && (operand.maybe || r.size() < 4);
        let fits = gprs.push(GprOperand { guest, place: operand.place, read, written: operand.written });
        debug_assert!(fits, "as many as the shape has");
    }
    Some(Native { gprs, changes, memory, high_byte })
}
