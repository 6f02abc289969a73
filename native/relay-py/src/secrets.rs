//! Hashes of passwords and tokens, as the credential files hold them.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// The argon2id hash of a password as a PHC string. Takes tens of milliseconds.
#[pyfunction]
pub(crate) fn hash_password(py: Python<'_>, password: &str) -> PyResult<String> {
    py.detach(|| relay_engine::auth::hash_password(password))
        .map_err(|error| PyRuntimeError::new_err(error.to_string()))
}

/// The SHA-256 of a token in lower-case hex.
#[pyfunction]
pub(crate) fn hash_token(token: &str) -> String {
    relay_engine::auth::hash_token(token)
}

/// Whether a string is an argon2id hash that passwords can be verified with.
#[pyfunction]
pub(crate) fn is_argon2id(phc: &str) -> bool {
    relay_engine::auth::is_argon2id(phc)
}
