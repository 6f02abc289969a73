//! The connect-udp machine for Python.

use capsule_core::protocols::udp::{self, CONTEXT, MAX_OVERHEAD, MAX_PAYLOAD};
use capsule_core::tunnel::Malformed;
use capsule_core::whole::Step;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::Bytes;
use crate::tunnel::malformed;

/// `front` and then the payload, which must be one that UDP can carry.
//= rfc9298 §5 context-0-limit
pub(crate) fn behind<'py>(
    py: Python<'py>,
    payload: &[u8],
    front: impl FnOnce(usize) -> Vec<u8>,
) -> PyResult<Bound<'py, PyBytes>> {
    if payload.len() > MAX_PAYLOAD {
        return Err(PyValueError::new_err(format!(
            "a UDP payload has at most {MAX_PAYLOAD} bytes, not {}",
            payload.len()
        )));
    }
    let front = front(payload.len());
    PyBytes::new_with(py, front.len() + payload.len(), |out| {
        out[..front.len()].copy_from_slice(&front);
        out[front.len()..].copy_from_slice(payload);
        Ok(())
    })
}

/// A capsule that is not complete; never longer than the longest that can hold a payload.
#[derive(Default)]
pub(crate) struct Held(Vec<u8>);

impl Held {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Gives every payload that `data` completes to `found`.
    pub(crate) fn sort<P>(
        &mut self,
        mut data: &[u8],
        look: &mut impl FnMut(&[u8]) -> Result<Step<P>, Malformed>,
        found: &mut impl FnMut(P, &[u8]),
    ) -> Result<(), Malformed> {
        let held = &mut self.0;
        // What is missing of the capsule that is held, and no more, so that the rest need not be copied.
        while !held.is_empty() {
            match look(held)? {
                Step::More(_) | Step::Idle if data.is_empty() => return Ok(()),
                Step::More(bytes) => {
                    let (now, later) = data.split_at(data.len().min(bytes - held.len()));
                    held.extend_from_slice(now);
                    data = later;
                }
                Step::Skip(bytes) => drop(held.drain(..bytes)),
                Step::Payload {
                    peer,
                    start,
                    length,
                } => {
                    found(peer, &held[start..start + length]);
                    held.clear();
                }
                Step::Idle => {}
            }
        }
        loop {
            match look(data)? {
                Step::Idle => return Ok(()),
                Step::Skip(bytes) => data = &data[bytes..],
                Step::Payload {
                    peer,
                    start,
                    length,
                } => {
                    found(peer, &data[start..start + length]);
                    data = &data[start + length..];
                }
                Step::More(_) => {
                    held.extend_from_slice(data);
                    return Ok(());
                }
            }
        }
    }
}

/// One end of a connect-udp tunnel.
#[pyclass(module = "relay._native")]
pub(crate) struct ConnectUdp {
    machine: udp::ConnectUdp,
    held: Held,
}

#[pymethods]
impl ConnectUdp {
    #[new]
    fn new() -> Self {
        Self {
            machine: udp::ConnectUdp::new(),
            held: Held::default(),
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
        let mut found = |(), payload: &[u8]| payloads.push(PyBytes::new(py, payload));
        let machine = &mut self.machine;
        let mut look = |data: &[u8]| machine.inbound(data);
        match self.held.sort(data.as_slice(), &mut look, &mut found) {
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
        behind(py, payload.as_slice(), |length| {
            let mut front = [0; MAX_OVERHEAD];
            let used = udp::capsule_header(length, &mut front);
            front[..used].to_vec()
        })
    }

    /// An HTTP datagram that holds the payload.
    #[staticmethod]
    fn send_datagram<'py>(py: Python<'py>, payload: Bytes<'py>) -> PyResult<Bound<'py, PyBytes>> {
        behind(py, payload.as_slice(), |_| CONTEXT.to_vec())
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
