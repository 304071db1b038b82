//! Checks on host state (SDM 27.2.2 to 27.2.4): failure is VMfailValid with error 8.
//!
//! Silicon never loads host state; the checks are for software that relies on them.

use super::super::bits::{entry, exit};
use super::super::fields::slot;
use super::{EFER_BITS, Phase::Host, Rule, View, canonical, pat_valid, rule};
use crate::state::cr;

const REGISTERS: &str = "27.2.2";
const SEGMENTS: &str = "27.2.3";
const ADDRESS_SPACE: &str = "27.2.4";

fn host_64(v: &View<'_>) -> bool {
    v.exit & exit::HOST_64 != 0
}

/// TI and RPL are 0.
fn plain(v: &View<'_>, slot: usize) -> bool {
    v.get(slot) & 7 == 0
}

pub(super) const RULES: &[Rule] = &[
    rule(Host, REGISTERS, "host_cr0_fixed", "host CR0 has the bits that VMX operation fixes", |v| {
        let (value, vmx) = (v.get(slot::HOST_CR0), &v.model.vmx);
        value & vmx.cr0_fixed0 == vmx.cr0_fixed0 && value & !vmx.cr0_fixed1 == 0
    }),
    rule(Host, REGISTERS, "host_cr4_fixed", "host CR4 has the bits that VMX operation fixes", |v| {
        let (value, vmx) = (v.get(slot::HOST_CR4), &v.model.vmx);
        value & vmx.cr4_fixed0 == vmx.cr4_fixed0 && value & !vmx.cr4_fixed1 == 0
    }),
    rule(Host, REGISTERS, "host_cr3", "host CR3 is within the physical-address width", |v| {
        v.physical(v.get(slot::HOST_CR3))
    }),
    rule(Host, REGISTERS, "host_sysenter_esp", "host IA32_SYSENTER_ESP is canonical", |v| {
        canonical(v.get(slot::HOST_SYSENTER_ESP))
    }),
    rule(Host, REGISTERS, "host_sysenter_eip", "host IA32_SYSENTER_EIP is canonical", |v| {
        canonical(v.get(slot::HOST_SYSENTER_EIP))
    }),
    rule(Host, REGISTERS, "host_pat", "host IA32_PAT holds memory types", |v| {
        v.exit & exit::LOAD_PAT == 0 || pat_valid(v.get(slot::HOST_PAT))
    }),
    rule(Host, REGISTERS, "host_efer_reserved", "reserved bits of host IA32_EFER are 0", |v| {
        v.exit & exit::LOAD_EFER == 0 || v.get(slot::HOST_EFER) & !EFER_BITS == 0
    }),
    rule(Host, REGISTERS, "host_efer_mode", "host EFER.LMA and LME equal the host address-space size", |v| {
        let efer = v.get(slot::HOST_EFER);
        let same = |bit: u64| (efer & bit != 0) == host_64(v);
        v.exit & exit::LOAD_EFER == 0 || same(cr::EFER_LMA) && same(cr::EFER_LME)
    }),
    rule(Host, SEGMENTS, "host_es_selector", "TI and RPL of host ES are 0", |v| plain(v, slot::HOST_ES_SELECTOR)),
    rule(Host, SEGMENTS, "host_cs_selector", "TI and RPL of host CS are 0", |v| plain(v, slot::HOST_CS_SELECTOR)),
    rule(Host, SEGMENTS, "host_ss_selector", "TI and RPL of host SS are 0", |v| plain(v, slot::HOST_SS_SELECTOR)),
    rule(Host, SEGMENTS, "host_ds_selector", "TI and RPL of host DS are 0", |v| plain(v, slot::HOST_DS_SELECTOR)),
    rule(Host, SEGMENTS, "host_fs_selector", "TI and RPL of host FS are 0", |v| plain(v, slot::HOST_FS_SELECTOR)),
    rule(Host, SEGMENTS, "host_gs_selector", "TI and RPL of host GS are 0", |v| plain(v, slot::HOST_GS_SELECTOR)),
    rule(Host, SEGMENTS, "host_tr_selector", "TI and RPL of host TR are 0", |v| plain(v, slot::HOST_TR_SELECTOR)),
    rule(Host, SEGMENTS, "host_cs_null", "host CS is not null", |v| v.get(slot::HOST_CS_SELECTOR) != 0),
    rule(Host, SEGMENTS, "host_tr_null", "host TR is not null", |v| v.get(slot::HOST_TR_SELECTOR) != 0),
    rule(Host, SEGMENTS, "host_ss_null", "host SS is not null for a 32-bit host", |v| {
        host_64(v) || v.get(slot::HOST_SS_SELECTOR) != 0
    }),
    rule(Host, SEGMENTS, "host_fs_base", "host FS base is canonical", |v| canonical(v.get(slot::HOST_FS_BASE))),
    rule(Host, SEGMENTS, "host_gs_base", "host GS base is canonical", |v| canonical(v.get(slot::HOST_GS_BASE))),
    rule(Host, SEGMENTS, "host_gdtr_base", "host GDTR base is canonical", |v| canonical(v.get(slot::HOST_GDTR_BASE))),
    rule(Host, SEGMENTS, "host_idtr_base", "host IDTR base is canonical", |v| canonical(v.get(slot::HOST_IDTR_BASE))),
    rule(Host, SEGMENTS, "host_tr_base", "host TR base is canonical", |v| canonical(v.get(slot::HOST_TR_BASE))),
    rule(Host, ADDRESS_SPACE, "host_32_ia32e_guest", "a 32-bit host has no IA-32e mode guest", |v| {
        host_64(v) || v.entry & entry::IA32E == 0
    }),
    rule(Host, ADDRESS_SPACE, "host_32_pcide", "a 32-bit host has CR4.PCIDE = 0", |v| {
        host_64(v) || v.get(slot::HOST_CR4) & cr::CR4_PCIDE == 0
    }),
    rule(Host, ADDRESS_SPACE, "host_32_rip", "a 32-bit host has a 32-bit RIP", |v| {
        host_64(v) || v.get(slot::HOST_RIP) >> 32 == 0
    }),
    rule(Host, ADDRESS_SPACE, "host_64_pae", "a 64-bit host has CR4.PAE = 1", |v| {
        !host_64(v) || v.get(slot::HOST_CR4) & cr::CR4_PAE != 0
    }),
    rule(Host, ADDRESS_SPACE, "host_64_rip", "a 64-bit host has a canonical RIP", |v| {
        !host_64(v) || canonical(v.get(slot::HOST_RIP))
    }),
];
