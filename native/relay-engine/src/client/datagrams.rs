//! An open tunnel of datagrams: UDP payloads in two directions (RFC 9298), in QUIC datagrams where both ends have them, else in
//! capsules.

use std::pin::pin;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use capsule_core::protocols::udp::{self, CONTEXT, ConnectUdp, MAX_OVERHEAD, MAX_PAYLOAD};
use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use http::HeaderMap;

use super::halves::{Recv, Send};
use super::tunnel::push;
use super::{Cut, Opened, h3};
use crate::pool::{Buffer, HEADROOM, PAYLOAD};
use crate::pump::payloads::take;
use crate::transport::h3::Flow;
use crate::transport::{Fault, RecvHalf as _, SendHalf as _};

/// A tunnel of datagrams that the proxy has opened.
#[derive(Debug)]
pub struct DatagramTunnel {
    /// Fields of the answer, `Proxy-Status` among them.
    pub fields: HeaderMap,
    /// Payloads from the target.
    pub receiver: DatagramReceiver,
    /// Payloads to the target.
    pub sender: DatagramSender,
}

impl DatagramTunnel {
    pub(super) fn new(opened: Opened) -> Self {
        let Opened {
            fields,
            recv,
            send,
            open,
        } = opened;
        // Each half has a way to the request's datagrams of its own.
        let (inbound, outbound) = (recv.flow(), recv.flow());
        Self {
            fields,
            receiver: DatagramReceiver {
                half: recv,
                flow: inbound,
                machine: ConnectUdp::new(),
                arrived: Vec::new(),
                chunks: Vec::new(),
                held: BytesMut::new(),
                taken: 0,
                _open: open.clone(),
            },
            sender: DatagramSender {
                half: send,
                flow: outbound,
                sending: false,
                _open: open,
            },
        }
    }

    /// Ends the tunnel and waits until the proxy has ended it too; what still comes is dropped.
    ///
    /// # Errors
    /// [`Cut`].
    pub async fn close(&mut self) -> Result<(), Cut> {
        self.sender.finish().await?;
        let mut late = Vec::new();
        while self.receiver.recv(&mut late).await? {
            late.clear();
        }
        Ok(())
    }
}

/// Payloads from the target.
#[derive(Debug)]
pub struct DatagramReceiver {
    half: Recv,
    flow: Option<Flow>,
    machine: ConnectUdp,
    /// HTTP datagrams that were received and not yet looked at.
    arrived: Vec<Bytes>,
    chunks: Vec<Bytes>,
    /// A capsule that is not complete.
    held: BytesMut,
    /// Bytes of the data stream for which no credit was given back yet.
    taken: usize,
    _open: Option<Rc<h3::OpenRequest>>,
}

impl DatagramReceiver {
    /// Waits for payloads and appends all that are at hand, as they came and without a copy; `false` once the proxy ended the tunnel.
    /// Safe to drop and call again.
    ///
    /// # Errors
    /// [`Cut`], perhaps after payloads that were appended.
    pub async fn recv(&mut self, into: &mut Vec<Bytes>) -> Result<bool, Cut> {
        let before = into.len();
        while into.len() == before {
            self.half.release(std::mem::take(&mut self.taken));
            let more = {
                let stream = pin!(self.half.recv(&mut self.chunks));
                match &self.flow {
                    // What came before the end of the stream comes first.
                    Some(flow) => match select(pin!(flow.recv(&mut self.arrived)), stream).await {
                        Either::Left(((), _)) => true,
                        Either::Right((more, _)) => more?,
                    },
                    None => stream.await?,
                }
            };
            if !more {
                self.machine.inbound_end(self.held.len())?;
                return Ok(false);
            }
            for mut datagram in self.arrived.drain(..) {
                if let Some(start) = self.machine.datagram(&datagram)? {
                    into.push(datagram.split_off(start));
                }
            }
            for mut chunk in self.chunks.drain(..) {
                self.taken += chunk.len();
                let look = |data: &[u8]| self.machine.inbound(data);
                take(
                    look,
                    &mut self.held,
                    &mut chunk,
                    usize::MAX,
                    |(), payload| {
                        into.push(payload);
                    },
                )?;
            }
        }
        Ok(true)
    }

    /// Datagrams that came and were dropped, because nobody took them in time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.flow.as_ref().map_or(0, Flow::dropped)
    }

    /// Wants nothing more.
    pub fn abort(&mut self) {
        self.half.abort(Fault::Cancelled);
    }
}

