//! String instructions with and without REP: MOVS, CMPS, SCAS, LODS, STOS.
//!
//! Each iteration counts as one retired instruction and is complete before the next begins, so that a fault,
//! an exit or the end of the slice leaves the registers at an iteration. Runs within pages of plain memory
//! go in bulk. INS and OUTS belong to the system group.

use iced_x86::{Instruction, Mnemonic};

use super::alu::by_width;
use super::native::Native;
use crate::cpu::Cpu;
use crate::decode::{Handler, Insn};
use crate::state::{flag, gpr, seg};
use crate::stop::{Exec, Stop};

const ES: u8 = seg::ES as u8;
const AX: u8 = 0;

impl Cpu {
    /// rSI, rDI or rCX cut to the address size.
    #[inline(always)]
    fn string_register(&self, n: usize, insn: &Insn) -> u64 {
        self.state.gpr[n] & insn.address_mask
    }

    /// Writes rSI, rDI or rCX: 16 bits keep the rest, 32 bits zero-extend.
    #[inline(always)]
    fn set_string_register(&mut self, n: usize, insn: &Insn, v: u64) {
        let r = &mut self.state.gpr[n];
        *r = if insn.address_mask == 0xffff { *r & !0xffff | v & 0xffff } else { v & insn.address_mask };
    }

    /// Moves rSI or rDI by `elements` of `size` bytes in the direction of DF.
    #[inline(always)]
    fn advance(&mut self, n: usize, insn: &Insn, size: u32, elements: u64) {
        let by = u64::from(size).wrapping_mul(elements);
        let old = self.state.gpr[n];
        let new = if self.state.rflags & flag::DF != 0 { old.wrapping_sub(by) } else { old.wrapping_add(by) };
        self.set_string_register(n, insn, new);
    }

    /// Runs a REP string instruction: `bulk` does several iterations at once or none, `one` a single one and
    /// says whether it was the last (for CMPS and SCAS).
    #[inline(always)]
    fn repeat(
        &mut self,
        insn: &Insn,
        bulk: impl Fn(&mut Self, &Insn, u64) -> u64,
        one: impl Fn(&mut Self, &Insn) -> Exec<bool>,
    ) -> Exec {
        let mut count = self.string_register(gpr::RCX, insn);
        if count == 0 {
            return Ok(());
        }
        // Traps after each iteration, and whatever else asks at every boundary.
        let mut left = if self.boundary { 1 } else { self.budget().max(1) };
        loop {
            let mut done = 0;
            if left > 1 && !self.replaying() {
                done = bulk(self, insn, count.min(left));
            }
            let mut last = false;
            if done == 0 {
                last = one(self, insn)?;
                if self.replaying() {
                    self.replay_end();
                }
                done = 1;
            }
            count -= done;
            left -= done;
            self.set_string_register(gpr::RCX, insn, count);
            if count == 0 || last {
                self.state.retired += done - 1;
                return Ok(());
            }
            self.state.retired += done;
            if left == 0 || self.state.pending_debug != 0 {
                return Err(Stop::Again);
            }
        }
    }

    /// Elements of `size` bytes, at most `count`, that lie from `linear` on to the end of its page.
    #[inline(always)]
    fn elements_in_page(linear: u64, size: u32, count: u64) -> u64 {
        ((4096 - (linear & 0xfff)) / u64::from(size)).min(count)
    }

    /// Linear address of a run of up to `count` elements upwards from `n` in segment `seg`, and how many of
    /// them lie in one page and below the wrap of the address size. Nothing if DF is set or a check fails.
    #[inline(always)]
    fn run_of(&mut self, n: usize, seg: u8, insn: &Insn, size: u32, count: u64, write: bool) -> Option<(u64, u64)> {
        if self.state.rflags & flag::DF != 0 {
            return None;
        }
        let offset = self.string_register(n, insn);
        let linear = self.segmented(seg, offset, size, write).ok()?;
        let mut run = Self::elements_in_page(linear, size, count);
        run = run.min((insn.address_mask - offset) / u64::from(size));
        if run < 2 {
            return None;
        }
        let bytes = run * u64::from(size);
        // The whole run obeys the limit if its last element does and they are contiguous.
        let end = offset + bytes - u64::from(size);
        (self.segmented(seg, end, size, write).ok()?.wrapping_sub(linear) == end - offset).then_some((linear, run))
    }
}

