//! Checks on guest segment registers (SDM 27.3.1.2): failure is a VM exit with reason 33.

use super::super::fields::slot;
use super::{Phase::Guest, Rule, View, canonical, rule};
use crate::state::{cr, flag};

const SEGMENTS: &str = "27.3.1.2";
const UNUSABLE: u64 = 1 << 16;
/// Slots of a segment register: selector, base, limit, access rights.
const STRIDE: usize = 4;

/// A guest segment register, by the slot of its selector.
#[derive(Clone, Copy)]
struct Reg(usize);

const ES: Reg = Reg(slot::GUEST_ES_SELECTOR);
const CS: Reg = Reg(slot::GUEST_CS_SELECTOR);
const SS: Reg = Reg(slot::GUEST_SS_SELECTOR);
const DS: Reg = Reg(slot::GUEST_DS_SELECTOR);
const FS: Reg = Reg(slot::GUEST_FS_SELECTOR);
const GS: Reg = Reg(slot::GUEST_GS_SELECTOR);
const LDTR: Reg = Reg(slot::GUEST_LDTR_SELECTOR);
const TR: Reg = Reg(slot::GUEST_TR_SELECTOR);
const _: () = assert!(slot::GUEST_TR_SELECTOR - slot::GUEST_ES_SELECTOR == 7 * STRIDE);

impl Reg {
    fn selector(self, v: &View<'_>) -> u64 {
        v.get(self.0)
    }
    fn base(self, v: &View<'_>) -> u64 {
        v.get(self.0 + 1)
    }
    fn limit(self, v: &View<'_>) -> u64 {
        v.get(self.0 + 2)
    }
    fn access(self, v: &View<'_>) -> u64 {
        v.get(self.0 + 3)
    }
    fn usable(self, v: &View<'_>) -> bool {
        self.access(v) & UNUSABLE == 0
    }
    fn kind(self, v: &View<'_>) -> u64 {
        self.access(v) & 15
    }
    fn dpl(self, v: &View<'_>) -> u64 {
        self.access(v) >> 5 & 3
    }
    fn rpl(self, v: &View<'_>) -> u64 {
        self.selector(v) & 3
    }
    fn is_s(self, v: &View<'_>) -> bool {
        self.access(v) >> 4 & 1 != 0
    }
    fn present(self, v: &View<'_>) -> bool {
        self.access(v) >> 7 & 1 != 0
    }
    /// Bits 11:8 and 31:17 are 0.
    fn reserved_clear(self, v: &View<'_>) -> bool {
        self.access(v) & 0xfffe_0f00 == 0
    }
    /// G agrees with the limit.
    fn granular(self, v: &View<'_>) -> bool {
        let (limit, g) = (self.limit(v), self.access(v) >> 15 & 1 != 0);
        if g { limit & 0xfff == 0xfff } else { limit & 0xfff0_0000 == 0 }
    }
}

fn v8086(v: &View<'_>) -> bool {
    v.get(slot::GUEST_RFLAGS) & flag::VM != 0
}

/// A check that holds in virtual-8086 mode only, or outside of it only.
fn in_v8086(v: &View<'_>, holds: bool) -> bool {
    !v8086(v) || holds
}
fn outside(v: &View<'_>, holds: impl FnOnce() -> bool) -> bool {
    v8086(v) || holds()
}

