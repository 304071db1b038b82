//! What a running system does to translated code: it is patched while it runs, pushed out of the cache,
//! remapped, interrupted. The interpreter does the same beside it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iced_x86::Mnemonic;
use silicon::clock::Clock;
use silicon::cpu::Cpu;
use silicon::mmu::Invalidation;
use silicon::state::{cr, flag, gpr};
use silicon::stop::Stop;
use silicon::vmx::Model;
use silicon::vmx::bits::{pin, primary, secondary};
use silicon::vmx::reasons::reason;

use crate::guest::{FINE, Guest, Outcome};

/// Where code begins; data begin 1 MiB behind.
pub const CODE: u64 = FINE;
pub const DATA: u64 = FINE + 0x10_0000;
pub const STACK: u64 = FINE + 0x1f_0000;
/// The page tables of `Guest::long`.
pub const TABLES: u64 = 0x10_0000;

fn kernel(code: &[u8], cache: Option<usize>) -> Guest {
    let mut guest = Guest::long(0);
    if let Some(bytes) = cache {
        guest.cpu.use_translator_with(bytes).expect("executable memory");
        guest.cpu.translator.as_mut().expect("a translator").warm = 0;
    }
    guest.load(CODE, code);
    let s = &mut *guest.cpu.state;
    (s.rip, s.rflags) = (CODE, 2);
    s.gpr[gpr::RSP] = STACK;
    guest
}

/// Interpreter and translator, with the same code.
pub fn both(code: &[u8]) -> [Guest; 2] {
    [kernel(code, None), kernel(code, Some(1 << 20))]
}

/// Runs both in pieces and compares them after each; `between` is done to both in between.
pub fn alike(guests: &mut [Guest; 2], pieces: impl IntoIterator<Item = u64>, mut between: impl FnMut(&mut Guest, u64)) {
    for (n, count) in pieces.into_iter().enumerate() {
        let outcomes = guests.each_mut().map(|guest| {
            between(guest, n as u64);
            guest.run(count)
        });
        let [i, t] = guests.each_ref().map(|guest| &guest.cpu.state);
        assert_eq!(outcomes[0], outcomes[1], "piece {n}, RIP {:x} and {:x}", i.rip, t.rip);
        assert_eq!((i.rip, i.retired, i.gpr), (t.rip, t.retired, t.gpr), "piece {n} of {count}");
        assert_eq!(outcomes[0], Outcome::Done, "piece {n}");
    }
}

pub fn pieces() -> impl Iterator<Item = u64> {
    (0..200u64).map(|n| 1 + n * n * 7 % 157)
}

fn statistics(guest: &Guest) -> silicon::translator::Statistics {
    guest.cpu.translator.as_ref().expect("a translator").statistics
}

#[test]
fn code_that_patches_the_instruction_behind_it() {
    // top: inc al; mov [rip+3], al (the immediate below); add rcx, imm8; rol rdx, 1; add rdx, rcx; jmp top
    let code =
        [0xfe, 0xc0, 0x88, 0x05, 3, 0, 0, 0, 0x48, 0x83, 0xc1, 0, 0x48, 0xd1, 0xc2, 0x48, 0x01, 0xca, 0xeb, 0xec];
    let mut guests = both(&code);
    alike(&mut guests, pieces(), |_, _| {});
    assert_ne!(guests[0].cpu.state.gpr[gpr::RDX], 0);
    assert!(statistics(&guests[1]).stale > 10);
}

#[test]
fn code_that_rewrites_itself_in_another_page() {
    // top: call +0x1000-5; inc byte [rip+..] (its immediate); jmp top.  There: add rcx, imm8; ret
    let mut code = vec![0; 0x1010];
    code[..5].copy_from_slice(&[0xe8, 0xfb, 0x0f, 0, 0]);
    code[5..11].copy_from_slice(&[0xfe, 0x05, 0xf8, 0x0f, 0, 0]);
    code[11..13].copy_from_slice(&[0xeb, 0xf3]);
    code[0x1000..0x1005].copy_from_slice(&[0x48, 0x83, 0xc1, 0, 0xc3]);
    let mut guests = both(&code);
    alike(&mut guests, pieces(), |_, _| {});
    assert!(guests[0].cpu.state.gpr[gpr::RCX] > 1000);
}

