//! VMREAD and VMWRITE of a shadow VMCS, RDMSR and WRMSR in translated code, beside the interpreter: what exits, faults or fails is exact, and
//! the rest does not ask the helper.

use iced_x86::Mnemonic;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use silicon::state::{flag, gpr};
use silicon::vmx::bits::secondary;
use silicon::vmx::fields::{FIELDS, slot};

use crate::guest::Guest;
use crate::stress::{CODE, both};

/// Pages for what a VMCS names.
const VMCS: u64 = 0x30_0000;
const SHADOW: u64 = VMCS + 0x1000;
const MSR_BITMAP: u64 = VMCS + 0x2000;
const VMREAD_BITMAP: u64 = VMCS + 0x3000;
const VMWRITE_BITMAP: u64 = VMCS + 0x4000;
/// No pointer.
const NONE: u64 = !0;

/// mov ecx, r8d; rdmsr; add rsi, rax; xor rdi, rdx; mov ecx, r9d; mov rax, r10; mov rdx, r11; wrmsr; vmread rbx, r12; pushfq;
/// pop rbp; add rsi, rbx; xor rdi, rbp; vmwrite r12, rbx; pushfq; pop rbp; xor rdi, rbp; vmread r14, r15; adc rsi, r14;
/// add r14, r13; vmwrite r15, r14; jmp to the first
const PROGRAM: [u8; 59] = [
    0x44, 0x89, 0xc1, 0x0f, 0x32, 0x48, 0x01, 0xc6, 0x48, 0x31, 0xd7, 0x44, 0x89, 0xc9, 0x4c, 0x89, 0xd0, 0x4c, 0x89,
    0xda, 0x0f, 0x30, 0x44, 0x0f, 0x78, 0xe3, 0x9c, 0x5d, 0x48, 0x01, 0xde, 0x48, 0x31, 0xef, 0x44, 0x0f, 0x79, 0xe3,
    0x9c, 0x5d, 0x48, 0x31, 0xef, 0x45, 0x0f, 0x78, 0xfe, 0x4c, 0x11, 0xf6, 0x4d, 0x01, 0xee, 0x45, 0x0f, 0x79, 0xfe,
    0xeb, 0xc5,
];

/// Read and written; the first three are plain.
const MSRS: [u32; 9] = [0xc000_0102, 0x48, 0x1d9, 0xc000_0082, 0xc000_0081, 0xc000_0103, 0x174, 0x10a, 0x2fff];
const WRITTEN: [u32; 8] = [0xc000_0102, 0x48, 0xc000_0082, 0x1d9, 0xc000_0081, 0xc000_0103, 0x174, 0x10a];
const VALUES: [u64; 7] = [5, 0x407, 0x408, 0xffff_ffff_8100_0000, 0x8000_0000_0000, 0x1234_5678_9abc_def0, 0];

/// What differs from round to round.
struct Round {
    read: u32,
    written: u32,
    value: u64,
    fields: [u64; 2],
    /// What is added to a field that is written again.
    change: u64,
    /// A bit of the MSR bitmaps, one of the VMREAD bitmap, one of the VMWRITE bitmap.
    bits: [Option<u64>; 3],
    msr_bitmap: u64,
    link: u64,
    shadowing: bool,
}

impl Round {
    /// `odd`: with what exits, faults or fails.
    fn random(rng: &mut StdRng, odd: bool) -> Self {
        let [plain, plain_written] = if odd { [MSRS.len(), WRITTEN.len()] } else { [3, 3] };
        let mut field = || {
            let encoding = u64::from(FIELDS[rng.random_range(0..FIELDS.len())].encoding);
            match rng.random_range(0..32) {
                0 if odd => encoding | 1,
                1 if odd => encoding | 1 << 12,
                2 if odd => encoding | 1 << 40,
                3 if odd => encoding ^ 0x200,
                4 if odd => encoding | 1 << 15,
                _ => encoding,
            }
        };
        let fields = [field(), field()];
        let mut one_of = |n: u32| odd && rng.random_range(0..n) == 0;
        let (no_bitmap, no_link, no_shadowing) = (one_of(16), one_of(16), one_of(16));
        let exits = [one_of(4), one_of(4), one_of(4)];
        let change = u64::from(one_of(2)) << 3;
        let read = MSRS[rng.random_range(0..plain)];
        let written = WRITTEN[rng.random_range(0..plain_written)];
        let value = if odd { VALUES[rng.random_range(0..VALUES.len())] } else { 5 };
        let (msr, writes) = if rng.random_range(0..2) == 0 { (read, 0) } else { (written, 1 << 14) };
        let bit = writes + u64::from(msr & 0x1fff) + if msr >= 0xc000_0000 { 1 << 13 } else { 0 };
        Self {
            read,
            written,
            value,
            fields,
            change,
            bits: [
                exits[0].then_some(bit),
                exits[1].then_some(fields[rng.random_range(0..2)] & 0x7fff),
                exits[2].then_some(fields[rng.random_range(0..2)] & 0x7fff),
            ],
            msr_bitmap: if no_bitmap { NONE } else { MSR_BITMAP },
            link: if no_link { NONE } else { SHADOW },
            shadowing: !no_shadowing,
        }
    }

