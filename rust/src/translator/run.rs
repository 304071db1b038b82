//! In and out of translated code, and the helper that it calls.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;

use iced_x86::Mnemonic;

use super::cache::{Changes, DEFAULT_BYTES, Site, Translator};
use super::front::Known;
use super::glue::Leave;
use super::hot::Hot;
use super::variant;
use crate::cpu::{Bits, Cpu};
use crate::decode::{Block, Insn, ONE_PAGE};
use crate::host::code_memory::CodeMemoryError;
use crate::interpreter::events::blocking;
use crate::mmu::EPOCH_SPARE;
use crate::state::{cr, flag, gpr};
use crate::stop::{Exec, Stop};
use crate::vmx::bits::primary;

/// MSRs of which translated code takes nothing for granted and keeps no copy: SPEC_CTRL, PRED_CMD, TSC_DEADLINE, FS.base,
/// GS.base, and the base for SWAPGS.
const CALM_MSRS: [u32; 6] = [0x48, 0x49, 0x6e0, 0xc000_0100, 0xc000_0101, 0xc000_0102];

/// How a helper ended the run of translated code.
#[derive(Default)]
pub struct Outcome {
    stop: Option<(Stop, *const Insn)>,
    panic: Option<Box<dyn Any + Send>>,
}

// SAFETY: the pointer leads into a fragment of the same processor.
unsafe impl Send for Outcome {}

/// Address of the helper.
pub fn helper_address() -> u64 {
    help as *const () as u64
}

extern "C" fn help(cpu: *mut Cpu, site: u32) -> u32 {
    // SAFETY: `hot.cpu` is set at each entry, and the processor is used by nobody else meanwhile.
    let cpu = unsafe { &mut *cpu };
    match catch_unwind(AssertUnwindSafe(|| cpu.helped(site))) {
        Ok(true) => 0,
        Ok(false) => Leave::Helper as u32,
        Err(panic) => {
            cpu.outcome.panic = Some(panic);
            Leave::Helper as u32
        }
    }
}

impl Cpu {
    /// Switches the translator on.
    ///
    /// # Errors
    /// When the host refuses executable memory: the interpreter goes on alone.
    pub fn use_translator(&mut self) -> Result<(), CodeMemoryError> {
        self.use_translator_with(DEFAULT_BYTES)
    }

    /// As [`Cpu::use_translator`], with about `bytes` of host code kept.
    ///
    /// # Errors
    /// As there.
    pub fn use_translator_with(&mut self, bytes: usize) -> Result<(), CodeMemoryError> {
        self.translator = Some(Box::new(Translator::new(helper_address(), bytes)?));
        self.state.hot().initialise();
        Ok(())
    }

    /// What fragments may take for granted now. Vector instructions do not run natively while an exception of
    /// theirs is unmasked, or something is to be raised first.
    #[inline]
    fn variant(&self) -> u8 {
        let s = &*self.state;
        let sse = s.cr0 & (cr::CR0_EM | cr::CR0_TS) == 0 && s.cr4 & cr::CR4_OSFXSR != 0 && s.mxcsr & 0x1f80 == 0x1f80;
        let avx = sse && s.cr4 & cr::CR4_OSXSAVE != 0 && s.xcr0 & 6 == 6;
        let supervisor = self.mode.cpl == 0;
        let smap = supervisor && s.cr4 & cr::CR4_SMAP != 0;
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(sse, variant::SSE)
            | bit(avx, variant::AVX)
            | bit(supervisor, variant::SUPERVISOR)
            | bit(smap, variant::SMAP)
            | (self.mmu.world_number() as u8) << variant::WORLD
    }

    /// Fragments know 64-bit mode with CPL 0 or 3, and do not check alignment.
    #[inline]
    pub(crate) fn mode_is_translated(&self) -> bool {
        self.mode.bits == Bits::B64 && matches!(self.mode.cpl, 0 | 3) && !self.mode.align_check
    }

