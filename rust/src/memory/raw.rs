//! Single accesses to memory that other threads (cores, devices, Python) change at the same time.
//!
//! Written as instructions so that each access is exactly one host access, as the guest's memory model
//! requires and as Rust's plain loads and stores do not promise. No bounds are checked here.

use std::arch::asm;

/// An integer that a guest reads or writes with one access.
pub trait Int: Copy + Default + PartialEq + Send + Sync + 'static {
    /// Size in bytes.
    const SIZE: u64;

    /// Loads from `base + offset` (wrapping).
    ///
    /// # Safety
    /// `base + offset` must lie in mapped memory for `SIZE` bytes.
    unsafe fn load(base: u64, offset: u64) -> Self;

    /// Stores to `base + offset` (wrapping).
    ///
    /// # Safety
    /// As [`Int::load`], and the memory must not be borrowed as Rust data.
    unsafe fn store(base: u64, offset: u64, value: Self);

    /// Atomic compare and exchange (`LOCK CMPXCHG`, any alignment but for 16 bytes): `Err(found)` if it
    /// was not `old`.
    ///
    /// # Safety
    /// As [`Int::store`]; 16 bytes must be aligned.
    unsafe fn compare_exchange(pointer: *mut u8, old: Self, new: Self) -> Result<Self, Self>;

    /// Zero-extends.
    fn to_u128(self) -> u128;

    /// Truncates.
    fn from_u128(value: u128) -> Self;

    /// Zero-extends (16 bytes: the low half).
    #[inline(always)]
    fn to_u64(self) -> u64 {
        self.to_u128() as u64
    }

    /// Truncates, or zero-extends to 16 bytes.
    #[inline(always)]
    fn from_u64(value: u64) -> Self {
        Self::from_u128(u128::from(value))
    }
}

macro_rules! int {
    ($type:ty, $class:ident, $load:literal, $store:literal, $cmpxchg:literal, $acc:tt) => {
        impl Int for $type {
            const SIZE: u64 = size_of::<$type>() as u64;

            #[inline(always)]
            unsafe fn load(base: u64, offset: u64) -> Self {
                let value;
                // SAFETY: the caller vouches for the address.
                unsafe {
                    asm!($load, v = out($class) value, b = in(reg) base, o = in(reg) offset,
                         options(nostack, preserves_flags, readonly));
                }
                value
            }

            #[inline(always)]
            unsafe fn store(base: u64, offset: u64, value: Self) {
                // SAFETY: the caller vouches for the address.
                unsafe {
                    asm!($store, v = in($class) value, b = in(reg) base, o = in(reg) offset,
                         options(nostack, preserves_flags));
                }
            }

            #[inline]
            unsafe fn compare_exchange(pointer: *mut u8, old: Self, new: Self) -> Result<Self, Self> {
                let found: Self;
                // SAFETY: the caller vouches for the address.
                unsafe {
                    asm!($cmpxchg, p = in(reg) pointer, v = in($class) new, inout($acc) old => found,
                         options(nostack));
                }
                if found == old { Ok(found) } else { Err(found) }
            }

            #[inline(always)]
            fn to_u128(self) -> u128 {
                u128::from(self)
            }

            #[inline(always)]
            fn from_u128(value: u128) -> Self {
                value as Self
            }

            #[inline(always)]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }

            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as Self
            }
        }
    };
}

int!(
    u16,
    reg,
    "mov {v:x}, word ptr [{b} + {o}]",
    "mov word ptr [{b} + {o}], {v:x}",
    "lock cmpxchg word ptr [{p}], {v:x}",
    "ax"
);
int!(
    u32,
    reg,
    "mov {v:e}, dword ptr [{b} + {o}]",
    "mov dword ptr [{b} + {o}], {v:e}",
    "lock cmpxchg dword ptr [{p}], {v:e}",
    "eax"
);
int!(
    u64,
    reg,
    "mov {v:r}, qword ptr [{b} + {o}]",
    "mov qword ptr [{b} + {o}], {v:r}",
    "lock cmpxchg qword ptr [{p}], {v:r}",
    "rax"
);
int!(
    u8,
    reg_byte,
    "mov {v}, byte ptr [{b} + {o}]",
    "mov byte ptr [{b} + {o}], {v}",
    "lock cmpxchg byte ptr [{p}], {v}",
    "al"
);

impl Int for u128 {
    const SIZE: u64 = 16;

    #[inline(always)]
    unsafe fn load(base: u64, offset: u64) -> Self {
        let value: std::arch::x86_64::__m128i;
        // SAFETY: the caller vouches for the address. One 16-byte access, as an SSE load of the guest is.
        unsafe {
            asm!("movdqu {v}, xmmword ptr [{b} + {o}]", v = out(xmm_reg) value, b = in(reg) base, o = in(reg) offset,
                 options(nostack, preserves_flags, readonly));
            std::mem::transmute(value)
        }
    }

    #[inline(always)]
    unsafe fn store(base: u64, offset: u64, value: Self) {
        // SAFETY: as above.
        unsafe {
            let value: std::arch::x86_64::__m128i = std::mem::transmute(value);
            asm!("movdqu xmmword ptr [{b} + {o}], {v}", v = in(xmm_reg) value, b = in(reg) base, o = in(reg) offset,
                 options(nostack, preserves_flags));
        }
    }

    #[inline]
    unsafe fn compare_exchange(pointer: *mut u8, old: Self, new: Self) -> Result<Self, Self> {
        let (low, high): (u64, u64);
        // SAFETY: the caller vouches for address and alignment. RBX is LLVM's, so it is saved by hand.
        unsafe {
            asm!("xchg {s}, rbx", "lock cmpxchg16b xmmword ptr [{p}]", "mov rbx, {s}",
                 p = in(reg) pointer, s = inout(reg) new as u64 => _, in("rcx") (new >> 64) as u64,
                 inout("rax") old as u64 => low, inout("rdx") (old >> 64) as u64 => high, options(nostack));
        }
        let found = u128::from(low) | u128::from(high) << 64;
        if found == old { Ok(found) } else { Err(found) }
    }

    #[inline(always)]
    fn to_u128(self) -> u128 {
        self
    }

    #[inline(always)]
    fn from_u128(value: u128) -> Self {
        value
    }
}
