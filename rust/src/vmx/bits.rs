//! Names of the bits of VM-execution, VM-exit and VM-entry controls (SDM 25.6 to 25.8) and of guest states.
//!
//! Only names: which of them a model offers lies in `capabilities`, what they do in the executors. The Python
//! constants are generated from the same tables.
#![allow(missing_docs)]

macro_rules! bits {
    ($($(#[$doc:meta])* $module:ident: $type:ty { $($name:ident = $value:expr,)+ })+) => {
        $($(#[$doc])* pub mod $module {
            $(pub const $name: $type = $value;)+
            /// Name and value of each.
            pub const ALL: &[(&str, u64)] = &[$((stringify!($name), $name as u64),)+];
        })+
    };
}

bits! {
    /// Pin-based VM-execution controls (SDM table 25-5).
    pin: u32 {
        EXTERNAL_INTERRUPT = 1 << 0,
        NMI = 1 << 3,
        VIRTUAL_NMIS = 1 << 5,
        PREEMPTION_TIMER = 1 << 6,
        POSTED_INTERRUPTS = 1 << 7,
    }
    /// Primary processor-based VM-execution controls (SDM table 25-6).
    primary: u32 {
        INTERRUPT_WINDOW = 1 << 2,
        TSC_OFFSETTING = 1 << 3,
        HLT = 1 << 7,
        INVLPG = 1 << 9,
        MWAIT = 1 << 10,
        RDPMC = 1 << 11,
        RDTSC = 1 << 12,
        CR3_LOAD = 1 << 15,
        CR3_STORE = 1 << 16,
        TERTIARY = 1 << 17,
        CR8_LOAD = 1 << 19,
        CR8_STORE = 1 << 20,
        TPR_SHADOW = 1 << 21,
        NMI_WINDOW = 1 << 22,
        MOV_DR = 1 << 23,
        UNCONDITIONAL_IO = 1 << 24,
        IO_BITMAPS = 1 << 25,
        MONITOR_TRAP = 1 << 27,
        MSR_BITMAPS = 1 << 28,
        MONITOR = 1 << 29,
        PAUSE = 1 << 30,
        SECONDARY = 1 << 31,
    }
    /// Secondary processor-based VM-execution controls (SDM table 25-7).
    secondary: u32 {
        APIC_ACCESSES = 1 << 0,
        EPT = 1 << 1,
        DESCRIPTOR_TABLE = 1 << 2,
        RDTSCP = 1 << 3,
        X2APIC = 1 << 4,
        VPID = 1 << 5,
        WBINVD = 1 << 6,
        UNRESTRICTED = 1 << 7,
        APIC_REGISTER = 1 << 8,
        VIRTUAL_INTERRUPT = 1 << 9,
        PAUSE_LOOP = 1 << 10,
        RDRAND = 1 << 11,
        INVPCID = 1 << 12,
        VMFUNC = 1 << 13,
        VMCS_SHADOWING = 1 << 14,
        ENCLS = 1 << 15,
        RDSEED = 1 << 16,
        PML = 1 << 17,
        EPT_VIOLATION_VE = 1 << 18,
        XSAVES = 1 << 20,
        MODE_BASED_EXECUTE = 1 << 22,
        TSC_SCALING = 1 << 25,
    }
    /// VM-exit controls (SDM table 25-13).
    exit: u32 {
        SAVE_DEBUG = 1 << 2,
        HOST_64 = 1 << 9,
        LOAD_PERF = 1 << 12,
        ACKNOWLEDGE = 1 << 15,
        SAVE_PAT = 1 << 18,
        LOAD_PAT = 1 << 19,
        SAVE_EFER = 1 << 20,
        LOAD_EFER = 1 << 21,
        SAVE_TIMER = 1 << 22,
    }
    /// VM-entry controls (SDM table 25-15).
    entry: u32 {
        LOAD_DEBUG = 1 << 2,
        IA32E = 1 << 9,
        SMM = 1 << 10,
        DUAL_MONITOR = 1 << 11,
        LOAD_PERF = 1 << 13,
        LOAD_PAT = 1 << 14,
        LOAD_EFER = 1 << 15,
    }
    /// Guest interruptibility state (SDM table 25-3).
    interruptibility: u64 {
        STI = 1 << 0,
        MOV_SS = 1 << 1,
        SMI = 1 << 2,
        NMI = 1 << 3,
    }
    /// Guest activity state (SDM 25.4.2).
    activity: u64 {
        ACTIVE = 0,
        HLT = 1,
        SHUTDOWN = 2,
        WAIT_FOR_SIPI = 3,
    }
    /// VM-instruction error numbers that an entry gives (SDM 31.4).
    vm_error: u8 {
        INVALID_CONTROL = 7,
        INVALID_HOST = 8,
    }
}
