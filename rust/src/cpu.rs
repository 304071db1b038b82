//! One logical processor: the flat state plus everything private that makes it run.
//!
//! This file only defines the structure; each layer implements its own methods on [`Cpu`] beside its code
//! (`mmu/access.rs`, `interpreter/*.rs`, `vmx/*.rs`).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};

use crate::clock::Clock;
use crate::decode::BlockCache;
use crate::interpreter::events::Events;
use crate::interpreter::vector::VectorUnit;
use crate::memory::Memory;
use crate::mmu::{Invalidation, Mmu};
use crate::state::{State, cr, flag, seg};
use crate::state_block::StateBlock;
use crate::stop::{Event, EventKind, Stop};
use crate::translator::{Outcome, Translator};
use crate::vmx::{Controls, ExitInfo, Model, Unit, VmcsPage};

/// Bits of [`Cpu::attention`]: why the run loop must look up at the next instruction boundary.
pub mod attention {
    /// `kick()`: ends the run with an external-interrupt exit. Sticky until that exit.
    pub const KICK: u32 = 1;
    /// Another core asks for TLB or code invalidation (see `mmu::shootdown`).
    pub const SHOOTDOWN: u32 = 2;
    /// The run is to be abandoned (process ends): `enter` returns at once.
    pub const STOP: u32 = 4;
    /// An external interrupt with a vector, [`super::Doorbell::vector`].
    pub const INTERRUPT: u32 = 8;
    /// What ends a sleep.
    pub const WAKES: u32 = KICK | STOP | INTERRUPT;
}

/// What others may reach of a core while it runs in its own thread.
#[derive(Default, Debug)]
pub struct Doorbell {
    /// Bits of [`attention`].
    pub bits: AtomicU32,
    /// The vector of [`attention::INTERRUPT`].
    pub vector: AtomicU8,
    /// Shootdown requests made so far.
    pub requested: AtomicU64,
    /// Shootdown requests acknowledged so far.
    pub acknowledged: AtomicU64,
    /// The requests themselves.
    pub requests: Mutex<Vec<Invalidation>>,
    /// The core is in its run loop: requesters wait for it. Otherwise it serves requests before it runs.
    pub inside: AtomicBool,
}

/// Size of code and of addresses by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Bits {
    B16 = 0,
    B32 = 1,
    B64 = 2,
}

/// What is derived from the state and asked at each instruction. Recomputed by [`Cpu::update_mode`].
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Code size: CS.L, CS.D, EFER.LMA, and 16-bit in real and virtual-8086 mode.
    pub bits: Bits,
    /// Current privilege level (SS.DPL; 0 in real mode, 3 in virtual-8086).
    pub cpl: u8,
    /// CR0.PE = 1 and RFLAGS.VM = 0.
    pub protected: bool,
    /// RFLAGS.VM = 1.
    pub v8086: bool,
    /// EFER.LMA = 1.
    pub long: bool,
    /// SS.B: stack pointer is ESP (in 64-bit mode: always RSP).
    pub stack32: bool,
    /// CR0.AM, RFLAGS.AC and CPL 3: data accesses must be aligned (#AC).
    pub align_check: bool,
}

/// A processor. Lives in one thread at a time; others reach it through [`Doorbell`] and [`Memory`] only.
pub struct Cpu {
    /// Architectural state, shared with Python while not running.
    pub state: StateBlock,
    /// Where the next instruction begins; set by the run loop before an instruction executes (so that
    /// its length is `next_rip - rip`), changed by branches, copied to `rip` when the instruction is done.
    pub next_rip: u64,
    /// Derived mode.
    pub mode: Mode,
    /// Host-physical memory of the machine.
    pub memory: Arc<Memory>,
    /// Software TLBs and the address space in force.
    pub mmu: Mmu,
    /// Decoded blocks.
    pub blocks: BlockCache,
    /// Native execution of vector and x87 instructions.
    pub vector: VectorUnit,
    /// Controls of the current VMCS, unpacked at entry.
    pub ctl: Controls,
    /// The current VMCS.
    pub vmcs: VmcsPage,
    /// What VM entries remember of each other.
    pub vt: Unit,
    /// Details of [`Stop::Fault`].
    pub fault: Event,
    /// Details of [`Stop::Exit`].
    pub exit: ExitInfo,
    /// The event being delivered, if any: what IDT-vectoring information reports.
    pub delivering: Option<Event>,
    /// What event priority remembers between boundaries; reset at each VM entry.
    pub events: Events,
    /// What this processor offers (CPUID and VMX capability MSRs).
    pub model: Arc<Model>,
    /// Host or virtual time.
    pub clock: Clock,
    /// Requests from other threads.
    pub doorbell: Arc<Doorbell>,
    /// The run loop asks `pending_event` before the next instruction. It sets this itself from
    /// `events_flagged` after any instruction that may have changed the answer.
    pub boundary: bool,
    /// Next time (nanoseconds of the clock) at which `pending_event` has something to do, such as the
    /// VMX-preemption timer; `u64::MAX` = none.
    pub timer_deadline: u64,
    /// `state.retired` at which the current slice of the run ends; REP instructions cut themselves there.
    pub stop_at: u64,
    /// Accesses of the current instruction answered from `state.replay` so far.
    pub replay_cursor: u64,
    /// The translator, where it is used.
    pub translator: Option<Box<Translator>>,
    /// How its last helper ended.
    pub(crate) outcome: Outcome,
}