    /// Branch targets are those of the present address space and privilege, and of a variant.
    fn set_epochs(&mut self, variant: u8) {
        let epochs = self.code_epochs(|cpu| {
            cpu.state.hot().forget_targets();
            cpu.translator.iter_mut().for_each(|translator| translator.unlink_far());
        });
        // The same code is another fragment where vector instructions may run natively.
        let other = u16::from(variant & (variant::SSE | variant::AVX)) << EPOCH_SPARE;
        self.state.hot().set_epochs(epochs.map(|epoch| epoch | other));
    }

    /// Tells translated code what depends on CPL, the address space and the controls.
    fn set_space(&mut self, linear: u64, variant: u8) {
        self.set_epochs(variant);
        let (tlb, checked, unchecked) = (self.data_array(), self.view_array(true), self.view_array(false));
        let window = self.ctl.primary & primary::INTERRUPT_WINDOW | u32::from(self.ctl.virtual_interrupt);
        self.set_controls();
        self.set_crossing();
        let supervisor = self.mode.cpl == 0;
        let hot = self.state.hot();
        hot.keep_slots(&self.mmu);
        hot.select_stack(supervisor);
        (hot.tlb, hot.tlb_checked, hot.tlb_unchecked) = (tlb, checked, unchecked);
        hot.window = u64::from(window);
        hot.set_page(linear);
    }

    /// Translated code may have run STAC or CLAC.
    pub(super) fn take_view(&mut self) {
        if self.state.hot().tlb != self.data_array() {
            self.update_mode();
        }
    }

    /// Runs translated code from `block`, which fits the budget. `None`: it could not be translated.
    pub(crate) fn run_translated(&mut self, block: &mut Block, linear: u64) -> Option<Exec> {
        self.drop_written_code();
        // Whoever wrote it since it was found is in the log that was just read: a fragment of it would pass for fresh.
        if block.stale(self.memory.code_epoch()) {
            return None;
        }
        let variant = self.variant() | self.plain_variant();
        let hot: *mut Hot = self.state.hot();
        let translator = self.translator.as_mut()?;
        translator.plain = false;
        let known = match translator.find_block(block, variant) {
            Some(known) => known,
            None => {
                let harmless_next = self.is_harmless_behind(block);
                // SAFETY: `hot` lies before the state, which is not touched meanwhile.
                self.translator.as_mut()?.make(block, variant, harmless_next, unsafe { &mut *hot })?
            }
        };
        if block.second_pa != ONE_PAGE {
            self.note_code((linear | 0xfff).wrapping_add(1));
        }
        self.enter_fragment(known, variant, linear)
    }

    /// The variant bit for code that did not find its stack in one page.
    fn plain_variant(&self) -> u8 {
        if self.translator.as_ref().is_some_and(|t| t.plain) { variant::PLAIN } else { 0 }
    }

    /// Runs the fragment of the code at `linear`, if there is one that fits the budget.
    #[inline]
    pub(crate) fn run_known(&mut self, linear: u64) -> Option<Exec> {
        if self.translator.is_none() || !self.mode_is_translated() {
            return None;
        }
        let host_pa = self.fetch_known(linear)?;
        self.drop_written_code();
        let variant = self.variant() | self.plain_variant();
        let translator = self.translator.as_mut()?;
        let known = translator.find(host_pa, variant)?;
        translator.plain = false;
        if self.budget() < u64::from(known.len) {
            return None;
        }
        self.enter_fragment(known, variant, linear)
    }

    /// The fragment at `linear`, which is remembered as a branch target, at its entry for saved flags.
    pub(super) fn resolve(&mut self, linear: u64) -> Option<*const u8> {
        if !self.mode_is_translated() {
            return None;
        }
        let variant = self.variant();
        let host_pa = self.fetch_known(linear).or_else(|| self.fill_code(linear))?;
        let translator = self.translator.as_mut()?;
        if self.memory.code_log().position() != translator.seen {
            return None;
        }
        let code = translator.find(host_pa, variant)?.entry_saved;
        translator.statistics.resolved += 1;
        self.note_code(linear);
        self.set_epochs(variant);
        let hot = self.state.hot();
        hot.set_target(linear, code);
        hot.set_page(linear);
        Some(code)
    }