/// Rules that are the same for several registers.
macro_rules! each {
    ($($reg:ident $lower:literal),+; $name:literal, $text:literal, $holds:expr) => {
        [$(rule(Guest, SEGMENTS, concat!("guest_", $lower, "_", $name), concat!("guest ", stringify!($reg), ": ", $text), |v| {
            let holds: fn(&View<'_>, Reg) -> bool = $holds;
            holds(v, $reg)
        })),+]
    };
}

const V8086_BASE: [Rule; 6] = each!(ES "es", CS "cs", SS "ss", DS "ds", FS "fs", GS "gs";
    "v8086_base", "base is selector << 4 in virtual-8086 mode",
    |v, r| in_v8086(v, r.base(v) == r.selector(v) << 4));
const V8086_LIMIT: [Rule; 6] = each!(ES "es", CS "cs", SS "ss", DS "ds", FS "fs", GS "gs";
    "v8086_limit", "limit is FFFFH in virtual-8086 mode",
    |v, r| in_v8086(v, r.limit(v) == 0xffff));
const V8086_ACCESS: [Rule; 6] = each!(ES "es", CS "cs", SS "ss", DS "ds", FS "fs", GS "gs";
    "v8086_access", "access rights are F3H in virtual-8086 mode",
    |v, r| in_v8086(v, r.access(v) == 0xf3));
const CANONICAL_BASE: [Rule; 3] = each!(TR "tr", FS "fs", GS "gs";
    "base", "base is canonical",
    |v, r| canonical(r.base(v)));
const LOW_BASE: [Rule; 3] = each!(SS "ss", DS "ds", ES "es";
    "base", "bits 63:32 of the base are 0",
    |v, r| !r.usable(v) || r.base(v) >> 32 == 0);
const DATA_TYPE: [Rule; 4] = each!(DS "ds", ES "es", FS "fs", GS "gs";
    "type", "accessed; readable if code",
    |v, r| outside(v, || !r.usable(v) || r.kind(v) & 1 != 0 && (r.kind(v) & 8 == 0 || r.kind(v) & 2 != 0)));
const S_BIT: [Rule; 5] = each!(SS "ss", DS "ds", ES "es", FS "fs", GS "gs";
    "s", "code or data (S = 1)",
    |v, r| outside(v, || !r.usable(v) || r.is_s(v)));
const DATA_DPL: [Rule; 4] = each!(DS "ds", ES "es", FS "fs", GS "gs";
    "dpl", "DPL is not below RPL",
    |v, r| outside(v, || v.unrestricted() || !r.usable(v) || r.kind(v) > 11 || r.dpl(v) >= r.rpl(v)));
const PRESENT: [Rule; 5] = each!(SS "ss", DS "ds", ES "es", FS "fs", GS "gs";
    "present", "present",
    |v, r| outside(v, || !r.usable(v) || r.present(v)));
const RESERVED: [Rule; 5] = each!(SS "ss", DS "ds", ES "es", FS "fs", GS "gs";
    "reserved", "reserved access rights are 0",
    |v, r| outside(v, || !r.usable(v) || r.reserved_clear(v)));
const GRANULARITY: [Rule; 5] = each!(SS "ss", DS "ds", ES "es", FS "fs", GS "gs";
    "granularity", "G agrees with the limit",
    |v, r| outside(v, || !r.usable(v) || r.granular(v)));

const SINGLE: [Rule; 28] = [
    rule(Guest, SEGMENTS, "guest_tr_ti", "guest TR lies in the GDT", |v| TR.selector(v) & 4 == 0),
    rule(Guest, SEGMENTS, "guest_ldtr_ti", "guest LDTR lies in the GDT", |v| {
        !LDTR.usable(v) || LDTR.selector(v) & 4 == 0
    }),
    rule(Guest, SEGMENTS, "guest_ss_rpl", "guest SS.RPL equals CS.RPL", |v| {
        outside(v, || v.unrestricted() || SS.rpl(v) == CS.rpl(v))
    }),
    rule(Guest, SEGMENTS, "guest_ldtr_base", "guest LDTR base is canonical", |v| {
        !LDTR.usable(v) || canonical(LDTR.base(v))
    }),
    rule(Guest, SEGMENTS, "guest_cs_base", "bits 63:32 of the guest CS base are 0", |v| CS.base(v) >> 32 == 0),
    rule(Guest, SEGMENTS, "guest_cs_type", "guest CS is accessed code (or data of type 3, if unrestricted)", |v| {
        outside(v, || match CS.kind(v) {
            9 | 11 | 13 | 15 => true,
            3 => v.unrestricted(),
            _ => false,
        })
    }),
    rule(Guest, SEGMENTS, "guest_ss_type", "guest SS is accessed writable data", |v| {
        outside(v, || !SS.usable(v) || matches!(SS.kind(v), 3 | 7))
    }),
    rule(Guest, SEGMENTS, "guest_cs_s", "guest CS: code or data (S = 1)", |v| outside(v, || CS.is_s(v))),
    rule(Guest, SEGMENTS, "guest_cs_dpl_data", "guest CS of type 3 has DPL 0", |v| {
        outside(v, || CS.kind(v) != 3 || CS.dpl(v) == 0)
    }),
    rule(Guest, SEGMENTS, "guest_cs_dpl", "guest CS, not conforming: DPL equals SS.DPL", |v| {
        outside(v, || !matches!(CS.kind(v), 9 | 11) || CS.dpl(v) == SS.dpl(v))
    }),
    rule(Guest, SEGMENTS, "guest_cs_dpl_conforming", "guest CS, conforming: DPL is not above SS.DPL", |v| {
        outside(v, || !matches!(CS.kind(v), 13 | 15) || CS.dpl(v) <= SS.dpl(v))
    }),
    rule(Guest, SEGMENTS, "guest_ss_dpl", "guest SS.DPL equals RPL", |v| {
        outside(v, || v.unrestricted() || SS.dpl(v) == SS.rpl(v))
    }),
    rule(Guest, SEGMENTS, "guest_ss_dpl_real", "guest SS.DPL is 0 with CS of type 3 or in real mode", |v| {
        let real = CS.kind(v) == 3 || v.get(slot::GUEST_CR0) & cr::CR0_PE == 0;
        outside(v, || !real || SS.dpl(v) == 0)
    }),
    rule(Guest, SEGMENTS, "guest_cs_present", "guest CS is present", |v| outside(v, || CS.present(v))),
    rule(Guest, SEGMENTS, "guest_cs_reserved", "reserved access rights of guest CS are 0", |v| {
        outside(v, || CS.reserved_clear(v))
    }),
    rule(Guest, SEGMENTS, "guest_cs_db", "guest CS.D is 0 for a 64-bit segment in IA-32e mode", |v| {
        outside(v, || !v.ia32e() || CS.access(v) >> 13 & 3 != 3)
    }),
    rule(Guest, SEGMENTS, "guest_cs_granularity", "G of guest CS agrees with the limit", |v| {
        outside(v, || CS.granular(v))
    }),
    rule(Guest, SEGMENTS, "guest_tr_type", "guest TR is a busy TSS, of 32 or 64 bits in IA-32e mode", |v| {
        TR.kind(v) == 11 || TR.kind(v) == 3 && !v.ia32e()
    }),
    rule(Guest, SEGMENTS, "guest_tr_s", "guest TR is a system segment", |v| !TR.is_s(v)),
    rule(Guest, SEGMENTS, "guest_tr_present", "guest TR is present", |v| TR.present(v)),
    rule(Guest, SEGMENTS, "guest_tr_reserved", "reserved access rights of guest TR are 0", |v| TR.reserved_clear(v)),
    rule(Guest, SEGMENTS, "guest_tr_granularity", "G of guest TR agrees with the limit", |v| TR.granular(v)),
    rule(Guest, SEGMENTS, "guest_tr_unusable", "guest TR is usable", |v| TR.usable(v)),
    rule(Guest, SEGMENTS, "guest_ldtr_type", "guest LDTR is an LDT", |v| !LDTR.usable(v) || LDTR.kind(v) == 2),
    rule(Guest, SEGMENTS, "guest_ldtr_s", "guest LDTR is a system segment", |v| !LDTR.usable(v) || !LDTR.is_s(v)),
    rule(Guest, SEGMENTS, "guest_ldtr_present", "guest LDTR is present", |v| !LDTR.usable(v) || LDTR.present(v)),
    rule(Guest, SEGMENTS, "guest_ldtr_reserved", "reserved access rights of guest LDTR are 0", |v| {
        !LDTR.usable(v) || LDTR.reserved_clear(v)
    }),
    rule(Guest, SEGMENTS, "guest_ldtr_granularity", "G of guest LDTR agrees with the limit", |v| {
        !LDTR.usable(v) || LDTR.granular(v)
    }),
];

/// The lists by kind of check.
pub(super) const LISTS: &[&[Rule]] = &[
    &SINGLE,
    &V8086_BASE,
    &V8086_LIMIT,
    &V8086_ACCESS,
    &CANONICAL_BASE,
    &LOW_BASE,
    &DATA_TYPE,
    &S_BIT,
    &DATA_DPL,
    &PRESENT,
    &RESERVED,
    &GRANULARITY,
];
