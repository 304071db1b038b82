//! The reference for differential tests: one instruction, run by the host's own processor.
//!
//! A signal handler swaps the whole register file for the test's with TF set, the processor executes one
//! instruction, the trap's handler takes the registers out and swaps the test thread's own back. Works for
//! whatever runs at CPL 3 in 64-bit code, faults included. Not for instructions that change FS, GS or TF.

#![allow(dead_code)]

use std::sync::{Mutex, MutexGuard, Once};

/// What the instruction is given and what it leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NativeState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// The code is 32-bit (compatibility mode): addresses and registers have 32 bits.
    pub code32: bool,
    /// YMM0..YMM15; the upper halves are ignored where the host has no AVX.
    pub ymm: [[u64; 4]; 16],
    pub mxcsr: u32,
    pub fcw: u16,
    pub fsw: u16,
    /// Abridged tag word (FXSAVE): a bit is 1 for a register that is not empty, physical order.
    pub ftw: u8,
    /// ST0..ST7 in stack order, 10 bytes each.
    pub st: [[u8; 10]; 8],
}

impl Default for NativeState {
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: 0x202,
            code32: false,
            ymm: [[0; 4]; 16],
            mxcsr: 0x1f80,
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            st: [[0; 10]; 8],
        }
    }
}

/// How the instruction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It completed (for a REP string instruction: one iteration).
    Done,
    /// It faulted with this vector; `error` and `address` (CR2) are those of #PF and #GP.
    Fault { vector: u8, error: u32, address: u64 },
}

struct Exchange {
    active: bool,
    entering: bool,
    state: NativeState,
    outcome: Outcome,
    gregs: [libc::greg_t; 23],
    frame: Vec<u8>,
}

static LOCK: Mutex<()> = Mutex::new(());
static INSTALL: Once = Once::new();
static mut EXCHANGE: *mut Exchange = std::ptr::null_mut();

/// Order of the general registers in `gregs`, by encoding.
const GREG: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

const TF: u64 = 1 << 8;
/// Linux's 32-bit user code segment.
const CODE32: u64 = 0x23;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
/// RFLAGS that a program may have: status, DF, AC, ID, NT.
const USER_FLAGS: u64 = 0x24_4cd5;

/// The frame's floating-point image and its size (the XSAVE area where the kernel gives one).
unsafe fn frame(context: *mut libc::ucontext_t) -> (*mut u8, usize) {
    // SAFETY: the kernel passes a context whose `fpregs` points to at least the 512-byte legacy area;
    // bytes 464..512 say whether and how long an extended area follows.
    unsafe {
        let base = (*context).uc_mcontext.fpregs.cast::<u8>();
        let magic = base.add(464).cast::<u32>().read_unaligned();
        let size = base.add(480).cast::<u32>().read_unaligned() as usize;
        (base, if magic == FP_XSTATE_MAGIC1 { size.max(832) } else { 512 })
    }
}

