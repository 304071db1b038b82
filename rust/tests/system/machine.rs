//! A processor over 16 MiB with a GDT, an IDT whose handlers end the run, a TSS and identity page tables.

use std::sync::Arc;

use silicon::clock::Clock;
use silicon::cpu::Cpu;
use silicon::memory::Memory;
use silicon::state::{Segment, State, cr, gpr, seg};
use silicon::stop::Stop;
use silicon::vmx::{Model, reason};

pub const RAM: u64 = 16 << 20;
pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
/// Stack of the code under test.
pub const STACK: u64 = 0x8000;
/// Stack for CPL 0 in the TSS.
pub const STACK0: u64 = 0x7000;
/// IST1.
pub const IST1: u64 = 0x6000;
/// Handler of vector v: `HANDLERS + 16 * v`.
pub const HANDLERS: u64 = 0x2_0000;
pub const CODE: u64 = 0x1_0000;
pub const DATA: u64 = 0x4_0000;
pub const PAGES: u64 = 0x10_0000;
/// I/O permission bitmap and redirection bitmap in the TSS.
pub const IO_MAP: u64 = 0x88;

/// VMCALL: ends the run from any mode and privilege level.
pub const END: &[u8] = &[0x0f, 0x01, 0xc1];

pub mod sel {
    pub const CODE0: u16 = 0x08;
    pub const DATA0: u16 = 0x10;
    pub const CODE3: u16 = 0x1b;
    pub const DATA3: u16 = 0x23;
    pub const TSS: u16 = 0x28;
    pub const CODE64: u16 = 0x38;
    pub const CODE64_3: u16 = 0x43;
    /// Free for tests, two slots apart.
    pub const A: u16 = 0x48;
    pub const B: u16 = 0x58;
    /// Beyond the limit of the GDT.
    pub const BEYOND: u16 = 0x80;
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Out {
    /// The code under test reached its end.
    End,
    /// The handler of a vector was entered.
    Handler(u8),
    /// A VM exit: reason and qualification.
    Exit(u32, u64),
    /// Neither, within a hundred instructions.
    Running,
    Missing,
}

pub struct Machine {
    pub cpu: Cpu,
    pub memory: Arc<Memory>,
}

/// An 8-byte code or data descriptor: `access` is byte 5, `flags` the upper four bits of byte 6.
pub fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 15) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// A gate: low 8 bytes.
pub fn gate(selector: u16, offset: u64, access: u64, count: u64) -> u64 {
    offset & 0xffff | u64::from(selector) << 16 | count << 32 | access << 40 | (offset >> 16 & 0xffff) << 48
}

fn flat(selector: u16, access: u64) -> Segment {
    Segment { selector: u64::from(selector), base: 0, limit: 0xffff_ffff, access }
}

impl Machine {
    fn new() -> Self {
        let memory = Arc::new(Memory::new(RAM, 0x1000).expect("memory"));
        let mut cpu = Cpu::new(Arc::clone(&memory), Arc::new(Model::default()), Clock::Virtual { skipped: 0 });
        *cpu.state = State::reset();
        let mut m = Self { cpu, memory };
        for v in 0..256 {
            m.write_bytes(HANDLERS + 16 * v, END);
        }
        let s = &mut *m.cpu.state;
        s.cr0 |= cr::CR0_NE;
        s.rflags = 2;
        s.gpr[gpr::RSP] = STACK;
        m
    }

    /// Real-address mode: code at CODE (CS = 1000H), handlers through the table at address 0.
    pub fn real() -> Self {
        let mut m = Self::new();
        for v in 0..256_u64 {
            m.write32(4 * v, ((0x2000 << 16) | (16 * v)) as u32);
        }
        let s = &mut *m.cpu.state;
        s.seg[seg::CS] = Segment { selector: 0x1000, base: CODE, limit: 0xffff, access: 0x9b };
        s.idtr_limit = 0x3ff;
        m.update();
        m
    }

