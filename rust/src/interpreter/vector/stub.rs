//! From an instruction to a stub: host code that loads the registers it uses from [`State`], executes it
//! with its memory operand redirected to a host address, and stores what it wrote.
//!
//! A stub uses only registers that the System V ABI lets it clobber and no stack frame. It knows nothing of
//! guest memory, of faults other than SIGFPE, and of the checks before an instruction.

use std::mem::offset_of;

use iced_x86::{
    Code, CpuidFeature, Encoder, IcedError, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic, OpAccess,
    OpKind, Register, RflagsBits,
};

use crate::state::State;

/// What a stub works on besides the state.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Scratch {
    /// x87 instructions: the FXSAVE image before,
    pub fx_in: [u64; 64],
    /// and after.
    pub fx_out: [u64; 64],
    /// The memory operand.
    pub mem: [u8; 64],
    /// MXCSR to run with.
    pub mxcsr_in: u32,
    /// MXCSR that the instruction left.
    pub mxcsr_out: u32,
    /// Silicon's own MXCSR.
    pub mxcsr_host: u32,
    /// RFLAGS before (status flags only).
    pub flags_in: u64,
    /// RFLAGS after.
    pub flags_out: u64,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            fx_in: [0; 64],
            fx_out: [0; 64],
            mem: [0; 64],
            mxcsr_in: HOST_MXCSR,
            mxcsr_out: 0,
            mxcsr_host: HOST_MXCSR,
            flags_in: 2,
            flags_out: 0,
        }
    }
}

/// MXCSR of all Rust code.
pub const HOST_MXCSR: u32 = 0x1f80;

/// A stub's code, given the state, the scratch and the host address of the memory operand. Returns 0, or after SIGFPE MXCSR with bit 31 set (then nothing was stored).
pub type Entry = unsafe extern "sysv64" fn(*mut State, *mut Scratch, *mut u8) -> u32;

/// What must be enabled for an instruction, hence which checks come first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// Nothing (MOVNTI, CRC32).
    None,
    /// x87.
    X87,
    /// MMX registers only.
    Mmx,
    /// MMX and XMM registers.
    MmxSse,
    /// XMM registers, not VEX.
    Sse,
    /// VEX.
    Avx,
}

/// How an instruction uses its memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It has none.
    None,
    /// Read.
    Read,
    /// Written, not read.
    Write,
}

/// What the unit knows of an instruction besides its code.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// What must be enabled.
    pub gate: Gate,
    /// Memory operand.
    pub access: Access,
    /// Its size in bytes.
    pub size: u8,
    /// Address bits that must be zero, else #GP(0): 0, 15 or 31.
    pub align: u8,
    /// Uses MXCSR's control bits or sets its flags.
    pub simd_fp: bool,
    /// Reads status flags.
    pub flags_read: bool,
    /// Writes status flags.
    pub flags_written: bool,
    /// Makes the x87 registers MMX registers (TOP = 0, all tags valid).
    pub to_mmx: bool,
}

/// Base registers of the state and the scratch in stubs (System V's first two arguments).
const STATE: Register = Register::RDI;
const SCRATCH: Register = Register::RSI;
/// Base register of the memory operand: the third argument is moved there, for RDX may be an operand.
const OPERAND: Register = Register::R11;

/// Instructions that take or change MXCSR: all floating-point arithmetic and conversions.
fn is_simd_fp(mnemonic: Mnemonic) -> bool {
    let name = format!("{mnemonic:?}").to_ascii_lowercase();
    // PMULHRSW… are integer; CMPSD the string instruction never comes here.
    let name = name.strip_prefix('v').unwrap_or(&name);
    let packed_or_scalar = ["ps", "pd", "ss", "sd"].iter().any(|end| name.ends_with(end));
    let arithmetic = ["add", "sub", "mul", "div", "sqrt", "min", "max", "hadd", "hsub", "cmp", "round", "dp"];
    name.starts_with("cvt")
        || name.starts_with("comis")
        || name.starts_with("ucomis")
        || packed_or_scalar
            && (arithmetic.iter().any(|start| name.starts_with(start))
                || name.starts_with("fm")
                || name.starts_with("fnm"))
}

