//! Controls of the current VMCS, unpacked at entry for the executors to ask.
//!
//! Valid while a guest runs. The VMCS itself is not read again before the exit, as the SDM allows (25.1).

use super::bits::{primary, secondary};
use super::fields::slot;
use super::vmcs::VmcsPage;
use crate::cpu::Cpu;

/// No physical address: a structure that the controls do not use.
pub const NONE: u64 = !0;

/// Controls of the current VMCS.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Controls {
    pub pin: u32,
    pub primary: u32,
    /// Zero unless "activate secondary controls" is 1.
    pub secondary: u32,
    pub exit: u32,
    pub entry: u32,
    pub exception_bitmap: u32,
    pub pf_mask: u32,
    pub pf_match: u32,
    pub cr0_mask: u64,
    pub cr4_mask: u64,
    pub cr0_shadow: u64,
    pub cr4_shadow: u64,
    pub cr3_targets: [u64; 4],
    pub cr3_target_count: u32,
    /// EPT pointer, or 0 without "enable EPT".
    pub ept_pointer: u64,
    /// VPID, or 0 without "enable VPID".
    pub vpid: u16,
    /// Page of the APIC-access address, or [`NONE`].
    pub apic_access_pa: u64,
    /// Virtual-APIC page, or [`NONE`] without "use TPR shadow".
    pub virtual_apic_pa: u64,
    pub tpr_threshold: u32,
    /// Requesting and servicing virtual interrupt (SDM 25.4.2), while the guest runs.
    pub rvi: u8,
    pub svi: u8,
    /// A virtual interrupt is recognized (SDM 30.2.1).
    pub virtual_interrupt: bool,
    pub eoi_exit: [u64; 4],
    pub posted_vector: u8,
    pub posted_descriptor: u64,
    /// Bitmaps, or [`NONE`] where the control is 0.
    pub io_bitmap_a: u64,
    pub io_bitmap_b: u64,
    pub msr_bitmap: u64,
    pub vmread_bitmap: u64,
    pub vmwrite_bitmap: u64,
    pub xss_exiting: u64,
    /// TSC = (TSC * multiplier >> 48) + offset, as far as the controls say.
    pub tsc_offset: u64,
    pub tsc_multiplier: u64,
    /// A trap-like VM exit is due after the instruction: its basic reason, 0 = none.
    pub trap_exit: u32,
    /// Its exit qualification.
    pub trap_qualification: u64,
}

impl Default for Controls {
    fn default() -> Self {
        Self {
            pin: 0,
            primary: 0,
            secondary: 0,
            exit: 0,
            entry: 0,
            exception_bitmap: 0,
            pf_mask: 0,
            pf_match: 0,
            cr0_mask: 0,
            cr4_mask: 0,
            cr0_shadow: 0,
            cr4_shadow: 0,
            cr3_targets: [0; 4],
            cr3_target_count: 0,
            ept_pointer: 0,
            vpid: 0,
            apic_access_pa: NONE,
            virtual_apic_pa: NONE,
            tpr_threshold: 0,
            rvi: 0,
            svi: 0,
            virtual_interrupt: false,
            eoi_exit: [0; 4],
            posted_vector: 0,
            posted_descriptor: 0,
            io_bitmap_a: NONE,
            io_bitmap_b: NONE,
            msr_bitmap: NONE,
            vmread_bitmap: NONE,
            vmwrite_bitmap: NONE,
            xss_exiting: 0,
            tsc_offset: 0,
            tsc_multiplier: 1 << 48,
            trap_exit: 0,
            trap_qualification: 0,
        }
    }
}

