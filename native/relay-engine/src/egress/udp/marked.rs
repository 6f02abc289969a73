//! Connected sockets that read and set the DSCP and ECN bits of packets: one message a call, as marks go with messages.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd as _;

use bytes::Bytes;
use capsule_core::ecn_dscp::Marks;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use socket2::SockRef;
use tokio::io::Interest;

use super::connected::is_final;
use super::{BATCH, CALLS, DatagramSocket, MESSAGE, MESSAGES, Sent, past_an_earlier_fault};

/// Room for what the system tells beside a message: marks, the size of joined datagrams, and where it arrived.
const CONTROL: usize = 128;

/// A payload and the marks of its packet.
#[derive(Debug, Clone)]
pub struct MarkedPayload {
    /// DSCP and ECN bits.
    pub marks: Marks,
    /// The payload.
    pub payload: Bytes,
}

impl AsRef<[u8]> for MarkedPayload {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

/// A connected socket whose packets' marks are seen to.
#[derive(Debug)]
pub struct MarkedSocket {
    socket: DatagramSocket,
    v6: bool,
}

impl MarkedSocket {
    /// Has the system tell the marks of what arrives.
    ///
    /// # Errors
    /// The socket as it was: its system cannot do that.
    //= connect-udp-ecn-dscp §4.1 able-or-not-enabled
    pub fn new(socket: DatagramSocket) -> Result<Self, DatagramSocket> {
        let v6 = socket.peer.is_ipv6();
        let io = SockRef::from(&socket.socket.io);
        let told = if v6 {
            io.set_recv_tclass_v6(true)
                .and_then(|()| io.set_tclass_v6(0))
        } else {
            io.set_recv_tos_v4(true).and_then(|()| io.set_tos_v4(0))
        };
        match told {
            Ok(()) => Ok(Self { socket, v6 }),
            Err(_) => Err(socket),
        }
    }

