//! Which instruction-set extensions of this unit the host's processor can run.
//!
//! The instructions run natively, so silicon can offer no more than the host has. What a model offers of
//! these is decided in `vmx` (CPUID); extensions that are not named here are never offered.

use iced_x86::{Code, CpuidFeature};

/// The unit runs this extension, and the host has it.
#[must_use]
pub fn offered(feature: CpuidFeature) -> bool {
    match feature {
        CpuidFeature::INTEL8086
        | CpuidFeature::INTEL386
        | CpuidFeature::INTEL486
        | CpuidFeature::X64
        | CpuidFeature::FPU
        | CpuidFeature::FPU287
        | CpuidFeature::FPU387
        | CpuidFeature::CMOV
        | CpuidFeature::MMX
        | CpuidFeature::FXSR
        | CpuidFeature::SSE
        | CpuidFeature::SSE2
        | CpuidFeature::CLFSH => true,
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        CpuidFeature::AES => is_x86_feature_detected!("aes"),
        CpuidFeature::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        CpuidFeature::SHA => is_x86_feature_detected!("sha"),
        CpuidFeature::AVX => is_x86_feature_detected!("avx"),
        CpuidFeature::AVX2 => is_x86_feature_detected!("avx2"),
        CpuidFeature::FMA => is_x86_feature_detected!("fma"),
        CpuidFeature::F16C => is_x86_feature_detected!("f16c"),
        // Written out, not run natively: the host need not have them.
        CpuidFeature::XSAVE | CpuidFeature::XSAVEOPT | CpuidFeature::XSAVEC | CpuidFeature::XSAVES => true,
        _ => false,
    }
}

/// All extensions that `code` belongs to are offered.
#[must_use]
pub fn code_offered(code: Code) -> bool {
    code.cpuid_features().iter().all(|&feature| offered(feature))
}

/// State components that XCR0 may enable: x87 and SSE, and AVX where the host has it.
#[must_use]
pub fn xcr0_supported() -> u64 {
    if is_x86_feature_detected!("avx") { 7 } else { 3 }
}
