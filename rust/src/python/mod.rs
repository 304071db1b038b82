//! The Python face of the crate: module `turtles.silicon._silicon`.

use pyo3::prelude::*;

/// The native module.
#[pymodule]
fn _silicon(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
