//! The sockets of a bound tunnel: one a family, each at a public address of its own, to and from any peer.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::pin::pin;

use bytes::Bytes;
use futures_util::future::{Either, select};

use super::super::tcp::Sources;
use super::{Batched, CALLS, MOST_SEGMENTS, Sent, unbound};

/// A payload and its peer.
#[derive(Debug, Clone)]
pub struct Addressed {
    /// Where it goes to.
    pub peer: SocketAddr,
    /// The payload.
    pub payload: Bytes,
}

impl AsRef<[u8]> for Addressed {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

/// At least one socket.
#[derive(Debug)]
pub struct BoundSockets {
    v4: Option<Batched>,
    v6: Option<Batched>,
    public: Vec<SocketAddr>,
}

/// Binds the sockets: at the addresses to send from where some are set, else at those that the system would send from.
///
/// `translated`: the addresses that the outside sees instead (NAT that keeps ports). Where there are any, families without one have no
/// socket.
//= connect-udp-bind §7 same-address
pub(in super::super) fn bind(sources: &Sources, translated: &[IpAddr]) -> io::Result<BoundSockets> {
    let mut bound = BoundSockets {
        v4: None,
        v6: None,
        public: Vec::new(),
    };
    let mut fault = io::Error::from(ErrorKind::AddrNotAvailable);
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let mut candidates: Vec<IpAddr> = Vec::new();
    for family in any {
        match sources.pick(family) {
            Ok(Some(source)) => candidates.push(source),
            Ok(None) => candidates.extend(outbound(family)),
            Err(_) => {}
        }
    }
    if candidates.is_empty() && matches!(sources.pick(any[0]), Ok(None)) {
        // A machine without a network still has itself.
        candidates = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    for address in candidates {
        let of_family = |other: &&IpAddr| other.is_ipv4() == address.is_ipv4();
        let outside = match translated {
            [] => Some(address),
            some => some.iter().find(of_family).copied(),
        };
        let Some(outside) = outside else { continue };
        match socket_at(address) {
            Ok((socket, port)) => {
                bound.public.push(SocketAddr::new(outside, port));
                *bound.of(address.is_ipv4()) = Some(socket);
            }
            Err(error) => fault = error,
        }
    }
    if bound.public.is_empty() {
        return Err(fault);
    }
    Ok(bound)
}

fn socket_at(address: IpAddr) -> io::Result<(Batched, u16)> {
    let at = SocketAddr::new(address, 0);
    let socket = unbound(at)?;
    socket.bind(&at.into())?;
    let socket = Batched::new(socket)?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

/// The address that the system would send from towards the public network. Nothing is sent: a datagram socket connects without a
/// packet, and the addresses are those of documentation.
fn outbound(family: IpAddr) -> Option<IpAddr> {
    const PORT: u16 = 9;
    let far: IpAddr = match family {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let socket = StdSocket::bind((family, 0)).ok()?;
    socket.connect((far, PORT)).ok()?;
    let local = socket.local_addr().ok()?.ip();
    let usable = match local {
        IpAddr::V4(address) => !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_unspecified() && !address.is_unicast_link_local(),
    };
    usable.then_some(local)
}

impl BoundSockets {
    fn of(&mut self, v4: bool) -> &mut Option<Batched> {
        if v4 { &mut self.v4 } else { &mut self.v6 }
    }

    fn towards(&self, peer: SocketAddr) -> Option<&Batched> {
        if peer.is_ipv4() {
            self.v4.as_ref()
        } else {
            self.v6.as_ref()
        }
    }

    /// Where the outside reaches the tunnel, at most one address a family.
    #[must_use]
    pub fn public(&self) -> &[SocketAddr] {
        &self.public
    }

    /// Whether there is a socket of the peer's family.
    #[must_use]
    pub fn reaches(&self, peer: SocketAddr) -> bool {
        self.towards(peer).is_some()
    }

    /// Resolves when there may be something to receive.
    ///
    /// # Errors
    /// The runtime is ending.
    pub async fn readable(&self) -> io::Result<()> {
        match (&self.v4, &self.v6) {
            (Some(v4), Some(v6)) => {
                let (v4, v6) = (pin!(v4.io.readable()), pin!(v6.io.readable()));
                match select(v4, v6).await {
                    Either::Left((ready, _)) | Either::Right((ready, _)) => ready,
                }
            }
            (Some(only), None) | (None, Some(only)) => only.io.readable().await,
            (None, None) => std::future::pending().await,
        }
    }

    /// Resolves when there may be room to send to a peer.
    ///
    /// # Errors
    /// The runtime is ending.
    pub async fn writable(&self, peer: SocketAddr) -> io::Result<()> {
        match self.towards(peer) {
            Some(socket) => socket.io.writable().await,
            None => Ok(()),
        }
    }

    /// Hands every datagram of a batch of each socket to `each`, with where it came from.
    ///
    /// # Errors
    /// `WouldBlock`: there is none.
    pub fn receive(&self, mut each: impl FnMut(SocketAddr, &[u8])) -> io::Result<()> {
        let mut some = false;
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            match socket.receive(&mut each) {
                Ok(()) => some = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Of one peer or one datagram: nothing that ends the others.
                Err(_) => {}
            }
        }
        if some {
            Ok(())
        } else {
            Err(ErrorKind::WouldBlock.into())
        }
    }

    /// Sends datagrams, those of one size to one peer that follow each other in one call, and as many as some calls take. What cannot
    /// be sent is dropped.
    pub fn send(&self, datagrams: &[Addressed]) -> Sent {
        let mut sent = Sent::default();
        while let Some(first) = datagrams.get(sent.done)
            && sent.calls < CALLS
        {
            // No more than calls can take: there may be a hundred thousand.
            let rest = &datagrams[sent.done..];
            let rest = &rest[..rest.len().min(CALLS * MOST_SEGMENTS)];
            let same = |other: &&Addressed| other.peer.is_ipv4() == first.peer.is_ipv4();
            let count = rest.iter().take_while(same).count();
            let now = match self.towards(first.peer) {
                // Never an error: none is final.
                Some(socket) => socket
                    .send(&rest[..count], |datagram| datagram.peer, |_| false)
                    .unwrap_or_default(),
                None => Sent {
                    done: count,
                    dropped: count,
                    ..Sent::default()
                },
            };
            sent.done += now.done;
            sent.calls += now.calls;
            sent.dropped += now.dropped;
            sent.bytes += now.bytes;
            if now.done < count {
                break;
            }
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn loopback() -> Sources {
        Sources::new(&["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()])
    }

    fn peer(address: &str) -> StdSocket {
        let socket = StdSocket::bind((address, 0)).unwrap();
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        socket
    }

    //= connect-udp-bind §7 same-address
    #[tokio::test]
    async fn many_peers_of_both_families() {
        let bound = bind(&loopback(), &[]).unwrap();
        let peers = [peer("127.0.0.1"), peer("127.0.0.1"), peer("::1")];
        let addresses: Vec<_> = peers
            .iter()
            .map(|peer| peer.local_addr().unwrap())
            .collect();
        let payloads = [(0, "a"), (0, "b"), (1, "c"), (2, "dd"), (2, ""), (0, "e")];
        let datagrams: Vec<_> = payloads
            .iter()
            .map(|(number, payload)| Addressed {
                peer: addresses[*number],
                payload: Bytes::from_static(payload.as_bytes()),
            })
            .collect();
        for address in &addresses {
            assert!(bound.reaches(*address));
            bound.writable(*address).await.unwrap();
        }
        let sent = bound.send(&datagrams);
        assert_eq!((sent.done, sent.dropped), (payloads.len(), 0));
        let mut buffer = [0; 100];
        for (number, payload) in payloads {
            let (length, from) = peers[number].recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], payload.as_bytes());
            assert!(bound.public().contains(&from));
            peers[number].send_to(&buffer[..length], from).unwrap();
        }
        let mut arrived = Vec::new();
        while arrived.len() < payloads.len() {
            bound.readable().await.unwrap();
            let _ = bound.receive(|from, payload| arrived.push((from, payload.to_vec())));
        }
        for (number, payload) in payloads {
            let expected = (addresses[number], payload.as_bytes().to_vec());
            assert!(arrived.contains(&expected));
        }
    }

    #[tokio::test]
    async fn peers_that_take_turns_are_no_way_around_the_bound_of_calls() {
        let bound = bind(&loopback(), &[]).unwrap();
        let peers = [peer("127.0.0.1"), peer("::1")];
        let datagrams: Vec<_> = (0..1000)
            .map(|number| Addressed {
                peer: peers[number % 2].local_addr().unwrap(),
                payload: Bytes::from_static(b"a"),
            })
            .collect();
        for peer in &peers {
            bound.writable(peer.local_addr().unwrap()).await.unwrap();
        }
        let sent = bound.send(&datagrams);
        assert!((1..=CALLS).contains(&sent.calls), "{}", sent.calls);
        assert_eq!((sent.done, sent.dropped), (sent.calls, 0));
    }

    #[tokio::test]
    async fn addresses_that_the_outside_sees() {
        let outside = "203.0.113.7".parse().unwrap();
        let bound = bind(&loopback(), &[outside]).unwrap();
        assert_eq!(bound.public().len(), 1);
        assert_eq!(bound.public()[0].ip(), outside);
        let v6 = "[::1]:9".parse().unwrap();
        assert!(!bound.reaches(v6));
        let sent = bound.send(&[Addressed {
            peer: v6,
            payload: Bytes::new(),
        }]);
        assert_eq!((sent.done, sent.dropped), (1, 1));
    }

    #[tokio::test]
    async fn without_sources_there_is_an_address_all_the_same() {
        let bound = bind(&Sources::default(), &[]).unwrap();
        assert!(!bound.public().is_empty());
        assert!(
            bound
                .public()
                .iter()
                .all(|at| !at.ip().is_unspecified() && at.port() > 0)
        );
    }

    #[tokio::test]
    async fn addresses_of_other_machines_cannot_be_bound() {
        let sources = Sources::new(&["192.0.2.1".parse().unwrap()]);
        let error = bind(&sources, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    }
}
