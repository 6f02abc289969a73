//! Answering one request: an interim or a final head, a refusal, or the two halves of a tunnel.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::code::Code;
use super::frame::{self, Decoder, data_header};
use super::message;
use super::stream::{H3Recv, H3Send, Verdict, number};
use crate::transport::{Exchange, Gone, Refusal};

/// Optimistic bytes that are held while the target is dialled; beyond them the stream's window holds the client back.
const EARLY: usize = 64 * 1024;

/// The sending direction of a request that has no complete answer yet: reset when it is given up.
pub(super) struct Unanswered(pub(super) Option<quinn::SendStream>);

impl Unanswered {
    /// The stream, unless the answer is complete.
    fn stream(&mut self) -> Result<&mut quinn::SendStream, Gone> {
        self.0.as_mut().ok_or(Gone)
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        // Dropped as it is, the stream would end cleanly, perhaps in the middle of a frame.
        if let Some(mut send) = self.0.take() {
            let _ = send.reset(number(Code::REQUEST_CANCELLED));
        }
    }
}

/// One request that waits for its answer.
pub(super) struct H3Exchange {
    /// An answer has no content (RFC 9110 §9.3.2).
    pub(super) head_only: bool,
    pub(super) send: Unanswered,
    pub(super) recv: quinn::RecvStream,
    pub(super) quic: quinn::Connection,
    pub(super) decoder: Decoder,
    /// Received behind the head, not yet decoded.
    pub(super) early: Vec<Bytes>,
    pub(super) verdict: Rc<Verdict>,
}

/// Writes a head; connection-specific fields have no place in it.
async fn write_head(
    send: &mut quinn::SendStream,
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
        let header = Bytes::copy_from_slice(&header[..size]);
        let chunks = &mut [header, refusal.body];
        stream.write_all_chunks(chunks).await.map_err(|_| Gone)?;
    }
    stream.finish().map_err(|_| Gone)?;
    send.0 = None;
    Ok(())
}

impl Exchange for H3Exchange {
    type Recv = H3Recv;
    type Send = H3Send;

    async fn proceed(&mut self) -> Result<(), Gone> {
        write_head(self.send.stream()?, 100, &[]).await
    }

    async fn refuse(mut self, refusal: Refusal) {
        let _ = answer(self.send, refusal, self.head_only).await;
        //= connect-tcp §4.1 discard-optimistic
        // Optimistic bytes are dropped; the answer is complete without them.
        let _ = self.recv.stop(number(Code::NO_ERROR));
    }

    async fn accept(
        mut self,
        fields: Vec<(HeaderName, HeaderValue)>,
        _: Option<&str>,
    ) -> Result<(H3Recv, H3Send), Gone> {
        write_head(self.send.stream()?, 200, &fields).await?;
        let send = self.send.0.take().ok_or(Gone)?;
        let recv = H3Recv::new(
            self.recv,
            self.quic,
            self.decoder,
            self.early,
            self.verdict.clone(),
        );
        Ok((recv, H3Send::new(send, self.verdict)))
    }

    async fn gone(&mut self) -> Gone {
        // A reset shows only to a reader. What is read meanwhile is optimistic data, held up to a bound; beyond it the
        // stream's window holds the client back.
        //= connect-tcp §4.1 buffer-optimistic
        let reset = async {
            while self.early.iter().map(Bytes::len).sum::<usize>() < EARLY {
                match self.recv.read_chunk(EARLY, true).await {
                    Ok(Some(chunk)) => self.early.push(chunk.bytes),
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
                let code = number(Code::DATAGRAM_ERROR);
                let _ = send.reset(code);
                let _ = self.recv.stop(code);
                self.send.0 = None;
            }
        }
        Gone
    }
}
