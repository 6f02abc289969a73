//! A request stream's data in two halves, on top of the QUIC stack.

use std::cell::Cell;
use std::fmt;
use std::future::{pending, poll_fn};
use std::rc::Rc;

use bytes::{Buf, Bytes};
use futures_util::future::{Either, select};
use tokio::sync::Notify;

use super::code::{self, Code};
use super::flow::{Flow, Inbox};
use super::frame::{self, Decoder, FrameStep};
use crate::pool::{Backlog, Buffer};
use crate::transport::quic::{self, VarInt};
use crate::transport::{CHUNKS, FLUSH, Fault, Gone, Lost, RecvHalf, SendHalf};

/// Chunks taken from a stream in one go.
const BATCH: usize = 32;

/// A code as the QUIC stack wants it.
pub(super) fn number(code: Code) -> VarInt {
    VarInt::from_u64(code.value()).unwrap_or(VarInt::MAX)
}

/// Bytes read at once from a stream of frames.
pub(super) const READ: usize = 64 * 1024;

/// Reads up to the end of the next field section; what follows it stays in `early`. `None`: the stream was reset, or ended where
/// it may end.
pub(crate) async fn read_field_section(
    recv: &mut quic::RecvStream,
    decoder: &mut Decoder,
    early: &mut Bytes,
) -> Result<Option<Vec<u8>>, code::Fault> {
    loop {
        match decoder.next(early)? {
            FrameStep::Skip(bytes) => early.advance(bytes),
            FrameStep::Headers(block) => return Ok(Some(block)),
            FrameStep::Data(_) => return Err(code::Fault::Connection(Code::FRAME_UNEXPECTED)),
            FrameStep::Idle => match recv.read_chunk(READ).await {
                Ok(Some(chunk)) => *early = chunk,
                Ok(None) => {
                    decoder.end()?;
                    return Ok(None);
                }
                Err(_) => return Ok(None),
            },
        }
    }
}

/// Ends the connection for a violation.
pub(super) fn close(connection: &quic::Connection, code: Code) {
    connection.close(number(code), code.name().unwrap_or_default().as_bytes());
}

/// What the two halves of a stream and its connection tell each other.
#[derive(Debug, Default)]
pub struct Verdict {
    code: Cell<Option<Code>>,
    wake: Notify,
    inbox: Inbox,
}

impl Verdict {
    /// Condemns the stream: it is to be reset with `code`, whatever else happens.
    pub fn condemn(&self, code: Code) {
        self.code.set(Some(code));
        self.wake.notify_waiters();
        self.wake.notify_one();
    }

    /// Tells whether HTTP datagrams have a meaning for the request. Those that came and have none condemn it.
    //= rfc9297 §2 datagram-without-meaning
    pub fn datagrams(&self, wanted: bool) {
        if !self.inbox.decide(wanted) {
            self.condemn(Code::DATAGRAM_ERROR);
        }
    }

    /// Datagrams that came for the stream.
    pub(super) const fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// The code to reset with: that of the verdict, or the given one.
    fn or(&self, code: Code) -> VarInt {
        number(self.code.get().unwrap_or(code))
    }

    fn is_condemned(&self) -> bool {
        self.code.get().is_some()
    }

    /// Resolves once the stream is condemned. Safe to drop and call again.
    pub async fn condemned(&self) {
        while self.code.get().is_none() {
            self.wake.notified().await;
        }
    }
}

//= rfc9114 §4.4 connect-error
//= connect-tcp §3.4 abrupt-close-h3
//= rfc9297 §3.3 malformed-capsule
fn code_of(fault: Fault) -> Code {
    match fault {
        Fault::Target | Fault::Client => Code::CONNECT_ERROR,
        Fault::Malformed => Code::MESSAGE_ERROR,
        Fault::Datagram => Code::DATAGRAM_ERROR,
        Fault::Cancelled => Code::REQUEST_CANCELLED,
    }
}

