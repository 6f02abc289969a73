//! An open tunnel: payload in two directions.

use std::rc::Rc;

use bytes::{Buf, Bytes};
use capsule_core::capsule::MAX_HEADER;
use capsule_core::tunnel::{AnyStreamTunnel, End, Finish, Malformed, Step, StreamTunnel};
use http::HeaderMap;

use super::halves::{Recv, Send};
use super::{Opened, h3};
use crate::pool::{Buffer, HEADROOM, PAYLOAD};
use crate::transport::{Fault, Gone, Lost, RecvHalf, SendHalf};

/// The longest capsule whose payload is all at hand.
const LONG: usize = 1 << 20;
/// Flow-control credit is given back in portions of this many bytes.
const PORTION: usize = 64 << 10;

/// Why a direction of a tunnel ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// Reset, broken, or ended without the target's FIN: to a byte stream the same as a RST.
    #[error("the tunnel was cut off")]
    Reset,
    /// The proxy sent what its protocol does not allow.
    #[error("the proxy's data stream is malformed: {0}")]
    Malformed(#[from] Malformed),
}

impl From<Gone> for Cut {
    fn from(_: Gone) -> Self {
        Self::Reset
    }
}

impl From<Lost> for Cut {
    fn from(_: Lost) -> Self {
        Self::Reset
    }
}

/// A tunnel that the proxy has opened.
#[derive(Debug)]
pub struct Tunnel {
    /// Fields of the answer, `Proxy-Status` among them.
    pub fields: HeaderMap,
    /// Bytes from the target.
    pub receiver: Receiver,
    /// Bytes to the target.
    pub sender: Sender,
}

impl Tunnel {
    pub(super) fn new(opened: Opened, machine: AnyStreamTunnel) -> Self {
        let Opened {
            fields,
            recv,
            send,
            open,
        } = opened;
        // Inbound and outbound share no state, so each direction has a machine of its own.
        Self {
            fields,
            receiver: Receiver {
                half: recv,
                machine: machine.clone(),
                chunks: Vec::new(),
                taken: 0,
                finished: false,
                _open: open.clone(),
            },
            sender: Sender {
                half: send,
                machine,
                announced: 0,
                sending: false,
                _open: open,
            },
        }
    }
}

/// Bytes from the target.
#[derive(Debug)]
pub struct Receiver {
    half: Recv,
    machine: AnyStreamTunnel,
    /// Received and not yet looked at, last first.
    chunks: Vec<Bytes>,
    taken: usize,
    finished: bool,
    _open: Option<Rc<h3::OpenRequest>>,
}

impl Receiver {
    /// The next bytes, never empty, as the connection delivered them; `None` once the target sent FIN.
    ///
    /// # Errors
    /// [`Cut`], after all bytes that arrived before.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, Cut> {
        loop {
            if self.finished {
                return Ok(None);
            }
            let mut chunk = self.chunks.pop().unwrap_or_default();
            match self.machine.inbound(&chunk)? {
                Step::Skip(bytes) => {
                    chunk.advance(bytes);
                    self.took(bytes);
                    self.put_back(chunk);
                }
                Step::Payload(bytes) => {
                    let length = usize::try_from(bytes)
                        .unwrap_or(usize::MAX)
                        .min(chunk.len());
                    let payload = chunk.split_to(length);
                    self.machine.advance(length as u64);
                    self.took(length);
                    self.put_back(chunk);
                    return Ok(Some(payload));
                }
                Step::Finish => {
                    self.put_back(chunk);
                    self.finished = true;
                }
                Step::Idle if self.fetch().await? => {}
                Step::Idle => match self.machine.inbound_end() {
                    End::Finish | End::Complete => self.finished = true,
                    //= connect-tcp §3.4 end-without-final-sends-rst
                    End::Abort => return Err(Cut::Reset),
                    End::Malformed(fault) => return Err(fault.into()),
                },
            }
        }
    }

    /// After the target's FIN: waits until the proxy ends the data stream, skipping what may still come.
    ///
    /// # Errors
    /// [`Cut`], e.g. for a RST that the target sent after its FIN.
    pub async fn end(&mut self) -> Result<(), Cut> {
        loop {
            let mut chunk = self.chunks.pop().unwrap_or_default();
            match self.machine.inbound(&chunk)? {
                Step::Skip(bytes) => {
                    chunk.advance(bytes);
                    self.took(bytes);
                    self.put_back(chunk);
                }
                // A raw stream whose end was the FIN has nothing more.
                Step::Payload(_) | Step::Finish => return Ok(()),
                Step::Idle if !self.fetch().await? => {
                    return match self.machine.inbound_end() {
                        End::Malformed(fault) => Err(fault.into()),
                        _ => Ok(()),
                    };
                }
                Step::Idle => {}
            }
        }
    }

    /// Wants nothing more.
    pub fn abort(&mut self) {
        self.half.abort(Fault::Cancelled);
    }

    async fn fetch(&mut self) -> Result<bool, Cut> {
        self.give_credit();
        let more = self.half.recv(&mut self.chunks).await?;
        self.chunks.reverse();
        Ok(more)
    }

    fn put_back(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.chunks.push(chunk);
        }
    }

    fn took(&mut self, bytes: usize) {
        self.taken += bytes;
        if self.taken >= PORTION {
            self.give_credit();
        }
    }

    fn give_credit(&mut self) {
        if self.taken > 0 {
            self.half.release(std::mem::take(&mut self.taken));
        }
    }
}

