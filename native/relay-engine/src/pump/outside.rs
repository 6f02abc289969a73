//! What a datagram tunnel leads to: its protocol's machine together with the sockets. One target (RFC 9298), or, bound, any peer
//! (draft-ietf-masque-connect-udp-listen).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use capsule_core::protocols::udp::{self, ConnectUdp};
use capsule_core::protocols::udp_bind::{Bind, MAX_PREFIX, Role};
use capsule_core::tunnel::Malformed;
use capsule_core::whole::Step;
use tokio::sync::Notify;

use crate::egress::{Addressed, BoundSockets, DatagramSocket, Sent};

/// What goes before a payload in an HTTP datagram.
pub type Prefix = [u8; MAX_PREFIX];

/// What a machine dropped on the way.
#[derive(Debug, Default, Clone, Copy)]
pub struct Dropped {
    /// Capsules of unknown types.
    pub capsules: u64,
    /// Datagrams of contexts that nobody registered.
    pub contexts: u64,
    /// Datagrams to peers that the policy refuses.
    pub refused: u64,
}

/// The far side of a datagram tunnel.
pub trait Outside {
    /// Whom payloads go to and come from.
    type Peer: Copy;
    /// A payload on its way out.
    type Payload: AsRef<[u8]>;

    /// Addresses a payload.
    fn address(peer: Self::Peer, payload: Bytes) -> Self::Payload;

    /// Looks at the front of the client's data stream.
    fn look(&self, data: &[u8]) -> Result<Step<Self::Peer>, Malformed>;

    /// Looks at an HTTP datagram that came by itself: its peer, and where the payload begins; `None`: to be dropped.
    fn datagram(&self, datagram: &[u8]) -> Result<Option<(Self::Peer, usize)>, Malformed>;

    /// What looking has cost since the last call, in bytes that could be moved meanwhile, where that is more than a look.
    fn toil(&self) -> usize {
        0
    }

    /// The client's data stream ended, with `held` bytes of a capsule.
    fn inbound_end(&self, held: usize) -> Result<(), Malformed>;

    /// Resolves when there may be something to receive; an error ends the tunnel.
    fn readable(&self) -> impl Future<Output = io::Result<()>>;

    /// Resolves when there may be room for a payload; an error ends the tunnel.
    fn writable(&self, next: &Self::Payload) -> impl Future<Output = io::Result<()>>;

    /// Hands a batch of received payloads to `each`.
    fn receive(&self, each: impl FnMut(Self::Peer, &[u8])) -> io::Result<()>;

    /// Sends payloads; an error ends the tunnel.
    fn send(&self, payloads: &[Self::Payload]) -> io::Result<Sent>;

    /// Writes what goes before a payload from `peer`; `None`: the client does not want to hear of it.
    fn prefix(&self, peer: Self::Peer, out: &mut Prefix) -> Option<usize>;

    /// Resolves when capsules wait to be sent to the client.
    fn answering(&self) -> impl Future<Output = ()>;

    /// Takes those capsules, in order; they may not get lost.
    fn answers(&self) -> Vec<u8>;

    /// Contexts that were closed so far: what waits to be sent to the client may be of one of them.
    fn closed(&self) -> u64 {
        0
    }

    /// What was dropped so far.
    fn dropped(&self) -> Dropped;
}

/// One target, through a connected socket.
#[derive(Debug)]
pub struct Connected {
    machine: RefCell<ConnectUdp>,
    socket: DatagramSocket,
}

impl Connected {
    /// A fresh tunnel to where the socket leads.
    #[must_use]
    pub const fn new(socket: DatagramSocket) -> Self {
        Self {
            machine: RefCell::new(ConnectUdp::new()),
            socket,
        }
    }
}

impl Outside for Connected {
    type Peer = ();
    type Payload = Bytes;

    fn address((): (), payload: Bytes) -> Bytes {
        payload
    }

    fn look(&self, data: &[u8]) -> Result<Step<()>, Malformed> {
        self.machine.borrow_mut().inbound(data)
    }

    fn datagram(&self, datagram: &[u8]) -> Result<Option<((), usize)>, Malformed> {
        let start = self.machine.borrow_mut().datagram(datagram)?;
        Ok(start.map(|start| ((), start)))
    }