    fn enter_fragment(&mut self, known: Known, variant: u8, linear: u64) -> Option<Exec> {
        let translator = self.translator.as_mut()?;
        translator.statistics.entries += 1;
        let enter = translator.shared(translator.glue.enter);
        let budget = self.budget() as i64;
        self.note_code(linear);
        self.set_space(linear, variant);
        let (cpu, flags) = (&raw mut *self, self.state.rflags);
        let hot = self.state.hot();
        (hot.budget, hot.resume, hot.cpu) = (budget, known.entry, cpu);
        hot.set_saved_flags(flags);
        if variant & variant::PLAIN == 0 {
            hot.set_target(linear, known.entry_saved);
        }
        // SAFETY: the shared code follows this ABI; it and the fragments stay where they are until `make`.
        let leave = unsafe {
            let enter: extern "C" fn(*mut Hot) -> u32 = std::mem::transmute(enter);
            enter(self.state.address())
        };
        Some(self.left(Leave::from_code(leave)))
    }

    fn left(&mut self, leave: Leave) -> Exec {
        self.take_view();
        let stop_at = self.stop_at;
        let hot = self.state.hot();
        let (budget, host, saved) = (hot.budget, hot.host_flags, hot.saved_status());
        let (target, rip_page) = (hot.target, hot.rip_page);
        if leave == Leave::Helper {
            if let Some(panic) = self.outcome.panic.take() {
                resume_unwind(panic);
            }
            self.boundary = self.events_flagged();
            return match self.outcome.stop.take() {
                None => Ok(()),
                // SAFETY: the fragment lives until the next `make`.
                Some((stop, insn)) => self.stopped(stop, Some(unsafe { &*insn })),
            };
        }
        let flags = if leave == Leave::Saved { saved } else { host };
        self.state.rflags = self.state.rflags & !flag::STATUS | flags & flag::STATUS;
        self.state.retired = stop_at.wrapping_sub(budget as u64);
        if leave == Leave::Link
            && let Some(translator) = &mut self.translator
            && let Some(&link) = translator.links.get(target as usize)
        {
            self.state.rip = rip_page | link.target & 0xfff;
            translator.plain = link.variant & variant::PLAIN != 0;
            if let Some(to) = translator.find(link.target, link.variant) {
                translator.link(link, to);
            }
        }
        Ok(())
    }

    /// Fragments whose code was written lead out.
    #[inline]
    fn drop_written_code(&mut self) {
        if let Some(translator) = &mut self.translator
            && self.memory.code_log().position() != translator.seen
        {
            let hot: *mut Hot = self.state.hot();
            match self.memory.code_log().since(&mut translator.seen) {
                Some(pages) => pages.into_iter().for_each(|page| translator.page_written(page)),
                // SAFETY: as in `run_translated`.
                None => translator.clear(unsafe { &mut *hot }),
            }
        }
    }

