//! The connect-tcp machine for Python.

use capsule_core::capsule::{self, MAX_HEADER, types};
use capsule_core::protocols::{self, tcp};
use capsule_core::tunnel::{End, Finish, Malformed, Step, StreamTunnel as _};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::Bytes;
use crate::codec::{FramingError, varint_of};

pub(crate) fn malformed(fault: Malformed) -> PyErr {
    FramingError::new_err(fault.to_string())
}

/// Refuses capsule types that a tunnel cannot work with.
fn check_types(data: u64, final_data: u64) -> PyResult<()> {
    for (name, kind) in [("data", data), ("final_data", final_data)] {
        if kind == types::DATAGRAM || types::is_grease(kind) {
            return Err(PyValueError::new_err(format!(
                "{name} must be neither 0 (DATAGRAM) nor a reserved type, 0x29 * N + 0x17"
            )));
        }
    }
    if data == final_data {
        return Err(PyValueError::new_err("data and final_data must differ"));
    }
    Ok(())
}

/// One end of a connect-tcp tunnel.
#[pyclass(module = "relay._native")]
pub(crate) struct ConnectTcp {
    machine: tcp::ConnectTcp,
    data: u64,
    finished: bool,
}

impl ConnectTcp {
    fn open(&self) -> PyResult<()> {
        if self.machine.outbound_finished() {
            //= connect-tcp §3 no-data-after-own-final
            return Err(FramingError::new_err(
                "nothing may be sent after FINAL_DATA",
            ));
        }
        Ok(())
    }
}

#[pymethods]
impl ConnectTcp {
    #[new]
    #[pyo3(signature = (token = "connect-tcp-12", *, data = None, final_data = None))]
    fn new(
        token: &str,
        data: Option<&Bound<'_, PyAny>>,
        final_data: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let (data, final_data) = match (data, final_data) {
            (Some(data), Some(last)) => {
                let (data, last) = (varint_of(data, "data")?, varint_of(last, "final_data")?);
                check_types(data, last)?;
                (data, last)
            }
            (None, None) => protocols::by_name("connect-tcp")
                .and_then(|row| row.profiles.iter().find(|profile| profile.token == token))
                .map(|profile| (profile.data, profile.final_data))
                .ok_or_else(|| {
                    PyValueError::new_err(format!(
                        "unknown token {token:?}: give data and final_data, the capsule types that go with it"
                    ))
                })?,
            _ => return Err(PyValueError::new_err("data and final_data go together")),
        };
        Ok(Self {
            machine: tcp::ConnectTcp::new(data, final_data),
            data,
            finished: false,
        })
    }

    /// Takes bytes of the data stream and returns the payload among them; FramingError if they break the rules, but
    /// payload before the fault is returned first, and the next call raises.
    fn receive<'py>(&mut self, py: Python<'py>, data: Bytes<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let mut rest = data.as_slice();
        let mut payload = Vec::new();
        loop {
            match self.machine.inbound(rest) {
                // The machine repeats its fault. What was sent before it was sent well, however the stream is split.
                Err(_) if !payload.is_empty() => return Ok(PyBytes::new(py, &payload)),
                Err(fault) => return Err(malformed(fault)),
                Ok(Step::Skip(count)) => rest = &rest[count..],
                Ok(Step::Payload(count)) => {
                    let taken = usize::try_from(count).map_or(rest.len(), |n| n.min(rest.len()));
                    payload.extend_from_slice(&rest[..taken]);
                    self.machine.advance(taken as u64);
                    rest = &rest[taken..];
                }
                Ok(Step::Finish) => self.finished = true,
                Ok(Step::Idle) => return Ok(PyBytes::new(py, &payload)),
            }
        }
    }

    /// The data stream ended cleanly: True = as it should, False = without FINAL_DATA (reset the TCP side);
    /// FramingError if that was inside a capsule.
    fn receive_end(&mut self) -> PyResult<bool> {
        match self.machine.inbound_end() {
            End::Finish | End::Complete => {
                self.finished = true;
                Ok(true)
            }
            End::Abort => Ok(false),
            End::Malformed(fault) => Err(malformed(fault)),
        }
    }

    /// A DATA capsule that holds the payload.
    fn send<'py>(&mut self, py: Python<'py>, payload: Bytes<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.open()?;
        let payload = payload.as_slice();
        let mut header = [0; MAX_HEADER];
        let length = self.machine.outbound_header(payload.len(), &mut header);
        PyBytes::new_with(py, length + payload.len(), |out| {
            out[..length].copy_from_slice(&header[..length]);
            out[length..].copy_from_slice(payload);
            Ok(())
        })
    }

    /// The header of a DATA capsule whose payload of `length` bytes follows separately.
    fn send_header<'py>(&mut self, length: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        self.open()?;
        let mut header = [0; MAX_HEADER];
        let used = capsule::encode_header(self.data, varint_of(length, "length")?, &mut header);
        Ok(PyBytes::new(length.py(), &header[..used]))
    }

    /// The FINAL_DATA capsule: the TCP side sent FIN.
    fn send_final<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.open()?;
        let mut header = [0; MAX_HEADER];
        let length = match self.machine.outbound_finish(&mut header) {
            Finish::Bytes(length) => length,
            Finish::EndStream => 0,
        };
        Ok(PyBytes::new(py, &header[..length]))
    }

    /// The peer sent FINAL_DATA, and all payload before it was returned: send FIN to the TCP side.
    #[getter]
    fn receive_finished(&self) -> bool {
        self.finished
    }

    /// FINAL_DATA was made.
    #[getter]
    fn send_finished(&self) -> bool {
        self.machine.outbound_finished()
    }

    /// Capsules skipped because their type means nothing here; reserved types are not counted.
    #[getter]
    fn unknown_capsules(&self) -> u64 {
        self.machine.unknown_capsules()
    }
}
