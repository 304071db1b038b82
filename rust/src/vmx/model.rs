//! A processor model: a name and the features that it offers, and what CPUID says of them.
//!
//! CPUID always exits (SDM 26.1.2): L0 asks [`Model::cpuid`] and adds what depends on the guest (OSXSAVE,
//! the APIC identifier, the hypervisor's leaves). VT-x capabilities lie in `capabilities`.

use iced_x86::CpuidFeature;

use super::capabilities::Capabilities;
use super::features::{Feature, FeatureSet, Register};

/// Family 6, model 8FH, stepping 8: a processor that no list of flawed ones names.
const SIGNATURE: u32 = 0x0008_06f8;
/// Physical-address width.
pub const PHYSICAL_BITS: u32 = 40;
/// Linear-address width.
pub const LINEAR_BITS: u32 = 48;
/// What every speculative flaw's NO bit says, with enhanced IBRS (SDM vol. 4, IA32_ARCH_CAPABILITIES):
/// RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO,
/// PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
pub const ARCH_CAPABILITIES: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

/// What this processor offers: CPUID and VMX capabilities.
#[derive(Clone, Debug)]
pub struct Model {
    /// Name, as given at construction.
    pub name: String,
    features: FeatureSet,
    /// VT-x capabilities, as IA32_VMX_* report them.
    pub vmx: Capabilities,
}

/// Why a model cannot be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ModelError {
    /// No model of that name.
    UnknownModel(String),
    /// No feature of that name.
    UnknownFeature(String),
    /// Asked for, but this host cannot run it.
    HostLacks(String),
    /// Asked for, but something that it needs is switched off.
    Needs(String, String),
}

impl std::fmt::Display for ModelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownModel(name) => {
                write!(f, "no processor model is called {name:?}; there are: {}", Model::NAMES.join(", "))
            }
            Self::UnknownFeature(name) => write!(f, "no processor feature is called {name:?}"),
            Self::HostLacks(name) => write!(f, "this host's processor cannot run {name:?} instructions"),
            Self::Needs(name, needed) => write!(f, "feature {name:?} needs {needed:?}"),
        }
    }
}

impl std::error::Error for ModelError {}

impl Default for Model {
    fn default() -> Self {
        Self::from_features("max", Self::maximum())
    }
}

impl Model {
    /// Names of models: `max` is all that silicon and host have; `base` is x86-64-v2 with full VT-x, the same
    /// on every host.
    pub const NAMES: &[&str] = &["max", "base"];

    fn maximum() -> FeatureSet {
        let mut set = FeatureSet::default();
        for &feature in Feature::ALL {
            // "hypervisor" is for the hypervisor above to claim.
            if feature != Feature::Hypervisor && feature.host_has() {
                set.insert(feature);
            }
        }
        set.close();
        set
    }

    fn from_features(name: &str, features: FeatureSet) -> Self {
        Self { name: name.to_owned(), vmx: Capabilities::of(&features), features }
    }

    /// The model `name` with features added and removed.
    ///
    /// # Errors
    /// An unknown name, or a feature that cannot be had.
    pub fn new<'a>(
        name: &str,
        enable: impl IntoIterator<Item = &'a str>,
        disable: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, ModelError> {
        let by_name = |n: &str| Feature::by_name(n).ok_or_else(|| ModelError::UnknownFeature(n.to_owned()));
        let mut set = Self::maximum();
        match name {
            "max" => {}
            "base" => {
                use Feature as F;
                for feature in [F::Avx, F::Avx2, F::Fma, F::F16c, F::Sha, F::Aes, F::Pclmulqdq, F::Adx] {
                    set.remove(feature);
                }
            }
            _ => return Err(ModelError::UnknownModel(name.to_owned())),
        }
        for name in disable {
            set.remove(by_name(name)?);
        }
        let mut wanted = Vec::new();
        for name in enable {
            let feature = by_name(name)?;
            if !feature.host_has() {
                return Err(ModelError::HostLacks(name.to_owned()));
            }
            set.insert(feature);
            wanted.push(feature);
        }
        let asked = set;
        set.close();
        for feature in wanted {
            if !set.has(feature) {
                let needed = feature.needs().iter().find(|&&n| !asked.has(n) || !set.has(n));
                let needed = needed.map_or("?", |n| n.name());
                return Err(ModelError::Needs(feature.name().to_owned(), needed.to_owned()));
            }
        }
        Ok(Self::from_features(name, set))
    }

    /// Whether it offers a feature.
    #[inline]
    #[must_use]
    pub const fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    /// What it offers.
    #[must_use]
    pub const fn features(&self) -> &FeatureSet {
        &self.features
    }

