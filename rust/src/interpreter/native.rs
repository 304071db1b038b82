//! Integer operations run by the host's own processor, with the flags that it gives.
//!
//! Undefined flags and results are thus the host's. Each method takes RFLAGS and returns the result with
//! the new RFLAGS, of which only the status flags can differ. Nothing here touches guest state.

use std::arch::asm;

use super::operand::Word;
use crate::state::flag;

/// Status flags as LAHF and SETO give them: AH and AL.
#[inline(always)]
fn pack(rflags: u64) -> u64 {
    (rflags & 0xd5) << 8 | (rflags >> 11 & 1)
}

#[inline(always)]
fn unpack(rflags: u64, ax: u64) -> u64 {
    rflags & !flag::STATUS | (ax >> 8 & 0xd5) | (ax & 1) << 11
}

macro_rules! operations {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident),*) -> ($($ret:ty),*);)*) => {
        /// What the host can do with a general-purpose operand.
        pub trait Native: Word {
            $($(#[$doc])* fn $name($($arg: Self,)* f: u64) -> ($($ret,)* u64);)*
            /// ROL, ROR, RCL, RCR, SHL, SHR, (SHL), SAR by their number in the instruction's ModR/M.
            fn shift<const N: u8>(a: Self, count: u8, f: u64) -> (Self, u64);
            /// SHLD (`LEFT`) or SHRD; not for bytes.
            fn double_shift<const LEFT: bool>(a: Self, b: Self, count: u8, f: u64) -> (Self, u64);
            /// DIV (or IDIV) of high:low, which must not overflow: quotient, remainder.
            fn divide<const SIGNED: bool>(high: Self, low: Self, by: Self, f: u64) -> (Self, Self, u64);
            /// MUL (or IMUL) to twice the width: low, high.
            fn multiply<const SIGNED: bool>(a: Self, b: Self, f: u64) -> (Self, Self, u64);
        }
    };
}

operations! {
    /// ADD.
    fn add(a, b) -> (Self);
    /// SUB, CMP.
    fn sub(a, b) -> (Self);
    /// AND, TEST.
    fn and(a, b) -> (Self);
    /// OR.
    fn or(a, b) -> (Self);
    /// XOR.
    fn xor(a, b) -> (Self);
    /// ADC.
    fn adc(a, b) -> (Self);
    /// SBB.
    fn sbb(a, b) -> (Self);
    /// INC.
    fn inc(a) -> (Self);
    /// DEC.
    fn dec(a) -> (Self);
    /// NEG.
    fn neg(a) -> (Self);
    /// BT; not for bytes, as what follows.
    fn bt(a, b) -> (Self);
    /// BTS.
    fn bts(a, b) -> (Self);
    /// BTR.
    fn btr(a, b) -> (Self);
    /// BTC.
    fn btc(a, b) -> (Self);
    /// BSF: `a` is the old destination.
    fn bsf(a, b) -> (Self);
    /// BSR: `a` is the old destination.
    fn bsr(a, b) -> (Self);
    /// IMUL to the same width.
    fn imul2(a, b) -> (Self);
}

/// Runs an instruction with all status flags in and out.
macro_rules! flags_in_out {
    ($f:ident, $text:expr, $($operands:tt)*) => {{
        let mut ax = pack($f);
        // SAFETY: an instruction on registers only; `add al, 127` sets OF from bit 0, SAHF the others.
        unsafe {
            asm!("add al, 127", "sahf", $text, "lahf", "seto al", inout("rax") ax, $($operands)*,
                options(pure, nomem, nostack));
        }
        unpack($f, ax)
    }};
}

/// Runs an instruction that sets all status flags and asks none.
macro_rules! flags_out {
    ($f:ident, $text:expr, $($operands:tt)*) => {{
        let ax: u64;
        // SAFETY: an instruction on registers only.
        unsafe { asm!($text, "lahf", "seto al", out("rax") ax, $($operands)*, options(pure, nomem, nostack)); }
        unpack($f, ax)
    }};
}

macro_rules! two_out {
    ($name:ident, $op:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut a: Self, b: Self, f: u64) -> (Self, u64) {
            let f = flags_out!(f, concat!($op, " {a", $m, "}, {b", $m, "}"), a = inout($class) a, b = in($class) b);
            (a, f)
        }
    };
}

