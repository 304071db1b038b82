//! One test per rule: a valid VMCS in which that rule alone is broken.
//!
//! The list is complete: a rule without its test fails `every_rule_has_its_test`.

use super::super::bits::{activity, entry, exit, interruptibility, pin, primary, secondary};
use super::super::capabilities::REVISION;
use super::super::features::Feature;
use super::super::fields::{header, slot};
use super::super::model::Model;
use super::super::vmcs::{SLOTS, VmcsPage};
use super::{View, check_entry, rules};
use crate::state::flag;

/// Where the VMCS of a fixture says it lies.
const HERE: u64 = 0x5000;
/// A page that `read` answers as a VMCS region, and one that it answers as a shadow VMCS.
const LINKED: u64 = 0x9000;
const LINKED_SHADOW: u64 = 0xa000;
const LINKED_OTHER: u64 = 0xb000;
/// A virtual-APIC page with VTPR 20H.
const APIC_PAGE: u64 = 0xc000;

/// A VMCS outside of any memory.
struct Fixture {
    slots: Box<[u64; SLOTS]>,
    model: Model,
}

impl Fixture {
    /// A 64-bit guest of a 64-bit host, as KVM would set it up.
    fn valid() -> Self {
        let model = Model::default();
        let mut f = Self { slots: Box::new([0; SLOTS]), model };
        let vmx = f.model.vmx;
        f.set(header::REVISION, u64::from(REVISION));
        f.set(slot::PIN_CONTROLS, u64::from(vmx.pin.ones | pin::EXTERNAL_INTERRUPT | pin::NMI | pin::VIRTUAL_NMIS));
        f.set(slot::PRIMARY_CONTROLS, u64::from(vmx.primary.ones | primary::SECONDARY | primary::HLT));
        f.set(slot::SECONDARY_CONTROLS, u64::from(secondary::EPT | secondary::VPID));
        f.set(slot::EXIT_CONTROLS, u64::from(vmx.exit.ones | exit::HOST_64 | exit::LOAD_EFER | exit::LOAD_PAT));
        f.set(
            slot::ENTRY_CONTROLS,
            u64::from(vmx.entry.ones | entry::IA32E | entry::LOAD_EFER | entry::LOAD_PAT | entry::LOAD_DEBUG),
        );
        f.set(slot::VPID, 1);
        f.set(slot::EPT_POINTER, 0x1000 | 3 << 3 | 6);
        f.set(slot::GUEST_VMCS_LINK_POINTER, !0);
        for (at, value) in [
            (slot::HOST_CR0, 0x8005_0033),
            (slot::HOST_CR3, 0x1000),
            (slot::HOST_CR4, 0x2020),
            (slot::HOST_CS_SELECTOR, 0x10),
            (slot::HOST_SS_SELECTOR, 0x18),
            (slot::HOST_TR_SELECTOR, 0x40),
            (slot::HOST_PAT, 0x0007_0406_0007_0406),
            (slot::HOST_EFER, 0xd01),
            (slot::HOST_RIP, 0xffff_ffff_8100_0000),
            (slot::GUEST_CR0, 0x8005_0033),
            (slot::GUEST_CR3, 0x2000),
            (slot::GUEST_CR4, 0x2020),
            (slot::GUEST_EFER, 0xd01),
            (slot::GUEST_PAT, 0x0007_0406_0007_0406),
            (slot::GUEST_DR7, 0x400),
            (slot::GUEST_RFLAGS, 2),
            (slot::GUEST_RIP, 0xffff_ffff_8100_0000),
            (slot::GUEST_GDTR_LIMIT, 0x7f),
            (slot::GUEST_IDTR_LIMIT, 0xfff),
        ] {
            f.set(at, value);
        }
        for n in 0..8 {
            let at = slot::GUEST_ES_SELECTOR + 4 * n;
            let (selector, limit, access) = match n {
                1 => (0x10, 0xffff_ffff, 0xa09b),
                6 => (0, 0, 0x1_0000),
                7 => (0x40, 0x206f, 0x8b),
                _ => (0x18, 0xffff_ffff, 0xc093),
            };
            f.set(at, selector);
            f.set(at + 2, limit);
            f.set(at + 3, access);
        }
        f
    }

    /// A 32-bit guest of the same host: PAE paging off, so that virtual-8086 mode is possible.
    fn valid_32() -> Self {
        let mut f = Self::valid();
        f.clear(slot::ENTRY_CONTROLS, entry::IA32E.into());
        f.set(slot::GUEST_EFER, 0);
        f.set(slot::GUEST_CR4, 0x2000);
        f.set(slot::GUEST_CS_ACCESS, 0xc09b);
        f.set(slot::GUEST_RIP, 0x1000);
        f
    }

    /// A virtual-8086 guest.
    fn valid_v8086() -> Self {
        let mut f = Self::valid_32();
        f.or(slot::GUEST_RFLAGS, flag::VM);
        for n in 0..6 {
            let at = slot::GUEST_ES_SELECTOR + 4 * n;
            f.set(at, 0x1000);
            f.set(at + 1, 0x1_0000);
            f.set(at + 2, 0xffff);
            f.set(at + 3, 0xf3);
        }
        f
    }

