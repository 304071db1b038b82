//! VT-x capabilities as the IA32_VMX_* MSRs report them (SDM appendix A), from a set of features.
//!
//! One question asked in three places: L0 reads the MSRs, `checks` validates a VMCS against them, and
//! entry-time unpacking trusts what passed. A control that is not in the allowed-1 set does nothing here.

use super::bits::{entry, exit, pin, primary, secondary};
use super::features::{Feature, FeatureSet};
use super::fields::VMCS_ENUM;
use crate::state::cr;

/// Revision identifier of silicon's VMCS regions.
pub const REVISION: u32 = 0x5455_5201 & 0x7fff_ffff;
/// The preemption timer counts down once each 2^5 TSC ticks.
pub const TIMER_SHIFT: u32 = 5;
/// CR3-target values that a VMCS has.
pub const CR3_TARGETS: u64 = 4;
/// Largest recommended number of MSRs in one area, 512 * (N + 1) with N = 0.
pub const MSR_AREA_MAXIMUM: u64 = 512;

/// Default1 classes (SDM appendix A.2 to A.5): controls that must be 1, and with the TRUE capability MSRs.
const PIN_DEFAULT1: u32 = 0x16;
const PRIMARY_DEFAULT1: u32 = 0x0401_e172;
const PRIMARY_TRUE: u32 = PRIMARY_DEFAULT1 & !(primary::CR3_LOAD | primary::CR3_STORE);
const EXIT_DEFAULT1: u32 = 0x0003_6dff;
const EXIT_TRUE: u32 = EXIT_DEFAULT1 & !exit::SAVE_DEBUG;
const ENTRY_DEFAULT1: u32 = 0x0000_11ff;
const ENTRY_TRUE: u32 = ENTRY_DEFAULT1 & !entry::LOAD_DEBUG;

/// Settings that a vector of controls allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// Bits that must be 1.
    pub ones: u32,
    /// Bits that may be 1.
    pub may: u32,
}

impl Allowed {
    const fn new(ones: u32, optional: u32) -> Self {
        Self { ones, may: ones | optional }
    }

    /// Whether `value` is allowed.
    #[inline]
    #[must_use]
    pub const fn permits(self, value: u32) -> bool {
        value & self.ones == self.ones && value & !self.may == 0
    }

    /// As a capability MSR: allowed-0 settings below, allowed-1 settings above.
    #[must_use]
    pub const fn msr(self) -> u64 {
        self.ones as u64 | (self.may as u64) << 32
    }

    /// The same with the default1 class fixed, as the MSRs without TRUE report it.
    const fn with_default1(self, default1: u32) -> Self {
        Self { ones: self.ones | default1, may: self.may }
    }
}

/// Capabilities. Numbers are those of the IA32_VMX_* MSRs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Capabilities {
    pub basic: u64,
    pub pin: Allowed,
    pub primary: Allowed,
    pub secondary: Allowed,
    pub exit: Allowed,
    pub entry: Allowed,
    pub misc: u64,
    pub cr0_fixed0: u64,
    pub cr0_fixed1: u64,
    pub cr4_fixed0: u64,
    pub cr4_fixed1: u64,
    pub ept_vpid: u64,
}

/// Bits of IA32_VMX_EPT_VPID_CAP (SDM appendix A.10).
#[allow(missing_docs)]
pub mod ept_vpid {
    pub const EXECUTE_ONLY: u64 = 1 << 0;
    pub const WALK_4: u64 = 1 << 6;
    pub const UNCACHEABLE: u64 = 1 << 8;
    pub const WRITE_BACK: u64 = 1 << 14;
    pub const PAGE_2M: u64 = 1 << 16;
    pub const PAGE_1G: u64 = 1 << 17;
    pub const INVEPT: u64 = 1 << 20;
    pub const ACCESSED_DIRTY: u64 = 1 << 21;
    pub const INVEPT_SINGLE: u64 = 1 << 25;
    pub const INVEPT_ALL: u64 = 1 << 26;
    pub const INVVPID: u64 = 1 << 32;
    pub const INVVPID_ADDRESS: u64 = 1 << 40;
    pub const INVVPID_SINGLE: u64 = 1 << 41;
    pub const INVVPID_ALL: u64 = 1 << 42;
    pub const INVVPID_RETAINING_GLOBALS: u64 = 1 << 43;
}

