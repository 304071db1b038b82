//! A list of a few elements that needs no allocation.

use std::ops::{Deref, DerefMut};

/// At most `N` elements.
#[derive(Clone, Copy, Debug)]
pub struct Short<T, const N: usize> {
    elements: [T; N],
    count: u8,
}

impl<T: Copy + Default, const N: usize> Default for Short<T, N> {
    fn default() -> Self {
        Self { elements: [T::default(); N], count: 0 }
    }
}

impl<T, const N: usize> Short<T, N> {
    /// Appends an element; false where there is no room for it.
    #[must_use]
    pub fn push(&mut self, element: T) -> bool {
        let Some(place) = self.elements.get_mut(usize::from(self.count)) else { return false };
        *place = element;
        self.count += 1;
        true
    }
}

impl<T, const N: usize> Deref for Short<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.elements[..usize::from(self.count)]
    }
}

impl<T, const N: usize> DerefMut for Short<T, N> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.elements[..usize::from(self.count)]
    }
}

impl<'a, T, const N: usize> IntoIterator for &'a Short<T, N> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