impl Cpu {
    /// A processor after reset over `memory`.
    #[must_use]
    pub fn new(memory: Arc<Memory>, model: Arc<Model>, clock: Clock) -> Self {
        let mut cpu = Self {
            state: StateBlock::new(State::reset()),
            next_rip: 0,
            mode: Mode {
                bits: Bits::B16,
                cpl: 0,
                protected: false,
                v8086: false,
                long: false,
                stack32: false,
                align_check: false,
            },
            memory,
            mmu: Mmu::default(),
            blocks: BlockCache::default(),
            vector: VectorUnit::default(),
            ctl: Controls::default(),
            vmcs: VmcsPage::default(),
            vt: Unit::default(),
            fault: Event { vector: 0, kind: EventKind::Hardware, error: None, payload: 0, length: 0 },
            exit: ExitInfo::default(),
            delivering: None,
            events: Events::default(),
            model,
            clock,
            doorbell: Arc::new(Doorbell::default()),
            boundary: true,
            timer_deadline: u64::MAX,
            stop_at: 0,
            replay_cursor: 0,
            translator: None,
            outcome: Outcome::default(),
        };
        cpu.memory.register_core(&cpu.doorbell);
        cpu.update_mode();
        cpu
    }

    /// Recomputes [`Mode`]. Call after any change of CR0, EFER, CS, SS, RFLAGS.VM or RFLAGS.AC.
    pub fn update_mode(&mut self) {
        let s = &*self.state;
        let protected_mode = s.cr0 & cr::CR0_PE != 0;
        let v8086 = protected_mode && s.rflags & flag::VM != 0;
        let protected = protected_mode && !v8086;
        let long = s.efer & cr::EFER_LMA != 0;
        let cs = &s.seg[seg::CS];
        let ss = &s.seg[seg::SS];
        let bits = if long && cs.access & (1 << 13) != 0 {
            Bits::B64
        } else if !v8086 && cs.access & (1 << 14) != 0 {
            Bits::B32 // also in real mode: just after PE is cleared the code segment keeps D
        } else {
            Bits::B16
        };
        let cpl = if v8086 {
            3
        } else if protected {
            ((ss.access >> 5) & 3) as u8
        } else {
            0
        };
        self.mode = Mode {
            bits,
            cpl,
            protected,
            v8086,
            long,
            stack32: ss.access & (1 << 14) != 0,
            align_check: cpl == 3 && s.cr0 & cr::CR0_AM != 0 && s.rflags & flag::AC != 0,
        };
        self.mmu_view_changed();
    }

    /// Current privilege level.
    #[inline]
    #[must_use]
    pub fn cpl(&self) -> u8 {
        self.mode.cpl
    }

    /// Length in bytes of the instruction that executes now (0 at a boundary).
    #[inline]
    #[must_use]
    pub fn insn_len(&self) -> u8 {
        (self.next_rip.wrapping_sub(self.state.rip) & 15) as u8
    }

    /// Records an exception; return its result as the error: `return Err(cpu.raise(vector::GP, Some(0)))`.
    #[cold]
    pub fn raise(&mut self, vector: u8, error: Option<u32>) -> Stop {
        self.fault = Event { vector, kind: EventKind::Hardware, error, payload: 0, length: 0 };
        Stop::Fault
    }

    /// Records #PF at linear address `linear` with the SDM's page-fault error code.
    #[cold]
    pub fn raise_pf(&mut self, linear: u64, error: u32) -> Stop {
        self.fault = Event {
            vector: crate::stop::vector::PF,
            kind: EventKind::Hardware,
            error: Some(error),
            payload: linear,
            length: 0,
        };
        Stop::Fault
    }

    /// #GP(0).
    #[cold]
    pub fn gp0(&mut self) -> Stop {
        self.raise(crate::stop::vector::GP, Some(0))
    }

    /// #UD.
    #[cold]
    pub fn ud(&mut self) -> Stop {
        self.raise(crate::stop::vector::UD, None)
    }
}
