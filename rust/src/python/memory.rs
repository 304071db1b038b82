//! `Memory` for Python: host-physical RAM as L0, the board and device threads use it.
//!
//! Everything that changes RAM drops decoded code and marks pages dirty; DMA windows do so when they are
//! closed. Addresses outside RAM and pool are a ValueError: here they are mistakes of L0, never of a guest.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyMemoryError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};

use crate::memory::{BusRegion, Memory};
use crate::mmu::Invalidation;

/// Host-physical memory: RAM, then the pool of L0's own pages.
#[pyclass(name = "Memory", frozen, module = "turtles.silicon._silicon")]
pub struct PyMemory {
    /// The memory itself, shared with cores.
    pub inner: Arc<Memory>,
}

impl PyMemory {
    fn check(&self, pa: u64, len: u64) -> PyResult<()> {
        if self.inner.contains(pa, len) || len == 0 && pa <= self.inner.total_size() {
            return Ok(());
        }
        let total = self.inner.total_size();
        Err(PyValueError::new_err(format!("{len} bytes at {pa:#x} lie outside of memory, which ends at {total:#x}")))
    }

    /// Bounds and natural alignment of an atomic access.
    fn check_atomic(&self, pa: u64, width: u32) -> PyResult<()> {
        self.check(pa, u64::from(width))?;
        if !matches!(width, 1 | 2 | 4 | 8) {
            return Err(PyValueError::new_err(format!("an access of {width} bytes is none of 1, 2, 4, 8")));
        }
        if pa % u64::from(width) != 0 {
            return Err(PyValueError::new_err(format!("{pa:#x} is not aligned to {width} bytes")));
        }
        Ok(())
    }

    fn load_checked(&self, pa: u64, width: u32) -> u64 {
        match width {
            1 => self.inner.read::<u8>(pa).into(),
            2 => self.inner.read::<u16>(pa).into(),
            4 => self.inner.read::<u32>(pa).into(),
            _ => self.inner.read(pa),
        }
    }

    /// Compare and exchange; the value found.
    fn cmpxchg_checked(&self, pa: u64, width: u32, old: u64, new: u64) -> u64 {
        fn found<T: Into<u64>>(result: Result<T, T>) -> u64 {
            result.unwrap_or_else(|found| found).into()
        }
        match width {
            1 => found(self.inner.compare_exchange(pa, old as u8, new as u8)),
            2 => found(self.inner.compare_exchange(pa, old as u16, new as u16)),
            4 => found(self.inner.compare_exchange(pa, old as u32, new as u32)),
            _ => found(self.inner.compare_exchange(pa, old, new)),
        }
    }
}

/// Bits of a value of `width` bytes.
fn mask(width: u32) -> u64 {
    !0 >> (64 - 8 * width)
}

