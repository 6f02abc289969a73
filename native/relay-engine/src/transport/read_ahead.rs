//! Few, large reads below TLS: the TLS library asks for 4 KiB at a time, the socket is read 64 KiB at a time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::wire::Wire;
use crate::pool::{Buffer, HEADROOM, PAYLOAD};

/// TLS over a socket, on either side.
pub type Tls = tokio_rustls::TlsStream<ReadAhead>;

/// A socket that is read ahead. Holds a buffer only while there are bytes in it.
#[derive(Debug)]
pub struct ReadAhead {
    wire: Wire,
    ahead: Option<Ahead>,
}

#[derive(Debug)]
struct Ahead {
    buffer: Buffer,
    at: usize,
    end: usize,
}

impl ReadAhead {
    /// Reads `wire` ahead.
    pub fn new(wire: Wire) -> Self {
        Self { wire, ahead: None }
    }

    /// The socket.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_none() {
            let mut buffer = Buffer::take();
            let mut room = ReadBuf::new(buffer.payload_mut(PAYLOAD));
            ready!(Pin::new(&mut self.wire).poll_read(cx, &mut room))?;
            let end = HEADROOM + room.filled().len();
            let at = HEADROOM;
            self.ahead = (end > at).then_some(Ahead { buffer, at, end });
        }
        if let Some(ahead) = &mut self.ahead {
            let length = (ahead.end - ahead.at).min(buf.remaining());
            buf.put_slice(&ahead.buffer.as_ref()[ahead.at..ahead.at + length]);
            ahead.at += length;
            if ahead.at == ahead.end {
                self.ahead = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
