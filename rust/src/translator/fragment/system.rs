//! Short system instructions in line. What a VMCS, CR4 or the clock has to say is asked of the hot data
//! (`Refused`): where it says no, the helper takes over.

use iced_x86::{Code, Mnemonic as M, OpKind, Register};

use super::status::Flags;
use super::{Builder, Cold};
use crate::decode::Insn;
use crate::state::seg;
use crate::translator::asm::{Address, cc, reg};
use crate::translator::classify::MemoryOperand;
use crate::translator::glue::{flags_aside, flags_back, gpr, host, state};
use crate::translator::hot::hot;
use crate::translator::variant::SUPERVISOR;

/// An instruction of this file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum System {
    /// RDTSC; true: RDTSCP.
    TimeStamp(bool),
    /// RDFSBASE, RDGSBASE, by segment.
    ReadBase(usize),
    /// WRFSBASE, WRGSBASE.
    WriteBase(usize),
    /// MOV from a segment register.
    ReadSegment(usize),
    /// MOV from CR2 (false) or CR3, at CPL 0.
    ReadControl(bool),
    /// PAUSE.
    Pause,
    /// CLD.
    ClearDirection,
    /// SYSCALL at CPL 3.
    Call,
    /// SYSRETQ at CPL 0.
    Return,
    /// IRETQ at CPL 0.
    InterruptReturn,
    /// A call of shared code, at CPL 0.
    Register(Access),
}

/// See [`crate::translator::registers`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// VMREAD to a register.
    VmRead,
    /// VMWRITE of a register.
    VmWrite,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
}

impl System {
    /// Which one `insn` is, if any.
    #[must_use]
    pub fn of(insn: &Insn, variant: u8) -> Option<Self> {
        let i = &insn.iced;
        let bmi2 = is_x86_feature_detected!("bmi2");
        Some(match i.mnemonic() {
            M::Rdtsc if bmi2 => Self::TimeStamp(false),
            M::Rdtscp if bmi2 => Self::TimeStamp(true),
            M::Rdfsbase => Self::ReadBase(seg::FS),
            M::Rdgsbase => Self::ReadBase(seg::GS),
            M::Wrfsbase if bmi2 => Self::WriteBase(seg::FS),
            M::Wrgsbase if bmi2 => Self::WriteBase(seg::GS),
            M::Pause => Self::Pause,
            M::Syscall if variant & SUPERVISOR == 0 => Self::Call,
            M::Sysretq if variant & SUPERVISOR != 0 => Self::Return,
            M::Iretq if variant & SUPERVISOR != 0 => Self::InterruptReturn,
            M::Rdmsr if variant & SUPERVISOR != 0 => Self::Register(Access::ReadMsr),
            M::Wrmsr if variant & SUPERVISOR != 0 => Self::Register(Access::WriteMsr),
            M::Vmread if variant & SUPERVISOR != 0 && i.op0_kind() == OpKind::Register => {
                Self::Register(Access::VmRead)
            }
            M::Vmwrite if variant & SUPERVISOR != 0 && i.op1_kind() == OpKind::Register => {
                Self::Register(Access::VmWrite)
            }
            M::Cld if bmi2 => Self::ClearDirection,
            M::Mov if i.op1_kind() == OpKind::Register && i.op1_register().is_segment_register() => {
                if insn.address_mask == 0xffff {
                    return None;
                }
                Self::ReadSegment(i.op1_register().number())
            }
            M::Mov if variant & SUPERVISOR != 0 && i.code() == Code::Mov_r64_cr => match i.op1_register() {
                Register::CR2 => Self::ReadControl(false),
                Register::CR3 => Self::ReadControl(true),
                _ => return None,
            },
            _ => return None,
        })
    }
}

