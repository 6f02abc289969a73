//! The UDP socket below an endpoint: batches in both directions.

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSliceMut};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use quinn_proto::{EcnCodepoint, Transmit};
use quinn_udp::{RecvMeta, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::sys::reusable::{Reusable, SIZE};

/// Messages taken by one call; each may be many datagrams that the kernel joined.
const BATCH: usize = 8;
/// Receive buffers of a socket. What is received stays in them until it is read; while all are in use, datagrams are copied out.
const BUFFERS: usize = 32;
/// Bytes of one send call: beyond it the kernel refuses, whatever the segments are.
const MOST_BYTES: usize = 65_507;
/// Segments that kernels take in one call.
const MOST_SEGMENTS: usize = 64;

/// What one message of a receive call holds: datagrams of `meta.stride` bytes, the last one perhaps shorter.
pub(super) type Received = (RecvMeta, BytesMut);

pub(super) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    buffers: RefCell<Vec<Reusable>>,
    /// For when all others are in use.
    last_resort: RefCell<Vec<u8>>,
}

impl Socket {
    /// Must be called inside a runtime.
    pub(super) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self {
            io: UdpSocket::from_std(socket)?,
            state,
            buffers: RefCell::default(),
            last_resort: RefCell::default(),
        })
    }

    pub(super) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// Datagrams of `mtu` bytes that may leave in one call.
    pub(super) fn segments(&self, mtu: u16) -> usize {
        let most = self.state.max_gso_segments().min(MOST_SEGMENTS);
        most.min(MOST_BYTES / usize::from(mtu.max(1))).max(1)
    }

    /// Receives a batch behind what is in `into`. `true`: there may be more at once.
    pub(super) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        into: &mut Vec<Received>,
    ) -> Poll<io::Result<bool>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            match self.io.try_io(Interest::READABLE, || self.receive(into)) {
                Ok(full) => {
                    if !full {
                        // The queue was empty: the next datagram is an event of its own, so there is no need to ask again.
                        let _ = self.io.try_io(Interest::READABLE, || {
                            Err::<(), _>(ErrorKind::WouldBlock.into())
                        });
                    }
                    return Poll::Ready(Ok(full));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn receive(&self, into: &mut Vec<Received>) -> io::Result<bool> {
        let mut buffers = self.buffers.borrow_mut();
        let mut slices: [IoSliceMut<'_>; BATCH] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let mut lenders = [0; BATCH];
        let mut found = 0;
        if buffers.is_empty() {
            buffers.resize_with(BATCH, Reusable::default);
        } else if buffers.len() < BUFFERS
            && buffers.iter_mut().all(|buffer| buffer.whole().is_none())
        {
            buffers.push(Reusable::default());
        }
        for (index, buffer) in buffers.iter_mut().enumerate() {
            if found == BATCH {
                break;
            }
            if let Some(memory) = buffer.whole() {
                slices[found] = IoSliceMut::new(memory);
                lenders[found] = index;
                found += 1;
            }
        }
        let mut meta = [RecvMeta::default(); BATCH];
        if found == 0 {
            let mut memory = self.last_resort.borrow_mut();
            memory.resize(SIZE, 0);
            let mut slices = [IoSliceMut::new(&mut memory)];
            let count = self.recv(&mut slices, &mut meta[..1])?;
            if count == 1 {
                into.push((meta[0], BytesMut::from(&memory[..meta[0].len])));
            }
            return Ok(true);
        }
        let count = self.recv(&mut slices[..found], &mut meta[..found])?;
        for (meta, lender) in meta.into_iter().zip(lenders).take(count) {
            into.push((meta, buffers[lender].lend(meta.len)));
        }
        Ok(count == found)
    }

    fn recv(&self, slices: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.recv((&self.io).into(), slices, meta)
    }

    /// Sends; what fails for good is lost, as datagrams are.
    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        transmit: &Transmit,
        contents: &[u8],
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.io.poll_send_ready(cx))?;
            match self.try_send(transmit, contents) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    pub(super) fn try_send(&self, transmit: &Transmit, contents: &[u8]) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(outgoing),
            contents: &contents[..transmit.size],
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        self.io.try_io(Interest::WRITABLE, || {
            self.state.send((&self.io).into(), &transmit)
        })
    }
}

fn outgoing(mark: EcnCodepoint) -> Option<quinn_udp::EcnCodepoint> {
    quinn_udp::EcnCodepoint::from_bits(mark as u8)
}

/// The mark that a message arrived with.
pub(super) fn incoming(meta: &RecvMeta) -> Option<EcnCodepoint> {
    meta.ecn
        .and_then(|mark| EcnCodepoint::from_bits(mark as u8))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::poll_fn;
    use std::net::Ipv4Addr;

    use super::*;

    fn bound() -> std::net::UdpSocket {
        std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    #[tokio::test]
    async fn a_batch_arrives_as_the_datagrams_it_was() {
        let (from, to) = (bound(), bound());
        let destination = to.local_addr().unwrap();
        let (from, to) = (Socket::new(from).unwrap(), Socket::new(to).unwrap());
        let contents: Vec<u8> = (0..10_u8).flat_map(|number| [number; 300]).collect();
        let count = from.segments(300).min(10);
        let transmit = Transmit {
            destination,
            ecn: None,
            size: (count - 1) * 300 + 20,
            segment_size: Some(300),
            src_ip: None,
        };
        poll_fn(|cx| from.poll_send(cx, &transmit, &contents))
            .await
            .unwrap();
        let mut arrived = Vec::new();
        while arrived.len() < count {
            let mut received = Vec::new();
            poll_fn(|cx| to.poll_recv(cx, &mut received)).await.unwrap();
            for (meta, data) in received {
                arrived.extend(data.chunks(meta.stride).map(|one| (one[0], one.len())));
            }
        }
        let mut expected: Vec<_> = (0..count).map(|number| (number as u8, 300)).collect();
        expected[count - 1].1 = 20;
        assert_eq!(arrived, expected);
    }

    /// More is held than there are buffers.
    #[tokio::test]
    async fn what_is_held_does_not_keep_more_from_arriving() {
        let (from, to) = (bound(), bound());
        from.connect(to.local_addr().unwrap()).unwrap();
        let to = Socket::new(to).unwrap();
        let mut held = Vec::new();
        for number in 0..2 * BUFFERS {
            from.send(&[number as u8; 5]).unwrap();
            let before = held.len();
            while held.len() == before {
                poll_fn(|cx| to.poll_recv(cx, &mut held)).await.unwrap();
            }
        }
        assert_eq!(held.len(), 2 * BUFFERS);
        for (number, (meta, data)) in held.iter().enumerate() {
            assert_eq!((meta.len, &data[..]), (5, &[number as u8; 5][..]));
        }
        assert!(to.buffers.borrow().len() <= BUFFERS);
    }
}
