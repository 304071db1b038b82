//! Data that translated code reaches at fixed offsets from its stack pointer, before the flat state.

use std::hash::{BuildHasher, RandomState};

use super::crossing::Side;
use crate::cpu::Cpu;
use crate::mmu::{Stamps, TlbEntry};
use crate::state::flag;

/// Entries of the table of branch targets.
pub const TARGETS: usize = 65536;

/// Odd, and random enough.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Pages remembered for each kind of access and privilege.
pub const SLOTS: usize = 512;

/// Slots noted one by one when they are filled.
pub const NOTED: usize = 255;

/// First slot of a kind of access.
#[must_use]
pub fn slot_part(written: bool, supervisor: bool) -> usize {
    (usize::from(written) * 2 + usize::from(supervisor)) * SLOTS
}

/// The part of slot `number` is one of supervisor accesses.
fn is_supervisor(number: usize) -> bool {
    number / SLOTS % 2 == 1
}

/// Instructions whose place in line is taken by the helper, by what they need.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct Refused {
    /// RDFSBASE and the like.
    pub segment_bases: u64,
    /// RDTSC.
    pub time_stamp: u64,
    /// RDTSCP.
    pub time_stamp_and_processor: u64,
    /// MOV from CR3.
    pub cr3: u64,
    /// PAUSE.
    pub pause: u64,
}

/// See the module. What comes first is reached with short displacements.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Hot {
    /// Instructions that may still retire; a fragment takes its number off at its entry.
    pub budget: i64,
    /// Linear address of the page that the running fragment lies in.
    pub rip_page: u64,
    /// The page of stack at the present privilege, writable: linear address,
    pub stack_page: u64,
    /// and host pointer minus that (in a register while translated code runs).
    pub stack_delta: u64,
    /// Guest registers without a host register: R10, R11, R14, R15.
    pub spilled: [u64; 4],
    /// TLB array of data accesses.
    pub tlb: *const TlbEntry,
    /// Scratch of flag saving and of probes.
    pub saved_rax: u64,
    /// LAHF in bits 15:8, OF in bit 0: the guest's flags where they are not in the host's.
    pub saved_flags: u64,
    /// Target of an indirect call while its return address is pushed.
    pub target: u64,
    /// Scratch of probes.
    pub saved_rcx: u64,
    /// The arrays that CLAC and STAC choose.
    pub tlb_checked: *const TlbEntry,
    /// See `tlb_checked`.
    pub tlb_unchecked: *const TlbEntry,
    /// Not 0: somebody waits for RFLAGS.IF, an interrupt window or a virtual interrupt.
    pub window: u64,
    /// Numbers of the lower and the upper half of the present address space, in bits 63:48; see
    /// `Cpu::code_epochs`.
    pub epochs: [u64; 2],
    /// Spreads branch targets over their table.
    pub spread: u64,
    /// Masks for PEXT and PDEP: the arithmetic flags,
    pub status_mask: u64,
    /// what PUSHFQ takes from `state.rflags`,
    pub pushed_mask: u64,
    /// everything but IF,
    pub no_interrupts_mask: u64,
    /// everything but AC,
    pub no_ac_mask: u64,
    /// everything but DF.
    pub no_direction_mask: u64,
    /// What the offset of an operand from its page has beyond the page, or from a multiple of its size, for 1, 2, 4 and 8
    /// bytes.
    pub beyond: [u64; 4],
    /// What the helper has to look at, where it is not 0: see `Cpu::set_controls`.
    pub refused: Refused,
    /// RDTSC in line: minus the counter at the anchor,
    pub time_anchor: u64,
    /// what a tick is,
    pub time_factor: u64,
    /// and the guest's counter at the anchor.
    pub time_base: u64,
    /// SYSCALL,
    pub to_kernel: Side,
    /// and SYSRET.
    pub to_user: Side,
    /// What of the epochs changes with the privilege.
    pub epoch_change: u64,
    /// Whole host RFLAGS at a spill.
    pub host_flags: u64,
    /// Stack pointer of who entered.
    pub host_rsp: u64,
    /// Where translated code goes on after a helper.
    pub resume: *const u8,
    /// The processor.
    pub cpu: *mut Cpu,
    /// The state of the MMU for which `slots` and the stacks hold.
    pub slots_stamps: Stamps,
    slots_secret: u64,
    /// The stack at the other privilege: as `stack_page` and `stack_delta`.
    pub other_stack: [u64; 2],
    /// The stack is the one of CPL 0.
    pub supervisor_stack: bool,
    /// How many slots were noted in `noted`; [`NOTED`]: too many.
    pub noted_count: u64,
    /// Slots that were filled, by their offset in `slots`.
    pub noted: [u16; NOTED + 1],
    /// What empty slots point to.
    dummy: [u64; 512 + 8],
    /// The page that each memory operand met last: tag and host pointer. One part for each kind of access
    /// and privilege (see [`slot_part`]); an operand's place in it is its site's number.
    pub slots: [[u64; 2]; 4 * SLOTS],
    /// Branch targets, by linear address and epoch: tag, and the fragment's entry for saved flags.
    pub targets: [(u64, *const u8); TARGETS],
}

