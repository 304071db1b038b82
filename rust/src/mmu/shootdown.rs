//! Invalidation that reaches every core and is acknowledged.
//!
//! A request lies in the target's doorbell until its core serves it at an instruction boundary, or before
//! it runs the next time: a core outside `enter` counts as having acknowledged. Waiting cores serve their
//! own requests, so that two of them cannot wait for each other.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::Invalidation;
use crate::cpu::{Cpu, Doorbell, attention};
use crate::memory::Memory;

impl Doorbell {
    /// Asks for an invalidation; returns the ticket that will be acknowledged.
    fn request(&self, what: Invalidation) -> u64 {
        let mut queue = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push(what);
        let ticket = self.requested.fetch_add(1, Ordering::SeqCst) + 1;
        self.bits.fetch_or(attention::SHOOTDOWN, Ordering::SeqCst);
        ticket
    }

    fn has_acknowledged(&self, ticket: u64) -> bool {
        self.acknowledged.load(Ordering::SeqCst) >= ticket || !self.inside.load(Ordering::SeqCst)
    }
}

/// Spins a little, then sleeps a little.
fn back_off(round: &mut u32) {
    *round += 1;
    if *round < 100 {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

impl Memory {
    /// Invalidates in every core and waits until all have acknowledged. For callers that are not a core
    /// (and hold no lock that a core could wait for, the GIL included).
    pub fn invalidate_everywhere(&self, what: Invalidation) {
        let waiting: Vec<_> = self.cores().into_iter().map(|core| (core.request(what), core)).collect();
        let mut round = 0;
        while !waiting.iter().all(|(ticket, core)| core.has_acknowledged(*ticket)) {
            back_off(&mut round);
        }
    }

    /// Pages of RAM written since the last call (page numbers); their next write is noticed again.
    /// Waits like [`Memory::invalidate_everywhere`].
    pub fn take_dirty(&self) -> Vec<u64> {
        let dirty = self.pages().take_dirty(self.ram_size());
        self.invalidate_everywhere(Invalidation::WriteProtect { page: None });
        dirty
    }
}

impl Cpu {
    /// Entering the run loop: from now on requests wait for this core. Serves what came before.
    pub fn mmu_run_begin(&mut self) {
        self.doorbell.inside.store(true, Ordering::SeqCst);
        self.service_shootdown();
    }

    /// Leaving the run loop.
    pub fn mmu_run_end(&mut self) {
        self.service_shootdown();
        self.doorbell.inside.store(false, Ordering::SeqCst);
    }

    /// Serves and acknowledges the requests of others. The run loop calls it at an instruction boundary
    /// when `attention::SHOOTDOWN` is set.
    #[inline]
    pub fn service_shootdown(&mut self) {
        if self.doorbell.requested.load(Ordering::SeqCst) != self.doorbell.acknowledged.load(Ordering::SeqCst) {
            self.serve_requests();
        }
    }

    #[cold]
    fn serve_requests(&mut self) {
        let doorbell = Arc::clone(&self.doorbell);
        let (requests, ticket) = {
            let mut queue = doorbell.requests.lock().unwrap_or_else(PoisonError::into_inner);
            doorbell.bits.fetch_and(!attention::SHOOTDOWN, Ordering::SeqCst);
            (std::mem::take(&mut *queue), doorbell.requested.load(Ordering::SeqCst))
        };
        for what in requests {
            self.invalidate(what);
        }
        doorbell.acknowledged.store(ticket, Ordering::SeqCst);
    }

    /// Invalidates in every core, this one included, and waits for all.
    pub fn invalidate_everywhere(&mut self, what: Invalidation) {
        self.invalidate(what);
        let own = Arc::as_ptr(&self.doorbell);
        let others = self.memory.cores().into_iter().filter(|core| Arc::as_ptr(core) != own);
        let waiting: Vec<_> = others.map(|core| (core.request(what), core)).collect();
        let mut round = 0;
        while !waiting.iter().all(|(ticket, core)| core.has_acknowledged(*ticket)) {
            self.service_shootdown();
            back_off(&mut round);
        }
    }

    /// A decoder is about to read instruction bytes at host-physical `pa`, up to the end of the page: from
    /// now on every write to them bumps the page's code version. Returns the version that the block is to
    /// remember; it is stale when `Memory::code_version` differs.
    pub fn mark_code(&mut self, pa: u64) -> u32 {
        self.mark_code_range(pa, 4096 - (pa & 0xfff))
    }

    /// As [`Cpu::mark_code`], for `len` bytes within the page: writes to other parts of the page (by
    /// 64-byte granules) leave the block alone.
    pub fn mark_code_range(&mut self, pa: u64, len: u64) -> u32 {
        if !self.memory.contains(pa, 1) {
            return 0;
        }
        let (version, writable) = self.memory.pages().mark_code(pa, len);
        if writable {
            self.invalidate_everywhere(Invalidation::WriteProtect { page: Some(pa & !0xfff) });
            self.memory.pages().write_protected(pa);
        }
        version
    }
}
