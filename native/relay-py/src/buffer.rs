//! Bytes from Python, whatever object holds them.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};

/// The content of `bytes` (as it is) or of any other contiguous buffer (copied: it may change under our hands).
pub(crate) struct Bytes<'py>(Content<'py>);

enum Content<'py> {
    Shared(Bound<'py, PyBytes>),
    Copied(Vec<u8>),
}

impl Bytes<'_> {
    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Content::Shared(bytes) => bytes.as_bytes(),
            Content::Copied(bytes) => bytes,
        }
    }

    /// As a Python object: the one that came, if it was `bytes`.
    pub(crate) fn into_py_bytes(self, py: Python<'_>) -> Py<PyBytes> {
        match self.0 {
            Content::Shared(bytes) => bytes.unbind(),
            Content::Copied(bytes) => PyBytes::new(py, &bytes).unbind(),
        }
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Bytes<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Ok(Self(Content::Shared(bytes.to_owned())));
        }
        let buffer = PyBuffer::<u8>::get(&object)
            .or_else(|_| {
                // Items of another kind, as of ctypes and array: their memory, as hashlib and sockets take it.
                let view = PyMemoryView::from(&object)?.call_method1("cast", ("B",))?;
                PyBuffer::<u8>::get(&view)
            })
            .map_err(|_| {
                PyTypeError::new_err(format!(
                    "a bytes-like object is required, not {}",
                    object
                        .get_type()
                        .name()
                        .map_or_else(|_| "this".into(), |name| name.to_string())
                ))
            })?;
        Ok(Self(Content::Copied(buffer.to_vec(object.py())?)))
    }
}
