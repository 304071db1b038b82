//! What the translator does with an instruction: run it as itself, rewrite its control flow, or call the
//! interpreter's handler.

use iced_x86::{Code, InstructionInfoFactory, Mnemonic as M, OpAccess, OpCodeOperandKind as K, OpKind, Register};

use super::fragment::{Repeat, System};
use super::variant::{AVX, SMAP, SSE, SUPERVISOR};
use crate::decode::Insn;
use crate::interpreter::vector::features::code_offered;

/// Where an operand's register stands in the encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// ModRM.reg.
    Reg,
    /// ModRM.rm, or the low bits of the opcode.
    Rm,
    /// VEX.vvvv.
    Vvvv,
}

/// A general-purpose register operand that the rewrite may have to move.
#[derive(Clone, Copy, Debug)]
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
#[derive(Clone, Debug)]
pub struct Native {
    /// General-purpose registers in the encoding.
    pub gprs: Vec<GprOperand>,
    /// Memory operand.
    pub memory: Option<MemoryOperand>,
    /// AH, CH, DH or BH is among the operands.
    pub high_byte: bool,
}

/// How an instruction is translated.
#[derive(Clone, Debug)]
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

fn is_integer(m: M) -> bool {
    matches!(
        m,
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Add
            | M::Adc
            | M::Sub
            | M::Sbb
            | M::And
            | M::Or
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Not
            | M::Neg
            | M::Inc
            | M::Dec
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Imul
            | M::Mul
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
            | M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Bswap
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Lahf
            | M::Sahf
            | M::Clc
            | M::Stc
            | M::Cmc
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsmsk
            | M::Blsr
            | M::Bzhi
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
            | M::Mulx
            | M::Adcx
            | M::Adox
            | M::Crc32
            | M::Movbe
            | M::Nop
            | M::Endbr64
            | M::Lfence
            | M::Sfence
            | M::Mfence
            | M::Movnti
    )
}

/// Vector instructions whose memory operand is not one plain access, or that touch more than registers.
fn is_special(m: M) -> bool {
    matches!(
        m,
        M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
            | M::Vgatherdps
            | M::Vgatherdpd
            | M::Vgatherqps
            | M::Vgatherqpd
            | M::Vpgatherdd
            | M::Vpgatherdq
            | M::Vpgatherqd
            | M::Vpgatherqq
    )
}

/// Legacy SSE memory operands of 16 bytes must be aligned, but for these; of the VEX forms only a few.
fn must_be_aligned(insn: &Insn, vex: bool) -> bool {
    use M::*;
    let m = insn.iced.mnemonic();
    if vex {
        return matches!(m, Vmovaps | Vmovapd | Vmovdqa | Vmovntdq | Vmovntps | Vmovntpd | Vmovntdqa);
    }
    !matches!(m, Movups | Movupd | Movdqu | Lddqu | Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm)
}

/// The host has what an integer instruction needs.
fn integer_offered(code: Code) -> bool {
    use iced_x86::CpuidFeature as F;
    code.cpuid_features().iter().all(|feature| match feature {
        F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64 | F::CMOV => true,
        F::SSE | F::SSE2 | F::MULTIBYTENOP | F::CET_IBT => true,
        F::CX8 | F::CMPXCHG16B => true,
        F::POPCNT => is_x86_feature_detected!("popcnt"),
        F::LZCNT => is_x86_feature_detected!("lzcnt"),
        F::BMI1 => is_x86_feature_detected!("bmi1"),
        F::BMI2 => is_x86_feature_detected!("bmi2"),
        F::ADX => is_x86_feature_detected!("adx"),
        F::MOVBE => is_x86_feature_detected!("movbe"),
        F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        _ => false,
    })
}