#[test]
fn code_in_a_page_that_was_written_before() {
    // top: mov [rdi], al; inc rax; bt rax, 3; jnc top; call rdx; jmp top. The store has its page when code there is first
    // called: from then on it must be noticed.
    let code = [0x88, 0x07, 0x48, 0xff, 0xc0, 0x48, 0x0f, 0xba, 0xe0, 3, 0x73, 0xf4, 0xff, 0xd2, 0xeb, 0xf0];
    let mut guests = both(&code);
    for guest in &mut guests {
        guest.load(DATA, &[0x48, 0x83, 0xc6, 0, 0xc3]); // add rsi, 0; ret
        let s = &mut *guest.cpu.state;
        (s.gpr[gpr::RDI], s.gpr[gpr::RDX]) = (DATA + 3, DATA);
    }
    alike(&mut guests, pieces(), |_, _| {});
    assert!(guests[0].cpu.state.gpr[gpr::RSI] > 1000);
}

#[test]
fn code_that_a_device_writes_between_runs() {
    // top: add rcx, imm8; cmp rcx, rdx; jmp next; next: adc rbx, 0 (or setb bl); jmp top. The flags' last use changes.
    let code = [0x48, 0x83, 0xc1, 1, 0x48, 0x39, 0xd1, 0xeb, 0, 0x48, 0x83, 0xd3, 0, 0xeb, 0xf1];
    let mut guests = both(&code);
    // Otherwise a stop may lose flags that the code, as it was, did not read any more.
    guests[1].cpu.translator.as_mut().expect("a translator").exact_flags = true;
    alike(&mut guests, pieces(), |guest, n| {
        guest.load(CODE + 3, &[n as u8]);
        // adc rbx, 0 | add rbx, 5 (does not look at the flags)
        guest.load(CODE + 11, if n & 4 == 0 { &[0xd3, 0] } else { &[0xc3, 5] });
        guest.cpu.state.gpr[gpr::RDX] = n * 1000;
    });
    assert!(statistics(&guests[1]).stale > 50);
}

#[test]
fn a_cache_that_is_too_small() {
    // 6000 pieces of code in a ring, each a fragment: add rcx, imm32; xor rcx, rax; rol rcx, 1; jmp next (to its page)
    const COUNT: u64 = 6000;
    let mut code = vec![0; (COUNT * 32) as usize];
    for n in 0..COUNT {
        let at = (n * 32) as usize;
        let next = if n + 1 == COUNT { -(at as i32) } else { 32 };
        let mut piece = vec![0x48, 0x81, 0xc1];
        piece.extend((n as u32).to_le_bytes());
        piece.extend([0x48, 0x31, 0xc1, 0x48, 0xd1, 0xc1, 0x48, 0x03, 0x4c, 0x24, 8, 0xe9]);
        piece.extend((next - (piece.len() as i32 + 4)).to_le_bytes());
        code[at..at + piece.len()].copy_from_slice(&piece);
    }
    let mut guests = both(&code);
    alike(&mut guests, (0..12).map(|n| 10_007 + n), |_, _| {});
    let s = statistics(&guests[1]);
    assert!(s.evictions >= 2, "{s:?}");
    let (used, limit) = guests[1].cpu.translator.as_ref().expect("a translator").size();
    assert!(used <= limit && limit <= 1 << 20);
}

