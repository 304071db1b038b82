//! `Core` for Python: one logical processor, run by one thread at a time without the GIL.
//!
//! A panic inside is a defect of silicon: it is caught here and reported as an error that names RIP.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use pyo3::create_exception;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use super::buffer::Slots;
use super::memory::PyMemory;
use super::model::PyModel;
use super::vmcs::{PyRule, PyVmcs};
use crate::clock::{Clock, monotonic_ns};
use crate::cpu::{Cpu, Doorbell};
use crate::interpreter::vector::VectorUnit;
use crate::state::{State, cr};
use crate::translator::DEFAULT_BYTES;
use crate::vmx::Outcome;

create_exception!(
    _silicon,
    SiliconError,
    PyRuntimeError,
    "Silicon cannot go on: an instruction that it lacks, or a defect of its own. Names RIP."
);

thread_local! {
    /// This thread is inside a core: a panic is reported by `enter`, not on the standard error output.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics inside cores off the terminal. Called once, at import.
pub fn install_panic_hook() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !INSIDE.get() {
            previous(info);
        }
    }));
}

/// What the core and the views of its state share.
struct Inner {
    cpu: Mutex<Cpu>,
    doorbell: Arc<Doorbell>,
}

/// A logical processor.
#[pyclass(name = "Core", frozen, module = "turtles.silicon._silicon")]
pub struct PyCore {
    inner: Arc<Inner>,
    view: Py<PyAny>,
    model: Py<PyModel>,
    /// CLOCK_MONOTONIC at time zero; none under virtual time.
    origin: Option<u64>,
}

impl PyCore {
    /// The processor, if nobody runs it.
    fn cpu(&self) -> PyResult<MutexGuard<'_, Cpu>> {
        match self.inner.cpu.try_lock() {
            Ok(cpu) => Ok(cpu),
            // A panic is reported once, by the `enter` that met it; the state can still be looked at.
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(PyRuntimeError::new_err("another thread runs this core")),
        }
    }
}

#[pymethods]
impl PyCore {
    #[new]
    #[pyo3(signature = (memory, model, clock = "host", origin = None, engine = "translator", translation_cache = DEFAULT_BYTES))]
    fn new(
        py: Python<'_>,
        memory: PyRef<'_, PyMemory>,
        model: Py<PyModel>,
        clock: &str,
        origin: Option<u64>,
        engine: &str,
        translation_cache: usize,
    ) -> PyResult<Self> {
        let clock = match clock {
            "host" => Clock::Host { origin: origin.unwrap_or_else(monotonic_ns) },
            "virtual" => Clock::Virtual { skipped: 0 },
            other => return Err(PyValueError::new_err(format!("a clock is \"host\" or \"virtual\", not {other:?}"))),
        };
        let offered = Arc::clone(&model.bind(py).get().inner);
        let mut cpu = Cpu::new(Arc::clone(&memory.inner), offered, clock);
        // Vector code runs natively: a host that refuses executable memory is told now, not at the first PXOR.
        cpu.vector = VectorUnit::new().map_err(|error| PyOSError::new_err(error.to_string()))?;
        match engine {
            "interpreter" => {}
            // Where the host refuses executable memory the vector unit has said so already.
            "translator" => {
                cpu.use_translator_with(translation_cache).map_err(|error| PyOSError::new_err(error.to_string()))?
            }
            other => {
                let text = format!("an engine is \"interpreter\" or \"translator\", not {other:?}");
                return Err(PyValueError::new_err(text));
            }
        }
        // Caches are on before VMX operation begins: VM entry keeps CD and NW.
        cpu.state.cr0 &= !(cr::CR0_CD | cr::CR0_NW);
        let state = (&raw mut *cpu.state).cast::<u64>();
        let doorbell = Arc::clone(&cpu.doorbell);
        let inner = Arc::new(Inner { cpu: Mutex::new(cpu), doorbell });
        // SAFETY: the state is boxed in the `Cpu`, which `inner` keeps; it never moves.
        let view = unsafe { Slots::view(py, Arc::clone(&inner) as _, state, State::SLOTS)? };
        let origin = match clock {
            Clock::Host { origin } => Some(origin),
            Clock::Virtual { .. } => None,
        };
        Ok(Self { inner, view, model, origin })
    }

