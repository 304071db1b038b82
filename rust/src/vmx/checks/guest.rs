//! Checks on guest control registers, debug registers, MSRs, descriptor tables and PDPTEs
//! (SDM 27.3.1.1, 27.3.1.3, 27.3.1.6): failure is a VM exit with reason 33.

use super::super::bits::{entry, secondary};
use super::super::fields::slot;
use super::{EFER_BITS, Phase::Guest, Rule, View, canonical, pat_valid, rule};
use crate::mmu::pdpte_valid;
use crate::state::cr;

const REGISTERS: &str = "27.3.1.1";
const TABLES: &str = "27.3.1.3";
const PDPTES: &str = "27.3.1.6";

/// Bits of IA32_DEBUGCTL that silicon takes: LBR, BTF.
const DEBUGCTL_BITS: u64 = 3;
/// CR0 bits that entry neither checks nor loads: CD, NW.
const UNCHECKED: u64 = cr::CR0_CD | cr::CR0_NW;

fn load_debug(v: &View<'_>) -> bool {
    v.entry & entry::LOAD_DEBUG != 0
}

fn load_efer(v: &View<'_>) -> bool {
    v.entry & entry::LOAD_EFER != 0
}

pub(super) const RULES: &[Rule] = &[
    rule(Guest, REGISTERS, "guest_cr0_fixed", "guest CR0 has the bits that VMX operation fixes", |v| {
        let (value, vmx) = (v.get(slot::GUEST_CR0), &v.model.vmx);
        let free = if v.unrestricted() { cr::CR0_PE | cr::CR0_PG } else { 0 };
        let ones = vmx.cr0_fixed0 & !free & !UNCHECKED;
        value & ones == ones && value & !vmx.cr0_fixed1 & !UNCHECKED == 0
    }),
    rule(Guest, REGISTERS, "guest_cr0_pg_pe", "guest CR0.PG = 1 needs PE = 1", |v| {
        let value = v.get(slot::GUEST_CR0);
        value & cr::CR0_PG == 0 || value & cr::CR0_PE != 0
    }),
    rule(Guest, REGISTERS, "guest_cr4_fixed", "guest CR4 has the bits that VMX operation fixes", |v| {
        let (value, vmx) = (v.get(slot::GUEST_CR4), &v.model.vmx);
        value & vmx.cr4_fixed0 == vmx.cr4_fixed0 && value & !vmx.cr4_fixed1 == 0
    }),
    rule(Guest, REGISTERS, "guest_debugctl", "reserved bits of guest IA32_DEBUGCTL are 0", |v| {
        !load_debug(v) || v.get(slot::GUEST_DEBUGCTL) & !DEBUGCTL_BITS == 0
    }),
    rule(Guest, REGISTERS, "guest_ia32e_paging", "an IA-32e mode guest has CR0.PG = 1 and CR4.PAE = 1", |v| {
        !v.ia32e() || v.get(slot::GUEST_CR0) & cr::CR0_PG != 0 && v.get(slot::GUEST_CR4) & cr::CR4_PAE != 0
    }),
    rule(Guest, REGISTERS, "guest_pcide", "guest CR4.PCIDE = 1 only in IA-32e mode", |v| {
        v.ia32e() || v.get(slot::GUEST_CR4) & cr::CR4_PCIDE == 0
    }),
    rule(Guest, REGISTERS, "guest_cr3", "guest CR3 is within the physical-address width", |v| {
        v.physical(v.get(slot::GUEST_CR3))
    }),
    rule(Guest, REGISTERS, "guest_dr7", "bits 63:32 of guest DR7 are 0", |v| {
        !load_debug(v) || v.get(slot::GUEST_DR7) >> 32 == 0
    }),
    rule(Guest, REGISTERS, "guest_sysenter_esp", "guest IA32_SYSENTER_ESP is canonical", |v| {
        canonical(v.get(slot::GUEST_SYSENTER_ESP))
    }),
    rule(Guest, REGISTERS, "guest_sysenter_eip", "guest IA32_SYSENTER_EIP is canonical", |v| {
        canonical(v.get(slot::GUEST_SYSENTER_EIP))
    }),
    rule(Guest, REGISTERS, "guest_pat", "guest IA32_PAT holds memory types", |v| {
        v.entry & entry::LOAD_PAT == 0 || pat_valid(v.get(slot::GUEST_PAT))
    }),
    rule(Guest, REGISTERS, "guest_efer_reserved", "reserved bits of guest IA32_EFER are 0", |v| {
        !load_efer(v) || v.get(slot::GUEST_EFER) & !EFER_BITS == 0
    }),
    rule(Guest, REGISTERS, "guest_efer_lma", "guest EFER.LMA equals the IA-32e mode guest control", |v| {
        !load_efer(v) || (v.get(slot::GUEST_EFER) & cr::EFER_LMA != 0) == v.ia32e()
    }),
    rule(Guest, REGISTERS, "guest_efer_lme", "guest EFER.LME equals LMA where CR0.PG = 1", |v| {
        let efer = v.get(slot::GUEST_EFER);
        !load_efer(v)
            || v.get(slot::GUEST_CR0) & cr::CR0_PG == 0
            || (efer & cr::EFER_LMA != 0) == (efer & cr::EFER_LME != 0)
    }),
    rule(Guest, TABLES, "guest_gdtr_base", "guest GDTR base is canonical", |v| canonical(v.get(slot::GUEST_GDTR_BASE))),
    rule(Guest, TABLES, "guest_idtr_base", "guest IDTR base is canonical", |v| canonical(v.get(slot::GUEST_IDTR_BASE))),
    rule(Guest, TABLES, "guest_gdtr_limit", "bits 31:16 of the guest GDTR limit are 0", |v| {
        v.get(slot::GUEST_GDTR_LIMIT) >> 16 == 0
    }),
    rule(Guest, TABLES, "guest_idtr_limit", "bits 31:16 of the guest IDTR limit are 0", |v| {
        v.get(slot::GUEST_IDTR_LIMIT) >> 16 == 0
    }),
    Rule {
        qualification: 2,
        ..rule(Guest, PDPTES, "guest_pdptes", "reserved bits of the guest PDPTEs are 0", |v| {
            let pae = v.get(slot::GUEST_CR0) & cr::CR0_PG != 0 && v.get(slot::GUEST_CR4) & cr::CR4_PAE != 0;
            if !pae || v.ia32e() {
                return true;
            }
            let table = v.get(slot::GUEST_CR3) & 0xffff_ffe0;
            (0..4).all(|n| {
                pdpte_valid(if v.secondary(secondary::EPT) {
                    v.get(slot::GUEST_PDPTE0 + n)
                } else {
                    (v.read)(table + 8 * n as u64)
                })
            })
        })
    },
];
