//! `Model` for Python: what a processor offers.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyFrozenSet, PyTuple};

use crate::vmx::model::{ARCH_CAPABILITIES, PHYSICAL_BITS};
use crate::vmx::{Feature, Model};

/// What a processor offers.
#[pyclass(name = "Model", frozen, module = "turtles.silicon._silicon")]
pub struct PyModel {
    pub(super) inner: Arc<Model>,
}

#[pymethods]
impl PyModel {
    #[new]
    #[pyo3(signature = (name = "max", enable = None, disable = None))]
    fn new(name: &str, enable: Option<Bound<'_, PyAny>>, disable: Option<Bound<'_, PyAny>>) -> PyResult<Self> {
        let names = |given: Option<Bound<'_, PyAny>>| -> PyResult<Vec<String>> {
            given.map_or(Ok(Vec::new()), |g| g.try_iter()?.map(|item| item?.extract()).collect())
        };
        let (enable, disable) = (names(enable)?, names(disable)?);
        let model = Model::new(name, enable.iter().map(String::as_str), disable.iter().map(String::as_str));
        let inner = model.map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Names of models.
    #[classattr]
    #[pyo3(name = "NAMES")]
    fn names(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        PyTuple::new(py, Model::NAMES)
    }

    /// Names of all features there are.
    #[classattr]
    #[pyo3(name = "FEATURES")]
    fn all_features(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        PyTuple::new(py, Feature::ALL.iter().map(|f| f.name()))
    }

    /// Width of physical addresses.
    #[classattr]
    const PHYSICAL_BITS: u32 = PHYSICAL_BITS;

    /// Its name.
    #[getter]
    fn name(&self) -> &str {
        &self.inner.name
    }

    /// Names of the features that it offers.
    #[getter]
    fn features<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyFrozenSet>> {
        PyFrozenSet::new(py, self.inner.features().iter().map(Feature::name))
    }

    /// Whether it offers a feature.
    fn has(&self, feature: &str) -> PyResult<bool> {
        match Feature::by_name(feature) {
            Some(feature) => Ok(self.inner.has(feature)),
            None => Err(PyValueError::new_err(format!("no processor feature is called {feature:?}"))),
        }
    }

    /// CPUID: EAX, EBX, ECX, EDX.
    #[pyo3(signature = (leaf, subleaf = 0, xcr0 = 7))]
    fn cpuid(&self, leaf: u32, subleaf: u32, xcr0: u64) -> (u32, u32, u32, u32) {
        self.inner.cpuid(leaf, subleaf, xcr0).into()
    }

    /// An IA32_VMX_* capability MSR.
    fn vmx_msr(&self, msr: u32) -> Option<u64> {
        if self.inner.has(Feature::Vmx) { self.inner.vmx.msr(msr) } else { None }
    }

    /// IA32_ARCH_CAPABILITIES.
    #[getter]
    fn arch_capabilities(&self) -> u64 {
        if self.inner.has(Feature::ArchCapabilities) { ARCH_CAPABILITIES } else { 0 }
    }

    /// Bits that CR4 takes.
    #[getter]
    fn cr4_bits(&self) -> u64 {
        self.inner.cr4_bits()
    }

    /// Bits that XCR0 takes.
    #[getter]
    fn xcr0_bits(&self) -> u64 {
        self.inner.xcr0_bits()
    }

    fn __repr__(&self) -> String {
        format!("<Model {}>", self.inner.name)
    }
}
