//! The features that a model can offer, by name: CPUID bits and capabilities of VT-x.
//!
//! A table only. What silicon implements natively asks the host (`Feature::host_has`); which VT-x controls a
//! feature stands for lies in `capabilities`.

/// A CPUID register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Where CPUID reports a feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct CpuidBit {
    pub leaf: u32,
    pub subleaf: u32,
    pub register: Register,
    pub bit: u8,
}

macro_rules! features {
    (
        cpuid { $([$leaf:literal, $subleaf:literal, $register:ident] { $($name:ident $text:literal $bit:literal $(host $host:tt)?,)+ })+ }
        vmx { $($vname:ident $vtext:literal,)+ }
    ) => {
        /// A feature.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Feature { $($($name,)+)+ $($vname,)+ }

        impl Feature {
            /// All of them.
            pub const ALL: &[Self] = &[$($(Self::$name,)+)+ $(Self::$vname,)+];

            /// Its name, as /proc/cpuinfo writes it where it has one there.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$name => $text,)+)+ $(Self::$vname => $vtext,)+ }
            }

            /// Its CPUID bit; capabilities of VT-x have none.
            #[must_use]
            pub const fn cpuid_bit(self) -> Option<CpuidBit> {
                match self {
                    $($(Self::$name => Some(CpuidBit { leaf: $leaf, subleaf: $subleaf, register: Register::$register, bit: $bit }),)+)+
                    $(Self::$vname => None,)+
                }
            }

            /// Whether the host can run what this feature offers. Only what executes natively asks it.
            #[must_use]
            pub fn host_has(self) -> bool {
                match self {
                    $($($(Self::$name => std::arch::is_x86_feature_detected!($host),)?)+)+
                    _ => true,
                }
            }
        }
    };
}

features! {
    cpuid {
        [0x1, 0, Edx] {
            Fpu "fpu" 0, Vme "vme" 1, De "de" 2, Pse "pse" 3, Tsc "tsc" 4, Msr "msr" 5, Pae "pae" 6, Mce "mce" 7,
            Cx8 "cx8" 8, Apic "apic" 9, Sep "sep" 11, Mtrr "mtrr" 12, Pge "pge" 13, Mca "mca" 14, Cmov "cmov" 15,
            Pat "pat" 16, Pse36 "pse36" 17, Clflush "clflush" 19, Mmx "mmx" 23, Fxsr "fxsr" 24, Sse "sse" 25,
            Sse2 "sse2" 26,
        }
        [0x1, 0, Ecx] {
            Sse3 "pni" 0 host "sse3", Pclmulqdq "pclmulqdq" 1 host "pclmulqdq", Monitor "monitor" 3, Vmx "vmx" 5,
            Ssse3 "ssse3" 9 host "ssse3", Fma "fma" 12 host "fma", Cx16 "cx16" 13, Pcid "pcid" 17,
            Sse41 "sse4_1" 19 host "sse4.1", Sse42 "sse4_2" 20 host "sse4.2", X2apic "x2apic" 21, Movbe "movbe" 22,
            Popcnt "popcnt" 23, TscDeadline "tsc_deadline_timer" 24, Aes "aes" 25 host "aes", Xsave "xsave" 26,
            Avx "avx" 28 host "avx", F16c "f16c" 29 host "f16c", Rdrand "rdrand" 30, Hypervisor "hypervisor" 31,
        }
        [0x6, 0, Eax] {
            Arat "arat" 2,
        }
        [0x7, 0, Ebx] {
            Fsgsbase "fsgsbase" 0, TscAdjust "tsc_adjust" 1, Bmi1 "bmi1" 3, Avx2 "avx2" 5 host "avx2", Smep "smep" 7,
            Bmi2 "bmi2" 8, Erms "erms" 9, Invpcid "invpcid" 10, ZeroFcsFds "zero_fcs_fds" 13, Rdseed "rdseed" 18, Adx "adx" 19, Smap "smap" 20,
            Clflushopt "clflushopt" 23, Clwb "clwb" 24, Sha "sha_ni" 29 host "sha",
        }
        [0x7, 0, Ecx] {
            Umip "umip" 2, Rdpid "rdpid" 22,
        }
        [0x7, 0, Edx] {
            Fsrm "fsrm" 4, MdClear "md_clear" 10, SpecCtrl "spec_ctrl" 26, Stibp "intel_stibp" 27,
            FlushL1d "flush_l1d" 28, ArchCapabilities "arch_capabilities" 29, Ssbd "ssbd" 31,
        }
        [0x7, 2, Edx] {
            BhiCtrl "bhi_ctrl" 4,
        }
        [0xd, 1, Eax] {
            Xsaveopt "xsaveopt" 0, Xsavec "xsavec" 1, Xgetbv1 "xgetbv1" 2, Xsaves "xsaves" 3,
        }
        [0x8000_0001, 0, Ecx] {
            LahfLm "lahf_lm" 0, Lzcnt "abm" 5, Prefetchw "3dnowprefetch" 8,
        }
        [0x8000_0001, 0, Edx] {
            Syscall "syscall" 11, Nx "nx" 20, Page1gb "pdpe1gb" 26, Rdtscp "rdtscp" 27, Lm "lm" 29,
        }
        [0x8000_0007, 0, Edx] {
            InvariantTsc "invtsc" 8,
        }
    }
    vmx {
        Ept "ept", EptAd "ept_ad", Ept1gb "ept_1gb", EptExecuteOnly "ept_x_only", Vpid "vpid",
        UnrestrictedGuest "unrestricted_guest", VmcsShadowing "vmcs_shadowing", TprShadow "tpr_shadow",
        ApicVirtualization "apic_virtualization", ApicRegisters "vapic_reg", VirtualInterrupts "vid",
        PostedInterrupts "posted_intr", PreemptionTimer "preemption_timer", VirtualNmis "vnmi",
        MonitorTrap "mtf", MsrBitmaps "msr_bitmaps", TscScaling "tsc_scaling",
        DescriptorTableExiting "descriptor_table_exiting", RdrandExiting "rdrand_exiting",
        RdseedExiting "rdseed_exiting", WbinvdExiting "wbinvd_exiting", PauseExiting "pause_exiting",
    }
}

