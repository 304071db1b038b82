//! What a data access does when its TLB entry does not match: translate, perform page by page, look for
//! breakpoints, alignment, MMIO and the APIC page.
//!
//! An access over two pages is translated for both before anything is touched, and parts that may exit
//! come before parts in RAM, so that a new attempt finds RAM unchanged.

use super::assist::{AccessKind, Denied};
use super::tlb::View;
use super::translate::Target;
use crate::cpu::{Bits, Cpu};
use crate::memory::Int;
use crate::stop::{Exec, vector};

/// A part of an access that lies in one page.
#[derive(Clone, Copy)]
struct Part {
    target: Target,
    linear: u64,
    /// Bytes before this part.
    skip: u32,
    len: u32,
}

/// One or two parts.
struct Parts {
    parts: [Part; 2],
    count: usize,
}

impl Parts {
    fn all(&self) -> &[Part] {
        &self.parts[..self.count]
    }
}

/// Bytes from `linear` to the end of its page.
fn to_page_end(linear: u64) -> u64 {
    4096 - (linear & 0xfff)
}

/// Reads `len` (1 to 16) bytes of RAM; a power of two is one access.
fn load(cpu: &Cpu, pa: u64, len: u32) -> u128 {
    match len {
        1 => cpu.memory.read::<u8>(pa).to_u128(),
        2 => cpu.memory.read::<u16>(pa).to_u128(),
        4 => cpu.memory.read::<u32>(pa).to_u128(),
        8 => cpu.memory.read::<u64>(pa).to_u128(),
        16 => cpu.memory.read::<u128>(pa),
        _ => {
            let mut bytes = [0; 16];
            cpu.memory.read_bytes(pa, &mut bytes[..len.min(16) as usize]);
            u128::from_le_bytes(bytes)
        }
    }
}

/// Writes as [`load`] reads.
fn store(cpu: &Cpu, pa: u64, len: u32, value: u128) {
    let memory = &cpu.memory;
    let base = memory.base() as u64;
    if !memory.contains(pa, u64::from(len)) {
        return;
    }
    // SAFETY: inside the mapping, as just checked.
    unsafe {
        match len {
            1 => u8::store(base, pa, value as u8),
            2 => u16::store(base, pa, value as u16),
            4 => u32::store(base, pa, value as u32),
            8 => u64::store(base, pa, value as u64),
            16 => u128::store(base, pa, value),
            _ => {
                for (i, byte) in value.to_le_bytes().into_iter().enumerate().take(len as usize) {
                    u8::store(base, pa + i as u64, byte);
                }
            }
        }
    }
    memory.written(pa, u64::from(len));
}

impl Cpu {
    /// The linear address after the page of `linear`: wraps at 4 GiB outside 64-bit mode.
    fn next_page(&self, linear: u64) -> u64 {
        let next = (linear | 0xfff).wrapping_add(1);
        if self.mode.bits == Bits::B64 { next } else { next & 0xffff_ffff }
    }

    /// The common miss: an access within one page of RAM with nothing to watch or to check. `None`: the long
    /// way, which translates again.
    #[inline]
    fn plain(&mut self, linear: u64, len: u32, kind: AccessKind, view: View) -> Exec<Option<u64>> {
        if u64::from(len) > to_page_end(linear) || self.mode.align_check || self.mmu.watch.any() {
            return Ok(None);
        }
        Ok(match self.translate(linear, kind, view)? {
            Target::Ram(pa) => Some(pa),
            _ => None,
        })
    }

    /// Translates an access of 1 to 16 bytes, all pages of it.
    fn parts(&mut self, linear: u64, len: u32, kind: AccessKind, view: View) -> Exec<Parts> {
        let first = u64::from(len).min(to_page_end(linear)) as u32;
        let part = Part { target: self.translate(linear, kind, view)?, linear, skip: 0, len: first };
        let mut parts = Parts { parts: [part; 2], count: 1 };
        if first < len {
            let linear = self.next_page(linear);
            let target = self.translate(linear, kind, view)?;
            parts.parts[1] = Part { target, linear, skip: first, len: len - first };
            parts.count = 2;
        }
        if self.mode.align_check && view == View::User && len <= 8 && linear & u64::from(len - 1) != 0 {
            return Err(self.raise(vector::AC, Some(0)));
        }
        Ok(parts)
    }

    /// Reads one part; `modify` when it will be written too.
    fn read_part(&mut self, part: Part, modify: bool) -> Exec<u128> {
        if let Target::Ram(pa) = part.target {
            return Ok(load(self, pa, part.len));
        }
        let mut value = 0;
        let mut at = 0;
        while at < part.len {
            let width = (part.len - at).min(8);
            let offset = u64::from(at);
            let piece = match part.target {
                Target::Bus(pa) => self.memory.bus().read(pa + offset, width),
                Target::Apic(gpa) => self.apic_read(part.linear.wrapping_add(offset), gpa + offset, width)?,
                Target::Denied(denial) => match denial.readable() {
                    // A read-modify-write of a page that may be read: only the write is denied.
                    Some(pa) if modify => load(self, pa + offset, width) as u64,
                    _ => self.denied_read(denial.advance(offset), width, modify)?,
                },
                Target::Ram(_) => 0,
            };
            let mask = if width == 8 { !0 } else { (1 << (8 * width)) - 1 };
            value |= u128::from(piece & mask) << (8 * at);
            at += width;
        }
        Ok(value)
    }

