//! Listening sockets: one TCP and one UDP socket per worker on each address, found busy before any is shared.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{Http, Listener};
use crate::sys::reuseport;

/// The sockets of one listener, one of each kind per worker.
#[derive(Debug)]
pub struct Sockets {
    /// The address with its real port.
    pub address: SocketAddr,
    /// TCP, one per worker; empty when only h3 is offered.
    pub tcp: Vec<TcpListener>,
    /// UDP, one per worker; empty unless h3 is offered.
    pub udp: Vec<UdpSocket>,
}

const BACKLOG: i32 = 4096;
/// Receive and send buffer asked for QUIC sockets; the kernel may give less.
const UDP_BUFFER: usize = 4 << 20;
/// How often a free port is looked for that TCP and UDP can share.
const ATTEMPTS: usize = 32;

fn socket(address: SocketAddr, kind: Type, protocol: Protocol, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // Connections in TIME-WAIT are no reason to call a port busy.
        socket.set_reuse_address(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Binds without sharing, so that a port somebody else shares is found busy, and gives it free again.
fn probe(address: SocketAddr, tcp: bool, udp: bool) -> io::Result<SocketAddr> {
    let mut address = address;
    let mut held = Vec::new();
    if tcp {
        let probe = socket(address, Type::STREAM, Protocol::TCP, false)?;
        // With SO_REUSEADDR a bind alone does not tell whether somebody listens.
        probe.listen(1)?;
        address = local(&probe)?;
        held.push(probe);
    }
    if udp {
        let probe = socket(address, Type::DGRAM, Protocol::UDP, false)?;
        address = local(&probe)?;
        held.push(probe);
    }
    Ok(address)
}

fn local(socket: &Socket) -> io::Result<SocketAddr> {
    socket
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("not an IP socket"))
}

impl Sockets {
    /// Binds all sockets of `listener` for `workers` workers.
    pub fn bind(listener: &Listener, workers: usize) -> io::Result<Self> {
        let udp = listener.http.contains(&Http::H3);
        let tcp = listener.http.iter().any(|http| *http != Http::H3);
        let any_port = listener.address.port() == 0;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let bound = probe(listener.address, tcp, udp)
                .and_then(|address| Self::bind_shared(address, tcp, udp, workers));
            match bound {
                Err(error)
                    if any_port
                        && attempt < ATTEMPTS
                        && error.kind() == io::ErrorKind::AddrInUse => {}
                other => return other,
            }
        }
    }

    fn bind_shared(address: SocketAddr, tcp: bool, udp: bool, workers: usize) -> io::Result<Self> {
        let mut sockets = Self {
            address,
            tcp: Vec::new(),
            udp: Vec::new(),
        };
        for _ in 0..workers {
            if tcp {
                let socket = socket(address, Type::STREAM, Protocol::TCP, true)?;
                socket.listen(BACKLOG)?;
                sockets.tcp.push(socket.into());
            }
            if udp {
                let socket = socket(address, Type::DGRAM, Protocol::UDP, true)?;
                let _ = socket.set_recv_buffer_size(UDP_BUFFER);
                let _ = socket.set_send_buffer_size(UDP_BUFFER);
                sockets.udp.push(socket.into());
            }
        }
        if sockets.udp.len() > 1
            && let Err(error) = reuseport::steer_by_connection_id(&sockets.udp[0])
        {
            // Without it a client that changes its address may lose its connection; nothing else is affected.
            tracing::warn!("{address}: packets cannot be steered by connection ID: {error}");
        }
        Ok(sockets)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn listener(address: SocketAddr) -> Listener {
        Listener {
            address,
            http: vec![Http::H1, Http::H3],
            certificate: None,
            private_key: None,
            client_ca: None,
            client_auth_required: false,
        }
    }

    #[test]
    fn workers_share_one_port_for_tcp_and_udp() {
        let sockets = Sockets::bind(&listener("127.0.0.1:0".parse().unwrap()), 3).unwrap();
        assert_eq!((sockets.tcp.len(), sockets.udp.len()), (3, 3));
        for socket in &sockets.tcp {
            assert_eq!(socket.local_addr().unwrap(), sockets.address);
        }
        for socket in &sockets.udp {
            assert_eq!(socket.local_addr().unwrap(), sockets.address);
        }
    }

    #[test]
    fn a_port_of_another_relay_is_busy() {
        let first = Sockets::bind(&listener("127.0.0.1:0".parse().unwrap()), 2).unwrap();
        let error = Sockets::bind(&listener(first.address), 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn short_headers_go_to_the_worker_of_their_connection_id() {
        let sockets = Sockets::bind(&listener("127.0.0.1:0".parse().unwrap()), 2).unwrap();
        for socket in &sockets.udp {
            socket.set_nonblocking(false).unwrap();
            socket
                .set_read_timeout(Some(std::time::Duration::from_secs(5)))
                .unwrap();
        }
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut buffer = [0; 16];
        for worker in [1u8, 0, 1, 0] {
            client
                .send_to(&[0x40, worker, 7, 7], sockets.address)
                .unwrap();
            let (length, _) = sockets.udp[worker as usize].recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], &[0x40, worker, 7, 7]);
        }
    }
}
