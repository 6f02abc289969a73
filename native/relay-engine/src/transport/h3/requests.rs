//! The requests of a connection that are open, and the datagrams that come for them (RFC 9297 §2.1).

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use bytes::{Buf as _, Bytes};

use super::code::{Code, Fault};
use super::datagram;
use super::frame::Side;
use super::stream::Verdict;

/// Datagrams of a connection that wait for the requests they belong to.
const EARLY: usize = 32;

/// What a connection knows of its requests.
pub struct Requests {
    side: Side,
    open: RefCell<HashMap<u64, Rc<Verdict>>>,
    /// Datagrams of requests that are still on their way.
    early: RefCell<VecDeque<(u64, Bytes)>>,
    next: Cell<u64>,
    /// The peer takes HTTP datagrams in QUIC DATAGRAM frames.
    permitted: Rc<Cell<bool>>,
}

impl Requests {
    /// Of a connection without any.
    pub fn new(side: Side) -> Self {
        Self {
            side,
            open: RefCell::default(),
            early: RefCell::default(),
            next: Cell::new(0),
            permitted: Rc::default(),
        }
    }

    /// A request on `stream` begins; what came for it waits there.
    pub fn open(&self, stream: u64) -> Rc<Verdict> {
        self.next.set(self.next.get().max(stream + 4));
        let verdict = Rc::new(Verdict::default());
        //= rfc9297 §2.1 datagram-unknown-stream
        self.early.borrow_mut().retain_mut(|(of, datagram)| {
            if *of == stream {
                verdict.inbox().push(std::mem::take(datagram));
            }
            *of > stream
        });
        self.open.borrow_mut().insert(stream, verdict.clone());
        verdict
    }

    /// A request is over; whether it was the last one.
    pub fn close(&self, stream: u64) -> bool {
        let mut open = self.open.borrow_mut();
        open.remove(&stream);
        open.is_empty()
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open.borrow().len()
    }

    /// The stream of the next request.
    pub fn next(&self) -> u64 {
        self.next.get()
    }

    /// Whether the peer takes HTTP datagrams in QUIC DATAGRAM frames; until its SETTINGS arrived it does not.
    pub const fn permitted(&self) -> &Rc<Cell<bool>> {
        &self.permitted
    }

    /// A QUIC datagram arrived: for a request, or for one that is still on its way.
    ///
    /// # Errors
    /// H3_DATAGRAM_ERROR for the connection, if no stream can be meant.
    pub fn datagram(&self, mut frame: Bytes) -> Result<(), Fault> {
        let (stream, start) = datagram::parse(&frame)?;
        frame.advance(start);
        if let Some(verdict) = self.open.borrow().get(&stream) {
            //= rfc9297 §2 datagram-without-meaning
            if !verdict.inbox().push(frame) {
                verdict.condemn(Code::DATAGRAM_ERROR);
            }
            return Ok(());
        }
        // Who opens the streams knows that none is on its way.
        //= rfc9297 §2.1 datagram-unknown-stream
        //= rfc9297 §2.1 datagram-after-close
        if self.side == Side::Server && stream >= self.next.get() {
            let mut early = self.early.borrow_mut();
            if early.len() >= EARLY {
                early.pop_front();
            }
            // A copy: what waits for long must not keep the buffer that it was received in.
            early.push_back((stream, Bytes::copy_from_slice(&frame)));
        }
        Ok(())
    }
}