    /// A 32-bit host with a 32-bit guest.
    fn valid_host_32() -> Self {
        let mut f = Self::valid_32();
        f.clear(slot::EXIT_CONTROLS, exit::HOST_64.into());
        f.set(slot::HOST_EFER, 0);
        f.set(slot::HOST_RIP, 0x1000);
        f
    }

    fn unrestricted(mut self) -> Self {
        self.secondary(secondary::UNRESTRICTED);
        self
    }

    fn set(&mut self, slot: usize, value: u64) {
        self.slots[slot] = value;
    }
    fn or(&mut self, slot: usize, bits: u64) {
        self.slots[slot] |= bits;
    }
    fn clear(&mut self, slot: usize, bits: u64) {
        self.slots[slot] &= !bits;
    }
    fn primary(&mut self, bits: u32) {
        self.or(slot::PRIMARY_CONTROLS, bits.into());
    }
    fn secondary(&mut self, bits: u32) {
        self.or(slot::SECONDARY_CONTROLS, bits.into());
    }
    fn inject(&mut self, kind: u64, vector: u64, error: bool) {
        self.set(slot::ENTRY_INTERRUPTION_INFO, vector | kind << 8 | u64::from(error) << 11 | 1 << 31);
    }

    /// Everything that is broken, and what the checks report.
    fn broken(&mut self) -> (Vec<&'static str>, Option<&'static str>) {
        // SAFETY: the fixture's own box, as large as a region.
        let vmcs = unsafe { VmcsPage::new(HERE, self.slots.as_mut_ptr()) };
        let read = |pa: u64| match pa {
            HERE | LINKED | LINKED_MISALIGNED => u64::from(REVISION),
            LINKED_SHADOW => u64::from(REVISION) | 1 << 31,
            p if p == APIC_PAGE + 0x80 => 0x20,
            _ => 0,
        };
        let view = View::new(&vmcs, &self.model, &read);
        let all = rules().filter(|rule| !rule.holds(&view)).map(|rule| rule.name).collect();
        (all, check_entry(&view).map(|rule| rule.name))
    }
}

#[test]
fn valid_ones_break_nothing() {
    for mut f in [
        Fixture::valid(),
        Fixture::valid_32(),
        Fixture::valid_v8086(),
        Fixture::valid_host_32(),
        Fixture::valid().unrestricted(),
        delivering(),
    ] {
        assert_eq!(f.broken(), (vec![], None));
    }
}

/// Tests by name of the rule: a fixture and what breaks it.
macro_rules! breaks {
    ($($name:ident: $base:expr, |$f:ident| $change:expr;)+) => {
        const TESTED: &[&str] = &[$(stringify!($name)),+];
        $(#[test]
        fn $name() {
            let mut $f: Fixture = $base;
            $change;
            assert_eq!($f.broken(), (vec![stringify!($name)], Some(stringify!($name))));
        })+
    };
}

#[test]
fn every_rule_has_its_test() {
    let names: Vec<_> = rules().map(|rule| rule.name).collect();
    assert_eq!(names.iter().filter(|name| !TESTED.contains(name)).collect::<Vec<_>>(), Vec::<&&str>::new());
    assert_eq!(TESTED.len(), names.len(), "a rule has two tests, or two rules one name");
}

#[test]
fn rules_cite_chapter_27() {
    for rule in rules() {
        assert!(rule.section.starts_with("27."), "{}", rule.name);
        assert!(!rule.text.is_empty());
    }
}

/// A model without one feature.
fn without(feature: Feature, mut f: Fixture) -> Fixture {
    f.model = Model::new("max", [], [feature.name()]).unwrap();
    f
}

const HIGH: u64 = 1 << 45;
const NOT_CANONICAL: u64 = 1 << 60;