/// A second set of tables, in which the data page is another one; PCID is on.
fn two_spaces(guest: &mut Guest) {
    let second = TABLES + 0x8000;
    for n in 0..4 {
        let mut page = vec![0; 4096];
        guest.cpu.memory.read_bytes(TABLES + n * 0x1000, &mut page);
        guest.load(second + n * 0x1000, &page);
    }
    for n in 0..2 {
        guest.cpu.memory.write(second + n * 0x1000, (second + (n + 1) * 0x1000) | 7);
    }
    guest.cpu.memory.write(second + 0x2000 + 8 * (FINE >> 21), (second + 0x3000) | 7);
    guest.cpu.memory.write(second + 0x3000 + 8 * ((DATA - FINE) >> 12), (DATA + 0x1000) | 7);
    // The code behind the first page as well: what is called there differs.
    guest.cpu.memory.write(second + 0x3000 + 8, (CODE + 0x2000) | 7);
    guest.cpu.memory.write(DATA, 1u64);
    guest.cpu.memory.write(DATA + 0x1000, 1000u64);
    guest.cpu.state.cr4 |= cr::CR4_PCIDE;
    guest.cpu.state.gpr[gpr::RAX] = 1 << 63 | second | 2;
    guest.cpu.state.gpr[gpr::RBX] = 1 << 63 | TABLES | 1;
    guest.cpu.state.gpr[gpr::RDI] = DATA;
    guest.ready();
}

#[test]
fn ten_thousand_switches_of_the_address_space() {
    // top: mov cr3, rax; add rcx, [rdi]; add [rdi], rdx; call +0x1000; xchg rax, rbx; inc rdx; jmp top
    let mut code = vec![0; 0x3000];
    code[..3].copy_from_slice(&[0x0f, 0x22, 0xd8]);
    code[3..9].copy_from_slice(&[0x48, 0x03, 0x0f, 0x48, 0x01, 0x17]);
    code[9..14].copy_from_slice(&[0xe8, 0xf2, 0x0f, 0, 0]);
    code[14..21].copy_from_slice(&[0x48, 0x93, 0x48, 0xff, 0xc2, 0xeb, 0xeb]);
    code[0x1000..0x1004].copy_from_slice(&[0x48, 0xff, 0xc6, 0xc3]); // inc rsi; ret
    code[0x2000..0x2005].copy_from_slice(&[0x48, 0x83, 0xc6, 9, 0xc3]); // add rsi, 9; ret
    let mut guests = both(&code);
    guests.iter_mut().for_each(two_spaces);
    alike(&mut guests, (0..20).map(|n| 4500 + n), |_, _| {});
    let s = &guests[0].cpu.state;
    assert!(s.gpr[gpr::RDX] >= 10_000, "{} switches", s.gpr[gpr::RDX]);
    assert!(statistics(&guests[1]).evictions == 0);
}

#[test]
fn pages_of_the_upper_half_that_are_not_global() {
    // top: push rdx; mov cr3, rax; add rcx, [rdi]; add [rdi], rdx; add rcx, [rsp]; pop rsi; xchg rax, rbx; inc rdx; jmp top
    let code = [
        0x52, 0x0f, 0x22, 0xd8, 0x48, 0x03, 0x0f, 0x48, 0x01, 0x17, 0x48, 0x03, 0x0c, 0x24, 0x5e, 0x48, 0x93, 0x48,
        0xff, 0xc2, 0xeb, 0xea,
    ];
    const UPPER: u64 = 0xffff_8000_0000_0000;
    const GLOBAL: u64 = 0x100;
    const NO_EXECUTE: u64 = 1 << 63;
    let mut guests = both(&code);
    for guest in &mut guests {
        two_spaces(guest);
        let memory = &guest.cpu.memory;
        for (tables, page) in [(TABLES, 0), (TABLES + 0x8000, 0x1000)] {
            memory.write(tables + 8 * 256, (tables + 0x1000) | 3);
            // What the two spaces have apart is not global: the page of data, and that of stack. All else is.
            for n in 0..512 {
                let own = [DATA, STACK].into_iter().find(|&address| (address - FINE) >> 12 == n);
                let entry = own.map_or((FINE + n * 0x1000) | GLOBAL, |address| (address + page) | NO_EXECUTE);
                memory.write(tables + 0x3000 + 8 * n, entry | 3);
            }
            memory.write(tables + 0x2000 + 8 * (FINE >> 21), (tables + 0x3000) | 3);
        }
        guest.cpu.state.cr4 |= cr::CR4_PGE;
        guest.cpu.state.efer |= cr::EFER_NXE;
        let s = &mut *guest.cpu.state;
        (s.gpr[gpr::RDI], s.gpr[gpr::RSP]) = (UPPER + DATA, UPPER + STACK + 0x800);
        guest.ready();
    }
    alike(&mut guests, (0..20).map(|n| 4500 + n), |_, _| {});
    let data = |guest: &Guest| [0, 1].map(|n| guest.cpu.memory.read::<u64>(DATA + n * 0x1000));
    assert_eq!(data(&guests[0]), data(&guests[1]));
    assert!(data(&guests[0]).iter().all(|&sum| sum > 1_000_000));
}