    /// Resolves when there may be something to receive.
    ///
    /// # Errors
    /// The target is not there any more.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Resolves when there may be room to send.
    ///
    /// # Errors
    /// The runtime is ending.
    pub async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    /// Hands datagrams that have arrived to `each`, with their marks.
    ///
    /// # Errors
    /// `WouldBlock`: there is none. Others: the target is not there any more.
    pub fn receive(&self, mut each: impl FnMut(Marks, &[u8])) -> io::Result<()> {
        MESSAGES.with_borrow_mut(|messages| {
            if messages.len() < MESSAGE {
                messages.resize(MESSAGE, 0);
            }
            let memory = &mut messages[..MESSAGE];
            let mut control = cmsg_space!([u8; CONTROL]);
            for received in 0..BATCH {
                match self.receive_one(memory, &mut control) {
                    Ok((marks, 0, _)) => each(marks, &[]),
                    Ok((marks, length, stride)) => {
                        for datagram in memory[..length].chunks(stride.max(1)) {
                            each(marks, datagram);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock && received > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }

    /// One message: its marks, its bytes, and the size of the datagrams that the kernel joined to it, which have the same marks.
    fn receive_one(
        &self,
        memory: &mut [u8],
        control: &mut [u8],
    ) -> io::Result<(Marks, usize, usize)> {
        let io = &self.socket.socket.io;
        past_an_earlier_fault(|| {
            io.try_io(Interest::READABLE, || {
                let mut slices = [IoSliceMut::new(memory)];
                let flags = MsgFlags::empty();
                let message = recvmsg::<()>(io.as_raw_fd(), &mut slices, Some(control), flags)?;
                let (mut marks, mut stride) = (Marks::NONE, message.bytes);
                for told in message.cmsgs()? {
                    match told {
                        ControlMessageOwned::Ipv4Tos(octet) => marks = Marks(octet),
                        ControlMessageOwned::Ipv6TClass(octet) => {
                            marks = Marks(u8::try_from(octet).unwrap_or_default());
                        }
                        ControlMessageOwned::UdpGroSegments(size) => {
                            stride = usize::try_from(size).unwrap_or(stride);
                        }
                        _ => {}
                    }
                }
                Ok((marks, message.bytes, stride))
            })
        })
    }

    /// Sends datagrams with their marks, as many as some calls take.
    ///
    /// # Errors
    /// The target is not there any more.
    pub fn send(&self, datagrams: &[MarkedPayload]) -> io::Result<Sent> {
        let mut sent = Sent::default();
        for datagram in datagrams.iter().take(CALLS) {
            sent.calls += 1;
            match self.send_one(datagram) {
                Ok(()) => sent.bytes += datagram.payload.len(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if is_final(&error) => return Err(error),
                //= rfc9298 §3.1 oversize-dropped
                Err(_) => sent.dropped += 1,
            }
            sent.done += 1;
        }
        Ok(sent)
    }

    //= connect-udp-ecn-dscp §4.1 context-sets-marks
    fn send_one(&self, datagram: &MarkedPayload) -> io::Result<()> {
        let io = &self.socket.socket.io;
        let octet = datagram.marks.0;
        let class = i32::from(octet);
        let marks = if self.v6 {
            ControlMessage::Ipv6TClass(&class)
        } else {
            ControlMessage::Ipv4Tos(&octet)
        };
        past_an_earlier_fault(|| {
            io.try_io(Interest::WRITABLE, || {
                let slices = [IoSlice::new(&datagram.payload)];
                let flags = MsgFlags::empty();
                sendmsg::<()>(io.as_raw_fd(), &slices, &[marks], flags, None)?;
                Ok(())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::super::tcp::Sources;
    use super::*;

    /// Two marked sockets that talk to each other.
    fn pair(address: &str) -> [MarkedSocket; 2] {
        let free = || std::net::UdpSocket::bind((address, 0)).unwrap();
        let (one, other) = (free(), free());
        let (at, there) = (one.local_addr().unwrap(), other.local_addr().unwrap());
        one.connect(there).unwrap();
        other.connect(at).unwrap();
        [(one, there), (other, at)].map(|(socket, peer)| {
            let socket = DatagramSocket::over(socket.into(), peer).unwrap();
            MarkedSocket::new(socket).unwrap()
        })
    }

    //= connect-udp-ecn-dscp §4.1 context-sets-marks
    #[tokio::test]
    async fn every_mark_arrives_as_it_was_set() {
        for address in ["127.0.0.1", "::1"] {
            let [from, to] = pair(address);
            let given: Vec<MarkedPayload> = (0..=u8::MAX)
                .map(|octet| MarkedPayload {
                    marks: Marks(octet),
                    payload: vec![octet; usize::from(octet)].into(),
                })
                .collect();
            let mut done = 0;
            let mut arrived = Vec::new();
            while arrived.len() < given.len() {
                if done < given.len() {
                    from.writable().await.unwrap();
                    done += from.send(&given[done..]).unwrap().done;
                }
                to.readable().await.unwrap();
                let _ = to.receive(|marks, payload| arrived.push((marks, payload.to_vec())));
            }
            for (given, (marks, payload)) in given.iter().zip(arrived) {
                assert_eq!((given.marks, &given.payload[..]), (marks, &payload[..]));
            }
        }
    }

    #[tokio::test]
    async fn what_the_kernel_joined_is_taken_apart() {
        for (address, v6) in [("127.0.0.1", false), ("::1", true)] {
            let [from, to] = pair(address);
            let octet = 0xb9;
            let class = i32::from(octet);
            let marks = if v6 {
                ControlMessage::Ipv6TClass(&class)
            } else {
                ControlMessage::Ipv4Tos(&octet)
            };
            let joined: Vec<u8> = (0..10_u8).flat_map(|number| [number; 300]).collect();
            let messages = [marks, ControlMessage::UdpGsoSegments(&300)];
            let slices = [IoSlice::new(&joined[..2_920])];
            let socket = from.socket.socket.io.as_raw_fd();
            sendmsg::<()>(socket, &slices, &messages, MsgFlags::empty(), None).unwrap();
            let mut arrived = Vec::new();
            while arrived.len() < 10 {
                to.readable().await.unwrap();
                let _ = to.receive(|marks, payload| {
                    arrived.push((marks, payload[0], payload.len()));
                });
            }
            let length = |number| if number == 9 { 220 } else { 300 };
            let expected = (0..10).map(|number| (Marks(octet), number, length(number)));
            assert_eq!(arrived, expected.collect::<Vec<_>>());
        }
    }

    //= rfc9298 §3.1 oversize-dropped
    #[tokio::test]
    async fn what_is_too_long_is_dropped_alone() {
        let [from, to] = pair("127.0.0.1");
        let payload = |length| MarkedPayload {
            marks: Marks(1),
            payload: vec![7; length].into(),
        };
        from.writable().await.unwrap();
        let sent = from.send(&[payload(65_520), payload(65_508), payload(3)]);
        let sent = sent.unwrap();
        assert_eq!((sent.done, sent.dropped, sent.bytes), (3, 2, 3));
        to.readable().await.unwrap();
        let mut lengths = Vec::new();
        to.receive(|_, payload| lengths.push(payload.len()))
            .unwrap();
        assert_eq!(lengths, [3]);
    }

    //= connect-udp-ecn-dscp §4.1 able-or-not-enabled
    #[tokio::test]
    async fn a_system_that_cannot_gives_the_socket_back() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(target.local_addr().unwrap()).unwrap();
        // The options of IPv6 are none of this socket's.
        let six = "[::1]:9".parse().unwrap();
        let socket = DatagramSocket::over(socket.into(), six).unwrap();
        let socket = MarkedSocket::new(socket).unwrap_err();
        assert_eq!(socket.peer, six);
        assert!(socket.local_addr().unwrap().is_ipv4());
    }

    #[tokio::test]
    async fn nobody_at_the_other_end_is_told() {
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = gone.local_addr().unwrap();
        drop(gone);
        let socket = super::super::connect(&Sources::default(), target).unwrap();
        let socket = MarkedSocket::new(socket).unwrap();
        socket.writable().await.unwrap();
        let lone = MarkedPayload {
            marks: Marks::NONE,
            payload: Bytes::from_static(b"anybody?"),
        };
        socket.send(&[lone]).unwrap();
        assert!(is_final(&socket.readable().await.unwrap_err()));
    }
}
