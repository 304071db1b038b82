//! Checks on guest RIP, RFLAGS and non-register state (SDM 27.3.1.4, 27.3.1.5): failure is a VM exit with reason 33.

use super::super::bits::{activity, entry, interruptibility as blocking, pin, secondary};
use super::super::capabilities::{REVISION, misc};
use super::super::fields::slot;
use super::super::model::LINEAR_BITS;
use super::{Phase::Execution, Rule, View, kind, rule};
use crate::state::{cr, flag};

const FLAGS: &str = "27.3.1.4";
const STATE: &str = "27.3.1.5";
/// IA32_DEBUGCTL.BTF.
const BTF: u64 = 2;
/// Pending debug exceptions: single step.
const BS: u64 = 1 << 14;

fn blocked(v: &View<'_>, bits: u64) -> bool {
    v.get(slot::GUEST_INTERRUPTIBILITY) & bits != 0
}

fn state(v: &View<'_>) -> u64 {
    v.get(slot::GUEST_ACTIVITY)
}

fn injects(v: &View<'_>, kind: u32) -> bool {
    v.injected().is_some_and(|e| e.kind == kind)
}

fn link(v: &View<'_>) -> Option<u64> {
    Some(v.get(slot::GUEST_VMCS_LINK_POINTER)).filter(|&pointer| pointer != !0)
}