/// EPT tables number `n`: identity, but for the page of data, which is page `data` behind it.
fn ept(guest: &Guest, n: u64, data: u64) -> u64 {
    let at = |level: u64| TABLES + 0x2_0000 + n * 0x4000 + level * 0x1000;
    let memory = &guest.cpu.memory;
    for level in 0..2 {
        memory.write(at(level), at(level + 1) | 7);
    }
    for entry in 0..512 {
        memory.write(at(2) + 8 * entry, entry << 21 | 0xb7);
        memory.write(at(3) + 8 * entry, FINE | entry << 12 | 0x37);
    }
    memory.write(at(2) + 8 * (FINE >> 21), at(3) | 7);
    memory.write(at(3) + 8 * ((DATA - FINE) >> 12), (DATA + data * 0x1000) | 0x37);
    at(0) | 0x1e
}

#[test]
fn guests_that_run_in_turns_keep_their_pages_apart() {
    // top: add rcx, [rdi]; add [rdi], rdx; push rax; pop rax; lea rdx, [rdx+1]; jmp top
    let code = [0x48, 0x03, 0x0f, 0x48, 0x01, 0x17, 0x50, 0x58, 0x48, 0x8d, 0x52, 1, 0xeb, 0xf2];
    let mut guests = both(&code);
    for guest in &mut guests {
        (0..8).for_each(|n| guest.cpu.memory.write(DATA + n * 0x1000, 1000 * n));
        guest.cpu.state.gpr[gpr::RDI] = DATA;
        guest.cpu.ctl.vpid = 1;
    }
    alike(&mut guests, pieces(), |guest, n| {
        // Two in turns, at times one of four others; now and then the tables of those that do not run next change.
        let one = if n % 3 == 2 { 2 + n / 3 % 4 } else { n & 1 };
        let pointer = ept(guest, one, one + if n % 40 < 20 { 0 } else { 2 });
        guest.cpu.ctl.ept_pointer = pointer;
        guest.cpu.mmu_enter();
        if n % 20 == 0 {
            (0..6).for_each(|other| {
                let eptp = Some(ept(guest, other, other + if n % 40 < 20 { 0 } else { 2 }));
                guest.cpu.invalidate(Invalidation::Ept { eptp });
            });
        }
    });
    let [interpreter, translator] = &guests;
    let data = |guest: &Guest| [0, 1, 2, 3, 4, 5, 6, 7].map(|n| guest.cpu.memory.read::<u64>(DATA + n * 0x1000));
    assert_eq!(data(interpreter), data(translator));
    assert!(data(interpreter).iter().zip(0..).all(|(&sum, n)| sum > 1000 * n), "all were reached");
}

#[test]
fn page_tables_that_change_under_running_code() {
    // top: xchg [rbx], rax (the entry of the page at rdi); invlpg [rdi]; add rcx, [rdi]; call rdx; jmp top
    // The page at rdi holds data, and behind them code that is called.
    let code = [0x48, 0x87, 0x03, 0x0f, 0x01, 0x3f, 0x48, 0x03, 0x0f, 0xff, 0xd2, 0xeb, 0xf3];
    let mut guests = both(&code);
    for guest in &mut guests {
        let entry = |n: u64| (DATA + n * 0x1000) | 7;
        guest.cpu.memory.write(DATA, 3u64);
        guest.cpu.memory.write(DATA + 0x1000, 5u64);
        guest.load(DATA + 0x800, &[0x48, 0xff, 0xc6, 0xc3]); // inc rsi; ret
        guest.load(DATA + 0x1800, &[0x48, 0x83, 0xc6, 9, 0xc3]); // add rsi, 9; ret
        let s = &mut *guest.cpu.state;
        s.gpr[gpr::RBX] = TABLES + 0x3000 + 8 * ((DATA - FINE) >> 12);
        s.gpr[gpr::RAX] = entry(1) | 0x60;
        s.gpr[gpr::RDI] = DATA;
        s.gpr[gpr::RDX] = DATA + 0x800;
    }
    alike(&mut guests, pieces(), |_, _| {});
    assert!(guests[0].cpu.state.gpr[gpr::RCX] > 1000);
}

