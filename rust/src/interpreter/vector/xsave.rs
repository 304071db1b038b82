//! FXSAVE, FXRSTOR and the XSAVE family, written out after the SDM (vol. 1, chapters 10.5 and 13).
//!
//! State components x87, SSE and AVX; no supervisor component, so XRSTORS and XSAVES differ from their
//! user forms in privilege only. XSAVEOPT and XSAVES use the init optimization, not the modified one.

use iced_x86::Code;

use super::fpu;
use crate::cpu::{Bits, Cpu};
use crate::decode::{Handler, Insn};
use crate::state::{State, cr};
use crate::stop::{Exec, vector};
use crate::vmx::bits::secondary;

/// The MXCSR bits that exist: what MXCSR_MASK reports.
const MXCSR_MASK: u32 = 0xffff;
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// XCOMP_BV: the area has the compacted format.
const COMPACTED: u64 = 1 << 63;
/// Size of the legacy region and the XSAVE header, where the extended region starts.
const EXTENDED: usize = 576;
/// Size of all, with the AVX component.
const SIZE: usize = EXTENDED + 256;

/// The executor of FXSAVE, FXRSTOR or one of the XSAVE family.
pub(super) fn select(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fxsave_m512byte => fxsave::<false>,
        Code::Fxsave64_m512byte => fxsave::<true>,
        Code::Fxrstor_m512byte => fxrstor::<false>,
        Code::Fxrstor64_m512byte => fxrstor::<true>,
        Code::Xsave_mem => xsave::<false, false>,
        Code::Xsave64_mem => xsave::<true, false>,
        Code::Xsaveopt_mem => xsave::<false, true>,
        Code::Xsaveopt64_mem => xsave::<true, true>,
        Code::Xsavec_mem => xsavec::<false, false>,
        Code::Xsavec64_mem => xsavec::<true, false>,
        Code::Xsaves_mem => xsavec::<false, true>,
        Code::Xsaves64_mem => xsavec::<true, true>,
        Code::Xrstor_mem => xrstor::<false, false>,
        Code::Xrstor64_mem => xrstor::<true, false>,
        Code::Xrstors_mem => xrstor::<false, true>,
        Code::Xrstors64_mem => xrstor::<true, true>,
        _ => return None,
    })
}

/// XINUSE: which components are not in their initial configuration. XGETBV with ECX = 1 returns it AND XCR0.
#[must_use]
pub fn xinuse(s: &State) -> u64 {
    let mut used = [0; 4];
    for register in &s.ymm {
        used.iter_mut().zip(register).for_each(|(used, word)| *used |= word);
    }
    let x87 = if fpu::is_init(s) { 0 } else { X87 };
    let sse = if used[0] | used[1] == 0 { 0 } else { SSE };
    let avx = if used[2] | used[3] == 0 { 0 } else { AVX };
    x87 | sse | avx
}

/// An XSAVE area (or its start) in words; the methods say where the SDM has what.
struct Area([u64; SIZE / 8]);

impl Area {
    const EMPTY: Self = Self([0; SIZE / 8]);

    fn bytes(&self) -> &[u8; SIZE] {
        // SAFETY: as many bytes, all of them initialised.
        unsafe { &*self.0.as_ptr().cast() }
    }

    fn bytes_mut(&mut self) -> &mut [u8; SIZE] {
        // SAFETY: as above; any bytes make words.
        unsafe { &mut *self.0.as_mut_ptr().cast() }
    }

    /// Bytes 0 to 23 and 32 to 159 (SDM vol. 1, table 10-2); `wide`: 64-bit instruction and data pointers.
    fn save_x87(&mut self, s: &State, wide: bool) {
        let a = &mut self.0;
        a[0] = s.fcw & 0xffff | (s.fsw & 0xffff) << 16 | u64::from(fpu::abridged(s.ftw)) << 32 | (s.fop & 0x7ff) << 48;
        (a[1], a[2]) = if wide {
            (s.fip, s.fdp)
        } else {
            (s.fip & 0xffff_ffff | (s.fcs & 0xffff) << 32, s.fdp & 0xffff_ffff | (s.fds & 0xffff) << 32)
        };
        for (to, st) in a[4..20].chunks_exact_mut(2).zip(&s.st) {
            (to[0], to[1]) = (st[0], st[1] & 0xffff);
        }
    }

