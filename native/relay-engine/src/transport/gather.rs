//! Longer batches below QUIC. The stack hands over ten packets at a time; the kernel takes four times as many in one call for
//! little more, so full batches that follow each other are sent together. Nothing waits for longer than the stack's own turn.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::Notify;

/// Packets of a batch that are worth waiting for more.
const FULL: usize = 10;
/// Packets of one call.
const MOST: usize = 4 * FULL;
/// Bytes of one call: beyond it the kernel refuses, whatever the segments are.
const MOST_BYTES: usize = 65_507;

/// A UDP socket that sends full batches together.
#[derive(Debug)]
pub struct Gather {
    inner: Arc<dyn AsyncUdpSocket>,
    pending: Mutex<Pending>,
    due: Arc<Notify>,
}

/// Whole packets of one size to one place.
#[derive(Debug, Default)]
struct Pending {
    contents: Vec<u8>,
    segment: usize,
    way: Option<Way>,
}

/// What packets of one call have in common.
type Way = (SocketAddr, Option<EcnCodepoint>, Option<IpAddr>);

fn way(transmit: &Transmit<'_>) -> Way {
    (transmit.destination, transmit.ecn, transmit.src_ip)
}

/// Whether there is probably more to come.
fn is_full(transmit: &Transmit<'_>) -> bool {
    transmit
        .segment_size
        .is_some_and(|segment| transmit.contents.len() == FULL * segment)
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.contents.is_empty()
    }

    fn has_room(&self, bytes: usize) -> bool {
        let bytes = self.contents.len() + bytes;
        bytes <= MOST_BYTES && bytes <= MOST * self.segment
    }

    /// Whether the packets may leave in the same call. Only the last one may be shorter than the others.
    fn takes(&self, transmit: &Transmit<'_>) -> bool {
        let fits = match transmit.segment_size {
            Some(segment) => segment == self.segment,
            None => transmit.contents.len() <= self.segment,
        };
        fits && self.way == Some(way(transmit)) && self.has_room(transmit.contents.len())
    }

    fn append(&mut self, transmit: &Transmit<'_>) {
        if self.is_empty() {
            self.segment = transmit.segment_size.unwrap_or(transmit.contents.len());
            self.way = Some(way(transmit));
        }
        self.contents.extend_from_slice(transmit.contents);
    }
}

impl Gather {
    /// Sends through `inner`; must be called inside the worker's runtime.
    pub fn over(inner: Arc<dyn AsyncUdpSocket>) -> Arc<Self> {
        let due = Arc::new(Notify::new());
        let gather = Arc::new(Self {
            inner,
            pending: Mutex::default(),
            due: due.clone(),
        });
        tokio::spawn(flush_what_is_due(Arc::downgrade(&gather), due));
        gather
    }

    fn flush(&self, pending: &mut Pending) -> io::Result<()> {
        let Some((destination, ecn, src_ip)) = pending.way.filter(|_| !pending.is_empty()) else {
            return Ok(());
        };
        let sent = self.inner.try_send(&Transmit {
            destination,
            ecn,
            contents: &pending.contents,
            segment_size: Some(pending.segment),
            src_ip,
        });
        // What fails for good is lost, as packets are.
        if !matches!(&sent, Err(error) if error.kind() == ErrorKind::WouldBlock) {
            pending.contents.clear();
        }
        sent
    }

