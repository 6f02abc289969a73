//! The bind mode of connect-udp (draft-ietf-masque-connect-udp-listen): one tunnel to and from many peers. A datagram's context ID
//! stands for a peer that was registered (compressed), or says that its peer is written in front of the payload (uncompressed).

mod contexts;

use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::capsule::{self, MAX_HEADER, types};
use crate::compression::{self, Compression, MAX_PEER, MAX_VALUE};
use crate::tunnel::Malformed;
use crate::varint;
use crate::whole::{self, Front, Inbound, Wanted};
use contexts::{Contexts, Meaning};

pub use super::udp::MAX_PAYLOAD;
pub use contexts::{MAX_CONTEXTS, NotOpened};

/// What goes before a payload in an HTTP datagram, at most: a context ID and a peer.
pub const MAX_PREFIX: usize = varint::MAX_LEN + MAX_PEER;
/// The longest HTTP datagram.
const MAX_DATAGRAM: usize = MAX_PREFIX + MAX_PAYLOAD;
/// Capsules that wait to be sent, at most: more than a peer can have reason to ask for at a time.
const MAX_PENDING: usize = 4 * MAX_CONTEXTS;

/// Which end of the tunnel this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Asked for the tunnel: even context IDs are its own, and the uncompressed context is its to open.
    Client,
    /// Has the sockets: odd context IDs are its own.
    Proxy,
}

/// What stands at the front of the received data stream.
pub type Step = whole::Step<SocketAddr>;

/// One end of a bound tunnel.
///
/// Every method that takes `permit` asks it whether a peer may be reached: for a registration, which is rejected if not, and for an
/// uncompressed datagram, which is dropped.
#[derive(Debug, Clone)]
pub struct Bind {
    stream: Inbound,
    contexts: Contexts,
    /// Capsules to be sent, in order.
    pending: Vec<u8>,
    pending_capsules: usize,
    refused: u64,
    closed: u64,
}

struct Capsules;

impl Wanted for Capsules {
    fn longest(&self, kind: u64) -> Option<usize> {
        match kind {
            types::DATAGRAM => Some(MAX_DATAGRAM),
            kind if compression::is_compression(kind) => Some(MAX_VALUE),
            _ => None,
        }
    }

    fn shown(&self) -> usize {
        varint::MAX_LEN
    }
}

impl Bind {
    /// A fresh tunnel. `target`: where context 0 leads; `None` if the request named none, and then nobody may use it.
    #[must_use]
    pub const fn new(role: Role, target: Option<SocketAddr>) -> Self {
        Self {
            stream: Inbound::new(),
            contexts: Contexts::new(role, target),
            pending: Vec::new(),
            pending_capsules: 0,
            refused: 0,
            closed: 0,
        }
    }

    /// Looks at the front of `data`, the received bytes of the data stream not yet dropped.
    ///
    /// # Errors
    /// [`Malformed`], and the same again on every later call.
    pub fn inbound(
        &mut self,
        data: &[u8],
        permit: &mut dyn FnMut(SocketAddr) -> bool,
    ) -> Result<Step, Malformed> {
        Ok(match self.stream.look(data, &Capsules)? {
            Front::Idle => Step::Idle,
            Front::Skip(bytes) => Step::Skip(bytes),
            Front::More(bytes) => Step::More(bytes),
            Front::Unknown { header, .. } => Step::Skip(header),
            Front::Whole {
                kind: types::DATAGRAM,
                start,
                length,
            } => match self.datagram(&data[start..start + length], permit)? {
                Some((peer, prefix)) => Step::Payload {
                    peer,
                    start: start + prefix,
                    length: length - prefix,
                },
                None => Step::Skip(start + length),
            },
            Front::Whole {
                kind,
                start,
                length,
            } => {
                let value = &data[start..start + length];
                self.compression(kind, value, permit)
                    .map_err(|fault| self.stream.fail(fault))?;
                Step::Skip(start + length)
            }
            Front::Long {
                kind: types::DATAGRAM,
                start,
                length,
            } => {
                self.long(&data[start..])?;
                self.stream.skip(start, length);
                return self.inbound(data, permit);
            }
            //= rfc9297 §3.3 malformed-capsule
            Front::Long { .. } => return Err(self.stream.fail(Malformed::Compression)),
        })
    }

    /// Looks at an HTTP datagram that came by itself: its peer, and where its payload begins; `None`: it is to be dropped.
    ///
    /// # Errors
    /// [`Malformed`], and the same again on every later call.
    pub fn datagram(
        &mut self,
        datagram: &[u8],
        permit: &mut dyn FnMut(SocketAddr) -> bool,
    ) -> Result<Option<(SocketAddr, usize)>, Malformed> {
        self.stream.check()?;
        //= rfc9297 §3.3 malformed-capsule
        let (context, used) =
            varint::decode(datagram).ok_or_else(|| self.stream.fail(Malformed::NoContext))?;
        let (peer, used) = match self.contexts.meaning(context) {
            Meaning::Unknown => {
                //= connect-udp-bind §3.3 late-datagrams-dropped
                self.stream.unknown_context();
                return Ok(None);
            }
            //= connect-udp-bind §3 context-0-aborts
            Meaning::Forbidden => return Err(self.stream.fail(Malformed::ContextZero)),
            Meaning::Peer(peer) => (peer, used),
            Meaning::Uncompressed => {
                //= connect-udp-bind §4 uncompressed-format
                let Some((peer, length)) = compression::decode_peer(&datagram[used..]) else {
                    return Err(self.stream.fail(Malformed::Compression));
                };
                //= connect-udp-bind §9 check-each-target
                if !permit(peer) {
                    self.refused = self.refused.saturating_add(1);
                    return Ok(None);
                }
                (peer, used + length)
            }
        };
        if datagram.len() - used > MAX_PAYLOAD {
            return Err(self.stream.fail(Malformed::OversizePayload));
        }
        Ok(Some((peer, used)))
    }