breaks! {
    pin_reserved: Fixture::valid(), |f| f.or(slot::PIN_CONTROLS, 1 << 20);
    primary_reserved: Fixture::valid(), |f| f.clear(slot::PRIMARY_CONTROLS, 1 << 1);
    secondary_reserved: Fixture::valid(), |f| f.secondary(1 << 31);
    cr3_target_count: Fixture::valid(), |f| f.set(slot::CR3_TARGET_COUNT, 5);
    io_bitmap_a: Fixture::valid(), |f| { f.primary(primary::IO_BITMAPS); f.set(slot::IO_BITMAP_A, 8) };
    io_bitmap_b: Fixture::valid(), |f| { f.primary(primary::IO_BITMAPS); f.set(slot::IO_BITMAP_B, HIGH) };
    msr_bitmap: Fixture::valid(), |f| { f.primary(primary::MSR_BITMAPS); f.set(slot::MSR_BITMAP, 1) };
    virtual_apic_page: Fixture::valid(), |f| {
        f.primary(primary::TPR_SHADOW);
        f.set(slot::VIRTUAL_APIC_ADDRESS, APIC_PAGE | 1)
    };
    tpr_threshold_reserved: Fixture::valid(), |f| {
        f.primary(primary::TPR_SHADOW);
        f.set(slot::VIRTUAL_APIC_ADDRESS, APIC_PAGE);
        f.set(slot::TPR_THRESHOLD, 0x10)
    };
    tpr_threshold_above_vtpr: Fixture::valid(), |f| {
        f.primary(primary::TPR_SHADOW);
        f.set(slot::VIRTUAL_APIC_ADDRESS, APIC_PAGE);
        f.set(slot::TPR_THRESHOLD, 3)
    };
    x2apic_needs_tpr_shadow: Fixture::valid(), |f| f.secondary(secondary::X2APIC);
    apic_register_needs_tpr_shadow: Fixture::valid(), |f| f.secondary(secondary::APIC_REGISTER);
    virtual_interrupt_needs_tpr_shadow: Fixture::valid(), |f| f.secondary(secondary::VIRTUAL_INTERRUPT);
    virtual_interrupt_needs_exiting: delivering(), |f| {
        f.clear(slot::PIN_CONTROLS, (pin::EXTERNAL_INTERRUPT | pin::POSTED_INTERRUPTS).into())
    };
    posted_needs_virtual_interrupt: delivering(), |f| {
        f.clear(slot::SECONDARY_CONTROLS, secondary::VIRTUAL_INTERRUPT.into());
        f.set(slot::TPR_THRESHOLD, 0)
    };
    posted_needs_acknowledge: delivering(), |f| f.clear(slot::EXIT_CONTROLS, exit::ACKNOWLEDGE.into());
    posted_vector: delivering(), |f| f.set(slot::POSTED_INTERRUPT_VECTOR, 0x100);
    posted_descriptor: delivering(), |f| f.set(slot::POSTED_INTERRUPT_DESCRIPTOR, 0x1020);
    virtual_nmis_need_nmi_exiting: Fixture::valid(), |f| f.clear(slot::PIN_CONTROLS, pin::NMI.into());
    nmi_window_needs_virtual_nmis: Fixture::valid(), |f| {
        f.clear(slot::PIN_CONTROLS, pin::VIRTUAL_NMIS.into());
        f.primary(primary::NMI_WINDOW)
    };
    apic_access_page: Fixture::valid(), |f| {
        f.secondary(secondary::APIC_ACCESSES);
        f.set(slot::APIC_ACCESS_ADDRESS, 0x10)
    };
    x2apic_or_apic_accesses: Fixture::valid(), |f| {
        f.primary(primary::TPR_SHADOW);
        f.set(slot::VIRTUAL_APIC_ADDRESS, APIC_PAGE);
        f.secondary(secondary::APIC_ACCESSES | secondary::X2APIC)
    };
    vpid_zero: Fixture::valid(), |f| f.set(slot::VPID, 0);
    ept_memory_type: Fixture::valid(), |f| f.set(slot::EPT_POINTER, 0x1000 | 3 << 3 | 5);
    ept_walk_length: Fixture::valid(), |f| f.set(slot::EPT_POINTER, 0x1000 | 4 << 3 | 6);
    ept_accessed_dirty: without(Feature::EptAd, Fixture::valid()), |f| f.or(slot::EPT_POINTER, 1 << 6);
    ept_pointer_reserved: Fixture::valid(), |f| f.or(slot::EPT_POINTER, 1 << 7);
    unrestricted_needs_ept: Fixture::valid().unrestricted(), |f| {
        f.clear(slot::SECONDARY_CONTROLS, secondary::EPT.into())
    };
    vmread_bitmap: Fixture::valid(), |f| { f.secondary(secondary::VMCS_SHADOWING); f.set(slot::VMREAD_BITMAP, 1) };
    vmwrite_bitmap: Fixture::valid(), |f| { f.secondary(secondary::VMCS_SHADOWING); f.set(slot::VMWRITE_BITMAP, HIGH) };
    exit_reserved: Fixture::valid(), |f| f.clear(slot::EXIT_CONTROLS, 1);
    save_timer_needs_timer: Fixture::valid(), |f| f.or(slot::EXIT_CONTROLS, exit::SAVE_TIMER.into());
    exit_msr_store_area: Fixture::valid(), |f| {
        f.set(slot::EXIT_MSR_STORE_COUNT, 1);
        f.set(slot::EXIT_MSR_STORE_ADDRESS, 8)
    };
    exit_msr_load_area: Fixture::valid(), |f| {
        f.set(slot::EXIT_MSR_LOAD_COUNT, 2);
        f.set(slot::EXIT_MSR_LOAD_ADDRESS, (1 << 40) - 16)
    };
    entry_reserved: Fixture::valid(), |f| f.or(slot::ENTRY_CONTROLS, entry::SMM.into());
    entry_msr_load_area: Fixture::valid(), |f| {
        f.set(slot::ENTRY_MSR_LOAD_COUNT, 1);
        f.set(slot::ENTRY_MSR_LOAD_ADDRESS, HIGH)
    };
    event_type: Fixture::valid(), |f| f.inject(1, 0, false);
    event_vector: Fixture::valid(), |f| f.inject(2, 3, false);
    event_error_code: Fixture::valid(), |f| f.inject(3, 13, false);
    event_reserved: Fixture::valid(), |f| {
        f.inject(2, 2, false);
        f.or(slot::ENTRY_INTERRUPTION_INFO, 1 << 12)
    };
    event_error_code_reserved: Fixture::valid(), |f| {
        f.inject(3, 13, true);
        f.set(slot::ENTRY_ERROR_CODE, 1 << 16)
    };
    event_instruction_length: Fixture::valid(), |f| {
        f.inject(4, 0x80, false);
        f.set(slot::ENTRY_INSTRUCTION_LENGTH, 16)
    };

    host_cr0_fixed: Fixture::valid(), |f| f.clear(slot::HOST_CR0, 1 << 5);
    host_cr4_fixed: Fixture::valid(), |f| f.or(slot::HOST_CR4, 1 << 30);
    host_cr3: Fixture::valid(), |f| f.set(slot::HOST_CR3, HIGH);
    host_sysenter_esp: Fixture::valid(), |f| f.set(slot::HOST_SYSENTER_ESP, NOT_CANONICAL);
    host_sysenter_eip: Fixture::valid(), |f| f.set(slot::HOST_SYSENTER_EIP, NOT_CANONICAL);
    host_pat: Fixture::valid(), |f| f.set(slot::HOST_PAT, 2);
    host_efer_reserved: Fixture::valid(), |f| f.or(slot::HOST_EFER, 1 << 1);
    host_efer_mode: Fixture::valid(), |f| f.clear(slot::HOST_EFER, 1 << 8);
    host_es_selector: Fixture::valid(), |f| f.set(slot::HOST_ES_SELECTOR, 3);
    host_cs_selector: Fixture::valid(), |f| f.set(slot::HOST_CS_SELECTOR, 0x14);
    host_ss_selector: Fixture::valid(), |f| f.set(slot::HOST_SS_SELECTOR, 1);
    host_ds_selector: Fixture::valid(), |f| f.set(slot::HOST_DS_SELECTOR, 4);
    host_fs_selector: Fixture::valid(), |f| f.set(slot::HOST_FS_SELECTOR, 2);
    host_gs_selector: Fixture::valid(), |f| f.set(slot::HOST_GS_SELECTOR, 3);
    host_tr_selector: Fixture::valid(), |f| f.set(slot::HOST_TR_SELECTOR, 0x44);
    host_cs_null: Fixture::valid(), |f| f.set(slot::HOST_CS_SELECTOR, 0);
    host_tr_null: Fixture::valid(), |f| f.set(slot::HOST_TR_SELECTOR, 0);
    host_ss_null: Fixture::valid_host_32(), |f| f.set(slot::HOST_SS_SELECTOR, 0);
    host_fs_base: Fixture::valid(), |f| f.set(slot::HOST_FS_BASE, NOT_CANONICAL);
    host_gs_base: Fixture::valid(), |f| f.set(slot::HOST_GS_BASE, NOT_CANONICAL);
    host_gdtr_base: Fixture::valid(), |f| f.set(slot::HOST_GDTR_BASE, NOT_CANONICAL);
    host_idtr_base: Fixture::valid(), |f| f.set(slot::HOST_IDTR_BASE, NOT_CANONICAL);
    host_tr_base: Fixture::valid(), |f| f.set(slot::HOST_TR_BASE, NOT_CANONICAL);
    host_32_ia32e_guest: Fixture::valid(), |f| {
        f.clear(slot::EXIT_CONTROLS, exit::HOST_64.into());
        f.set(slot::HOST_EFER, 0);
        f.set(slot::HOST_RIP, 0)
    };
    host_32_pcide: Fixture::valid_host_32(), |f| f.or(slot::HOST_CR4, 1 << 17);
    host_32_rip: Fixture::valid_host_32(), |f| f.set(slot::HOST_RIP, 1 << 32);
    host_64_pae: Fixture::valid(), |f| f.clear(slot::HOST_CR4, 1 << 5);
    host_64_rip: Fixture::valid(), |f| f.set(slot::HOST_RIP, NOT_CANONICAL);

    guest_cr0_fixed: Fixture::valid(), |f| f.clear(slot::GUEST_CR0, 1 << 5);
    guest_cr0_pg_pe: Fixture::valid_32().unrestricted(), |f| f.clear(slot::GUEST_CR0, 1);
    guest_cr4_fixed: Fixture::valid(), |f| f.clear(slot::GUEST_CR4, 1 << 13);
    guest_debugctl: Fixture::valid(), |f| f.set(slot::GUEST_DEBUGCTL, 1 << 2);
    guest_ia32e_paging: Fixture::valid(), |f| f.clear(slot::GUEST_CR4, 1 << 5);
    guest_pcide: Fixture::valid_32(), |f| f.or(slot::GUEST_CR4, 1 << 17);
    guest_cr3: Fixture::valid(), |f| f.set(slot::GUEST_CR3, HIGH);
    guest_dr7: Fixture::valid(), |f| f.set(slot::GUEST_DR7, 1 << 32);
    guest_sysenter_esp: Fixture::valid(), |f| f.set(slot::GUEST_SYSENTER_ESP, NOT_CANONICAL);
    guest_sysenter_eip: Fixture::valid(), |f| f.set(slot::GUEST_SYSENTER_EIP, NOT_CANONICAL);
    guest_pat: Fixture::valid(), |f| f.set(slot::GUEST_PAT, 0x0800);
    guest_efer_reserved: Fixture::valid(), |f| f.or(slot::GUEST_EFER, 1 << 12);
    guest_efer_lma: Fixture::valid(), |f| f.clear(slot::GUEST_EFER, 0x500);
    guest_efer_lme: Fixture::valid(), |f| f.clear(slot::GUEST_EFER, 0x100);
    guest_gdtr_base: Fixture::valid(), |f| f.set(slot::GUEST_GDTR_BASE, NOT_CANONICAL);
    guest_idtr_base: Fixture::valid(), |f| f.set(slot::GUEST_IDTR_BASE, NOT_CANONICAL);
    guest_gdtr_limit: Fixture::valid(), |f| f.set(slot::GUEST_GDTR_LIMIT, 0x1_0000);
    guest_idtr_limit: Fixture::valid(), |f| f.set(slot::GUEST_IDTR_LIMIT, 0x1_0000);
    guest_pdptes: Fixture::valid_32(), |f| {
        f.or(slot::GUEST_CR4, 1 << 5);
        f.set(slot::GUEST_PDPTE2, 3)
    };

    guest_tr_ti: Fixture::valid(), |f| f.or(slot::GUEST_TR_SELECTOR, 4);
    guest_ldtr_ti: Fixture::valid(), |f| { usable_ldtr(&mut f); f.or(slot::GUEST_LDTR_SELECTOR, 4) };
    guest_ss_rpl: Fixture::valid(), |f| {
        // RPL 0 agrees with DPL; CS is the one that differs.
        f.or(slot::GUEST_CS_SELECTOR, 3)
    };
    guest_ldtr_base: Fixture::valid(), |f| { usable_ldtr(&mut f); f.set(slot::GUEST_LDTR_BASE, NOT_CANONICAL) };
    guest_cs_base: Fixture::valid(), |f| f.set(slot::GUEST_CS_BASE, 1 << 32);
    guest_cs_type: Fixture::valid(), |f| f.clear(slot::GUEST_CS_ACCESS, 1);
    guest_ss_type: Fixture::valid(), |f| f.clear(slot::GUEST_SS_ACCESS, 2);
    guest_cs_s: Fixture::valid(), |f| f.clear(slot::GUEST_CS_ACCESS, 1 << 4);
    guest_cs_dpl_data: Fixture::valid().unrestricted(), |f| f.set(slot::GUEST_CS_ACCESS, 0xa093 | 3 << 5);
    guest_cs_dpl: Fixture::valid(), |f| f.or(slot::GUEST_CS_ACCESS, 1 << 5);
    guest_cs_dpl_conforming: Fixture::valid(), |f| f.or(slot::GUEST_CS_ACCESS, 1 << 5 | 4);
    guest_ss_dpl: Fixture::valid(), |f| {
        // Conforming code below SS.DPL, so that only DPL against RPL is wrong.
        f.or(slot::GUEST_CS_ACCESS, 4);
        f.or(slot::GUEST_SS_ACCESS, 3 << 5)
    };
    guest_ss_dpl_real: Fixture::valid().unrestricted(), |f| {
        f.set(slot::GUEST_CS_ACCESS, 0xa093);
        f.or(slot::GUEST_SS_ACCESS, 3 << 5)
    };
    guest_cs_present: Fixture::valid(), |f| f.clear(slot::GUEST_CS_ACCESS, 1 << 7);
    guest_cs_reserved: Fixture::valid(), |f| f.or(slot::GUEST_CS_ACCESS, 1 << 8);
    guest_cs_db: Fixture::valid(), |f| f.or(slot::GUEST_CS_ACCESS, 1 << 14);
    guest_cs_granularity: Fixture::valid(), |f| f.set(slot::GUEST_CS_LIMIT, 0xffff_fffe);
    guest_tr_type: Fixture::valid(), |f| f.clear(slot::GUEST_TR_ACCESS, 2);
    guest_tr_s: Fixture::valid(), |f| f.or(slot::GUEST_TR_ACCESS, 1 << 4);
    guest_tr_present: Fixture::valid(), |f| f.clear(slot::GUEST_TR_ACCESS, 1 << 7);
    guest_tr_reserved: Fixture::valid(), |f| f.or(slot::GUEST_TR_ACCESS, 1 << 17);
    guest_tr_granularity: Fixture::valid(), |f| f.or(slot::GUEST_TR_ACCESS, 1 << 15);
    guest_tr_unusable: Fixture::valid(), |f| f.or(slot::GUEST_TR_ACCESS, 1 << 16);
    guest_ldtr_type: Fixture::valid(), |f| { usable_ldtr(&mut f); f.or(slot::GUEST_LDTR_ACCESS, 1) };
    guest_ldtr_s: Fixture::valid(), |f| { usable_ldtr(&mut f); f.or(slot::GUEST_LDTR_ACCESS, 1 << 4) };
    guest_ldtr_present: Fixture::valid(), |f| { usable_ldtr(&mut f); f.clear(slot::GUEST_LDTR_ACCESS, 1 << 7) };
    guest_ldtr_reserved: Fixture::valid(), |f| { usable_ldtr(&mut f); f.or(slot::GUEST_LDTR_ACCESS, 1 << 11) };
    guest_ldtr_granularity: Fixture::valid(), |f| { usable_ldtr(&mut f); f.set(slot::GUEST_LDTR_LIMIT, 1 << 20) };

    guest_es_v8086_base: Fixture::valid_v8086(), |f| f.set(slot::GUEST_ES_BASE, 0);
    guest_cs_v8086_base: Fixture::valid_v8086(), |f| f.set(slot::GUEST_CS_BASE, 0);
    guest_ss_v8086_base: Fixture::valid_v8086(), |f| f.set(slot::GUEST_SS_BASE, 0);
    guest_ds_v8086_base: Fixture::valid_v8086(), |f| f.set(slot::GUEST_DS_BASE, 0);
    guest_fs_v8086_base: Fixture::valid_v8086(), |f| f.set(slot::GUEST_FS_BASE, 0);
    guest_gs_v8086_base: Fixture::valid_v8086(), |f| f.set(slot::GUEST_GS_BASE, 0);
    guest_es_v8086_limit: Fixture::valid_v8086(), |f| f.set(slot::GUEST_ES_LIMIT, 0xfffe);
    guest_cs_v8086_limit: Fixture::valid_v8086(), |f| f.set(slot::GUEST_CS_LIMIT, 0xfffe);
    guest_ss_v8086_limit: Fixture::valid_v8086(), |f| f.set(slot::GUEST_SS_LIMIT, 0xfffe);
    guest_ds_v8086_limit: Fixture::valid_v8086(), |f| f.set(slot::GUEST_DS_LIMIT, 0xfffe);
    guest_fs_v8086_limit: Fixture::valid_v8086(), |f| f.set(slot::GUEST_FS_LIMIT, 0xfffe);
    guest_gs_v8086_limit: Fixture::valid_v8086(), |f| f.set(slot::GUEST_GS_LIMIT, 0xfffe);
    guest_es_v8086_access: Fixture::valid_v8086(), |f| f.set(slot::GUEST_ES_ACCESS, 0x93);
    guest_cs_v8086_access: Fixture::valid_v8086(), |f| f.set(slot::GUEST_CS_ACCESS, 0xfb);
    guest_ss_v8086_access: Fixture::valid_v8086(), |f| f.set(slot::GUEST_SS_ACCESS, 0x93);
    guest_ds_v8086_access: Fixture::valid_v8086(), |f| f.set(slot::GUEST_DS_ACCESS, 0x93);
    guest_fs_v8086_access: Fixture::valid_v8086(), |f| f.set(slot::GUEST_FS_ACCESS, 0x93);
    guest_gs_v8086_access: Fixture::valid_v8086(), |f| f.set(slot::GUEST_GS_ACCESS, 0x93);
    guest_tr_base: Fixture::valid(), |f| f.set(slot::GUEST_TR_BASE, NOT_CANONICAL);
    guest_fs_base: Fixture::valid(), |f| f.set(slot::GUEST_FS_BASE, NOT_CANONICAL);
    guest_gs_base: Fixture::valid(), |f| f.set(slot::GUEST_GS_BASE, NOT_CANONICAL);
    guest_ss_base: Fixture::valid(), |f| f.set(slot::GUEST_SS_BASE, 1 << 32);
    guest_ds_base: Fixture::valid(), |f| f.set(slot::GUEST_DS_BASE, 1 << 32);
    guest_es_base: Fixture::valid(), |f| f.set(slot::GUEST_ES_BASE, 1 << 32);
    guest_ds_type: Fixture::valid(), |f| f.clear(slot::GUEST_DS_ACCESS, 1);
    guest_es_type: Fixture::valid(), |f| f.set(slot::GUEST_ES_ACCESS, 0xc099);
    guest_fs_type: Fixture::valid(), |f| f.clear(slot::GUEST_FS_ACCESS, 1);
    guest_gs_type: Fixture::valid(), |f| f.clear(slot::GUEST_GS_ACCESS, 1);
    guest_ss_s: Fixture::valid(), |f| f.clear(slot::GUEST_SS_ACCESS, 1 << 4);
    guest_ds_s: Fixture::valid(), |f| f.clear(slot::GUEST_DS_ACCESS, 1 << 4);
    guest_es_s: Fixture::valid(), |f| f.clear(slot::GUEST_ES_ACCESS, 1 << 4);
    guest_fs_s: Fixture::valid(), |f| f.clear(slot::GUEST_FS_ACCESS, 1 << 4);
    guest_gs_s: Fixture::valid(), |f| f.clear(slot::GUEST_GS_ACCESS, 1 << 4);
    guest_ds_dpl: Fixture::valid(), |f| f.or(slot::GUEST_DS_SELECTOR, 3);
    guest_es_dpl: Fixture::valid(), |f| f.or(slot::GUEST_ES_SELECTOR, 3);
    guest_fs_dpl: Fixture::valid(), |f| f.or(slot::GUEST_FS_SELECTOR, 3);
    guest_gs_dpl: Fixture::valid(), |f| f.or(slot::GUEST_GS_SELECTOR, 3);
    guest_ss_present: Fixture::valid(), |f| f.clear(slot::GUEST_SS_ACCESS, 1 << 7);
    guest_ds_present: Fixture::valid(), |f| f.clear(slot::GUEST_DS_ACCESS, 1 << 7);
    guest_es_present: Fixture::valid(), |f| f.clear(slot::GUEST_ES_ACCESS, 1 << 7);
    guest_fs_present: Fixture::valid(), |f| f.clear(slot::GUEST_FS_ACCESS, 1 << 7);
    guest_gs_present: Fixture::valid(), |f| f.clear(slot::GUEST_GS_ACCESS, 1 << 7);
    guest_ss_reserved: Fixture::valid(), |f| f.or(slot::GUEST_SS_ACCESS, 1 << 9);
    guest_ds_reserved: Fixture::valid(), |f| f.or(slot::GUEST_DS_ACCESS, 1 << 9);
    guest_es_reserved: Fixture::valid(), |f| f.or(slot::GUEST_ES_ACCESS, 1 << 9);
    guest_fs_reserved: Fixture::valid(), |f| f.or(slot::GUEST_FS_ACCESS, 1 << 9);
    guest_gs_reserved: Fixture::valid(), |f| f.or(slot::GUEST_GS_ACCESS, 1 << 31);
    guest_ss_granularity: Fixture::valid(), |f| f.set(slot::GUEST_SS_LIMIT, 0xffff_0000);
    guest_ds_granularity: Fixture::valid(), |f| f.set(slot::GUEST_DS_LIMIT, 0xffff_0000);
    guest_es_granularity: Fixture::valid(), |f| f.set(slot::GUEST_ES_LIMIT, 0xffff_0000);
    guest_fs_granularity: Fixture::valid(), |f| f.set(slot::GUEST_FS_LIMIT, 0xffff_0000);
    guest_gs_granularity: Fixture::valid(), |f| f.set(slot::GUEST_GS_LIMIT, 0xffff_0000);

    guest_rip_high: Fixture::valid_32(), |f| f.set(slot::GUEST_RIP, 1 << 32);
    guest_rip_canonical: Fixture::valid(), |f| f.set(slot::GUEST_RIP, NOT_CANONICAL);
    guest_rflags_reserved: Fixture::valid(), |f| f.clear(slot::GUEST_RFLAGS, 2);
    guest_rflags_vm: v8086_segments_64(), |f| f.or(slot::GUEST_RFLAGS, flag::VM);
    guest_rflags_if: Fixture::valid(), |f| f.inject(0, 0x20, false);
    guest_activity: Fixture::valid(), |f| f.set(slot::GUEST_ACTIVITY, 4);
    guest_hlt_dpl: Fixture::valid(), |f| {
        f.set(slot::GUEST_ACTIVITY, activity::HLT);
        for at in [slot::GUEST_CS_SELECTOR, slot::GUEST_SS_SELECTOR] {
            f.or(at, 3);
            f.or(at + 3, 3 << 5);
        }
    };
    guest_activity_blocking: Fixture::valid(), |f| {
        f.set(slot::GUEST_ACTIVITY, activity::SHUTDOWN);
        f.set(slot::GUEST_INTERRUPTIBILITY, interruptibility::MOV_SS)
    };
    guest_hlt_event: Fixture::valid(), |f| { f.set(slot::GUEST_ACTIVITY, activity::HLT); f.inject(3, 6, false) };
    guest_shutdown_event: Fixture::valid(), |f| {
        f.set(slot::GUEST_ACTIVITY, activity::SHUTDOWN);
        f.inject(3, 1, false)
    };
    guest_sipi_event: Fixture::valid(), |f| {
        f.set(slot::GUEST_ACTIVITY, activity::WAIT_FOR_SIPI);
        f.inject(2, 2, false)
    };
    guest_interruptibility_reserved: Fixture::valid(), |f| f.set(slot::GUEST_INTERRUPTIBILITY, 1 << 5);
    guest_sti_and_mov_ss: Fixture::valid(), |f| {
        f.or(slot::GUEST_RFLAGS, flag::IF);
        f.set(slot::GUEST_INTERRUPTIBILITY, 3)
    };
    guest_sti_if: Fixture::valid(), |f| f.set(slot::GUEST_INTERRUPTIBILITY, interruptibility::STI);
    guest_blocked_interrupt: Fixture::valid(), |f| {
        f.or(slot::GUEST_RFLAGS, flag::IF);
        f.set(slot::GUEST_INTERRUPTIBILITY, interruptibility::STI);
        f.inject(0, 0x20, false)
    };
    guest_blocked_nmi: Fixture::valid(), |f| {
        f.set(slot::GUEST_INTERRUPTIBILITY, interruptibility::MOV_SS);
        f.inject(2, 2, false)
    };
    guest_smi_blocking: Fixture::valid(), |f| f.set(slot::GUEST_INTERRUPTIBILITY, interruptibility::SMI);
    guest_virtual_nmi_blocking: Fixture::valid(), |f| {
        f.set(slot::GUEST_INTERRUPTIBILITY, interruptibility::NMI);
        f.inject(2, 2, false)
    };
    guest_pending_debug_reserved: Fixture::valid(), |f| f.set(slot::GUEST_PENDING_DEBUG, 1 << 16);
    guest_pending_debug_bs: Fixture::valid(), |f| {
        f.or(slot::GUEST_RFLAGS, flag::TF);
        f.set(slot::GUEST_INTERRUPTIBILITY, interruptibility::MOV_SS)
    };
    link_pointer_revision: Fixture::valid(), |f| f.set(slot::GUEST_VMCS_LINK_POINTER, LINKED_OTHER);
    link_pointer_shadow: Fixture::valid(), |f| f.set(slot::GUEST_VMCS_LINK_POINTER, LINKED_SHADOW);
    link_pointer_current: Fixture::valid(), |f| f.set(slot::GUEST_VMCS_LINK_POINTER, HERE);
    link_pointer_address: Fixture::valid(), |f| f.set(slot::GUEST_VMCS_LINK_POINTER, LINKED_MISALIGNED);
}

