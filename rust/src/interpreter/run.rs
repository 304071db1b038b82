//! The run loop: boundaries, block lookup, execution of a block, exact stop at instruction N.
//!
//! Events are decided by `pending_event` (system group); this only knows when somebody must be asked.

use std::ptr::null_mut;
use std::sync::atomic::Ordering;
use std::time::Duration;

use iced_x86::{FlowControl, Mnemonic};

use super::events::DEBUGCTL_BTF;
use crate::clock::Clock;
use crate::cpu::{Bits, Cpu, attention};
use crate::decode::{Block, Draft, Insn, ONE_PAGE};
use crate::state::{flag, seg};
use crate::stop::{Exec, Stop, vector};

/// Host clock: instructions between two looks at the clock (well under 50 µs).
const SLICE: u64 = 2000;
/// The same for translated code.
const TRANSLATED_SLICE: u64 = 50_000;
const PAGE: u64 = 4096;
/// `pending_debug`: single-step trap (DR6.BS).
const BS: u64 = 1 << 14;

impl Cpu {
    /// Runs until a VM exit (`Stop::Exit`, details in `cpu.exit`), an instruction that silicon lacks
    /// (`Stop::Missing`), or the deadline in nanoseconds of the core's clock (`Stop::Again`). Under virtual
    /// time the deadline is met exactly: one instruction is one nanosecond.
    pub fn run(&mut self, deadline: u64) -> Stop {
        self.mmu_run_begin();
        let stop = self.run_begun(deadline);
        self.mmu_run_end();
        stop
    }

    /// As [`Cpu::run`], between [`Cpu::mmu_run_begin`] and [`Cpu::mmu_run_end`].
    pub(crate) fn run_begun(&mut self, deadline: u64) -> Stop {
        self.boundary = true;
        loop {
            let now = self.clock.now(self.state.retired);
            if now >= deadline {
                return Stop::Again;
            }
            let mut until = deadline;
            if now >= self.timer_deadline {
                self.boundary = true;
            } else {
                until = until.min(self.timer_deadline);
            }
            let slice = match self.clock {
                // Branches from fragment to fragment look at nothing: a slice ends for that.
                Clock::Virtual { .. } if self.translator.is_some() => (until - now).min(TRANSLATED_SLICE),
                Clock::Virtual { .. } => until - now,
                // Shorter and shorter, so that what is due comes soon: half an instruction a nanosecond is slow.
                Clock::Host { .. } if self.translator.is_some() => ((until - now) / 2).clamp(SLICE, TRANSLATED_SLICE),
                Clock::Host { .. } => SLICE,
            };
            self.stop_at = self.state.retired.wrapping_add(slice);
            if let Err(stop) = self.slice() {
                return stop;
            }
        }
    }

    /// Instructions that may still retire in this slice (at least 1 while an instruction executes): what a
    /// REP instruction obeys.
    #[inline]
    #[must_use]
    pub fn budget(&self) -> u64 {
        self.stop_at.wrapping_sub(self.state.retired)
    }