    /// Bits that CR4 takes: the others are reserved, and IA32_VMX_CR4_FIXED1 says so too.
    #[must_use]
    pub fn cr4_bits(&self) -> u64 {
        super::capabilities::cr4_fixed1(&self.features)
    }

    /// Bits that XCR0 takes.
    #[must_use]
    pub fn xcr0_bits(&self) -> u64 {
        match (self.has(Feature::Xsave), self.has(Feature::Avx)) {
            (false, _) => 0,
            (true, false) => 3,
            (true, true) => 7,
        }
    }

    /// Physical addresses above this are reserved in paging structures and beyond every memory.
    #[must_use]
    pub const fn physical_mask(&self) -> u64 {
        (1 << PHYSICAL_BITS) - 1
    }

    /// Whether CPUID offers the instructions that the decoder files under `feature`. If not, they are #UD.
    #[must_use]
    pub fn offers(&self, feature: CpuidFeature) -> bool {
        use Feature as F;
        let feature = match feature {
            CpuidFeature::INTEL8086
            | CpuidFeature::INTEL186
            | CpuidFeature::INTEL286
            | CpuidFeature::INTEL386
            | CpuidFeature::INTEL486
            | CpuidFeature::X64
            | CpuidFeature::CPUID
            | CpuidFeature::MULTIBYTENOP
            | CpuidFeature::PAUSE
            | CpuidFeature::FPU
            | CpuidFeature::FPU287
            | CpuidFeature::FPU387
            | CpuidFeature::RDPMC => return true,
            CpuidFeature::TSC => F::Tsc,
            CpuidFeature::MSR => F::Msr,
            CpuidFeature::CX8 => F::Cx8,
            CpuidFeature::SEP => F::Sep,
            CpuidFeature::CMOV => F::Cmov,
            CpuidFeature::CLFSH => F::Clflush,
            CpuidFeature::MMX => F::Mmx,
            CpuidFeature::FXSR => F::Fxsr,
            CpuidFeature::SSE => F::Sse,
            CpuidFeature::SSE2 => F::Sse2,
            CpuidFeature::SSE3 => F::Sse3,
            CpuidFeature::PCLMULQDQ => F::Pclmulqdq,
            CpuidFeature::MONITOR => F::Monitor,
            CpuidFeature::VMX => F::Vmx,
            CpuidFeature::INVEPT => F::Ept,
            CpuidFeature::INVVPID => F::Vpid,
            CpuidFeature::SSSE3 => F::Ssse3,
            CpuidFeature::FMA => F::Fma,
            CpuidFeature::CMPXCHG16B => F::Cx16,
            CpuidFeature::SSE4_1 => F::Sse41,
            CpuidFeature::SSE4_2 => F::Sse42,
            CpuidFeature::MOVBE => F::Movbe,
            CpuidFeature::POPCNT => F::Popcnt,
            CpuidFeature::AES => F::Aes,
            CpuidFeature::XSAVE => F::Xsave,
            CpuidFeature::AVX => F::Avx,
            CpuidFeature::F16C => F::F16c,
            CpuidFeature::RDRAND => F::Rdrand,
            CpuidFeature::FSGSBASE => F::Fsgsbase,
            CpuidFeature::BMI1 => F::Bmi1,
            CpuidFeature::AVX2 => F::Avx2,
            CpuidFeature::SMAP => F::Smap,
            CpuidFeature::BMI2 => F::Bmi2,
            CpuidFeature::INVPCID => F::Invpcid,
            CpuidFeature::RDSEED => F::Rdseed,
            CpuidFeature::ADX => F::Adx,
            CpuidFeature::CLFLUSHOPT => F::Clflushopt,
            CpuidFeature::CLWB => F::Clwb,
            CpuidFeature::SHA => F::Sha,
            CpuidFeature::RDPID => F::Rdpid,
            CpuidFeature::XSAVEOPT => F::Xsaveopt,
            CpuidFeature::XSAVEC => F::Xsavec,
            CpuidFeature::XSAVES => F::Xsaves,
            CpuidFeature::LZCNT => F::Lzcnt,
            CpuidFeature::PREFETCHW => F::Prefetchw,
            CpuidFeature::SYSCALL => F::Syscall,
            CpuidFeature::RDTSCP => F::Rdtscp,
            _ => return false,
        };
        self.has(feature)
    }