    /// A datagram that is longer than any that carries a payload, of which this is the front.
    fn long(&mut self, front: &[u8]) -> Result<(), Malformed> {
        let context = varint::decode(front).map(|(context, _)| self.contexts.meaning(context));
        match context {
            None => Err(self.stream.fail(Malformed::NoContext)),
            Some(Meaning::Unknown) => {
                self.stream.unknown_context();
                Ok(())
            }
            Some(Meaning::Forbidden) => Err(self.stream.fail(Malformed::ContextZero)),
            Some(_) => Err(self.stream.fail(Malformed::OversizePayload)),
        }
    }

    fn compression(
        &mut self,
        kind: u64,
        value: &[u8],
        permit: &mut dyn FnMut(SocketAddr) -> bool,
    ) -> Result<(), Malformed> {
        match Compression::decode(kind, value)? {
            Compression::Assign { context, peer } => {
                let answer = self.contexts.assigned(context, peer, permit)?;
                if let Some(ours) = answer.closes {
                    self.closed += 1;
                    self.push(Compression::Close { context: ours })?;
                }
                //= connect-udp-bind §3.1 answer-assign
                if answer.accepted {
                    self.push(Compression::Ack { context })
                } else {
                    self.push(Compression::Close { context })
                }
            }
            Compression::Ack { context } => self.contexts.acknowledged(context),
            Compression::Close { context } => {
                self.closed += u64::from(self.contexts.close(context));
                Ok(())
            }
        }
    }

    /// The received data stream ended cleanly, with `held` bytes that [`inbound`](Self::inbound) wanted more of.
    ///
    /// # Errors
    /// [`Malformed::TruncatedCapsule`].
    pub fn inbound_end(&mut self, held: usize) -> Result<(), Malformed> {
        self.stream.end(held)
    }

    /// Writes what goes before a payload from or to `peer` in an HTTP datagram to the front of `out` and returns its length; `None`:
    /// there is no context for it, and the payload is to be dropped.
    //= connect-udp-bind §8 forward-by-context
    //= connect-udp-bind §8.1 no-context-no-datagram
    pub fn prefix(&self, peer: SocketAddr, out: &mut [u8; MAX_PREFIX]) -> Option<usize> {
        let (context, compressed) = self.contexts.towards(peer)?;
        let used = varint::encode(context, out);
        Some(if compressed {
            used
        } else {
            used + compression::encode_peer(peer, &mut out[used..])
        })
    }

    /// Registers the uncompressed context, for the client only; its ID. The capsule waits in [`take_pending`](Self::take_pending).
    ///
    /// # Errors
    /// [`NotOpened`].
    pub fn open_uncompressed(&mut self) -> Result<u64, NotOpened> {
        self.open(None)
    }

    /// Registers a context for a peer; its ID. The capsule waits in [`take_pending`](Self::take_pending).
    ///
    /// # Errors
    /// [`NotOpened`].
    pub fn open_compressed(&mut self, peer: SocketAddr) -> Result<u64, NotOpened> {
        self.open(Some(peer))
    }

    fn open(&mut self, peer: Option<SocketAddr>) -> Result<u64, NotOpened> {
        if self.pending_capsules >= MAX_PENDING {
            return Err(NotOpened::Many);
        }
        let context = self.contexts.open(peer)?;
        let _ = self.push(Compression::Assign { context, peer });
        Ok(context)
    }

    /// Ends a registration, whoever made it; `false`: it was not open.
    pub fn close(&mut self, context: u64) -> bool {
        let open = self.contexts.close(context);
        self.closed += u64::from(open);
        open && self.push(Compression::Close { context }).is_ok()
    }

    /// Whether the peer has agreed to a registration made here.
    #[must_use]
    pub fn is_acknowledged(&self, context: u64) -> bool {
        self.contexts.is_acknowledged(context)
    }

    //= connect-udp-bind §9 bound-answers
    fn push(&mut self, compression: Compression) -> Result<(), Malformed> {
        if self.pending_capsules >= MAX_PENDING {
            return Err(Malformed::TooManyContexts);
        }
        self.pending_capsules += 1;
        compression.encode(&mut self.pending);
        Ok(())
    }

    /// Whether capsules wait to be sent.
    #[must_use]
    pub const fn has_pending(&self) -> bool {
        self.pending_capsules > 0
    }

    /// Takes the capsules that wait to be sent on the data stream, before any payload whose prefix is asked for from now on.
    pub fn take_pending(&mut self) -> Vec<u8> {
        self.pending_capsules = 0;
        core::mem::take(&mut self.pending)
    }

    /// Capsules skipped so far because their type means nothing here, reserved ("grease") types not counted.
    #[must_use]
    pub const fn unknown_capsules(&self) -> u64 {
        self.stream.unknown_capsules()
    }

    /// Datagrams dropped so far because their context is not open.
    #[must_use]
    pub const fn unknown_contexts(&self) -> u64 {
        self.stream.unknown_contexts()
    }

    /// Contexts closed so far, by either end: what was made ready with one of them may not be sent any more.
    #[must_use]
    pub const fn closed(&self) -> u64 {
        self.closed
    }

    /// Datagrams dropped so far because their peer may not be reached.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }
}

/// Writes the header of a capsule that carries an HTTP datagram of `length` bytes to the front of `out` and returns its size.
pub fn capsule_header(length: usize, out: &mut [u8; MAX_HEADER]) -> usize {
    capsule::encode_header(types::DATAGRAM, length as u64, out)
}

#[cfg(test)]
mod tests;
