//! One target, with the marks of packets carried (draft-ietf-masque-connect-udp-ecn-dscp).

use std::cell::RefCell;
use std::io;

use bytes::Bytes;
use capsule_core::ecn_dscp::{Assignment, CapsuleTypes, Marks};
use capsule_core::protocols::udp_marked;
use capsule_core::tunnel::Malformed;
use capsule_core::varint;
use capsule_core::whole::Step;
use tokio::sync::Notify;

use super::outside::{Dropped, Outside, Prefix};
use crate::egress::{MarkedPayload, MarkedSocket, Sent};

/// A connected socket, and contexts for the marks of its packets.
#[derive(Debug)]
pub struct Marked {
    machine: RefCell<udp_marked::Marked>,
    socket: MarkedSocket,
    asked: Notify,
}

impl Marked {
    /// A fresh tunnel. `client`: the contexts that its request assigns.
    #[must_use]
    pub fn new(
        socket: MarkedSocket,
        client: &[Assignment],
        capsules: Option<CapsuleTypes>,
    ) -> Self {
        Self {
            machine: RefCell::new(udp_marked::Marked::proxy(client, capsules)),
            socket,
            asked: Notify::new(),
        }
    }

    /// The contexts that the answer assigns.
    #[must_use]
    pub fn assigned(&self) -> Vec<Assignment> {
        self.machine.borrow().ours()
    }

    fn ask<T>(&self, ask: impl FnOnce(&mut udp_marked::Marked) -> T) -> T {
        let mut machine = self.machine.borrow_mut();
        let answer = ask(&mut machine);
        if machine.has_pending() {
            self.asked.notify_one();
        }
        answer
    }
}

impl Outside for Marked {
    type Peer = Marks;
    type Payload = MarkedPayload;

    fn address(marks: Marks, payload: Bytes) -> MarkedPayload {
        MarkedPayload { marks, payload }
    }

    fn look(&self, data: &[u8]) -> Result<Step<Marks>, Malformed> {
        self.ask(|machine| machine.inbound(data))
    }

    fn datagram(&self, datagram: &[u8]) -> Result<Option<(Marks, usize)>, Malformed> {
        self.machine.borrow_mut().datagram(datagram)
    }

    fn inbound_end(&self, held: usize) -> Result<(), Malformed> {
        self.machine.borrow_mut().inbound_end(held)
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> {
        self.socket.readable()
    }

    fn writable(&self, _: &MarkedPayload) -> impl Future<Output = io::Result<()>> {
        self.socket.writable()
    }

    fn receive(&self, each: impl FnMut(Marks, &[u8])) -> io::Result<()> {
        self.socket.receive(each)
    }

    fn send(&self, payloads: &[MarkedPayload]) -> io::Result<Sent> {
        self.socket.send(payloads)
    }

    fn prefix(&self, marks: Marks, out: &mut Prefix) -> Option<usize> {
        let context = self.ask(|machine| machine.context(marks));
        Some(varint::encode(context, out))
    }

    async fn answering(&self) {
        while !self.machine.borrow().has_pending() {
            self.asked.notified().await;
        }
    }

    fn answers(&self) -> Vec<u8> {
        self.machine.borrow_mut().take_pending()
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