    /// Runs to `stop_at`. An error ends the run.
    fn slice(&mut self) -> Exec {
        let mut previous: *mut Block = null_mut();
        let mut previous_page = !0;
        while self.state.retired < self.stop_at {
            if self.boundary || self.state.pending_debug != 0 || self.doorbell.bits.load(Ordering::Relaxed) != 0 {
                self.careful_step()?;
                previous = null_mut();
                continue;
            }
            let linear = self.code_linear();
            let before = (self.state.retired, self.state.rip);
            // What follows a block that was interpreted is cold as a rule, and has its own way to its fragment.
            if previous.is_null()
                && let Some(done) = self.run_known(linear)
            {
                self.step_if_stuck(done, before)?;
                continue;
            }
            let block = if previous.is_null() {
                self.find_block(linear)
            } else if linear / PAGE == previous_page {
                // SAFETY: `previous` was found or made in this slice, and dropped when the cache was.
                unsafe { self.follow_near(previous, linear) }
            } else {
                // SAFETY: as above.
                unsafe { self.follow_far(previous, linear) }
            };
            let block = match block {
                Ok(block) => block,
                Err(stop) => {
                    previous = null_mut();
                    self.stopped(stop, None)?;
                    continue;
                }
            };
            if self.translator.is_some() {
                // SAFETY: as below.
                if let Some(done) = unsafe { self.translated(block, linear) } {
                    self.step_if_stuck(done, before)?;
                    previous = null_mut();
                    continue;
                }
            }
            // SAFETY: blocks live until the cache is cleared, which happens in `make` only, never while one executes.
            let block = unsafe { &*block };
            if block.bits != Bits::B64 && self.beyond_limit(block.insns.bytes().len() as u64) {
                self.careful_step()?;
                previous = null_mut();
                continue;
            }
            block.prefetch();
            let done = self.execute(block, block.insns.len());
            previous = null_mut();
            match done {
                Ok(()) if block.chained => {
                    previous = (&raw const *block).cast_mut();
                    previous_page = linear / PAGE;
                }
                Ok(()) => self.boundary = self.events_flagged(),
                Err((stop, insn)) => self.stopped(stop, Some(insn))?,
            }
        }
        Ok(())
    }

    /// Translated code that was entered with this many instructions retired, at this RIP, may have led to a fragment for which
    /// the budget does not reach, though it reached for the first: then one instruction is interpreted.
    #[inline]
    fn step_if_stuck(&mut self, done: Exec, (retired, rip): (u64, u64)) -> Exec {
        done?;
        let stuck = self.state.retired == retired && self.state.rip == rip;
        if stuck && self.translator.as_ref().is_some_and(|t| !t.plain) { self.careful_step() } else { Ok(()) }
    }

    /// Runs translated code from `block`, if it is warm and may be translated.
    ///
    /// # Safety
    /// `block` is a live block, fresh.
    #[inline]
    unsafe fn translated(&mut self, block: *mut Block, linear: u64) -> Option<Exec> {
        // SAFETY: by contract; nobody else holds a reference.
        let block = unsafe { &mut *block };
        if !self.mode_is_translated() || self.budget() < block.insns.len() as u64 {
            self.translator.as_mut()?.plain = false;
            return None;
        }
        if block.warmth < self.translator.as_ref().map_or(u16::MAX, |t| t.warm) {
            block.warmth += 1;
            self.translator.as_mut()?.plain = false;
            return None;
        }
        self.run_translated(block, linear)
    }

