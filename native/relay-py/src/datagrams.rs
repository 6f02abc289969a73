//! The connect-udp machine for Python.

use capsule_core::protocols::udp::{self, CONTEXT, MAX_OVERHEAD, MAX_PAYLOAD, Step};
use capsule_core::tunnel::Malformed;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::Bytes;
use crate::tunnel::malformed;

/// `header` and then the payload, which must be one that UDP can carry.
//= rfc9298 §5 context-0-limit
fn behind<'py>(
    py: Python<'py>,
    payload: &[u8],
    header: impl FnOnce(usize, &mut [u8; MAX_OVERHEAD]) -> usize,
) -> PyResult<Bound<'py, PyBytes>> {
    if payload.len() > MAX_PAYLOAD {
        return Err(PyValueError::new_err(format!(
            "a UDP payload has at most {MAX_PAYLOAD} bytes, not {}",
            payload.len()
        )));
    }
    let mut front = [0; MAX_OVERHEAD];
    let used = header(payload.len(), &mut front);
    PyBytes::new_with(py, used + payload.len(), |out| {
        out[..used].copy_from_slice(&front[..used]);
        out[used..].copy_from_slice(payload);
        Ok(())
    })
}

/// One end of a connect-udp tunnel.
#[pyclass(module = "relay._native")]
pub(crate) struct ConnectUdp {
    machine: udp::ConnectUdp,
    /// A capsule that is not complete; never longer than the longest that can hold a payload.
    held: Vec<u8>,
}

impl ConnectUdp {
    /// Gives every payload in `data` to `payload`; what is left is a capsule that is not complete.
    fn take<'d>(
        machine: &mut udp::ConnectUdp,
        mut data: &'d [u8],
        payload: &mut impl FnMut(&[u8]),
    ) -> Result<&'d [u8], Malformed> {
        loop {
            match machine.inbound(data)? {
                Step::Idle | Step::More(_) => return Ok(data),
                Step::Skip(bytes) => data = &data[bytes..],
                Step::Payload { start, length } => {
                    payload(&data[start..start + length]);
                    data = &data[start + length..];
                }
            }
        }
    }

    fn sort(&mut self, mut data: &[u8], payload: &mut impl FnMut(&[u8])) -> Result<(), Malformed> {
        // What is missing of the capsule that is held, and no more, so that the rest need not be copied.
        while !self.held.is_empty() {
            match self.machine.inbound(&self.held)? {
                Step::More(_) | Step::Idle if data.is_empty() => return Ok(()),
                Step::More(bytes) => {
                    let (now, later) = data.split_at(data.len().min(bytes - self.held.len()));
                    self.held.extend_from_slice(now);
                    data = later;
                }
                Step::Skip(bytes) => drop(self.held.drain(..bytes)),
                Step::Payload { start, length } => {
                    payload(&self.held[start..start + length]);
                    self.held.clear();
                }
                Step::Idle => {}
            }
        }
        let rest = Self::take(&mut self.machine, data, payload)?;
        self.held.extend_from_slice(rest);
        Ok(())
    }
}

#[pymethods]
impl ConnectUdp {
    #[new]
    fn new() -> Self {
        Self {
            machine: udp::ConnectUdp::new(),
            held: Vec::new(),
        }
    }

    /// Takes bytes of the data stream and returns the UDP payloads that they complete; FramingError if they break the rules, but
    /// payloads before the fault are returned first, and the next call raises.
    fn receive<'py>(
        &mut self,
        py: Python<'py>,
        data: Bytes<'py>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let mut payloads = Vec::new();
        let mut found = |payload: &[u8]| payloads.push(PyBytes::new(py, payload));
        match self.sort(data.as_slice(), &mut found) {
            // The machine repeats its fault. What was sent before it was sent well, however the stream is split.
            Err(fault) if payloads.is_empty() => Err(malformed(fault)),
            Ok(()) | Err(_) => Ok(payloads),
        }
    }

    /// Takes an HTTP datagram that came beside the data stream; None if its context is not known.
    fn receive_datagram<'py>(
        &mut self,
        py: Python<'py>,
        datagram: Bytes<'py>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let datagram = datagram.as_slice();
        let start = self.machine.datagram(datagram).map_err(malformed)?;
        Ok(start.map(|start| PyBytes::new(py, &datagram[start..])))
    }

    /// The data stream ended cleanly; FramingError if that was inside a capsule.
    fn receive_end(&mut self) -> PyResult<()> {
        self.machine.inbound_end(self.held.len()).map_err(malformed)
    }

    /// A DATAGRAM capsule that holds the payload.
    #[staticmethod]
    fn send<'py>(py: Python<'py>, payload: Bytes<'py>) -> PyResult<Bound<'py, PyBytes>> {
        behind(py, payload.as_slice(), udp::capsule_header)
    }

    /// An HTTP datagram that holds the payload.
    #[staticmethod]
    fn send_datagram<'py>(py: Python<'py>, payload: Bytes<'py>) -> PyResult<Bound<'py, PyBytes>> {
        behind(py, payload.as_slice(), |_, out| {
            out[..CONTEXT.len()].copy_from_slice(&CONTEXT);
            CONTEXT.len()
        })
    }

    /// Capsules skipped because their type means nothing here; reserved types are not counted.
    #[getter]
    fn unknown_capsules(&self) -> u64 {
        self.machine.unknown_capsules()
    }

    /// Datagrams dropped because their context is not known.
    #[getter]
    fn unknown_contexts(&self) -> u64 {
        self.machine.unknown_contexts()
    }
}
