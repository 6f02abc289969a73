//! TLS over a socket after the handshake. Records are opened and sealed where they lie: what is received goes on in the buffer that
//! the socket was read into, and a buffer that is sent leaves as it is, with the edges of records between its pieces.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::keys::Fault;
use super::outbox::Outbox;
use super::session::{Received, Session};
use crate::pool::{Buffer, HEADROOM};
use crate::transport::wire::Wire;

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        io::Error::new(ErrorKind::InvalidData, fault)
    }
}

/// How the peer's direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With close_notify.
    Clean,
    /// Without.
    Truncated,
    /// By something that is no TLS.
    Broken(Fault),
}

/// TLS over a socket, on either side. Holds a buffer only while bytes are on their way.
#[derive(Debug)]
pub struct TlsStream {
    wire: Wire,
    session: Box<Session>,
    out: Outbox,
    /// Received: the beginning of a record.
    begun: Vec<u8>,
    /// Content that was received and not yet taken.
    content: Option<Content>,
    end: Option<End>,
    closed: bool,
}

/// Some bytes in a buffer.
#[derive(Debug)]
pub struct Content {
    /// Where they are.
    pub buffer: Buffer,
    /// The first of them.
    pub start: usize,
    /// Behind the last.
    pub end: usize,
}

impl TlsStream {
    /// Goes on after the handshake; `begun` was received behind it.
    pub(super) fn new(wire: Wire, session: Session, begun: Vec<u8>) -> Self {
        Self {
            wire,
            session: Box::new(session),
            out: Outbox::default(),
            begun,
            content: None,
            end: None,
            closed: false,
        }
    }

    /// The socket.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Receives content, as much as one read of the socket brings; `None` after close_notify. An end without is an error.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Content>>> {
        if let Some(content) = self.content.take() {
            return Poll::Ready(Ok(Some(content)));
        }
        loop {
            match self.end {
                None => {}
                Some(End::Clean) => return Poll::Ready(Ok(None)),
                //= rfc8446 §6.1 truncation
                Some(End::Truncated) => {
                    return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
                }
                Some(End::Broken(fault)) => return Poll::Ready(Err(fault.into())),
            }
            let start = HEADROOM;
            let mut filled = start + self.begun.len();
            // What the handshake has left may hold a record already.
            let whole = matches!(self.session.length(&self.begun), Ok(Some(length)) if length <= self.begun.len());
            if !whole {
                ready!(self.wire.tcp().poll_read_ready(cx))?;
            }
            // Taken only for the length of a poll: an idle connection holds no buffer.
            let mut buffer = Buffer::take();
            let bytes = buffer.bytes_mut();
            if !whole {
                match self.wire.tcp().try_read(&mut bytes[filled..]) {
                    Ok(0) => {
                        self.end = Some(End::Truncated);
                        continue;
                    }
                    Ok(length) => filled += length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            bytes[start..start + self.begun.len()].copy_from_slice(&self.begun);
            let (end, at) = self.open(&mut bytes[..filled], start);
            self.begun = bytes[at..filled].to_vec();
            if !self.out.is_empty() {
                // What cannot be written now goes with what is written next.
                let _ = self.out.try_write(&self.wire);
            }
            if end > start {
                return Poll::Ready(Ok(Some(Content { buffer, start, end })));
            }
            if at > start && self.end.is_none() {
                // Records without content must not keep the worker.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Opens the whole records in `bytes[start..]`. Content is put together at `start`; returns where it ends, and where the first
    /// record begins that is not whole.
    fn open(&mut self, bytes: &mut [u8], start: usize) -> (usize, usize) {
        let (mut end, mut at) = (start, start);
        let fault = loop {
            let length = match self.session.length(&bytes[at..]) {
                Ok(Some(length)) if length <= bytes.len() - at => length,
                Ok(_) => return (end, at),
                Err(fault) => break fault,
            };
            let record = &mut bytes[end..at + length];
            match self.session.receive(record, at - end, &mut self.out) {
                Ok(Received::Content(length)) => end += length,
                Ok(Received::Nothing) => {}
                Ok(Received::Closed) => {
                    //= rfc8446 §6.1 nothing-after-close
                    self.end = Some(End::Clean);
                    return (end, bytes.len());
                }
                Err(fault) => break fault,
            }
            at += length;
        };
        self.end = Some(End::Broken(fault));
        self.closed = true;
        self.session.reproach(fault, &mut self.out);
        (end, bytes.len())
    }

    /// Sends the bytes of `content`, which is taken out; ready once all of it is written. What was written before goes first.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        content: &mut Option<Content>,
    ) -> Poll<io::Result<()>> {
        if content.is_some() {
            if self.closed {
                return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
            }
            self.session.clear(&mut self.out)?;
            ready!(self.out.poll_write(&self.wire, cx))?;
        }
        if let Some(Content { buffer, start, end }) = content.take() {
            let flight = self.session.take_off(buffer, start, end)?;
            self.out.launch(&self.wire, flight)?;
        }
        self.out.poll_write(&self.wire, cx)
    }

    fn poll_push(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            match self.session.push(bytes, &mut self.out)? {
                0 => ready!(self.out.poll_write(&self.wire, cx))?,
                taken => return Poll::Ready(Ok(taken)),
            }
        }
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut content) = ready!(self.poll_receive(cx))? {
            let length = (content.end - content.start).min(buf.remaining());
            let next = content.start + length;
            buf.put_slice(&content.buffer.as_ref()[content.start..next]);
            content.start = next;
            self.content = (next < content.end).then_some(content);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_push(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            match self.poll_push(cx, buf) {
                Poll::Ready(Ok(taken)) => {
                    written += taken;
                    if taken < buf.len() {
                        break;
                    }
                }
                // An error is found again by the next call.
                _ if written > 0 => break,
                other => return other,
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.session.seal(&mut this.out)?;
        this.out.poll_write(&this.wire, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.closed {
            this.session.close(&mut this.out)?;
            this.closed = true;
        }
        ready!(this.out.poll_write(&this.wire, cx))?;
        Poll::Ready(this.wire.shutdown_write())
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