/// Bits of IA32_VMX_MISC (SDM appendix A.6).
#[allow(missing_docs)]
pub mod misc {
    pub const EXIT_STORES_LMA: u64 = 1 << 5;
    pub const ACTIVITY_HLT: u64 = 1 << 6;
    pub const ACTIVITY_SHUTDOWN: u64 = 1 << 7;
    pub const ACTIVITY_SIPI: u64 = 1 << 8;
    pub const VMWRITE_ANY: u64 = 1 << 29;
    pub const ZERO_LENGTH_INJECTION: u64 = 1 << 30;
}

/// Bits that CR4 takes with these features.
#[must_use]
pub fn cr4_fixed1(features: &FeatureSet) -> u64 {
    use Feature as F;
    const SMXE: u64 = 0;
    let mut bits = SMXE | cr::CR4_PCE;
    for (feature, bit) in [
        (F::Vme, cr::CR4_VME | cr::CR4_PVI),
        (F::Tsc, cr::CR4_TSD),
        (F::De, cr::CR4_DE),
        (F::Pse, cr::CR4_PSE),
        (F::Pae, cr::CR4_PAE),
        (F::Mce, cr::CR4_MCE),
        (F::Pge, cr::CR4_PGE),
        (F::Fxsr, cr::CR4_OSFXSR),
        (F::Sse, cr::CR4_OSXMMEXCPT),
        (F::Umip, cr::CR4_UMIP),
        (F::Vmx, cr::CR4_VMXE),
        (F::Fsgsbase, cr::CR4_FSGSBASE),
        (F::Pcid, cr::CR4_PCIDE),
        (F::Xsave, cr::CR4_OSXSAVE),
        (F::Smep, cr::CR4_SMEP),
        (F::Smap, cr::CR4_SMAP),
    ] {
        if features.has(feature) {
            bits |= bit;
        }
    }
    bits
}

