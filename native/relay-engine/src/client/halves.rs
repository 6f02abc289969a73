//! The halves of a data stream, whatever version carries it.

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::pool::Buffer;
use crate::transport::h1::{ClearRecv, ClearSend, SecureRecv, SecureSend};
use crate::transport::h2::{H2Recv, H2Send};
use crate::transport::h3::Flow;
use crate::transport::h3::stream::{H3Recv, H3Send};
use crate::transport::{Fault, Gone, Lost, RecvHalf, SendHalf};

/// Bytes from the proxy.
#[derive(Debug)]
pub enum Recv {
    /// HTTP/1.1 in the clear.
    Clear(ClearRecv),
    /// HTTP/1.1 over TLS.
    Secure(SecureRecv),
    /// HTTP/2.
    H2(H2Recv),
    /// HTTP/3.
    H3(Box<H3Recv>),
}

/// Bytes to the proxy.
#[derive(Debug)]
pub enum Send {
    /// HTTP/1.1 in the clear.
    Clear(ClearSend),
    /// HTTP/1.1 over TLS.
    Secure(SecureSend),
    /// HTTP/2.
    H2(H2Send),
    /// HTTP/3.
    H3(Box<H3Send>),
}

macro_rules! each {
    ($self:ident, $half:ident => $call:expr) => {
        match $self {
            Self::Clear($half) => $call,
            Self::Secure($half) => $call,
            Self::H2($half) => $call,
            Self::H3($half) => $call,
        }
    };
}

impl RecvHalf for Recv {
    async fn recv(&mut self, chunks: &mut Vec<Bytes>) -> Result<bool, Lost> {
        each!(self, half => half.recv(chunks).await)
    }

    fn release(&mut self, bytes: usize) {
        each!(self, half => half.release(bytes));
    }

    fn abort(&mut self, fault: Fault) {
        each!(self, half => half.abort(fault));
    }

    fn flow(&self) -> Option<Flow> {
        each!(self, half => half.flow())
    }
}

impl SendHalf for Send {
    async fn ready(&mut self, want: usize) -> Result<usize, Gone> {
        each!(self, half => half.ready(want).await)
    }

    async fn send(&mut self, buffer: Buffer, start: usize, end: usize) -> Result<(), Gone> {
        each!(self, half => half.send(buffer, start, end).await)
    }

    async fn finish(&mut self) -> Result<(), Gone> {
        each!(self, half => half.finish().await)
    }

    fn delivered(&self) -> bool {
        each!(self, half => half.delivered())
    }

    async fn abort(&mut self, fault: Fault) {
        each!(self, half => half.abort(fault).await);
    }

    async fn gone(&mut self) -> Gone {
        each!(self, half => half.gone().await)
    }

    fn socket(&self) -> Option<&TcpStream> {
        each!(self, half => half.socket())
    }

    fn unready(&mut self) {
        each!(self, half => half.unready());
    }
}