    /// CPUID as EAX, EBX, ECX, EDX. `xcr0` is the guest's, for the sizes in leaf 0DH.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32, xcr0: u64) -> [u32; 4] {
        const HIGHEST: u32 = 0x16;
        const HIGHEST_EXTENDED: u32 = 0x8000_0008;
        // A basic leaf above the highest answers as the highest (SDM, CPUID).
        let leaf = match leaf {
            0..=HIGHEST | 0x8000_0000..=HIGHEST_EXTENDED => leaf,
            _ => HIGHEST,
        };
        let mut r = self.fixed_leaf(leaf, subleaf, xcr0);
        for feature in self.features.iter() {
            if let Some(bit) = feature.cpuid_bit().filter(|b| b.leaf == leaf && b.subleaf == subleaf_of(leaf, subleaf))
            {
                r[match bit.register {
                    Register::Eax => 0,
                    Register::Ebx => 1,
                    Register::Ecx => 2,
                    Register::Edx => 3,
                }] |= 1 << bit.bit;
            }
        }
        r
    }

    /// What is not a feature bit.
    fn fixed_leaf(&self, leaf: u32, subleaf: u32, xcr0: u64) -> [u32; 4] {
        let text = |s: &[u8; 12]| {
            [0, 4, 8].map(|i| u32::from_le_bytes([s[i], s[i + 1], s[i + 2], s[i + 3]])) // EBX, EDX, ECX
        };
        match leaf {
            0 => {
                let [b, d, c] = text(b"GenuineIntel");
                [0x16, b, c, d]
            }
            // One logical processor; CLFLUSH line of 8 * 8 bytes.
            1 => [SIGNATURE, 1 << 16 | 8 << 8, 0, 0],
            // FFH: caches are described by leaf 4.
            2 => [0x00fe_ff01, 0, 0, 0],
            4 => cache_leaf(subleaf),
            // MONITOR: smallest and largest line 64 bytes; enumeration of extensions, interrupts break MWAIT.
            // Highest subleaf 2, for BHI_CTRL: Linux mitigates BHI on each system call in software without it,
            // whatever BHI_NO says.
            7 if subleaf == 0 => [2, 0, 0, 0],
            5 if self.has(Feature::Monitor) => [64, 64, 3, 0],
            0xb => match subleaf {
                0 => [0, 1, 0x100, 0],
                1 => [0, 1, 0x201, 0],
                _ => [0, 0, subleaf & 0xff, 0],
            },
            0xd if self.has(Feature::Xsave) => self.xsave_leaf(subleaf, xcr0),
            // TSC = 25 MHz * 40 / 1.
            0x15 => [1, 40, 25_000_000, 0],
            0x16 => [1000, 1000, 25, 0],
            0x8000_0000 => [0x8000_0008, 0, 0, 0],
            0x8000_0002..=0x8000_0004 => {
                let mut brand = [0; 48];
                let name = b"Turtles silicon processor @ 1.00GHz";
                brand[..name.len()].copy_from_slice(name);
                let at = (leaf - 0x8000_0002) as usize * 16;
                [0, 4, 8, 12].map(|i| {
                    u32::from_le_bytes([brand[at + i], brand[at + i + 1], brand[at + i + 2], brand[at + i + 3]])
                })
            }
            // L2 1 MiB, 16 ways, 64-byte lines.
            0x8000_0006 => [0, 0, 1024 << 16 | 8 << 12 | 64, 0],
            0x8000_0008 => [PHYSICAL_BITS | LINEAR_BITS << 8, 0, 0, 0],
            _ => [0; 4],
        }
    }

    /// Leaf 0DH: the XSAVE areas (SDM vol. 1, 13.2).
    fn xsave_leaf(&self, subleaf: u32, xcr0: u64) -> [u32; 4] {
        const LEGACY_AND_HEADER: u32 = 576;
        const AVX: u32 = 256;
        let avx = self.has(Feature::Avx);
        let size = |with_avx: bool| LEGACY_AND_HEADER + if with_avx { AVX } else { 0 };
        match subleaf {
            0 => [self.xcr0_bits() as u32, size(avx && xcr0 & 4 != 0), size(avx), 0],
            1 if self.has(Feature::Xsavec) || self.has(Feature::Xsaves) => [0, size(avx && xcr0 & 4 != 0), 0, 0],
            2 if avx => [AVX, LEGACY_AND_HEADER, 0, 0],
            _ => [0; 4],
        }
    }
}

/// Leaves without subleaves ignore ECX.
const fn subleaf_of(leaf: u32, subleaf: u32) -> u32 {
    if matches!(leaf, 4 | 7 | 0xb | 0xd) { subleaf } else { 0 }
}

/// Leaf 4: L1 data and instruction 32 KiB, L2 1 MiB, L3 16 MiB.
fn cache_leaf(subleaf: u32) -> [u32; 4] {
    let cache =
        |kind: u32, level: u32, ways: u32, sets: u32| [kind | level << 5 | 1 << 8, (ways - 1) << 22 | 63, sets - 1, 0];
    match subleaf {
        0 => cache(1, 1, 8, 64),
        1 => cache(2, 1, 8, 64),
        2 => cache(3, 2, 16, 1024),
        3 => cache(3, 3, 16, 16384),
        _ => [0; 4],
    }
}