unsafe extern "C" fn handler(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: EXCHANGE is null or points to the exchange of the thread that holds LOCK; signals that reach
    // this handler are synchronous ones of that thread, or a crash, which is left to the default action.
    unsafe {
        if EXCHANGE.is_null() || !(*EXCHANGE).active {
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        let x = &mut *EXCHANGE;
        let gregs = &mut (*context).uc_mcontext.gregs;
        let (fp, size) = frame(context);
        if x.entering {
            x.entering = false;
            x.gregs = *gregs;
            x.frame.clear();
            x.frame.extend_from_slice(std::slice::from_raw_parts(fp, size));
            let s = &x.state;
            for (slot, value) in GREG.iter().zip(s.gpr) {
                gregs[*slot as usize] = value as i64;
            }
            gregs[libc::REG_RIP as usize] = s.rip as i64;
            let kept = gregs[libc::REG_EFL as usize] as u64 & !USER_FLAGS;
            gregs[libc::REG_EFL as usize] = (kept | s.rflags & USER_FLAGS | TF) as i64;
            if s.code32 {
                let segments = gregs[libc::REG_CSGSFS as usize] as u64;
                gregs[libc::REG_CSGSFS as usize] = (segments & !0xffff | CODE32) as i64;
            }
            put_vector(s, fp, size);
            return;
        }
        x.active = false;
        let trap = gregs[libc::REG_TRAPNO as usize];
        x.outcome = if trap == 1 {
            Outcome::Done
        } else {
            let error = gregs[libc::REG_ERR as usize] as u32;
            let address = if trap == 14 { gregs[libc::REG_CR2 as usize] as u64 } else { 0 };
            Outcome::Fault { vector: trap as u8, error, address }
        };
        let s = &mut x.state;
        for (slot, value) in GREG.iter().zip(s.gpr.iter_mut()) {
            *value = gregs[*slot as usize] as u64;
        }
        s.rip = gregs[libc::REG_RIP as usize] as u64;
        s.rflags = gregs[libc::REG_EFL as usize] as u64 & !TF;
        get_vector(s, fp, size);
        *gregs = x.gregs;
        std::ptr::copy_nonoverlapping(x.frame.as_ptr(), fp, x.frame.len().min(size));
    }
}

unsafe fn put_vector(s: &NativeState, fp: *mut u8, size: usize) {
    // SAFETY: `fp` is the frame's area of `size` bytes, at least 512.
    unsafe {
        fp.cast::<u16>().write(s.fcw);
        fp.add(2).cast::<u16>().write(s.fsw);
        fp.add(4).write(s.ftw);
        fp.add(6).write_bytes(0, 18);
        fp.add(24).cast::<u32>().write(s.mxcsr);
        for (i, st) in s.st.iter().enumerate() {
            std::ptr::copy_nonoverlapping(st.as_ptr(), fp.add(32 + 16 * i), 10);
        }
        for (i, ymm) in s.ymm.iter().enumerate() {
            fp.add(160 + 16 * i).cast::<[u64; 2]>().write_unaligned([ymm[0], ymm[1]]);
            if size >= 832 {
                fp.add(576 + 16 * i).cast::<[u64; 2]>().write_unaligned([ymm[2], ymm[3]]);
            }
        }
        if size >= 832 {
            let present = fp.add(512).cast::<u64>();
            present.write_unaligned(present.read_unaligned() | 7);
        }
    }
}

unsafe fn get_vector(s: &mut NativeState, fp: *mut u8, size: usize) {
    // SAFETY: as for `put_vector`. A component whose XSTATE_BV bit is clear is in its initial state.
    unsafe {
        let present = if size >= 832 { fp.add(512).cast::<u64>().read_unaligned() } else { 3 };
        s.mxcsr = fp.add(24).cast::<u32>().read();
        if present & 1 != 0 {
            s.fcw = fp.cast::<u16>().read();
            s.fsw = fp.add(2).cast::<u16>().read();
            s.ftw = fp.add(4).read();
            for (i, st) in s.st.iter_mut().enumerate() {
                std::ptr::copy_nonoverlapping(fp.add(32 + 16 * i), st.as_mut_ptr(), 10);
            }
        } else {
            (s.fcw, s.fsw, s.ftw, s.st) = (0x37f, 0, 0, [[0; 10]; 8]);
        }
        for (i, ymm) in s.ymm.iter_mut().enumerate() {
            let low = fp.add(160 + 16 * i).cast::<[u64; 2]>().read_unaligned();
            let low = if present & 2 != 0 { low } else { [0; 2] };
            let high = if present & 4 != 0 && size >= 832 {
                fp.add(576 + 16 * i).cast::<[u64; 2]>().read_unaligned()
            } else {
                [0; 2]
            };
            *ymm = [low[0], low[1], high[0], high[1]];
        }
    }
}

fn install() {
    // SAFETY: plain sigaction calls with a handler of the right type.
    unsafe {
        for signal in [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGUSR2] {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
        }
    }
}

/// The right to run instructions natively: one test thread at a time.
pub struct Native {
    _guard: MutexGuard<'static, ()>,
    stack: Vec<u8>,
    previous: libc::stack_t,
}

impl Native {
    /// Waits until no other test runs instructions natively.
    pub fn new() -> Self {
        let guard = LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        INSTALL.call_once(install);
        // 32-bit code needs data segments; 64-bit code does not mind them.
        // SAFETY: 2BH is Linux's user data segment.
        unsafe { std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) 0x2b, options(nostack, preserves_flags)) };
        let mut stack = vec![0u8; 256 << 10];
        // SAFETY: the stack lives as long as `self`; Drop puts the previous one back.
        let previous = unsafe {
            let new = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
            let mut previous: libc::stack_t = std::mem::zeroed();
            assert_eq!(libc::sigaltstack(&raw const new, &raw mut previous), 0);
            previous
        };
        Self { _guard: guard, stack, previous }
    }

    /// Executes the one instruction at `state.rip` (the caller has mapped it, executable).
    pub fn step(&mut self, state: &mut NativeState) -> Outcome {
        let mut exchange = Box::new(Exchange {
            active: true,
            entering: true,
            state: state.clone(),
            outcome: Outcome::Done,
            gregs: [0; 23],
            frame: Vec::with_capacity(16 << 10),
        });
        // SAFETY: the lock is held; the handler only touches the exchange until `active` is false again.
        unsafe {
            EXCHANGE = &raw mut *exchange;
            libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2);
            std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
            EXCHANGE = std::ptr::null_mut();
        }
        assert!(!exchange.entering && !exchange.active, "the instruction was not run");
        *state = exchange.state.clone();
        exchange.outcome
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: puts back what `new` replaced.
        unsafe { libc::sigaltstack(&raw const self.previous, std::ptr::null_mut()) };
    }
}

/// Memory of this process at an address of the test's choice: `pages` x 4 KiB, readable, writable, executable.
pub struct Area {
    pub base: *mut u8,
    pub len: usize,
}

impl Area {
    /// Maps zeroed memory at exactly `address`.
    pub fn new(address: u64, pages: usize) -> Self {
        let len = pages * 4096;
        // SAFETY: MAP_FIXED_NOREPLACE never replaces another mapping.
        let base = unsafe {
            libc::mmap(
                address as *mut _,
                len,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        assert_eq!(base as u64, address, "cannot map the test's memory");
        Self { base: base.cast(), len }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours, of `len` bytes, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }

    /// Changes what page `page` allows (PROT_*).
    pub fn protect(&mut self, page: usize, allowed: i32) {
        assert!(page * 4096 < self.len);
        // SAFETY: within our mapping.
        assert_eq!(unsafe { libc::mprotect(self.base.add(page * 4096).cast(), 4096, allowed) }, 0);
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: our mapping.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}