impl Feature {
    /// The feature of that name; `-` and `_` are the same, and QEMU's names of a few are known.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase().replace('-', "_");
        let name = match name.as_str() {
            "sse3" => "pni",
            "sse4.1" => "sse4_1",
            "sse4.2" => "sse4_2",
            "sha" => "sha_ni",
            "lzcnt" => "abm",
            "tsc_deadline" => "tsc_deadline_timer",
            "flexpriority" => "apic_virtualization",
            other => other,
        };
        Self::ALL.iter().copied().find(|f| f.name() == name)
    }

    /// Features without which this one is not offered.
    #[must_use]
    pub const fn needs(self) -> &'static [Self] {
        use Feature as F;
        match self {
            F::Avx | F::Xsaveopt | F::Xsavec | F::Xgetbv1 | F::Xsaves => &[F::Xsave],
            F::Avx2 | F::Fma | F::F16c => &[F::Avx],
            F::UnrestrictedGuest | F::EptAd | F::Ept1gb | F::EptExecuteOnly => &[F::Vmx, F::Ept],
            F::ApicVirtualization => &[F::Vmx, F::TprShadow],
            F::ApicRegisters | F::VirtualInterrupts => &[F::Vmx, F::ApicVirtualization],
            F::PostedInterrupts => &[F::Vmx, F::VirtualInterrupts],
            F::Ept
            | F::Vpid
            | F::VmcsShadowing
            | F::TprShadow
            | F::PreemptionTimer
            | F::VirtualNmis
            | F::MonitorTrap
            | F::MsrBitmaps
            | F::TscScaling
            | F::DescriptorTableExiting
            | F::WbinvdExiting
            | F::PauseExiting => &[F::Vmx],
            F::RdrandExiting => &[F::Vmx, F::Rdrand],
            F::RdseedExiting => &[F::Vmx, F::Rdseed],
            _ => &[],
        }
    }
}

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FeatureSet([u64; 3]);

impl FeatureSet {
    /// Whether `feature` is in it.
    #[inline]
    #[must_use]
    pub const fn has(&self, feature: Feature) -> bool {
        self.0[feature as usize / 64] >> (feature as usize % 64) & 1 != 0
    }

    /// Adds a feature.
    pub fn insert(&mut self, feature: Feature) {
        self.0[feature as usize / 64] |= 1 << (feature as usize % 64);
    }

    /// Removes a feature.
    pub fn remove(&mut self, feature: Feature) {
        self.0[feature as usize / 64] &= !(1 << (feature as usize % 64));
    }

    /// Removes what lacks something it needs, until nothing changes.
    pub fn close(&mut self) {
        loop {
            let before = *self;
            for &feature in Feature::ALL {
                if feature.needs().iter().any(|&n| !self.has(n)) {
                    self.remove(feature);
                }
            }
            if *self == before {
                return;
            }
        }
    }

    /// Its members.
    pub fn iter(&self) -> impl Iterator<Item = Feature> + '_ {
        Feature::ALL.iter().copied().filter(|&f| self.has(f))
    }
}
