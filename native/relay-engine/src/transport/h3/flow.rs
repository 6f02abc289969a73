//! HTTP datagrams of one request (RFC 9297 §2.1): those that came for it in QUIC DATAGRAM frames, and the way to send some.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use capsule_core::varint;

use super::datagram;
use crate::transport::quic;

/// Datagrams that wait for their tunnel to take them; the oldest make room for the newest.
const QUEUE: usize = 1024;
/// The same before the request was looked at: about what a round trip brings at the beginning of a connection.
const EARLY: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Meaning {
    /// The request was not looked at yet.
    #[default]
    Unknown,
    /// Datagrams are what the tunnel carries.
    Some,
    /// The request's protocol knows no datagrams.
    None,
}

/// Datagrams that came for a request.
#[derive(Default)]
pub struct Inbox {
    meaning: Cell<Meaning>,
    queue: RefCell<VecDeque<Bytes>>,
    waiting: Cell<Option<Waker>>,
    dropped: Cell<u64>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("queued", &self.queue.borrow().len())
            .finish_non_exhaustive()
    }
}

impl Inbox {
    /// Takes a datagram; `false`: it has no meaning here.
    //= rfc9298 §5 optimistic-datagrams
    pub(super) fn push(&self, datagram: Bytes) -> bool {
        let (most, datagram) = match self.meaning.get() {
            Meaning::None => return false,
            Meaning::Some => (QUEUE, datagram),
            // A copy: what waits for long must not keep the buffer that it was received in.
            Meaning::Unknown => (EARLY, Bytes::copy_from_slice(&datagram)),
        };
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= most {
            queue.pop_front();
            self.dropped.set(self.dropped.get() + 1);
        }
        queue.push_back(datagram);
        drop(queue);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
        true
    }

    /// The request was looked at; `false`: some came that it gives no meaning.
    pub(super) fn decide(&self, wanted: bool) -> bool {
        self.meaning
            .set(if wanted { Meaning::Some } else { Meaning::None });
        wanted || std::mem::take(&mut *self.queue.borrow_mut()).is_empty()
    }

    fn poll_take(&self, cx: &mut Context<'_>, into: &mut Vec<Bytes>) -> Poll<()> {
        let mut queue = self.queue.borrow_mut();
        if queue.is_empty() {
            self.waiting.set(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        into.extend(queue.drain(..));
        Poll::Ready(())
    }
}

/// A request's datagrams, both ways.
pub struct Flow {
    quic: quic::Connection,
    inbox: Rc<super::stream::Verdict>,
    /// The peer's SETTINGS_H3_DATAGRAM is 1.
    permitted: Rc<Cell<bool>>,
    prefix: [u8; varint::MAX_LEN],
    prefix_length: usize,
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow")
            .field("quic", &self.quic)
            .finish_non_exhaustive()
    }
}

impl Flow {
    /// Datagrams of the request on `stream`.
    pub(super) fn new(
        quic: quic::Connection,
        stream: u64,
        inbox: Rc<super::stream::Verdict>,
        permitted: Rc<Cell<bool>>,
    ) -> Self {
        let mut prefix = [0; varint::MAX_LEN];
        let prefix_length = datagram::header(stream, &mut prefix);
        Self {
            quic,
            inbox,
            permitted,
            prefix,
            prefix_length,
        }
    }

    /// Waits for datagrams that came, and appends all of them.
    pub async fn recv(&self, into: &mut Vec<Bytes>) {
        poll_fn(|cx| self.inbox.inbox().poll_take(cx, into)).await;
    }

    /// Datagrams that came and were dropped, because nobody took them in time.
    pub fn dropped(&self) -> u64 {
        self.inbox.inbox().dropped.get()
    }

    /// The longest HTTP datagram that fits the path now, in bytes; `None`: the peer takes none in QUIC DATAGRAM frames.
    //= rfc9297 §2.1.1 setting-before-frames
    pub fn room(&self) -> Option<usize> {
        if !self.permitted.get() {
            return None;
        }
        Some(
            self.quic
                .max_datagram_size()?
                .saturating_sub(self.prefix_length),
        )
    }

    /// A QUIC datagram with an HTTP datagram that begins with `front`.
    pub fn datagram(&self, front: &[u8], payload: &[u8]) -> Bytes {
        let prefix = &self.prefix[..self.prefix_length];
        [prefix, front, payload].concat().into()
    }

    /// Sends what [`datagram`](Self::datagram) made, all at once; how many were dropped for want of room in the connection's queue.
    pub fn send(&self, datagrams: &mut Vec<Bytes>) -> u64 {
        self.quic.send_datagrams(datagrams.drain(..))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn taken(inbox: &Inbox) -> Vec<Bytes> {
        let mut into = Vec::new();
        let _ = inbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut into);
        into
    }

    #[test]
    fn early_datagrams_wait_for_the_request() {
        let inbox = Inbox::default();
        for number in 0..EARLY + 3 {
            assert!(inbox.push(vec![number as u8].into()));
        }
        assert!(inbox.decide(true));
        let taken = taken(&inbox);
        assert_eq!((taken.len(), &taken[0][..]), (EARLY, &[3_u8][..]));
        assert_eq!(inbox.dropped.get(), 3);
        for _ in 0..QUEUE + 1 {
            assert!(inbox.push(Bytes::new()));
        }
        assert_eq!(inbox.dropped.get(), 4);
    }

    #[test]
    fn what_has_no_meaning_shows_before_and_after() {
        let inbox = Inbox::default();
        assert!(inbox.decide(false));
        assert!(!inbox.push(Bytes::new()));
        let inbox = Inbox::default();
        inbox.push(Bytes::new());
        assert!(!inbox.decide(false));
        assert!(taken(&inbox).is_empty());
    }
}
