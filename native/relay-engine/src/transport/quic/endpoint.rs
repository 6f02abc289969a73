//! One UDP socket, its connections, and the task that drives them.
//!
//! The task receives batches and hands each datagram to its connection in place, sees to timers, then lets every connection that
//! something happened to tell its waiters and send. Connections and streams only mark what they touched, so that a turn of the task
//! covers all that a turn of the runtime brought.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, ConnectError, ConnectionError, ConnectionHandle, DatagramEvent, EndpointConfig,
    ServerConfig, Transmit,
};
use quinn_udp::RecvMeta;
use socket2::SockRef;
use tokio::task::spawn_local;
use tokio::time::{Sleep, sleep_until};

use super::connection::{Connecting, Inner, State};
use super::socket::{self, Received, Socket};

/// Receive calls of one turn, so that tunnels get theirs.
const RECEIVES: usize = 2;
/// How long what was received may take before tunnels get their turn: a batch can hold a hundred thousand tiny frames.
const TURN: Duration = Duration::from_millis(1);
/// Send calls for one connection in one turn.
const SENDS: usize = 4;
/// Turns to write that are given before what was written is sent: packets of several chunks fill batches better than those of each.
const GATHERED: u8 = 3;

/// Receive and send buffer asked for a client's socket; the kernel may give less.
const KERNEL_BUFFER: usize = 4 << 20;

/// An endpoint. Its task ends when the last handle and all connections are gone.
#[derive(Clone)]
pub struct Endpoint(Rc<Owner>);

struct Owner(Rc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.owned.set(false);
        self.0.wake();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").finish_non_exhaustive()
    }
}

/// What the handles, the connections and the task share.
pub(super) struct Shared {
    proto: RefCell<quinn_proto::Endpoint>,
    socket: Socket,
    /// By handle.
    connections: RefCell<Vec<Option<Rc<Inner>>>>,
    open: Cell<usize>,
    /// Connections that something happened to.
    touched: RefCell<VecDeque<Rc<Inner>>>,
    /// When connections want to be looked at at the latest, one entry each.
    timers: RefCell<BTreeSet<(Instant, usize)>>,
    incoming: RefCell<VecDeque<quinn_proto::Incoming>>,
    accepting: Cell<Option<Waker>>,
    idle: RefCell<Vec<Waker>>,
    /// The task's, while it waits.
    driver: Cell<Option<Waker>>,
    owned: Cell<bool>,
    /// What the protocol writes packets to.
    packets: RefCell<Vec<u8>>,
}

impl Endpoint {
    /// An endpoint on `socket`, which accepts connections if there is a `server`. Must be called inside a `LocalSet`.
    ///
    /// # Errors
    /// The socket's options cannot be set.
    pub fn new(
        socket: std::net::UdpSocket,
        config: EndpointConfig,
        server: Option<ServerConfig>,
    ) -> io::Result<Self> {
        let socket = Socket::new(socket)?;
        let discovery = !socket.may_fragment();
        let server = server.map(Arc::new);
        let shared = Rc::new(Shared {
            proto: RefCell::new(quinn_proto::Endpoint::new(
                Arc::new(config),
                server,
                discovery,
                None,
            )),
            socket,
            connections: RefCell::default(),
            open: Cell::new(0),
            touched: RefCell::default(),
            timers: RefCell::default(),
            incoming: RefCell::default(),
            accepting: Cell::default(),
            idle: RefCell::default(),
            driver: Cell::default(),
            owned: Cell::new(true),
            packets: RefCell::default(),
        });
        let mut driver = Driver {
            shared: shared.clone(),
            sleep: None,
            received: Vec::new(),
            unsent: None,
        };
        spawn_local(poll_fn(move |cx| driver.turn(cx)));
        Ok(Self(Rc::new(Owner(shared))))
    }

