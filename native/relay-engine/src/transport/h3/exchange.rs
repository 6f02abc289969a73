//! Answering one request: an interim or a final head, a refusal, or the two halves of a tunnel.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::future::FutureExt;
use http::{HeaderName, HeaderValue};
use tokio::time::timeout;

use super::code::Code;
use super::frame::{self, Decoder, FrameStep, data_header};
use super::message;
use super::stream::{H3Recv, H3Send, READ, Verdict, close, number};
use super::{code, qpack};
use crate::transport::quic;
use crate::transport::{CHUNKS, Exchange, Gone, Refusal};

/// Optimistic bytes that are held while the target is dialled; beyond them the stream's window holds the client back.
const EARLY: usize = 64 * 1024;
/// How much of a refused request is looked at, and for how long once it is answered.
const LEFTOVER: usize = 64 * 1024;
const LEFTOVER_TIME: Duration = Duration::from_secs(1);

/// The sending direction of a request that has no complete answer yet: reset when it is given up.
pub(super) struct Unanswered(pub(super) Option<quic::SendStream>);

impl Unanswered {
    /// The stream, unless the answer is complete.
    fn stream(&mut self) -> Result<&mut quic::SendStream, Gone> {
        self.0.as_mut().ok_or(Gone)
    }
}

impl Unanswered {
    /// Resets the stream for what the client did.
    fn condemn(&mut self, fault: code::Fault) {
        if let (Some(mut send), code::Fault::Stream(code)) = (self.0.take(), fault) {
            send.reset(number(code));
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        // Dropped as it is, the stream would end cleanly, perhaps in the middle of a frame.
        if let Some(mut send) = self.0.take() {
            send.reset(number(Code::REQUEST_CANCELLED));
        }
    }
}

/// The receiving direction of a request: stopped when it is given up.
pub(super) struct Unread(Option<quic::RecvStream>);

impl Unread {
    /// Takes what is behind a head.
    pub(super) fn new(recv: quic::RecvStream) -> Self {
        Self(Some(recv))
    }

    /// The next piece; `None` at the end, and once it was stopped.
    async fn read(&mut self, most: usize) -> Result<Option<Bytes>, Gone> {
        let Some(recv) = &mut self.0 else {
            return Ok(None);
        };
        recv.read_chunk(most).await.map_err(|_| Gone)
    }

    /// Ends the direction, or the connection, for what the client did.
    fn condemn(&mut self, fault: code::Fault, quic: &quic::Connection) {
        match fault {
            code::Fault::Connection(code) => close(quic, code),
            code::Fault::Stream(code) => self.stop(code),
        }
    }

    fn stop(&mut self, code: Code) {
        if let Some(mut recv) = self.0.take() {
            recv.stop(number(code));
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        // Left to itself the stream would be stopped with 0, which is no code of HTTP/3.
        self.stop(Code::REQUEST_CANCELLED);
    }
}

/// One request that waits for its answer.
pub(super) struct H3Exchange {
    /// An answer has no content (RFC 9110 §9.3.2).
    pub(super) head_only: bool,
    pub(super) send: Unanswered,
    pub(super) recv: Unread,
    /// The content that the head announces; not for a CONNECT, whose content is not the request's.
    pub(super) content_length: Option<u64>,
    /// The client ends its direction with the request.
    pub(super) request_ends: bool,
    pub(super) quic: quic::Connection,
    pub(super) decoder: Decoder,
    /// Received behind the head, not yet decoded.
    pub(super) early: Vec<Bytes>,
    pub(super) verdict: Rc<Verdict>,
    /// The client takes HTTP datagrams in QUIC DATAGRAM frames.
    pub(super) datagrams: Rc<Cell<bool>>,
}

/// Writes a head; connection-specific fields have no place in it.
async fn write_head(
    send: &mut quic::SendStream,
    status: u16,
    fields: &[(HeaderName, HeaderValue)],
) -> Result<(), Gone> {
    let mut head = Vec::new();
    let fields = fields
        .iter()
        .filter(|(name, _)| *name != http::header::UPGRADE && *name != http::header::CONNECTION);
    message::put_response(status, fields.map(|(name, value)| (name, value)), &mut head);
    send.write_chunk(head.into()).await.map_err(|_| Gone)
}

/// Answers without a tunnel.
pub(super) async fn answer(
    mut send: Unanswered,
    mut refusal: Refusal,
    head_only: bool,
) -> Result<(), Gone> {
    let stream = send.stream()?;
    let length = HeaderValue::from(refusal.body.len());
    refusal.fields.push((http::header::CONTENT_LENGTH, length));
    write_head(stream, refusal.status, &refusal.fields).await?;
    if !head_only {
        let mut header = [0; frame::MAX_DATA_HEADER];
        let size = data_header(refusal.body.len() as u64, &mut header);
        let header = stream.write_all(&header[..size]).await;
        header.map_err(|_| Gone)?;
        stream.write_chunk(refusal.body).await.map_err(|_| Gone)?;
    }
    stream.finish().map_err(|_| Gone)?;
    send.0 = None;
    Ok(())
}

/// What comes behind the head of a request that gets no tunnel: nobody wants it, but it has to be well-formed.
struct Leftover {
    decoder: Decoder,
    announced: Option<u64>,
    content: u64,
    /// Bytes looked at.
    seen: usize,
}

impl Leftover {
    fn new(decoder: Decoder, announced: Option<u64>) -> Self {
        Self {
            decoder,
            announced,
            content: 0,
            seen: 0,
        }
    }

