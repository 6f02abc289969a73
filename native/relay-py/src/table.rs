//! The protocol table and template checks, for the configuration.

use capsule_core::protocols::{TABLE, TargetKind};
use capsule_core::template::Template;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

/// The rows of the protocol table.
#[pyfunction]
pub(crate) fn protocols(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let rows = PyList::empty(py);
    for protocol in TABLE {
        let row = PyDict::new(py);
        row.set_item("name", protocol.name)?;
        row.set_item(
            "target",
            match protocol.target {
                TargetKind::Stream => "stream",
                TargetKind::Datagram => "datagram",
                TargetKind::Packet => "packet",
            },
        )?;
        row.set_item("templated", protocol.templated)?;
        row.set_item("default_template", protocol.default_template)?;
        row.set_item("on_by_default", protocol.default_on)?;
        row.set_item("can_bind", protocol.can_bind)?;
        row.set_item("can_mark", protocol.can_mark)?;
        let profiles: Vec<(&str, u64, u64)> = protocol
            .profiles
            .iter()
            .map(|profile| (&*profile.token, profile.data, profile.final_data))
            .collect();
        row.set_item("profiles", profiles)?;
        rows.append(row)?;
    }
    Ok(rows)
}

/// Checks a URI template that is to be served; ValueError with the place and the remedy.
#[pyfunction]
pub(crate) fn check_template(template: &str) -> PyResult<()> {
    match Template::compile(template) {
        Ok(_) => Ok(()),
        Err(error) => Err(PyValueError::new_err(format!(
            "expected a URI template: {error}"
        ))),
    }
}
