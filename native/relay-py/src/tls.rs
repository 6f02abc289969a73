//! The files of TLS: what can be served from. Faults are ValueErrors that name the file and what is wrong with it.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use relay_engine::tls;

/// Checks that a file holds a PEM certificate chain.
#[pyfunction]
pub(crate) fn check_certificate(path: PathBuf) -> PyResult<()> {
    tls::check_certificate(&path).map_err(PyValueError::new_err)
}

/// Checks that a file holds a PEM private key.
#[pyfunction]
pub(crate) fn check_private_key(path: PathBuf) -> PyResult<()> {
    tls::check_private_key(&path).map_err(PyValueError::new_err)
}

/// Checks that a file holds PEM roots that certificates of clients can be judged by.
#[pyfunction]
pub(crate) fn check_client_ca(path: PathBuf) -> PyResult<()> {
    tls::check_client_ca(&path).map_err(PyValueError::new_err)
}

/// Checks that TLS can be served from these files, each sound by itself: that the key belongs to the certificate.
#[pyfunction]
pub(crate) fn check_tls(certificate: PathBuf, private_key: PathBuf) -> PyResult<()> {
    tls::check(&certificate, &private_key).map_err(PyValueError::new_err)
}

/// (certificate, private key) in PEM for names and addresses, valid for trying things out.
#[pyfunction]
pub(crate) fn throwaway_certificate(names: Vec<String>) -> PyResult<(String, String)> {
    let made = tls::throwaway_certificate(&names).map_err(PyValueError::new_err)?;
    Ok((made.certificate, made.private_key))
}
