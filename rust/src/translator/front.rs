//! Fresh fragments by their key, as many as fit: what is asked of one when a branch target is looked up, with one access to
//! the host's memory. Code that lies together shares a line of the host's cache. It knows nothing of freshness.

use std::io;

use crate::host::Mapping;

/// What is asked of a fragment at each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// As `Fragment::entry`.
    pub entry: *const u8,
    /// As `Fragment::entry_saved`.
    pub entry_saved: *const u8,
    /// Instructions.
    pub len: u32,
}

/// Lines: 8 MiB, of which what lies idle takes no memory. (With 4, a build of 30 MiB of host code spent a quarter more on what is not here.)
const LINES: usize = 1 << 17;

/// A key and its fragment: the entry's offset in the code memory, the other entry's from there, and the number of instructions, in
/// 8 bits each of the last two. 0: none.
type Entry = [u64; 2];

/// Entries for the code of 64 bytes; the one put last comes first.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([Entry; 4]);

/// See the module.
pub struct Front {
    memory: Mapping,
    /// Where offsets count from.
    code: *const u8,
}

/// The line of a key: it has the host-physical address above its lowest 8 bits.
fn line(key: u64) -> usize {
    let piece = key >> 14;
    (piece ^ piece >> 16) as usize & (LINES - 1)
}

impl Front {
    /// An empty one, for fragments whose code lies up to a gigabyte behind `code`.
    ///
    /// # Errors
    /// When the host has no memory for it.
    pub fn new(code: *const u8) -> io::Result<Self> {
        Ok(Self { memory: Mapping::new(LINES * size_of::<Line>())?, code })
    }

    fn lines(&mut self) -> &mut [Line; LINES] {
        // SAFETY: the mapping has that size, is zero at first, which is a value of these, and is ours alone.
        unsafe { &mut *self.memory.base.cast() }
    }

    /// The fragment of a key, if it is here.
    #[inline]
    pub fn find(&mut self, key: u64) -> Option<Known> {
        let code = self.code;
        let &[_, place] = self.lines()[line(key)].0.iter().find(|entry| entry[0] == key && entry[1] != 0)?;
        let entry = code.wrapping_add((place >> 16) as usize);
        Some(Known { entry, entry_saved: entry.wrapping_add((place >> 8) as usize & 255), len: place as u32 & 255 })
    }

    /// It is here from now on, until others take its place.
    pub fn put(&mut self, key: u64, known: Known) {
        let offset = (known.entry as u64).wrapping_sub(self.code as u64);
        let between = (known.entry_saved as u64).wrapping_sub(known.entry as u64);
        let entries = &mut self.lines()[line(key)].0;
        let before = entries.iter().position(|entry| entry[0] == key).unwrap_or(entries.len() - 1);
        entries.copy_within(..before, 1);
        entries[0] = [key, offset << 16 | between << 8 | u64::from(known.len)];
    }

    /// It is not here any more.
    pub fn forget(&mut self, key: u64) {
        let entries = &mut self.lines()[line(key)].0;
        entries.iter_mut().filter(|entry| entry[0] == key).for_each(|entry| *entry = [0; 2]);
    }

    /// Nothing is here any more.
    pub fn clear(&mut self) {
        self.lines().fill(Line([[0; 2]; 4]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(code: *const u8, n: usize) -> Known {
        let entry = code.wrapping_add(16 + 16 * n);
        Known { entry, entry_saved: entry.wrapping_add(n % 16), len: n as u32 % 64 + 1 }
    }

    #[test]
    fn what_was_put_last_is_found_until_it_is_forgotten() {
        let code = 0x7000_0000_0000_usize as *const u8;
        let mut front = Front::new(code).expect("memory");
        assert_eq!(front.find(0), None);
        let keys: Vec<u64> = (0..1000).map(|n| ((n * 41) << 8) | (n % 3)).collect();
        for (n, &key) in keys.iter().enumerate() {
            front.put(key, known(code, n));
            assert_eq!(front.find(key), Some(known(code, n)));
            front.put(key, known(code, n + 1));
            assert_eq!(front.find(key), Some(known(code, n + 1)));
        }
        let found = keys.iter().enumerate().filter(|&(n, &key)| front.find(key) == Some(known(code, n + 1))).count();
        assert_eq!(found, keys.len(), "two of them lie in 64 bytes at most");
        front.forget(keys[5]);
        assert_eq!((front.find(keys[5]), front.find(keys[6])), (None, Some(known(code, 7))));
        front.clear();
        assert!(keys.iter().all(|&key| front.find(key).is_none()));
    }

    #[test]
    fn a_full_line_loses_the_one_put_first() {
        let code = 0x1000 as *const u8;
        let mut front = Front::new(code).expect("memory");
        for n in 0..5 {
            front.put(n << 8, known(code, n as usize));
        }
        assert_eq!((0..5).map(|n| front.find(n << 8).is_some()).collect::<Vec<_>>(), [false, true, true, true, true]);
    }
}