/// With virtual-interrupt delivery and posted interrupts; the TPR threshold is then not looked at.
fn delivering() -> Fixture {
    let mut f = Fixture::valid();
    f.primary(primary::TPR_SHADOW);
    f.secondary(secondary::VIRTUAL_INTERRUPT | secondary::APIC_REGISTER);
    f.or(slot::PIN_CONTROLS, pin::POSTED_INTERRUPTS.into());
    f.or(slot::EXIT_CONTROLS, exit::ACKNOWLEDGE.into());
    f.set(slot::VIRTUAL_APIC_ADDRESS, APIC_PAGE);
    f.set(slot::POSTED_INTERRUPT_VECTOR, 0xf2);
    f.set(slot::POSTED_INTERRUPT_DESCRIPTOR, 0x1040);
    f.set(slot::TPR_THRESHOLD, 0xff);
    f
}

/// Answered as a VMCS region, but no page.
const LINKED_MISALIGNED: u64 = 0x9008;

fn usable_ldtr(f: &mut Fixture) {
    f.set(slot::GUEST_LDTR_SELECTOR, 0x50);
    f.set(slot::GUEST_LDTR_LIMIT, 0xfff);
    f.set(slot::GUEST_LDTR_ACCESS, 0x82);
}

/// A 64-bit guest whose segments would do for virtual-8086 mode.
fn v8086_segments_64() -> Fixture {
    let mut f = Fixture::valid();
    for n in 0..6 {
        let at = slot::GUEST_ES_SELECTOR + 4 * n;
        f.set(at, 0x1000);
        f.set(at + 1, 0x1_0000);
        f.set(at + 2, 0xffff);
        f.set(at + 3, 0xf3);
    }
    f.set(slot::GUEST_RIP, 0x1000);
    f
}

