//! The flat architectural state of one processor: 64-bit slots, shared with Python by name.
//!
//! Complete at every VM exit. While a guest runs the fields that the VMCS holds (RIP, CR0, segments, …)
//! live here; entry loads them from the VMCS, exit stores them back. Lockstep, snapshots and gdb read
//! this array; the translator addresses it from a pinned register. It holds no caches and no pointers.

/// Segment register numbers, in the order of instruction encodings, then LDTR and TR.
#[allow(missing_docs)]
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
    pub const LDTR: usize = 6;
    pub const TR: usize = 7;
}

/// General-purpose register numbers, in the order of instruction encodings.
#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// A segment register with its hidden part. `access` has the VMCS access-rights format
/// (SDM 25.4.1, table 25-2): type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Segment {
    pub selector: u64,
    pub base: u64,
    /// Byte-granular limit (already scaled by G).
    pub limit: u64,
    pub access: u64,
}

/// The flat state. Every field is one or more `u64` slots; the slot of a field is its offset / 8.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
#[allow(missing_docs)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15.
    pub gpr: [u64; 16],
    /// Always zero: the base or index register of an address that has none.
    pub zero: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// TPR bits 7:4 as CR8 bits 3:0, where no virtual APIC stands for it.
    pub cr8: u64,
    /// YMM0..YMM15, four slots each, XMM in the lower two. Each lies in one line of the host's cache: see below.
    pub ymm: [[u64; 4]; 16],
    /// DR0..DR3.
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub seg: [Segment; 8],
    pub gdtr_base: u64,
    pub gdtr_limit: u64,
    pub idtr_base: u64,
    pub idtr_limit: u64,
    pub xcr0: u64,
    // --- MSRs ---
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    /// IA32_TSC_ADJUST; RDTSC = clock + tsc_base + tsc_adjust (then VMCS scaling and offset).
    pub tsc_adjust: u64,
    /// What a write to IA32_TSC moved the counter by (beside tsc_adjust).
    pub tsc_base: u64,
    pub apic_base: u64,
    pub misc_enable: u64,
    pub feature_control: u64,
    pub debugctl: u64,
    pub spec_ctrl: u64,
    pub xss: u64,
    pub tsc_deadline: u64,
    pub mtrr_def_type: u64,
    /// Fixed-range MTRRs in MSR order: 250H, 258H, 259H, 268H..26FH.
    pub mtrr_fixed: [u64; 11],
    /// PHYSBASE0, PHYSMASK0, … PHYSBASE7, PHYSMASK7.
    pub mtrr_var: [u64; 16],
    // --- x87, SSE, AVX ---
    /// x87 registers ST0..ST7 (stack order), 80 bits in two slots.
    pub st: [[u64; 2]; 8],
    pub fcw: u64,
    pub fsw: u64,
    /// Full 16-bit tag word (two bits a register, physical order).
    pub ftw: u64,
    pub fop: u64,
    pub fip: u64,
    pub fdp: u64,
    pub fcs: u64,
    pub fds: u64,
    pub mxcsr: u64,
    // --- events and activity ---
    /// Interruptibility (SDM table 25-3): STI 0, MOV SS 1, SMI 2, NMI 3.
    pub interruptibility: u64,
    /// Activity state: 0 active, 1 HLT, 2 shutdown, 3 wait-for-SIPI.
    pub activity: u64,
    /// Pending debug exceptions (SDM table 25-4).
    pub pending_debug: u64,
    /// MONITOR: armed linear address's physical page + 1, or 0.
    pub monitor: u64,
    // --- counters ---
    /// Instructions retired since the core was made; each REP iteration counts one.
    pub retired: u64,
    /// Host TSC (nanoseconds of the core's clock) at the last VM entry and VM exit.
    pub entry_time: u64,
    pub exit_time: u64,
    // --- decode assist (DESIGN: never in the VMCS) ---
    /// What the exit wants: 0 nothing, 1 port in, 2 port out, 3 MMIO read, 4 MMIO write, 5 tracked write.
    pub assist_kind: u64,
    /// Port number, or guest-physical address.
    pub assist_address: u64,
    /// Bytes, 1 to 8.
    pub assist_width: u64,
    /// Data that is written (kinds 2, 4, 5).
    pub assist_data: u64,
    /// L0 sets: 1 = the access of the last exit is done, `assist_result` holds what was read; enter again
    /// at the same RIP and silicon completes the instruction. 2 = perform this one access yourself
    /// (tracked page-table page). 0 = forget the replay (the exit was reflected, or RIP was moved).
    pub assist_done: u64,
    pub assist_result: u64,
    /// Results of the accesses of one instruction that are already done, in order. XSAVE of everything to
    /// device memory makes the most of them.
    pub replay_count: u64,
    pub replay: [u64; 512],
}