/// Bytes from the peer.
pub struct H3Recv {
    stream: quic::RecvStream,
    connection: quic::Connection,
    decoder: Decoder,
    /// Received behind the head, not yet decoded.
    early: Vec<Bytes>,
    verdict: Rc<Verdict>,
    /// The peer takes HTTP datagrams in QUIC DATAGRAM frames.
    datagrams: Rc<Cell<bool>>,
    over: bool,
}

impl fmt::Debug for H3Recv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H3Recv")
            .field("stream", &self.stream.id())
            .finish_non_exhaustive()
    }
}

impl H3Recv {
    /// Reads DATA frames from `stream`, of which `early` was received and `decoder` is behind the head.
    pub fn new(
        stream: quic::RecvStream,
        connection: quic::Connection,
        mut decoder: Decoder,
        early: Vec<Bytes>,
        verdict: Rc<Verdict>,
        datagrams: Rc<Cell<bool>>,
    ) -> Self {
        decoder.tunnel();
        Self {
            stream,
            connection,
            decoder,
            early,
            verdict,
            datagrams,
            over: false,
        }
    }

    fn decode(&mut self, mut received: Bytes, chunks: &mut Vec<Bytes>) -> Result<(), Lost> {
        loop {
            match self.decoder.next(&received) {
                Ok(FrameStep::Skip(bytes)) => received.advance(bytes),
                Ok(FrameStep::Data(bytes)) => {
                    let length = usize::try_from(bytes)
                        .unwrap_or(usize::MAX)
                        .min(received.len());
                    if length == 0 {
                        return Ok(());
                    }
                    self.decoder.advance(length as u64);
                    chunks.push(received.split_to(length));
                }
                Ok(FrameStep::Headers(_)) => {
                    return Err(self.violated(code::Fault::Stream(Code::MESSAGE_ERROR)));
                }
                Ok(FrameStep::Idle) => return Ok(()),
                Err(fault) => return Err(self.violated(fault)),
            }
        }
    }

    /// Takes what else has arrived. An end or an error shows again at the next read. Apart, because the batch has no place in
    /// the memory of a tunnel that waits.
    fn at_hand(&mut self, chunks: &mut Vec<Bytes>) -> Result<(), Lost> {
        let mut batch = [const { Bytes::new() }; BATCH];
        if let Ok(Some(count)) = self.stream.try_read(&mut batch) {
            for received in batch.into_iter().take(count) {
                self.decode(received, chunks)?;
            }
        }
        Ok(())
    }

    fn violated(&self, fault: code::Fault) -> Lost {
        match fault {
            code::Fault::Connection(code) => {
                close(&self.connection, code);
                Lost::Gone
            }
            code::Fault::Stream(code) => {
                self.verdict.condemn(code);
                Lost::Malformed
            }
        }
    }
}

impl RecvHalf for H3Recv {
    async fn recv(&mut self, chunks: &mut Vec<Bytes>) -> Result<bool, Lost> {
        for early in std::mem::take(&mut self.early) {
            self.decode(early, chunks)?;
        }
        while chunks.is_empty() {
            let read = {
                let reading = std::pin::pin!(self.stream.read_chunk(usize::MAX));
                let condemned = std::pin::pin!(self.verdict.condemned());
                match select(reading, condemned).await {
                    Either::Left((read, _)) => read,
                    Either::Right(_) => return Err(Lost::Malformed),
                }
            };
            match read {
                Ok(Some(chunk)) => {
                    self.decode(chunk, chunks)?;
                    self.at_hand(chunks)?;
                }
                Ok(None) => {
                    return match self.decoder.end() {
                        Ok(()) => {
                            self.over = true;
                            Ok(false)
                        }
                        Err(fault) => Err(self.violated(fault)),
                    };
                }
                Err(_) => return Err(Lost::Gone),
            }
        }
        Ok(true)
    }

