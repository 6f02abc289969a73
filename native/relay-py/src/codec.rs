//! Varints and capsules for Python.

use capsule_core::capsule::{self, Decoder, Event, MAX_HEADER};
use capsule_core::varint;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::buffer::Bytes;

pyo3::import_exception!(relay.errors, FramingError);

fn number_of(value: &Bound<'_, PyAny>, what: &str, bits: u32) -> PyResult<u64> {
    match value.extract::<u64>() {
        Ok(number) if number <= u64::MAX >> (u64::BITS - bits) => Ok(number),
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyTypeError>(value.py()) => {
            Err(error)
        }
        _ => Err(PyValueError::new_err(format!(
            "{what} must be from 0 to 2**{bits} - 1"
        ))),
    }
}

/// An integer that fits into a varint.
pub(crate) fn varint_of(value: &Bound<'_, PyAny>, what: &str) -> PyResult<u64> {
    number_of(value, what, varint::MAX.count_ones())
}

fn kind_of(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    varint_of(value, "kind")
}

fn length_of(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    varint_of(value, "length")
}

fn remaining_of(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    varint_of(value, "remaining")
}

fn max_whole_of(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    number_of(value, "max_whole", u64::BITS)
}

fn offset_of(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    number_of(value, "offset", u64::BITS)
}

/// Encodes an integer in its shortest form (RFC 9000 §16).
#[pyfunction]
pub(crate) fn encode_varint<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let mut out = [0; varint::MAX_LEN];
    let length = varint::encode(varint_of(value, "value")?, &mut out);
    Ok(PyBytes::new(value.py(), &out[..length]))
}

/// Decodes the integer at `offset`: (value, bytes it took), or None when more bytes are needed.
#[pyfunction]
#[pyo3(signature = (data, offset = 0))]
pub(crate) fn decode_varint(
    data: Bytes<'_>,
    #[pyo3(from_py_with = offset_of)] offset: u64,
) -> Option<(u64, usize)> {
    let offset = usize::try_from(offset).ok()?;
    varint::decode(data.as_slice().get(offset..)?)
}

fn capsule_bytes<'py>(py: Python<'py>, kind: u64, value: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let mut header = [0; MAX_HEADER];
    let length = capsule::encode_header(kind, value.len() as u64, &mut header);
    PyBytes::new_with(py, length + value.len(), |out| {
        out[..length].copy_from_slice(&header[..length]);
        out[length..].copy_from_slice(value);
        Ok(())
    })
}

/// Encodes a whole capsule (RFC 9297 §3.2).
#[pyfunction]
#[pyo3(signature = (kind, value = None))]
pub(crate) fn encode_capsule<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = kind_of)] kind: u64,
    value: Option<Bytes<'py>>,
) -> PyResult<Bound<'py, PyBytes>> {
    capsule_bytes(py, kind, value.as_ref().map_or(&[][..], Bytes::as_slice))
}

/// Encodes the header of a capsule whose value follows separately.
#[pyfunction]
pub(crate) fn encode_capsule_header<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = kind_of)] kind: u64,
    #[pyo3(from_py_with = length_of)] length: u64,
) -> Bound<'py, PyBytes> {
    let mut header = [0; MAX_HEADER];
    let used = capsule::encode_header(kind, length, &mut header);
    PyBytes::new(py, &header[..used])
}

/// A whole capsule.
#[pyclass(frozen, get_all, module = "relay._native")]
pub(crate) struct Capsule {
    kind: u64,
    value: Py<PyBytes>,
}

#[pymethods]
impl Capsule {
    #[classattr]
    fn __match_args__() -> (&'static str, &'static str) {
        ("kind", "value")
    }

    #[new]
    fn new(py: Python<'_>, #[pyo3(from_py_with = kind_of)] kind: u64, value: Bytes<'_>) -> Self {
        Self {
            kind,
            value: value.into_py_bytes(py),
        }
    }

    fn __eq__(&self, py: Python<'_>, other: &Self) -> bool {
        self.kind == other.kind && self.value.as_bytes(py) == other.value.as_bytes(py)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let length = self.value.as_bytes(py).len();
        format!("Capsule(kind={:#x}, value=<{length} bytes>)", self.kind)
    }
}

/// The header of a capsule whose value comes in parts.
#[pyclass(frozen, eq, get_all, module = "relay._native")]
#[derive(PartialEq)]
pub(crate) struct CapsuleHeader {
    kind: u64,
    length: u64,
}

