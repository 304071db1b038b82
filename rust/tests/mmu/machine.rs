//! A processor over a few megabytes, with page tables built by hand.

use std::sync::Arc;

use silicon::clock::Clock;
use silicon::cpu::Cpu;
use silicon::memory::Memory;
use silicon::state::{cr, flag, seg};
use silicon::stop::{Exec, Stop, vector};
use silicon::vmx::Model;

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const G: u64 = 1 << 8;
pub const NX: u64 = 1 << 63;

/// Guest tables are taken from here upwards.
pub const TABLES: u64 = 0x10_0000;
/// EPT tables are taken from here upwards (the pool).
pub const POOL: u64 = 0x80_0000;
pub const RAM: u64 = POOL;

pub struct Machine {
    pub cpu: Cpu,
    next_table: u64,
    next_ept: u64,
}

/// A processor for `memory`.
pub fn cpu(memory: &Arc<Memory>) -> Cpu {
    Cpu::new(Arc::clone(memory), Arc::new(Model::default()), Clock::Virtual { skipped: 0 })
}

impl Machine {
    /// No paging, CPL 0, flat.
    pub fn new() -> Self {
        let memory = Arc::new(Memory::new(RAM, 0x10_0000).unwrap());
        let mut cpu = cpu(&memory);
        cpu.state.cr0 = cr::CR0_PE | cr::CR0_WP;
        for s in &mut cpu.state.seg {
            s.base = 0;
        }
        let mut machine = Self { cpu, next_table: TABLES, next_ept: POOL };
        machine.cpl(0);
        machine.refresh();
        machine
    }

    /// 4-level paging with an empty PML4 and NXE.
    pub fn long() -> Self {
        let mut m = Self::new();
        m.cpu.state.cr3 = m.table();
        m.cpu.state.cr4 = cr::CR4_PAE | cr::CR4_PGE;
        m.cpu.state.cr0 |= cr::CR0_PG;
        m.cpu.state.efer = cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
        m.cpu.state.seg[seg::CS].access |= 1 << 13;
        m.refresh();
        m
    }

    /// 32-bit paging with an empty page directory.
    pub fn bits32() -> Self {
        let mut m = Self::new();
        m.cpu.state.cr3 = m.table();
        m.cpu.state.cr0 |= cr::CR0_PG;
        m.cpu.state.cr4 = cr::CR4_PSE;
        m.refresh();
        m
    }

    /// PAE paging; PDPTE 0 references an empty page directory, which is returned.
    pub fn pae() -> (Self, u64) {
        let mut m = Self::new();
        let (pdpt, directory) = (m.table(), m.table());
        m.poke(pdpt, directory | P);
        m.cpu.state.cr4 = cr::CR4_PAE;
        m.cpu.load_pdptes(pdpt).unwrap();
        m.cpu.state.cr3 = pdpt;
        m.cpu.state.cr0 |= cr::CR0_PG;
        m.cpu.state.efer = cr::EFER_NXE;
        m.refresh();
        (m, directory)
    }

    pub fn cpl(&mut self, cpl: u64) {
        let s = &mut self.cpu.state.seg[seg::SS];
        s.access = s.access & !(3 << 5) | cpl << 5;
        self.cpu.update_mode();
    }

    pub fn ac(&mut self, set: bool) {
        let f = &mut self.cpu.state.rflags;
        *f = if set { *f | flag::AC } else { *f & !flag::AC };
        self.cpu.update_mode();
    }

    /// After a change of control registers or VMCS controls.
    pub fn refresh(&mut self) {
        self.cpu.update_mode();
        self.cpu.mmu_context_changed();
    }

    pub fn poke(&self, pa: u64, value: u64) {
        self.cpu.memory.write(pa, value);
    }

    pub fn peek(&self, pa: u64) -> u64 {
        self.cpu.memory.read(pa)
    }

    /// A fresh zeroed page for a guest table.
    pub fn table(&mut self) -> u64 {
        self.next_table += 0x1000;
        assert!(self.next_table < 0x20_0000, "out of tables");
        self.cpu.memory.fill(self.next_table - 0x1000, 0x1000, 0);
        self.next_table - 0x1000
    }

    /// Maps `linear` with the entry `entry` at `level` of 4-level tables; tables above it allow everything.
    /// Returns the address of the entry.
    pub fn map(&mut self, linear: u64, entry: u64, level: u32) -> u64 {
        let mut table = self.cpu.state.cr3 & !0xfff;
        for l in (level + 1..=4).rev() {
            let at = table + (linear >> (3 + 9 * l) & 511) * 8;
            if self.peek(at) & P == 0 {
                let next = self.table();
                self.poke(at, next | P | W | U);
            }
            table = self.peek(at) & 0x000f_ffff_ffff_f000;
        }
        let at = table + (linear >> (3 + 9 * level) & 511) * 8;
        self.poke(at, entry);
        at
    }

    /// The same for EPT, in the pool. `ept_pointer` is set up at the first call.
    pub fn ept_map(&mut self, gpa: u64, entry: u64, level: u32) -> u64 {
        if self.cpu.ctl.ept_pointer == 0 {
            self.cpu.ctl.ept_pointer = self.ept_table() | 0x1e;
            self.refresh();
        }
        let mut table = self.cpu.ctl.ept_pointer & !0xfff;
        for l in (level + 1..=4).rev() {
            let at = table + (gpa >> (3 + 9 * l) & 511) * 8;
            if self.peek(at) & 7 == 0 {
                let next = self.ept_table();
                self.poke(at, next | 7);
            }
            table = self.peek(at) & 0x000f_ffff_ffff_f000;
        }
        let at = table + (gpa >> (3 + 9 * level) & 511) * 8;
        self.poke(at, entry);
        at
    }

    /// Identity EPT over all RAM, in 4-KiB pages with permissions `rwx`.
    pub fn ept_identity(&mut self, rwx: u64) {
        for page in 0..RAM >> 12 {
            self.ept_map(page << 12, page << 12 | 0x30 | rwx, 1);
        }
    }

    fn ept_table(&mut self) -> u64 {
        self.next_ept += 0x1000;
        self.next_ept - 0x1000
    }

    /// The error code of the page fault that `result` must be, at `linear`.
    #[track_caller]
    pub fn page_fault<T: std::fmt::Debug>(&self, linear: u64, result: Exec<T>) -> u32 {
        assert_eq!(result.err(), Some(Stop::Fault));
        assert_eq!((self.cpu.fault.vector, self.cpu.fault.payload), (vector::PF, linear));
        self.cpu.fault.error.unwrap()
    }

    /// Asserts a VM exit; its reason and qualification.
    #[track_caller]
    pub fn exit<T: std::fmt::Debug>(&self, result: Exec<T>) -> (u32, u64) {
        assert_eq!(result.err(), Some(Stop::Exit));
        (self.cpu.exit.reason, self.cpu.exit.qualification)
    }

    pub fn read(&mut self, linear: u64) -> Exec<u64> {
        self.cpu.read::<u64>(linear)
    }

    pub fn write(&mut self, linear: u64, value: u64) -> Exec {
        self.cpu.write(linear, value)
    }
}