    fn tables(&mut self) {
        let entries: [(u16, u64); 6] = [
            (sel::CODE0, descriptor(0, 0xf_ffff, 0x9b, 0xc)),
            (sel::DATA0, descriptor(0, 0xf_ffff, 0x93, 0xc)),
            (sel::CODE3, descriptor(0, 0xf_ffff, 0xfb, 0xc)),
            (sel::DATA3, descriptor(0, 0xf_ffff, 0xf3, 0xc)),
            (sel::CODE64, descriptor(0, 0xf_ffff, 0x9b, 0xa)),
            (sel::CODE64_3, descriptor(0, 0xf_ffff, 0xfb, 0xa)),
        ];
        for (selector, value) in entries {
            self.set_descriptor(selector, value);
        }
        self.set_descriptor(sel::TSS, descriptor(TSS, 0x2100, 0x8b, 0));
        let s = &mut *self.cpu.state;
        (s.gdtr_base, s.gdtr_limit) = (GDT, 0x7f);
        s.idtr_base = IDT;
        s.seg[seg::TR] = Segment { selector: u64::from(sel::TSS), base: TSS, limit: 0x2100, access: 0x8b };
        s.seg[seg::LDTR] = Segment { access: 1 << 16, ..Segment::default() };
        self.write16(TSS + 102, IO_MAP as u16);
    }

    /// Protected mode without paging, 32-bit flat segments, at privilege level `cpl`. Gates of vectors 80H
    /// and 3 have DPL 3.
    pub fn protected(cpl: u8) -> Self {
        let mut m = Self::new();
        m.tables();
        for v in 0..256_u64 {
            let dpl = if v == 0x80 || v == 3 { 0x60 } else { 0 };
            m.set_gate(v as u8, gate(sel::CODE0, HANDLERS + 16 * v, 0x8e | dpl, 0));
        }
        m.write32(TSS + 4, STACK0 as u32);
        m.write16(TSS + 8, sel::DATA0);
        let s = &mut *m.cpu.state;
        s.cr0 |= cr::CR0_PE;
        s.idtr_limit = 0x7ff;
        m.set_cpl(cpl, sel::CODE0, sel::CODE3);
        m
    }

    /// 64-bit mode, first 16 MiB mapped one to one for user and supervisor.
    pub fn long(cpl: u8) -> Self {
        let mut m = Self::new();
        m.tables();
        m.set_descriptor(sel::TSS + 8, 0);
        m.write64(PAGES, (PAGES + 0x1000) | 7);
        m.write64(PAGES + 0x1000, (PAGES + 0x2000) | 7);
        for k in 0..8 {
            m.write64(PAGES + 0x2000 + 8 * k, k << 21 | 0x87);
        }
        for v in 0..256_u64 {
            let dpl = if v == 0x80 || v == 3 { 0x60 } else { 0 };
            m.set_gate64(v as u8, gate(sel::CODE64, HANDLERS + 16 * v, 0x8e | dpl, 0), 0);
        }
        m.write64(TSS + 4, STACK0);
        m.write64(TSS + 0x24, IST1);
        let s = &mut *m.cpu.state;
        s.cr0 |= cr::CR0_PE | cr::CR0_PG | cr::CR0_WP;
        s.cr3 = PAGES;
        s.cr4 = cr::CR4_PAE | cr::CR4_VMXE;
        s.efer = cr::EFER_LME | cr::EFER_LMA | cr::EFER_SCE | cr::EFER_NXE;
        s.idtr_limit = 0xfff;
        m.set_cpl(cpl, sel::CODE64, sel::CODE64_3);
        m.cpu.mmu_context_changed();
        m
    }

