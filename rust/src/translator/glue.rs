//! Host code that every fragment shares: the way in, the ways out, the call of a helper, the lookup of a
//! branch target. Generated once.

use super::asm::{Address, Asm, cc, reg};
use super::crossing;
use super::hot::{TARGETS, hot};
use super::interrupt_return;
use super::light;
use super::registers;
use super::returns;

/// Guest registers that live in host registers: (guest, host).
pub const MAP: [(u8, u8); 12] =
    [(0, 0), (1, 1), (2, 2), (3, 3), (4, reg::GUEST_RSP), (5, 5), (6, 6), (7, 7), (8, 8), (9, 9), (12, 12), (13, 13)];

/// Guest registers without one: compilers use them least, and least in calls.
const SPILLED: [u8; 4] = [10, 11, 14, 15];

/// The host register of a guest register; `None` for those that stay in memory.
#[must_use]
pub fn host(guest: u8) -> Option<u8> {
    match guest {
        4 => Some(reg::GUEST_RSP),
        0..=9 | 12 | 13 => Some(guest),
        _ => None,
    }
}

/// Offset of a field of the flat state from the stack pointer of translated code.
macro_rules! state {
    ($field:ident) => {
        (crate::state_block::STATE_OFFSET + std::mem::offset_of!(crate::state::State, $field)) as i32
    };
}
pub(crate) use state;

/// Where translated code has a guest register that has no host register.
#[must_use]
pub fn gpr(guest: u8) -> i32 {
    let n = SPILLED.iter().position(|&s| s == guest).unwrap_or_default();
    hot!(spilled) + 8 * n as i32
}

/// Offset of a guest register in the flat state.
pub fn in_state(guest: u8) -> i32 {
    state!(gpr) + 8 * i32::from(guest)
}

/// Why translated code was left; what `enter` returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Leave {
    /// `rip` stands; flags were in the host.
    Here = 0,
    /// A direct branch without a link: its number is in `hot.target`, RIP to be found; flags were in the host.
    Link = 1,
    /// `rip` stands; flags are in `hot.saved_flags`.
    Saved = 2,
    /// A helper said so: the state is complete.
    Helper = 3,
}

impl Leave {
    /// From what `enter` returned.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        match code {
            0 => Self::Here,
            1 => Self::Link,
            2 => Self::Saved,
            _ => Self::Helper,
        }
    }
}

/// Entry points of the shared code, as offsets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Glue {
    /// `extern "C" fn(*mut Hot) -> u32`: loads the guest and goes to `hot.resume`.
    pub enter: usize,
    /// Target in S0, flags in the host.
    pub lookup: usize,
    /// The same, with the flags saved.
    pub lookup_saved: usize,
    /// As `lookup_saved`, for a return. See `returns`.
    pub returns: usize,
    /// Target in S0, S1 = number of the branch, which is to be linked; flags saved. See `far`.
    pub link_far: usize,
    /// S0 = the address behind, S1 = site; see `crossing`.
    pub syscall: usize,
    /// S1 = site.
    pub sysret: usize,
    /// See `interrupt_return`.
    pub interrupt_return: usize,
    /// Routines of `registers`.
    pub vmread: usize,
    /// See `vmread`.
    pub vmwrite: usize,
    /// See `vmread`.
    pub rdmsr: usize,
    /// See `vmread`.
    pub wrmsr: usize,
    /// S1 = site: calls the helper.
    pub slow: usize,
    /// S1 = offset from the page of the fragment, which becomes RIP: leaves with `Leave::Here`.
    pub leave_here: usize,
    /// S1 = link: leaves with `Leave::Link`.
    pub leave_link: usize,
    /// As `leave_here`, with `Leave::Saved`.
    pub leave_saved: usize,
    /// Routines of [`super::probe`].
    pub probes: super::probe::Probes,
}

