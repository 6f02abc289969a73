//! HTTP/1.1: one request after another until one of them becomes a tunnel.

mod clear;
pub mod exchange;
pub mod head;
mod secure;

pub use clear::{ClearRecv, ClearSend, halves as clear_halves};
pub use secure::{SecureRecv, SecureSend, halves as secure_halves};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::tls::TlsStream;
use super::wire::Wire;
use super::{RecvHalf, SendHalf};

/// What HTTP/1.1 runs on: a socket, or TLS over one.
pub trait Io: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Bytes from the peer once the connection is a tunnel.
    type Recv: RecvHalf;
    /// Bytes to the peer once the connection is a tunnel.
    type Send: SendHalf;

    /// The socket below.
    fn wire(&self) -> &Wire;

    /// Turns the connection into a data stream; `early` was read behind the head.
    fn into_halves(self, early: Bytes) -> (Self::Recv, Self::Send);
}

impl Io for Wire {
    type Recv = ClearRecv;
    type Send = ClearSend;

    fn wire(&self) -> &Wire {
        self
    }

    fn into_halves(self, early: Bytes) -> (ClearRecv, ClearSend) {
        clear_halves(self, early)
    }
}

impl Io for TlsStream {
    type Recv = SecureRecv;
    type Send = SecureSend;

    fn wire(&self) -> &Wire {
        TlsStream::wire(self)
    }

    fn into_halves(self, early: Bytes) -> (SecureRecv, SecureSend) {
        secure_halves(self, early)
    }
}

/// A connection between requests.
#[derive(Debug)]
pub struct Connection<I> {
    io: I,
    /// Read, not yet parsed.
    buffer: BytesMut,
}

impl<I: Io> Connection<I> {
    /// Starts with bytes that were already read.
    pub fn new(io: I, read: BytesMut) -> Self {
        Self { io, buffer: read }
    }
}