    fn set_cpl(&mut self, cpl: u8, code0: u16, code3: u16) {
        let long = code0 == sel::CODE64;
        let size = if long { 0xa000 } else { 0xc000 };
        let s = &mut *self.cpu.state;
        let (cs, ss, dpl) = if cpl == 0 { (code0, sel::DATA0, 0) } else { (code3, sel::DATA3, 0x60) };
        s.seg[seg::CS] = flat(cs, size | 0x9b | dpl);
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            s.seg[n] = flat(ss, 0xc093 | dpl);
        }
        s.rip = CODE;
        self.update();
    }

    pub fn update(&mut self) {
        self.cpu.update_mode();
        self.cpu.mmu_context_changed();
    }

    pub fn set_descriptor(&mut self, selector: u16, value: u64) {
        self.write64(GDT + u64::from(selector & 0xfff8), value);
    }

    pub fn get_descriptor(&self, selector: u16) -> u64 {
        self.memory.read::<u64>(GDT + u64::from(selector & 0xfff8))
    }

    pub fn set_gate(&mut self, vector: u8, value: u64) {
        self.write64(IDT + 8 * u64::from(vector), value);
    }

    pub fn set_gate64(&mut self, vector: u8, low: u64, high: u64) {
        self.write64(IDT + 16 * u64::from(vector), low);
        self.write64(IDT + 16 * u64::from(vector) + 8, high);
    }

    pub fn write_bytes(&mut self, pa: u64, bytes: &[u8]) {
        self.memory.write_bytes(pa, bytes);
    }

    pub fn write16(&mut self, pa: u64, value: u16) {
        self.memory.write(pa, value);
    }

    pub fn write32(&mut self, pa: u64, value: u32) {
        self.memory.write(pa, value);
    }

    pub fn write64(&mut self, pa: u64, value: u64) {
        self.memory.write(pa, value);
    }

    /// The word `k` places above the top of the stack.
    pub fn stack16(&self, k: u64) -> u64 {
        let s = &self.cpu.state;
        u64::from(self.memory.read::<u16>(s.seg[seg::SS].base + (s.gpr[gpr::RSP] & 0xffff) + 2 * k))
    }

    pub fn stack32(&self, k: u64) -> u64 {
        u64::from(self.memory.read::<u32>(self.cpu.state.gpr[gpr::RSP] + 4 * k))
    }

    pub fn stack64(&self, k: u64) -> u64 {
        self.memory.read::<u64>(self.cpu.state.gpr[gpr::RSP] + 8 * k)
    }

    pub fn rsp(&self) -> u64 {
        self.cpu.state.gpr[gpr::RSP]
    }

    pub fn rflags(&self) -> u64 {
        self.cpu.state.rflags
    }

    /// Puts `code` and END where CS:RIP points, and runs until something ends it.
    pub fn run(&mut self, code: &[u8]) -> Out {
        let s = &self.cpu.state;
        let base = if s.efer & cr::EFER_LMA != 0 { 0 } else { s.seg[seg::CS].base };
        let at = base + s.rip;
        self.write_bytes(at, code);
        self.write_bytes(at + code.len() as u64, END);
        let end = at + code.len() as u64;
        self.go(end)
    }

    /// Runs on; `end` is the linear address of END.
    pub fn go(&mut self, end: u64) -> Out {
        self.cpu.reset_events();
        let now = self.cpu.clock.now(self.cpu.state.retired);
        match self.cpu.run(now + 100) {
            Stop::Exit if self.cpu.exit.reason == reason::VMCALL => {
                let s = &self.cpu.state;
                let linear = if s.efer & cr::EFER_LMA != 0 && s.seg[seg::CS].access >> 13 & 1 != 0 {
                    s.rip
                } else {
                    s.seg[seg::CS].base + s.rip
                };
                match linear.wrapping_sub(HANDLERS) {
                    _ if linear == end => Out::End,
                    offset if offset < 0x1000 && offset % 16 == 0 => Out::Handler((offset / 16) as u8),
                    _ => Out::Exit(reason::VMCALL, linear),
                }
            }
            Stop::Exit => Out::Exit(self.cpu.exit.reason, self.cpu.exit.qualification),
            Stop::Missing => Out::Missing,
            _ => Out::Running,
        }
    }

    /// Runs `code` and expects a fault with this error code, which the handler finds on its 32-bit stack.
    #[track_caller]
    pub fn faults32(&mut self, code: &[u8], vector: u8, error: u64) {
        assert_eq!(self.run(code), Out::Handler(vector));
        assert_eq!(self.stack32(0), error, "error code");
        assert_eq!(self.stack32(1), CODE, "EIP of the faulting instruction");
    }

    /// The same in 64-bit mode.
    #[track_caller]
    pub fn faults64(&mut self, code: &[u8], vector: u8, error: u64) {
        assert_eq!(self.run(code), Out::Handler(vector));
        assert_eq!(self.stack64(0), error, "error code");
        assert_eq!(self.stack64(1), CODE, "RIP of the faulting instruction");
    }
}