/// As above, but who reads is a user: kernel: xchg [rbx], rax; invlpg [rdi]; sysretq. User: add rbp, [rdi]; syscall;
/// jmp user.
#[test]
fn pages_that_change_under_a_user() {
    let mut code = vec![0x48, 0x03, 0x2f, 0x0f, 0x05, 0xeb, 0xf9];
    code.resize(64, 0x90);
    code.extend([0x48, 0x87, 0x03, 0x0f, 0x01, 0x3f, 0x48, 0x0f, 0x07]);
    let mut guests = both(&code);
    for guest in &mut guests {
        guest.cpu.memory.write(DATA, 3u64);
        guest.cpu.memory.write(DATA + 0x1000, 5u64);
        let s = &mut *guest.cpu.state;
        s.gpr[gpr::RBX] = TABLES + 0x3000 + 8 * ((DATA - FINE) >> 12);
        s.gpr[gpr::RAX] = (DATA + 0x1000) | 0x67;
        s.gpr[gpr::RDI] = DATA;
        calls_the_system(guest);
    }
    alike(&mut guests, pieces(), |_, _| {});
    assert!(guests[0].cpu.state.gpr[gpr::RBP] > 1000);
}

#[test]
fn privilege_over_user_pages_comes_and_goes() {
    // top: stac; add rcx, [rdi]; clac; lea rdx, [rdx+1]; jmp top: with SMAP the access needs AC.
    let code = [0x0f, 0x01, 0xcb, 0x48, 0x03, 0x0f, 0x0f, 0x01, 0xca, 0x48, 0x8d, 0x52, 1, 0xeb, 0xf1];
    let mut guests = both(&code);
    for guest in &mut guests {
        guest.cpu.memory.write(DATA, 3u64);
        guest.map(CODE, CODE, 3);
        // Every table above stays user; the code page is the kernel's.
        guest.cpu.state.cr4 |= 1 << 21;
        guest.cpu.state.gpr[gpr::RDI] = DATA;
        guest.ready();
    }
    alike(&mut guests, pieces(), |_, _| {});
    // Without STAC it faults at once, also when the translation of the page is known.
    for guest in &mut guests {
        guest.load(CODE, &[0x0f, 0x1f, 0]);
    }
    let outcomes = guests.each_mut().map(|guest| guest.run(20));
    assert_eq!(outcomes[0], Outcome::Fault { vector: 14, error: 1, address: DATA });
    assert_eq!(outcomes[0], outcomes[1]);
}

fn second_core(first: &Guest, clock: Clock, rip: u64) -> Cpu {
    let mut cpu = Cpu::new(Arc::clone(&first.cpu.memory), Arc::new(Model::default()), clock);
    cpu.ctl.exception_bitmap = !0;
    cpu.use_translator().expect("executable memory");
    cpu.translator.as_mut().expect("a translator").warm = 0;
    *cpu.state = (*first.cpu.state).clone();
    (cpu.state.rip, cpu.state.retired) = (rip, 0);
    cpu.state.gpr[gpr::RSP] -= 0x1000;
    cpu.update_mode();
    cpu.mmu_context_changed();
    cpu
}

/// Chained fragments without end: `inc rax; jmp next; next: inc rcx; jmp top`.
const ENDLESS: [u8; 10] = [0x48, 0xff, 0xc0, 0xeb, 0, 0x48, 0xff, 0xc1, 0xeb, 0xf6];