/// Alignment that the SDM demands of a memory operand (vol. 2, "Exceptions Type" 1 and 2 against 4 and 5).
fn alignment(i: &Instruction, size: usize, vex: bool) -> u8 {
    let mnemonic = i.mnemonic();
    let explicit = matches!(
        mnemonic,
        Mnemonic::Vmovaps
            | Mnemonic::Vmovapd
            | Mnemonic::Vmovdqa
            | Mnemonic::Vmovntps
            | Mnemonic::Vmovntpd
            | Mnemonic::Vmovntdq
            | Mnemonic::Vmovntdqa
    );
    let unaligned = matches!(
        mnemonic,
        Mnemonic::Movups
            | Mnemonic::Movupd
            | Mnemonic::Movdqu
            | Mnemonic::Lddqu
            | Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestri64
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpestrm64
            | Mnemonic::Pcmpistri
            | Mnemonic::Pcmpistrm
    );
    match (vex, size) {
        (true, 16 | 32) if explicit => size as u8 - 1,
        (false, 16) if !unaligned => 15,
        _ => 0,
    }
}

fn memory(base: Register, offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, offset as i64)
}

/// Host code that is being put together.
struct Emitter {
    encoder: Encoder,
    at: u64,
}

impl Emitter {
    fn emit(&mut self, i: &Instruction) -> Result<(), IcedError> {
        let len = self.encoder.encode(i, self.at)?;
        self.at = self.at.wrapping_add(len as u64);
        Ok(())
    }

    fn load(&mut self, code: Code, register: Register, base: Register, offset: usize) -> Result<(), IcedError> {
        self.emit(&Instruction::with2(code, register, memory(base, offset))?)
    }

    fn store(&mut self, code: Code, register: Register, base: Register, offset: usize) -> Result<(), IcedError> {
        self.emit(&Instruction::with2(code, memory(base, offset), register)?)
    }

    fn on(&mut self, code: Code, base: Register, offset: usize) -> Result<(), IcedError> {
        self.emit(&Instruction::with1(code, memory(base, offset))?)
    }
}

/// Host registers that stand for guest general registers: R8… for explicit operands, itself for implicit ones.
#[derive(Default)]
struct GprMap {
    /// (host, guest number, byte offset within the guest register, written)
    pairs: Vec<(Register, usize, usize, bool)>,
    taken: u32,
}

impl GprMap {
    /// A free host register for guest register `number`, in the size of `register`.
    fn stand_in(&mut self, register: Register) -> Register {
        let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
        let number = register.full_register().number();
        let known = self.pairs.iter().find(|p| p.1 == number && p.2 == usize::from(high)).map(|p| p.0);
        let host = known.unwrap_or_else(|| {
            let host = Register::R8 + self.taken;
            self.taken += 1;
            self.pairs.push((host, number, usize::from(high), false));
            host
        });
        let k = host as u32 - Register::R8 as u32;
        match register.size() {
            1 => Register::R8L + k,
            2 => Register::R8W + k,
            4 => Register::R8D + k,
            _ => host,
        }
    }

    /// `register` is used by the rewritten instruction.
    fn used(&mut self, register: Register, written: bool) {
        let host = register.full_register();
        if let Some(pair) = self.pairs.iter_mut().find(|p| p.0 == host) {
            pair.3 |= written;
        } else if host != OPERAND {
            self.pairs.push((host, host.number(), 0, written));
        }
    }
}

fn is_written(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// What an instruction needs and does; `None` when the unit cannot run it as a stub.
#[must_use]
pub fn traits(i: &Instruction) -> Option<Traits> {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(i);
    let features = i.code().cpuid_features();
    let vex = i.code().encoding() == iced_x86::EncodingKind::VEX;
    let x87 = features.contains(&CpuidFeature::FPU) || features.contains(&CpuidFeature::FPU387);
    let (mut mm, mut xmm, mut mm_register) = (false, false, false);
    for used in info.used_registers() {
        mm |= used.register().is_mm();
        xmm |= used.register().is_vector_register();
    }
    let mut access = Access::None;
    let mut size = 0;
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Memory => {
                access = if is_written(info.op_access(n)) { Access::Write } else { Access::Read };
                size = i.memory_size().size();
            }
            OpKind::Register => mm_register |= i.op_register(n).is_mm(),
            _ => {}
        }
    }
    let size = u8::try_from(size).ok().filter(|&s| s <= 64 && (s > 0 || access == Access::None))?;
    // Conversions between MMX and XMM registers: also where one of the two operands is in memory.
    let both = matches!(
        i.mnemonic(),
        Mnemonic::Cvtpi2ps
            | Mnemonic::Cvtpi2pd
            | Mnemonic::Cvtps2pi
            | Mnemonic::Cvttps2pi
            | Mnemonic::Cvtpd2pi
            | Mnemonic::Cvttpd2pi
            | Mnemonic::Movq2dq
            | Mnemonic::Movdq2q
    );
    let gate = match (vex, x87, mm, xmm) {
        (true, ..) => Gate::Avx,
        (_, true, ..) => Gate::X87,
        _ if both => Gate::MmxSse,
        (_, _, true, _) => Gate::Mmx,
        (_, _, _, true) => Gate::Sse,
        _ => Gate::None,
    };
    let align = match gate {
        Gate::Avx | Gate::Sse | Gate::MmxSse => alignment(i, usize::from(size), vex),
        _ => 0,
    };
    Some(Traits {
        gate,
        access,
        size,
        align,
        simd_fp: gate != Gate::X87 && is_simd_fp(i.mnemonic()),
        flags_read: i.rflags_read() & RFLAGS_STATUS != RflagsBits::NONE,
        flags_written: i.rflags_modified() & RFLAGS_STATUS != RflagsBits::NONE,
        // CVTPI2PD from memory leaves the x87 state alone (SDM vol. 2); CVTPI2PS does not.
        to_mmx: mm_register || i.mnemonic() == Mnemonic::Cvtpi2ps,
    })
}