macro_rules! two_in_out {
    ($name:ident, $op:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut a: Self, b: Self, f: u64) -> (Self, u64) {
            let f = flags_in_out!(f, concat!($op, " {a", $m, "}, {b", $m, "}"), a = inout($class) a, b = in($class) b);
            (a, f)
        }
    };
}

macro_rules! one {
    ($name:ident, $op:literal, $class:ident, $m:literal) => {
        #[inline(always)]
        fn $name(mut a: Self, f: u64) -> (Self, u64) {
            let f = flags_in_out!(f, concat!($op, " {a", $m, "}"), a = inout($class) a);
            (a, f)
        }
    };
}

macro_rules! common {
    ($class:ident, $m:literal) => {
        two_out!(add, "add", $class, $m);
        two_out!(sub, "sub", $class, $m);
        two_out!(and, "and", $class, $m);
        two_out!(or, "or", $class, $m);
        two_out!(xor, "xor", $class, $m);
        two_in_out!(adc, "adc", $class, $m);
        two_in_out!(sbb, "sbb", $class, $m);
        one!(inc, "inc", $class, $m);
        one!(dec, "dec", $class, $m);
        one!(neg, "neg", $class, $m);
        #[inline(always)]
        fn shift<const N: u8>(mut a: Self, count: u8, f: u64) -> (Self, u64) {
            macro_rules! by {
                        ($op:literal) => {
                            flags_in_out!(f, concat!($op, " {a", $m, "}, cl"), a = inout($class) a, in("cl") count)
                        };
                    }
            let f = match N {
                0 => by!("rol"),
                1 => by!("ror"),
                2 => by!("rcl"),
                3 => by!("rcr"),
                4 | 6 => by!("shl"),
                5 => by!("shr"),
                _ => by!("sar"),
            };
            (a, f)
        }
    };
}

macro_rules! wide {
    ($t:ty, $m:literal, $ax:literal) => {
        impl Native for $t {
            common!(reg, $m);
            two_in_out!(bt, "bt", reg, $m);
            two_in_out!(bts, "bts", reg, $m);
            two_in_out!(btr, "btr", reg, $m);
            two_in_out!(btc, "btc", reg, $m);
            two_in_out!(bsf, "bsf", reg, $m);
            two_in_out!(bsr, "bsr", reg, $m);
            two_in_out!(imul2, "imul", reg, $m);
            #[inline(always)]
            fn double_shift<const LEFT: bool>(mut a: Self, b: Self, count: u8, f: u64) -> (Self, u64) {
                macro_rules! by {
                    ($op:literal) => {
                        flags_in_out!(f, concat!($op, " {a", $m, "}, {b", $m, "}, cl"),
                            a = inout(reg) a, b = in(reg) b, in("cl") count)
                    };
                }
                let f = if LEFT { by!("shld") } else { by!("shrd") };
                (a, f)
            }
            #[inline(always)]
            fn divide<const SIGNED: bool>(high: Self, low: Self, by: Self, f: u64) -> (Self, Self, u64) {
                let (mut quotient, mut rest) = (low, high);
                macro_rules! by {
                    ($op:literal) => {{
                        let mut ax = pack(f);
                        // SAFETY: registers only; the caller made sure that the quotient fits, so there is no #DE.
                        unsafe {
                            asm!("add al, 127", "sahf", concat!("mov ", $ax, ", {q", $m, "}"),
                                concat!($op, " {by", $m, "}"), concat!("mov {q", $m, "}, ", $ax), "lahf", "seto al",
                                inout("rax") ax, inout("rdx") rest, q = inout(reg) quotient, by = in(reg) by,
                                options(pure, nomem, nostack));
                        }
                        unpack(f, ax)
                    }};
                }
                let f = if SIGNED { by!("idiv") } else { by!("div") };
                (quotient, rest, f)
            }
            #[inline(always)]
            fn multiply<const SIGNED: bool>(a: Self, b: Self, f: u64) -> (Self, Self, u64) {
                let (mut low, high): (Self, Self) = (a, Self::default());
                let mut high = high;
                macro_rules! by {
                    ($op:literal) => {{
                        let mut ax = pack(f);
                        // SAFETY: registers only.
                        unsafe {
                            asm!("add al, 127", "sahf", concat!("mov ", $ax, ", {low", $m, "}"),
                                concat!($op, " {b", $m, "}"), concat!("mov {low", $m, "}, ", $ax), "lahf", "seto al",
                                inout("rax") ax, inout("rdx") high, low = inout(reg) low, b = in(reg) b,
                                options(pure, nomem, nostack));
                        }
                        unpack(f, ax)
                    }};
                }
                let f = if SIGNED { by!("imul") } else { by!("mul") };
                (low, high, f)
            }
        }
    };
}
wide!(u16, ":x", "ax");
wide!(u32, ":e", "eax");
wide!(u64, ":r", "rax");