impl Hot {
    /// Branch targets are from now on those of these epochs.
    #[inline]
    pub fn set_epochs(&mut self, epochs: [u16; 2]) {
        self.epochs = epochs.map(|epoch| u64::from(epoch) << 48);
    }

    /// What the table has for a branch to `linear`, and where.
    #[inline]
    fn tag(&self, linear: u64) -> (u64, usize) {
        let tag = linear ^ self.epochs[(linear >> 63) as usize];
        (tag, (tag.wrapping_mul(SPREAD) >> (64 - TARGETS.ilog2())) as usize)
    }

    /// Remembers where the code for a branch to `linear` is.
    pub fn set_target(&mut self, linear: u64, code: *const u8) {
        let (tag, at) = self.tag(linear);
        self.targets[at] = (tag, code);
    }

    /// The code for a branch to `linear`, entered with saved flags.
    #[inline]
    #[must_use]
    pub fn target_of(&self, linear: u64) -> Option<*const u8> {
        let (tag, at) = self.tag(linear);
        (self.targets[at].0 == tag).then_some(self.targets[at].1)
    }

    /// Forgets the remembered pages unless the MMU is as it was.
    #[inline]
    pub fn keep_slots(&mut self, stamps: Stamps) {
        if self.slots_stamps != stamps {
            let old = std::mem::replace(&mut self.slots_stamps, stamps);
            self.forget_slots(old.user != stamps.user, old.supervisor != stamps.supervisor);
        }
    }

    /// The tag of an empty slot is not canonical and not to be guessed; who met it all the same would reach a
    /// page of nobody.
    fn forget_slots(&mut self, user: bool, supervisor: bool) {
        self.slots_secret = self.slots_secret.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let tag = 1 << 63 | self.slots_secret >> 2 & !0xfff;
        let nobody = (&raw const self.dummy) as u64;
        let goes = |of_supervisor: bool| if of_supervisor { supervisor } else { user };
        // What is noted and stays is noted again, from the front.
        let mut kept = 0;
        let noted = self.noted_count as usize;
        if noted < NOTED {
            for n in 0..noted {
                let offset = self.noted[n];
                let number = usize::from(offset) / 16;
                if goes(is_supervisor(number)) {
                    if let Some(slot) = self.slots.get_mut(number) {
                        *slot = [tag, nobody];
                    }
                } else {
                    self.noted[kept] = offset;
                    kept += 1;
                }
            }
        } else {
            for (part, slots) in self.slots.chunks_exact_mut(SLOTS).enumerate() {
                if goes(is_supervisor(part * SLOTS)) {
                    slots.fill([tag, nobody]);
                }
            }
            // Nothing is known of what stays.
            kept = if user && supervisor { 0 } else { NOTED };
        }
        self.noted_count = kept as u64;
        let no_stack = [tag, nobody.wrapping_sub(tag)];
        if goes(self.supervisor_stack) {
            [self.stack_page, self.stack_delta] = no_stack;
        }
        if goes(!self.supervisor_stack) {
            self.other_stack = no_stack;
        }
    }

    /// The stack is from now on that of CPL 0, or of CPL 3.
    #[inline]
    pub fn select_stack(&mut self, supervisor: bool) {
        if self.supervisor_stack != supervisor {
            self.supervisor_stack = supervisor;
            let other = std::mem::replace(&mut self.other_stack, [self.stack_page, self.stack_delta]);
            [self.stack_page, self.stack_delta] = other;
        }
    }

    /// Sets what never changes.
    pub fn initialise(&mut self) {
        self.spread = SPREAD;
        self.status_mask = flag::STATUS;
        self.pushed_mask = !(flag::STATUS | flag::RF | flag::VM);
        self.no_interrupts_mask = !flag::IF;
        self.no_ac_mask = !flag::AC;
        self.no_direction_mask = !flag::DF;
        self.beyond = [!0xfff, !0xffe, !0xffc, !0xff8];
        self.slots_secret = RandomState::new().hash_one(0u8);
        self.noted_count = NOTED as u64;
        self.forget_slots(true, true);
        self.forget_targets();
    }

    /// Forgets all branch targets.
    pub fn forget_targets(&mut self) {
        self.targets = [(!0, std::ptr::null()); TARGETS];
    }
}

/// Offset of a field of [`Hot`] from the stack pointer of translated code.
macro_rules! hot {
    ($($field:ident).+) => {
        std::mem::offset_of!(crate::translator::hot::Hot, $($field).+) as i32
    };
}
pub(crate) use hot;

const _: () = assert!(16 * 4 * SLOTS <= 1 << 16);