#[pymethods]
impl PyMemory {
    #[new]
    #[pyo3(signature = (size, pool = 64 << 20))]
    fn new(size: u64, pool: u64) -> PyResult<Self> {
        let inner = Memory::new(size, pool).map_err(|e| PyMemoryError::new_err(e.to_string()))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Bytes of RAM: where the pool begins.
    #[getter]
    fn size(&self) -> u64 {
        self.inner.ram_size()
    }

    /// Bytes of RAM and pool.
    #[getter]
    fn total(&self) -> u64 {
        self.inner.total_size()
    }

    fn __len__(&self) -> usize {
        self.inner.total_size() as usize
    }

    /// Bytes at `pa`.
    fn read<'py>(&self, py: Python<'py>, pa: u64, length: u64) -> PyResult<Bound<'py, PyBytes>> {
        self.check(pa, length)?;
        PyBytes::new_with(py, length as usize, |out| {
            self.inner.read_bytes(pa, out);
            Ok(())
        })
    }

    /// Whether the bytes at `pa` are `data`; a concurrent writer makes the answer as old as the call.
    fn same(&self, pa: u64, data: &[u8]) -> PyResult<bool> {
        self.check(pa, data.len() as u64)?;
        Ok(self.inner.same_bytes(pa, data))
    }

    /// Has the host provide bytes (whole 2-MiB regions) now. False: this host does not do that.
    fn provide(&self, py: Python<'_>, pa: u64, length: u64) -> PyResult<bool> {
        self.check(pa, length)?;
        Ok(py.detach(|| self.inner.provide(pa, length)))
    }

    /// Stores bytes (any contiguous buffer) at `pa`.
    fn write(&self, pa: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Ok(bytes) = data.cast::<PyBytes>() {
            let bytes = bytes.as_bytes();
            self.check(pa, bytes.len() as u64)?;
            self.inner.write_bytes(pa, bytes);
            return Ok(());
        }
        let buffer = PyBuffer::<u8>::get(data)?;
        self.check(pa, buffer.len_bytes() as u64)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer is not contiguous"));
        }
        if buffer.len_bytes() != 0 {
            // SAFETY: a contiguous buffer of that many bytes, held by `buffer`; the destination is checked. It may
            // be a window of this same memory, so the ranges may overlap.
            unsafe { std::ptr::copy(buffer.buf_ptr().cast(), self.inner.ptr(pa), buffer.len_bytes()) };
            self.inner.written(pa, buffer.len_bytes() as u64);
        }
        Ok(())
    }

    /// Fills `length` bytes with one value.
    #[pyo3(signature = (pa, length, byte = 0))]
    fn fill(&self, pa: u64, length: u64, byte: u8) -> PyResult<()> {
        self.check(pa, length)?;
        self.inner.fill(pa, length, byte);
        Ok(())
    }

    /// Copies `length` bytes from `source` to `target`; they may overlap.
    fn copy(&self, target: u64, source: u64, length: u64) -> PyResult<()> {
        self.check(target, length)?;
        self.check(source, length)?;
        self.inner.copy(target, source, length);
        Ok(())
    }

    /// Atomic load of 1, 2, 4 or 8 bytes.
    #[pyo3(signature = (pa, width = 8))]
    fn load(&self, pa: u64, width: u32) -> PyResult<u64> {
        self.check_atomic(pa, width)?;
        Ok(self.load_checked(pa, width))
    }

    /// Atomic store of the low `width` bytes of `value`.
    fn store(&self, pa: u64, width: u32, value: u64) -> PyResult<()> {
        self.check_atomic(pa, width)?;
        match width {
            1 => self.inner.write(pa, value as u8),
            2 => self.inner.write(pa, value as u16),
            4 => self.inner.write(pa, value as u32),
            _ => self.inner.write(pa, value),
        }
        Ok(())
    }

    /// Atomic OR; the value before.
    fn fetch_or(&self, pa: u64, width: u32, bits: u64) -> PyResult<u64> {
        self.check_atomic(pa, width)?;
        let mut old = self.load_checked(pa, width);
        loop {
            let found = self.cmpxchg_checked(pa, width, old, old | bits);
            if found == old {
                return Ok(old);
            }
            old = found;
        }
    }

    /// Atomic AND; the value before.
    fn fetch_and(&self, pa: u64, width: u32, bits: u64) -> PyResult<u64> {
        self.check_atomic(pa, width)?;
        let mut old = self.load_checked(pa, width);
        loop {
            let found = self.cmpxchg_checked(pa, width, old, old & bits);
            if found == old {
                return Ok(old);
            }
            old = found;
        }
    }

    /// Atomic compare and exchange; the value found, which is `old` when it was exchanged.
    fn cmpxchg(&self, pa: u64, width: u32, old: u64, new: u64) -> PyResult<u64> {
        self.check_atomic(pa, width)?;
        Ok(self.cmpxchg_checked(pa, width, old & mask(width), new & mask(width)))
    }

    /// A window of `length` bytes that a device reads and writes in place, until it is closed.
    fn dma(&self, py: Python<'_>, pa: u64, length: u64) -> PyResult<DmaWindow> {
        self.check(pa, length)?;
        let window = Window::new(&self.inner, pa, length);
        Ok(DmaWindow { window: Py::new(py, window)?, view: None, closed: false })
    }

    /// Pages of the pool as a writable memoryview of 64-bit slots. Nothing in the pool is ever decoded.
    #[pyo3(signature = (pa, length = 4096))]
    fn pool_view<'py>(&self, py: Python<'py>, pa: u64, length: u64) -> PyResult<Bound<'py, PyAny>> {
        self.check(pa, length)?;
        if pa < self.inner.ram_size() || (pa | length) % 8 != 0 {
            return Err(PyValueError::new_err(format!("{pa:#x} is not a range of 64-bit slots in the pool")));
        }
        let window = Bound::new(py, Window::new(&self.inner, pa, length))?;
        PyMemoryView::from(window.as_any())?.call_method1("cast", ("Q",))
    }

    /// Flags of the page of `pa`: 1 dirty, 2 holds decoded code, 4 writable without notice.
    fn page_flags(&self, pa: u64) -> PyResult<u8> {
        self.check(pa, 1)?;
        Ok(self.inner.flags(pa))
    }

    /// Page numbers of RAM written since the last call.
    fn take_dirty(&self, py: Python<'_>) -> Vec<u64> {
        py.detach(|| self.inner.take_dirty())
    }

    /// INVEPT in every core, acknowledged: of one EPT pointer, or (None) of all.
    #[pyo3(signature = (eptp = None))]
    fn invept(&self, py: Python<'_>, eptp: Option<u64>) {
        py.detach(|| self.inner.invalidate_everywhere(Invalidation::Ept { eptp }));
    }

    /// INVVPID in every core, acknowledged: types 0 (address), 1 (one VPID), 2 (all but VPID 0), 3 (one VPID,
    /// global translations may stay).
    #[pyo3(signature = (kind, vpid = 0, linear = 0))]
    fn invvpid(&self, py: Python<'_>, kind: u32, vpid: u16, linear: u64) -> PyResult<()> {
        let what = match kind {
            0 => Invalidation::Address { vpid, linear },
            1 => Invalidation::Vpid { vpid },
            2 => Invalidation::AllVpids,
            3 => Invalidation::VpidRetainingGlobals { vpid },
            _ => return Err(PyValueError::new_err(format!("{kind} is no INVVPID type"))),
        };
        py.detach(|| self.inner.invalidate_everywhere(what));
        Ok(())
    }

    /// A physical device at `[pa, pa + length)`: `read(offset, width)` and `write(offset, width, value)` are
    /// called instead of memory, in the thread of the core that accesses it.
    fn add_region(&self, pa: u64, length: u64, read: Py<PyAny>, write: Py<PyAny>) {
        self.inner.bus().add(pa, length, Arc::new(PyRegion { read, write }));
    }

    /// # Safety
    /// Called by Python with a valid `view`.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let memory = Arc::clone(&slf.get().inner);
        // SAFETY: the range is the whole mapping; the view keeps `slf`, which keeps the mapping.
        unsafe { fill(slf.into_any(), view, flags, memory.base(), memory.total_size(), false) }
    }
}

