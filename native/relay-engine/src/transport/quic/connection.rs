//! One connection: its handle, and what its driver and its streams share.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{ConnectionError, ConnectionHandle, Dir, Event, StreamEvent, StreamId, VarInt};
use rustc_hash::FxHashMap;
use rustls_pki_types::CertificateDer;

use super::endpoint::Shared;
use super::stream::{RecvStream, SendStream};
use super::turns::Turns;
use super::{SEND_WINDOW, UNSENT};

/// A connection. It is closed when the last handle is gone, streams included.
#[derive(Clone)]
pub struct Connection(Rc<Handle>);

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.id()).finish()
    }
}

/// What connections and streams hold: the last one closes.
pub(super) struct Handle(pub(super) Rc<Inner>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close(VarInt::from_u32(0), b"");
    }
}

/// A connection, as its endpoint holds it.
pub(super) struct Inner {
    pub(super) endpoint: Rc<Shared>,
    pub(super) handle: ConnectionHandle,
    /// In the driver's queue.
    pub(super) queued: Cell<bool>,
    /// The earliest of its entries among the endpoint's timers that counts.
    pub(super) armed: Cell<Option<Instant>>,
    /// Turns that were given since it last sent.
    pub(super) gathered: Cell<u8>,
    pub(super) state: RefCell<State>,
}

/// The protocol's state, and who waits for which part of it.
pub(super) struct State {
    pub(super) proto: quinn_proto::Connection,
    pub(super) error: Option<ConnectionError>,
    pub(super) turns: Turns,
    pub(super) readers: FxHashMap<StreamId, Waker>,
    pub(super) stopped: FxHashMap<StreamId, Waker>,
    connected: bool,
    connecting: Option<Waker>,
    accepting: [Option<Waker>; 2],
    opening: [Vec<Waker>; 2],
    datagram: Option<Waker>,
}

fn wake(waiting: &mut Option<Waker>) {
    if let Some(waker) = waiting.take() {
        waker.wake();
    }
}

fn wake_all(waiting: &mut FxHashMap<StreamId, Waker>) {
    for (_, waker) in waiting.drain() {
        waker.wake();
    }
}

impl State {
    pub(super) fn new(proto: quinn_proto::Connection) -> Self {
        Self {
            proto,
            error: None,
            turns: Turns::default(),
            readers: FxHashMap::default(),
            stopped: FxHashMap::default(),
            connected: false,
            connecting: None,
            accepting: [None, None],
            opening: [Vec::new(), Vec::new()],
            datagram: None,
        }
    }

    /// Tells those who wait what happened; whether one of them was given the turn to write.
    pub(super) fn tell(&mut self) -> bool {
        let window = self.proto.congestion_state().window();
        let window = (window + UNSENT.max(window / 4)).min(SEND_WINDOW);
        self.proto.set_send_window(window);
        while let Some(event) = self.proto.poll() {
            match event {
                Event::Connected => {
                    self.connected = true;
                    wake(&mut self.connecting);
                }
                Event::ConnectionLost { reason } => self.lose(reason),
                Event::DatagramReceived => wake(&mut self.datagram),
                Event::HandshakeDataReady | Event::DatagramsUnblocked => {}
                Event::Stream(event) => match event {
                    StreamEvent::Opened { dir } => wake(&mut self.accepting[dir as usize]),
                    StreamEvent::Readable { id } => {
                        if let Some(waker) = self.readers.remove(&id) {
                            waker.wake();
                        }
                    }
                    StreamEvent::Writable { id } => self.turns.writable(id),
                    StreamEvent::Finished { id } => self.tell_stopped(id),
                    StreamEvent::Stopped { id, .. } => {
                        self.tell_stopped(id);
                        self.turns.summon(id);
                    }
                    StreamEvent::Available { dir } => {
                        for waker in mem::take(&mut self.opening[dir as usize]) {
                            waker.wake();
                        }
                    }
                },
            }
        }
        // One turn a round: whoever has it writes before the driver comes back.
        let next = self.turns.next();
        next.map(Waker::wake_by_ref).is_some()
    }

    fn tell_stopped(&mut self, id: StreamId) {
        if let Some(waker) = self.stopped.remove(&id) {
            waker.wake();
        }
    }

    fn lose(&mut self, reason: ConnectionError) {
        if self.error.is_some() {
            return;
        }
        self.error = Some(reason);
        wake(&mut self.connecting);
        wake(&mut self.datagram);
        self.accepting.iter_mut().for_each(wake);
        for waker in self.opening.iter_mut().flat_map(mem::take) {
            waker.wake();
        }
        self.turns.end();
        wake_all(&mut self.readers);
        wake_all(&mut self.stopped);
    }
}

impl Inner {
    /// Has the driver look at the connection.
    pub(super) fn touch(self: &Rc<Self>) {
        self.endpoint.touch(self);
    }

    fn close(self: &Rc<Self>, code: VarInt, reason: &[u8]) {
        let mut state = self.state.borrow_mut();
        if state.error.is_none() {
            let reason = Bytes::copy_from_slice(reason);
            state.proto.close(Instant::now(), code, reason);
            state.lose(ConnectionError::LocallyClosed);
            drop(state);
            self.touch();
        }
    }
}

impl Connection {
    /// A number that no other connection has at the same time.
    pub fn id(&self) -> usize {
        Rc::as_ptr(&self.0.0) as usize
    }

