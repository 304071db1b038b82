//! What is known of each host page: dirty, holds decoded code, may be written without notice.
//!
//! The protocol between decoders and writers: a decoder marks the bytes it is about to read and remembers
//! the page's version; whoever writes marked bytes bumps the version. It decodes nothing itself.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use super::PAGE;
use super::code_log::CodeLog;
use crate::host::{Ahead, HUGE, Mapping};

/// Bits of [`super::Memory::flags`].
pub mod page_flag {
    /// Written since the flag was last cleared.
    pub const DIRTY: u8 = 1;
    /// Some core holds code decoded from this page: writes must take the slow path.
    pub const CODE: u8 = 2;
    /// Some core's TLB may let writes to this page pass without notice.
    pub const WRITABLE: u8 = 4;
}

use page_flag::{CODE, DIRTY, WRITABLE};

/// Bytes of a page that one bit of the code map stands for.
const GRANULE: u64 = PAGE / 64;

/// Writes beside code before a page loses its code and may be written without notice again: what once was executed there
/// need not be code any more. Twice as many each time, which keeps a page that holds both code and data from being decoded and
/// shot down in turns.
const PATIENCE: u32 = 8;
/// So often at most.
const MOST_DOUBLINGS: u32 = 12;

/// Tables indexed by page number.
pub(crate) struct Pages {
    count: usize,
    tables: Mapping,
    lock: Mutex<()>,
    /// Which pages' versions were bumped.
    pub(super) log: CodeLog,
    /// Hears of pages that are written for the first time.
    ahead: Ahead,
}

impl Pages {
    pub(super) fn new(count: usize, ahead: Ahead) -> io::Result<Self> {
        let count = count.max(1);
        Ok(Self { count, tables: Mapping::new(count * 16)?, lock: Mutex::new(()), log: CodeLog::default(), ahead })
    }

    /// Page number of `pa`, or 0 for what lies outside.
    #[inline]
    fn index(&self, pa: u64) -> usize {
        let page = (pa / PAGE) as usize;
        if page < self.count { page } else { 0 }
    }

    /// Map of the granules of a page that hold decoded code.
    #[inline]
    fn granules(&self, page: usize) -> &AtomicU64 {
        // SAFETY: the first `count * 8` bytes of the tables; `page < count`; zero is a valid value.
        unsafe { &*self.tables.base.cast::<AtomicU64>().add(page) }
    }

    #[inline]
    fn version(&self, page: usize) -> &AtomicU32 {
        // SAFETY: the next `count * 4` bytes.
        unsafe { &*self.tables.base.add(self.count * 8).cast::<AtomicU32>().add(page) }
    }

    #[inline]
    fn flag(&self, page: usize) -> &AtomicU8 {
        // SAFETY: the next `count` bytes.
        unsafe { &*self.tables.base.add(self.count * 12).cast::<AtomicU8>().add(page) }
    }

    /// Times that the page lost code which nobody wrote.
    fn doublings(&self, page: usize) -> &AtomicU8 {
        // SAFETY: the next `count` bytes.
        unsafe { &*self.tables.base.add(self.count * 13).cast::<AtomicU8>().add(page) }
    }

    /// Writes beside code since then.
    fn beside(&self, page: usize) -> &AtomicU16 {
        // SAFETY: the last `count * 2` bytes.
        unsafe { &*self.tables.base.add(self.count * 14).cast::<AtomicU16>().add(page) }
    }