    /// An endpoint for connections to servers, bound to `local`.
    ///
    /// # Errors
    /// There is no such socket to be had.
    pub fn client(local: SocketAddr) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind(local)?;
        // As much as the system permits: datagrams of tunnels come at their own pace.
        let _ = SockRef::from(&socket).set_recv_buffer_size(KERNEL_BUFFER);
        let _ = SockRef::from(&socket).set_send_buffer_size(KERNEL_BUFFER);
        Self::new(socket, EndpointConfig::default(), None)
    }

    /// Begins a connection to `server`, which must have a certificate for `name`.
    ///
    /// # Errors
    /// Configuration and server do not go together.
    pub fn connect(
        &self,
        config: ClientConfig,
        server: SocketAddr,
        name: &str,
    ) -> Result<Connecting, ConnectError> {
        let shared = &self.0.0;
        let (handle, connection) =
            shared
                .proto
                .borrow_mut()
                .connect(Instant::now(), config, server, name)?;
        Ok(Connecting::new(shared.insert(handle, connection)))
    }

    /// The next connection that a client begins. One task at a time.
    pub async fn accept(&self) -> Incoming {
        let shared = &self.0.0;
        let incoming = poll_fn(|cx| match shared.incoming.borrow_mut().pop_front() {
            Some(incoming) => Poll::Ready(incoming),
            None => {
                shared.accepting.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await;
        Incoming {
            incoming: Some(incoming),
            shared: shared.clone(),
        }
    }

    /// Takes no more connections; those that nobody accepted yet are refused.
    pub fn stop_accepting(&self) {
        let shared = &self.0.0;
        shared.proto.borrow_mut().set_server_config(None);
        for incoming in std::mem::take(&mut *shared.incoming.borrow_mut()) {
            shared.refuse(incoming);
        }
    }

    /// Waits until there is no connection, not even one whose close might have to be repeated.
    pub async fn wait_idle(&self) {
        let shared = &self.0.0;
        poll_fn(|cx| {
            if shared.open.get() == 0 {
                return Poll::Ready(());
            }
            shared.idle.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A connection that a client has begun. Dropped, it is ignored.
pub struct Incoming {
    incoming: Option<quinn_proto::Incoming>,
    shared: Rc<Shared>,
}

impl Incoming {
    /// Whether the client has shown that it receives what is sent to its address.
    pub fn remote_address_validated(&self) -> bool {
        let incoming = self.incoming.as_ref();
        incoming.is_some_and(quinn_proto::Incoming::remote_address_validated)
    }

    /// Whether it may be sent a Retry.
    pub fn may_retry(&self) -> bool {
        let incoming = self.incoming.as_ref();
        incoming.is_some_and(quinn_proto::Incoming::may_retry)
    }

    /// Has the client show that it receives what is sent to its address.
    pub fn retry(mut self) {
        let Some(incoming) = self.incoming.take() else {
            return;
        };
        let shared = &self.shared;
        let mut packet = Vec::new();
        let retried = shared.proto.borrow_mut().retry(incoming, &mut packet);
        match retried {
            Ok(transmit) => shared.answer(&transmit, &packet),
            Err(impossible) => self.incoming = Some(impossible.into_incoming()),
        }
    }

    /// Tells the client that it cannot be served.
    pub fn refuse(mut self) {
        if let Some(incoming) = self.incoming.take() {
            self.shared.refuse(incoming);
        }
    }

    /// Begins the handshake.
    ///
    /// # Errors
    /// The client's first packet is not what it should be, or was there for too long.
    pub fn accept(mut self, config: Arc<ServerConfig>) -> Result<Connecting, ConnectionError> {
        let Some(incoming) = self.incoming.take() else {
            return Err(ConnectionError::LocallyClosed);
        };
        let shared = &self.shared;
        let mut packet = Vec::new();
        let accepted =
            shared
                .proto
                .borrow_mut()
                .accept(incoming, Instant::now(), &mut packet, Some(config));
        match accepted {
            Ok((handle, connection)) => Ok(Connecting::new(shared.insert(handle, connection))),
            Err(error) => {
                if let Some(transmit) = &error.response {
                    shared.answer(transmit, &packet);
                }
                Err(error.cause)
            }
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take() {
            self.shared.proto.borrow_mut().ignore(incoming);
        }
    }
}

impl Shared {
    /// Has the task look at a connection.
    pub(super) fn touch(&self, connection: &Rc<Inner>) {
        if !connection.queued.replace(true) {
            self.touched.borrow_mut().push_back(connection.clone());
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    fn insert(
        self: &Rc<Self>,
        handle: ConnectionHandle,
        connection: quinn_proto::Connection,
    ) -> Rc<Inner> {
        let inner = Rc::new(Inner {
            endpoint: self.clone(),
            handle,
            queued: Cell::new(false),
            armed: Cell::new(None),
            gathered: Cell::new(0),
            state: RefCell::new(State::new(connection)),
        });
        let mut connections = self.connections.borrow_mut();
        if connections.len() <= handle.0 {
            connections.resize_with(handle.0 + 1, || None);
        }
        connections[handle.0] = Some(inner.clone());
        self.open.set(self.open.get() + 1);
        self.touch(&inner);
        inner
    }

    fn remove(&self, handle: ConnectionHandle) {
        if self.connections.borrow_mut()[handle.0].take().is_some() {
            self.open.set(self.open.get() - 1);
        }
        if self.open.get() == 0 {
            for waker in self.idle.take() {
                waker.wake();
            }
        }
    }

    fn connection(&self, handle: usize) -> Option<Rc<Inner>> {
        self.connections.borrow().get(handle)?.clone()
    }

    fn refuse(&self, incoming: quinn_proto::Incoming) {
        let mut packet = Vec::new();
        let transmit = self.proto.borrow_mut().refuse(incoming, &mut packet);
        self.answer(&transmit, &packet);
    }

    /// Sends a packet of no connection, now or never.
    fn answer(&self, transmit: &Transmit, packet: &[u8]) {
        let _ = self.socket.try_send(transmit, packet);
    }

    fn datagram(&self, now: Instant, meta: &RecvMeta, datagram: BytesMut) {
        let mut answer = Vec::new();
        let event = self.proto.borrow_mut().handle(
            now,
            meta.addr,
            meta.dst_ip,
            socket::incoming(meta),
            datagram,
            &mut answer,
        );
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(connection) = self.connection(handle.0) {
                    connection.state.borrow_mut().proto.handle_event(event);
                    self.touch(&connection);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.incoming.borrow_mut().push_back(incoming);
                if let Some(waker) = self.accepting.take() {
                    waker.wake();
                }
            }
            Some(DatagramEvent::Response(transmit)) => self.answer(&transmit, &answer),
            None => {}
        }
    }

    /// Lets the connection and the endpoint tell each other what they must, and the connection its waiters. `true`: one of its streams
    /// was given the turn to write.
    fn settle(&self, connection: &Inner) -> bool {
        let mut state = connection.state.borrow_mut();
        let mut gone = false;
        while let Some(event) = state.proto.poll_endpoint_events() {
            gone |= event.is_drained();
            let answer = self
                .proto
                .borrow_mut()
                .handle_event(connection.handle, event);
            if let Some(answer) = answer {
                state.proto.handle_event(answer);
            }
        }
        let gave = state.tell();
        drop(state);
        if gone {
            self.remove(connection.handle);
        }
        gave
    }

    /// Has the timers know when the connection wants to be looked at.
    fn arm(&self, connection: &Inner, wanted: Option<Instant>) {
        let Some(wanted) = wanted else { return };
        // One that comes too early is asked again then: most are put off before they are due.
        let armed = connection.armed.get();
        if armed.is_none_or(|armed| wanted < armed) {
            let mut timers = self.timers.borrow_mut();
            if let Some(armed) = armed {
                timers.remove(&(armed, connection.handle.0));
            }
            timers.insert((wanted, connection.handle.0));
            connection.armed.set(Some(wanted));
        }
    }
}

/// The task.
struct Driver {
    shared: Rc<Shared>,
    sleep: Option<Pin<Box<Sleep>>>,
    received: Vec<Received>,
    /// What the socket had no room for; its bytes are in `packets`.
    unsent: Option<Transmit>,
}

impl Driver {
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut more = self.receive(cx);
        self.expire(Instant::now());
        let blocked = self.flush(cx).is_pending();
        // Those that are touched meanwhile have their turn when their streams had theirs.
        let count = self.shared.touched.borrow().len();
        for _ in 0..count {
            let Some(connection) = self.shared.touched.borrow_mut().pop_front() else {
                break;
            };
            connection.queued.set(false);
            let gave = self.shared.settle(&connection);
            let gathered = connection.gathered.get();
            if gave && gathered < GATHERED {
                connection.gathered.set(gathered + 1);
                self.again(connection);
                continue;
            }
            connection.gathered.set(0);
            let unfinished = blocked || self.unsent.is_some() || self.send(cx, &connection);
            if unfinished || connection.state.borrow().turns.is_moving() {
                self.again(connection);
            }
        }
        more |= self.unsent.is_none() && !self.shared.touched.borrow().is_empty();
        more |= self.sleep(cx);
        if !self.shared.owned.get() && self.shared.open.get() == 0 {
            return Poll::Ready(());
        }
        if more {
            cx.waker().wake_by_ref();
        } else {
            self.shared.driver.set(Some(cx.waker().clone()));
        }
        Poll::Pending
    }

    fn again(&self, connection: Rc<Inner>) {
        if !connection.queued.replace(true) {
            self.shared.touched.borrow_mut().push_back(connection);
        }
    }

    /// `true`: there may be more at once.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        for _ in 0..RECEIVES {
            if self.received.is_empty() {
                match self.shared.socket.poll_recv(cx, &mut self.received) {
                    Poll::Pending => return false,
                    // Errors of a UDP socket are of datagrams that were sent; what there is to receive comes again.
                    Poll::Ready(Err(_)) => continue,
                    Poll::Ready(Ok(_)) => {}
                }
            }
            let now = Instant::now();
            let mut received = self.received.drain(..);
            for (meta, mut data) in received.by_ref() {
                while !data.is_empty() {
                    let length = meta.stride.clamp(1, data.len());
                    self.shared.datagram(now, &meta, data.split_to(length));
                }
                if now.elapsed() > TURN {
                    break;
                }
            }
            let rest: Vec<_> = received.collect();
            if !rest.is_empty() {
                self.received = rest;
                return true;
            }
        }
        true
    }

    /// Tells the connections whose time has come.
    fn expire(&self, now: Instant) {
        loop {
            let mut timers = self.shared.timers.borrow_mut();
            let Some(&(moment, handle)) = timers.first().filter(|(moment, _)| *moment <= now)
            else {
                return;
            };
            timers.pop_first();
            drop(timers);
            let Some(connection) = self.shared.connection(handle) else {
                continue;
            };
            if connection.armed.get() != Some(moment) {
                continue;
            }
            connection.armed.set(None);
            let mut state = connection.state.borrow_mut();
            let wanted = state.proto.poll_timeout();
            if wanted.is_some_and(|wanted| wanted <= now) {
                state.proto.handle_timeout(now);
                drop(state);
                self.shared.touch(&connection);
            } else {
                drop(state);
                self.shared.arm(&connection, wanted);
            }
        }
    }

    /// Waits for the earliest timer. `true`: its time has come.
    fn sleep(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(&(earliest, _)) = self.shared.timers.borrow().first() else {
            return false;
        };
        let earliest = tokio::time::Instant::from_std(earliest);
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(earliest)));
        // One that is too early does no harm and often saves setting it: most timers are put off.
        if sleep.is_elapsed() || earliest < sleep.deadline() {
            sleep.as_mut().reset(earliest);
        }
        sleep.as_mut().poll(cx).is_ready()
    }

    /// Sends what the socket had no room for.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(transmit) = self.unsent.take() {
            let packets = self.shared.packets.borrow();
            if self
                .shared
                .socket
                .poll_send(cx, &transmit, &packets)
                .is_pending()
            {
                drop(packets);
                self.unsent = Some(transmit);
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Sends what the connection has to say. `true`: not all of it.
    fn send(&mut self, cx: &mut Context<'_>, connection: &Inner) -> bool {
        let shared = &self.shared;
        let mut packets = shared.packets.borrow_mut();
        let mut state = connection.state.borrow_mut();
        let now = Instant::now();
        let mut all = false;
        for _ in 0..SENDS {
            packets.clear();
            let segments = shared.socket.segments(state.proto.current_mtu());
            let Some(transmit) = state.proto.poll_transmit(now, segments, &mut packets) else {
                all = true;
                break;
            };
            if shared
                .socket
                .poll_send(cx, &transmit, &packets)
                .is_pending()
            {
                self.unsent = Some(transmit);
                break;
            }
        }
        let wanted = state.proto.poll_timeout();
        drop(state);
        shared.arm(connection, wanted);
        !all
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Connections hold the endpoint, and the endpoint them: without a task there is nothing to hold on for.
        self.shared.touched.borrow_mut().clear();
        self.shared.connections.borrow_mut().clear();
    }
}
