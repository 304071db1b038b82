//! `Vmcs` for Python, and the checks of VM entry as a function.

use std::sync::Arc;

use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;

use super::buffer::Slots;
use super::memory::PyMemory;
use super::model::PyModel;
use crate::memory::{Memory, PAGE};
use crate::vmx::VmcsPage;
use crate::vmx::capabilities::REVISION;
use crate::vmx::checks::{self, Rule, View};
use crate::vmx::fields::{self, header, slot};
use crate::vmx::vmcs::SLOTS;

/// A VMCS region.
#[pyclass(name = "Vmcs", frozen, module = "turtles.silicon._silicon")]
pub struct PyVmcs {
    pub(super) memory: Arc<Memory>,
    pub(super) host_pa: u64,
    view: Py<PyAny>,
}

impl PyVmcs {
    /// The region, for as long as the memory is alive.
    pub(super) fn page(&self) -> VmcsPage {
        // SAFETY: checked in `new` to lie in memory.
        unsafe { VmcsPage::new(self.host_pa, self.memory.ptr(self.host_pa).cast()) }
    }

    fn field(encoding: u64) -> PyResult<(&'static fields::Field, bool)> {
        fields::lookup(encoding).ok_or_else(|| PyKeyError::new_err(format!("{encoding:#x} encodes no VMCS field")))
    }
}

#[pymethods]
impl PyVmcs {
    #[new]
    fn new(py: Python<'_>, memory: PyRef<'_, PyMemory>, host_pa: u64) -> PyResult<Self> {
        let memory = Arc::clone(&memory.inner);
        if host_pa % PAGE != 0 || !memory.contains(host_pa, PAGE) {
            return Err(PyValueError::new_err(format!("{host_pa:#x} is not a page of memory")));
        }
        let pointer = memory.ptr(host_pa).cast();
        // SAFETY: a page inside of the memory, which the view keeps.
        let view = unsafe { Slots::view(py, Arc::clone(&memory) as _, pointer, SLOTS)? };
        Ok(Self { memory, host_pa, view })
    }

    /// Host-physical address.
    #[getter]
    fn host_pa(&self) -> u64 {
        self.host_pa
    }

    /// The slots, writable.
    #[getter]
    fn slots(&self, py: Python<'_>) -> Py<PyAny> {
        self.view.clone_ref(py)
    }

    /// Zeroes the region, then writes the revision identifier and a VMCS link pointer of all ones.
    fn clear(&self) {
        let page = self.page();
        page.store(0, &[0; SLOTS]);
        page.set(header::REVISION, u64::from(REVISION));
        page.set(slot::GUEST_VMCS_LINK_POINTER, !0);
        self.memory.written(self.host_pa, PAGE);
    }

    /// VMREAD.
    fn read(&self, encoding: u64) -> PyResult<u64> {
        let (field, high) = Self::field(encoding)?;
        let value = self.page().get(usize::from(field.slot));
        Ok(if high { value >> 32 } else { value })
    }

    /// VMWRITE, without the written-mask.
    fn write(&self, encoding: u64, value: u64) -> PyResult<()> {
        let (field, high) = Self::field(encoding)?;
        let (page, at) = (self.page(), usize::from(field.slot));
        let new = if high { page.get(at) & 0xffff_ffff | value << 32 } else { value & field.mask() };
        page.set(at, new);
        Ok(())
    }

    /// Copies slots `[first, end)` of another VMCS into this one.
    fn copy_from(&self, source: PyRef<'_, Self>, first: usize, end: usize) -> PyResult<()> {
        if first > end || end > SLOTS {
            return Err(PyValueError::new_err(format!("no slots [{first}, {end})")));
        }
        let mut slots = [0; SLOTS];
        let run = &mut slots[first..end];
        source.page().load(first, run);
        self.page().store(first, run);
        Ok(())
    }

    fn __repr__(&self) -> String {
        format!("<Vmcs at {:#x}>", self.host_pa)
    }
}

/// A rule of VM entry.
#[pyclass(name = "Rule", frozen, module = "turtles.silicon._silicon")]
pub struct PyRule(pub(super) &'static Rule);

#[pymethods]
impl PyRule {
    /// Short name.
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name
    }

    /// Section of the SDM, volume 3.
    #[getter]
    fn section(&self) -> &'static str {
        self.0.section
    }

    /// What the rule demands.
    #[getter]
    fn text(&self) -> &'static str {
        self.0.text
    }

    /// VM-instruction error number; 0 for guest state.
    #[getter]
    fn error(&self) -> u8 {
        self.0.error()
    }

    /// Exit qualification of a failed entry.
    #[getter]
    fn qualification(&self) -> u64 {
        self.0.qualification
    }

    fn __repr__(&self) -> String {
        format!("<Rule {} (SDM {}): {}>", self.0.name, self.0.section, self.0.text)
    }
}

/// The first rule of VM entry that the VMCS breaks.
#[pyfunction]
#[pyo3(signature = (vmcs, model, read = None))]
pub fn check_entry(
    vmcs: PyRef<'_, PyVmcs>,
    model: PyRef<'_, PyModel>,
    read: Option<Bound<'_, PyAny>>,
) -> PyResult<Option<PyRule>> {
    let failed = std::cell::RefCell::new(None);
    let memory = &vmcs.memory;
    let read_memory = |pa: u64| match &read {
        None => memory.read::<u64>(pa),
        Some(read) => read.call1((pa,)).and_then(|v| v.extract()).unwrap_or_else(|error| {
            *failed.borrow_mut() = Some(error);
            !0
        }),
    };
    let page = vmcs.page();
    let rule = checks::check_entry(&View::new(&page, &model.inner, &read_memory));
    match failed.into_inner() {
        Some(error) => Err(error),
        None => Ok(rule.map(PyRule)),
    }
}

/// Every rule, in the order in which they are checked.
#[pyfunction]
pub fn entry_rules() -> Vec<PyRule> {
    checks::rules().map(PyRule).collect()
}
