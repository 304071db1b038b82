//! The Python face of the crate: module `turtles.silicon._silicon`.
//!
//! Thin: what a class does is in the layer that it shows. `_silicon.pyi` beside the package describes it.

mod buffer;
mod code;
mod copies;
mod core;
mod memory;
mod model;
mod vmcs;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::slots::STATE_FIELDS;
use crate::state::State;
use crate::vmx::capabilities::REVISION;
use crate::vmx::fields::{FIELDS, GROUPS};
use crate::vmx::reasons::REASONS;
use crate::vmx::vmcs::SLOTS;

/// The native module.
#[pymodule]
fn _silicon(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    core::install_panic_hook();
    module.add_class::<memory::PyMemory>()?;
    module.add_class::<memory::DmaWindow>()?;
    module.add_class::<model::PyModel>()?;
    module.add_class::<vmcs::PyVmcs>()?;
    module.add_class::<vmcs::PyRule>()?;
    module.add_class::<copies::Copies>()?;
    module.add_class::<core::PyCore>()?;
    module.add("SiliconError", py.get_type::<core::SiliconError>())?;
    module.add_function(wrap_pyfunction!(vmcs::check_entry, module)?)?;
    module.add_function(wrap_pyfunction!(vmcs::entry_rules, module)?)?;
    module.add_function(wrap_pyfunction!(code::disassemble, module)?)?;

    let fields = PyDict::new(py);
    for field in FIELDS {
        fields.set_item(field.name, (field.slot, field.encoding))?;
    }
    module.add("VMCS_FIELDS", fields)?;
    let groups = PyDict::new(py);
    for &(group, name) in GROUPS {
        groups.set_item(name, group as u8)?;
    }
    module.add("VMCS_GROUPS", groups)?;
    let slots = PyDict::new(py);
    for field in STATE_FIELDS {
        slots.set_item(field.name, (field.slot, field.count))?;
    }
    module.add("STATE_SLOTS", slots)?;
    let reasons = PyDict::new(py);
    for &(name, number) in REASONS {
        reasons.set_item(name, number)?;
    }
    module.add("EXIT_REASONS", reasons)?;
    module.add("REVISION", REVISION)?;
    module.add("SLOTS", SLOTS)?;
    module.add("STATE_SIZE", State::SLOTS)?;
    Ok(())
}
