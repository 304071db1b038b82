//! Unmasked SIMD floating-point exceptions: the host's SIGFPE becomes a result.
//!
//! Only a stub that runs with exceptions unmasked arms the landing; any other SIGFPE of the process goes to
//! whoever handled it before. Stubs leave the stack as at their entry, so the landing can return for them.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::sync::atomic::{Ordering, compiler_fence};

thread_local! {
    /// Where a stub of this thread continues after SIGFPE; 0 while none is armed.
    static LANDING: Cell<u64> = const { Cell::new(0) };
}

/// What handled SIGFPE before.
static PREVIOUS: Mutex<Option<usize>> = Mutex::new(None);

extern "C" fn on_sigfpe(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let landing = LANDING.get();
    if landing != 0 {
        let context = context.cast::<libc::ucontext_t>();
        // SAFETY: the kernel passes a valid context to an SA_SIGINFO handler.
        unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] = landing as libc::greg_t };
        return;
    }
    let previous = PREVIOUS.try_lock().ok().and_then(|guard| *guard);
    // SAFETY: `previous` is the handler that sigaction gave; the default action ends the process when the
    // instruction is tried again.
    unsafe {
        match previous {
            Some(handler) if handler != libc::SIG_DFL && handler != libc::SIG_IGN => {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// Makes sure that SIGFPE reaches us: another part of the process may have taken it over or blocked it in this
/// thread, and a blocked SIGFPE would end the process.
fn install() {
    let ours = on_sigfpe as *const () as usize;
    // SAFETY: a signal set of this frame, initialized by sigemptyset.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGFPE);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
    // SAFETY: sigaction with valid pointers; zeroed is a valid `sigaction`.
    unsafe {
        let mut current = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        libc::sigaction(libc::SIGFPE, std::ptr::null(), &raw mut current);
        if current.sa_sigaction == ours {
            return;
        }
        if let Ok(mut previous) = PREVIOUS.lock() {
            *previous = Some(current.sa_sigaction);
        }
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = ours;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGFPE, &raw const action, std::ptr::null_mut());
    }
}

/// Runs `body`, a stub's call; on SIGFPE the stub continues at `landing` instead.
pub fn catching<R>(landing: u64, body: impl FnOnce() -> R) -> R {
    install();
    LANDING.set(landing);
    compiler_fence(Ordering::SeqCst);
    let result = body();
    compiler_fence(Ordering::SeqCst);
    LANDING.set(0);
    result
}
