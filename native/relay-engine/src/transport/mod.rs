//! The HTTP versions, behind one narrow contract: a request head, an answer, and a data stream in two halves.
//!
//! No transport names a tunnel protocol and no protocol names a transport.

pub mod h1;
pub mod h2;
pub mod h3;
pub mod prefixed;
pub mod quic;
pub mod tls;
pub mod wire;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::net::TcpStream;

use crate::config::Http;
use crate::pool::Buffer;

/// Who is on the other side of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where the client connects from.
    pub address: SocketAddr,
    /// Principal proven by a TLS client certificate.
    pub principal: Option<Arc<str>>,
}

/// The head of a request, whatever version carried it.
#[derive(Debug)]
pub struct RequestHead {
    /// Exact version, for the rules that differ between HTTP/1.0 and HTTP/1.1.
    pub version: capsule_core::request::Version,
    /// Method as written.
    pub method: String,
    /// `:scheme` (h2, h3).
    pub scheme: Option<String>,
    /// `:authority` (h2, h3).
    pub authority: Option<String>,
    /// `:path`, or the request target of HTTP/1.1 as written.
    pub path: Option<String>,
    /// `:protocol` of an extended CONNECT.
    pub protocol: Option<String>,
    /// Header fields.
    pub fields: HeaderMap,
}

impl RequestHead {
    /// The HTTP version as configured and logged.
    pub fn http(&self) -> Http {
        use capsule_core::request::Version;
        match self.version {
            Version::H1_0 | Version::H1_1 => Http::H1,
            Version::H2 => Http::H2,
            Version::H3 => Http::H3,
        }
    }
}

/// A final answer that opens no tunnel.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status, 4xx or 5xx.
    pub status: u16,
    /// Header fields, without framing.
    pub fields: Vec<(HeaderName, HeaderValue)>,
    /// Problem document.
    pub body: Bytes,
    /// HTTP/1.1: end the connection after this answer.
    pub close: bool,
}

/// How long what a broken target sent before may take to reach the client ahead of the reset.
pub const FLUSH: Duration = Duration::from_millis(500);
/// Chunks of one tunnel that a transport may hold, however small they are.
pub const CHUNKS: usize = 1024;

/// Why a data stream ends before its time, seen from the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The target's connection broke: CONNECT_ERROR, a close without close_notify, a TCP RST; after what it sent before.
    Target,
    /// The client's side broke, and the target was reset for it: the same signals, at once.
    Client,
    /// The client's data stream was malformed.
    Malformed,
    /// The client sent a datagram where none has a meaning.
    Datagram,
    /// The relay gives the tunnel up (idle, drain, cancelled).
    Cancelled,
}

/// The client's side of the data stream is gone: reset, broken, or its connection lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client's side of the tunnel is gone")]
pub struct Gone;

/// Why the client's data stream ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Reset, broken, or its connection lost.
    #[error("the client's data stream was cut off")]
    Gone,
    /// Not a well-formed message, e.g. trailers.
    #[error("the client's message was malformed")]
    Malformed,
}

impl From<Gone> for Lost {
    fn from(_: Gone) -> Self {
        Lost::Gone
    }
}

/// Bytes from the client.
pub trait RecvHalf {
    /// Appends one or more chunks to `chunks`; `false` is a clean end of the data stream. Safe to drop and call again.
    fn recv(&mut self, chunks: &mut Vec<Bytes>) -> impl Future<Output = Result<bool, Lost>>;

    /// Gives flow-control credit back for bytes that are dealt with.
    fn release(&mut self, bytes: usize);

    /// Wants no more bytes.
    fn abort(&mut self, fault: Fault);

    /// Looks, while the target takes nothing, whether the client reset its direction. For transports that tell only readers:
    /// may read a byte ahead, so it is not for every wake-up.
    fn lost(&mut self) -> bool {
        false
    }

    /// Datagrams that come and go beside the data stream, where the transport has such.
    fn flow(&self) -> Option<h3::Flow> {
        None
    }

    /// The plain socket under the data stream, for moving bytes inside the kernel; only while no byte is buffered above it.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }

    /// The tunnel is over and nothing more is wanted: a clean end, whether or not the client has ended its direction.
    fn ended(&mut self) {}
}

/// Bytes to the client.
pub trait SendHalf {
    /// Waits until some of `want` bytes may be sent; returns how many. Safe to drop and call again.
    fn ready(&mut self, want: usize) -> impl Future<Output = Result<usize, Gone>>;

    /// Gives back what [`ready`](Self::ready) promised and nobody needs now: neighbours may be waiting for it.
    fn unready(&mut self) {}

    /// Sends `buffer[start..end]`; bytes before `start` are free for the transport's own header. At most what `ready` gave.
    fn send(
        &mut self,
        buffer: Buffer,
        start: usize,
        end: usize,
    ) -> impl Future<Output = Result<(), Gone>>;

    /// Ends the data stream cleanly, after everything sent.
    fn finish(&mut self) -> impl Future<Output = Result<(), Gone>>;

    /// Whether the client has everything that was sent, as far as the transport can tell.
    fn delivered(&self) -> bool;

    /// Ends the data stream abruptly.
    fn abort(&mut self, fault: Fault) -> impl Future<Output = ()>;

    /// Resolves when the client wants no more bytes. Safe to drop and call again.
    fn gone(&mut self) -> impl Future<Output = Gone>;

    /// The plain socket under the data stream, for moving bytes inside the kernel.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

/// One request that waits for its answer.
pub trait Exchange {
    /// Bytes from the client.
    type Recv: RecvHalf;
    /// Bytes to the client.
    type Send: SendHalf;

    /// Tells whether HTTP datagrams have a meaning for this request. Those that came and have none are an error.
    fn datagrams(&mut self, wanted: bool) {
        let _ = wanted;
    }

    /// Sends `100 (Continue)`.
    fn proceed(&mut self) -> impl Future<Output = Result<(), Gone>>;

    /// Answers without a tunnel.
    fn refuse(self, refusal: Refusal) -> impl Future<Output = ()>;

    /// Answers 200, or 101 with `upgrade` where the version has that, and hands over the data stream.
    fn accept(
        self,
        fields: Vec<(HeaderName, HeaderValue)>,
        upgrade: Option<&str>,
    ) -> impl Future<Output = Result<(Self::Recv, Self::Send), Gone>>;

    /// Resolves when the client gave the request up. Safe to drop and call again.
    fn gone(&mut self) -> impl Future<Output = Gone>;
}
