//! The Python face of the crate: module `turtles.silicon._silicon`.

mod memory;

use pyo3::prelude::*;

/// The native module.
#[pymodule]
fn _silicon(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<memory::PyMemory>()?;
    module.add_class::<memory::DmaWindow>()?;
    Ok(())
}