    /// The flat state, writable. Not while it runs.
    #[getter]
    fn slots(&self, py: Python<'_>) -> Py<PyAny> {
        self.view.clone_ref(py)
    }

    /// What executes guest code: "interpreter", or "translator" (with the interpreter beside it).
    #[getter]
    fn engine(&self) -> PyResult<&'static str> {
        Ok(if self.cpu()?.translator.is_some() { "translator" } else { "interpreter" })
    }

    /// What the translator has done, by name; empty without one.
    #[getter]
    fn translation(&self) -> PyResult<std::collections::HashMap<&'static str, u64>> {
        let cpu = self.cpu()?;
        let Some(translator) = &cpu.translator else { return Ok(std::collections::HashMap::new()) };
        let s = translator.statistics;
        let (used, limit) = translator.size();
        Ok([
            ("fragments", s.fragments),
            ("instructions", s.instructions),
            ("native", s.native),
            ("bytes", s.bytes),
            ("evictions", s.evictions),
            ("resolved", s.resolved),
            ("stale", s.stale),
            ("translating_ns", s.translating_ns),
            ("entries", s.entries),
            ("helped", s.helped),
            ("cache_used", used as u64),
            ("cache_limit", limit as u64),
        ]
        .into())
    }

    /// How often translated code called the interpreter's handler, by mnemonic: misses of the TLB, and
    /// instructions that are not translated.
    #[getter]
    fn helped(&self) -> PyResult<std::collections::HashMap<String, u64>> {
        let cpu = self.cpu()?;
        let Some(translator) = &cpu.translator else { return Ok(std::collections::HashMap::new()) };
        let counted = iced_x86::Mnemonic::values().zip(&translator.helped_by).filter(|(_, count)| **count != 0);
        Ok(counted.map(|(mnemonic, &count)| (format!("{mnemonic:?}").to_lowercase(), count)).collect())
    }

    /// What it offers.
    #[getter]
    fn model(&self, py: Python<'_>) -> Py<PyModel> {
        self.model.clone_ref(py)
    }

    /// VM entry, run, VM exit.
    #[pyo3(signature = (vmcs, deadline = u64::MAX))]
    fn enter(&self, py: Python<'_>, vmcs: PyRef<'_, PyVmcs>, deadline: u64) -> PyResult<i64> {
        let mut guard = self.cpu()?;
        let cpu: &mut Cpu = &mut guard;
        if !Arc::ptr_eq(&cpu.memory, &vmcs.memory) {
            return Err(PyValueError::new_err("the VMCS lies in another memory than the core's"));
        }
        let page = vmcs.page();
        // Passed as one value that is known to be safe to move to "another thread": detaching is no move.
        let mut run = Exclusive(cpu);
        let outcome = py.detach(|| run.enter(page, deadline));
        let cpu = run.0;
        match outcome {
            Ok(Outcome::Exit(reason)) => Ok(i64::from(reason)),
            Ok(Outcome::Invalid(0)) => {
                Err(PyValueError::new_err(format!("{:#x} holds no VMCS: wrong revision identifier", page.host_pa)))
            }
            Ok(Outcome::Invalid(error)) => Ok(-i64::from(error)),
            Ok(Outcome::Abort(number)) => Err(SiliconError::new_err(format!(
                "VMX abort {number}: an MSR of the VM-exit MSR-store area cannot be stored"
            ))),
            Ok(Outcome::Missing) => Err(SiliconError::new_err(missing(cpu))),
            Err(panic) => {
                let text = panic
                    .downcast_ref::<&str>()
                    .map(ToString::to_string)
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_default();
                let rip = cpu.state.rip;
                Err(SiliconError::new_err(format!("defect in silicon at RIP {rip:#x}: {text}")))
            }
        }
    }

    /// The rule that the last `enter` found broken, if it failed.
    #[getter]
    fn broken_rule(&self) -> PyResult<Option<PyRule>> {
        Ok(self.cpu()?.vt.broken.map(PyRule))
    }

    /// Ends the run, or the next one, with an external-interrupt exit.
    fn kick(&self) {
        self.inner.doorbell.kick();
    }

    /// An external interrupt with this vector: as `kick`, but an exit that acknowledges reports it, and as the
    /// notification vector of posted interrupts it has them processed.
    fn interrupt(&self, vector: u8) {
        self.inner.doorbell.interrupt(vector);
    }

    /// As `kick`, and for good.
    fn stop(&self) {
        self.inner.doorbell.stop();
    }

    /// Sleeps until kicked (true) or `deadline`.
    #[pyo3(signature = (deadline = None))]
    fn wait(&self, py: Python<'_>, deadline: Option<u64>) -> PyResult<bool> {
        if self.origin.is_none() && deadline.is_none() {
            return Err(PyValueError::new_err("virtual time has no end to wait for: give a deadline"));
        }
        let mut guard = self.cpu()?;
        let mut run = Exclusive(&mut guard);
        Ok(py.detach(|| run.wait(deadline.unwrap_or(u64::MAX))))
    }

    /// Time in nanoseconds.
    fn now(&self) -> PyResult<u64> {
        match self.origin {
            Some(origin) => Ok(monotonic_ns().wrapping_sub(origin)),
            None => {
                let cpu = self.cpu()?;
                Ok(cpu.clock.now(cpu.state.retired))
            }
        }
    }

    /// From now on arithmetic flags are exact wherever a run ends, also those that no instruction will read.
    fn keep_flags(&self) -> PyResult<()> {
        if let Some(translator) = &mut self.cpu()?.translator {
            translator.exact_flags = true;
        }
        Ok(())
    }

    /// Bytes at RIP as an instruction fetch finds them (none where it faults), and the size of code in bits.
    fn code(&self) -> PyResult<(Vec<u8>, u32)> {
        Ok(code_at_rip(&mut *self.cpu()?))
    }

    /// The fragment that holds the instruction at `linear` (RIP), as text: guest instructions and the host code
    /// made of each. None where there is none, or no translator.
    #[pyo3(signature = (linear = None))]
    fn fragment(&self, linear: Option<u64>) -> PyResult<Option<String>> {
        let mut cpu = self.cpu()?;
        let linear = linear.unwrap_or_else(|| cpu.code_linear());
        let Ok(host_pa) = cpu.fetch(linear) else { return Ok(None) };
        Ok(cpu.translator.as_mut().and_then(|t| t.listing(host_pa)).map(|listing| listing.text(linear)))
    }

    /// Hash of all exits so far.
    fn digest(&self) -> PyResult<u64> {
        Ok(self.cpu()?.vt.digest)
    }
}

