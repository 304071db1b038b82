//! Data that translated code reaches at fixed offsets from its stack pointer, behind the flat state.

use crate::cpu::Cpu;
use crate::mmu::TlbEntry;
use crate::state_block::HOT_OFFSET;

/// Entries of the table of branch targets.
pub const TARGETS: usize = 8192;

/// See the module.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Hot {
    /// Instructions that may still retire; a fragment takes its number off at its entry.
    pub budget: i64,
    /// Linear address of the page that the running fragment lies in.
    pub rip_page: u64,
    /// TLB array of data accesses.
    pub tlb: *const TlbEntry,
    /// Number of the present address space and its state, in bits 63:48; see `Context::epoch`.
    pub epoch: u64,
    /// Scratch of flag saving.
    pub saved_rax: u64,
    /// LAHF in bits 15:8, OF in bit 0: the guest's flags where they are not in the host's.
    pub saved_flags: u64,
    /// Whole host RFLAGS at a spill.
    pub host_flags: u64,
    /// Target of an indirect call while its return address is pushed.
    pub target: u64,
    /// Stack pointer of who entered.
    pub host_rsp: u64,
    /// Where translated code goes on after a helper.
    pub resume: *const u8,
    /// The processor.
    pub cpu: *mut Cpu,
    /// Branch targets, by linear address and epoch: tags,
    pub tags: [u64; TARGETS],
    /// and the code of the fragments, at their entry for saved flags.
    pub code: [*const u8; TARGETS],
}

/// Offset of a field of [`Hot`] from the flat state.
macro_rules! hot {
    ($field:ident) => {
        (crate::state_block::HOT_OFFSET + std::mem::offset_of!(crate::translator::hot::Hot, $field)) as i32
    };
}
pub(crate) use hot;

const _: () = assert!(HOT_OFFSET < 1 << 16);
