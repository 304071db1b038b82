//! Arrays of 64-bit slots that Python sees as a writable memoryview of format `Q`.
//!
//! The view keeps the owner of the slots alive; it does not keep others from changing them.

use std::any::Any;
use std::ffi::c_int;
use std::sync::Arc;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

/// An exporter of slots.
#[pyclass(frozen, module = "turtles.silicon._silicon")]
pub struct Slots {
    _owner: Arc<dyn Any + Send + Sync>,
    pointer: usize,
    count: usize,
}

impl Slots {
    /// A memoryview of `count` slots at `pointer`.
    ///
    /// # Safety
    /// `owner` keeps them mapped and writable.
    pub unsafe fn view(
        py: Python<'_>,
        owner: Arc<dyn Any + Send + Sync>,
        pointer: *mut u64,
        count: usize,
    ) -> PyResult<Py<PyAny>> {
        let exporter = Bound::new(py, Self { _owner: owner, pointer: pointer as usize, count })?;
        let bytes = PyMemoryView::from(exporter.as_any())?;
        Ok(bytes.call_method1("cast", ("Q",))?.unbind())
    }
}

#[pymethods]
impl Slots {
    /// # Safety
    /// Called by Python with a valid `view`.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let (pointer, length) = (slf.get().pointer, slf.get().count * 8);
        let owner = slf.into_any();
        // SAFETY: `view` is Python's; the slots live as long as the exporter, which the view refers to.
        let failed = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                owner.as_ptr(),
                pointer as *mut std::ffi::c_void,
                length as ffi::Py_ssize_t,
                0,
                flags,
            )
        };
        if failed != 0 { Err(PyErr::fetch(owner.py())) } else { Ok(()) }
    }
}
