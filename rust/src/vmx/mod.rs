//! VT-x with one level: VMCS, capabilities, VM entry, VM exit, intercepts (SDM vol. 3, chapters 24 to 29).

/// Controls of the current VMCS, unpacked at entry, asked by the executors.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Controls {
    pub pin: u32,
    pub primary: u32,
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
}

/// What a VM exit will write into the VMCS (SDM 25.9).
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ExitInfo {
    pub reason: u32,
    pub qualification: u64,
    pub guest_physical: u64,
    pub guest_linear: u64,
    pub instruction_length: u32,
    pub instruction_info: u32,
    pub interruption_info: u32,
    pub interruption_error: u32,
}

/// What this processor offers: CPUID and VMX capabilities.
#[derive(Clone, Debug, Default)]
pub struct Model {}

/// A VMCS region in RAM, by host-physical address.
#[derive(Clone, Copy, Debug, Default)]
pub struct VmcsPage {
    /// Host-physical address, 4-KiB aligned.
    pub host_pa: u64,
}
