//! Two processors over equal memories, one with the translator; and what differs between them.

use rand::RngExt;
use rand::rngs::StdRng;
use silicon::mmu::Invalidation;
use silicon::state::{Segment, State, cr, flag, seg};
use silicon::vmx::bits::{primary, secondary};

use crate::guest::{FINE, Guest, Outcome};
use crate::program::{ABSENT, CODE, DATA, DATA_PAGES, Program, READ_ONLY, listing};

/// A guest in which programs run, at CPL 3.
pub fn guest_for_programs() -> Guest {
    guest_at(3)
}

fn guest_at(cpl: u64) -> Guest {
    let mut guest = Guest::long(cpl);
    guest.cpu.state.xcr0 = silicon::interpreter::vector::features::xcr0_supported();
    guest.unmap_all();
    for n in 0..DATA_PAGES {
        let flags = match n {
            READ_ONLY => 5,
            ABSENT => continue,
            _ => 7,
        };
        guest.map(DATA + n * 4096, DATA + n * 4096, flags);
    }
    for n in 0..2 {
        guest.map(CODE + n * 4096, CODE + n * 4096, 7);
    }
    guest
}

/// Puts a program and its start into a guest.
pub fn load(guest: &mut Guest, p: &Program, cpl: u64) {
    guest.load(p.start, &p.code);
    guest.load(DATA, &p.data);
    let s = &mut *guest.cpu.state;
    s.gpr = p.gpr;
    (s.rip, s.rflags) = (p.start, p.rflags);
    s.ymm = p.ymm;
    s.mxcsr = u64::from(p.mxcsr);
    for (n, rights) in [(seg::CS, 0xa09b), (seg::SS, 0xc093)] {
        s.seg[n] = Segment { selector: 0x30 | cpl, base: 0, limit: 0xffff_ffff, access: rights | cpl << 5 };
    }
    s.seg[seg::FS].base = p.fs;
    s.seg[seg::GS].base = p.gs;
    // What the last program's exit left is not cleared without a VM entry.
    (s.cr2, s.pending_debug, s.assist_kind) = (0, 0, 0);
    (s.fcw, s.fsw, s.ftw, s.fop, s.fip, s.fdp) = (0x37f, 0, 0xffff, 0, 0, 0);
    s.st = Default::default();
    s.retired = 0;
    guest.ready();
}

/// The interpreter and the translator.
pub struct Pair {
    pub interpreter: Guest,
    pub translator: Guest,
    exact: bool,
    cpl: u64,
}

impl Pair {
    pub fn new(exact: bool, cpl: u64) -> Self {
        let mut translator = guest_at(cpl);
        translator.cpu.use_translator_with(4 << 20).expect("executable memory");
        let settings = translator.cpu.translator.as_mut().expect("a translator");
        (settings.warm, settings.exact_flags) = (0, exact);
        Self { interpreter: guest_at(cpl), translator, exact, cpl }
    }

    /// Runs a program on both sides with stops at random counts; a message where they differ.
    pub fn compare(&mut self, rng: &mut StdRng, p: &Program) -> Result<u64, String> {
        load(&mut self.interpreter, p, self.cpl);
        load(&mut self.translator, p, self.cpl);
        let controls = cr::CR4_SMAP | cr::CR4_FSGSBASE | cr::CR4_TSD;
        let cr4 = controls & [rng.random(), !cr::CR4_TSD][rng.random_range(0..2)];
        let exits = primary::PAUSE | primary::CR3_STORE | primary::RDTSC | primary::INTERRUPT_WINDOW;
        let exits = if rng.random_range(0..8) == 0 { exits & rng.random::<u32>() } else { 0 };
        let processor = if rng.random_range(0..2) == 0 { secondary::RDTSCP } else { 0 };
        let fmask = [flag::AC, flag::AC | flag::STATUS | flag::IF, rng.random::<u64>() & 0x3f_7fd5];
        let fmask = fmask[rng.random_range(0..3)];
        let off = u64::from(rng.random_range(0..16) == 0) * cr::EFER_SCE;
        for guest in [&mut self.interpreter, &mut self.translator] {
            let s = &mut *guest.cpu.state;
            (s.lstar, s.fmask, s.star) = (p.lstar, fmask, 0x23_0010_u64 << 32);
            s.efer = (s.efer | cr::EFER_SCE) & !off;
            guest.cpu.state.cr4 = guest.cpu.state.cr4 & !controls | cr4;
            (guest.cpu.ctl.primary, guest.cpu.ctl.secondary) = (exits, processor);
            guest.cpu.state.tsc_aux = 0x1_0000_0005;
            guest.cpu.state.seg[seg::GS].selector = 0x2b;
            guest.cpu.state.kernel_gs_base = p.fs;
            guest.ready();
        }
        if rng.random_range(0..4) == 0 {
            for guest in [&mut self.interpreter, &mut self.translator] {
                guest.cpu.invalidate(Invalidation::Vpid { vpid: 0 });
            }
        }
        let mut counts = Vec::new();
        for _ in 0..rng.random_range(2..5) {
            let count = if rng.random_range(0..3) == 0 { rng.random_range(1..400) } else { rng.random_range(1..40) };
            counts.push(count);
            let wanted = self.interpreter.run(count);
            let got = self.translator.run(count);
            if beyond(self.translator.cpu.state.rip) && !beyond(self.interpreter.cpu.state.rip) {
                // Known: a branch to a non-canonical address faults behind the branch, not at it.
                break;
            }
            let mut wrong = self.difference(wanted, got);
            if !wrong.is_empty() {
                wrong += &format!("  stops {counts:?}, flags {}\n", if self.exact { "exact" } else { "lazy" });
                return Err(wrong + &format!("  from {p:x?}\n", p = Brief(p)) + &listing(p));
            }
            if wanted != Outcome::Done {
                break;
            }
        }
        Ok(self.interpreter.cpu.state.retired)
    }