    /// Writes one part.
    fn write_part(&mut self, part: Part, value: u128) -> Exec {
        if let Target::Ram(pa) = part.target {
            store(self, pa, part.len, value);
            return Ok(());
        }
        let mut at = 0;
        while at < part.len {
            let width = (part.len - at).min(8);
            let offset = u64::from(at);
            let mask = if width == 8 { !0 } else { (1 << (8 * width)) - 1 };
            let piece = (value >> (8 * at)) as u64 & mask;
            match part.target {
                Target::Bus(pa) => self.memory.bus().write(pa + offset, width, piece),
                Target::Apic(gpa) => {
                    self.apic_write(part.linear.wrapping_add(offset), gpa + offset, width, piece)?;
                }
                Target::Denied(denial) => {
                    if let Denied::Permit(pa) = self.denied_write(denial.advance(offset), width, piece)? {
                        store(self, pa, width, u128::from(piece));
                    }
                }
                Target::Ram(_) => {}
            }
            at += width;
        }
        Ok(())
    }

    /// Writes all parts, those in RAM last.
    fn write_parts(&mut self, parts: &Parts, value: u128) -> Exec {
        for ram in [false, true] {
            for part in parts.all().iter().filter(|p| matches!(p.target, Target::Ram(_)) == ram) {
                self.write_part(*part, value >> (8 * part.skip))?;
            }
        }
        Ok(())
    }

    fn read_parts(&mut self, parts: &Parts, modify: bool) -> Exec<u128> {
        let mut value = 0;
        for part in parts.all() {
            value |= self.read_part(*part, modify)? << (8 * part.skip);
        }
        Ok(value)
    }

    #[cold]
    #[inline(never)]
    fn read_any(&mut self, linear: u64, len: u32, view: View) -> Exec<u128> {
        if let Some(pa) = self.plain(linear, len, AccessKind::Read, view)? {
            return Ok(load(self, pa, len));
        }
        let parts = self.parts(linear, len, AccessKind::Read, view)?;
        let value = self.read_parts(&parts, false)?;
        self.watch_access(linear, u64::from(len), false);
        Ok(value)
    }

    #[cold]
    #[inline(never)]
    fn write_any(&mut self, linear: u64, len: u32, value: u128, view: View) -> Exec {
        if let Some(pa) = self.plain(linear, len, AccessKind::Write, view)? {
            store(self, pa, len, value);
            return Ok(());
        }
        let parts = self.parts(linear, len, AccessKind::Write, view)?;
        self.write_parts(&parts, value)?;
        self.watch_access(linear, u64::from(len), true);
        Ok(())
    }

    pub(super) fn read_slow<T: Int>(&mut self, linear: u64, view: View) -> Exec<T> {
        self.read_any(linear, T::SIZE as u32, view).map(T::from_u128)
    }

    pub(super) fn write_slow<T: Int>(&mut self, linear: u64, value: T, view: View) -> Exec {
        self.write_any(linear, T::SIZE as u32, value.to_u128(), view)
    }

    /// Read-modify-write, any number of pages, any target.
    #[cold]
    #[inline(never)]
    pub(super) fn update_slow<T: Int>(
        &mut self,
        linear: u64,
        lock: bool,
        f: &mut dyn FnMut(T) -> Option<T>,
        view: View,
    ) -> Exec<T> {
        if let Some(pa) = self.plain(linear, T::SIZE as u32, AccessKind::Write, view)? {
            if lock {
                return Ok(self.update_ram(pa, f));
            }
            let old = self.memory.read::<T>(pa);
            store(self, pa, T::SIZE as u32, f(old).unwrap_or(old).to_u128());
            return Ok(old);
        }
        let parts = self.parts(linear, T::SIZE as u32, AccessKind::Write, view)?;
        let old = match self.lockable(&parts, lock) {
            Some(pa) => self.update_ram(pa, f),
            None => {
                let memory = self.memory.clone();
                let _guard = lock.then(|| memory.split_lock());
                let old = T::from_u128(self.read_parts(&parts, true)?);
                let new = f(old).unwrap_or(old);
                self.write_parts(&parts, new.to_u128())?;
                old
            }
        };
        self.watch_access(linear, T::SIZE, true);
        Ok(old)
    }