    fn lost(&mut self) -> bool {
        if self.verdict.is_condemned() || self.connection.close_reason().is_some() {
            return true;
        }
        let mut chunk = [Bytes::new()];
        match self.stream.try_read(&mut chunk) {
            Ok(read) => {
                self.early.extend(chunk.into_iter().take(read.unwrap_or(0)));
                false
            }
            Err(_) => true,
        }
    }

    fn flow(&self) -> Option<Flow> {
        let stream = u64::from(VarInt::from(self.stream.id()));
        let (quic, verdict) = (self.connection.clone(), self.verdict.clone());
        Some(Flow::new(quic, stream, verdict, self.datagrams.clone()))
    }

    // The QUIC stack gives credit as bytes are read; what was read and not written is one batch.
    fn release(&mut self, _: usize) {}

    fn abort(&mut self, fault: Fault) {
        self.over = true;
        self.stream.stop(self.verdict.or(code_of(fault)));
    }
}

impl Drop for H3Recv {
    fn drop(&mut self) {
        if !self.over {
            self.stream.stop(self.verdict.or(Code::NO_ERROR));
        }
    }
}

/// Bytes to the peer.
pub struct H3Send {
    stream: quic::SendStream,
    backlog: Backlog,
    verdict: Rc<Verdict>,
    over: bool,
}

impl fmt::Debug for H3Send {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H3Send")
            .field("stream", &self.stream.id())
            .finish_non_exhaustive()
    }
}

impl H3Send {
    /// Writes DATA frames to `stream`, on which the head was sent.
    pub fn new(stream: quic::SendStream, verdict: Rc<Verdict>) -> Self {
        Self {
            stream,
            backlog: Backlog::default(),
            verdict,
            over: false,
        }
    }
}

impl SendHalf for H3Send {
    async fn ready(&mut self, want: usize) -> Result<usize, Gone> {
        if self.backlog.held() >= CHUNKS {
            let backlog = self.backlog.clone();
            tokio::select! {
                () = backlog.below(CHUNKS) => {}
                gone = self.gone() => return Err(gone),
            }
        }
        self.stream.turn().await;
        Ok(want)
    }

    fn unready(&mut self) {
        self.stream.pass();
    }

    async fn send(&mut self, mut buffer: Buffer, start: usize, end: usize) -> Result<(), Gone> {
        let mut header = [0; frame::MAX_DATA_HEADER];
        let length = frame::data_header((end - start) as u64, &mut header);
        let front = buffer.prepend(start, &header[..length]);
        let chunk = buffer.freeze_counted(front, end, &self.backlog);
        self.stream.write_chunk(chunk).await.map_err(|_| Gone)
    }

    async fn finish(&mut self) -> Result<(), Gone> {
        self.over = true;
        self.stream.finish().map_err(|_| Gone)?;
        // Neither a drain nor an idle close may cut off what is still on its way. How the client leaves once the end is on it
        // makes no difference.
        let _ = self.stream.stopped().await;
        Ok(())
    }

    fn delivered(&self) -> bool {
        self.backlog.held() == 0
    }

    async fn abort(&mut self, fault: Fault) {
        if fault == Fault::Target {
            // A reset takes queued bytes with it: what the target sent before it broke goes first.
            self.backlog.drained(FLUSH).await;
        }
        self.over = true;
        self.stream.reset(self.verdict.or(code_of(fault)));
    }

    async fn gone(&mut self) -> Gone {
        match poll_fn(|cx| self.stream.poll_stopped(cx)).await {
            // Everything was delivered after the end: there is nothing more to stop.
            Ok(None) => pending().await,
            Ok(Some(_)) | Err(_) => Gone,
        }
    }
}

impl Drop for H3Send {
    fn drop(&mut self) {
        if !self.over {
            self.stream.reset(self.verdict.or(Code::INTERNAL_ERROR));
        }
    }
}