    fn difference(&self, wanted: Outcome, got: Outcome) -> String {
        let mut wrong = String::new();
        if wanted != got {
            wrong += &format!("  outcome {got:x?}, the interpreter {wanted:x?}\n");
        }
        let (mut i, mut t) = (self.interpreter.cpu.state.clone_state(), self.translator.cpu.state.clone_state());
        if !self.exact {
            // Flags that no instruction will read may differ where the program stops; those that one reads
            // show in registers and branches.
            i.rflags &= !flag::STATUS;
            t.rflags &= !flag::STATUS;
        }
        for n in 0..16 {
            if i.gpr[n] != t.gpr[n] {
                wrong += &format!("  gpr {n}: {:x}, the interpreter {:x}\n", t.gpr[n], i.gpr[n]);
            }
            if i.ymm[n] != t.ymm[n] {
                wrong += &format!("  ymm {n}: {:x?}, the interpreter {:x?}\n", t.ymm[n], i.ymm[n]);
            }
        }
        let mut one = |name: &str, a: u64, b: u64| {
            if a != b {
                wrong += &format!("  {name}: {b:x}, the interpreter {a:x}\n");
            }
        };
        one("rip", i.rip, t.rip);
        one("rflags", i.rflags, t.rflags);
        one("retired", i.retired, t.retired);
        one("mxcsr", i.mxcsr, t.mxcsr);
        one("cr2", i.cr2, t.cr2);
        if wrong.is_empty() && i != t {
            let slots = |s: &State| {
                // SAFETY: the state is made of 64-bit slots only.
                unsafe { std::slice::from_raw_parts((&raw const *s).cast::<u64>(), State::SLOTS).to_vec() }
            };
            let (i, t) = (slots(&i), slots(&t));
            for n in (0..State::SLOTS).filter(|&n| i[n] != t[n]) {
                wrong += &format!("  slot {n} of the state: {:x}, the interpreter {:x}\n", t[n], i[n]);
            }
        }
        let (a, b) = (bytes(&self.interpreter), bytes(&self.translator));
        if let Some(n) = (0..a.len()).find(|&n| a[n] != b[n]) {
            wrong += &format!("  memory at {:x}: {:x}, the interpreter {:x}\n", DATA + n as u64, b[n], a[n]);
        }
        wrong
    }
}

/// The address is not canonical.
fn beyond(address: u64) -> bool {
    !matches!(address >> 47, 0 | 0x1_ffff)
}

/// The data pages and the code pages.
fn bytes(guest: &Guest) -> Vec<u8> {
    let mut data = vec![0; (DATA_PAGES * 4096) as usize];
    guest.cpu.memory.read_bytes(FINE, &mut data);
    let mut code = vec![0; 8192];
    guest.cpu.memory.read_bytes(CODE, &mut code);
    data.extend(code);
    data
}

trait CloneState {
    fn clone_state(&self) -> silicon::state::State;
}

impl CloneState for silicon::state_block::StateBlock {
    fn clone_state(&self) -> silicon::state::State {
        (**self).clone()
    }
}

/// Registers of a program, without its memory.
pub struct Brief<'a>(pub &'a Program);

impl std::fmt::LowerHex for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x?}", self.0.gpr)
    }
}

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let p = self.0;
        write!(f, "gpr {:x?} rflags {:x} mxcsr {:x} fs {:x} gs {:x}", p.gpr, p.rflags, p.mxcsr, p.fs, p.gs)
    }
}