/// A processor that one thread has to itself.
struct Exclusive<'a>(&'a mut Cpu);

// SAFETY: the mutex gives one thread the whole processor; its pointers lead into what it owns and into
// `Memory`, which any thread may use.
unsafe impl Send for Exclusive<'_> {}

impl Exclusive<'_> {
    fn enter(&mut self, page: crate::vmx::VmcsPage, deadline: u64) -> std::thread::Result<Outcome> {
        INSIDE.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.0.enter(page, deadline)));
        INSIDE.set(false);
        if outcome.is_err() {
            self.0.mmu_run_end();
        }
        outcome
    }

    fn wait(&mut self, until: u64) -> bool {
        self.0.wait(until)
    }
}

/// Up to 15 bytes at RIP, and the size of code in bits.
fn code_at_rip(cpu: &mut Cpu) -> (Vec<u8>, u32) {
    let linear = cpu.code_linear();
    let mut bytes = Vec::new();
    for n in 0..15 {
        let Ok(pa) = cpu.fetch(linear.wrapping_add(n)) else { break };
        bytes.push(cpu.memory.read::<u8>(pa));
    }
    (bytes, [16, 32, 64][cpu.mode.bits as usize])
}

/// What is known of the instruction at RIP.
fn missing(cpu: &mut Cpu) -> String {
    let (bytes, bits) = code_at_rip(cpu);
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = if bytes.is_empty() { "unreadable".to_owned() } else { bytes.join(" ") };
    let most = cpu.state.replay.len();
    // The other reason for which a run ends here: an instruction starts anew after each of its device accesses.
    let what = if cpu.state.replay_count as usize >= most {
        format!("instruction with more than {most} device accesses")
    } else {
        "instruction that silicon lacks".to_owned()
    };
    format!("{what} at RIP {:#x} ({bits}-bit code): {bytes}", cpu.state.rip)
}