#[test]
fn endless_loops_notice_the_doorbell() {
    for clock in [Clock::Virtual { skipped: 0 }, Clock::Host { origin: silicon::clock::monotonic_ns() }] {
        let guest = kernel(&ENDLESS, None);
        let mut cpu = second_core(&guest, clock, CODE);
        let doorbell = Arc::clone(&cpu.doorbell);
        let thread = std::thread::spawn(move || {
            let stop = cpu.run(u64::MAX);
            (stop, Instant::now())
        });
        std::thread::sleep(Duration::from_millis(50));
        let begin = Instant::now();
        doorbell.stop();
        let (stop, end) = thread.join().expect("the core");
        assert_eq!(stop, Stop::Again);
        assert!(end - begin < Duration::from_millis(500), "noticed after {:?}", end - begin);
    }
}

#[test]
fn code_that_another_core_writes_is_dropped_and_pages_are_given_up() {
    for clock in [Clock::Virtual { skipped: 0 }, Clock::Host { origin: silicon::clock::monotonic_ns() }] {
        // The other core runs: top: cmp dword [rdi], 0; jmp next; next: jz top; hlt. One patches `jz top` to `jmp +0`.
        let code = [0x83, 0x3f, 0, 0xeb, 0, 0x74, 0xf9, 0x48, 0xff, 0xc6, 0xeb, 0xfb];
        let mut guest = kernel(&[0x88, 0x03, 0x48, 0xff, 0xc9, 0xeb, 0xfe], Some(1 << 20));
        guest.load(CODE + 0x4000, &code);
        guest.cpu.state.gpr[gpr::RDI] = DATA;
        let mut cpu = second_core(&guest, clock, CODE + 0x4000);
        let doorbell = Arc::clone(&cpu.doorbell);
        let thread = std::thread::spawn(move || {
            cpu.run(u64::MAX);
            cpu.state.gpr[gpr::RSI]
        });
        std::thread::sleep(Duration::from_millis(30));
        // This core patches: mov [rbx], al.
        guest.cpu.state.gpr[gpr::RBX] = CODE + 0x4005;
        guest.cpu.state.gpr[gpr::RAX] = 0xeb; // jz top becomes jmp top: nothing changes yet
        assert_eq!(guest.run(1), Outcome::Done);
        guest.cpu.state.gpr[gpr::RBX] = CODE + 0x4006;
        guest.cpu.state.gpr[gpr::RAX] = 0; // and now jmp +0
        guest.cpu.state.rip = CODE;
        assert_eq!(guest.run(1), Outcome::Done);
        std::thread::sleep(Duration::from_millis(100));
        // What this core decodes for the first time must be write-protected in the other, which acknowledges.
        guest.load(DATA + 0x3000, &[0x48, 0xff, 0xc0, 0xeb, 0xfb]);
        guest.cpu.state.rip = DATA + 0x3000;
        let begin = Instant::now();
        assert_eq!(guest.run(100), Outcome::Done);
        assert!(begin.elapsed() < Duration::from_secs(1), "acknowledged after {:?}", begin.elapsed());
        doorbell.stop();
        assert!(thread.join().expect("the core") > 0, "the other core ran old code");
    }
}

#[test]
fn two_cores_count_together() {
    // top: lock xadd [rdi], rax (rax = 1); mov eax, 1; dec rcx; jnz top; jmp self
    let code = [0xb8, 1, 0, 0, 0, 0xf0, 0x48, 0x0f, 0xc1, 0x07, 0x48, 0xff, 0xc9, 0x75, 0xf1, 0xeb, 0xfe];
    const ROUNDS: u64 = 200_000;
    let mut guest = kernel(&code, Some(1 << 20));
    guest.cpu.state.gpr[gpr::RDI] = DATA;
    guest.cpu.state.gpr[gpr::RCX] = ROUNDS;
    let mut cpu = second_core(&guest, Clock::Virtual { skipped: 0 }, CODE);
    let thread = std::thread::spawn(move || cpu.run(5 * ROUNDS));
    assert_eq!(guest.run(5 * ROUNDS), Outcome::Done);
    thread.join().expect("the core");
    assert_eq!(guest.cpu.memory.read::<u64>(DATA), 2 * ROUNDS);
}