impl Capabilities {
    /// What these features come to.
    #[must_use]
    pub fn of(features: &FeatureSet) -> Self {
        use Feature as F;
        let with =
            |pairs: &[(F, u32)]| pairs.iter().filter(|(f, _)| features.has(*f)).fold(0, |bits, (_, bit)| bits | bit);
        let pin_optional = pin::EXTERNAL_INTERRUPT
            | pin::NMI
            | with(&[
                (F::VirtualNmis, pin::VIRTUAL_NMIS),
                (F::PreemptionTimer, pin::PREEMPTION_TIMER),
                (F::PostedInterrupts, pin::POSTED_INTERRUPTS),
            ]);
        let secondary_optional = with(&[
            (F::ApicVirtualization, secondary::APIC_ACCESSES | secondary::X2APIC),
            (F::ApicRegisters, secondary::APIC_REGISTER),
            (F::VirtualInterrupts, secondary::VIRTUAL_INTERRUPT),
            (F::Ept, secondary::EPT),
            (F::DescriptorTableExiting, secondary::DESCRIPTOR_TABLE),
            (F::Rdtscp, secondary::RDTSCP),
            (F::Vpid, secondary::VPID),
            (F::WbinvdExiting, secondary::WBINVD),
            (F::UnrestrictedGuest, secondary::UNRESTRICTED),
            (F::RdrandExiting, secondary::RDRAND),
            (F::Invpcid, secondary::INVPCID),
            (F::VmcsShadowing, secondary::VMCS_SHADOWING),
            (F::RdseedExiting, secondary::RDSEED),
            (F::Xsaves, secondary::XSAVES),
            (F::TscScaling, secondary::TSC_SCALING),
        ]);
        let primary_optional = primary::INTERRUPT_WINDOW
            | primary::TSC_OFFSETTING
            | primary::HLT
            | primary::INVLPG
            | primary::MWAIT
            | primary::RDPMC
            | primary::RDTSC
            | primary::CR3_LOAD
            | primary::CR3_STORE
            | primary::CR8_LOAD
            | primary::CR8_STORE
            | primary::MOV_DR
            | primary::UNCONDITIONAL_IO
            | primary::IO_BITMAPS
            | primary::MONITOR
            | with(&[
                (F::VirtualNmis, primary::NMI_WINDOW),
                (F::TprShadow, primary::TPR_SHADOW),
                (F::MonitorTrap, primary::MONITOR_TRAP),
                (F::MsrBitmaps, primary::MSR_BITMAPS),
                (F::PauseExiting, primary::PAUSE),
            ])
            | if secondary_optional != 0 { primary::SECONDARY } else { 0 };
        let exit_optional = exit::SAVE_DEBUG
            | exit::HOST_64
            | exit::ACKNOWLEDGE
            | exit::SAVE_PAT
            | exit::LOAD_PAT
            | exit::SAVE_EFER
            | exit::LOAD_EFER
            | with(&[(F::PreemptionTimer, exit::SAVE_TIMER)]);
        let entry_optional = entry::LOAD_DEBUG | entry::IA32E | entry::LOAD_PAT | entry::LOAD_EFER;
        let mut ept_vpid_bits = 0;
        if features.has(F::Ept) {
            ept_vpid_bits |= ept_vpid::WALK_4
                | ept_vpid::UNCACHEABLE
                | ept_vpid::WRITE_BACK
                | ept_vpid::PAGE_2M
                | ept_vpid::INVEPT
                | ept_vpid::INVEPT_SINGLE
                | ept_vpid::INVEPT_ALL;
            for (feature, bit) in [
                (F::EptExecuteOnly, ept_vpid::EXECUTE_ONLY),
                (F::EptAd, ept_vpid::ACCESSED_DIRTY),
                (F::Ept1gb, ept_vpid::PAGE_1G),
            ] {
                if features.has(feature) {
                    ept_vpid_bits |= bit;
                }
            }
        }
        if features.has(F::Vpid) {
            ept_vpid_bits |= ept_vpid::INVVPID
                | ept_vpid::INVVPID_ADDRESS
                | ept_vpid::INVVPID_SINGLE
                | ept_vpid::INVVPID_ALL
                | ept_vpid::INVVPID_RETAINING_GLOBALS;
        }
        Self {
            // 4096-byte regions in write-back memory; INS/OUTS information; TRUE capability MSRs.
            basic: u64::from(REVISION) | 4096 << 32 | 6 << 50 | 1 << 54 | 1 << 55,
            pin: Allowed::new(PIN_DEFAULT1, pin_optional),
            primary: Allowed::new(PRIMARY_TRUE, primary_optional),
            secondary: Allowed::new(0, secondary_optional),
            exit: Allowed::new(EXIT_TRUE, exit_optional),
            entry: Allowed::new(ENTRY_TRUE, entry_optional),
            misc: u64::from(TIMER_SHIFT)
                | if features.has(F::UnrestrictedGuest) { misc::EXIT_STORES_LMA } else { 0 }
                | misc::ACTIVITY_HLT
                | misc::ACTIVITY_SHUTDOWN
                | misc::ACTIVITY_SIPI
                | CR3_TARGETS << 16
                | misc::VMWRITE_ANY
                | misc::ZERO_LENGTH_INJECTION,
            cr0_fixed0: cr::CR0_PE | cr::CR0_NE | cr::CR0_PG,
            cr0_fixed1: 0xffff_ffff,
            cr4_fixed0: cr::CR4_VMXE,
            cr4_fixed1: cr4_fixed1(features),
            ept_vpid: ept_vpid_bits,
        }
    }

    /// An IA32_VMX_* MSR, 480H to 490H; none for one that this processor lacks.
    #[must_use]
    pub fn msr(&self, msr: u32) -> Option<u64> {
        Some(match msr {
            0x480 => self.basic,
            0x481 => self.pin.msr(),
            0x482 => self.primary.with_default1(PRIMARY_DEFAULT1).msr(),
            0x483 => self.exit.with_default1(EXIT_DEFAULT1).msr(),
            0x484 => self.entry.with_default1(ENTRY_DEFAULT1).msr(),
            0x485 => self.misc,
            0x486 => self.cr0_fixed0,
            0x487 => self.cr0_fixed1,
            0x488 => self.cr4_fixed0,
            0x489 => self.cr4_fixed1,
            0x48a => VMCS_ENUM,
            0x48b if self.primary.may & primary::SECONDARY != 0 => self.secondary.msr(),
            0x48c if self.ept_vpid != 0 => self.ept_vpid,
            0x48d => self.pin.msr(),
            0x48e => self.primary.msr(),
            0x48f => self.exit.msr(),
            0x490 => self.entry.msr(),
            _ => return None,
        })
    }
}