#[test]
fn a_linked_vmcs_is_fine_with_and_without_shadowing() {
    let mut f = Fixture::valid();
    f.set(slot::GUEST_VMCS_LINK_POINTER, LINKED);
    assert_eq!(f.broken().1, None);
    f.secondary(secondary::VMCS_SHADOWING);
    f.set(slot::GUEST_VMCS_LINK_POINTER, LINKED_SHADOW);
    assert_eq!(f.broken().1, None);
}

/// One test per control bit: what the capability MSR fixes at 1 must not be 0, what it does not allow must not be 1.
#[test]
fn each_control_bit_obeys_its_capability() {
    let vmx = Model::default().vmx;
    for (at, allowed, rule) in [
        (slot::PIN_CONTROLS, vmx.pin, "pin_reserved"),
        (slot::PRIMARY_CONTROLS, vmx.primary, "primary_reserved"),
        (slot::SECONDARY_CONTROLS, vmx.secondary, "secondary_reserved"),
        (slot::EXIT_CONTROLS, vmx.exit, "exit_reserved"),
        (slot::ENTRY_CONTROLS, vmx.entry, "entry_reserved"),
    ] {
        for bit in 0..32 {
            let mut f = Fixture::valid();
            f.clear(at, 1 << bit);
            let broken = f.broken().0.contains(&rule);
            assert_eq!(broken, allowed.ones >> bit & 1 != 0, "{rule}: bit {bit} at 0");
            f.or(at, 1 << bit);
            let broken = f.broken().0.contains(&rule);
            assert_eq!(broken, allowed.may >> bit & 1 == 0, "{rule}: bit {bit} at 1");
        }
    }
}
