//! Data that translated code reaches at fixed offsets from its stack pointer, before the flat state.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use super::crossing::Side;
use super::far::COUNTERS;
use super::returns::Returns;
use crate::cpu::Cpu;
use crate::interpreter::system::segment::canonical;
use crate::mmu::{Lost, Mmu, Stamps, TlbEntry, WORLDS};
use crate::state::flag;

/// Entries of the table of branch targets.
pub const TARGETS: usize = 131072;

/// Groups of accesses whose host pointers can be kept at once.
pub const POINTERS: usize = 4;

/// Odd, and random enough.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Pages remembered for each kind of access and privilege.
pub const SLOTS: usize = 4096;

/// Slots that are noted together when one of them is filled.
pub const BLOCK: usize = 32;

/// First slot of a kind of access.
#[must_use]
pub fn slot_part(written: bool, supervisor: bool, world: usize) -> usize {
    (world * 4 + usize::from(supervisor) * 2 + usize::from(written)) * SLOTS
}

/// Blocks of one part, and of one world.
const PART: usize = SLOTS / BLOCK;
const WORLD: usize = 4 * PART;
/// [`Hot::filled`] is looked at by so many at once.
const WORD: usize = 8;

/// The half of the address space that a page lies in, as a bit: what [`Hot::filled`] says of a block.
fn half_bit(page: u64) -> u8 {
    1 << (page >> 63)
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

/// Host addresses of what the VMCS names; null: there is none, and the helper is asked.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Structures {
    /// MSR bitmaps.
    pub msr_bitmap: *const u8,
    /// VMREAD bitmap, where there is a shadow VMCS,
    pub vmread_bitmap: *const u8,
    /// VMWRITE bitmap,
    pub vmwrite_bitmap: *const u8,
    /// and the shadow VMCS.
    pub shadow: *const u8,
}

impl Default for Structures {
    fn default() -> Self {
        let nothing = std::ptr::null();
        Self { msr_bitmap: nothing, vmread_bitmap: nothing, vmwrite_bitmap: nothing, shadow: nothing }
    }
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
    /// The one of `epochs` that holds for that page.
    pub page_epoch: u64,
    /// Numbers of the upper and the lower half of the present address space, in bits 63:48; see `Cpu::code_epochs`.
    pub epochs: [u64; 2],
    /// Host pointers of groups of accesses while something else is in their register; see `fragment::groups`.
    pub pointers: [u64; POINTERS],
    /// Scratch of probes.
    pub saved_rcx: u64,
    /// The arrays that CLAC and STAC choose.
    pub tlb_checked: *const TlbEntry,
    /// See `tlb_checked`.
    pub tlb_unchecked: *const TlbEntry,
    /// Not 0: somebody waits for RFLAGS.IF, an interrupt window or a virtual interrupt.
    pub window: u64,
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
    /// See [`Structures`].
    pub structures: Structures,
    /// RDTSC in line: minus the counter at the anchor,
    pub time_anchor: u64,
    /// what a tick is,
    pub time_factor: u64,
    /// the guest's counter at the anchor,
    pub time_base: u64,
    /// minus the nanoseconds from the anchor to the end of the preemption timer,
    pub time_left: u64,
    /// and the guest's RDX until that is known not to have passed.
    pub saved_rdx: u64,
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
    pub slots_stamps: [Stamps; WORLDS],
    /// The world that runs, and the stacks of the others: as `stack_page` and `stack_delta`, at CPL 3 and at CPL 0.
    pub world: usize,
    stacks: [[[u64; 2]; 2]; WORLDS],
    slots_secret: u64,
    /// The stack at the other privilege: as `stack_page` and `stack_delta`.
    pub other_stack: [u64; 2],
    /// The stack is the one of CPL 0.
    pub supervisor_stack: bool,
    /// What pages the slots of each block may hold: of the lower half of the address space (bit 0), of the upper (bit 1).
    pub filled: [u8; WORLDS * WORLD],
    /// What is left until a direct branch to another page is linked, by its number; see `far`.
    pub countdown: [u8; COUNTERS],
    /// See [`Returns`].
    pub returns: Returns,
    /// What empty slots point to.
    dummy: [u64; 512 + 8],
    /// The page that each memory operand met last: tag and host pointer. One part for each kind of access
    /// and privilege (see [`slot_part`]); an operand's place in it is its site's number.
    pub slots: [[u64; 2]; WORLDS * 4 * SLOTS],
    /// Branch targets, by linear address and epoch: tag, and the fragment's entry for saved flags.
    pub targets: [(u64, *const u8); TARGETS],
}