    /// Executes one instruction of a fragment by its handler. True: the fragment goes on at `hot.resume`.
    fn helped(&mut self, site: u32) -> bool {
        self.take_view();
        let Some(translator) = &mut self.translator else { return false };
        translator.statistics.helped += 1;
        let seen = translator.seen;
        let site = translator.sites[site as usize];
        let rest = u64::from(site.rest);
        if let Some(count) = translator.helped_by.get_mut(site.mnemonic as usize) {
            *count += 1;
        }
        let stop_at = self.stop_at;
        let hot = self.state.hot();
        let rip = hot.rip_page.wrapping_add(u64::from(site.offset));
        let (budget, host) = (hot.budget as u64, hot.host_flags);
        // SAFETY: fragments are dropped in `make` and `drop_written_code` only, which no handler calls.
        let insn = unsafe { &*site.insn };
        self.state.rip = rip;
        self.next_rip = rip.wrapping_add(u64::from(insn.len));
        self.state.rflags = self.state.rflags & !flag::STATUS | host & flag::STATUS;
        self.state.retired = stop_at.wrapping_sub(budget.wrapping_add(rest + 1));
        match (insn.run)(self, insn) {
            Ok(()) => {
                self.state.rip = self.next_rip;
                self.state.retired += 1;
                let left = stop_at.wrapping_sub(self.state.retired) as i64;
                if site.resume.is_null() {
                    return self.in_shadow(&site) && self.goes_elsewhere(seen);
                }
                let stamps = self.translation_stamps();
                // A group of stack accesses may go on behind this instruction: its page must still hold.
                let goes_on = left >= rest as i64
                    && self.holds(&site)
                    && self.state.pending_debug == 0
                    && !self.boundary
                    && self.memory.code_log().position() == seen
                    && self.state.hot().slots_stamps[stamps.world] == stamps;
                if !goes_on && rest == 0 {
                    return self.goes_elsewhere(seen);
                }
                let flags = self.state.rflags;
                let hot = self.state.hot();
                hot.keep_slots(&self.mmu);
                hot.set_saved_flags(flags);
                hot.budget = left - if goes_on { rest as i64 } else { 0 };
                hot.resume = site.resume;
                goes_on
            }
            // A fault is delivered here, so that its handler, too, can go on in translated code.
            Err(Stop::Fault) => match self.stopped(Stop::Fault, Some(insn)) {
                Ok(()) => self.goes_elsewhere(seen),
                Err(stop) => {
                    self.outcome.stop = Some((stop, insn));
                    false
                }
            },
            Err(stop) => {
                self.outcome.stop = Some((stop, insn));
                false
            }
        }
    }

    /// Behind STI the next instruction still belongs to it: interrupts are blocked until that has executed. False: the run ends
    /// there.
    fn in_shadow(&mut self, site: &Site) -> bool {
        let blocked = site.mnemonic == Mnemonic::Sti && self.state.interruptibility & blocking::STI != 0;
        if !blocked || self.state.retired == self.stop_at {
            return true;
        }
        let step = self.careful_step();
        let Err(stop) = step else { return true };
        self.outcome.stop = Some((stop, site.insn));
        false
    }

    /// What a fragment takes for granted, or translated code has in its hot data, is as it was before the instruction.
    fn holds(&self, site: &Site) -> bool {
        match site.changes {
            Changes::Little => true,
            Changes::Msrs => CALM_MSRS.contains(&(self.state.gpr[gpr::RCX] as u32)),
            Changes::Vector => self.variant() == site.variant & !variant::PLAIN,
        }
    }

    /// After an instruction that may have changed anything: goes on with the fragment at the new RIP, if there is
    /// one, under the address space and privilege that hold now.
    fn goes_elsewhere(&mut self, seen: u64) -> bool {
        let left = self.stop_at.wrapping_sub(self.state.retired) as i64;
        self.state.hot().budget = left;
        let variant = self.variant();
        if left <= 0
            || !self.mode_is_translated()
            || self.state.pending_debug != 0
            || self.memory.code_log().position() != seen
            || self.doorbell.bits.load(Ordering::Relaxed) != 0
            || self.iterations_flagged()
        {
            return false;
        }
        let (rip, flags) = (self.state.rip, self.state.rflags);
        self.set_space(rip, variant);
        let Some(code) = self.state.hot().target_of(rip).or_else(|| self.resolve(rip)) else { return false };
        // RF holds instruction breakpoints back for one instruction. There are none (`iterations_flagged`), and a fault
        // or what restarts an instruction reports RF as 1 in any case.
        self.state.rflags &= !flag::RF;
        self.boundary = false;
        let hot = self.state.hot();
        hot.resume = code;
        hot.set_saved_flags(flags);
        true
    }
}
