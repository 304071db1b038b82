//! Execution of SSE, AVX and MMX instructions by their stubs.
//!
//! Memory is read before the stub runs and written after it, so a fault leaves nothing half done. What
//! accesses memory element by element, or the control registers of the units, is elsewhere.

use iced_x86::{Code, CpuidFeature, Instruction};

use super::stub::{Access, Gate, Traits};
use super::{Stub, foreign, trap};
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::state::{cr, flag};
use crate::stop::{Exec, Stop, vector};

/// Exception masks of MXCSR.
const MXCSR_MASKS: u64 = 0x1f80;

/// The stub executor for an SSE, AVX or MMX instruction.
pub(super) fn select(i: &Instruction) -> Option<Handler> {
    let code = i.code();
    if foreign(code) {
        return None;
    }
    match code {
        // Ordering and hints: every access of a guest is done when its instruction is.
        Code::Sfence
        | Code::Sfence_F9
        | Code::Sfence_FA
        | Code::Sfence_FB
        | Code::Sfence_FC
        | Code::Sfence_FD
        | Code::Sfence_FE
        | Code::Sfence_FF
        | Code::Lfence
        | Code::Lfence_E9
        | Code::Lfence_EA
        | Code::Lfence_EB
        | Code::Lfence_EC
        | Code::Lfence_ED
        | Code::Lfence_EE
        | Code::Lfence_EF
        | Code::Mfence
        | Code::Mfence_F1
        | Code::Mfence_F2
        | Code::Mfence_F3
        | Code::Mfence_F4
        | Code::Mfence_F5
        | Code::Mfence_F6
        | Code::Mfence_F7 => return Some(fence),
        Code::Prefetchnta_m8 | Code::Prefetcht0_m8 | Code::Prefetcht1_m8 | Code::Prefetcht2_m8 => {
            return Some(|_, _| Ok(()));
        }
        Code::Ldmxcsr_m32 => return Some(ldmxcsr::<false>),
        Code::VEX_Vldmxcsr_m32 => return Some(ldmxcsr::<true>),
        Code::Stmxcsr_m32 => return Some(stmxcsr::<false>),
        Code::VEX_Vstmxcsr_m32 => return Some(stmxcsr::<true>),
        Code::VEX_Vzeroupper => return Some(vzero::<false>),
        Code::VEX_Vzeroall => return Some(vzero::<true>),
        _ => {}
    }
    let ours = code.cpuid_features().iter().any(|feature| {
        !matches!(
            feature,
            CpuidFeature::INTEL8086
                | CpuidFeature::INTEL386
                | CpuidFeature::INTEL486
                | CpuidFeature::X64
                | CpuidFeature::CMOV
                | CpuidFeature::CLFSH
        )
    });
    if !ours {
        return None;
    }
    let t = super::stub::traits(i)?;
    Some(match t.gate {
        Gate::X87 => return None,
        _ if t.to_mmx => run_mmx,
        _ => run,
    })
}

