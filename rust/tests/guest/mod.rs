//! A processor in a state of the test's choice, with identity-mapped memory, and its execution step by step.
//!
//! Everything that would be delivered through the IDT becomes a VM exit or ends the run, so that a test sees
//! the fault itself.

#![allow(dead_code)]

use std::sync::Arc;

use silicon::clock::Clock;
use silicon::cpu::Cpu;
use silicon::memory::Memory;
use silicon::state::{Segment, cr, seg};
use silicon::stop::Stop;
use silicon::vmx::Model;

/// Bytes of RAM.
pub const RAM: u64 = 0x0400_0000;
const TABLES: u64 = 0x10_0000;
/// Pages between these addresses have entries of their own ([`Guest::map`]); what is below and above is mapped in
/// pages of 2 MiB.
pub const FINE: u64 = 0x0120_0000;

/// How one instruction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It completed (REP: one iteration).
    Done,
    /// It raised an exception; `address` for #PF only.
    Fault { vector: u8, error: u32, address: u64 },
    /// Something else.
    Stopped(Stop),
}

/// One processor with its memory.
pub struct Guest {
    pub cpu: Cpu,
}

impl Guest {
    fn bare() -> Self {
        let memory = Arc::new(Memory::new(RAM, 1 << 20).expect("memory"));
        let mut cpu = Cpu::new(memory, Arc::new(Model::default()), Clock::Virtual { skipped: 0 });
        cpu.ctl.exception_bitmap = !0;
        Self { cpu }
    }

    /// 64-bit user mode (or CPL `cpl`) with paging: identity map, user, writable.
    pub fn long(cpl: u64) -> Self {
        let mut guest = Self::bare();
        let mem = &guest.cpu.memory;
        let (pml4, pdpt, pd, pt) = (TABLES, TABLES + 0x1000, TABLES + 0x2000, TABLES + 0x3000);
        mem.write(pml4, pdpt | 7);
        mem.write(pdpt, pd | 7);
        for n in 0..32u64 {
            mem.write(pd + 8 * n, n << 21 | 0x87);
        }
        mem.write(pd + 8 * (FINE >> 21), pt | 7);
        for n in 0..512u64 {
            mem.write(pt + 8 * n, (FINE + (n << 12)) | 7);
        }
        let s = &mut *guest.cpu.state;
        s.cr0 = cr::CR0_PE | cr::CR0_PG | cr::CR0_NE | cr::CR0_ET | cr::CR0_MP | cr::CR0_WP | cr::CR0_AM;
        s.cr3 = pml4;
        s.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
        s.efer = cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
        let dpl = cpl << 5;
        for (n, segment) in s.seg.iter_mut().enumerate() {
            let access = if n == seg::CS { 0xa09b } else { 0xc093 } | dpl;
            *segment = Segment { selector: 0x30 | cpl, base: 0, limit: 0xffff_ffff, access };
        }
        guest.ready();
        guest
    }

    /// Real mode, all segments at 0.
    pub fn real() -> Self {
        let mut guest = Self::bare();
        for segment in &mut guest.cpu.state.seg[..6] {
            *segment = Segment { selector: 0, base: 0, limit: 0xffff, access: 0x93 };
        }
        guest.cpu.state.seg[seg::CS].access = 0x9b;
        guest.ready();
        guest
    }

    /// Protected mode without paging, flat; 32-bit code or 16-bit.
    pub fn protected(wide: bool) -> Self {
        let mut guest = Self::bare();
        guest.cpu.state.cr0 |= cr::CR0_PE;
        for (n, segment) in guest.cpu.state.seg[..6].iter_mut().enumerate() {
            let access = if n == seg::CS { 0x9b } else { 0x93 } | if wide { 0xc000 } else { 0 };
            let limit = if wide { 0xffff_ffff } else { 0xffff };
            *segment = Segment { selector: 0x10, base: 0, limit, access };
        }
        guest.ready();
        guest
    }

    /// Call after a change of registers that decide the mode.
    pub fn ready(&mut self) {
        self.cpu.update_mode();
        self.cpu.mmu_context_changed();
    }

    /// Sets the page-table entry of a page in the fine region (flags: 1 present, 2 writable, 4 user).
    pub fn map(&mut self, linear: u64, pa: u64, flags: u64) {
        assert!((FINE..FINE + (2 << 20)).contains(&linear));
        self.cpu.memory.write(TABLES + 0x3000 + 8 * ((linear - FINE) >> 12), pa | flags);
        self.cpu.invalidate(silicon::mmu::Invalidation::Vpid { vpid: 0 });
    }

    /// Unmaps everything: only what is mapped with [`Guest::map`] from now on is there.
    pub fn unmap_all(&mut self) {
        for n in (0..512).filter(|n| *n != FINE >> 21) {
            self.cpu.memory.write(TABLES + 0x2000 + 8 * n, 0_u64);
        }
        for n in 0..512 {
            self.cpu.memory.write(TABLES + 0x3000 + 8 * n, 0_u64);
        }
        self.cpu.invalidate(silicon::mmu::Invalidation::Vpid { vpid: 0 });
    }

    /// Puts bytes into memory.
    pub fn load(&mut self, pa: u64, bytes: &[u8]) {
        self.cpu.memory.write_bytes(pa, bytes);
    }

    /// Runs `count` instructions, or fewer if something else ends the run.
    pub fn run(&mut self, count: u64) -> Outcome {
        let deadline = self.cpu.state.retired + count;
        self.cpu.delivering = None;
        self.cpu.fault.vector = 0xff;
        match self.cpu.run(deadline) {
            Stop::Again => Outcome::Done,
            _ if self.cpu.fault.vector != 0xff => {
                let f = self.cpu.fault;
                let (error, address) = if f.vector == 14 { (f.error.unwrap_or(0), f.payload) } else { (0, 0) };
                Outcome::Fault { vector: f.vector, error, address }
            }
            stop => Outcome::Stopped(stop),
        }
    }
}