impl Hot {
    /// Branch targets are from now on those of these epochs.
    #[inline]
    pub fn set_epochs(&mut self, epochs: [u16; 2]) {
        let [lower, upper] = epochs.map(|epoch| u64::from(epoch) << 48);
        self.epochs = [upper, lower];
    }

    #[inline]
    fn epoch_of(&self, linear: u64) -> u64 {
        self.epochs[usize::from(linear >> 63 == 0)]
    }

    /// Code runs in the page of `linear` from now on, under the present epochs.
    #[inline]
    pub fn set_page(&mut self, linear: u64) {
        (self.rip_page, self.page_epoch) = (linear & !0xfff, self.epoch_of(linear));
    }

    /// What the table has for a branch to `linear`, and where.
    #[inline]
    fn tag(&self, linear: u64) -> (u64, usize) {
        let tag = linear ^ self.epoch_of(linear);
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
        if !canonical(linear) {
            return None; // it could pass for another address under another epoch
        }
        let (tag, at) = self.tag(linear);
        (self.targets[at].0 == tag).then_some(self.targets[at].1)
    }

    /// Takes what is remembered for the world that runs, and forgets those pages of it that the MMU has dropped.
    #[inline]
    pub fn keep_slots(&mut self, mmu: &Mmu) {
        let stamps = mmu.stamps();
        if self.world != stamps.world {
            self.select_world(stamps.world);
        }
        if self.slots_stamps[stamps.world] != stamps {
            self.forget_dropped(mmu);
        }
    }

    /// World and stacks are from now on these.
    fn select_world(&mut self, world: usize) {
        let mut stacks = [self.other_stack, [self.stack_page, self.stack_delta]];
        let present = usize::from(self.supervisor_stack);
        if present == 0 {
            stacks.swap(0, 1);
        }
        self.stacks[self.world] = stacks;
        self.world = world;
        let stacks = &self.stacks[world];
        [self.stack_page, self.stack_delta] = stacks[present];
        self.other_stack = stacks[1 - present];
    }

    fn forget_dropped(&mut self, mmu: &Mmu) {
        let new = mmu.stamps();
        let old = std::mem::replace(&mut self.slots_stamps[new.world], new);
        let lost = mmu.lost_since(old.lost);
        let all = lost.is_none();
        let halves = [0, 1].map(|half| all || old.supervisor[half] != new.supervisor[half]);
        self.forget_slots(all || old.user != new.user, halves);
        for what in lost.into_iter().flatten() {
            self.forget_page(what);
        }
    }

    /// A slot that nothing matches. Its tag is not canonical and not to be guessed; who met it all the same would reach a
    /// page of nobody.
    fn empty_slot(&mut self) -> [u64; 2] {
        self.slots_secret = self.slots_secret.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        [1 << 63 | self.slots_secret >> 2 & !0xfff, (&raw const self.dummy) as u64]
    }