impl Native for u8 {
    common!(reg_byte, "");
    fn bt(a: Self, _: Self, f: u64) -> (Self, u64) {
        (a, f)
    }
    fn bts(a: Self, _: Self, f: u64) -> (Self, u64) {
        (a, f)
    }
    fn btr(a: Self, _: Self, f: u64) -> (Self, u64) {
        (a, f)
    }
    fn btc(a: Self, _: Self, f: u64) -> (Self, u64) {
        (a, f)
    }
    fn bsf(a: Self, _: Self, f: u64) -> (Self, u64) {
        (a, f)
    }
    fn bsr(a: Self, _: Self, f: u64) -> (Self, u64) {
        (a, f)
    }
    fn imul2(a: Self, _: Self, f: u64) -> (Self, u64) {
        (a, f)
    }
    fn double_shift<const LEFT: bool>(a: Self, _: Self, _: u8, f: u64) -> (Self, u64) {
        (a, f)
    }
    #[inline(always)]
    fn divide<const SIGNED: bool>(high: Self, low: Self, by: Self, f: u64) -> (Self, Self, u64) {
        let mut quotient = u64::from(high) << 8 | u64::from(low);
        macro_rules! by {
            ($op:literal) => {{
                let mut ax = pack(f);
                // SAFETY: registers only; the caller made sure that the quotient fits, so there is no #DE.
                unsafe {
                    asm!("add al, 127", "sahf", "mov ax, {q:x}", concat!($op, " {by}"), "mov {q:x}, ax", "lahf", "seto al",
                        inout("rax") ax, q = inout(reg) quotient, by = in(reg_byte) by, options(pure, nomem, nostack));
                }
                unpack(f, ax)
            }};
        }
        let f = if SIGNED { by!("idiv") } else { by!("div") };
        (quotient as u8, (quotient >> 8) as u8, f)
    }
    #[inline(always)]
    fn multiply<const SIGNED: bool>(a: Self, b: Self, f: u64) -> (Self, Self, u64) {
        let mut product = u64::from(a);
        macro_rules! by {
            ($op:literal) => {{
                let mut ax = pack(f);
                // SAFETY: registers only.
                unsafe {
                    asm!("add al, 127", "sahf", "mov al, {p:l}", concat!($op, " {b}"), "mov {p:x}, ax", "lahf", "seto al",
                        inout("rax") ax, p = inout(reg) product, b = in(reg_byte) b, options(pure, nomem, nostack));
                }
                unpack(f, ax)
            }};
        }
        let f = if SIGNED { by!("imul") } else { by!("mul") };
        (product as u8, (product >> 8) as u8, f)
    }
}

/// Instructions that exist for 32 and 64 bits only, and need a processor feature each.
pub trait Extended: Native {
    /// LZCNT (feature of that name). Also for 16 bits.
    fn lzcnt(a: Self, f: u64) -> (Self, u64);
    /// TZCNT (BMI1). Also for 16 bits.
    fn tzcnt(a: Self, f: u64) -> (Self, u64);
    /// POPCNT (feature of that name). Also for 16 bits.
    fn popcnt(a: Self, f: u64) -> (Self, u64);
}

macro_rules! counts {
    ($t:ty, $m:literal) => {
        impl Extended for $t {
            counts!(lzcnt, "lzcnt", $m);
            counts!(tzcnt, "tzcnt", $m);
            counts!(popcnt, "popcnt", $m);
        }
    };
    ($name:ident, $op:literal, $m:literal) => {
        #[inline(always)]
        fn $name(a: Self, f: u64) -> (Self, u64) {
            let v: Self;
            let f = flags_in_out!(f, concat!($op, " {v", $m, "}, {a", $m, "}"), v = out(reg) v, a = in(reg) a);
            (v, f)
        }
    };
}
counts!(u16, ":x");
counts!(u32, ":e");
counts!(u64, ":r");

