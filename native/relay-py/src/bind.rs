//! The machine of connect-udp's bind mode for Python.

use std::net::{IpAddr, SocketAddr};

use capsule_core::capsule::MAX_HEADER;
use capsule_core::protocols::udp_bind::{self, Bind, MAX_PREFIX, Role};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::Bytes;
use crate::codec::{FramingError, varint_of};
use crate::datagrams::{Held, behind};
use crate::tunnel::malformed;

/// A peer as Python has it: an address and a port.
type Peer = (String, u16);

fn address_of((host, port): &Peer) -> PyResult<SocketAddr> {
    let address: IpAddr = host
        .parse()
        .map_err(|_| PyValueError::new_err(format!("a peer has an IP address, not {host:?}")))?;
    Ok(SocketAddr::new(address, *port))
}

fn peer_of(address: SocketAddr) -> Peer {
    (address.ip().to_string(), address.port())
}

/// What may be reached: a function of Python's, whose first error is kept.
struct Permit<'a, 'py> {
    py: Python<'py>,
    function: Option<&'a Py<PyAny>>,
    error: Option<PyErr>,
}

impl Permit<'_, '_> {
    fn ask(&mut self, peer: SocketAddr) -> bool {
        let Some(function) = self.function else {
            return true;
        };
        let (host, port) = peer_of(peer);
        let answer = function
            .call1(self.py, (host, port))
            .and_then(|answer| answer.is_truthy(self.py));
        match answer {
            Ok(permitted) => permitted,
            Err(error) => {
                self.error.get_or_insert(error);
                false
            }
        }
    }

    fn done<T>(self, value: T) -> PyResult<T> {
        self.error.map_or(Ok(value), Err)
    }
}

/// One end of a bound connect-udp tunnel.
#[pyclass(module = "relay._native")]
pub(crate) struct ConnectUdpBind {
    machine: Bind,
    held: Held,
    permit: Option<Py<PyAny>>,
}

impl ConnectUdpBind {
    /// What goes before a payload for a peer in an HTTP datagram.
    fn prefix(&self, peer: &Peer) -> PyResult<Option<Vec<u8>>> {
        let mut prefix = [0; MAX_PREFIX];
        let used = self.machine.prefix(address_of(peer)?, &mut prefix);
        Ok(used.map(|used| prefix[..used].to_vec()))
    }
}

#[pymethods]
impl ConnectUdpBind {
    #[new]
    #[pyo3(signature = (role, *, target = None, permit = None))]
    fn new(role: &str, target: Option<Peer>, permit: Option<Py<PyAny>>) -> PyResult<Self> {
        let role = match role {
            "client" => Role::Client,
            "proxy" if permit.is_none() => {
                return Err(PyValueError::new_err(
                    "a proxy needs permit: which peers may be reached",
                ));
            }
            "proxy" => Role::Proxy,
            _ => return Err(PyValueError::new_err("role must be client or proxy")),
        };
        let target = target.as_ref().map(address_of).transpose()?;
        Ok(Self {
            machine: Bind::new(role, target),
            held: Held::default(),
            permit,
        })
    }

    /// Takes bytes of the data stream and returns (peer, payload) of the datagrams that they complete; FramingError if they break the
    /// rules, but payloads before the fault are returned first, and the next call raises.
    fn receive<'py>(
        &mut self,
        py: Python<'py>,
        data: Bytes<'py>,
    ) -> PyResult<Vec<(Peer, Bound<'py, PyBytes>)>> {
        let mut payloads = Vec::new();
        let mut found = |peer, payload: &[u8]| {
            payloads.push((peer_of(peer), PyBytes::new(py, payload)));
        };
        let mut permit = Permit {
            py,
            function: self.permit.as_ref(),
            error: None,
        };
        let machine = &mut self.machine;
        let mut look = |data: &[u8]| machine.inbound(data, &mut |peer| permit.ask(peer));
        let result = self.held.sort(data.as_slice(), &mut look, &mut found);
        match permit.done(result)? {
            // The machine repeats its fault. What was sent before it was sent well, however the stream is split.
            Err(fault) if payloads.is_empty() => Err(malformed(fault)),
            Ok(()) | Err(_) => Ok(payloads),
        }
    }

    /// Takes an HTTP datagram that came beside the data stream; None if it is to be dropped.
    fn receive_datagram<'py>(
        &mut self,
        py: Python<'py>,
        datagram: Bytes<'py>,
    ) -> PyResult<Option<(Peer, Bound<'py, PyBytes>)>> {
        let mut permit = Permit {
            py,
            function: self.permit.as_ref(),
            error: None,
        };
        let datagram = datagram.as_slice();
        let seen = self
            .machine
            .datagram(datagram, &mut |peer| permit.ask(peer));
        let seen = permit.done(seen)?.map_err(malformed)?;
        Ok(seen.map(|(peer, start)| (peer_of(peer), PyBytes::new(py, &datagram[start..]))))
    }

    /// The data stream ended cleanly; FramingError if that was inside a capsule.
    fn receive_end(&mut self) -> PyResult<()> {
        self.machine.inbound_end(self.held.len()).map_err(malformed)
    }

    /// A DATAGRAM capsule that holds the payload for or of a peer; None if no context leads there.
    fn send<'py>(
        &self,
        py: Python<'py>,
        peer: Peer,
        payload: Bytes<'py>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let Some(prefix) = self.prefix(&peer)? else {
            return Ok(None);
        };
        behind(py, payload.as_slice(), |length| {
            let mut header = [0; MAX_HEADER];
            let used = udp_bind::capsule_header(prefix.len() + length, &mut header);
            [&header[..used], &prefix].concat()
        })
        .map(Some)
    }

    /// An HTTP datagram that holds the payload for or of a peer; None if no context leads there.
    fn send_datagram<'py>(
        &self,
        py: Python<'py>,
        peer: Peer,
        payload: Bytes<'py>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let Some(prefix) = self.prefix(&peer)? else {
            return Ok(None);
        };
        behind(py, payload.as_slice(), |_| prefix).map(Some)
    }

    /// Registers a context for a peer, or, without one, the uncompressed context; its ID. FramingError if that may not be.
    #[pyo3(signature = (peer = None))]
    fn open(&mut self, peer: Option<Peer>) -> PyResult<u64> {
        let opened = match &peer {
            None => self.machine.open_uncompressed(),
            Some(peer) => self.machine.open_compressed(address_of(peer)?),
        };
        opened.map_err(|why| FramingError::new_err(why.to_string()))
    }

    /// Ends a registration, whoever made it; False if it was not open.
    fn close(&mut self, context: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.machine.close(varint_of(context, "context")?))
    }

    /// Whether the other end has agreed to a registration made here.
    fn is_acknowledged(&self, context: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.machine.is_acknowledged(varint_of(context, "context")?))
    }

    /// Capsules that are to be sent on the data stream now: registrations, and answers to those of the other end.
    fn take_pending<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.machine.take_pending())
    }

    /// Capsules skipped because their type means nothing here; reserved types are not counted.
    #[getter]
    fn unknown_capsules(&self) -> u64 {
        self.machine.unknown_capsules()
    }

    /// Datagrams dropped because their context is not open.
    #[getter]
    fn unknown_contexts(&self) -> u64 {
        self.machine.unknown_contexts()
    }

    /// Datagrams dropped because their peer may not be reached.
    #[getter]
    fn refused(&self) -> u64 {
        self.machine.refused()
    }
}