    /// The address where a locked access can be done as one: RAM in one page, or a permitted tracked page.
    fn lockable(&mut self, parts: &Parts, lock: bool) -> Option<u64> {
        match parts.all() {
            [Part { target: Target::Ram(pa), .. }] if lock => Some(*pa),
            [Part { target: Target::Denied(denial), .. }] if lock => self.permitted_address(denial),
            _ => None,
        }
    }

    fn update_ram<T: Int>(&mut self, pa: u64, f: &mut dyn FnMut(T) -> Option<T>) -> T {
        let mut old = self.memory.read::<T>(pa);
        if !self.memory.contains(pa, T::SIZE) || T::SIZE == 16 && pa & 15 != 0 {
            return old;
        }
        loop {
            let new = f(old).unwrap_or(old);
            // SAFETY: inside the mapping; 16 bytes are aligned.
            match unsafe { T::compare_exchange(self.memory.ptr(pa), old, new) } {
                Ok(_) => break,
                Err(found) => old = found,
            }
        }
        self.memory.written(pa, T::SIZE);
        old
    }

    #[cold]
    pub(super) fn fetch_slow(&mut self, linear: u64) -> Exec<u64> {
        match self.translate(linear, AccessKind::Fetch, self.mmu.code_view)? {
            Target::Ram(pa) | Target::Bus(pa) => Ok(pa),
            Target::Apic(gpa) => self.apic_fetch(linear, gpa),
            Target::Denied(denial) => Err(self.denied_fetch(denial)),
        }
    }

    /// Fills the TLB if that works without fault or exit.
    #[cold]
    pub(super) fn warm(&mut self, linear: u64, kind: AccessKind, view: View) {
        let (fault, exit) = (self.fault, self.exit);
        let assist =
            (self.state.assist_kind, self.state.assist_address, self.state.assist_width, self.state.assist_data);
        if !matches!(self.translate(linear, kind, view), Ok(Target::Ram(_))) {
            (self.fault, self.exit) = (fault, exit);
        }
        let s = &mut *self.state;
        (s.assist_kind, s.assist_address, s.assist_width, s.assist_data) = assist;
    }

    /// For translated code: brings the TLB entry of an explicit data access to `linear` that did not match. False:
    /// the access faults, exits, or has to be seen, so that it has no entry; then nothing has changed.
    pub fn fill_data(&mut self, linear: u64, write: bool) -> bool {
        self.warm(linear, if write { AccessKind::Write } else { AccessKind::Read }, self.mmu.data_view);
        let entry = self.mmu.data_entry(linear);
        (if write { entry.write } else { entry.read }) == linear & !0xfff
    }

    /// The same for the fetch of an instruction, and where that lies. `None`: it faults or exits.
    #[cold]
    pub fn fill_code(&mut self, linear: u64) -> Option<u64> {
        self.warm(linear, AccessKind::Fetch, self.mmu.code_view);
        self.fetch_known(linear)
    }

    #[cold]
    pub(super) fn probe_slow(&mut self, linear: u64, len: u64, view: View) -> Exec {
        let mut at = linear;
        let mut left = len;
        while left != 0 {
            if let Target::Denied(denial) = self.translate(at, AccessKind::Write, view)?
                && denial.is_page_fault()
            {
                return Err(self.denied_fetch(denial));
            }
            let step = left.min(to_page_end(at));
            left -= step;
            at = self.next_page(at);
        }
        Ok(())
    }

    #[cold]
    pub(super) fn read_bytes_slow(&mut self, linear: u64, out: &mut [u8]) -> Exec {
        if out.len() as u64 > to_page_end(linear) {
            let mut at = linear;
            let mut left = out.len() as u64;
            while left != 0 {
                self.translate(at, AccessKind::Read, self.mmu.data_view)?;
                left -= left.min(to_page_end(at));
                at = self.next_page(at);
            }
        }
        let mut at = linear;
        let mut done = 0;
        while done < out.len() {
            let n = (out.len() - done).min(16).min(to_page_end(at) as usize);
            let value = self.read_any(at, n as u32, self.mmu.data_view)?;
            out[done..done + n].copy_from_slice(&value.to_le_bytes()[..n]);
            done += n;
            at = if at & 0xfff == 0x1000 - n as u64 { self.next_page(at) } else { at + n as u64 };
        }
        Ok(())
    }

    #[cold]
    pub(super) fn write_bytes_slow(&mut self, linear: u64, data: &[u8]) -> Exec {
        self.probe_slow(linear, data.len() as u64, self.mmu.data_view)?;
        let mut at = linear;
        let mut done = 0;
        while done < data.len() {
            let n = (data.len() - done).min(16).min(to_page_end(at) as usize);
            let mut bytes = [0; 16];
            bytes[..n].copy_from_slice(&data[done..done + n]);
            self.write_any(at, n as u32, u128::from_le_bytes(bytes), self.mmu.data_view)?;
            done += n;
            at = if at & 0xfff == 0x1000 - n as u64 { self.next_page(at) } else { at + n as u64 };
        }
        Ok(())
    }
}