/// Flags of the host to `hot.saved_flags`, by RAX.
fn put_flags(a: &mut Asm) {
    a.bytes(&[0x9f, 0x0f, 0x90, 0xc0]); // lahf; seto al
    a.store(reg::RAX, hot!(saved_flags));
}

/// The reverse of [`put_flags`].
fn take_flags(a: &mut Asm) {
    a.load(reg::RAX, hot!(saved_flags));
    a.bytes(&[0x04, 0x7f, 0x9e]); // add al, 127 (makes OF); sahf
}

/// Flags of the host to `hot.saved_flags`; no register changes.
pub fn save_flags(a: &mut Asm) {
    a.store(reg::RAX, hot!(saved_rax));
    put_flags(a);
    a.load(reg::RAX, hot!(saved_rax));
}

/// The reverse of [`save_flags`].
pub fn restore_flags(a: &mut Asm) {
    a.store(reg::RAX, hot!(saved_rax));
    take_flags(a);
    a.load(reg::RAX, hot!(saved_rax));
}

/// As [`save_flags`], shorter; clobbers S1.
pub fn flags_aside(a: &mut Asm) {
    a.mov(reg::S1, reg::RAX);
    put_flags(a);
    a.mov(reg::RAX, reg::S1);
}

/// The reverse of [`flags_aside`]; clobbers S1.
pub fn flags_back(a: &mut Asm) {
    a.mov(reg::S1, reg::RAX);
    take_flags(a);
    a.mov(reg::RAX, reg::S1);
}

/// Vector register `n` to or from its place in the state, with `depth` bytes of stack in use.
fn vector_move(a: &mut Asm, avx: bool, store: bool, n: u8, depth: i32) {
    let opcode = 0x10 | u8::from(store);
    if avx {
        a.bytes(&[0xc5, if n < 8 { 0xfc } else { 0x7c }, opcode]);
    } else {
        if n >= 8 {
            a.bytes(&[0x44]);
        }
        a.bytes(&[0x0f, opcode]);
    }
    a.modrm(n, Address::base(reg::RSP, state!(ymm) + i32::from(n) * 32 + depth));
}

/// The vector registers to their places, with `depth` bytes of stack in use.
pub fn store_vectors(a: &mut Asm, avx: bool, depth: i32) {
    for n in 0..16 {
        vector_move(a, avx, true, n, depth);
    }
}

/// The reverse of [`store_vectors`]; clobbers the flags. Where the upper halves are all 0, the processor is told: beside an
/// upper half that it does not know to be 0, legacy SSE instructions wait for what their destination held before.
pub fn load_vectors(a: &mut Asm, avx: bool, depth: i32) {
    for n in 0..15 {
        vector_move(a, avx, false, n, depth);
    }
    if !avx {
        vector_move(a, avx, false, 15, depth);
        return;
    }
    // The last register takes the sum of all meanwhile.
    for n in 1..15 {
        // vorps ymm15, ymm0 or ymm15, ymm n
        a.bytes(&[0xc4, if n < 8 { 0x61 } else { 0x41 }, if n == 1 { 0x7c } else { 0x04 }, 0x56, 0xf8 | n & 7]);
    }
    a.bytes(&[0xc5, 0x04, 0x56]); // vorps ymm15, ymm15, [its place]
    a.modrm(15, Address::base(reg::RSP, state!(ymm) + 15 * 32 + depth));
    a.bytes(&[0xc4, 0x43, 0x7d, 0x19, 0xff, 1]); // vextractf128 xmm15, ymm15, 1
    a.bytes(&[0xc4, 0x42, 0x79, 0x17, 0xff]); // vptest xmm15, xmm15
    vector_move(a, avx, false, 15, depth);
    a.bytes(&[0x75, 3, 0xc5, 0xf8, 0x77]); // jne over; vzeroupper
}

