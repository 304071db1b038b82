//! Values that stay where they are until all of them go, in the host's huge pages: one of these is made in a fifth of the time
//! that its five hundred small ones take.

use std::alloc::{Layout, handle_alloc_error};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

use crate::host::{HUGE, Mapping, has_spare_core};

/// A huge page, or as much memory.
pub fn chunk() -> Mapping {
    static SPARE: LazyLock<Option<Mutex<Receiver<Mapping>>>> = LazyLock::new(spares);
    SPARE
        .as_ref()
        .and_then(|spare| spare.lock().unwrap_or_else(PoisonError::into_inner).try_recv().ok())
        .or_else(|| Mapping::new(HUGE).ok())
        .unwrap_or_else(|| handle_alloc_error(Layout::new::<[u8; HUGE]>()))
}

/// Where a thread puts chunks that the host has cleared already, two ahead: where a core is free, nobody waits for it.
fn spares() -> Option<Mutex<Receiver<Mapping>>> {
    if !has_spare_core() {
        return None;
    }
    let (send, receive) = sync_channel(1);
    let prepare = move || {
        while let Ok(chunk) = Mapping::new(HUGE) {
            chunk.provide(0, HUGE);
            if send.send(chunk).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("decode-ahead".into()).spawn(prepare).ok()?;
    Some(Mutex::new(receive))
}

/// See the module.
pub struct Settled<T> {
    chunks: Vec<Mapping>,
    /// Values in the last chunk; the others are full.
    count: usize,
    of: std::marker::PhantomData<T>,
}

impl<T> Default for Settled<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), count: Self::ROOM, of: std::marker::PhantomData }
    }
}

impl<T> Settled<T> {
    /// Values in a chunk.
    const ROOM: usize = {
        assert!(size_of::<T>() != 0 && size_of::<T>() <= HUGE && align_of::<T>() <= 4096);
        HUGE / size_of::<T>()
    };

    /// Where `value` lies until [`Settled::clear`]. No reference is kept to it here.
    pub fn push(&mut self, value: T) -> *mut T {
        if self.count == Self::ROOM {
            self.chunks.push(chunk());
            self.count = 0;
        }
        let base = self.chunks[self.chunks.len() - 1].base.cast::<T>();
        // SAFETY: `count < ROOM`, so that it lies in the chunk, where there is no value yet.
        let place = unsafe {
            let place = base.add(self.count);
            place.write(value);
            place
        };
        self.count += 1;
        place
    }

    /// Drops all.
    pub fn clear(&mut self) {
        while let Some(chunk) = self.chunks.pop() {
            let values = std::ptr::slice_from_raw_parts_mut(chunk.base.cast::<T>(), self.count);
            // SAFETY: `push` wrote these; whoever has pointers to them does not use them any more.
            unsafe { values.drop_in_place() };
            self.count = Self::ROOM;
        }
    }
}

impl<T> Drop for Settled<T> {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn values_stay_and_are_dropped_once() {
        let counted = Arc::new(());
        let mut settled = Settled::default();
        let count = 2 * Settled::<(u64, Arc<()>)>::ROOM + 1;
        let places: Vec<_> = (0..count).map(|n| settled.push((n as u64, Arc::clone(&counted)))).collect();
        // SAFETY: nothing was cleared yet.
        assert!(places.iter().enumerate().all(|(n, place)| unsafe { (**place).0 } == n as u64));
        assert_eq!(Arc::strong_count(&counted), count + 1);
        settled.clear();
        assert_eq!(Arc::strong_count(&counted), 1);
        settled.push((0, Arc::clone(&counted)));
        drop(settled);
        assert_eq!(Arc::strong_count(&counted), 1);
    }
}