    /// Where the peer is.
    pub fn remote_address(&self) -> SocketAddr {
        self.state().borrow().proto.remote_address()
    }

    /// The peer's certificates, its own first, if it showed any.
    pub fn peer_certificates(&self) -> Option<Vec<CertificateDer<'static>>> {
        let identity = self
            .state()
            .borrow()
            .proto
            .crypto_session()
            .peer_identity()?;
        identity.downcast().ok().map(|certificates| *certificates)
    }

    /// Why the connection is no more, if so.
    pub fn close_reason(&self) -> Option<ConnectionError> {
        self.state().borrow().error.clone()
    }

    /// Closes the connection; everybody who waits on it is told.
    pub fn close(&self, code: VarInt, reason: &[u8]) {
        self.0.0.close(code, reason);
    }

    /// Lets the peer have so many bidirectional streams open.
    pub fn set_max_concurrent_bi_streams(&self, count: VarInt) {
        let mut state = self.state().borrow_mut();
        state.proto.set_max_concurrent_streams(Dir::Bi, count);
        drop(state);
        self.0.0.touch();
    }

    /// Opens a stream that only this side writes to, once the peer permits it.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn open_uni(&self) -> Result<SendStream, ConnectionError> {
        let id = poll_fn(|cx| self.poll_open(cx, Dir::Uni)).await?;
        Ok(SendStream::new(self.0.clone(), id))
    }

    /// Opens a stream that both sides write to, once the peer permits it.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        let id = poll_fn(|cx| self.poll_open(cx, Dir::Bi)).await?;
        Ok(self.both(id))
    }

    /// The next stream that the peer opened and only it writes to. One task at a time.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn accept_uni(&self) -> Result<RecvStream, ConnectionError> {
        let id = poll_fn(|cx| self.poll_accept(cx, Dir::Uni)).await?;
        Ok(RecvStream::new(self.0.clone(), id))
    }

    /// The next stream that the peer opened and both write to. One task at a time.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        let id = poll_fn(|cx| self.poll_accept(cx, Dir::Bi)).await?;
        Ok(self.both(id))
    }

    /// The next QUIC datagram. One task at a time.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn read_datagram(&self) -> Result<Bytes, ConnectionError> {
        poll_fn(|cx| {
            let mut state = self.state().borrow_mut();
            if let Some(datagram) = state.proto.datagrams().recv() {
                return Poll::Ready(Ok(datagram));
            }
            if let Some(error) = &state.error {
                return Poll::Ready(Err(error.clone()));
            }
            state.datagram = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// As [`read_datagram`](Self::read_datagram), and all others that are at hand.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn read_datagrams(&self, into: &mut Vec<Bytes>) -> Result<(), ConnectionError> {
        into.push(self.read_datagram().await?);
        let mut state = self.state().borrow_mut();
        while let Some(datagram) = state.proto.datagrams().recv() {
            into.push(datagram);
        }
        Ok(())
    }

    /// The longest QUIC datagram that fits the path now, in bytes; `None`: the peer takes none.
    pub fn max_datagram_size(&self) -> Option<usize> {
        self.state().borrow_mut().proto.datagrams().max_size()
    }

    /// Queues QUIC datagrams; the oldest that were not sent make room. How many were dropped for it, or because they are too long.
    pub fn send_datagrams(&self, datagrams: impl Iterator<Item = Bytes>) -> u64 {
        let mut dropped = 0;
        let mut state = self.state().borrow_mut();
        if state.error.is_some() {
            return datagrams.count() as u64;
        }
        let mut queue = state.proto.datagrams();
        for datagram in datagrams {
            let full = queue.send_buffer_space() < datagram.len();
            let queued = queue.send(datagram, true).is_ok();
            dropped += u64::from(full || !queued);
        }
        drop(state);
        self.0.0.touch();
        dropped
    }

    fn state(&self) -> &RefCell<State> {
        &self.0.0.state
    }

    fn both(&self, id: StreamId) -> (SendStream, RecvStream) {
        let send = SendStream::new(self.0.clone(), id);
        (send, RecvStream::new(self.0.clone(), id))
    }

    fn poll_open(&self, cx: &mut Context<'_>, dir: Dir) -> Poll<Result<StreamId, ConnectionError>> {
        let mut state = self.state().borrow_mut();
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone()));
        }
        if let Some(id) = state.proto.streams().open(dir) {
            return Poll::Ready(Ok(id));
        }
        state.opening[dir as usize].push(cx.waker().clone());
        Poll::Pending
    }

    fn poll_accept(
        &self,
        cx: &mut Context<'_>,
        dir: Dir,
    ) -> Poll<Result<StreamId, ConnectionError>> {
        let mut state = self.state().borrow_mut();
        if let Some(id) = state.proto.streams().accept(dir) {
            return Poll::Ready(Ok(id));
        }
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone()));
        }
        state.accepting[dir as usize] = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A connection whose handshake is under way; resolves to the connection once it is complete. Dropped before, it is given up.
pub struct Connecting(Rc<Handle>);

impl Connecting {
    pub(super) fn new(inner: Rc<Inner>) -> Self {
        Self(Rc::new(Handle(inner)))
    }
}

impl Future for Connecting {
    type Output = Result<Connection, ConnectionError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.0.state.borrow_mut();
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone()));
        }
        if state.connected {
            return Poll::Ready(Ok(Connection(self.0.clone())));
        }
        state.connecting = Some(cx.waker().clone());
        Poll::Pending
    }
}
