//! Looking at code from Python: an instruction as text, for reports and debuggers.
//!
//! Not here: what an instruction does. Nothing in this file is used while a guest runs.

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The first instruction in `code` as text in Intel's syntax; `(bad)` where there is none.
#[pyfunction]
#[pyo3(signature = (code, ip = 0, bits = 64))]
pub fn disassemble(code: &[u8], ip: u64, bits: u32) -> PyResult<String> {
    if !matches!(bits, 16 | 32 | 64) {
        return Err(PyValueError::new_err(format!("code has 16, 32 or 64 bits, not {bits}")));
    }
    let instruction = Decoder::with_ip(bits, code, ip, DecoderOptions::NONE).decode();
    let mut text = String::new();
    IntelFormatter::new().format(&instruction, &mut text);
    Ok(text)
}
