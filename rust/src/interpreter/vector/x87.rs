//! x87 instructions: arithmetic in stubs between FXRSTOR and FXSAVE, control instructions written out.
//!
//! An unmasked exception only sets FSW.ES here, as in the unit itself; the next waiting instruction raises
//! #MF. CR0.NE is 1 in VMX operation, so there is no FERR#.

use iced_x86::{Code, CpuidFeature, Encoder};

use super::fpu;
use super::gate::FSW_ES;
use super::stub::{Access, Gate};
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::state::{cr, flag};
use crate::stop::{Exec, Stop, vector};

/// The executor of an x87 instruction.
pub(super) fn select(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Wait => wait,
        Code::Fldcw_m2byte => fldcw,
        Code::Fnstcw_m2byte => fnstcw::<false>,
        Code::Fstcw_m2byte => fnstcw::<true>,
        Code::Fnstsw_m2byte => fnstsw::<false>,
        Code::Fstsw_m2byte => fnstsw::<true>,
        Code::Fnstsw_AX => fnstsw_ax::<false>,
        Code::Fstsw_AX => fnstsw_ax::<true>,
        Code::Fnclex => fnclex::<false>,
        Code::Fclex => fnclex::<true>,
        Code::Fninit => fninit::<false>,
        Code::Finit => fninit::<true>,
        Code::Fnstenv_m14byte => fnstenv::<false, false>,
        Code::Fnstenv_m28byte => fnstenv::<false, true>,
        Code::Fstenv_m14byte => fnstenv::<true, false>,
        Code::Fstenv_m28byte => fnstenv::<true, true>,
        Code::Fldenv_m14byte => fldenv::<false>,
        Code::Fldenv_m28byte => fldenv::<true>,
        Code::Fnsave_m94byte => fnsave::<false, false>,
        Code::Fnsave_m108byte => fnsave::<false, true>,
        Code::Fsave_m94byte => fnsave::<true, false>,
        Code::Fsave_m108byte => fnsave::<true, true>,
        Code::Frstor_m94byte => frstor::<false>,
        Code::Frstor_m108byte => frstor::<true>,
        // 8087 and 80287 instructions that later processors ignore (SDM vol. 3, 23.18.6).
        Code::Fneni | Code::Fndisi | Code::Fnsetpm => |cpu, _| cpu.x87_no_wait(),
        Code::Feni | Code::Fdisi | Code::Fsetpm => |cpu, _| cpu.vector_gate(Gate::X87),
        Code::Emms => emms,
        _ => {
            let features = code.cpuid_features();
            if !features.contains(&CpuidFeature::FPU) && !features.contains(&CpuidFeature::FPU387) {
                return None;
            }
            arithmetic
        }
    })
}

/// FWAIT: #NM by CR0.MP and CR0.TS, then #MF.
fn wait(cpu: &mut Cpu, _: &Insn) -> Exec {
    if cpu.state.cr0 & (cr::CR0_MP | cr::CR0_TS) == cr::CR0_MP | cr::CR0_TS {
        return Err(cpu.raise(vector::NM, None));
    }
    if cpu.state.fsw & FSW_ES != 0 {
        return Err(cpu.raise(vector::MF, None));
    }
    Ok(())
}

fn emms(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.vector_gate(Gate::Mmx)?;
    // All empty, and TOP is 0 after any MMX instruction (SDM vol. 3, table 12-1).
    let status = cpu.state.fsw & !(7 << 11);
    fpu::set_status(&mut cpu.state, status);
    cpu.state.ftw = 0xffff;
    Ok(())
}