    /// Takes what was read.
    fn read(&mut self, read: Result<Option<Bytes>, Gone>) -> Result<Progress, code::Fault> {
        match read {
            Ok(Some(data)) => self.take(data),
            Ok(None) => self.end(),
            Err(Gone) => Ok(Progress::Done),
        }
    }

    /// Takes the next piece.
    fn take(&mut self, mut data: Bytes) -> Result<Progress, code::Fault> {
        self.seen += data.len();
        loop {
            match self.decoder.next(&data)? {
                FrameStep::Skip(bytes) => data.advance(bytes),
                FrameStep::Data(_) if data.is_empty() => return Ok(Progress::More),
                FrameStep::Data(bytes) => {
                    let length = usize::try_from(bytes).unwrap_or(usize::MAX).min(data.len());
                    self.decoder.advance(length as u64);
                    data.advance(length);
                    self.content += length as u64;
                }
                //= rfc9114 §4.1.2 malformed-request
                FrameStep::Headers(block) => {
                    message::trailers(qpack::decode(&block)?)?;
                }
                FrameStep::Idle => return Ok(Progress::More),
            }
        }
    }

    /// The client's direction is at its end.
    fn end(&self) -> Result<Progress, code::Fault> {
        self.decoder.end()?;
        //= rfc9114 §4.1.2 content-length
        match self.announced {
            Some(announced) if announced != self.content => Err(message::MALFORMED),
            _ => Ok(Progress::Done),
        }
    }
}

/// Whether more of a request may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    More,
    Done,
}

impl Exchange for H3Exchange {
    type Recv = H3Recv;
    type Send = H3Send;

    fn datagrams(&mut self, wanted: bool) {
        self.verdict.datagrams(wanted);
    }

    async fn proceed(&mut self) -> Result<(), Gone> {
        write_head(self.send.stream()?, 100, &[]).await
    }

    async fn refuse(self, refusal: Refusal) {
        let Self {
            mut send, mut recv, ..
        } = self;
        let mut leftover = Leftover::new(self.decoder, self.content_length);
        // What is at hand counts before the answer.
        let mut judged = Ok(Progress::More);
        for early in self.early {
            judged = judged.and_then(|_| leftover.take(early));
        }
        while judged == Ok(Progress::More) && leftover.seen < LEFTOVER {
            judged = match recv.read(READ).now_or_never() {
                Some(read) => leftover.read(read),
                None => break,
            };
        }
        if let Err(fault) = judged {
            send.condemn(fault);
            return recv.condemn(fault, &self.quic);
        }
        if answer(send, refusal, self.head_only).await.is_err() {
            return;
        }
        // A CONNECT has no end of its own; of anything else the rest is on its way.
        if self.request_ends {
            let rest = async {
                while judged == Ok(Progress::More) && leftover.seen < LEFTOVER {
                    judged = leftover.read(recv.read(READ).await);
                }
            };
            let _ = timeout(LEFTOVER_TIME, rest).await;
            if let Err(fault) = judged {
                return recv.condemn(fault, &self.quic);
            }
        }
        //= connect-tcp §4.1 discard-optimistic
        // Optimistic bytes are dropped; the answer is complete without them.
        recv.stop(Code::NO_ERROR);
    }

    async fn accept(
        mut self,
        fields: Vec<(HeaderName, HeaderValue)>,
        _: Option<&str>,
    ) -> Result<(H3Recv, H3Send), Gone> {
        write_head(self.send.stream()?, 200, &fields).await?;
        let send = self.send.0.take().ok_or(Gone)?;
        let recv = H3Recv::new(
            self.recv.0.take().ok_or(Gone)?,
            self.quic,
            self.decoder,
            self.early,
            self.verdict.clone(),
            self.datagrams,
        );
        Ok((recv, H3Send::new(send, self.verdict)))
    }

    async fn gone(&mut self) -> Gone {
        // A reset shows only to a reader. What is read meanwhile is optimistic data, held up to a bound; beyond it the
        // stream's window holds the client back.
        //= connect-tcp §4.1 buffer-optimistic
        let reset = async {
            while self.early.len() < CHUNKS
                && self.early.iter().map(Bytes::len).sum::<usize>() < EARLY
            {
                match self.recv.read(EARLY).await {
                    Ok(Some(data)) => self.early.push(data),
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
            std::future::pending::<()>().await;
        };
        let Ok(send) = self.send.stream() else {
            return Gone;
        };
        let stopped = async {
            if let Ok(None) = send.stopped().await {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = reset => {}
            () = stopped => {}
            () = self.verdict.condemned() => {
                send.reset(number(Code::DATAGRAM_ERROR));
                self.recv.stop(Code::DATAGRAM_ERROR);
                self.send.0 = None;
            }
        }
        Gone
    }
}