/// Bytes to the target.
#[derive(Debug)]
pub struct Sender {
    half: Send,
    machine: AnyStreamTunnel,
    /// Payload that the capsule at hand announced and that was not sent yet.
    announced: usize,
    /// A buffer is on its way; it stays so if the future that sends it is dropped.
    sending: bool,
    _open: Option<Rc<h3::OpenRequest>>,
}

impl Sender {
    /// Waits until payload may be sent, of which `rest` bytes are sure to come; returns how many, 1–[`PAYLOAD`], and not more than
    /// `rest`.
    ///
    /// # Errors
    /// [`Cut::Reset`].
    pub async fn room(&mut self, rest: usize) -> Result<usize, Cut> {
        let mut header = [0; MAX_HEADER];
        let overhead = self.machine.outbound_header(PAYLOAD, &mut header);
        let room = self.half.ready(PAYLOAD + overhead).await?;
        let room = room.saturating_sub(overhead).clamp(1, PAYLOAD).min(rest);
        Ok(match self.announced {
            0 => room,
            announced => room.min(announced),
        })
    }

    /// Gives back what [`room`](Self::room) promised and nobody needs now: other tunnels may be waiting for it.
    pub fn unready(&mut self) {
        self.half.unready();
    }

    /// Sends the first `length` payload bytes of `buffer` without a copy: at most what [`room`](Self::room) said, of the `rest` it
    /// was told. On a plain socket capsules are long, because the proxy splices payload but reads headers.
    ///
    /// # Errors
    /// [`Cut::Reset`].
    pub async fn send_buffer(
        &mut self,
        mut buffer: Buffer,
        length: usize,
        rest: usize,
    ) -> Result<(), Cut> {
        let mut start = HEADROOM;
        if self.announced == 0 {
            let plain = self.half.socket().is_some();
            self.announced = if plain {
                length.max(rest.min(LONG))
            } else {
                length
            };
            let mut header = [0; MAX_HEADER];
            let size = self.machine.outbound_header(self.announced, &mut header);
            start = buffer.prepend(HEADROOM, &header[..size]);
        }
        self.announced -= length.min(self.announced);
        self.push(buffer, start, HEADROOM + length).await
    }

    /// Sends all of `payload`. Dropped before it is done, it leaves a tunnel that can only be aborted.
    ///
    /// # Errors
    /// [`Cut::Reset`].
    pub async fn send(&mut self, mut payload: &[u8]) -> Result<(), Cut> {
        while !payload.is_empty() {
            let length = self.room(payload.len()).await?;
            let (now, later) = payload.split_at(length);
            let mut buffer = Buffer::take();
            buffer.payload_mut(length).copy_from_slice(now);
            self.send_buffer(buffer, length, payload.len()).await?;
            payload = later;
        }
        Ok(())
    }

    /// Tells the target that nothing more comes (FIN).
    ///
    /// # Errors
    /// [`Cut::Reset`].
    pub async fn finish(&mut self) -> Result<(), Cut> {
        if self.announced > 0 || self.sending {
            // A send was given up in the middle: what it announced cannot be taken back.
            self.half.abort(Fault::Cancelled).await;
            return Err(Cut::Reset);
        }
        let mut header = [0; MAX_HEADER];
        match self.machine.outbound_finish(&mut header) {
            Finish::EndStream => self.half.finish().await?,
            Finish::Bytes(0) => {}
            Finish::Bytes(size) => {
                let mut buffer = Buffer::take();
                buffer.payload_mut(size).copy_from_slice(&header[..size]);
                self.push(buffer, HEADROOM, HEADROOM + size).await?;
            }
        }
        Ok(())
    }

    /// Ends the data stream after [`finish`](Self::finish), once the target's FIN has come too; nothing to do where the end of
    /// the stream is the FIN.
    ///
    /// # Errors
    /// [`Cut::Reset`].
    //= connect-tcp §3.4 graceful-close
    pub async fn close(&mut self) -> Result<(), Cut> {
        match self.machine.outbound_finish(&mut [0; MAX_HEADER]) {
            Finish::EndStream => Ok(()),
            Finish::Bytes(_) => Ok(self.half.finish().await?),
        }
    }

    /// Ends the tunnel abruptly: the target sees a RST.
    pub async fn abort(&mut self) {
        self.half.abort(Fault::Target).await;
    }

    /// Resolves when the proxy wants no more bytes.
    pub async fn gone(&mut self) {
        self.half.gone().await;
    }

    async fn push(&mut self, buffer: Buffer, start: usize, end: usize) -> Result<(), Cut> {
        push(&mut self.half, &mut self.sending, buffer, start, end).await
    }
}

/// Sends `buffer[start..end]`, in pieces where the window is smaller.
pub(super) async fn push(
    half: &mut Send,
    sending: &mut bool,
    buffer: Buffer,
    start: usize,
    end: usize,
) -> Result<(), Cut> {
    if std::mem::replace(sending, true) {
        return Err(Cut::Reset);
    }
    let room = half.ready(end - start).await?;
    if room >= end - start {
        half.send(buffer, start, end).await?;
    } else {
        let mut at = start;
        while at < end {
            let length = half.ready(end - at).await?.min(end - at).min(PAYLOAD);
            let mut piece = Buffer::take();
            piece
                .payload_mut(length)
                .copy_from_slice(&buffer.as_ref()[at..at + length]);
            half.send(piece, HEADROOM, HEADROOM + length).await?;
            at += length;
        }
    }
    *sending = false;
    Ok(())
}