fn movs_one<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec<bool> {
    let from = cpu.string_register(gpr::RSI, insn);
    let from = cpu.segmented(insn.seg, from, T::BYTES, false)?;
    let v = cpu.read::<T>(from)?;
    let to = cpu.string_register(gpr::RDI, insn);
    let to = cpu.segmented(ES, to, T::BYTES, true)?;
    cpu.write(to, v).map_err(|s| destination_fault(cpu, s))?;
    cpu.advance(gpr::RSI, insn, T::BYTES, 1);
    cpu.advance(gpr::RDI, insn, T::BYTES, 1);
    Ok(false)
}

/// The destination is in ES whatever `insn.seg` says: a non-canonical one stays #GP.
#[cold]
fn destination_fault(cpu: &mut Cpu, stop: Stop) -> Stop {
    if cpu.fault.vector == crate::stop::vector::GP {
        cpu.fault.payload = 0;
    }
    stop
}

fn movs_bulk<T: Native>(cpu: &mut Cpu, insn: &Insn, count: u64) -> u64 {
    let Some((from, run)) = cpu.run_of(gpr::RSI, insn.seg, insn, T::BYTES, count, false) else { return 0 };
    let Some((to, run)) = cpu.run_of(gpr::RDI, ES, insn, T::BYTES, run, true) else { return 0 };
    let bytes = run * u64::from(T::BYTES);
    let Some(from) = cpu.host_read_ptr(from, bytes) else { return 0 };
    let Some(to) = cpu.host_write_ptr(to, bytes) else { return 0 };
    // Where the destination begins within the source the copy repeats a pattern: element by element.
    if (to as u64).wrapping_sub(from as u64) < bytes {
        return 0;
    }
    // SAFETY: both pointers are good for `bytes` within their pages until the next access; `copy` allows the
    // other overlap. Writing the TLB entry of one can replace that of the other, but not the memory behind.
    unsafe { std::ptr::copy(from, to, bytes as usize) };
    cpu.advance(gpr::RSI, insn, T::BYTES, run);
    cpu.advance(gpr::RDI, insn, T::BYTES, run);
    run
}

fn movs<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    movs_one::<T>(cpu, insn).map(|_| ())
}

fn rep_movs<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.repeat(insn, movs_bulk::<T>, movs_one::<T>)
}

fn stos_one<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec<bool> {
    let to = cpu.string_register(gpr::RDI, insn);
    let to = cpu.segmented(ES, to, T::BYTES, true)?;
    let v = cpu.reg::<T>(AX);
    cpu.write(to, v).map_err(|s| destination_fault(cpu, s))?;
    cpu.advance(gpr::RDI, insn, T::BYTES, 1);
    Ok(false)
}

fn stos_bulk<T: Native>(cpu: &mut Cpu, insn: &Insn, count: u64) -> u64 {
    let Some((to, run)) = cpu.run_of(gpr::RDI, ES, insn, T::BYTES, count, true) else { return 0 };
    let bytes = run * u64::from(T::BYTES);
    let Some(to) = cpu.host_write_ptr(to, bytes) else { return 0 };
    let v = cpu.reg::<T>(AX);
    for n in 0..run as usize {
        // SAFETY: `to` is good for `run` elements.
        unsafe { to.cast::<T>().add(n).write_unaligned(v) };
    }
    cpu.advance(gpr::RDI, insn, T::BYTES, run);
    run
}

fn stos<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    stos_one::<T>(cpu, insn).map(|_| ())
}

fn rep_stos<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.repeat(insn, stos_bulk::<T>, stos_one::<T>)
}