// Translated code stores and loads all of `ymm` around each call of Rust code; a store over the end of a line costs two, and one
// over the end of a page twenty.
const _: () = assert!(std::mem::offset_of!(State, ymm) % 64 == 0);

impl State {
    /// Number of 64-bit slots.
    pub const SLOTS: usize = size_of::<Self>() / 8;

    /// All fields zero: the starting point of [`State::reset`].
    #[must_use]
    pub fn zeroed() -> Self {
        // SAFETY: `State` is `repr(C)` and made of integers only; all-zero is a valid value.
        unsafe { std::mem::zeroed() }
    }

    /// Power-up state (SDM vol. 3, table 10-1), as the VMCS leaves it to silicon.
    #[must_use]
    pub fn reset() -> Self {
        let mut s = Self::zeroed();
        s.rip = 0xfff0;
        s.rflags = 2;
        s.cr0 = 0x6000_0010;
        s.dr6 = 0xffff_0ff0;
        s.dr7 = 0x400;
        for (i, segment) in s.seg.iter_mut().enumerate() {
            *segment = Segment { selector: 0, base: 0, limit: 0xffff, access: 0x93 };
            match i {
                seg::CS => *segment = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, access: 0x9b },
                seg::LDTR => segment.access = 0x82,
                seg::TR => segment.access = 0x8b,
                _ => {}
            }
        }
        s.gdtr_limit = 0xffff;
        s.idtr_limit = 0xffff;
        s.xcr0 = 1;
        s.pat = 0x0007_0406_0007_0406;
        s.apic_base = 0xfee0_0900;
        s.misc_enable = 1;
        s.fcw = 0x40;
        s.ftw = 0x5555;
        s.mxcsr = 0x1f80;
        s
    }
}

/// RFLAGS bits.
#[allow(missing_docs)]
pub mod flag {
    pub const CF: u64 = 1 << 0;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// CF, PF, AF, ZF, SF, OF.
    pub const STATUS: u64 = 0x8d5;
}

/// CR0, CR4 and EFER bits.
#[allow(missing_docs)]
pub mod cr {
    pub const CR0_PE: u64 = 1 << 0;
    pub const CR0_MP: u64 = 1 << 1;
    pub const CR0_EM: u64 = 1 << 2;
    pub const CR0_TS: u64 = 1 << 3;
    pub const CR0_ET: u64 = 1 << 4;
    pub const CR0_NE: u64 = 1 << 5;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_AM: u64 = 1 << 18;
    pub const CR0_NW: u64 = 1 << 29;
    pub const CR0_CD: u64 = 1 << 30;
    pub const CR0_PG: u64 = 1 << 31;
    pub const CR4_VME: u64 = 1 << 0;
    pub const CR4_PVI: u64 = 1 << 1;
    pub const CR4_TSD: u64 = 1 << 2;
    pub const CR4_DE: u64 = 1 << 3;
    pub const CR4_PSE: u64 = 1 << 4;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_MCE: u64 = 1 << 6;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_PCE: u64 = 1 << 8;
    pub const CR4_OSFXSR: u64 = 1 << 9;
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub const CR4_UMIP: u64 = 1 << 11;
    pub const CR4_VMXE: u64 = 1 << 13;
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    pub const CR4_PCIDE: u64 = 1 << 17;
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    pub const CR4_SMEP: u64 = 1 << 20;
    pub const CR4_SMAP: u64 = 1 << 21;
    pub const EFER_SCE: u64 = 1 << 0;
    pub const EFER_LME: u64 = 1 << 8;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;
}