    fn flush_pending(&self) -> io::Result<()> {
        self.flush(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Gather {
    fn drop(&mut self) {
        self.due.notify_one();
    }
}

/// Sends what the stack has nothing to add to.
async fn flush_what_is_due(gather: Weak<Gather>, due: Arc<Notify>) {
    loop {
        due.notified().await;
        // The connection's task may be in the middle of its work: it goes first.
        tokio::task::yield_now().await;
        let Some(gather) = gather.upgrade() else {
            return;
        };
        let mut poller = gather.inner.clone().create_io_poller();
        while let Err(error) = gather.flush_pending() {
            if error.kind() != ErrorKind::WouldBlock
                || poll_fn(|cx| poller.as_mut().poll_writable(cx))
                    .await
                    .is_err()
            {
                break;
            }
        }
    }
}

impl AsyncUdpSocket for Gather {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let full = is_full(transmit);
        if !pending.is_empty() && !pending.takes(transmit) {
            self.flush(&mut pending)?;
        }
        if pending.is_empty() && !full {
            return self.inner.try_send(transmit);
        }
        pending.append(transmit);
        if !full || !pending.has_room(transmit.contents.len()) {
            match self.flush(&mut pending) {
                // It is taken all the same.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                sent => return sent,
            }
        }
        self.due.notify_one();
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::UdpSocket;
    use std::time::Duration;

    use quinn::Runtime;

    use super::*;

    const SEGMENT: usize = 300;

    fn receiver() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    }

    async fn gather() -> Arc<Gather> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let gather = Gather::over(quinn::TokioRuntime.wrap_udp_socket(socket).unwrap());
        let mut poller = gather.clone().create_io_poller();
        poll_fn(|cx| poller.as_mut().poll_writable(cx))
            .await
            .unwrap();
        gather
    }

    /// Packets whose first byte counts from `first`; the last one has `last` bytes.
    fn packets(first: u8, count: usize, last: usize) -> Vec<u8> {
        let mut contents = Vec::new();
        for number in 0..count {
            let length = if number + 1 == count { last } else { SEGMENT };
            contents.extend(std::iter::repeat_n(first + number as u8, length));
        }
        contents
    }

    fn send(gather: &Gather, to: &UdpSocket, contents: &[u8], segment_size: Option<usize>) {
        let transmit = Transmit {
            destination: to.local_addr().unwrap(),
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        };
        gather.try_send(&transmit).unwrap();
    }

    /// First byte and length of the next packets.
    fn arrived(at: &UdpSocket, count: usize) -> Vec<(u8, usize)> {
        let mut buffer = [0; 2000];
        (0..count)
            .map(|_| {
                let length = at.recv(&mut buffer).unwrap();
                (buffer[0], length)
            })
            .collect()
    }

    #[tokio::test]
    async fn packets_arrive_as_they_were_and_in_order() {
        let (gather, one, other) = (gather().await, receiver(), receiver());
        let batch = |first| packets(first, FULL, SEGMENT);
        // Five full batches, a shorter one with a short end; then a full one, cut off by a packet to somebody else, and one
        // with larger packets.
        for first in [0, 10, 20, 30, 40] {
            send(&gather, &one, &batch(first), Some(SEGMENT));
        }
        send(&gather, &one, &packets(50, 3, 70), Some(SEGMENT));
        send(&gather, &one, &batch(60), Some(SEGMENT));
        send(&gather, &other, &[200; 30], None);
        send(&gather, &one, &batch(70), Some(SEGMENT));
        send(&gather, &one, &[80; SEGMENT + 100], None);
        send(&gather, &one, &batch(90), Some(SEGMENT));
        send(&gather, &one, &[100; 44], None);
        let mut expected: Vec<_> = (0..52).map(|number| (number, SEGMENT)).collect();
        expected.push((52, 70));
        expected.extend((60..80).map(|number| (number, SEGMENT)));
        expected.push((80, SEGMENT + 100));
        expected.extend((90..100).map(|number| (number, SEGMENT)));
        expected.push((100, 44));
        assert_eq!(arrived(&one, expected.len()), expected);
        assert_eq!(arrived(&other, 1), [(200, 30)]);
    }

    #[tokio::test]
    async fn a_full_batch_does_not_wait_for_another() {
        let (gather, to) = (gather().await, receiver());
        for round in 0..3 {
            send(
                &gather,
                &to,
                &packets(round * 10, FULL, SEGMENT),
                Some(SEGMENT),
            );
            to.set_nonblocking(true).unwrap();
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            // Without the network in between, what left is there.
            let expected: Vec<_> = (0..10)
                .map(|number| (round * 10 + number, SEGMENT))
                .collect();
            assert_eq!(arrived(&to, FULL), expected);
        }
    }
}
