//! A thread that has the host provide memory shortly before the guest first writes it: the host clears a huge page on
//! another core while the guest runs on. It decides nothing that a guest could see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use super::mapping::{HUGE, Mapping};

/// Regions provided behind the last one that was written first, and before it. Kernels hand out free memory mostly
/// upwards; so much more than a guest uses is taken of the host at most, where it goes on in one direction.
const UP: usize = 8;
const DOWN: usize = 2;

/// A smaller memory is not worth a thread.
const LEAST: usize = 32 * HUGE;

/// What guest and thread share: regions are huge pages of the mapping.
struct Shared {
    /// By region: something was written there.
    written: Box<[AtomicBool]>,
    /// The region that was written first most recently.
    last: AtomicUsize,
    stop: AtomicBool,
}

impl Shared {
    /// The next region to provide, of those round `last` that are neither `provided` nor written.
    fn next(&self, provided: &[bool]) -> Option<usize> {
        let last = self.last.load(Ordering::Relaxed);
        let up = (1..=UP).map(|i| last + i);
        let down = (1..=DOWN).filter_map(|i| last.checked_sub(i));
        up.chain(down).find(|&r| r < provided.len() && !provided[r] && !self.written[r].load(Ordering::Relaxed))
    }
}

/// The thread of a mapping. Dropped before the mapping is.
#[derive(Default)]
pub(super) struct Ahead {
    running: Option<(Arc<Shared>, JoinHandle<()>)>,
}

/// Address of the mapping, for the thread.
struct Base(*mut u8);

// SAFETY: the thread hands the address to the host's kernel only, and ends before the mapping does.
unsafe impl Send for Base {}

impl Base {
    /// Has the host provide a region; what it holds stays. False: this host does not do that.
    fn provide(&self, region: usize) -> bool {
        // SAFETY: whole regions of the mapping, see `Ahead::new`; populating changes no byte of it.
        unsafe { libc::madvise(self.0.add(region * HUGE).cast(), HUGE, libc::MADV_POPULATE_WRITE) == 0 }
    }
}

impl Ahead {
    /// Starts the thread for the `len` first bytes of a mapping, where there is a core for it. Without it the guest
    /// runs as well, only slower where it is new to memory.
    pub(super) fn new(mapping: &Mapping, len: usize) -> Self {
        if len < LEAST || thread::available_parallelism().map_or(1, usize::from) < 2 {
            return Self::default();
        }
        let written = (0..len / HUGE).map(|_| AtomicBool::new(false)).collect();
        let shared = Arc::new(Shared { written, last: AtomicUsize::new(0), stop: AtomicBool::new(false) });
        let base = Base(mapping.base);
        let theirs = Arc::clone(&shared);
        let started = thread::Builder::new().name("memory-ahead".into()).spawn(move || provide(&theirs, &base));
        Self { running: started.ok().map(|thread| (shared, thread)) }
    }

    /// The first write to the page of `pa`.
    #[cold]
    pub(super) fn written(&self, pa: u64) {
        if let Some((shared, thread)) = &self.running
            && let region = (pa / HUGE as u64) as usize
            && let Some(written) = shared.written.get(region)
            && !written.swap(true, Ordering::Relaxed)
        {
            shared.last.store(region, Ordering::Relaxed);
            thread.thread().unpark();
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some((shared, thread)) = self.running.take() {
            shared.stop.store(true, Ordering::Relaxed);
            thread.thread().unpark();
            // It panics nowhere; if it did, memory is whole all the same.
            let _ = thread.join();
        }
    }
}

/// What the thread does: provide while something is worth it, then wait for the next first write.
fn provide(shared: &Shared, base: &Base) {
    let mut provided = vec![false; shared.written.len()];
    while !shared.stop.load(Ordering::Relaxed) {
        match shared.next(&provided) {
            Some(region) => {
                provided[region] = true;
                if !base.provide(region) {
                    return;
                }
            }
            None => thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(regions: usize, last: usize) -> Shared {
        let written = (0..regions).map(|r| AtomicBool::new(r == last)).collect();
        Shared { written, last: AtomicUsize::new(last), stop: AtomicBool::new(false) }
    }

    /// All that is provided for one first write, in order.
    fn all(shared: &Shared, provided: &mut [bool]) -> Vec<usize> {
        std::iter::from_fn(|| shared.next(provided).inspect(|&r| provided[r] = true)).collect()
    }

    #[test]
    fn what_follows_comes_first_and_it_ends() {
        let mut provided = [false; 100];
        let shared = shared(100, 40);
        assert_eq!(all(&shared, &mut provided), [41, 42, 43, 44, 45, 46, 47, 48, 39, 38]);
        shared.last.store(41, Ordering::Relaxed);
        assert_eq!(all(&shared, &mut provided), [49], "the window moves on, nothing is provided twice");
    }

    #[test]
    fn it_stays_inside_and_leaves_what_the_guest_has() {
        let mut provided = [false; 10];
        let shared = shared(10, 0);
        shared.written[2].store(true, Ordering::Relaxed);
        assert_eq!(all(&shared, &mut provided), [1, 3, 4, 5, 6, 7, 8]);
        shared.last.store(9, Ordering::Relaxed);
        assert!(all(&shared, &mut provided).is_empty(), "memory ends there");
    }

    #[test]
    fn what_is_provided_keeps_its_bytes() {
        let mapping = Mapping::new(LEAST).unwrap();
        let ahead = Ahead::new(&mapping, LEAST);
        for region in (0..LEAST / HUGE).rev() {
            // SAFETY: inside the mapping, which this test alone writes.
            unsafe { mapping.base.add(region * HUGE + 5).write(region as u8 + 1) };
            ahead.written((region * HUGE) as u64);
        }
        drop(ahead);
        for region in 0..LEAST / HUGE {
            // SAFETY: as above; the thread has ended.
            assert_eq!(unsafe { mapping.base.add(region * HUGE + 5).read() }, region as u8 + 1);
        }
    }
}