pub(super) const RULES: &[Rule] = &[
    rule(Execution, FLAGS, "guest_rip_high", "bits 63:32 of guest RIP are 0 outside 64-bit mode", |v| {
        v.ia32e() && v.get(slot::GUEST_CS_ACCESS) & 1 << 13 != 0 || v.get(slot::GUEST_RIP) >> 32 == 0
    }),
    rule(Execution, FLAGS, "guest_rip_canonical", "upper bits of guest RIP are all equal in 64-bit mode", |v| {
        // Bits 63:LINEAR_BITS are equal to each other, not to the one below (SDM 27.3.1.4).
        let high = v.get(slot::GUEST_RIP) >> LINEAR_BITS;
        high == 0 || high == !0 >> LINEAR_BITS
    }),
    rule(Execution, FLAGS, "guest_rflags_reserved", "reserved bits of guest RFLAGS are as they must be", |v| {
        let flags = v.get(slot::GUEST_RFLAGS);
        flags >> 22 == 0 && flags & 0x8028 == 0 && flags & 2 != 0
    }),
    rule(Execution, FLAGS, "guest_rflags_vm", "RFLAGS.VM is 0 in IA-32e mode and in real mode", |v| {
        v.get(slot::GUEST_RFLAGS) & flag::VM == 0 || !v.ia32e() && v.get(slot::GUEST_CR0) & cr::CR0_PE != 0
    }),
    rule(Execution, FLAGS, "guest_rflags_if", "RFLAGS.IF is 1 where an external interrupt is injected", |v| {
        !injects(v, kind::EXTERNAL) || v.get(slot::GUEST_RFLAGS) & flag::IF != 0
    }),
    rule(Execution, STATE, "guest_activity", "the activity state is one that is supported", |v| match state(v) {
        activity::ACTIVE => true,
        activity::HLT => v.model.vmx.misc & misc::ACTIVITY_HLT != 0,
        activity::SHUTDOWN => v.model.vmx.misc & misc::ACTIVITY_SHUTDOWN != 0,
        activity::WAIT_FOR_SIPI => v.model.vmx.misc & misc::ACTIVITY_SIPI != 0,
        _ => false,
    }),
    rule(Execution, STATE, "guest_hlt_dpl", "a guest in HLT has SS.DPL 0", |v| {
        state(v) != activity::HLT || v.get(slot::GUEST_SS_ACCESS) >> 5 & 3 == 0
    }),
    rule(Execution, STATE, "guest_activity_blocking", "blocking by STI or MOV SS only where active", |v| {
        !blocked(v, blocking::STI | blocking::MOV_SS) || state(v) == activity::ACTIVE
    }),
    rule(Execution, STATE, "guest_hlt_event", "into HLT: external interrupt, NMI, #DB, #MC or MTF only", |v| {
        state(v) != activity::HLT
            || v.injected().is_none_or(|e| match e.kind {
                kind::EXTERNAL | kind::NMI => true,
                kind::HARDWARE => matches!(e.vector, 1 | 18),
                kind::OTHER => e.vector == 0,
                _ => false,
            })
    }),
    rule(Execution, STATE, "guest_shutdown_event", "into shutdown: NMI or #MC only", |v| {
        state(v) != activity::SHUTDOWN
            || v.injected().is_none_or(|e| match e.kind {
                kind::NMI => true,
                kind::HARDWARE => e.vector == 18,
                _ => false,
            })
    }),
    rule(Execution, STATE, "guest_sipi_event", "into wait-for-SIPI: no event", |v| {
        state(v) != activity::WAIT_FOR_SIPI || v.injected().is_none()
    }),
    rule(Execution, STATE, "guest_interruptibility_reserved", "reserved interruptibility bits are 0", |v| {
        v.get(slot::GUEST_INTERRUPTIBILITY) & 0xffff_fff0 == 0
    }),
    rule(Execution, STATE, "guest_sti_and_mov_ss", "not both blocking by STI and by MOV SS", |v| {
        v.get(slot::GUEST_INTERRUPTIBILITY) & 3 != 3
    }),
    rule(Execution, STATE, "guest_sti_if", "blocking by STI only with RFLAGS.IF = 1", |v| {
        !blocked(v, blocking::STI) || v.get(slot::GUEST_RFLAGS) & flag::IF != 0
    }),
    rule(Execution, STATE, "guest_blocked_interrupt", "no external interrupt under blocking by STI or MOV SS", |v| {
        !injects(v, kind::EXTERNAL) || !blocked(v, blocking::STI | blocking::MOV_SS)
    }),
    rule(Execution, STATE, "guest_blocked_nmi", "no NMI under blocking by MOV SS", |v| {
        !injects(v, kind::NMI) || !blocked(v, blocking::MOV_SS)
    }),
    rule(Execution, STATE, "guest_smi_blocking", "no blocking by SMI outside SMM", |v| {
        !blocked(v, blocking::SMI) || v.entry & entry::SMM != 0
    }),
    rule(Execution, STATE, "guest_virtual_nmi_blocking", "no NMI under blocking by NMI with virtual NMIs", |v| {
        !injects(v, kind::NMI) || v.pin & pin::VIRTUAL_NMIS == 0 || !blocked(v, blocking::NMI)
    }),
    rule(Execution, STATE, "guest_pending_debug_reserved", "reserved pending debug exceptions are 0", |v| {
        v.get(slot::GUEST_PENDING_DEBUG) & !0x500f == 0
    }),
    rule(Execution, STATE, "guest_pending_debug_bs", "pending BS agrees with TF and BTF where it must", |v| {
        if !blocked(v, blocking::STI | blocking::MOV_SS) && state(v) != activity::HLT {
            return true;
        }
        let stepping = v.get(slot::GUEST_RFLAGS) & flag::TF != 0 && v.get(slot::GUEST_DEBUGCTL) & BTF == 0;
        (v.get(slot::GUEST_PENDING_DEBUG) & BS != 0) == stepping
    }),
    Rule {
        qualification: 4,
        ..rule(Execution, STATE, "link_pointer_address", "the VMCS link pointer is a page within the width", |v| {
            link(v).is_none_or(|pointer| pointer & 0xfff == 0 && v.physical(pointer))
        })
    },
    Rule {
        qualification: 4,
        ..rule(Execution, STATE, "link_pointer_revision", "the linked VMCS has the revision identifier", |v| {
            link(v).is_none_or(|pointer| (v.read)(pointer) & 0x7fff_ffff == u64::from(REVISION))
        })
    },
    Rule {
        qualification: 4,
        ..rule(Execution, STATE, "link_pointer_shadow", "the linked VMCS is a shadow VMCS under VMCS shadowing", |v| {
            link(v).is_none_or(|pointer| ((v.read)(pointer) >> 31 & 1 != 0) == v.secondary(secondary::VMCS_SHADOWING))
        })
    },
    Rule {
        qualification: 4,
        ..rule(Execution, STATE, "link_pointer_current", "the VMCS does not link to itself", |v| {
            link(v).is_none_or(|pointer| pointer != v.vmcs.host_pa)
        })
    },
];
