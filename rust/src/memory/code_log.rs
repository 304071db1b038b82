//! Which pages with decoded code were written, in order, so that a translator can drop what it made of
//! them. Bounded: who comes too late drops everything.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Entries kept.
const KEPT: usize = 4096;

/// See the module.
#[derive(Default)]
pub struct CodeLog {
    position: AtomicU64,
    pages: Mutex<VecDeque<u64>>,
}

impl CodeLog {
    /// Entries so far.
    #[inline]
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Page number `page` lost its decoded code.
    pub(super) fn push(&self, page: u64) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.len() == KEPT {
            pages.pop_front();
        }
        pages.push_back(page);
        self.position.fetch_add(1, Ordering::Release);
    }

    /// Pages written since `seen`, which moves on; `None` when some are forgotten.
    #[must_use]
    pub fn since(&self, seen: &mut u64) -> Option<Vec<u64>> {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let position = self.position.load(Ordering::Acquire);
        let new = position.wrapping_sub(*seen) as usize;
        *seen = position;
        (new <= pages.len()).then(|| pages.iter().skip(pages.len() - new).copied().collect())
    }
}