/// Computation, loads, stores, compares, stack control: all "non-control" instructions (SDM vol. 1, 8.1.8).
fn arithmetic(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let Some(stub) = cpu.vector.stub(insn) else { return Err(Stop::Missing) };
    let t = &stub.traits;
    cpu.vector_gate(Gate::X87)?;
    let linear = match t.access {
        Access::None => 0,
        access => cpu.mem(insn, u32::from(t.size), access == Access::Write)?,
    };
    if t.access == Access::Read {
        cpu.load_scratch(linear, t.size)?;
    }

    let s = &mut *cpu.state;
    let scratch = &mut *cpu.vector.scratch;
    scratch.fx_in[0] = s.fcw & 0xffff | (s.fsw & 0xffff) << 16 | u64::from(fpu::abridged(s.ftw)) << 32;
    scratch.fx_in[3] = u64::from(super::stub::HOST_MXCSR);
    for (n, st) in s.st.iter().enumerate() {
        scratch.fx_in[4 + 2 * n] = st[0];
        scratch.fx_in[5 + 2 * n] = st[1];
    }
    scratch.flags_in = s.rflags & flag::STATUS | 2;
    // SAFETY: the stub was assembled for these two structures. No exception is pending, so it cannot trap.
    unsafe { (stub.entry)(&raw mut *s, &raw mut *scratch, (&raw mut scratch.mem).cast()) };

    let fsw = scratch.fx_out[0] >> 16 & 0xffff;
    // A store that meets an unmasked exception other than precision stores nothing (SDM vol. 1, 8.5).
    let stored = fsw & FSW_ES == 0 || fsw & !s.fcw & 0x1f == 0;
    if t.access == Access::Write {
        if stored { cpu.store_scratch(linear, t.size)? } else { cpu.probe_write(linear, u64::from(t.size))? }
    }

    let s = &mut *cpu.state;
    let scratch = &*cpu.vector.scratch;
    s.fsw = fsw;
    for (n, st) in s.st.iter_mut().enumerate() {
        *st = [scratch.fx_out[4 + 2 * n], scratch.fx_out[5 + 2 * n] & 0xffff];
    }
    s.ftw = fpu::full_tags(s, (scratch.fx_out[0] >> 32) as u8);
    if t.flags_written {
        s.rflags = s.rflags & !flag::STATUS | scratch.flags_out & flag::STATUS;
    }
    s.fip = s.rip;
    if t.access != Access::None {
        let offset = cpu.ea(insn);
        cpu.state.fdp = offset;
    }
    if cpu.state.fsw & FSW_ES != 0 {
        // The opcode register follows only unmasked exceptions (SDM vol. 1, 8.1.9.1).
        cpu.state.fop = opcode(insn);
    }
    Ok(())
}

/// FOP: the low three bits of the first opcode byte, then the ModRM byte.
fn opcode(insn: &Insn) -> u64 {
    let mut encoder = Encoder::new(insn.iced.code_size_bits());
    if encoder.encode(&insn.iced, insn.iced.ip()).is_err() {
        return 0;
    }
    let bytes = encoder.take_buffer();
    let start = bytes.iter().position(|b| (0xd8..=0xdf).contains(b));
    let Some(&[first, modrm]) = start.and_then(|n| bytes.get(n..n + 2)) else { return 0 };
    u64::from(first & 7) << 8 | u64::from(modrm)
}

/// Code size of a decoded instruction in bits, for the encoder.
trait CodeBits {
    fn code_size_bits(&self) -> u32;
}

impl CodeBits for iced_x86::Instruction {
    fn code_size_bits(&self) -> u32 {
        match self.code_size() {
            iced_x86::CodeSize::Code16 => 16,
            iced_x86::CodeSize::Code32 => 32,
            _ => 64,
        }
    }
}

fn waiting(cpu: &mut Cpu, wait: bool) -> Exec {
    if wait { cpu.vector_gate(Gate::X87) } else { cpu.x87_no_wait() }
}

fn fldcw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.vector_gate(Gate::X87)?;
    let linear = cpu.mem(insn, 2, false)?;
    let value: u16 = cpu.read(linear)?;
    cpu.state.fcw = fpu::control(value);
    fpu::update_es(&mut cpu.state);
    Ok(())
}

fn fnstcw<const WAIT: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    waiting(cpu, WAIT)?;
    let linear = cpu.mem(insn, 2, true)?;
    cpu.write(linear, cpu.state.fcw as u16)
}

fn fnstsw<const WAIT: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    waiting(cpu, WAIT)?;
    let linear = cpu.mem(insn, 2, true)?;
    cpu.write(linear, cpu.state.fsw as u16)
}

fn fnstsw_ax<const WAIT: bool>(cpu: &mut Cpu, _: &Insn) -> Exec {
    waiting(cpu, WAIT)?;
    cpu.state.gpr[0] = cpu.state.gpr[0] & !0xffff | cpu.state.fsw & 0xffff;
    Ok(())
}

fn fnclex<const WAIT: bool>(cpu: &mut Cpu, _: &Insn) -> Exec {
    waiting(cpu, WAIT)?;
    cpu.state.fsw &= 0x7f00;
    Ok(())
}

fn fninit<const WAIT: bool>(cpu: &mut Cpu, _: &Insn) -> Exec {
    waiting(cpu, WAIT)?;
    fpu::init(&mut cpu.state);
    Ok(())
}

/// The environment in memory (SDM vol. 1, figures 8-9 to 8-12): protected and real mode, 32- and 16-bit.
fn environment(cpu: &Cpu, wide: bool) -> ([u8; 28], usize) {
    let s = &*cpu.state;
    let tags = fpu::full_tags(s, fpu::abridged(s.ftw));
    let (ip, dp, fop) = (s.fip, s.fdp, s.fop & 0x7ff);
    let mut out = [0; 28];
    if wide {
        let reserved = 0xffff_0000;
        let (a, b, c, d) = if cpu.mode.protected {
            (ip as u32, (fop as u32) << 16 | s.fcs as u32 & 0xffff, dp as u32, reserved | s.fds as u32 & 0xffff)
        } else {
            let high = |p: u64| (p as u32 >> 16) << 12 & 0x0fff_f000;
            (reserved | ip as u32 & 0xffff, high(ip) | fop as u32, reserved | dp as u32 & 0xffff, high(dp))
        };
        let words = [
            reserved | s.fcw as u32 & 0xffff,
            reserved | s.fsw as u32 & 0xffff,
            reserved | tags as u32 & 0xffff,
            a,
            b,
            c,
            d,
        ];
        for (chunk, word) in out.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        return (out, 28);
    }
    let (b, d) = if cpu.mode.protected {
        (s.fcs as u16, s.fds as u16)
    } else {
        ((ip >> 4) as u16 & 0xf000 | fop as u16, (dp >> 4) as u16 & 0xf000)
    };
    let words = [s.fcw as u16, s.fsw as u16, tags as u16, ip as u16, b, dp as u16, d];
    for (chunk, word) in out.chunks_exact_mut(2).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    (out, 14)
}