/// RDTSC and RDTSCP in a loop: top: rdtsc; shl rdx, 32; or rax, rdx; cmp rax, rbx; jb wrong; mov rbx, rax;
/// rdtscp; shl rdx, 32; or rax, rdx; cmp rax, rbx; jb wrong; mov rbx, rax; cmp ecx, 5; jne wrong; inc rsi; jmp top;
/// wrong: ud2
const TIME: [u8; 47] = [
    0x0f, 0x31, 0x48, 0xc1, 0xe2, 32, 0x48, 0x09, 0xd0, 0x48, 0x39, 0xd8, 0x72, 0x1f, 0x48, 0x89, 0xc3, 0x0f, 0x01,
    0xf9, 0x48, 0xc1, 0xe2, 32, 0x48, 0x09, 0xd0, 0x48, 0x39, 0xd8, 0x72, 0x0d, 0x48, 0x89, 0xc3, 0x83, 0xf9, 5, 0x75,
    5, 0x48, 0xff, 0xc6, 0xeb, 0xd3, 0x0f, 0x0b,
];

#[test]
fn the_time_stamp_counter_follows_the_clock_and_never_goes_back() {
    let origin = silicon::clock::monotonic_ns();
    let mut guest = kernel(&TIME, Some(1 << 20));
    guest.cpu.clock = Clock::Host { origin };
    (guest.cpu.state.tsc_aux, guest.cpu.state.tsc_adjust, guest.cpu.ctl.tsc_offset) = (5, 1 << 40, 1 << 44);
    guest.cpu.ctl.secondary = secondary::RDTSCP;
    for n in 0..30 {
        let before = silicon::clock::monotonic_ns() - origin;
        guest.cpu.state.gpr[gpr::RBX] = 0;
        assert_eq!(guest.cpu.run(before + 5_000_000), Stop::Again);
        let after = silicon::clock::monotonic_ns() - origin;
        let seen = guest.cpu.state.gpr[gpr::RBX] - (1 << 40) - (1 << 44);
        assert!(before <= seen && seen <= after, "{n}: {before} {seen} {after}");
    }
    // What is asked of the VMCS.
    guest.cpu.ctl.primary = primary::RDTSC;
    let now = silicon::clock::monotonic_ns() - origin;
    assert_eq!(guest.cpu.run(now + 1_000_000_000), Stop::Exit);
}

/// top: rdtsc; mov rbx, rax; mov rbp, rdx; jnc wrong; rdtscp; mov rbx, rax; mov rbp, rdx; jc top; wrong: ud2
const TIME_UNDER_FLAGS: [u8; 23] = [
    0x0f, 0x31, 0x48, 0x89, 0xc3, 0x48, 0x89, 0xd5, 0x73, 11, 0x0f, 0x01, 0xf9, 0x48, 0x89, 0xc3, 0x48, 0x89, 0xd5,
    0x72, 0xeb, 0x0f, 0x0b,
];

