//! Checks on VMX controls (SDM 27.2.1): failure is VMfailValid with error 7.

use super::super::bits::{exit, pin, primary, secondary};
use super::super::capabilities::{CR3_TARGETS, ept_vpid, misc};
use super::super::fields::slot;
use super::{Phase, Rule, View, kind, rule};
use crate::state::cr;

const EXECUTION: &str = "27.2.1.1";
const EXIT: &str = "27.2.1.2";
const ENTRY: &str = "27.2.1.3";
use Phase::{Controls, Event};

/// What changes only with the controls.
pub(super) const RULES: &[Rule] = &[
    rule(Controls, EXECUTION, "pin_reserved", "pin-based controls within IA32_VMX_PINBASED_CTLS", |v| {
        v.model.vmx.pin.permits(v.pin)
    }),
    rule(Controls, EXECUTION, "primary_reserved", "primary controls within IA32_VMX_PROCBASED_CTLS", |v| {
        v.model.vmx.primary.permits(v.primary)
    }),
    rule(Controls, EXECUTION, "secondary_reserved", "secondary controls within IA32_VMX_PROCBASED_CTLS2", |v| {
        v.model.vmx.secondary.permits(v.secondary)
    }),
    rule(Controls, EXECUTION, "cr3_target_count", "at most 4 CR3-target values", |v| {
        v.get(slot::CR3_TARGET_COUNT) <= CR3_TARGETS
    }),
    rule(Controls, EXECUTION, "io_bitmap_a", "I/O bitmap A is a page within the physical-address width", |v| {
        !v.primary(primary::IO_BITMAPS) || v.page(slot::IO_BITMAP_A)
    }),
    rule(Controls, EXECUTION, "io_bitmap_b", "I/O bitmap B is a page within the physical-address width", |v| {
        !v.primary(primary::IO_BITMAPS) || v.page(slot::IO_BITMAP_B)
    }),
    rule(Controls, EXECUTION, "msr_bitmap", "the MSR bitmap is a page within the physical-address width", |v| {
        !v.primary(primary::MSR_BITMAPS) || v.page(slot::MSR_BITMAP)
    }),
    rule(Controls, EXECUTION, "virtual_apic_page", "the virtual-APIC page is one, within the width", |v| {
        !v.primary(primary::TPR_SHADOW) || v.page(slot::VIRTUAL_APIC_ADDRESS)
    }),
    rule(Controls, EXECUTION, "x2apic_needs_tpr_shadow", "no x2APIC virtualization without TPR shadow", |v| {
        v.primary(primary::TPR_SHADOW) || !v.secondary(secondary::X2APIC)
    }),
    rule(Controls, EXECUTION, "apic_register_needs_tpr_shadow", "no APIC-register virtualization without it", |v| {
        v.primary(primary::TPR_SHADOW) || !v.secondary(secondary::APIC_REGISTER)
    }),
    rule(Controls, EXECUTION, "virtual_interrupt_needs_tpr_shadow", "no virtual-interrupt delivery without it", |v| {
        v.primary(primary::TPR_SHADOW) || !v.secondary(secondary::VIRTUAL_INTERRUPT)
    }),
    rule(Controls, EXECUTION, "virtual_interrupt_needs_exiting", "nor without external-interrupt exiting", |v| {
        v.pin & pin::EXTERNAL_INTERRUPT != 0 || !v.secondary(secondary::VIRTUAL_INTERRUPT)
    }),
    rule(Controls, EXECUTION, "posted_needs_virtual_interrupt", "posted interrupts: virtual-interrupt delivery", |v| {
        v.pin & pin::POSTED_INTERRUPTS == 0 || v.secondary(secondary::VIRTUAL_INTERRUPT)
    }),
    rule(Controls, EXECUTION, "posted_needs_acknowledge", "posted interrupts: acknowledge interrupt on exit", |v| {
        v.pin & pin::POSTED_INTERRUPTS == 0 || v.exit & exit::ACKNOWLEDGE != 0
    }),
    rule(Controls, EXECUTION, "posted_vector", "posted interrupts: the notification vector is 0 to 255", |v| {
        v.pin & pin::POSTED_INTERRUPTS == 0 || v.get(slot::POSTED_INTERRUPT_VECTOR) & 0xff00 == 0
    }),
    rule(Controls, EXECUTION, "posted_descriptor", "posted interrupts: a descriptor of 64 aligned bytes", |v| {
        let address = v.get(slot::POSTED_INTERRUPT_DESCRIPTOR);
        v.pin & pin::POSTED_INTERRUPTS == 0 || address & 63 == 0 && v.physical(address)
    }),
    rule(Controls, EXECUTION, "virtual_nmis_need_nmi_exiting", "no virtual NMIs without NMI exiting", |v| {
        v.pin & pin::NMI != 0 || v.pin & pin::VIRTUAL_NMIS == 0
    }),
    rule(Controls, EXECUTION, "nmi_window_needs_virtual_nmis", "no NMI-window exiting without virtual NMIs", |v| {
        v.pin & pin::VIRTUAL_NMIS != 0 || !v.primary(primary::NMI_WINDOW)
    }),
    rule(Controls, EXECUTION, "apic_access_page", "the APIC-access page is one, within the width", |v| {
        !v.secondary(secondary::APIC_ACCESSES) || v.page(slot::APIC_ACCESS_ADDRESS)
    }),
    rule(Controls, EXECUTION, "x2apic_or_apic_accesses", "not both x2APIC mode and APIC accesses", |v| {
        !(v.secondary(secondary::X2APIC) && v.secondary(secondary::APIC_ACCESSES))
    }),
    rule(Controls, EXECUTION, "vpid_zero", "VPID is not 0", |v| {
        !v.secondary(secondary::VPID) || v.get(slot::VPID) & 0xffff != 0
    }),
    rule(Controls, EXECUTION, "ept_memory_type", "EPT memory type is 0 or 6, as supported", |v| {
        !v.secondary(secondary::EPT)
            || match v.get(slot::EPT_POINTER) & 7 {
                0 => v.model.vmx.ept_vpid & ept_vpid::UNCACHEABLE != 0,
                6 => v.model.vmx.ept_vpid & ept_vpid::WRITE_BACK != 0,
                _ => false,
            }
    }),
    rule(Controls, EXECUTION, "ept_walk_length", "EPT page-walk length is 4", |v| {
        !v.secondary(secondary::EPT) || v.get(slot::EPT_POINTER) >> 3 & 7 == 3
    }),
    rule(Controls, EXECUTION, "ept_accessed_dirty", "EPT accessed and dirty flags only where supported", |v| {
        !v.secondary(secondary::EPT)
            || v.get(slot::EPT_POINTER) & 1 << 6 == 0
            || v.model.vmx.ept_vpid & ept_vpid::ACCESSED_DIRTY != 0
    }),
    rule(Controls, EXECUTION, "ept_pointer_reserved", "reserved bits of the EPT pointer are 0", |v| {
        let pointer = v.get(slot::EPT_POINTER);
        !v.secondary(secondary::EPT) || pointer & 0xf80 == 0 && v.physical(pointer)
    }),
    rule(Controls, EXECUTION, "unrestricted_needs_ept", "no unrestricted guest without EPT", |v| {
        v.secondary(secondary::EPT) || !v.unrestricted()
    }),
    rule(Controls, EXECUTION, "vmread_bitmap", "the VMREAD bitmap is a page within the width", |v| {
        !v.secondary(secondary::VMCS_SHADOWING) || v.page(slot::VMREAD_BITMAP)
    }),
    rule(Controls, EXECUTION, "vmwrite_bitmap", "the VMWRITE bitmap is a page within the width", |v| {
        !v.secondary(secondary::VMCS_SHADOWING) || v.page(slot::VMWRITE_BITMAP)
    }),
    rule(Controls, EXIT, "exit_reserved", "VM-exit controls within IA32_VMX_EXIT_CTLS", |v| {
        v.model.vmx.exit.permits(v.exit)
    }),
    rule(Controls, EXIT, "save_timer_needs_timer", "no saving of the preemption timer without the timer", |v| {
        v.pin & pin::PREEMPTION_TIMER != 0 || v.exit & exit::SAVE_TIMER == 0
    }),
    rule(Controls, EXIT, "exit_msr_store_area", "VM-exit MSR-store area aligned and within the width", |v| {
        msr_area(v, slot::EXIT_MSR_STORE_COUNT, slot::EXIT_MSR_STORE_ADDRESS)
    }),
    rule(Controls, EXIT, "exit_msr_load_area", "VM-exit MSR-load area aligned and within the width", |v| {
        msr_area(v, slot::EXIT_MSR_LOAD_COUNT, slot::EXIT_MSR_LOAD_ADDRESS)
    }),
    rule(Controls, ENTRY, "entry_reserved", "VM-entry controls within IA32_VMX_ENTRY_CTLS", |v| {
        v.model.vmx.entry.permits(v.entry)
    }),
    rule(Controls, ENTRY, "entry_msr_load_area", "VM-entry MSR-load area aligned and within the width", |v| {
        msr_area(v, slot::ENTRY_MSR_LOAD_COUNT, slot::ENTRY_MSR_LOAD_ADDRESS)
    }),
];