fn load_environment(cpu: &mut Cpu, bytes: &[u8], wide: bool) {
    let word = |n: usize| -> u64 {
        let at = if wide { 4 * n } else { 2 * n };
        let size = if wide { 4 } else { 2 };
        (0..size).fold(0, |v, k| v | u64::from(bytes.get(at + k).copied().unwrap_or(0)) << (8 * k))
    };
    let protected = cpu.mode.protected;
    let s = &mut *cpu.state;
    s.fcw = fpu::control(word(0) as u16);
    fpu::set_status(s, word(1) & 0xffff);
    s.ftw = word(2) & 0xffff;
    (s.fcs, s.fds) = (0, 0);
    match (wide, protected) {
        (true, true) => {
            (s.fip, s.fdp) = (word(3), word(5));
            s.fop = word(4) >> 16 & 0x7ff;
        }
        (true, false) => {
            s.fip = word(3) & 0xffff | (word(4) >> 12 & 0xffff) << 16;
            s.fdp = word(5) & 0xffff | (word(6) >> 12 & 0xffff) << 16;
            s.fop = word(4) & 0x7ff;
        }
        (false, true) => {
            (s.fip, s.fdp, s.fop) = (word(3), word(5), 0);
        }
        (false, false) => {
            s.fip = word(3) | (word(4) & 0xf000) << 4;
            s.fdp = word(5) | (word(6) & 0xf000) << 4;
            s.fop = word(4) & 0x7ff;
        }
    }
    fpu::update_es(s);
}

fn fnstenv<const WAIT: bool, const WIDE: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    waiting(cpu, WAIT)?;
    let (image, size) = environment(cpu, WIDE);
    let linear = cpu.mem(insn, size as u32, true)?;
    cpu.write_bytes(linear, &image[..size])?;
    // Then all exceptions are masked, so none is pending any more.
    cpu.state.fcw |= 0x3f;
    fpu::update_es(&mut cpu.state);
    Ok(())
}

fn fldenv<const WIDE: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.vector_gate(Gate::X87)?;
    let size = if WIDE { 28 } else { 14 };
    let linear = cpu.mem(insn, size as u32, false)?;
    let mut image = [0; 28];
    cpu.read_bytes(linear, &mut image[..size])?;
    load_environment(cpu, &image, WIDE);
    normalize_tags(cpu);
    Ok(())
}

/// The tag word as the registers' contents give it: only "empty" is taken from a loaded image.
fn normalize_tags(cpu: &mut Cpu) {
    let s = &mut *cpu.state;
    s.ftw = fpu::full_tags(s, fpu::abridged(s.ftw));
}

fn fnsave<const WAIT: bool, const WIDE: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    waiting(cpu, WAIT)?;
    let (environment, start) = environment(cpu, WIDE);
    let mut image = [0; 108];
    image[..start].copy_from_slice(&environment[..start]);
    for (chunk, st) in image[start..].chunks_exact_mut(10).zip(cpu.state.st) {
        chunk[..8].copy_from_slice(&st[0].to_le_bytes());
        chunk[8..].copy_from_slice(&(st[1] as u16).to_le_bytes());
    }
    let size = start + 80;
    let linear = cpu.mem(insn, size as u32, true)?;
    cpu.write_bytes(linear, &image[..size])?;
    fpu::init(&mut cpu.state);
    Ok(())
}

fn frstor<const WIDE: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.vector_gate(Gate::X87)?;
    let start = if WIDE { 28 } else { 14 };
    let linear = cpu.mem(insn, start as u32 + 80, false)?;
    let mut image = [0; 108];
    cpu.read_bytes(linear, &mut image[..start + 80])?;
    load_environment(cpu, &image[..start], WIDE);
    for (chunk, st) in image[start..].chunks_exact(10).zip(cpu.state.st.iter_mut()) {
        let low = u64::from_le_bytes(std::array::from_fn(|k| chunk[k]));
        *st = [low, u64::from(u16::from_le_bytes([chunk[8], chunk[9]]))];
    }
    normalize_tags(cpu);
    Ok(())
}