    fn put(&self, guest: &mut Guest) {
        for (page, bit) in [MSR_BITMAP, VMREAD_BITMAP, VMWRITE_BITMAP].into_iter().zip(self.bits) {
            guest.load(page, &[0; 4096]);
            if let Some(bit) = bit {
                guest.cpu.memory.write(page + bit / 8, 1_u8 << (bit % 8));
            }
        }
        let cpu = &mut guest.cpu;
        cpu.vmcs = cpu.vmcs_at(VMCS).expect("a page");
        cpu.vmcs.set(slot::GUEST_VMCS_LINK_POINTER, self.link);
        cpu.ctl.secondary = if self.shadowing { secondary::VMCS_SHADOWING } else { 0 };
        (cpu.ctl.msr_bitmap, cpu.ctl.vmread_bitmap) = (self.msr_bitmap, VMREAD_BITMAP);
        cpu.ctl.vmwrite_bitmap = VMWRITE_BITMAP;
        cpu.set_structures();
        let s = &mut *cpu.state;
        (s.gpr[8], s.gpr[9]) = (u64::from(self.read), u64::from(self.written));
        (s.gpr[10], s.gpr[11]) = (self.value | 0xdead << 48, self.value >> 32 | 0xbeef << 32);
        (s.gpr[12], s.gpr[15], s.gpr[13]) = (self.fields[0], self.fields[1], self.change);
        (s.rip, s.pending_debug) = (CODE, 0);
        s.rflags = 2;
        guest.ready();
    }
}

fn guests(exact: bool) -> [Guest; 2] {
    let mut guests = both(&PROGRAM);
    guests[1].cpu.translator.as_mut().expect("a translator").exact_flags = exact;
    for guest in &mut guests {
        for n in 0..512 {
            guest.cpu.memory.write(SHADOW + 8 * n, 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n + 1));
        }
        for field in FIELDS {
            let at = SHADOW + 8 * u64::from(field.slot);
            guest.cpu.memory.write(at, guest.cpu.memory.read::<u64>(at) & field.mask());
        }
    }
    guests
}

/// `exact`: flags are exact, too, wherever the processors stop.
fn run(odd: bool, exact: bool, rounds: usize) -> [Guest; 2] {
    let mut rng = StdRng::seed_from_u64(7);
    let mut guests = guests(exact);
    for number in 0..rounds {
        let round = Round::random(&mut rng, odd);
        let count = rng.random_range(1..60);
        let outcomes = guests.each_mut().map(|guest| {
            round.put(guest);
            guest.run(count)
        });
        assert_eq!(outcomes[0], outcomes[1], "round {number}");
        let [i, t] = guests.each_ref().map(|guest| {
            let s = &guest.cpu.state;
            let msrs = [s.kernel_gs_base, s.spec_ctrl, s.lstar, s.star, s.tsc_aux, s.sysenter_cs];
            let exit = (guest.cpu.exit.reason, guest.cpu.vmcs.get(slot::VM_INSTRUCTION_ERROR));
            (s.rip, s.retired, s.gpr, if exact { s.rflags & flag::STATUS } else { 0 }, msrs, exit)
        });
        assert_eq!(i, t, "round {number}");
    }
    guests
}

#[test]
fn what_is_plain_stays_in_translated_code() {
    let guests = run(false, false, 200);
    let helped = &guests[1].cpu.translator.as_ref().expect("a translator").helped_by;
    assert_ne!(guests[1].cpu.state.gpr[gpr::RSI], 0);
    for mnemonic in [Mnemonic::Vmread, Mnemonic::Vmwrite, Mnemonic::Rdmsr, Mnemonic::Wrmsr] {
        assert_eq!(helped[mnemonic as usize], 0, "{mnemonic:?}");
    }
}

#[test]
fn what_exits_faults_or_fails_is_exact() {
    for exact in [false, true] {
        let guests = run(true, exact, 2000);
        let helped = &guests[1].cpu.translator.as_ref().expect("a translator").helped_by;
        assert!(helped[Mnemonic::Vmread as usize] > 50);
        assert!(helped[Mnemonic::Vmwrite as usize] > 50);
        let shadow = |guest: &Guest| (0..512).map(|n| guest.cpu.memory.read(SHADOW + 8 * n)).collect::<Vec<u64>>();
        assert_eq!(shadow(&guests[0]), shadow(&guests[1]));
    }
}