impl Controls {
    /// Unpacks a VMCS that passed the checks.
    #[must_use]
    pub fn unpack(v: &VmcsPage) -> Self {
        let primary_bits = v.get32(slot::PRIMARY_CONTROLS);
        let secondary_bits = if primary_bits & primary::SECONDARY != 0 { v.get32(slot::SECONDARY_CONTROLS) } else { 0 };
        let address = |wanted: bool, at: usize| if wanted { v.get(at) } else { NONE };
        let io = primary_bits & primary::IO_BITMAPS != 0;
        let shadowing = secondary_bits & secondary::VMCS_SHADOWING != 0;
        let offsetting = primary_bits & primary::TSC_OFFSETTING != 0;
        Self {
            pin: v.get32(slot::PIN_CONTROLS),
            primary: primary_bits,
            secondary: secondary_bits,
            exit: v.get32(slot::EXIT_CONTROLS),
            entry: v.get32(slot::ENTRY_CONTROLS),
            exception_bitmap: v.get32(slot::EXCEPTION_BITMAP),
            pf_mask: v.get32(slot::PF_ERROR_MASK),
            pf_match: v.get32(slot::PF_ERROR_MATCH),
            cr0_mask: v.get(slot::CR0_MASK),
            cr4_mask: v.get(slot::CR4_MASK),
            cr0_shadow: v.get(slot::CR0_READ_SHADOW),
            cr4_shadow: v.get(slot::CR4_READ_SHADOW),
            cr3_targets: [slot::CR3_TARGET0, slot::CR3_TARGET1, slot::CR3_TARGET2, slot::CR3_TARGET3].map(|s| v.get(s)),
            cr3_target_count: v.get32(slot::CR3_TARGET_COUNT),
            ept_pointer: if secondary_bits & secondary::EPT != 0 { v.get(slot::EPT_POINTER) } else { 0 },
            vpid: if secondary_bits & secondary::VPID != 0 { v.get(slot::VPID) as u16 } else { 0 },
            apic_access_pa: address(secondary_bits & secondary::APIC_ACCESSES != 0, slot::APIC_ACCESS_ADDRESS),
            virtual_apic_pa: address(primary_bits & primary::TPR_SHADOW != 0, slot::VIRTUAL_APIC_ADDRESS),
            tpr_threshold: v.get32(slot::TPR_THRESHOLD),
            rvi: 0,
            svi: 0,
            virtual_interrupt: false,
            eoi_exit: if secondary_bits & secondary::VIRTUAL_INTERRUPT != 0 {
                [slot::EOI_EXIT_BITMAP0, slot::EOI_EXIT_BITMAP1, slot::EOI_EXIT_BITMAP2, slot::EOI_EXIT_BITMAP3]
                    .map(|s| v.get(s))
            } else {
                [0; 4]
            },
            posted_vector: v.get(slot::POSTED_INTERRUPT_VECTOR) as u8,
            posted_descriptor: v.get(slot::POSTED_INTERRUPT_DESCRIPTOR),
            io_bitmap_a: address(io, slot::IO_BITMAP_A),
            io_bitmap_b: address(io, slot::IO_BITMAP_B),
            msr_bitmap: address(primary_bits & primary::MSR_BITMAPS != 0, slot::MSR_BITMAP),
            vmread_bitmap: address(shadowing, slot::VMREAD_BITMAP),
            vmwrite_bitmap: address(shadowing, slot::VMWRITE_BITMAP),
            xss_exiting: v.get(slot::XSS_EXITING_BITMAP),
            tsc_offset: if offsetting { v.get(slot::TSC_OFFSET) } else { 0 },
            tsc_multiplier: if offsetting && secondary_bits & secondary::TSC_SCALING != 0 {
                v.get(slot::TSC_MULTIPLIER)
            } else {
                1 << 48
            },
            trap_exit: 0,
            trap_qualification: 0,
        }
    }

    /// "Enable EPT".
    #[inline]
    #[must_use]
    pub const fn ept(&self) -> bool {
        self.secondary & secondary::EPT != 0
    }

    /// "Virtual-interrupt delivery".
    #[inline]
    #[must_use]
    pub const fn delivers_interrupts(&self) -> bool {
        self.secondary & secondary::VIRTUAL_INTERRUPT != 0
    }

    /// "Unrestricted guest".
    #[inline]
    #[must_use]
    pub const fn unrestricted(&self) -> bool {
        self.secondary & secondary::UNRESTRICTED != 0
    }
}

impl Cpu {
    /// Whether an instruction that a secondary control enables is available: without its control it is #UD
    /// in VMX non-root operation (RDTSCP, RDPID, INVPCID, XSAVES and XRSTORS).
    #[inline]
    #[must_use]
    pub const fn enabled(&self, secondary_bit: u32) -> bool {
        self.ctl.secondary & secondary_bit != 0
    }
}
