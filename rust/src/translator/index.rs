//! Which fragments there are, by host-physical address and variant, and which branches wait for one. What one fragment asks
//! lies beside what others of its page ask, so that it is in the host's cache as a rule. It knows neither code nor freshness.

use std::collections::HashMap;

use crate::address_hash::AddressHash;

/// No fragment, or no link.
pub const NOBODY: u32 = !0;
/// An offset and variant that no place has.
const FREE: u32 = !0;
/// Room of a page's first table.
const FIRST: usize = 16;

/// The key of what begins at `host_pa`, or of the one instruction there that crosses its page.
#[inline]
pub fn key(host_pa: u64, crossing: bool, variant: u8) -> u64 {
    host_pa << 8 | u64::from(crossing) << 7 | u64::from(variant & 127)
}

/// The page of a key.
#[inline]
fn page_of(key: u64) -> u64 {
    key >> 20
}

/// A place where code begins, in one variant.
#[derive(Clone, Copy)]
pub struct Place {
    /// The key without its page.
    key: u32,
    /// Its fragment, or [`NOBODY`].
    pub fragment: u32,
    /// The first of the links that wait for it, or [`NOBODY`].
    pub waiting: u32,
}

const EMPTY: Place = Place { key: FREE, fragment: NOBODY, waiting: NOBODY };

/// Places of a page: an open table, whose length is a power of two.
#[derive(Default)]
struct Page {
    places: Vec<Place>,
    used: usize,
    /// Fragments that lie in another page, too. They stay listed when another one takes their place, since they may run
    /// where that page is mapped beside this one.
    crossing: Vec<u32>,
}

impl Page {
    /// Where `key` is or may be put. There is a free place.
    fn slot(&self, key: u32) -> usize {
        let mask = self.places.len() - 1;
        let mut at = (key.wrapping_mul(0x9e37_79b1) >> 12) as usize & mask;
        while self.places[at].key != key && self.places[at].key != FREE {
            at = (at + 1) & mask;
        }
        at
    }

    fn grow(&mut self) {
        let room = (self.places.len() * 2).max(FIRST);
        let before = std::mem::replace(&mut self.places, vec![EMPTY; room]);
        for place in before.into_iter().filter(|p| p.key != FREE) {
            let at = self.slot(place.key);
            self.places[at] = place;
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Index {
    numbers: HashMap<u64, u32, AddressHash>,
    pages: Vec<Page>,
    /// The page asked for last, and its number.
    last: (u64, u32),
}

impl Index {
    fn page(&mut self, page: u64) -> &mut Page {
        if self.pages.is_empty() || self.last.0 != page {
            let next = self.pages.len() as u32;
            let number = *self.numbers.entry(page).or_insert(next);
            if number == next {
                self.pages.push(Page::default());
            }
            self.last = (page, number);
        }
        &mut self.pages[self.last.1 as usize]
    }

    /// The place of `key`, if anybody asked for it with [`Index::place`].
    #[inline]
    pub fn get(&self, key: u64) -> Option<Place> {
        let number = if self.last.0 == page_of(key) { self.last.1 } else { *self.numbers.get(&page_of(key))? };
        let page = self.pages.get(number as usize).filter(|page| page.used != 0)?;
        let place = page.places[page.slot(key as u32 & 0xf_ffff)];
        (place.key != FREE).then_some(place)
    }

    /// The place of `key`.
    pub fn place(&mut self, key: u64) -> &mut Place {
        let page = self.page(page_of(key));
        if (page.used + 1) * 4 > page.places.len() * 3 {
            page.grow();
        }
        let small = key as u32 & 0xf_ffff;
        let at = page.slot(small);
        let place = &mut page.places[at];
        if place.key == FREE {
            place.key = small;
            page.used += 1;
        }
        place
    }

    /// A fragment lies in both pages, and took the place of the old one.
    pub fn cross(&mut self, pages: [u64; 2], fragment: u32, old: Option<u32>) {
        for page in pages {
            let crossing = &mut self.page(page).crossing;
            match crossing.iter_mut().find(|known| Some(**known) == old) {
                Some(known) => *known = fragment,
                None => crossing.push(fragment),
            }
        }
    }

    /// The fragments that lie in a page, some of them twice.
    pub fn of_page(&self, page: u64) -> impl Iterator<Item = u32> {
        let page = self.numbers.get(&page).and_then(|&number| self.pages.get(number as usize));
        let places = page.into_iter().flat_map(|page| page.places.iter().map(|place| place.fragment));
        places.chain(page.into_iter().flat_map(|page| page.crossing.iter().copied())).filter(|&f| f != NOBODY)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_many_pages_are_found_again() {
        let mut index = Index::default();
        let keys = || (0..5000_u64).map(|n| key(n * 61 + ((n / 2500) << 40), n % 5 == 0, (n % 64) as u8));
        assert!(keys().all(|key| index.get(key).is_none()));
        for (n, key) in keys().enumerate() {
            index.place(key).fragment = n as u32;
        }
        assert!(keys().enumerate().all(|(n, key)| index.get(key).is_some_and(|p| p.fragment == n as u32)));
        assert!(index.get(key(61, false, 3)).is_none(), "another variant");
        assert_eq!(keys().map(|key| index.of_page(page_of(key)).count()).max(), Some(4096 / 61 + 1));
    }

    #[test]
    fn one_that_crosses_is_in_both_pages() {
        let mut index = Index::default();
        let k = key(0x1fff, true, 0);
        index.place(k).fragment = 3;
        index.cross([1, 9], 3, None);
        assert_eq!(index.of_page(1).collect::<Vec<_>>(), [3, 3]);
        assert_eq!(index.of_page(9).collect::<Vec<_>>(), [3]);
        assert_eq!(index.of_page(2).count(), 0);
        index.place(k).fragment = 4;
        assert!(index.of_page(1).any(|f| f == 3), "it may still run");
        index.cross([1, 9], 4, Some(3));
        assert_eq!(index.of_page(1).collect::<Vec<_>>(), [4, 4]);
        index.clear();
        assert!(index.get(k).is_none() && index.of_page(9).count() == 0);
    }
}
