//! Hashing of addresses, which nobody chooses to collide: a guest can only slow itself down.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps by address.
pub type AddressHash = BuildHasherDefault<AddressHasher>;

/// See the module.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u64(u64::from(b)));
    }

    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}