    #[inline]
    pub(super) fn flags(&self, pa: u64) -> u8 {
        self.flag(self.index(pa)).load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn code_version(&self, pa: u64) -> u32 {
        self.version_cell(pa).load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn version_cell(&self, pa: u64) -> &AtomicU32 {
        self.version(self.index(pa))
    }

    /// The mask of granules that `len` bytes, those of them in the first one's page, touch.
    fn granule_mask(pa: u64, len: u64) -> u64 {
        let offset = pa % PAGE;
        let last = (offset + len.max(1) - 1).min(PAGE - 1);
        (!0u64 << (offset / GRANULE)) & (!0u64 >> (63 - last / GRANULE))
    }

    /// After bytes were stored: dirty, and bumps the version where code was decoded from them.
    #[inline]
    pub(super) fn written(&self, pa: u64, len: u64) -> bool {
        let mut dropped = false;
        let end = pa.saturating_add(len);
        let mut at = pa;
        // Stored bytes must be visible before the flag is read, or a decoder could miss both.
        fence(Ordering::SeqCst);
        while at < end {
            let page_end = (at | (PAGE - 1)).saturating_add(1).min(end);
            let flag = self.flag(self.index(at));
            let seen = flag.load(Ordering::Relaxed);
            if seen & DIRTY == 0 {
                flag.fetch_or(DIRTY, Ordering::Relaxed);
                self.ahead.used(at as usize / HUGE);
            }
            if seen & CODE != 0 {
                dropped |= self.written_code(at, page_end - at);
            }
            at = page_end;
        }
        dropped
    }

    #[cold]
    fn written_code(&self, pa: u64, len: u64) -> bool {
        let page = self.index(pa);
        let mask = Self::granule_mask(pa, len);
        let hit = self.granules(page).load(Ordering::Relaxed) & mask != 0;
        // Who writes all of a page takes it for something else.
        let whole = len == PAGE;
        let doublings = u32::from(self.doublings(page).load(Ordering::Relaxed));
        let patient = || u32::from(self.beside(page).fetch_add(1, Ordering::Relaxed)) + 1 < PATIENCE << doublings;
        if !hit && !whole && patient() {
            return false;
        }
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = self.granules(page).swap(0, Ordering::SeqCst) != 0;
        if lost {
            self.version(page).fetch_add(1, Ordering::SeqCst);
            self.log.push(page as u64);
        }
        if hit && !whole {
            return lost;
        }
        self.beside(page).store(0, Ordering::Relaxed);
        let doublings = if whole { 0 } else { (doublings + 1).min(MOST_DOUBLINGS) };
        self.doublings(page).store(doublings as u8, Ordering::Relaxed);
        // While WRITABLE stands, some TLB still has to give the page up.
        if self.flag(page).load(Ordering::SeqCst) & WRITABLE == 0 {
            self.flag(page).fetch_and(!CODE, Ordering::SeqCst);
        }
        lost
    }

    /// Marks bytes (within one page) as decoded. Returns the page's version from before, and whether some
    /// TLB may still write the page without notice: then the caller shoots that down before it reads.
    pub(crate) fn mark_code(&self, pa: u64, len: u64) -> (u32, bool) {
        let page = self.index(pa);
        let mask = Self::granule_mask(pa, len);
        // The version is read before the marks: whoever removes marks bumps it afterwards.
        let version = self.version(page).load(Ordering::SeqCst);
        let marked = self.granules(page).load(Ordering::SeqCst) & mask == mask;
        if marked && self.flag(page).load(Ordering::SeqCst) & (CODE | WRITABLE) == CODE {
            return (version, false);
        }
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.version(page).load(Ordering::SeqCst);
        self.granules(page).fetch_or(mask, Ordering::SeqCst);
        let before = self.flag(page).fetch_or(CODE, Ordering::SeqCst);
        (version, before & WRITABLE != 0)
    }

    /// All TLBs have given up writing the page without notice.
    pub(crate) fn write_protected(&self, pa: u64) {
        self.flag(self.index(pa)).fetch_and(!WRITABLE, Ordering::SeqCst);
    }

    /// A TLB asks to let writes to the page pass without notice. False: it holds code.
    #[inline]
    pub(crate) fn allow_write(&self, pa: u64) -> bool {
        let flag = self.flag(self.index(pa));
        if flag.load(Ordering::Relaxed) & (DIRTY | WRITABLE | CODE) == DIRTY | WRITABLE {
            return true;
        }
        // WRITABLE beside CODE means that a shootdown is under way; it must not come back meanwhile.
        let granted = flag.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |seen| {
            Some(if seen & CODE == 0 { seen | DIRTY | WRITABLE } else { seen | DIRTY })
        });
        granted.is_ok_and(|seen| {
            if seen & DIRTY == 0 {
                self.ahead.used(pa as usize / HUGE);
            }
            seen & CODE == 0
        })
    }

    /// Pages of `[0, limit)` with the dirty flag, which is cleared; the caller then shoots down writes. WRITABLE
    /// stays: until then TLBs do let writes pass, and who decodes the page meanwhile has to shoot it down.
    pub(crate) fn take_dirty(&self, limit: u64) -> Vec<u64> {
        let pages = ((limit / PAGE) as usize).min(self.count);
        let mut dirty = Vec::new();
        for page in 0..pages {
            if self.flag(page).load(Ordering::Relaxed) & DIRTY != 0 {
                self.flag(page).fetch_and(!DIRTY, Ordering::SeqCst);
                dirty.push(page as u64);
            }
        }
        dirty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_bytes_bump_the_version() {
        let pages = Pages::new(4, Ahead::default()).unwrap();
        let (version, shoot) = pages.mark_code(PAGE + 100, 15);
        assert_eq!((version, shoot), (0, false));
        assert!(!pages.written(PAGE + 192, 8), "next granule");
        assert!(!pages.written(0, PAGE), "other page");
        assert_eq!(pages.code_version(PAGE), 0);
        assert!(pages.written(PAGE + 114, 1));
        assert_eq!(pages.code_version(PAGE + 5), 1);
        assert!(!pages.written(PAGE + 114, 1), "the marks are gone");
        assert_eq!(pages.flags(PAGE) & CODE, CODE, "but the page stays slow for a while");
        for _ in 0..PATIENCE {
            pages.written(PAGE, 1);
        }
        assert_eq!(pages.flags(PAGE) & CODE, 0);
    }

    #[test]
    fn a_page_of_data_that_once_held_code_loses_it() {
        let pages = Pages::new(2, Ahead::default()).unwrap();
        let writes = |n: u32| (0..n).filter(|_| pages.written(PAGE + 512, 8)).count();
        for doublings in [0, 1, 2, 12, 12] {
            pages.doublings(1).store(doublings as u8, Ordering::Relaxed);
            let (version, _) = pages.mark_code(PAGE, 4);
            assert_eq!(writes((PATIENCE << doublings) - 1), 0);
            assert_eq!((pages.flags(PAGE) & CODE, pages.code_version(PAGE)), (CODE, version));
            assert_eq!(writes(1), 1, "as if the code had been written");
            assert_eq!((pages.flags(PAGE) & CODE, pages.code_version(PAGE)), (0, version + 1));
            assert!(pages.allow_write(PAGE));
            pages.write_protected(PAGE);
        }
        let (version, _) = pages.mark_code(PAGE, 4);
        assert!(pages.written(PAGE, PAGE), "all of it at once");
        assert_eq!((pages.flags(PAGE) & CODE, pages.code_version(PAGE)), (0, version + 1));
        assert_eq!(pages.doublings(1).load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_write_over_several_pages_reaches_all() {
        let pages = Pages::new(4, Ahead::default()).unwrap();
        pages.mark_code(2 * PAGE, 1);
        assert!(pages.written(PAGE - 1, PAGE + 2));
        assert_eq!([0, 1, 2, 3].map(|p| pages.flags(p * PAGE) & DIRTY), [1, 1, 1, 0]);
    }

    #[test]
    fn writable_and_code_exclude_each_other() {
        let pages = Pages::new(2, Ahead::default()).unwrap();
        assert!(pages.allow_write(0));
        assert_eq!(pages.mark_code(0, 1), (0, true));
        pages.write_protected(0);
        assert!(!pages.allow_write(0));
    }

    #[test]
    fn taking_dirty_pages_does_not_hide_writers_from_decoders() {
        let pages = Pages::new(2, Ahead::default()).unwrap();
        assert!(pages.allow_write(0));
        assert_eq!(pages.take_dirty(2 * PAGE), [0]);
        assert!(pages.mark_code(0, 1).1, "the shootdown of dirty pages may still be under way");
        pages.write_protected(0);
        assert!(!pages.allow_write(0));
        assert_eq!(pages.take_dirty(2 * PAGE), [0], "a write that is made the slow way");
    }

    #[test]
    fn while_a_shootdown_is_under_way_nobody_writes_without_notice() {
        let pages = Pages::new(2, Ahead::default()).unwrap();
        assert!(pages.allow_write(0));
        assert!(pages.mark_code(0, 1).1);
        // Another core answers the shootdown and writes on, before the core that asked for it goes on.
        assert!(pages.written(0, 1));
        for _ in 0..PATIENCE {
            pages.written(0, 1);
        }
        assert!(!pages.allow_write(0));
        pages.write_protected(0);
        assert!(!pages.mark_code(0, 1).1, "nobody has the page");
        assert!(pages.written(0, 1));
    }
}