impl Builder<'_> {
    pub(super) fn system(&mut self, n: usize, system: System) -> Option<bool> {
        match system {
            System::TimeStamp(processor) => self.time_stamp(n, processor),
            System::ReadBase(segment) => self.read_base(n, segment),
            System::WriteBase(segment) => self.write_base(n, segment),
            System::ReadSegment(segment) => self.read_segment(n, segment)?,
            System::ReadControl(cr3) => self.read_control(n, cr3),
            System::Call | System::Return => return self.crossing(n, system == System::Call),
            System::InterruptReturn => return self.interrupt_return(n),
            System::Register(access) => self.register(n, access),
            System::Pause => {
                let refused = self.unless_zero(n, Some(hot!(refused.pause)));
                self.refused(n, vec![refused]);
            }
            System::ClearDirection => {
                self.a.load(reg::S0, state!(rflags));
                self.select_bits(reg::S0, hot!(no_direction_mask));
                self.a.store(reg::S0, state!(rflags));
            }
        }
        self.behind(n)
    }

    /// SYSCALL or SYSRETQ, the last of its block.
    fn crossing(&mut self, n: usize, call: bool) -> Option<bool> {
        let site = self.site(n, None);
        if call {
            self.linear_of(reg::S0, self.offsets[n + 1] as i64);
        }
        self.a.mov_imm(reg::S1, self.context.first_site + site as u32);
        self.jump_out(if call { self.context.glue.syscall } else { self.context.glue.sysret });
        Some(true)
    }

    /// IRETQ, the last of its block.
    fn interrupt_return(&mut self, n: usize) -> Option<bool> {
        let saved = self.flags_may_go(n);
        self.a.load(reg::S0, state!(gdtr_base));
        let site = self.translate_without_flags(n, MemoryOperand { size: 8, written: false, aligned: false }, saved);
        self.a.mov_imm(reg::S1, self.context.first_site + site as u32);
        self.jump_out(self.context.glue.interrupt_return);
        Some(true)
    }

    /// What `registers` does, or else the helper; both go on behind it.
    fn register(&mut self, n: usize, access: Access) {
        self.flags_may_go(n);
        let glue = self.context.glue;
        let routine = match access {
            Access::VmRead => {
                self.encoding(n, 1);
                glue.vmread
            }
            Access::VmWrite => {
                let value = self.address_register(self.insns[n].iced.op1_register().number() as u8, reg::S1);
                self.a.store(value, hot!(saved_rcx));
                self.encoding(n, 0);
                glue.vmwrite
            }
            Access::ReadMsr => glue.rdmsr,
            Access::WriteMsr => glue.wrmsr,
        };
        let site = self.site(n, None);
        self.a.mov_imm(reg::S1, self.context.first_site + site as u32);
        let at = self.a.call_later();
        self.outside(at, routine);
        if access == Access::VmRead {
            self.set_guest(self.insns[n].iced.op0_register().number() as u8, reg::S0, true);
        }
        if matches!(access, Access::VmRead | Access::VmWrite) {
            self.flags = Flags { host: true, saved: false };
        }
        self.resumes_here(site);
    }

    /// S0 = the encoding of a VMCS field, which `operand` holds.
    fn encoding(&mut self, n: usize, operand: u32) {
        let from = self.address_register(self.insns[n].iced.op_register(operand).number() as u8, reg::S0);
        if from != reg::S0 {
            self.a.mov(reg::S0, from);
        }
    }

    /// Branches away unless the word at `disp`, or S0, is 0; the flags stay where they live. Clobbers S1, and S0 if it
    /// was not asked.
    fn unless_zero(&mut self, n: usize, disp: Option<i32>) -> usize {
        if !self.live[n] {
            match disp {
                Some(disp) => {
                    self.a.op_mem(true, 0x83, 7, Address::base(reg::RSP, disp)); // cmp qword [disp], 0
                    self.a.bytes(&[0]);
                }
                None => self.a.op_reg(true, 0x85, reg::S0, reg::S0), // test s0, s0
            }
            return self.a.jcc_later(cc::NE);
        }
        self.a.mov(reg::S1, reg::RCX);
        match disp {
            Some(disp) => self.a.load(reg::RCX, disp),
            None => self.a.mov(reg::RCX, reg::S0),
        }
        self.a.bytes(&[0xe3, 8]); // jrcxz over the next two
        self.a.mov(reg::RCX, reg::S1);
        let away = self.a.jmp_later();
        self.a.mov(reg::RCX, reg::S1);
        away
    }

    /// The helper executes instruction `n` for those that come `from` these places: by this site.
    fn refused(&mut self, n: usize, from: Vec<usize>) -> usize {
        let site = self.site(n, None);
        self.cold.push(Cold { from, saved: false, site });
        if n + 1 < self.insns.len() {
            self.resumes_here(site);
        }
        site
    }

    /// A guest register from S0 or the like, `wide` or its lower half zero-extended.
    fn set_guest(&mut self, guest: u8, from: u8, wide: bool) {
        let into = host(guest).unwrap_or(from);
        if !wide {
            self.a.op_reg(false, 0x89, from, into);
        } else if into != from {
            self.a.mov(into, from);
        }
        if host(guest).is_none() {
            self.a.store(into, gpr(guest));
        }
    }

    /// The guest's counter: that of the host from the anchor on, scaled to nanoseconds. Where it shows that the preemption
    /// timer has run out, that comes before the instruction: the helper exits.
    fn time_stamp(&mut self, n: usize, processor: bool) {
        let sum = |base: u8, index: u8| Address { base: Some(base), index: Some(index), shift: 0, disp: 0 };
        let word = if processor { hot!(refused.time_stamp_and_processor) } else { hot!(refused.time_stamp) };
        let refused = self.unless_zero(n, Some(word));
        self.a.store(reg::RAX, hot!(saved_rax));
        self.a.store(reg::RDX, hot!(saved_rdx));
        self.a.bytes(&[0x0f, 0x31]); // rdtsc
        self.rotate_by_32(reg::RDX);
        self.a.load(reg::S0, hot!(time_anchor));
        self.a.lea(true, reg::RDX, sum(reg::RDX, reg::RAX));
        self.a.lea(true, reg::RDX, sum(reg::RDX, reg::S0));
        // mulx s1, s0, [time_factor]
        self.a.bytes(&[0xc4, 0x62, 0x83 | (!reg::S0 & 15) << 3, 0xf6]);
        self.a.modrm(reg::S1, Address::base(reg::RSP, hot!(time_factor)));
        self.a.load(reg::S0, hot!(time_base));
        self.a.lea(true, reg::RDX, sum(reg::S1, reg::S0));
        // S0 = 0, if the time is less than that of the timer.
        self.a.load(reg::S0, hot!(time_left));
        self.a.lea(true, reg::S0, sum(reg::S1, reg::S0));
        self.a.mov_imm(reg::S1, 63);
        self.shift_by(0x82, reg::S0, reg::S0, reg::S1); // sarx
        self.a.op_reg(true, 0xf7, 2, reg::S0); // not
        let late = self.unless_zero(n, None);
        self.a.op_reg(false, 0x89, reg::RDX, reg::RAX); // mov eax, edx
        self.rotate_by_32(reg::RDX);
        self.a.op_reg(false, 0x89, reg::RDX, reg::RDX); // mov edx, edx
        if processor {
            self.a.op_mem(false, 0x8b, reg::RCX, Address::base(reg::RSP, state!(tsc_aux)));
        }
        let site = self.refused(n, vec![refused]);
        self.bind_cold(late);
        self.c.load(reg::RAX, hot!(saved_rax));
        self.c.load(reg::RDX, hot!(saved_rdx));
        self.call_handler(false, site);
    }

    /// RORX r64, r64, 32 of RAX to RDI.
    fn rotate_by_32(&mut self, register: u8) {
        self.a.bytes(&[0xc4, 0xe3, 0xfb, 0xf0, 0xc0 | register << 3 | register, 32]);
    }

    fn base(segment: usize) -> i32 {
        state!(seg) + 32 * segment as i32 + 8
    }

    fn read_base(&mut self, n: usize, segment: usize) {
        let target = self.insns[n].iced.op0_register();
        let refused = self.unless_zero(n, Some(hot!(refused.segment_bases)));
        self.a.load(reg::S0, Self::base(segment));
        self.set_guest(target.number() as u8, reg::S0, target.size() == 8);
        self.refused(n, vec![refused]);
    }

    fn write_base(&mut self, n: usize, segment: usize) {
        let source = self.insns[n].iced.op0_register();
        let guest = source.number() as u8;
        let mut refused = vec![self.unless_zero(n, Some(hot!(refused.segment_bases)))];
        if source.size() == 8 {
            // Canonical: the difference from its lower 48 bits, sign-extended, is 0.
            let from = self.address_register(guest, reg::S0);
            self.a.mov_imm(reg::S1, 16);
            self.shift_by(0x81, reg::S0, from, reg::S1); // shlx
            self.shift_by(0x82, reg::S0, reg::S0, reg::S1); // sarx
            self.a.op_reg(true, 0xf7, 2, reg::S0); // not
            let from = self.address_register(guest, reg::S1);
            self.a.lea(true, reg::S0, Address { base: Some(reg::S0), index: Some(from), shift: 0, disp: 1 });
            refused.push(self.unless_zero(n, None));
        }
        let from = self.address_register(guest, reg::S0);
        if source.size() == 8 {
            self.a.store(from, Self::base(segment));
        } else {
            self.a.op_reg(false, 0x89, from, reg::S0);
            self.a.store(reg::S0, Self::base(segment));
        }
        self.refused(n, refused);
    }

    /// SHLX (`pp` 81H) or SARX (82H) into, from, by.
    fn shift_by(&mut self, pp: u8, into: u8, from: u8, by: u8) {
        let high = !((into >> 3) << 7 | (from >> 3) << 5) & 0xe0;
        self.a.bytes(&[0xc4, high | 2, pp | (!by & 15) << 3, 0xf7, 0xc0 | (into & 7) << 3 | from & 7]);
    }

    fn read_segment(&mut self, n: usize, segment: usize) -> Option<()> {
        let selector = state!(seg) + 32 * segment as i32;
        if self.insns[n].iced.op0_kind() == OpKind::Register {
            let target = self.insns[n].iced.op0_register();
            let guest = target.number() as u8;
            if target.size() != 2 {
                self.load_guest(guest, Address::base(reg::RSP, selector));
                return Some(());
            }
            // Only the low word changes.
            let into = host(guest).unwrap_or(reg::S0);
            self.a.bytes(&[0x66]);
            self.a.op_mem(false, 0x8b, into, Address::base(reg::RSP, selector));
            if host(guest).is_none() {
                self.a.bytes(&[0x66]);
                self.a.op_mem(false, 0x89, into, Address::base(reg::RSP, gpr(guest)));
            }
            return Some(());
        }
        let site = self.operand(n, MemoryOperand { size: 2, written: true, aligned: false })?;
        self.a.load(reg::S1, selector);
        self.a.bytes(&[0x66]);
        self.a.op_mem(false, 0x89, reg::S1, Address::base(reg::S0, 0));
        self.resumes_here(site);
        Some(())
    }

    fn read_control(&mut self, n: usize, cr3: bool) {
        let guest = self.insns[n].iced.op0_register().number() as u8;
        if !cr3 {
            self.load_guest(guest, Address::base(reg::RSP, state!(cr2)));
            return;
        }
        let refused = self.unless_zero(n, Some(hot!(refused.cr3)));
        self.load_guest(guest, Address::base(reg::RSP, state!(cr3)));
        self.refused(n, vec![refused]);
    }

    /// S0 or S1 = its bits in the mask at `[rsp + mask]`, flags untouched (PEXT, PDEP).
    fn select_bits(&mut self, register: u8, mask: i32) {
        for pp in [2, 3] {
            // VEX.LZ.F3/F2.0F38.W1 F5 /r: register = register pext/pdep [mask]
            self.a.bytes(&[0xc4, 0x42 | 0x20, 0x80 | (!register & 15) << 3 | pp, 0xf5]);
            self.a.modrm(register, Address::base(reg::RSP, mask));
        }
    }

    pub(super) fn push_flags(&mut self, n: usize) -> Option<bool> {
        self.a.bytes(&[0x9c, 0x41, 0x5b]); // pushfq; pop r11
        self.select_bits(reg::S1, hot!(status_mask));
        self.a.load(reg::S0, state!(rflags));
        self.select_bits(reg::S0, hot!(pushed_mask));
        let both = Address { base: Some(reg::S0), index: Some(reg::S1), shift: 0, disp: 0 };
        self.a.lea(true, reg::S0, both);
        self.a.store(reg::S0, hot!(target));
        if let Some(site) = self.push_target(n) {
            self.resumes_here(site);
        }
        Some(false)
    }

    pub(super) fn swap_gs(&mut self) -> Option<bool> {
        let base = state!(seg) + 32 * seg::GS as i32 + 8;
        self.a.load(reg::S0, base);
        self.a.load(reg::S1, state!(kernel_gs_base));
        self.a.store(reg::S1, base);
        self.a.store(reg::S0, state!(kernel_gs_base));
        Some(false)
    }

    /// RFLAGS without IF, in S0.
    fn without_interrupts(&mut self) {
        self.a.load(reg::S0, state!(rflags));
        self.select_bits(reg::S0, hot!(no_interrupts_mask));
    }

    pub(super) fn cli(&mut self, n: usize) -> Option<bool> {
        self.without_interrupts();
        self.a.store(reg::S0, state!(rflags));
        self.behind(n)
    }

    /// STI where its shadow cannot be seen: what follows is an instruction that neither faults nor exits, it
    /// will execute before the budget ends, and nobody waits for an interrupt window.
    pub(super) fn sti(&mut self, n: usize) -> Option<bool> {
        if !self.context.harmless_next {
            return None;
        }
        flags_aside(&mut self.a);
        self.a.op_mem(true, 0x83, 7, Address::base(reg::RSP, hot!(window))); // cmp qword [window], 0
        self.a.bytes(&[0]);
        let window = self.a.jcc_later(cc::NE);
        self.a.op_mem(true, 0x83, 7, Address::base(reg::RSP, hot!(budget))); // cmp qword [budget], 64
        self.a.bytes(&[64]);
        let short = self.a.jcc_later(cc::L);
        flags_back(&mut self.a);
        self.without_interrupts();
        self.a.lea(true, reg::S0, Address::base(reg::S0, crate::state::flag::IF as i32));
        self.a.store(reg::S0, state!(rflags));
        let site = self.site(n, None);
        self.cold.push(Cold { from: vec![window, short], saved: true, site });
        self.behind(n)
    }

    /// STAC and CLAC: the flag, and the TLB array that goes with it.
    pub(super) fn access_check(&mut self, n: usize, off: bool) -> Option<bool> {
        self.a.load(reg::S0, state!(rflags));
        self.select_bits(reg::S0, hot!(no_ac_mask));
        if off {
            self.a.lea(true, reg::S0, Address::base(reg::S0, crate::state::flag::AC as i32));
        }
        self.a.store(reg::S0, state!(rflags));
        self.a.load(reg::S0, if off { hot!(tlb_unchecked) } else { hot!(tlb_checked) });
        self.a.store(reg::S0, hot!(tlb));
        self.behind(n)
    }
}
