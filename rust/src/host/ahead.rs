//! A thread that has the host provide memory shortly before it is first used: the host clears a huge page on another core
//! while the guest runs on. It decides nothing that a guest could see.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::{HUGE, has_spare_core};

/// What is provided when a region (of one huge page) is used for the first time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// So many of the first regions are provided before any is used.
    pub first: usize,
    /// The region itself as well.
    pub itself: bool,
    /// So many behind it,
    pub up: usize,
    /// and before it.
    pub down: usize,
}

/// What user and thread share.
struct Shared {
    /// By region: it is used.
    used: Box<[AtomicBool]>,
    /// Regions that were used for the first time and that the thread has not heard of.
    news: Mutex<Vec<usize>>,
    stop: AtomicBool,
}

/// What the thread knows.
struct Plan {
    window: Window,
    provided: Vec<bool>,
    /// Regions whose windows are not done, the most recent one last.
    recent: Vec<usize>,
}

impl Plan {
    /// The next region to provide: of the most recent window that has any, one that is neither provided nor (but for the
    /// middle) used.
    fn next(&mut self, used: &[AtomicBool]) -> Option<usize> {
        while let Some(&middle) = self.recent.last() {
            let itself = self.window.itself || middle < self.window.first && !used[middle].load(Ordering::Relaxed);
            let itself = (itself && !self.provided[middle]).then_some(middle);
            let up = (1..=self.window.up).map(|i| middle + i);
            let down = (1..=self.window.down).filter_map(|i| middle.checked_sub(i));
            let free = |&r: &usize| r < used.len() && !self.provided[r] && !used[r].load(Ordering::Relaxed);
            if let Some(region) = itself.or_else(|| up.chain(down).find(free)) {
                self.provided[region] = true;
                return Some(region);
            }
            self.recent.pop();
        }
        None
    }
}

/// The thread. It has to end ([`Ahead::stop`]) before the memory goes.
#[derive(Default)]
pub(crate) struct Ahead {
    running: Option<(Arc<Shared>, JoinHandle<()>)>,
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("running", &self.running.is_some()).finish()
    }
}

/// An address for the thread, which hands it to the host's kernel only.
#[derive(Clone, Copy)]
pub(crate) struct Base(pub *mut u8);

// SAFETY: whoever makes one ends the thread before the memory goes, and the thread does not access it.
unsafe impl Send for Base {}

impl Base {
    /// Where a region begins.
    pub(crate) fn region(&self, n: usize) -> *mut libc::c_void {
        self.0.wrapping_add(n * HUGE).cast()
    }
}

impl Ahead {
    /// Starts the thread for so many regions, where there is a core for it: without it everything runs as well, only
    /// slower where memory is new. `provide` has the host provide a region, and leaves what it holds; false: this host does
    /// not do that.
    pub(crate) fn new(
        name: &str,
        regions: usize,
        window: Window,
        provide: impl Fn(usize) -> bool + Send + 'static,
    ) -> Self {
        if !has_spare_core() {
            return Self::default();
        }
        let used = (0..regions).map(|_| AtomicBool::new(false)).collect();
        let shared = Arc::new(Shared { used, news: Mutex::default(), stop: AtomicBool::new(false) });
        let plan = Plan { window, provided: vec![false; regions], recent: Vec::new() };
        let theirs = Arc::clone(&shared);
        let started = thread::Builder::new().name(name.into()).spawn(move || run(&theirs, plan, provide));
        Self { running: started.ok().map(|thread| (shared, thread)) }
    }

    /// A region is used, maybe for the first time.
    #[cold]
    pub(crate) fn used(&self, region: usize) {
        if let Some((shared, thread)) = &self.running
            && let Some(used) = shared.used.get(region)
            && !used.swap(true, Ordering::Relaxed)
        {
            shared.news.lock().unwrap_or_else(PoisonError::into_inner).push(region);
            thread.thread().unpark();
        }
    }

    /// Ends the thread.
    pub(crate) fn stop(&mut self) {
        if let Some((shared, thread)) = self.running.take() {
            shared.stop.store(true, Ordering::Relaxed);
            thread.thread().unpark();
            // It panics nowhere; if it did, memory is whole all the same.
            let _ = thread.join();
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the thread does: provide while something is worth it, then wait for the next first use.
fn run(shared: &Shared, mut plan: Plan, provide: impl Fn(usize) -> bool) {
    plan.recent.extend((0..plan.window.first.min(shared.used.len())).rev());
    while !shared.stop.load(Ordering::Relaxed) {
        plan.recent.append(&mut shared.news.lock().unwrap_or_else(PoisonError::into_inner));
        match plan.next(&shared.used) {
            Some(region) if provide(region) => {}
            Some(_) => return,
            None => thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(regions: usize, itself: bool) -> (Plan, Vec<AtomicBool>) {
        let window = Window { first: 0, itself, up: 8, down: 2 };
        let used = (0..regions).map(|_| AtomicBool::new(false)).collect();
        (Plan { window, provided: vec![false; regions], recent: Vec::new() }, used)
    }

    /// All that is provided when `region` is used, in order.
    fn all((plan, used): &mut (Plan, Vec<AtomicBool>), region: usize) -> Vec<usize> {
        used[region].store(true, Ordering::Relaxed);
        plan.recent.push(region);
        std::iter::from_fn(|| plan.next(used)).collect()
    }

    #[test]
    fn what_follows_comes_first_and_it_ends() {
        let mut known = plan(100, false);
        assert_eq!(all(&mut known, 40), [41, 42, 43, 44, 45, 46, 47, 48, 39, 38]);
        assert_eq!(all(&mut known, 41), [49], "the window moves on, nothing is provided twice");
    }

    #[test]
    fn it_stays_inside_and_leaves_what_is_used() {
        let mut known = plan(10, true);
        known.1[2].store(true, Ordering::Relaxed);
        assert_eq!(all(&mut known, 0), [0, 1, 3, 4, 5, 6, 7, 8]);
        assert_eq!(all(&mut known, 9), [9], "memory ends there");
    }

    #[test]
    fn a_start_is_provided_before_it_is_used() {
        let (send, receive) = std::sync::mpsc::channel();
        let window = Window { first: 3, itself: false, up: 0, down: 0 };
        let ahead = Ahead::new("test", 9, window, move |region| send.send(region).is_ok());
        if ahead.running.is_some() {
            assert_eq!(receive.iter().take(3).collect::<Vec<_>>(), [0, 1, 2]);
        }
    }

    #[test]
    fn what_is_most_recent_comes_first() {
        let mut known = plan(100, true);
        known.0.recent.push(10);
        assert_eq!(all(&mut known, 50)[..2], [50, 51]);
        assert!(known.0.provided[10] && known.0.provided[18]);
    }

    #[test]
    fn each_region_is_provided_once_and_the_thread_ends() {
        let (send, receive) = std::sync::mpsc::channel();
        let window = Window { first: 0, itself: true, up: 1, down: 0 };
        let mut ahead = Ahead::new("test", 6, window, move |region| send.send(region).is_ok());
        if ahead.running.is_none() {
            return; // a host with one core
        }
        for region in [0, 1, 4, 4, 7] {
            ahead.used(region);
        }
        let mut seen: Vec<_> = receive.iter().take(5).collect();
        ahead.stop();
        seen.extend(receive.iter());
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 4, 5]);
    }
}