    /// Executes the first `limit` instructions of a block, or as many as the slice allows.
    #[inline]
    fn execute<'a>(&mut self, block: &'a Block, limit: usize) -> Result<(), (Stop, &'a Insn)> {
        let limit = limit.min(usize::try_from(self.budget()).unwrap_or(usize::MAX));
        let mask = block.ip_mask();
        let epoch = self.memory.code_epoch();
        let (body, last) = match block.insns.split_last() {
            Some((last, body)) if limit > body.len() => (body, Some(last)),
            _ => (block.insns.get(..limit).unwrap_or_default(), None),
        };
        let mut rip = self.state.rip;
        for (n, insn) in body.iter().enumerate() {
            let next = rip.wrapping_add(u64::from(insn.len)) & mask;
            self.next_rip = next;
            if let Err(stop) = (insn.run)(self, insn) {
                return Err((stop, insn));
            }
            let went = self.next_rip;
            rip = went;
            self.state.rip = went;
            self.state.retired += 1;
            if went != next {
                block.left.set(n as u8 + 1);
                return Ok(());
            }
            // Own writes to code, or what an access left behind: a debug trap, an exit or interrupt of the virtual APIC.
            if self.state.pending_debug != 0 || self.boundary || self.memory.code_epoch() != epoch {
                return Ok(());
            }
        }
        if let Some(insn) = last {
            self.next_rip = rip.wrapping_add(u64::from(insn.len)) & mask;
            if let Err(stop) = (insn.run)(self, insn) {
                return Err((stop, insn));
            }
            self.state.rip = self.next_rip;
            self.state.retired += 1;
        }
        Ok(())
    }

    /// The instruction at `state.rip` (`insn`, if it got that far) did not complete. An error ends the run.
    #[cold]
    pub(crate) fn stopped(&mut self, stop: Stop, insn: Option<&Insn>) -> Exec {
        self.boundary = true;
        match stop {
            Stop::Again => Ok(()),
            Stop::Fault => {
                // A non-canonical address is #SS(0) where the operand's segment is SS (SDM vol. 1, 3.3.7.1);
                // the MMU, which finds it, knows no segments and leaves the address as payload.
                if self.fault.vector == vector::GP
                    && self.fault.payload != 0
                    && self.mode.bits == Bits::B64
                    && insn.is_some_and(|i| i.seg == seg::SS as u8)
                {
                    self.fault.vector = vector::SS;
                }
                let event = self.fault;
                self.replay_end();
                match self.deliver(event) {
                    Ok(()) | Err(Stop::Again) => Ok(()),
                    Err(stop) => Err(stop),
                }
            }
            Stop::Exit | Stop::Missing => Err(stop),
        }
    }

    /// One boundary with everything asked, then one instruction.
    #[inline(never)]
    pub(crate) fn careful_step(&mut self) -> Exec {
        let bits = self.doorbell.bits.load(Ordering::Acquire);
        if bits & attention::STOP != 0 {
            return Err(Stop::Again);
        }
        if bits & attention::SHOOTDOWN != 0 {
            self.service_shootdown();
        }
        match self.pending_event() {
            Ok(()) => {}
            Err(Stop::Again) => return Ok(()),
            Err(stop) => return self.stopped(stop, None),
        }
        if self.state.activity != 0 {
            self.idle();
            return Ok(());
        }
        if self.boundary && bits == 0 && self.state.replay_count | self.state.assist_done == 0 && !self.events_flagged()
        {
            // There was nothing, as after most VM entries: on with whole blocks. (Who asks for one instruction without
            // a boundary has seen that the block cannot run whole.)
            self.boundary = false;
            return Ok(());
        }
        // For REP: whether this boundary's reason is there at the next one too.
        self.boundary = self.iterations_flagged();
        let done = self.find_block(self.code_linear()).map_err(|stop| (stop, None)).and_then(|block| {
            // SAFETY: as in `slice`.
            let block = unsafe { &*block };
            let len = block.insns.first().map_or(1, |i| u64::from(i.len));
            if block.bits != Bits::B64 && self.beyond_limit(len) {
                return Err((self.gp0(), None));
            }
            self.single(block).map_err(|(stop, insn)| (stop, Some(insn)))
        });
        match done {
            Ok(()) => {
                self.replay_end();
                self.boundary = self.events_flagged();
                Ok(())
            }
            Err((stop, insn)) => self.stopped(stop, insn),
        }
    }

    /// HLT that does not exit: nothing executes until an event or the end of the slice. Virtual time warps
    /// there; under the host's clock the thread sleeps in short pieces, so that a kick is seen.
    #[cold]
    fn idle(&mut self) {
        const NAP: Duration = Duration::from_micros(50);
        match &mut self.clock {
            Clock::Virtual { skipped } => {
                *skipped = skipped.wrapping_add(self.stop_at.wrapping_sub(self.state.retired))
            }
            Clock::Host { .. } => std::thread::sleep(NAP),
        }
        self.stop_at = self.state.retired;
        self.boundary = true;
    }

    /// Executes one instruction with what a boundary must know of it: STI and MOV SS blocking ends, RF is
    /// cleared, TF leaves a single-step trap.
    fn single<'a>(&mut self, block: &'a Block) -> Result<(), (Stop, &'a Insn)> {
        let blocking = self.state.interruptibility & 3;
        let flags = self.state.rflags;
        let on_branches = self.state.debugctl & DEBUGCTL_BTF != 0;
        let rip = self.state.rip;
        let done = self.execute(block, 1);
        let Some(insn) = block.insns.first() else { return done };
        let retired = match done {
            Ok(()) => {
                self.state.interruptibility &= !blocking;
                if flags & flag::RF != 0 && !restores_rf(insn.iced.mnemonic()) {
                    self.state.rflags &= !flag::RF;
                }
                true
            }
            Err((Stop::Again, _)) => true,
            Err(_) => false,
        };
        self.events.iterating = matches!(done, Err((Stop::Again, _)));
        // INT n and SYSCALL clear TF before the trap could be taken.
        let stepped = flags & flag::TF != 0 && (self.state.rflags & flag::TF != 0 || !clears_tf(insn.iced.mnemonic()));
        if retired && stepped && (!on_branches || is_taken(insn, rip, self.state.rip)) {
            self.state.pending_debug |= BS;
        }
        done
    }

    /// Linear address of the next instruction.
    #[inline]
    #[must_use]
    pub fn code_linear(&self) -> u64 {
        if self.mode.bits == Bits::B64 {
            self.state.rip
        } else {
            self.state.seg[seg::CS].base.wrapping_add(self.state.rip) & 0xffff_ffff
        }
    }

    /// Some of the next `len` bytes lie beyond the limit of CS.
    fn beyond_limit(&self, len: u64) -> bool {
        self.state.rip.saturating_add(len - 1) > self.state.seg[seg::CS].limit
    }

    /// The block that follows `previous` in its page.
    ///
    /// # Safety
    /// `previous` is a live block.
    #[inline]
    unsafe fn follow_near(&mut self, previous: *mut Block, linear: u64) -> Exec<*mut Block> {
        let offset = (linear % PAGE) as u32;
        // SAFETY: by contract; the reference ends before anything else can reach the block.
        let from = unsafe { &*previous };
        for n in 0..2 {
            if from.near[n] == offset {
                let block = from.near_block[n];
                // SAFETY: linked blocks live as long as the cache that holds them.
                if unsafe { (*block).stale(self.memory.code_epoch()) } {
                    break;
                }
                return Ok(block);
            }
        }
        let decoded = self.blocks.decoded;
        let block = self.find_block(linear)?;
        // Making a block can drop the cache, and `previous` with it. A block that crosses its page must be
        // compared with the mapping each time.
        // SAFETY: `block` was just found; nothing was decoded since, so `previous` is alive.
        unsafe {
            if self.blocks.decoded == decoded && (*block).second_pa == ONE_PAGE {
                (*previous).link_near(offset, block);
            }
        }
        Ok(block)
    }

    /// The block that follows `previous` in another page: found by where that page lies now.
    ///
    /// # Safety
    /// `previous` is a live block.
    #[inline]
    unsafe fn follow_far(&mut self, previous: *mut Block, linear: u64) -> Exec<*mut Block> {
        if self.mode.bits != Bits::B64 && self.beyond_limit(1) {
            return Err(self.gp0());
        }
        let host_pa = self.fetch(linear)?;
        // SAFETY: by contract; the reference ends before anything else can reach the block.
        let from = unsafe { &*previous };
        for (at, block) in from.far {
            if at == host_pa {
                // SAFETY: linked blocks live as long as the cache that holds them.
                if unsafe { (*block).stale(self.memory.code_epoch()) } {
                    break;
                }
                return Ok(block);
            }
        }
        let decoded = self.blocks.decoded;
        let block = self.block_at(linear, host_pa)?;
        // SAFETY: as in `follow_near`.
        unsafe {
            if self.blocks.decoded == decoded && (*block).second_pa == ONE_PAGE {
                (*previous).link_far(host_pa, block);
            }
        }
        Ok(block)
    }

    /// The block at `linear`, fresh, decoded if need be.
    fn find_block(&mut self, linear: u64) -> Exec<*mut Block> {
        if self.mode.bits != Bits::B64 && self.beyond_limit(1) {
            return Err(self.gp0());
        }
        let host_pa = self.fetch(linear)?;
        self.block_at(linear, host_pa)
    }

    fn block_at(&mut self, linear: u64, host_pa: u64) -> Exec<*mut Block> {
        let block = self.blocks.find(host_pa, self.mode.bits);
        if !block.is_null() {
            // SAFETY: `find` returns null or a live block.
            let b = unsafe { &mut *block };
            if !b.stale(self.memory.code_epoch()) && !b.insns.is_empty() {
                if b.second_pa == ONE_PAGE {
                    return Ok(block);
                }
                let second_pa = b.second_pa;
                if self.fetch_next_page(linear)? == second_pa {
                    return Ok(block);
                }
            }
        }
        self.make_block(linear, host_pa)
    }

    /// Decodes the block at `linear`, or brings the one that is cached up to date.
    #[cold]
    fn make_block(&mut self, linear: u64, host_pa: u64) -> Exec<*mut Block> {
        let bits = self.mode.bits;
        if let Some(len) = self.blocks.stale_length(host_pa, bits) {
            // Something near it was written, often only data: the same bytes need no decoding.
            let version = self.mark_code_range(host_pa, len);
            if let Some(block) = self.blocks.renew(&self.memory, host_pa, bits, version) {
                return Ok(block);
            }
        }
        let mut draft = self.blocks.draft();
        // The bytes are read once more after they are marked: a write in between is seen then.
        for _ in 0..100 {
            if !draft.in_page(&self.memory, host_pa, bits) {
                return self.make_crossing(linear, host_pa, draft);
            }
            draft.versions[0] = self.mark_code_range(host_pa, draft.byte_len());
            if draft.matches(&self.memory) {
                draft.keep_offered(|feature| self.model.offers(feature));
                return Ok(self.blocks.insert(&self.memory, draft));
            }
        }
        Err(Stop::Again)
    }

    /// Host-physical address of the page after that of `linear`, for an instruction that goes on there.
    fn fetch_next_page(&mut self, linear: u64) -> Exec<u64> {
        let mut next = (linear | (PAGE - 1)).wrapping_add(1);
        if self.mode.bits != Bits::B64 {
            if self.beyond_limit(PAGE - linear % PAGE + 1) {
                return Err(self.gp0());
            }
            next &= 0xffff_ffff;
        }
        self.fetch(next)
    }

    /// Decodes the instruction at `linear` that goes on in the next page. A fault there is reported at that
    /// page's first byte.
    fn make_crossing(&mut self, linear: u64, host_pa: u64, mut draft: Draft) -> Exec<*mut Block> {
        let second_pa = self.fetch_next_page(linear)?;
        let versions = [self.mark_code(host_pa), self.mark_code_range(second_pa, 15)];
        draft.across(&self.memory, [host_pa, second_pa], versions, self.mode.bits);
        draft.keep_offered(|feature| self.model.offers(feature));
        Ok(self.blocks.insert(&self.memory, draft))
    }
}

/// A branch that was taken, for single-stepping on branches (SDM vol. 3, 17.4.2).
fn is_taken(insn: &Insn, from: u64, to: u64) -> bool {
    match insn.iced.flow_control() {
        FlowControl::Next | FlowControl::Exception | FlowControl::Interrupt => false,
        FlowControl::ConditionalBranch => to != from.wrapping_add(u64::from(insn.len)),
        _ => true,
    }
}

/// Instructions that load RF themselves.
fn restores_rf(m: Mnemonic) -> bool {
    matches!(m, Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq | Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq)
}

fn clears_tf(m: Mnemonic) -> bool {
    matches!(m, Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Into | Mnemonic::Syscall)
}
