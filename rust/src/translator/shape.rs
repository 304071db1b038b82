//! What is the same for all instructions of one code: which operands they have, where these stand in the encoding, and
//! how they are accessed. It is worked out when the first of them is met, since that takes long, and looked up from then on.

use iced_x86::{
    Code, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpCodeOperandKind as K, OpKind,
    Register,
};

use super::classify::{MemoryOperand, Place};
use super::short::Short;
use super::variant::{AVX, SSE};
use crate::interpreter::vector::features::code_offered;

/// A register operand that the encoding chooses.
#[derive(Clone, Copy, Default, Debug)]
pub struct RegisterOperand {
    /// Which operand.
    pub number: u8,
    /// Where it stands.
    pub place: Place,
    /// It is read.
    pub read: bool,
    /// It is written,
    pub written: bool,
    /// though not always.
    pub maybe: bool,
}

/// See the module. Of an instruction that may run as itself.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Registers that the encoding chooses.
    pub registers: Short<RegisterOperand, 4>,
    /// General registers that it changes whatever the encoding chooses, as a mask by number.
    pub implied: u16,
    /// The memory operand; LOCK makes it a written one.
    pub memory: Option<MemoryOperand>,
    /// Bits of the variant that it needs.
    pub needs: u8,
}

/// Shapes by code, and by what else they depend on.
pub struct Shapes {
    /// Number in `known` plus 2; 0: not met yet, 1: does not run as itself.
    numbers: Vec<u16>,
    known: Vec<Shape>,
    infos: InstructionInfoFactory,
}

impl Default for Shapes {
    fn default() -> Self {
        Self { numbers: vec![0; Code::values().len() * 4], known: Vec::new(), infos: InstructionInfoFactory::new() }
    }
}

impl Shapes {
    /// The shape of `i`, if it may run as itself.
    pub fn of(&mut self, i: &Instruction) -> Option<&Shape> {
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        // XOR of a register with itself reads nothing.
        let same = i.op_count() >= 2
            && i.op0_kind() == OpKind::Register
            && i.op1_kind() == OpKind::Register
            && i.op0_register() == i.op1_register();
        let key = i.code() as usize * 4 + usize::from(memory) * 2 + usize::from(same);
        let number = match self.numbers[key] {
            0 => {
                let number = match shape(i, &mut self.infos) {
                    None => 1,
                    Some(shape) => {
                        self.known.push(shape);
                        self.known.len() as u16 + 1
                    }
                };
                self.numbers[key] = number;
                number
            }
            number => number,
        };
        self.known.get(usize::from(number).checked_sub(2)?)
    }
}

fn shape(i: &Instruction, infos: &mut InstructionInfoFactory) -> Option<Shape> {
    let m = i.mnemonic();
    let code = i.op_code();
    let vex = match code.encoding() {
        EncodingKind::Legacy => false,
        EncodingKind::VEX => true,
        _ => return None,
    };
    let uses =
        |f: fn(Register) -> bool| (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && f(i.op_register(n)));
    let is_vector = uses(Register::is_xmm) || uses(Register::is_ymm) || matches!(m, M::Vzeroupper | M::Vzeroall);
    let mut needs = 0;
    if is_vector {
        needs = SSE | if vex { AVX } else { 0 };
        if is_special(m) || !code_offered(i.code()) {
            return None;
        }
    } else if !is_integer(m) && !is_conditional(m) || !integer_offered(i.code()) {
        return None;
    }
    let details = infos.info(i);
    let number = |r: Register| 1_u16 << r.full_register().number();
    let changed = details.used_registers().iter().filter(|u| u.register().is_gpr() && is_write(u.access()));
    let mut implied = changed.fold(0, |mask, u| mask | number(u.register()));
    let mut registers = Short::default();
    let mut memory = None;
    for n in 0..i.op_count() {
        let access = details.op_access(n);
        let read = !matches!(access, OpAccess::Write | OpAccess::None | OpAccess::NoMemAccess);
        let written = is_write(access);
        match i.op_kind(n) {
            OpKind::Register => {
                let Some(place) = place(code.op_kind(n))? else { continue };
                let r = i.op_register(n);
                if r.is_gpr() {
                    if written {
                        implied &= !number(r);
                    }
                    let maybe = access == OpAccess::CondWrite;
                    if !registers.push(RegisterOperand { number: n as u8, place, read, written, maybe }) {
                        return None;
                    }
                } else if !r.is_xmm() && !r.is_ymm() {
                    return None;
                }
            }
            OpKind::Memory => {
                place(code.op_kind(n))?;
                let size = i.memory_size().size() as u16;
                if access == OpAccess::NoMemAccess || i.is_vsib() || !(1..=32).contains(&size) || memory.is_some() {
                    return None;
                }
                let aligned = size >= 16 && (!is_vector || must_be_aligned(m, vex));
                memory = Some(MemoryOperand { size, written, aligned });
            }
            OpKind::Immediate8 | OpKind::Immediate16 | OpKind::Immediate32 | OpKind::Immediate64 => {}
            OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 | OpKind::Immediate32to64 => {}
            _ => return None,
        }
    }
    // NOP r/m touches nothing.
    if m == M::Nop {
        return Some(Shape { registers: Short::default(), implied: 0, memory: None, needs });
    }
    // What was chosen here may be changed in any case, too.
    for n in 0..i.op_count() {
        let fixed = i.op_kind(n) == OpKind::Register && place(code.op_kind(n)) == Some(None);
        if fixed && i.op_register(n).is_gpr() && is_write(details.op_access(n)) {
            implied |= number(i.op_register(n));
        }
    }
    if m == M::Cmpxchg {
        implied |= number(Register::RAX);
    }
    Some(Shape { registers, implied, memory, needs })
}

fn is_write(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
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

/// Legacy SSE memory operands of 16 bytes must be aligned, but for these; of the VEX forms only a few.
fn must_be_aligned(m: M, vex: bool) -> bool {
    use M::*;
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