fn fence(_: &mut Cpu, _: &Insn) -> Exec {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

impl Cpu {
    /// Linear address of the memory operand, aligned as the instruction demands.
    #[inline]
    fn vector_operand(&mut self, insn: &Insn, t: &Traits) -> Exec<u64> {
        let linear = self.mem(insn, u32::from(t.size), t.access == Access::Write)?;
        if linear & u64::from(t.align) != 0 {
            return Err(self.gp0());
        }
        Ok(linear)
    }

    /// Reads 32 bytes as four slots.
    #[inline]
    pub(super) fn read_256(&mut self, linear: u64) -> Exec<[u64; 4]> {
        let low: u128 = self.read(linear)?;
        let high: u128 = self.read(linear.wrapping_add(16))?;
        Ok([low as u64, (low >> 64) as u64, high as u64, (high >> 64) as u64])
    }

    /// Writes 32 bytes, all or none.
    #[inline]
    pub(super) fn write_256(&mut self, linear: u64, v: [u64; 4]) -> Exec {
        if linear & 0xfff > 0xfe0 {
            let mut bytes = [0; 32];
            for (chunk, slot) in bytes.chunks_exact_mut(8).zip(v) {
                chunk.copy_from_slice(&slot.to_le_bytes());
            }
            return self.write_bytes(linear, &bytes);
        }
        // Within a page: if the first half can be written, so can the second.
        self.write(linear, u128::from(v[0]) | u128::from(v[1]) << 64)?;
        self.write(linear.wrapping_add(16), u128::from(v[2]) | u128::from(v[3]) << 64)
    }

    /// Reads the memory operand into the scratch buffer.
    #[inline]
    pub(super) fn load_scratch(&mut self, linear: u64, size: u8) -> Exec {
        match size {
            4 => {
                let v: u32 = self.read(linear)?;
                self.vector.scratch.mem[..4].copy_from_slice(&v.to_le_bytes());
            }
            8 => {
                let v: u64 = self.read(linear)?;
                self.vector.scratch.mem[..8].copy_from_slice(&v.to_le_bytes());
            }
            16 => {
                let v: u128 = self.read(linear)?;
                self.vector.scratch.mem[..16].copy_from_slice(&v.to_le_bytes());
            }
            32 => {
                let v = self.read_256(linear)?;
                for (chunk, slot) in self.vector.scratch.mem.chunks_exact_mut(8).zip(v) {
                    chunk.copy_from_slice(&slot.to_le_bytes());
                }
            }
            _ => {
                let mut buffer = [0; 64];
                let bytes = &mut buffer[..usize::from(size & 63)];
                self.read_bytes(linear, bytes)?;
                self.vector.scratch.mem[..bytes.len()].copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    /// Writes the memory operand from the scratch buffer.
    #[inline]
    pub(super) fn store_scratch(&mut self, linear: u64, size: u8) -> Exec {
        let mem = self.vector.scratch.mem;
        let part = |n: usize| u64::from_le_bytes(std::array::from_fn(|k| mem[8 * n + k]));
        match size {
            4 => self.write(linear, part(0) as u32),
            8 => self.write(linear, part(0)),
            16 => self.write(linear, u128::from(part(0)) | u128::from(part(1)) << 64),
            32 => self.write_256(linear, std::array::from_fn(part)),
            _ => self.write_bytes(linear, &mem[..usize::from(size & 63)]),
        }
    }

    /// Where a stub finds the operand at `linear`: in guest memory itself where one page holds it and the TLB
    /// has that, else a copy in the scratch buffer.
    #[inline]
    fn source(&mut self, linear: u64, size: u8) -> Exec<*mut u8> {
        if let Some(pointer) = self.hit_read(linear, u64::from(size)) {
            return Ok(pointer.cast_mut());
        }
        self.load_scratch(linear, size)?;
        Ok(self.scratch_operand())
    }

    /// The scratch buffer as a stub's operand.
    #[inline]
    fn scratch_operand(&mut self) -> *mut u8 {
        (&raw mut self.vector.scratch.mem).cast()
    }

    /// Runs a stub on the operand at host address `operand`. #XM leaves the flags in MXCSR and nothing else.
    #[inline]
    fn run_stub(&mut self, stub: &Stub, operand: *mut u8) -> Exec {
        let state = &raw mut *self.state;
        let scratch = &raw mut *self.vector.scratch;
        if stub.traits.simd_fp {
            self.vector.scratch.mxcsr_in = self.state.mxcsr as u32;
            if self.state.mxcsr & MXCSR_MASKS != MXCSR_MASKS {
                return self.run_unmasked(stub, operand);
            }
        }
        // SAFETY: the stub was assembled for these structures and an operand of its size: the scratch buffer,
        // or guest memory that the TLB vouches for, written only through `hit_write`.
        unsafe { (stub.entry)(state, scratch, operand) };
        Ok(())
    }

    #[cold]
    fn run_unmasked(&mut self, stub: &Stub, operand: *mut u8) -> Exec {
        let state = &raw mut *self.state;
        let scratch = &raw mut *self.vector.scratch;
        // SAFETY: as in `run_stub`; after SIGFPE the landing returns in the stub's place.
        let result = trap::catching(self.vector.landing, || unsafe { (stub.entry)(state, scratch, operand) });
        if result == 0 {
            return Ok(());
        }
        self.state.mxcsr = u64::from(result & 0xffff);
        Err(self.simd_exception())
    }

    /// Runs a stub whose operand at `linear` is written.
    #[inline]
    fn run_storing(&mut self, stub: &Stub, linear: u64) -> Exec {
        let size = stub.traits.size;
        if let Some(pointer) = self.hit_write(linear, u64::from(size)) {
            return self.run_stub(stub, pointer);
        }
        if stub.traits.simd_fp {
            // VCVTPS2PH: a page fault goes before #XM.
            self.probe_write(linear, u64::from(size))?;
        }
        let operand = self.scratch_operand();
        self.run_stub(stub, operand)?;
        self.store_scratch(linear, size)
    }

    /// #XM, or #UD where the operating system has not enabled it (SDM vol. 3, 2.5, CR4.OSXMMEXCPT).
    #[cold]
    fn simd_exception(&mut self) -> Stop {
        if self.state.cr4 & cr::CR4_OSXMMEXCPT != 0 { self.raise(vector::XM, None) } else { self.ud() }
    }

    /// Takes over the flags that a stub left.
    #[inline]
    fn commit(&mut self, t: &Traits) {
        if t.simd_fp {
            self.state.mxcsr = u64::from(self.vector.scratch.mxcsr_out & 0xffff);
        }
        if t.flags_written {
            let new = self.vector.scratch.flags_out & flag::STATUS;
            self.state.rflags = self.state.rflags & !flag::STATUS | new;
        }
    }
}

/// An instruction without MMX registers.
fn run(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let Some(stub) = cpu.vector.stub(insn) else { return Err(Stop::Missing) };
    let t = &stub.traits;
    cpu.vector_gate(t.gate)?;
    match t.access {
        Access::None => cpu.run_stub(&stub, std::ptr::null_mut())?,
        Access::Read => {
            let linear = cpu.vector_operand(insn, t)?;
            let operand = cpu.source(linear, t.size)?;
            cpu.run_stub(&stub, operand)?;
        }
        Access::Write => {
            let linear = cpu.vector_operand(insn, t)?;
            cpu.run_storing(&stub, linear)?;
        }
    }
    cpu.commit(t);
    Ok(())
}

/// An instruction with MMX registers: the x87 state becomes MMX state (SDM vol. 1, 9.5.1).
fn run_mmx(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let Some(stub) = cpu.vector.stub(insn) else { return Err(Stop::Missing) };
    let t = &stub.traits;
    cpu.vector_gate(t.gate)?;
    let linear = match t.access {
        Access::None => 0,
        _ => cpu.vector_operand(insn, t)?,
    };
    let operand = if t.access == Access::Read { cpu.source(linear, t.size)? } else { std::ptr::null_mut() };
    cpu.with_mmx(|cpu| {
        if t.access == Access::Write { cpu.run_storing(&stub, linear) } else { cpu.run_stub(&stub, operand) }
    })?;
    cpu.commit(t);
    Ok(())
}

fn sse_gate<const VEX: bool>() -> Gate {
    if VEX { Gate::Avx } else { Gate::Sse }
}

fn ldmxcsr<const VEX: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.vector_gate(sse_gate::<VEX>())?;
    let linear = cpu.mem(insn, 4, false)?;
    let value: u32 = cpu.read(linear)?;
    if value & !0xffff != 0 {
        return Err(cpu.gp0());
    }
    cpu.state.mxcsr = u64::from(value);
    Ok(())
}

fn stmxcsr<const VEX: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.vector_gate(sse_gate::<VEX>())?;
    let linear = cpu.mem(insn, 4, true)?;
    cpu.write(linear, cpu.state.mxcsr as u32)
}

fn vzero<const ALL: bool>(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.vector_gate(Gate::Avx)?;
    let registers = cpu.vector_registers();
    for ymm in &mut cpu.state.ymm[..registers] {
        if ALL {
            *ymm = [0; 4];
        } else {
            (ymm[2], ymm[3]) = (0, 0);
        }
    }
    Ok(())
}