const RFLAGS_STATUS: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// `i` with its memory operand at [`OPERAND`] and without prefixes: what instructions that can share
/// a stub have in common.
#[must_use]
pub fn canonical(i: &Instruction) -> Instruction {
    let mut host = *i;
    host.set_has_lock_prefix(false);
    host.set_has_rep_prefix(false);
    host.set_has_repne_prefix(false);
    host.set_segment_prefix(Register::None);
    if host.op_kinds().any(|kind| kind == OpKind::Memory) {
        host.set_memory_base(OPERAND);
        host.set_memory_index(Register::None);
        host.set_memory_index_scale(1);
        host.set_memory_displacement64(0);
        host.set_memory_displ_size(0);
    }
    host
}

/// The stub's code for `i`, to lie at `address`.
///
/// # Errors
/// When iced cannot encode the rewritten instruction (never for the codes that the unit selects).
pub fn assemble(i: &Instruction, t: &Traits, address: u64) -> Result<Vec<u8>, IcedError> {
    // The same instruction with stand-ins for the guest's general registers.
    let mut gprs = GprMap::default();
    let mut host = canonical(i);
    for n in 0..host.op_count() {
        if host.op_kind(n) == OpKind::Register && host.op_register(n).is_gpr() {
            let register = gprs.stand_in(host.op_register(n));
            host.set_op_register(n, register);
        }
    }

    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&host);
    let wide = t.gate == Gate::Avx && info.used_registers().iter().any(|u| u.register().is_ymm());
    let (mut vectors, mut written) = ([false; 16], [false; 16]);
    let (mut mm, mut mm_written) = ([false; 8], [false; 8]);
    for used in info.used_registers() {
        let register = used.register();
        let writes = is_written(used.access());
        if register.is_vector_register() {
            // A legacy instruction leaves part of what it writes: its destination is loaded always.
            let n = register.number() & 15;
            vectors[n] |= t.gate != Gate::Avx || used.access() != OpAccess::Write;
            written[n] |= writes;
        } else if register.is_mm() {
            let n = register.number() & 7;
            mm[n] = true;
            mm_written[n] |= writes;
        } else if register.is_gpr() && t.gate != Gate::X87 {
            gprs.used(register, writes);
        }
    }

    let mut e = Emitter { encoder: Encoder::new(64), at: address };
    let st = |n: usize| offset_of!(State, st) + 16 * n;
    let ymm = |n: usize| offset_of!(State, ymm) + 32 * n;
    let xmm_register = |n: usize| Register::XMM0 + n as u32;
    let ymm_register = |n: usize| Register::YMM0 + n as u32;
    if t.access != Access::None {
        e.emit(&Instruction::with2(Code::Mov_r64_rm64, OPERAND, Register::RDX)?)?;
    }
    if t.gate == Gate::X87 {
        e.on(Code::Fxrstor64_m512byte, SCRATCH, offset_of!(Scratch, fx_in))?;
    }
    for n in (0..16).filter(|&n| vectors[n]) {
        match (t.gate, wide) {
            (Gate::Avx, true) => e.load(Code::VEX_Vmovups_ymm_ymmm256, ymm_register(n), STATE, ymm(n))?,
            (Gate::Avx, false) => e.load(Code::VEX_Vmovups_xmm_xmmm128, xmm_register(n), STATE, ymm(n))?,
            _ => e.load(Code::Movups_xmm_xmmm128, xmm_register(n), STATE, ymm(n))?,
        }
    }
    for n in (0..8).filter(|&n| mm[n]) {
        e.load(Code::Movq_mm_mmm64, Register::MM0 + n as u32, STATE, st(n))?;
    }
    for &(register, number, byte, _) in &gprs.pairs {
        let offset = offset_of!(State, gpr) + 8 * number + byte;
        if byte == 0 {
            e.load(Code::Mov_r64_rm64, register, STATE, offset)?;
        } else {
            e.load(Code::Movzx_r64_rm8, register, STATE, offset)?;
        }
    }
    if t.simd_fp {
        e.on(Code::Ldmxcsr_m32, SCRATCH, offset_of!(Scratch, mxcsr_in))?;
    }
    if t.flags_read {
        e.on(Code::Push_rm64, SCRATCH, offset_of!(Scratch, flags_in))?;
        e.emit(&Instruction::with(Code::Popfq))?;
    }

    e.emit(&host)?;

    if t.flags_written {
        // Through the red zone's place: the stack is as before afterwards.
        e.emit(&Instruction::with(Code::Pushfq))?;
        e.on(Code::Pop_rm64, SCRATCH, offset_of!(Scratch, flags_out))?;
    }
    if t.simd_fp {
        e.on(Code::Stmxcsr_m32, SCRATCH, offset_of!(Scratch, mxcsr_out))?;
        e.on(Code::Ldmxcsr_m32, SCRATCH, offset_of!(Scratch, mxcsr_host))?;
    }
    for n in (0..16).filter(|&n| written[n]) {
        if t.gate == Gate::Avx {
            e.store(Code::VEX_Vmovups_ymmm256_ymm, ymm_register(n), STATE, ymm(n))?;
        } else {
            e.store(Code::Movups_xmmm128_xmm, xmm_register(n), STATE, ymm(n))?;
        }
    }
    for n in (0..8).filter(|&n| mm_written[n]) {
        // An MMX register that is written gets ones in its sign and exponent (SDM vol. 1, 9.2.1).
        e.store(Code::Movq_mmm64_mm, Register::MM0 + n as u32, STATE, st(n))?;
        e.emit(&Instruction::with2(Code::Mov_rm32_imm32, memory(STATE, st(n) + 8), 0xffff_u32)?)?;
    }
    for &(register, number, byte, _) in gprs.pairs.iter().filter(|p| p.3) {
        e.store(Code::Mov_rm64_r64, register, STATE, offset_of!(State, gpr) + 8 * number + byte)?;
    }
    match t.gate {
        Gate::X87 => {
            e.on(Code::Fxsave64_m512byte, SCRATCH, offset_of!(Scratch, fx_out))?;
            e.emit(&Instruction::with(Code::Fninit))?;
        }
        Gate::Mmx | Gate::MmxSse => e.emit(&Instruction::with(Code::Emms))?,
        Gate::Avx if wide || written.contains(&true) => e.emit(&Instruction::with(Code::VEX_Vzeroupper))?,
        _ => {}
    }
    e.emit(&Instruction::with2(Code::Xor_r32_rm32, Register::EAX, Register::EAX)?)?;
    e.emit(&Instruction::with(Code::Retnq))?;
    Ok(e.encoder.take_buffer())
}

/// The code at which a stub continues after SIGFPE: returns MXCSR with bit 31 set for it.
#[must_use]
pub fn landing(avx: bool) -> Vec<u8> {
    let mut code = vec![
        0x0f, 0xae, 0x5c, 0x24, 0xf8, // stmxcsr [rsp-8]
        0x8b, 0x44, 0x24, 0xf8, // mov eax, [rsp-8]
        0x0d, 0x00, 0x00, 0x00, 0x80, // or eax, 80000000H
        0xc7, 0x44, 0x24, 0xf8, 0x80, 0x1f, 0x00, 0x00, // mov dword [rsp-8], HOST_MXCSR
        0x0f, 0xae, 0x54, 0x24, 0xf8, // ldmxcsr [rsp-8]
        0x0f, 0x77, // emms
    ];
    if avx {
        code.extend([0xc5, 0xf8, 0x77]); // vzeroupper
    }
    code.push(0xc3); // ret
    code
}