fn place(kind: K) -> Option<Option<Place>> {
    Some(Some(match kind {
        K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg | K::xmm_reg | K::ymm_reg => Place::Reg,
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::xmm_or_mem | K::ymm_or_mem => Place::Rm,
        K::r16_rm | K::r32_rm | K::r64_rm | K::xmm_rm | K::ymm_rm => Place::Rm,
        K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode => Place::Rm,
        K::r32_vvvv | K::r64_vvvv | K::xmm_vvvv | K::ymm_vvvv => Place::Vvvv,
        K::mem => return Some(None),
        K::al | K::cl | K::ax | K::dx | K::eax | K::rax | K::xmm_is4 | K::ymm_is4 => return Some(None),
        K::imm8 | K::imm8_const_1 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 => return Some(None),
        K::imm16 | K::imm32 | K::imm32sex64 | K::imm64 => return Some(None),
        _ => return None,
    }))
}

/// Chooses the plan in a variant; see [`super::variant`].
pub fn classify(insn: &Insn, variant: u8, infos: &mut InstructionInfoFactory) -> Plan {
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
    native(insn, variant & (SSE | AVX), infos).map_or(Plan::Interpret, Plan::Native)
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

fn native(insn: &Insn, vector_bits: u8, infos: &mut InstructionInfoFactory) -> Option<Native> {
    let i = &insn.iced;
    let m = i.mnemonic();
    let info = i.op_code();
    let vex = match info.encoding() {
        iced_x86::EncodingKind::Legacy => false,
        iced_x86::EncodingKind::VEX => true,
        _ => return None,
    };
    let uses =
        |f: fn(Register) -> bool| (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && f(i.op_register(n)));
    let is_vector = uses(Register::is_xmm) || uses(Register::is_ymm) || matches!(m, M::Vzeroupper | M::Vzeroall);
    if is_vector {
        let need = 1 | u8::from(vex) << 1;
        if is_special(m) || vector_bits & need != need || !code_offered(i.code()) {
            return None;
        }
    } else if !is_integer(m) && !is_conditional(m) || !integer_offered(i.code()) {
        return None;
    }
    let details = infos.info(i);
    let mut gprs = Vec::new();
    let mut memory = None;
    let mut high_byte = false;
    for n in 0..i.op_count() {
        let access = details.op_access(n);
        let reads = !matches!(access, OpAccess::Write | OpAccess::None | OpAccess::NoMemAccess);
        let writes =
            matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite);
        match i.op_kind(n) {
            OpKind::Register => {
                let r = i.op_register(n);
                let Some(place) = place(info.op_kind(n))? else { continue };
                if r.is_gpr() {
                    let full = r.full_register();
                    if matches!(r, Register::AH | Register::BH | Register::CH | Register::DH) {
                        high_byte = true;
                        continue;
                    }
                    // A write of 8 or 16 bits keeps the rest; a conditional one may keep all.
                    let partial = r.size() < 4 || access == OpAccess::CondWrite;
                    let guest = full.number() as u8;
                    gprs.push(GprOperand { guest, place, read: reads || writes && partial, written: writes });
                } else if !r.is_xmm() && !r.is_ymm() {
                    return None;
                }
            }
            OpKind::Memory => {
                place(info.op_kind(n))?;
                if access == OpAccess::NoMemAccess || i.is_vsib() || insn.address_mask == 0xffff {
                    return None;
                }
                let size = i.memory_size().size() as u16;
                if !(1..=32).contains(&size) || memory.is_some() {
                    return None;
                }
                let aligned = size >= 16 && (!is_vector || must_be_aligned(insn, vex));
                memory = Some(MemoryOperand { size, written: writes || i.has_lock_prefix(), aligned });
            }
            OpKind::Immediate8 | OpKind::Immediate16 | OpKind::Immediate32 | OpKind::Immediate64 => {}
            OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 | OpKind::Immediate32to64 => {}
            _ => return None,
        }
    }
    if i.has_lock_prefix() && memory.is_none() {
        return None;
    }
    // NOP r/m touches nothing.
    if m == M::Nop {
        memory = None;
        gprs.clear();
    }
    Some(Native { gprs, memory, high_byte })
}

fn is_conditional(m: M) -> bool {
    matches!(
        m,
        M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
            | M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
    )
}
