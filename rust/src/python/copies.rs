//! `Copies` for Python: copies between arrays of slots, and comparisons of memory, that are made in one call.
//!
//! What is copied where is the caller's matter. The arrays stay where they are as long as the object lives.

use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::memory::PyMemory;
use crate::memory::Memory;

/// Comparisons of one object: the bits of what [`Copies::run`] returns.
const MOST_COMPARED: usize = 30;

/// One copy.
struct Copy {
    to: *mut u64,
    from: *const u64,
    slots: usize,
}

/// See the module.
#[pyclass(frozen, module = "turtles.silicon._silicon")]
pub struct Copies {
    copies: Vec<Copy>,
    compared: Vec<(u64, Box<[u8]>)>,
    memory: Arc<Memory>,
    /// Keeps the arrays that `copies` point into.
    _held: Vec<PyBuffer<u64>>,
}

// SAFETY: the pointers lead into arrays that `_held` keeps; they are used in `run` only, under the GIL.
unsafe impl Send for Copies {}
// SAFETY: as above.
unsafe impl Sync for Copies {}

fn array(view: &Bound<'_, PyAny>, written: bool) -> PyResult<PyBuffer<u64>> {
    let buffer = PyBuffer::<u64>::get(view)?;
    if !buffer.is_c_contiguous() || written && buffer.readonly() {
        return Err(PyBufferError::new_err("slots are copied between contiguous arrays, into a writable one"));
    }
    Ok(buffer)
}

#[pymethods]
impl Copies {
    #[new]
    #[pyo3(signature = (memory, copies, compared = Vec::new()))]
    fn new(
        memory: PyRef<'_, PyMemory>,
        copies: Vec<(Bound<'_, PyAny>, Bound<'_, PyAny>)>,
        compared: Vec<(u64, Bound<'_, PyBytes>)>,
    ) -> PyResult<Self> {
        let memory = Arc::clone(&memory.inner);
        if compared.len() > MOST_COMPARED {
            return Err(PyValueError::new_err(format!("more than {MOST_COMPARED} comparisons")));
        }
        for (pa, data) in &compared {
            let len = data.as_bytes().len() as u64;
            if !memory.contains(*pa, len) {
                return Err(PyValueError::new_err(format!("{len} bytes at {pa:#x} lie outside of memory")));
            }
        }
        let mut held = Vec::new();
        let mut made = Vec::new();
        for (to, from) in &copies {
            let (to, from) = (array(to, true)?, array(from, false)?);
            if to.item_count() != from.item_count() {
                let text = format!("{} slots cannot become {}", from.item_count(), to.item_count());
                return Err(PyValueError::new_err(text));
            }
            made.push(Copy { to: to.buf_ptr().cast(), from: from.buf_ptr().cast(), slots: to.item_count() });
            held.extend([to, from]);
        }
        let compared = compared.into_iter().map(|(pa, data)| (pa, data.as_bytes().into())).collect();
        Ok(Self { copies: made, compared, memory, _held: held })
    }

    /// Compares, then copies, in order. Bit n is set where comparison n found a difference.
    fn run(&self) -> u32 {
        let mut different = 0;
        for (n, (pa, data)) in self.compared.iter().enumerate() {
            different |= u32::from(!self.memory.same_bytes(*pa, data)) << n;
        }
        for copy in &self.copies {
            // SAFETY: both lie in arrays of that many slots, which `_held` keeps; they may be one array.
            unsafe { std::ptr::copy(copy.from, copy.to, copy.slots) };
        }
        different
    }
}