fn lods_one<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec<bool> {
    let from = cpu.string_register(gpr::RSI, insn);
    let from = cpu.segmented(insn.seg, from, T::BYTES, false)?;
    let v = cpu.read::<T>(from)?;
    cpu.set_reg(AX, v);
    cpu.advance(gpr::RSI, insn, T::BYTES, 1);
    Ok(false)
}

fn lods<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    lods_one::<T>(cpu, insn).map(|_| ())
}

fn rep_lods<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.repeat(insn, |_, _, _| 0, lods_one::<T>)
}

/// Which REP prefix ends CMPS and SCAS at what: REPE (F3) at inequality, REPNE (F2) at equality.
#[inline(always)]
fn is_last<const EQUAL: bool>(cpu: &Cpu) -> bool {
    (cpu.state.rflags & flag::ZF != 0) != EQUAL
}

fn cmps_one<T: Native, const EQUAL: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec<bool> {
    let from = cpu.string_register(gpr::RSI, insn);
    let from = cpu.segmented(insn.seg, from, T::BYTES, false)?;
    let a = cpu.read::<T>(from)?;
    let to = cpu.string_register(gpr::RDI, insn);
    let to = cpu.segmented(ES, to, T::BYTES, false)?;
    let b = cpu.read::<T>(to).map_err(|s| destination_fault(cpu, s))?;
    cpu.state.rflags = T::sub(a, b, cpu.state.rflags).1;
    cpu.advance(gpr::RSI, insn, T::BYTES, 1);
    cpu.advance(gpr::RDI, insn, T::BYTES, 1);
    Ok(is_last::<EQUAL>(cpu))
}

fn cmps<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cmps_one::<T, true>(cpu, insn).map(|_| ())
}

fn repe_cmps<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.repeat(insn, |_, _, _| 0, cmps_one::<T, true>)
}

fn repne_cmps<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.repeat(insn, |_, _, _| 0, cmps_one::<T, false>)
}

fn scas_one<T: Native, const EQUAL: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec<bool> {
    let to = cpu.string_register(gpr::RDI, insn);
    let to = cpu.segmented(ES, to, T::BYTES, false)?;
    let b = cpu.read::<T>(to).map_err(|s| destination_fault(cpu, s))?;
    cpu.state.rflags = T::sub(cpu.reg::<T>(AX), b, cpu.state.rflags).1;
    cpu.advance(gpr::RDI, insn, T::BYTES, 1);
    Ok(is_last::<EQUAL>(cpu))
}

fn scas<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    scas_one::<T, true>(cpu, insn).map(|_| ())
}

fn repe_scas<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.repeat(insn, |_, _, _| 0, scas_one::<T, true>)
}

fn repne_scas<T: Native>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.repeat(insn, |_, _, _| 0, scas_one::<T, false>)
}

/// The handler of an instruction of this group.
#[must_use]
pub fn select(i: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let w = match i.mnemonic() {
        M::Movsb | M::Cmpsb | M::Stosb | M::Lodsb | M::Scasb => 1,
        M::Movsw | M::Cmpsw | M::Stosw | M::Lodsw | M::Scasw => 2,
        M::Movsd | M::Cmpsd | M::Stosd | M::Lodsd | M::Scasd => 4,
        M::Movsq | M::Cmpsq | M::Stosq | M::Lodsq | M::Scasq => 8,
        _ => return None,
    };
    if !i.is_string_instruction() {
        return None; // the SSE2 instructions MOVSD and CMPSD
    }
    let rep = i.has_rep_prefix() || i.has_repne_prefix();
    match i.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq if rep => by_width!(w, rep_movs, []),
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => by_width!(w, movs, []),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq if rep => by_width!(w, rep_stos, []),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => by_width!(w, stos, []),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq if rep => by_width!(w, rep_lods, []),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => by_width!(w, lods, []),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if i.has_repne_prefix() => by_width!(w, repne_cmps, []),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if rep => by_width!(w, repe_cmps, []),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => by_width!(w, cmps, []),
        _ if i.has_repne_prefix() => by_width!(w, repne_scas, []),
        _ if rep => by_width!(w, repe_scas, []),
        _ => by_width!(w, scas, []),
    }
}