/// BMI1, BMI2 and ADX on 32 and 64 bits.
pub trait Bmi: Native {
    /// ANDN: !a & b.
    fn andn(a: Self, b: Self, f: u64) -> (Self, u64);
    /// BEXTR of `a` by `b`.
    fn bextr(a: Self, b: Self, f: u64) -> (Self, u64);
    /// BZHI of `a` by `b`.
    fn bzhi(a: Self, b: Self, f: u64) -> (Self, u64);
    /// BLSI.
    fn blsi(a: Self, f: u64) -> (Self, u64);
    /// BLSMSK.
    fn blsmsk(a: Self, f: u64) -> (Self, u64);
    /// BLSR.
    fn blsr(a: Self, f: u64) -> (Self, u64);
    /// PDEP of `a` with mask `b`.
    fn pdep(a: Self, b: Self, f: u64) -> (Self, u64);
    /// PEXT of `a` with mask `b`.
    fn pext(a: Self, b: Self, f: u64) -> (Self, u64);
    /// ADCX.
    fn adcx(a: Self, b: Self, f: u64) -> (Self, u64);
    /// ADOX.
    fn adox(a: Self, b: Self, f: u64) -> (Self, u64);
}

macro_rules! bmi {
    ($t:ty, $m:literal) => {
        impl Bmi for $t {
            bmi!(3 andn, "andn", $m);
            bmi!(3 bextr, "bextr", $m);
            bmi!(3 bzhi, "bzhi", $m);
            bmi!(3 pdep, "pdep", $m);
            bmi!(3 pext, "pext", $m);
            bmi!(2 blsi, "blsi", $m);
            bmi!(2 blsmsk, "blsmsk", $m);
            bmi!(2 blsr, "blsr", $m);
            two_in_out!(adcx, "adcx", reg, $m);
            two_in_out!(adox, "adox", reg, $m);
        }
    };
    (3 $name:ident, $op:literal, $m:literal) => {
        #[inline(always)]
        fn $name(a: Self, b: Self, f: u64) -> (Self, u64) {
            let v: Self;
            let f = flags_in_out!(f, concat!($op, " {v", $m, "}, {a", $m, "}, {b", $m, "}"),
                v = out(reg) v, a = in(reg) a, b = in(reg) b);
            (v, f)
        }
    };
    (2 $name:ident, $op:literal, $m:literal) => {
        #[inline(always)]
        fn $name(a: Self, f: u64) -> (Self, u64) {
            let v: Self;
            let f = flags_in_out!(f, concat!($op, " {v", $m, "}, {a", $m, "}"), v = out(reg) v, a = in(reg) a);
            (v, f)
        }
    };
}
bmi!(u32, ":e");
bmi!(u64, ":r");

/// CRC32 of one operand.
#[inline(always)]
#[must_use]
pub fn crc32<T: Word>(crc: u32, data: T) -> u32 {
    let mut crc = u64::from(crc);
    // SAFETY: registers only; the caller offers it on hosts with SSE4.2.
    unsafe {
        match T::BYTES {
            1 => {
                asm!("crc32 {c:e}, {d}", c = inout(reg) crc, d = in(reg_byte) data.u64() as u8, options(pure, nomem, nostack))
            }
            2 => asm!("crc32 {c:e}, {d:x}", c = inout(reg) crc, d = in(reg) data.u64(), options(pure, nomem, nostack)),
            4 => asm!("crc32 {c:e}, {d:e}", c = inout(reg) crc, d = in(reg) data.u64(), options(pure, nomem, nostack)),
            _ => asm!("crc32 {c:r}, {d:r}", c = inout(reg) crc, d = in(reg) data.u64(), options(pure, nomem, nostack)),
        }
    }
    crc as u32
}

/// BSWAP; of 16 bits it is undefined and so the host's.
#[inline(always)]
#[must_use]
pub fn bswap16(a: u16) -> u16 {
    let mut v = u64::from(a);
    // SAFETY: registers only. `66 0F C8` = BSWAP AX.
    unsafe { asm!(".byte 0x66, 0x0f, 0xc8", inout("rax") v, options(pure, nomem, nostack, preserves_flags)) };
    v as u16
}