    fn load_x87(&self, s: &mut State, wide: bool) {
        let a = &self.0;
        s.fcw = fpu::control(a[0] as u16);
        s.fsw = a[0] >> 16 & 0xffff;
        s.fop = a[0] >> 48 & 0x7ff;
        (s.fip, s.fdp) = if wide { (a[1], a[2]) } else { (a[1] & 0xffff_ffff, a[2] & 0xffff_ffff) };
        (s.fcs, s.fds) = (0, 0);
        for (from, st) in a[4..20].chunks_exact(2).zip(&mut s.st) {
            *st = [from[0], from[1] & 0xffff];
        }
        s.ftw = fpu::full_tags(s, (a[0] >> 32) as u8);
        fpu::update_es(s);
    }

    /// MXCSR, at byte 24.
    fn mxcsr(&self) -> u64 {
        self.0[3] & 0xffff_ffff
    }

    fn save_mxcsr(&mut self, s: &State) {
        self.0[3] = s.mxcsr & 0xffff_ffff | u64::from(MXCSR_MASK) << 32;
    }

    fn save_sse(&mut self, s: &State, registers: usize) {
        for (to, y) in self.0[20..52].chunks_exact_mut(2).zip(&s.ymm).take(registers) {
            (to[0], to[1]) = (y[0], y[1]);
        }
    }

    fn load_sse(&self, s: &mut State, registers: usize) {
        for (from, y) in self.0[20..52].chunks_exact(2).zip(&mut s.ymm).take(registers) {
            (y[0], y[1]) = (from[0], from[1]);
        }
    }

    fn save_avx(&mut self, s: &State, registers: usize) {
        for (to, y) in self.0[EXTENDED / 8..].chunks_exact_mut(2).zip(&s.ymm).take(registers) {
            (to[0], to[1]) = (y[2], y[3]);
        }
    }

    fn load_avx(&self, s: &mut State, registers: usize) {
        for (from, y) in self.0[EXTENDED / 8..].chunks_exact(2).zip(&mut s.ymm).take(registers) {
            (y[2], y[3]) = (from[0], from[1]);
        }
    }
}

fn x87_to_init(s: &mut State) {
    if !fpu::is_init(s) {
        fpu::init(s);
        s.st = [[0; 2]; 8];
    }
}

/// FXSAVE and FXRSTOR: #NM by CR0.EM or CR0.TS, then #GP(0) unless the area is 16-byte aligned.
fn fx_area(cpu: &mut Cpu, insn: &Insn, write: bool) -> Exec<u64> {
    cpu.x87_no_wait()?;
    let linear = cpu.mem(insn, 512, write)?;
    if linear & 15 != 0 {
        return Err(cpu.gp0());
    }
    Ok(linear)
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = fx_area(cpu, insn, true)?;
    // What the instruction leaves alone (bytes 416 to 511, XMM8 to XMM15 outside 64-bit mode) is not written.
    let registers = cpu.vector_registers();
    let end = 160 + 16 * registers;
    let mut area = Area::EMPTY;
    area.save_x87(&cpu.state, WIDE);
    area.save_mxcsr(&cpu.state);
    area.save_sse(&cpu.state, registers);
    cpu.probe_write(linear, 512)?;
    cpu.write_bytes(linear, &area.bytes()[..end])
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = fx_area(cpu, insn, false)?;
    let mut area = Area::EMPTY;
    cpu.read_bytes(linear, &mut area.bytes_mut()[..512])?;
    let mxcsr = area.mxcsr();
    if mxcsr & !u64::from(MXCSR_MASK) != 0 {
        return Err(cpu.gp0());
    }
    let registers = cpu.vector_registers();
    let s = &mut *cpu.state;
    area.load_x87(s, WIDE);
    s.mxcsr = mxcsr;
    area.load_sse(s, registers);
    Ok(())
}

