//! The contract between a tunnel protocol and the engine, for targets that are byte streams.
//!
//! The protocol decides, the engine moves: it shows the bytes at hand, learns how many of the next ones are payload, and
//! moves them as it likes (slices, `splice(2)`) without the protocol seeing them. Both ends of a tunnel use the same
//! machine: "inbound" is the HTTP data stream as received, "outbound" the one being sent.

use crate::capsule::MAX_HEADER;
use crate::protocols::{connect::Raw, tcp::ConnectTcp};

/// What stands at the front of the received data stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Drop that many bytes (never 0, never more than at hand) from the front: framing, or something to ignore.
    /// Parts of a header are kept inside.
    Skip(usize),
    /// The next n bytes (never 0) of the data stream are payload for the target. n may exceed the bytes at hand;
    /// [`u64::MAX`] = without end. The caller takes m ≤ n of them and calls [`StreamTunnel::advance`]`(m)`.
    Payload(u64),
    /// The peer ended its direction: FIN to the target after all payload so far. Reported exactly once, consumes nothing.
    Finish,
    /// Nothing to do until more bytes arrive. The answer to empty `data` unless a [`Step::Finish`] is due.
    Idle,
}

/// What a clean end of the received data stream means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// FIN to the target: the end itself says so, or it was announced and not yet reported.
    Finish,
    /// FIN was reported before; the normal end.
    Complete,
    /// Ended without an announcement: reset the target (TCP RST).
    Abort,
    /// Ended inside a capsule: a malformed message, and the target is reset.
    Malformed(Malformed),
}

/// Faults of the received data stream: the HTTP message is malformed, the target is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The data stream ended inside a capsule.
    #[error("the data stream ended inside a capsule")]
    TruncatedCapsule,
    /// DATA or FINAL_DATA followed a FINAL_DATA.
    #[error("data followed the capsule that ended the data")]
    DataAfterFinal,
    /// An HTTP datagram came in a capsule, and the protocol has no use for datagrams. On HTTP/3 the stream error is
    /// H3_DATAGRAM_ERROR instead of H3_MESSAGE_ERROR.
    #[error("an HTTP datagram came on a tunnel that carries none")]
    UnexpectedDatagram,
    /// A datagram that is too short for a context ID.
    #[error("an HTTP datagram without a context ID")]
    NoContext,
    /// A payload that no UDP datagram can hold.
    #[error("a UDP payload of more than 65,527 bytes")]
    OversizePayload,
    /// A datagram of context 0 on a bound tunnel that leads to no target of its own.
    #[error("a datagram of context 0 on a tunnel without a target")]
    ContextZero,
    /// A registration of a context that breaks the rules, or a datagram whose peer cannot be read.
    #[error("a compression capsule or a peer that breaks the rules of bound tunnels")]
    Compression,
    /// ECN_DSCP_CONTEXT_ASSIGN or ECN_DSCP_CONTEXT_ACK that breaks the rules.
    #[error("a capsule of ECN and DSCP contexts that breaks the rules")]
    EcnDscp,
    /// More registrations than can be answered, or IDs in no order.
    #[error("too many registrations of contexts")]
    TooManyContexts,
}

/// How to tell the peer that the other side sent FIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// End the HTTP stream in this direction.
    EndStream,
    /// Write that many bytes of `out` and keep the HTTP stream open until both directions have finished.
    Bytes(usize),
}

/// A tunnel protocol over a stream target. All methods are cheap and never block.
pub trait StreamTunnel {
    /// Looks at the front of `data`, the received bytes not yet taken. Call again after each [`Step`] but [`Step::Idle`].
    ///
    /// # Errors
    /// [`Malformed`], and the same again on every later call.
    fn inbound(&mut self, data: &[u8]) -> Result<Step, Malformed>;

    /// Tells that `taken` bytes of payload were taken, also when they were moved unseen.
    fn advance(&mut self, taken: u64);

    /// Payload bytes known to come next: 0 = a header is due, [`u64::MAX`] = payload without end.
    fn payload_pending(&self) -> u64;

    /// The received data stream ended cleanly. Call when [`StreamTunnel::inbound`] answered [`Step::Idle`] to everything.
    fn inbound_end(&mut self) -> End;

    /// Writes what must precede `payload` bytes towards the peer and returns its length (0 = nothing).
    /// Not to be called after [`StreamTunnel::outbound_finish`].
    fn outbound_header(&mut self, payload: usize, out: &mut [u8; MAX_HEADER]) -> usize;

    /// The target sent FIN: tells how the peer learns of it. A second call writes nothing.
    fn outbound_finish(&mut self, out: &mut [u8; MAX_HEADER]) -> Finish;

    /// Capsules skipped so far because their type means nothing here, reserved ("grease") types not counted.
    /// Anything but 0 hints at a peer that uses other capsule types than its token implies.
    fn unknown_capsules(&self) -> u64 {
        0
    }
}

/// The stream tunnels there are; dispatch by `match`, so that the engine's hot loop is not generic.
#[derive(Debug, Clone)]
pub enum AnyStreamTunnel {
    /// Bytes as they are (classic CONNECT).
    Raw(Raw),
    /// Capsules of connect-tcp.
    ConnectTcp(ConnectTcp),
}

macro_rules! each {
    ($self:ident, $tunnel:ident => $call:expr) => {
        match $self {
            AnyStreamTunnel::Raw($tunnel) => $call,
            AnyStreamTunnel::ConnectTcp($tunnel) => $call,
        }
    };
}

impl StreamTunnel for AnyStreamTunnel {
    #[inline]
    fn inbound(&mut self, data: &[u8]) -> Result<Step, Malformed> {
        each!(self, tunnel => tunnel.inbound(data))
    }

    #[inline]
    fn advance(&mut self, taken: u64) {
        each!(self, tunnel => tunnel.advance(taken));
    }

    #[inline]
    fn payload_pending(&self) -> u64 {
        each!(self, tunnel => tunnel.payload_pending())
    }

    fn inbound_end(&mut self) -> End {
        each!(self, tunnel => tunnel.inbound_end())
    }

    #[inline]
    fn outbound_header(&mut self, payload: usize, out: &mut [u8; MAX_HEADER]) -> usize {
        each!(self, tunnel => tunnel.outbound_header(payload, out))
    }

    fn outbound_finish(&mut self, out: &mut [u8; MAX_HEADER]) -> Finish {
        each!(self, tunnel => tunnel.outbound_finish(out))
    }

    fn unknown_capsules(&self) -> u64 {
        each!(self, tunnel => tunnel.unknown_capsules())
    }
}