    fn inbound_end(&self, held: usize) -> Result<(), Malformed> {
        self.machine.borrow_mut().inbound_end(held)
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> {
        self.socket.readable()
    }

    fn writable(&self, _: &Bytes) -> impl Future<Output = io::Result<()>> {
        self.socket.writable()
    }

    fn receive(&self, mut each: impl FnMut((), &[u8])) -> io::Result<()> {
        self.socket.receive(|payload| each((), payload))
    }

    fn send(&self, payloads: &[Bytes]) -> io::Result<Sent> {
        self.socket.send(payloads)
    }

    fn prefix(&self, (): (), out: &mut Prefix) -> Option<usize> {
        out[..udp::CONTEXT.len()].copy_from_slice(&udp::CONTEXT);
        Some(udp::CONTEXT.len())
    }

    fn answering(&self) -> impl Future<Output = ()> {
        pending()
    }

    fn answers(&self) -> Vec<u8> {
        Vec::new()
    }

    fn dropped(&self) -> Dropped {
        let machine = self.machine.borrow();
        Dropped {
            capsules: machine.unknown_capsules(),
            contexts: machine.unknown_contexts(),
            refused: 0,
        }
    }
}

/// What the policy says of a peer.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    /// It may be reached.
    pub permitted: bool,
    /// That had to be found out.
    pub fresh: bool,
}

/// Says of each peer whether it may be reached.
pub type Judge = Box<dyn FnMut(SocketAddr) -> Verdict>;

/// What finding out about a peer counts for in a turn, in bytes that could be moved meanwhile: it takes some calls of the system.
const JUDGED: usize = 32 << 10;

/// Any peer that the policy permits, through sockets of the tunnel's own.
pub struct Bound {
    machine: RefCell<Bind>,
    sockets: BoundSockets,
    judge: RefCell<Judge>,
    toil: Cell<usize>,
    asked: Notify,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound")
            .field("sockets", &self.sockets)
            .finish_non_exhaustive()
    }
}

impl Bound {
    /// A fresh tunnel. `target`: where context 0 leads, if anywhere.
    #[must_use]
    pub fn new(sockets: BoundSockets, target: Option<SocketAddr>, judge: Judge) -> Self {
        Self {
            machine: RefCell::new(Bind::new(Role::Proxy, target)),
            sockets,
            judge: RefCell::new(judge),
            toil: Cell::new(0),
            asked: Notify::new(),
        }
    }

    /// Where the outside reaches the tunnel.
    #[must_use]
    pub fn public(&self) -> &[SocketAddr] {
        self.sockets.public()
    }

    /// Asks the machine, which asks back who may be reached.
    //= connect-udp-bind §7 other-family-rejected
    //= connect-udp-bind §9 check-each-target
    fn ask<T>(&self, ask: impl FnOnce(&mut Bind, &mut dyn FnMut(SocketAddr) -> bool) -> T) -> T {
        let mut machine = self.machine.borrow_mut();
        let mut judge = self.judge.borrow_mut();
        let answer = ask(&mut machine, &mut |peer| {
            if !self.sockets.reaches(peer) {
                return false;
            }
            let verdict = judge(peer);
            if verdict.fresh {
                self.toil.set(self.toil.get() + JUDGED);
            }
            verdict.permitted
        });
        if machine.has_pending() {
            self.asked.notify_one();
        }
        answer
    }
}

impl Outside for Bound {
    type Peer = SocketAddr;
    type Payload = Addressed;

    fn address(peer: SocketAddr, payload: Bytes) -> Addressed {
        Addressed { peer, payload }
    }

    fn look(&self, data: &[u8]) -> Result<Step<SocketAddr>, Malformed> {
        self.ask(|machine, permit| machine.inbound(data, permit))
    }

    fn datagram(&self, datagram: &[u8]) -> Result<Option<(SocketAddr, usize)>, Malformed> {
        self.ask(|machine, permit| machine.datagram(datagram, permit))
    }

    fn toil(&self) -> usize {
        self.toil.take()
    }

    fn inbound_end(&self, held: usize) -> Result<(), Malformed> {
        self.machine.borrow_mut().inbound_end(held)
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> {
        self.sockets.readable()
    }

    fn writable(&self, next: &Addressed) -> impl Future<Output = io::Result<()>> {
        self.sockets.writable(next.peer)
    }

    fn receive(&self, each: impl FnMut(SocketAddr, &[u8])) -> io::Result<()> {
        self.sockets.receive(each)
    }

    fn send(&self, payloads: &[Addressed]) -> io::Result<Sent> {
        Ok(self.sockets.send(payloads))
    }

    fn prefix(&self, peer: SocketAddr, out: &mut Prefix) -> Option<usize> {
        self.machine.borrow().prefix(peer, out)
    }

    async fn answering(&self) {
        while !self.machine.borrow().has_pending() {
            self.asked.notified().await;
        }
    }

    fn answers(&self) -> Vec<u8> {
        self.machine.borrow_mut().take_pending()
    }

    fn closed(&self) -> u64 {
        self.machine.borrow().closed()
    }

    fn dropped(&self) -> Dropped {
        let machine = self.machine.borrow();
        Dropped {
            capsules: machine.unknown_capsules(),
            contexts: machine.unknown_contexts(),
            refused: machine.refused(),
        }
    }
}