/// LDMXCSR (`store`: STMXCSR) of the state's MXCSR.
fn mxcsr(a: &mut Asm, store: bool) {
    a.bytes(&[0x0f, 0xae]);
    a.modrm(if store { 3 } else { 2 }, Address::base(reg::RSP, state!(mxcsr)));
}

fn spill(a: &mut Asm, avx: bool) {
    for (guest, host) in MAP {
        a.store(host, in_state(guest));
    }
    for guest in SPILLED {
        a.load(reg::RAX, gpr(guest));
        a.store(reg::RAX, in_state(guest));
    }
    a.bytes(&[0x9c, 0x58]); // pushfq; pop rax
    a.store(reg::RAX, hot!(host_flags));
    mxcsr(a, true);
    store_vectors(a, avx, 0);
}

fn fill(a: &mut Asm, avx: bool) {
    load_vectors(a, avx, 0);
    mxcsr(a, false);
    for guest in SPILLED {
        a.load(reg::RAX, in_state(guest));
        a.store(reg::RAX, gpr(guest));
    }
    a.load(reg::STACK, hot!(stack_delta));
    take_flags(a);
    for (guest, host) in MAP {
        a.load(host, in_state(guest));
    }
}

/// Generates the shared code; `helper` is `extern "C" fn(*mut Cpu, u32) -> u32`: 0 goes on at `hot.resume`.
pub fn generate(a: &mut Asm, avx: bool, helper: u64) -> Glue {
    let mut g = Glue { enter: a.at(), ..Glue::default() };
    a.bytes(&[0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]); // push rbx, rbp, r12 to r15
    a.op_mem(true, 0x89, reg::RSP, Address::base(reg::RDI, hot!(host_rsp)));
    a.mov(reg::RSP, reg::RDI);
    let filled = a.at();
    fill(a, avx);
    a.jmp_mem(Address::base(reg::RSP, hot!(resume)));

    g.slow = a.at();
    spill(a, avx);
    default_mxcsr(a);
    a.load(reg::RDI, hot!(cpu));
    a.op_reg(false, 0x89, reg::S1, reg::RSI);
    if avx {
        a.bytes(&[0xc5, 0xf8, 0x77]); // vzeroupper
    }
    a.bytes(&[0x48, 0xb8]);
    a.bytes(&helper.to_le_bytes());
    a.bytes(&[0xff, 0xd0, 0x85, 0xc0]); // call rax; test eax, eax
    let leave = a.jcc_later(cc::NE);
    let back = a.jmp_later();
    a.bind(back, filled);

    g.leave_here = a.at();
    set_rip(a);
    spill(a, avx);
    a.mov_imm(reg::RAX, Leave::Here as u32);
    let here = a.jmp_later();

    g.leave_link = a.at();
    a.store(reg::S1, hot!(target));
    spill(a, avx);
    a.mov_imm(reg::RAX, Leave::Link as u32);
    let link = a.jmp_later();

    g.leave_saved = a.at();
    set_rip(a);
    let saved = a.at();
    spill(a, avx);
    a.mov_imm(reg::RAX, Leave::Saved as u32);

    a.bind_here(here);
    a.bind_here(link);
    default_mxcsr(a);
    a.bind_here(leave);
    if avx {
        a.bytes(&[0xc5, 0xf8, 0x77]);
    }
    a.load(reg::RSP, hot!(host_rsp));
    a.bytes(&[0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);

    // The target, tagged with the epoch of its half of the address space, is compared with the table's tag.
    a.align(64);
    g.lookup = a.at();
    flags_aside(a);
    g.lookup_saved = a.at();
    a.store(reg::S0, state!(rip));
    let entry = |field: i32| Address { base: Some(reg::RSP), index: Some(reg::S1), shift: 3, disp: field };
    const _: () = assert!(size_of::<(u64, *const u8)>() == 16);
    // An address that is not canonical could pass for another one under another epoch, at another privilege.
    a.mov(reg::S1, reg::S0);
    a.bytes(&[0x49, 0xc1, 0xfb, 47]); // sar r11, 47
    a.bytes(&[0x49, 0x83, 0xc3, 1]); // add r11, 1: 0 in the upper half, 1 in the lower
    a.op_reg(true, 0x83, 7, reg::S1); // cmp r11, 1
    a.bytes(&[1]);
    let beyond = a.jcc_later(cc::A);
    a.op_mem(true, 0x8b, reg::S1, entry(hot!(epochs)));
    a.store(reg::S1, hot!(page_epoch));
    a.op_reg(true, 0x31, reg::S1, reg::S0); // xor s0, s1
    a.load(reg::S1, hot!(spread));
    a.bytes(&[0x4d, 0x0f, 0xaf, 0xde]); // imul r11, r14
    shift_right(a, reg::S1, (64 - TARGETS.ilog2()) as u8);
    a.op_reg(false, 0x01, reg::S1, reg::S1); // add s1, s1: a target is two words
    a.op_mem(true, 0x3b, reg::S0, entry(hot!(targets))); // cmp s0, [tag]
    let miss = a.jcc_later(cc::NE);
    a.load(reg::S0, state!(rip));
    go_to_page(a, entry(hot!(targets) + 8));
    a.bind_here(beyond);
    a.bind_here(miss);
    light::resolve(a, avx, saved, false);
    g.returns = returns::generate(a, g.lookup_saved);
    g.link_far = a.at();
    a.store(reg::S0, state!(rip));
    a.store(reg::S1, hot!(target));
    light::resolve(a, avx, saved, true);
    a.align(64);
    let fills = [false, true].map(|written| light::fill(a, avx, written));
    g.probes = super::probe::generate(a, fills);
    g.syscall = crossing::syscall(a, &g);
    g.sysret = crossing::sysret(a, &g);
    g.interrupt_return = interrupt_return::generate(a, &g);
    g.vmread = registers::vmread(a, &g);
    g.vmwrite = registers::vmwrite(a, &g);
    g.rdmsr = registers::rdmsr(a, &g);
    g.wrmsr = registers::wrmsr(a, &g);
    g
}

/// Goes to the code that `to` holds, of a fragment in the page of the address in S0.
pub fn go_to_page(a: &mut Asm, to: Address) {
    a.bytes(&[0x49, 0x81, 0xe6]); // and r14, -4096
    a.bytes(&(-4096i32).to_le_bytes());
    a.store(reg::S0, hot!(rip_page));
    a.jmp_mem(to);
}

/// RIP = page of the fragment + S1.
fn set_rip(a: &mut Asm) {
    a.load(reg::S0, hot!(rip_page));
    a.lea(true, reg::S0, Address { base: Some(reg::S0), index: Some(reg::S1), shift: 0, disp: 0 });
    a.store(reg::S0, state!(rip));
}

/// The MXCSR that Rust code expects, from a constant behind the code that loads it.
fn default_mxcsr(a: &mut Asm) {
    // push 1F80H; ldmxcsr [rsp]; pop is not needed: lea rsp, [rsp + 8]
    a.bytes(&[0x68]);
    a.bytes(&0x1f80u32.to_le_bytes());
    a.bytes(&[0x0f, 0xae, 0x14, 0x24, 0x48, 0x8d, 0x64, 0x24, 0x08]);
}

/// SHL reg32, n.
pub fn shift_left(a: &mut Asm, reg: u8, n: u8) {
    a.op_reg(false, 0xc1, 4, reg);
    a.bytes(&[n]);
}

/// SHR reg, n.
pub fn shift_right(a: &mut Asm, reg: u8, n: u8) {
    a.op_reg(true, 0xc1, 5, reg);
    a.bytes(&[n]);
}

/// AND reg32, imm32.
pub fn and_imm(a: &mut Asm, reg: u8, value: u32) {
    a.op_reg(false, 0x81, 4, reg);
    a.bytes(&value.to_le_bytes());
}