/// What can change at each entry: TPR threshold and event injection.
pub(super) const EVENT_RULES: &[Rule] = &[
    rule(Event, EXECUTION, "tpr_threshold_reserved", "bits 31:4 of the TPR threshold are 0", |v| {
        !v.uses_tpr_threshold() || v.get(slot::TPR_THRESHOLD) & 0xffff_fff0 == 0
    }),
    rule(Event, EXECUTION, "tpr_threshold_above_vtpr", "the TPR threshold is not above VTPR 7:4", |v| {
        !v.uses_tpr_threshold()
            || v.secondary(secondary::APIC_ACCESSES)
            || v.get(slot::TPR_THRESHOLD) & 15 <= (v.read)(v.get(slot::VIRTUAL_APIC_ADDRESS) + 0x80) >> 4 & 15
    }),
    rule(Event, ENTRY, "event_type", "the injected event has a type that exists", |v| {
        v.injected().is_none_or(|e| match e.kind {
            kind::RESERVED => false,
            kind::OTHER => v.model.vmx.primary.may & primary::MONITOR_TRAP != 0,
            _ => true,
        })
    }),
    rule(Event, ENTRY, "event_vector", "the vector agrees with the type: NMI 2, exception up to 31, MTF 0", |v| {
        v.injected().is_none_or(|e| match e.kind {
            kind::NMI => e.vector == 2,
            kind::HARDWARE => e.vector <= 31,
            kind::OTHER => e.vector == 0,
            _ => true,
        })
    }),
    rule(Event, ENTRY, "event_error_code", "an error code exactly with the exceptions that have one", |v| {
        v.injected().is_none_or(|e| {
            let protected = !v.unrestricted() || v.get(slot::GUEST_CR0) & cr::CR0_PE != 0;
            let has_one = e.kind == kind::HARDWARE && matches!(e.vector, 8 | 10..=14 | 17) && protected;
            (e.info >> 11 & 1 != 0) == has_one
        })
    }),
    rule(Event, ENTRY, "event_reserved", "bits 30:12 of the interruption information are 0", |v| {
        v.injected().is_none_or(|e| e.info & 0x7fff_f000 == 0)
    }),
    rule(Event, ENTRY, "event_error_code_reserved", "bits 31:16 of an injected error code are 0", |v| {
        v.injected().is_none_or(|e| e.info >> 11 & 1 == 0 || v.get(slot::ENTRY_ERROR_CODE) & 0xffff_0000 == 0)
    }),
    rule(Event, ENTRY, "event_instruction_length", "an injected software event has a length of up to 15", |v| {
        v.injected().is_none_or(|e| {
            let least = if v.model.vmx.misc & misc::ZERO_LENGTH_INJECTION != 0 { 0 } else { 1 };
            !matches!(e.kind, kind::SOFTWARE | kind::PRIVILEGED | kind::SOFTWARE_EXCEPTION)
                || (least..=15).contains(&v.get(slot::ENTRY_INSTRUCTION_LENGTH))
        })
    }),
];

/// An MSR area of at least one entry: 16-byte aligned, first and last byte within the width.
fn msr_area(v: &View<'_>, count: usize, address: usize) -> bool {
    let (count, address) = (v.get(count) & 0xffff_ffff, v.get(address));
    count == 0 || address & 15 == 0 && v.physical(address) && v.physical(address + count * 16 - 1)
}