/// The checks that the XSAVE family shares, and RFBM = EDX:EAX AND `components`.
fn xsave_area(cpu: &mut Cpu, insn: &Insn, components: u64, write: bool) -> Exec<(u64, u64)> {
    if cpu.state.cr0 & cr::CR0_TS != 0 {
        return Err(cpu.raise(vector::NM, None));
    }
    let requested = cpu.state.gpr[0] & 0xffff_ffff | cpu.state.gpr[2] << 32;
    let linear = cpu.mem(insn, EXTENDED as u32, write)?;
    if linear & 63 != 0 {
        return Err(cpu.gp0());
    }
    Ok((linear, requested & components))
}

fn xsave_enabled(cpu: &mut Cpu) -> Exec {
    if cpu.state.cr4 & cr::CR4_OSXSAVE == 0 { Err(cpu.ud()) } else { Ok(()) }
}

/// Registers of AVX and SSE that the XSAVE family touches: all sixteen only in 64-bit mode.
fn registers(cpu: &Cpu) -> usize {
    if cpu.mode.bits == Bits::B64 { 16 } else { 8 }
}

/// Writes components to the area at `linear`, each where it lies; nothing between them.
fn write_components(cpu: &mut Cpu, linear: u64, area: &Area, parts: &[(usize, usize)]) -> Exec {
    let bytes = area.bytes();
    if let Some(to) = cpu.hit_write(linear, SIZE as u64) {
        for &(start, end) in parts {
            // SAFETY: the TLB vouches for the whole area, and `area` is Rust data and so not guest memory.
            unsafe { std::ptr::copy_nonoverlapping(bytes[start..end].as_ptr(), to.add(start), end - start) };
        }
        return Ok(());
    }
    for &(start, end) in parts {
        if end > start {
            cpu.probe_write(linear.wrapping_add(start as u64), (end - start) as u64)?;
        }
    }
    for &(start, end) in parts {
        if end > start {
            cpu.write_bytes(linear.wrapping_add(start as u64), &bytes[start..end])?;
        }
    }
    Ok(())
}

/// The byte ranges of components `saved` (and of MXCSR) that an instruction writes.
fn component_parts(saved: u64, mxcsr: bool, registers: usize) -> [(usize, usize); 5] {
    let part = |on: bool, start, end| if on { (start, end) } else { (start, start) };
    [
        part(saved & X87 != 0, 0, 24),
        part(mxcsr, 24, 32),
        part(saved & X87 != 0, 32, 160),
        part(saved & SSE != 0, 160, 160 + 16 * registers),
        part(saved & AVX != 0, EXTENDED, EXTENDED + 16 * registers),
    ]
}

/// All components, each where it lies.
fn components_of(s: &State, wide: bool, registers: usize) -> Area {
    let mut area = Area::EMPTY;
    area.save_x87(s, wide);
    area.save_mxcsr(s);
    area.save_sse(s, registers);
    area.save_avx(s, registers);
    area
}

/// XSAVE and XSAVEOPT (standard format; SDM vol. 1, 13.7 and 13.9).
fn xsave<const WIDE: bool, const OPT: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    xsave_enabled(cpu)?;
    let (linear, rfbm) = xsave_area(cpu, insn, cpu.state.xcr0, true)?;
    let registers = registers(cpu);
    let used = xinuse(&cpu.state);
    let area = components_of(&cpu.state, WIDE, registers);
    let saved = if OPT { rfbm & used } else { rfbm };
    let header = linear.wrapping_add(512);
    let old: u64 = cpu.read(header)?;
    cpu.probe_write(header, 8)?;
    write_components(cpu, linear, &area, &component_parts(saved, rfbm & (SSE | AVX) != 0, registers))?;
    cpu.write(header, old & !rfbm | used & rfbm)
}