#[pymethods]
impl CapsuleHeader {
    #[classattr]
    fn __match_args__() -> (&'static str, &'static str) {
        ("kind", "length")
    }

    #[new]
    fn new(
        #[pyo3(from_py_with = kind_of)] kind: u64,
        #[pyo3(from_py_with = length_of)] length: u64,
    ) -> Self {
        Self { kind, length }
    }

    fn __repr__(&self) -> String {
        format!(
            "CapsuleHeader(kind={:#x}, length={})",
            self.kind, self.length
        )
    }
}

/// A part of the value of the capsule whose header came before.
#[pyclass(frozen, get_all, module = "relay._native")]
pub(crate) struct CapsuleValue {
    data: Py<PyBytes>,
    remaining: u64,
}

#[pymethods]
impl CapsuleValue {
    #[classattr]
    fn __match_args__() -> (&'static str, &'static str) {
        ("data", "remaining")
    }

    #[new]
    fn new(
        py: Python<'_>,
        data: Bytes<'_>,
        #[pyo3(from_py_with = remaining_of)] remaining: u64,
    ) -> Self {
        Self {
            data: data.into_py_bytes(py),
            remaining,
        }
    }

    fn __eq__(&self, py: Python<'_>, other: &Self) -> bool {
        self.remaining == other.remaining && self.data.as_bytes(py) == other.data.as_bytes(py)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let length = self.data.as_bytes(py).len();
        format!(
            "CapsuleValue(data=<{length} bytes>, remaining={})",
            self.remaining
        )
    }
}

/// An incremental capsule decoder.
#[pyclass(module = "relay._native")]
pub(crate) struct CapsuleDecoder {
    decoder: Decoder,
    whole: u64,
    /// The capsule being collected: its type and the value so far.
    collecting: Option<(u64, Vec<u8>)>,
}

#[pymethods]
impl CapsuleDecoder {
    #[new]
    #[pyo3(signature = (max_whole = 65536))]
    fn new(#[pyo3(from_py_with = max_whole_of)] max_whole: u64) -> Self {
        Self {
            decoder: Decoder::new(),
            whole: max_whole,
            collecting: None,
        }
    }

    /// Takes bytes of the data stream and returns what is complete in them, in order.
    fn feed<'py>(&mut self, py: Python<'py>, data: Bytes<'py>) -> PyResult<Bound<'py, PyList>> {
        let events = PyList::empty(py);
        let mut rest = data.as_slice();
        loop {
            match self.decoder.decode(rest) {
                Event::Idle => return Ok(events),
                Event::Partial { consumed } => rest = &rest[consumed..],
                Event::Header {
                    kind,
                    length,
                    consumed,
                } => {
                    rest = &rest[consumed..];
                    if length == 0 {
                        let value = PyBytes::new(py, &[]).unbind();
                        events.append(Bound::new(py, Capsule { kind, value })?)?;
                    } else if length <= self.whole {
                        self.collecting = Some((kind, Vec::new()));
                    } else {
                        events.append(Bound::new(py, CapsuleHeader { kind, length })?)?;
                    }
                }
                Event::Value { remaining } => {
                    let taken =
                        usize::try_from(remaining).map_or(rest.len(), |n| n.min(rest.len()));
                    let (value, after) = rest.split_at(taken);
                    rest = after;
                    self.decoder.advance(taken as u64);
                    let remaining = remaining - taken as u64;
                    match self.collecting.take() {
                        None => {
                            let data = PyBytes::new(py, value).unbind();
                            events.append(Bound::new(py, CapsuleValue { data, remaining })?)?;
                        }
                        Some((kind, so_far)) if remaining == 0 => {
                            let value = if so_far.is_empty() {
                                PyBytes::new(py, value)
                            } else {
                                PyBytes::new(py, &[&so_far, value].concat())
                            };
                            let value = value.unbind();
                            events.append(Bound::new(py, Capsule { kind, value })?)?;
                        }
                        Some((kind, mut so_far)) => {
                            so_far.extend_from_slice(value);
                            self.collecting = Some((kind, so_far));
                        }
                    }
                }
            }
        }
    }

    /// Tells that the data stream ended; FramingError if that was inside a capsule.
    fn finish(&self) -> PyResult<()> {
        if self.decoder.at_boundary() {
            return Ok(());
        }
        //= rfc9297 §3.3 truncated-capsule
        Err(FramingError::new_err(
            "the data stream ended inside a capsule",
        ))
    }

    /// Whether no capsule is begun and unfinished.
    #[getter]
    fn at_boundary(&self) -> bool {
        self.decoder.at_boundary()
    }
}