/// The exit comes before the instruction that would read a later time, and nothing of it is done.
#[test]
fn no_time_behind_the_preemption_timer_is_read() {
    let origin = silicon::clock::monotonic_ns();
    for (code, set) in [(&TIME[..], 0), (&TIME_UNDER_FLAGS[..], flag::CF)] {
        let mut guest = kernel(code, Some(1 << 20));
        guest.cpu.clock = Clock::Host { origin };
        (guest.cpu.state.tsc_aux, guest.cpu.ctl.secondary, guest.cpu.ctl.pin) =
            (5, secondary::RDTSCP, pin::PREEMPTION_TIMER);
        guest.cpu.state.rflags |= set;
        guest.cpu.state.gpr[gpr::RCX] = 7;
        let helped = |guest: &Guest| {
            let by = &guest.cpu.translator.as_ref().expect("a translator").helped_by;
            by[Mnemonic::Rdtsc as usize] + by[Mnemonic::Rdtscp as usize]
        };
        let (mut close, mut before) = (0, 0);
        for n in 0..40 {
            if n == 20 {
                before = helped(&guest); // until the clock's rate is known all are
            }
            let until = silicon::clock::monotonic_ns() - origin + if n == 0 { 100_000_000 } else { 2_000_000 };
            guest.cpu.timer_deadline = until;
            assert_eq!(guest.cpu.run(until + 1_000_000_000), Stop::Exit);
            assert_eq!(guest.cpu.exit.reason, reason::PREEMPTION_TIMER);
            let s = &guest.cpu.state;
            let seen = s.gpr[gpr::RBX] | if set == 0 { 0 } else { s.gpr[gpr::RBP] << 32 };
            assert!(seen < until, "{n}: {seen} and {until}");
            close += u32::from(until - seen < 1_000_000);
            assert_eq!(s.gpr[gpr::RCX], 5, "{n}");
            assert!(set == 0 || s.rflags & flag::CF != 0, "{n}: flags that are still needed");
            // Where instructions between the two readings are left, the registers are no reading.
            if matches!(s.rip - CODE, 0 | 10 | 17) {
                assert_eq!(s.gpr[gpr::RAX], s.gpr[gpr::RBX], "{n}");
            }
        }
        assert!(close > 0, "it never ran up to the timer");
        assert!(helped(&guest) - before <= 20, "{} readings were helped", helped(&guest) - before);
    }
}

/// Begins in the kernel, 64 bytes behind the user's code.
pub fn calls_the_system(guest: &mut Guest) {
    let s = &mut *guest.cpu.state;
    (s.efer, s.fmask, s.star) = (s.efer | cr::EFER_SCE, 0x4_0700, 0x23_0010 << 32);
    (s.rip, s.lstar) = (CODE + 64, CODE + 64);
    (s.gpr[gpr::RCX], s.gpr[11]) = (CODE, 0x202);
    guest.ready();
}

/// User: inc rax; syscall; jmp user. Kernel, 64 bytes behind: inc rbx; sysretq.
#[test]
fn system_calls_stay_in_translated_code() {
    let mut code = vec![0x48, 0xff, 0xc0, 0x0f, 0x05, 0xeb, 0xf9];
    code.resize(64, 0x90);
    code.extend([0x48, 0xff, 0xc3, 0x48, 0x0f, 0x07]);
    let mut guests = both(&code);
    for guest in &mut guests {
        calls_the_system(guest);
    }
    alike(&mut guests, pieces(), |_, _| {});
    let [interpreter, translator] = &guests;
    for guest in [interpreter, translator] {
        assert!(guest.cpu.state.gpr[gpr::RBX] > 1000);
    }
    assert_eq!(interpreter.cpu.state.seg, translator.cpu.state.seg);
    let helped = &translator.cpu.translator.as_ref().expect("a translator").helped_by;
    let count = |m: iced_x86::Mnemonic| helped[m as usize];
    assert!(count(iced_x86::Mnemonic::Syscall) + count(iced_x86::Mnemonic::Sysretq) < 100);
}

/// However often a loop is rewritten, what led to its first fragment is not led through all that came after.
#[test]
fn code_that_was_rewritten_often_is_entered_directly() {
    // top: add rcx, imm8; jmp next; next: jmp top
    let code = [0x48, 0x83, 0xc1, 1, 0xeb, 0, 0xeb, 0xf8];
    let mut guests = both(&code);
    alike(&mut guests, (0..300).map(|n| 50 + n % 7), |guest, n| guest.load(CODE + 3, &[n as u8]));
    let translator = guests[1].cpu.translator.as_ref().expect("a translator");
    assert!(translator.fragments.len() > 200);
    for fragment in &translator.fragments {
        let mut at = fragment.entry;
        let hops = (0..1000).find(|_| {
            // SAFETY: entries lie in code memory, and so does what the jumps there lead to.
            unsafe {
                let goes_on = at.read() == 0xe9;
                if goes_on {
                    at = at.offset(5 + at.add(1).cast::<i32>().read_unaligned() as isize);
                }
                !goes_on
            }
        });
        assert!(hops.is_some_and(|hops| hops <= 3), "{hops:?}");
    }
}