/// XSAVEC and XSAVES (compacted format; SDM vol. 1, 13.10 and 13.11).
fn xsavec<const WIDE: bool, const SUPERVISOR: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    xsave_enabled(cpu)?;
    if SUPERVISOR {
        supervisor_checks(cpu, insn, false)?;
    }
    let components = cpu.state.xcr0 | if SUPERVISOR { cpu.state.xss } else { 0 };
    let (linear, rfbm) = xsave_area(cpu, insn, components, true)?;
    let registers = registers(cpu);
    let mut used = xinuse(&cpu.state);
    if cpu.state.mxcsr != 0x1f80 {
        used |= SSE;
    }
    let saved = rfbm & used;
    let area = components_of(&cpu.state, WIDE, registers);
    let header = linear.wrapping_add(512);
    cpu.probe_write(header, 16)?;
    write_components(cpu, linear, &area, &component_parts(saved, saved & SSE != 0, registers))?;
    cpu.write(header, saved)?;
    cpu.write(header.wrapping_add(8), rfbm | COMPACTED)
}

/// XRSTOR (SDM vol. 1, 13.8) and XRSTORS (13.12).
fn xrstor<const WIDE: bool, const SUPERVISOR: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    xsave_enabled(cpu)?;
    if SUPERVISOR {
        supervisor_checks(cpu, insn, true)?;
    }
    let components = cpu.state.xcr0 | if SUPERVISOR { cpu.state.xss } else { 0 };
    let (linear, rfbm) = xsave_area(cpu, insn, components, false)?;
    let mut area = Area::EMPTY;
    cpu.read_bytes(linear.wrapping_add(512), &mut area.bytes_mut()[512..EXTENDED])?;
    let (present, format) = (area.0[64], area.0[65]);
    let compacted = format & COMPACTED != 0;
    let reserved = if compacted { &area.0[66..EXTENDED / 8] } else { &area.0[65..67] };
    let bad = reserved.iter().any(|&word| word != 0)
        || if compacted {
            format & !(components | COMPACTED) != 0 || present & !format != 0
        } else {
            SUPERVISOR || present & !components != 0
        };
    if bad {
        return Err(cpu.gp0());
    }

    let restored = rfbm & present;
    // Where AVX lies: in the compacted format it follows the header, where the standard format has it too.
    let mxcsr = if compacted { restored & SSE != 0 } else { rfbm & (SSE | AVX) != 0 };
    let registers = registers(cpu);
    for (start, end) in component_parts(restored, mxcsr, registers) {
        if end > start {
            cpu.read_bytes(linear.wrapping_add(start as u64), &mut area.bytes_mut()[start..end])?;
        }
    }
    let new_mxcsr = area.mxcsr();
    if mxcsr && new_mxcsr & !u64::from(MXCSR_MASK) != 0 {
        return Err(cpu.gp0());
    }

    let s = &mut *cpu.state;
    if restored & X87 != 0 {
        area.load_x87(s, WIDE);
    } else if rfbm & X87 != 0 {
        x87_to_init(s);
    }
    if mxcsr {
        s.mxcsr = new_mxcsr;
    } else if compacted && rfbm & SSE != 0 {
        s.mxcsr = 0x1f80;
    }
    // A component that is in its initial state is zero in `area`.
    if rfbm & SSE != 0 {
        area.load_sse(s, registers);
    }
    if rfbm & AVX != 0 {
        area.load_avx(s, registers);
    }
    Ok(())
}

/// XSAVES and XRSTORS: #GP(0) above CPL 0, #UD without the VM-execution control, the XSS-exiting bitmap
/// (SDM vol. 3, 26.1.3 and 26.3).
fn supervisor_checks(cpu: &mut Cpu, insn: &Insn, restore: bool) -> Exec {
    if !cpu.enabled(secondary::XSAVES) {
        return Err(cpu.ud());
    }
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    let requested = cpu.state.gpr[0] & 0xffff_ffff | cpu.state.gpr[2] << 32;
    cpu.check_xsaves(restore, requested, insn)
}