/// What became of payloads to send.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Payloads that are on their way to the proxy.
    pub sent: usize,
    /// Those that were dropped because they fit no datagram of the path, or no UDP packet at all.
    pub oversize: usize,
    /// Datagrams, of these or of earlier ones, that were dropped because more wait for the path than the connection holds.
    pub crowded_out: usize,
}

/// Payloads to the target.
#[derive(Debug)]
pub struct DatagramSender {
    half: Send,
    flow: Option<Flow>,
    /// A buffer is on its way; it stays so if the future that sends it is dropped.
    sending: bool,
    _open: Option<Rc<h3::OpenRequest>>,
}

impl DatagramSender {
    /// The longest payload that fits the path now, in bytes.
    #[must_use]
    pub fn longest(&self) -> usize {
        match self.room() {
            Some((_, room)) => room.saturating_sub(CONTEXT.len()),
            None => MAX_PAYLOAD,
        }
    }

    /// Sends payloads: QUIC datagrams at once, capsules as the data stream takes them. Dropped before it is done, it may leave a
    /// tunnel that can only be aborted.
    ///
    /// # Errors
    /// [`Cut::Reset`]: the proxy wants no more.
    pub async fn send(&mut self, payloads: &[impl AsRef<[u8]>]) -> Result<Sent, Cut> {
        if self.room().is_some() {
            self.by_datagrams(payloads)
        } else {
            self.by_capsules(payloads).await
        }
    }

    /// The way by QUIC datagrams, and the longest HTTP datagram; `None`: it is capsules.
    fn room(&self) -> Option<(&Flow, usize)> {
        let flow = self.flow.as_ref()?;
        Some((flow, flow.room()?))
    }

    //= rfc9297 §2 datagrams-where-defined
    //= rfc9297 §2.1 datagram-send-side-open
    fn by_datagrams(&mut self, payloads: &[impl AsRef<[u8]>]) -> Result<Sent, Cut> {
        if self.sending || self.half.gone().now_or_never().is_some() {
            return Err(Cut::Reset);
        }
        let mut sent = Sent::default();
        let Some((flow, room)) = self.room() else {
            return Ok(sent);
        };
        let mut datagrams = Vec::with_capacity(payloads.len());
        for payload in payloads {
            let payload = payload.as_ref();
            if CONTEXT.len() + payload.len() > room {
                sent.oversize += 1;
            } else {
                datagrams.push(flow.datagram(&CONTEXT, payload));
            }
        }
        sent.sent = datagrams.len();
        sent.crowded_out = flow.send(&mut datagrams) as usize;
        Ok(sent)
    }

    async fn by_capsules(&mut self, payloads: &[impl AsRef<[u8]>]) -> Result<Sent, Cut> {
        let mut sent = Sent::default();
        let mut filled: Option<(Buffer, usize)> = None;
        for payload in payloads {
            let payload = payload.as_ref();
            //= rfc9298 §5 context-0-limit
            if payload.len() > MAX_PAYLOAD {
                sent.oversize += 1;
                continue;
            }
            let mut header = [0; MAX_OVERHEAD];
            let size = udp::capsule_header(payload.len(), &mut header);
            let length = size + payload.len();
            let (mut buffer, at) = match filled.take() {
                Some((buffer, at)) if at + length <= PAYLOAD => (buffer, at),
                Some((buffer, at)) => {
                    self.push(buffer, at).await?;
                    (Buffer::take(), 0)
                }
                None => (Buffer::take(), 0),
            };
            let room = &mut buffer.bytes_mut()[HEADROOM + at..HEADROOM + at + length];
            room[..size].copy_from_slice(&header[..size]);
            room[size..].copy_from_slice(payload);
            filled = Some((buffer, at + length));
            sent.sent += 1;
        }
        if let Some((buffer, length)) = filled {
            self.push(buffer, length).await?;
        }
        Ok(sent)
    }

    async fn push(&mut self, buffer: Buffer, length: usize) -> Result<(), Cut> {
        let end = HEADROOM + length;
        push(&mut self.half, &mut self.sending, buffer, HEADROOM, end).await
    }

    /// Ends this direction, and with it the tunnel: the proxy closes its socket and ends its direction.
    ///
    /// # Errors
    /// [`Cut::Reset`].
    pub async fn finish(&mut self) -> Result<(), Cut> {
        if std::mem::replace(&mut self.sending, true) {
            self.half.abort(Fault::Cancelled).await;
            return Err(Cut::Reset);
        }
        Ok(self.half.finish().await?)
    }

    /// Ends the tunnel abruptly.
    pub async fn abort(&mut self) {
        self.half.abort(Fault::Cancelled).await;
    }

    /// Resolves when the proxy wants no more.
    pub async fn gone(&mut self) {
        self.half.gone().await;
    }
}