    /// Forgets what accesses at CPL 3 met, and what those at CPL 0 met in the lower and in the upper half.
    fn forget_slots(&mut self, user: bool, halves: [bool; 2]) {
        let empty = self.empty_slot();
        let of_user = if user { 3 } else { 0 };
        let of_supervisor = u8::from(halves[0]) | u8::from(halves[1]) << 1;
        let first = self.world * WORLD;
        for (blocks, goes) in [(first..first + 2 * PART, of_user), (first + 2 * PART..first + WORLD, of_supervisor)] {
            if goes != 0 {
                self.forget_blocks(blocks, goes, empty);
            }
        }
        // A stack at CPL 0 may lie in a page that no slot has (`PASSING`): another space takes both stacks.
        let of_stack = |supervisor: bool| if supervisor { of_supervisor | of_user } else { of_user };
        let no_stack = [empty[0], empty[1].wrapping_sub(empty[0])];
        if half_bit(self.stack_page) & of_stack(self.supervisor_stack) != 0 {
            [self.stack_page, self.stack_delta] = no_stack;
        }
        if half_bit(self.other_stack[0]) & of_stack(!self.supervisor_stack) != 0 {
            self.other_stack = no_stack;
        }
    }

    /// Forgets in a range of blocks what lies in the halves that `goes` names.
    fn forget_blocks(&mut self, blocks: Range<usize>, goes: u8, empty: [u64; 2]) {
        for (at, word) in blocks.clone().step_by(WORD).zip(self.filled[blocks].chunks_exact_mut(WORD)) {
            if word == [0; WORD] {
                continue;
            }
            for (block, held) in (at..).zip(word).filter(|(_, held)| **held & goes != 0) {
                *held &= !goes;
                let slots = &mut self.slots[block * BLOCK..][..BLOCK];
                if *held == 0 {
                    slots.fill(empty);
                } else {
                    slots.iter_mut().filter(|slot| half_bit(slot[0]) & goes != 0).for_each(|slot| *slot = empty);
                }
            }
        }
    }

    /// Forgets one page.
    fn forget_page(&mut self, what: Lost) {
        let empty = self.empty_slot();
        let (parts, field, lost) = match what {
            Lost::User { page } => ([0, 1], 0, page),
            Lost::Writes { host } => ([1, 3], 1, host),
        };
        for part in parts {
            let first = self.world * WORLD + part * PART;
            for block in first..first + PART {
                if self.filled[block] != 0 {
                    let slots = &mut self.slots[block * BLOCK..][..BLOCK];
                    slots.iter_mut().filter(|slot| slot[field] == lost).for_each(|slot| *slot = empty);
                }
            }
        }
        // A stack is written, and its privilege is of no interest: to look for its page costs little.
        let no_stack = [empty[0], empty[1].wrapping_sub(empty[0])];
        if [self.stack_page, self.stack_page.wrapping_add(self.stack_delta)][field] == lost {
            [self.stack_page, self.stack_delta] = no_stack;
        }
        if [self.other_stack[0], self.other_stack[0].wrapping_add(self.other_stack[1])][field] == lost {
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

    /// The guest's flags, for code that takes them from `saved_flags`.
    #[inline]
    pub fn set_saved_flags(&mut self, rflags: u64) {
        self.saved_flags = (rflags & 0xd5) << 8 | rflags >> 11 & 1;
    }

    /// The arithmetic flags in `saved_flags`, as RFLAGS has them.
    #[inline]
    #[must_use]
    pub fn saved_status(&self) -> u64 {
        self.saved_flags >> 8 & 0xd5 | (self.saved_flags & 1) << 11
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
        // A world's slots and stacks are emptied when it runs first, by what is no state of the MMU: the memory of those that
        // never do is not touched.
        self.filled = [3; WORLDS * WORLD];
        self.slots_stamps = [Stamps { user: !0, supervisor: [!0; 2], ..Stamps::default() }; WORLDS];
        self.forget_targets();
    }

    /// Forgets all branch targets.
    pub fn forget_targets(&mut self) {
        self.targets = [(!0, std::ptr::null()); TARGETS];
        self.returns.forget();
    }
}

/// Offset of a field of [`Hot`] from the stack pointer of translated code.
macro_rules! hot {
    ($($field:ident).+) => {
        std::mem::offset_of!(crate::translator::hot::Hot, $($field).+) as i32
    };
}
pub(crate) use hot;