/// Fills a buffer view over part of the mapping.
///
/// # Safety
/// `view` is Python's; `owner` keeps `[pointer, pointer + length)` mapped.
unsafe fn fill(
    owner: Bound<'_, PyAny>,
    view: *mut ffi::Py_buffer,
    flags: c_int,
    pointer: *mut u8,
    length: u64,
    writable: bool,
) -> PyResult<()> {
    let readonly = c_int::from(!writable);
    // SAFETY: by contract; it takes a reference to `owner` for the view.
    let failed = unsafe {
        ffi::PyBuffer_FillInfo(view, owner.as_ptr(), pointer.cast(), length as ffi::Py_ssize_t, readonly, flags)
    };
    if failed != 0 { Err(PyErr::fetch(owner.py())) } else { Ok(()) }
}

/// A range of memory that Python writes through the buffer protocol. Checked when it is made.
#[pyclass(frozen, module = "turtles.silicon._silicon")]
struct Window {
    memory: Arc<Memory>,
    pa: u64,
    length: u64,
    /// Buffers given out and not yet released; all slices of one memoryview share one.
    exports: AtomicUsize,
}

impl Window {
    fn new(memory: &Arc<Memory>, pa: u64, length: u64) -> Self {
        Self { memory: Arc::clone(memory), pa, length, exports: AtomicUsize::new(0) }
    }
}

#[pymethods]
impl Window {
    /// # Safety
    /// Called by Python with a valid `view`.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let (pointer, length) = (this.memory.ptr(this.pa), this.length);
        // SAFETY: the range was checked when the window was made; the view keeps `slf`, which keeps the mapping.
        unsafe { fill(slf.clone().into_any(), view, flags, pointer, length, true) }?;
        this.exports.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// # Safety
    /// Called by Python once for each view.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.exports.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open DMA transfer: `with memory.dma(pa, length) as view: …`. Closing it drops decoded code and marks
/// the pages dirty; the view cannot be used afterwards.
#[pyclass(module = "turtles.silicon._silicon")]
pub struct DmaWindow {
    window: Py<Window>,
    view: Option<Py<PyMemoryView>>,
    closed: bool,
}

#[pymethods]
impl DmaWindow {
    /// The bytes, writable.
    #[getter]
    fn view(&mut self, py: Python<'_>) -> PyResult<Py<PyMemoryView>> {
        if self.closed {
            return Err(PyValueError::new_err("the DMA window is closed"));
        }
        if let Some(view) = &self.view {
            return Ok(view.clone_ref(py));
        }
        let view = PyMemoryView::from(self.window.bind(py).as_any())?.unbind();
        self.view = Some(view.clone_ref(py));
        Ok(view)
    }

    /// Ends the transfer. Raises BufferError while a slice of the view is still in use.
    fn close(&mut self, py: Python<'_>) -> PyResult<()> {
        if self.closed {
            return Ok(());
        }
        if let Some(view) = self.view.take() {
            view.call_method0(py, "release")?;
        }
        let window = self.window.get();
        if window.exports.load(Ordering::Relaxed) != 0 {
            return Err(PyBufferError::new_err("a part of the DMA window is still in use"));
        }
        self.closed = true;
        window.memory.written(window.pa, window.length);
        Ok(())
    }

    fn __enter__(&mut self, py: Python<'_>) -> PyResult<Py<PyMemoryView>> {
        self.view(py)
    }

    fn __exit__(
        &mut self,
        py: Python<'_>,
        _kind: Option<Bound<'_, PyAny>>,
        _value: Option<Bound<'_, PyAny>>,
        _traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.close(py)
    }
}

/// A physical device written in Python.
struct PyRegion {
    read: Py<PyAny>,
    write: Py<PyAny>,
}

impl BusRegion for PyRegion {
    fn read(&self, offset: u64, width: u32) -> u64 {
        Python::attach(|py| {
            let value = self.read.call1(py, (offset, width)).and_then(|v| v.extract::<u64>(py));
            value.unwrap_or_else(|error| {
                error.write_unraisable(py, Some(self.read.bind(py)));
                !0
            })
        })
    }

    fn write(&self, offset: u64, width: u32, value: u64) {
        Python::attach(|py| {
            if let Err(error) = self.write.call1(py, (offset, width, value)) {
                error.write_unraisable(py, Some(self.write.bind(py)));
            }
        });
    }
}
