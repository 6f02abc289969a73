//! UDP sockets towards targets: connected, so that nothing but the target's datagrams arrives, and the kernel tells when there is
//! nobody at the other end.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use nix::errno::Errno;
use socket2::Socket;
use tokio::io::Interest;

use super::super::tcp::Sources;
use super::{Batched, Sent, unbound};

/// A connected socket.
#[derive(Debug)]
pub struct DatagramSocket {
    pub(super) socket: Batched,
    pub(super) peer: SocketAddr,
}

/// Makes a socket that talks to `target` alone. Nothing is sent.
//= rfc9298 §3.1 connected-socket
pub(in super::super) fn connect(
    sources: &Sources,
    target: SocketAddr,
) -> io::Result<DatagramSocket> {
    let source = sources.pick(target.ip())?;
    let socket = unbound(target)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&target.into())?;
    let socket = DatagramSocket::over(socket, target)?;
    if socket.local_addr()? == target {
        return Err(Errno::ECONNREFUSED.into());
    }
    Ok(socket)
}

/// Whether an error says that the target is not there (ICMP), not that one datagram did not get through.
pub(super) fn is_final(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ENETDOWN)
    )
}

impl DatagramSocket {
    /// A socket that is connected to `peer`.
    pub(super) fn over(socket: Socket, peer: SocketAddr) -> io::Result<Self> {
        let socket = Batched::new(socket)?;
        Ok(Self { socket, peer })
    }

    /// Resolves when there may be something to receive.
    ///
    /// # Errors
    /// The target is not there any more.
    pub async fn readable(&self) -> io::Result<()> {
        let ready = self
            .socket
            .io
            .ready(Interest::READABLE | Interest::ERROR)
            .await?;
        if ready.is_error() {
            match self.socket.io.take_error()? {
                Some(error) if is_final(&error) => return Err(error),
                // One datagram did not get through.
                Some(_) | None => {
                    let _ = self.socket.io.try_io(Interest::ERROR, || {
                        Err::<(), _>(ErrorKind::WouldBlock.into())
                    });
                }
            }
        }
        Ok(())
    }

    /// Resolves when there may be room to send.
    ///
    /// # Errors
    /// The runtime is ending.
    pub async fn writable(&self) -> io::Result<()> {
        self.socket.io.writable().await
    }

    /// Hands every datagram of one batch to `each`. ECN marks are not passed on.
    ///
    /// # Errors
    /// `WouldBlock`: there is none. Others: the target is not there any more.
    pub fn receive(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.socket.receive(|_, datagram| each(datagram))
    }

    /// Sends datagrams, those of one size that follow each other in one call.
    ///
    /// # Errors
    /// The target is not there any more.
    pub fn send(&self, datagrams: &[impl AsRef<[u8]>]) -> io::Result<Sent> {
        self.socket.send(datagrams, |_| self.peer, is_final)
    }

    /// The socket's own address.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use socket2::SockRef;

    use super::*;

    fn target() -> std::net::UdpSocket {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        socket
    }

    //= rfc9298 §3.1 oversize-dropped
    #[tokio::test]
    async fn datagrams_arrive_as_they_were() {
        let target = target();
        let socket = connect(&Sources::default(), target.local_addr().unwrap()).unwrap();
        let sizes = [1200, 1200, 1200, 7, 7, 0, 0, 1472, 60_000, 1];
        let datagrams: Vec<Vec<u8>> = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| vec![number as u8; *size])
            .collect();
        socket.writable().await.unwrap();
        let sent = socket.send(&datagrams).unwrap();
        assert_eq!((sent.done, sent.dropped), (sizes.len(), 0));
        let mut buffer = vec![0; 1 << 16];
        for expected in &datagrams {
            let (length, from) = target.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], &expected[..]);
            target.send_to(&buffer[..length], from).unwrap();
        }
        let mut arrived = Vec::new();
        while arrived.len() < datagrams.len() {
            socket.readable().await.unwrap();
            let _ = socket.receive(|datagram| arrived.push(datagram.to_vec()));
        }
        assert_eq!(arrived, datagrams);
        // One that is longer than UDP can carry is dropped, and the next one is not.
        let sent = socket.send(&[vec![0; 65_520], vec![9]]).unwrap();
        assert_eq!((sent.done, sent.dropped, sent.bytes), (2, 1, 1));
        assert_eq!(target.recv(&mut buffer).unwrap(), 1);
    }

    //= rfc9298 §3.1 oversize-dropped
    #[tokio::test]
    async fn what_was_too_long_takes_no_other_datagram_with_it() {
        let target = target();
        let socket = connect(&Sources::default(), target.local_addr().unwrap()).unwrap();
        socket.writable().await.unwrap();
        // As long as the link's packets, and a byte longer than those of IPv4: ICMP tells the socket.
        let long = vec![0; 65_508];
        let sent = socket.send(&[&long[..], &[7], &long, &[8, 8]]).unwrap();
        assert_eq!((sent.done, sent.dropped, sent.bytes), (4, 2, 3));
        let mut buffer = vec![0; 1 << 16];
        assert_eq!(target.recv(&mut buffer).unwrap(), 1);
        let (length, own) = target.recv_from(&mut buffer).unwrap();
        assert_eq!(length, 2);
        target.send_to(&[9], own).unwrap();
        socket.readable().await.unwrap();
        SockRef::from(&socket.socket.io).send(&long).unwrap_err();
        let mut arrived = Vec::new();
        socket
            .receive(|datagram| arrived.push(datagram.to_vec()))
            .unwrap();
        assert_eq!(arrived, [[9]]);
    }

    #[tokio::test]
    async fn strangers_are_not_heard_and_an_absent_target_is_noticed() {
        let gone = target();
        let socket = connect(&Sources::default(), gone.local_addr().unwrap()).unwrap();
        let stranger = target();
        let own = socket.local_addr().unwrap();
        stranger.send_to(b"boo", own).unwrap();
        gone.send_to(b"hello", own).unwrap();
        let mut arrived = Vec::new();
        while arrived.is_empty() {
            socket.readable().await.unwrap();
            let _ = socket.receive(|datagram| arrived.push(datagram.to_vec()));
        }
        assert_eq!(arrived, [b"hello"]);
        drop(gone);
        socket.writable().await.unwrap();
        assert_eq!(socket.send(&[b"anybody?"]).unwrap().done, 1);
        let error = loop {
            if let Err(error) = socket.readable().await {
                break error;
            }
            let _ = socket.receive(|_| {});
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}
