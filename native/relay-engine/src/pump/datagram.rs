//! The pump of datagram tunnels: UDP payloads between a connected socket and capsules, or QUIC datagrams where both ends have them.
//! Batches on both sides; nothing is held back to fill one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::pin::pin;

use bytes::{Bytes, BytesMut};
use capsule_core::protocols::udp::{self, CONTEXT, ConnectUdp, MAX_OVERHEAD};
use futures_util::future::{Either, select};
use tokio::time::timeout;

use super::payloads::take;
use super::stream::send_in_pieces;
use super::{Bounds, Ended, LAST_WORD, Outcome, Turn, guard};
use crate::egress::DatagramSocket;
use crate::metrics::WorkerMetrics;
use crate::pool::{Buffer, HEADROOM, PAYLOAD};
use crate::transport::h3::Flow;
use crate::transport::{FLUSH, Fault, RecvHalf, SendHalf};

/// Buffers of capsules that wait for the client's window, each of many datagrams; the oldest make room for the newest.
const WAITING: usize = 16;

/// What a call of the system for datagrams counts for in a turn, in bytes that could be moved meanwhile: small ones cost as much as
/// large ones.
const CALL: usize = 8 << 10;

/// What both directions share.
struct Tunnel<'a> {
    machine: RefCell<ConnectUdp>,
    socket: DatagramSocket,
    flow: Option<Flow>,
    bytes_up: Cell<u64>,
    bytes_down: Cell<u64>,
    datagrams_up: Cell<u64>,
    datagrams_down: Cell<u64>,
    /// Bytes of the data stream that were taken, whatever they are.
    taken: Cell<u64>,
    metrics: &'a WorkerMetrics,
}

impl Tunnel<'_> {
    fn moved_up(&self, datagrams: u64, bytes: u64) {
        self.datagrams_up.set(self.datagrams_up.get() + datagrams);
        self.bytes_up.set(self.bytes_up.get() + bytes);
        self.metrics.datagrams_up.add(datagrams);
        self.metrics.bytes_up.add(bytes);
    }

    fn moved_down(&self, datagrams: u64, bytes: u64) {
        self.datagrams_down
            .set(self.datagrams_down.get() + datagrams);
        self.bytes_down.set(self.bytes_down.get() + bytes);
        self.metrics.datagrams_down.add(datagrams);
        self.metrics.bytes_down.add(bytes);
    }
}

impl Tunnel<'_> {
    /// Closes the socket; what the tunnel carried.
    fn close(self, ended: Ended) -> Outcome {
        let machine = self.machine.into_inner();
        let unread = self.flow.as_ref().map_or(0, Flow::dropped);
        self.metrics.datagrams_dropped_queue.add(unread);
        let unknown = machine.unknown_contexts();
        self.metrics.datagrams_dropped_context.add(unknown);
        Outcome {
            ended,
            up: self.bytes_up.get(),
            down: self.bytes_down.get(),
            datagrams: Some((self.datagrams_up.get(), self.datagrams_down.get())),
            unknown_capsules: machine.unknown_capsules(),
        }
    }
}

/// Runs a datagram tunnel to its end: until the client ends its data stream, the target turns out not to be there, nothing came for
/// the idle time, or `stop` resolves. The socket is closed with it.
pub async fn run<R: RecvHalf, S: SendHalf>(
    recv: &mut R,
    send: &mut S,
    socket: DatagramSocket,
    bounds: Bounds,
    metrics: &WorkerMetrics,
    stop: impl Future<Output = ()> + Unpin,
) -> Outcome {
    let tunnel = Tunnel {
        machine: RefCell::new(ConnectUdp::new()),
        socket,
        flow: recv.flow(),
        bytes_up: Cell::new(0),
        bytes_down: Cell::new(0),
        datagrams_up: Cell::new(0),
        datagrams_down: Cell::new(0),
        taken: Cell::new(0),
        metrics,
    };
    let ended = {
        let both = async {
            let up = pin!(up(&tunnel, recv));
            let down = pin!(down(&tunnel, send));
            match select(up, down).await {
                Either::Left((ended, _)) => ended.map_or_else(|ended| ended, |()| Ended::Clean),
                Either::Right((ended, _)) => ended,
            }
        };
        let progress = || {
            let (up, down) = (&tunnel.datagrams_up, &tunnel.datagrams_down);
            (up.get(), down.get(), tunnel.taken.get())
        };
        let guard = guard(progress, bounds.idle, stop);
        match select(pin!(both), pin!(guard)).await {
            Either::Left((ended, _)) | Either::Right((ended, _)) => ended,
        }
    };
    // The port is free before the client hears of it.
    //= rfc9298 §3.1 socket-lives-with-stream
    let outcome = tunnel.close(ended);
    match ended {
        //= rfc9298 §3.1 socket-gone-closes-stream
        //= rfc9298 §3.1 idle-closes-stream
        Ended::Clean | Ended::Idle | Ended::Unreachable => {
            let limit = if ended == Ended::Clean {
                LAST_WORD
            } else {
                FLUSH
            };
            let _ = timeout(limit, send.finish()).await;
            recv.ended();
        }
        //= rfc9297 §3.3 malformed-capsule
        //= rfc9298 §5 context-0-limit
        Ended::Malformed(_) | Ended::MalformedMessage => abort(recv, send, Fault::Malformed).await,
        Ended::ClientGone | Ended::ClientIncomplete => abort(recv, send, Fault::Client).await,
        Ended::TargetGone | Ended::Stopping => abort(recv, send, Fault::Cancelled).await,
    }
    outcome
}

async fn abort<R: RecvHalf, S: SendHalf>(recv: &mut R, send: &mut S, fault: Fault) {
    recv.abort(fault);
    Box::pin(send.abort(fault)).await;
}

/// Client to target until the client's data stream ends.
async fn up<R: RecvHalf>(tunnel: &Tunnel<'_>, recv: &mut R) -> Result<(), Ended> {
    let (mut chunks, mut datagrams, mut payloads) = (Vec::new(), Vec::new(), Vec::new());
    let mut held = BytesMut::new();
    let mut turn = Turn::default();
    loop {
        let more = match &tunnel.flow {
            Some(flow) => {
                let stream = pin!(recv.recv(&mut chunks));
                match select(stream, pin!(flow.recv(&mut datagrams))).await {
                    Either::Left((more, _)) => more?,
                    Either::Right(((), _)) => true,
                }
            }
            None => recv.recv(&mut chunks).await?,
        };
        if !more {
            tunnel.machine.borrow_mut().inbound_end(held.len())?;
            return Ok(());
        }
        for datagram in datagrams.drain(..) {
            let datagram: Bytes = datagram;
            if let Some(start) = tunnel.machine.borrow_mut().datagram(&datagram)? {
                payloads.push(datagram.slice(start..));
            }
        }
        let mut received = 0;
        for chunk in chunks.drain(..) {
            let chunk: Bytes = chunk;
            received += chunk.len();
            let mut machine = tunnel.machine.borrow_mut();
            take(&mut machine, &mut held, chunk, &mut payloads)?;
        }
        tunnel.taken.set(tunnel.taken.get() + received as u64);
        let bytes = write(tunnel, &mut payloads, &mut turn).await?;
        recv.release(received);
        turn.moved(received.saturating_sub(bytes)).await;
    }
}

/// Sends all of `payloads` to the target; how many bytes that were.
async fn write(
    tunnel: &Tunnel<'_>,
    payloads: &mut Vec<Bytes>,
    turn: &mut Turn,
) -> Result<usize, Ended> {
    let mut done = 0;
    let mut all = 0;
    while done < payloads.len() {
        let sent = tunnel.socket.send(&payloads[done..]);
        let sent = sent.map_err(|_| Ended::Unreachable)?;
        tunnel
            .metrics
            .datagrams_dropped_oversize
            .add(sent.dropped as u64);
        tunnel.moved_up((sent.done - sent.dropped) as u64, sent.bytes as u64);
        done += sent.done;
        all += sent.bytes;
        // A chunk may be of a hundred thousand datagrams.
        turn.moved(sent.bytes + sent.calls * CALL).await;
        if done < payloads.len() {
            tunnel
                .socket
                .writable()
                .await
                .map_err(|_| Ended::Unreachable)?;
        }
    }
    payloads.clear();
    Ok(all)
}

/// Capsules of some datagrams in one buffer.
struct Filled {
    buffer: Buffer,
    length: usize,
    datagrams: u64,
    bytes: u64,
}

/// Target to client; ends with a fault only.
async fn down<S: SendHalf>(tunnel: &Tunnel<'_>, send: &mut S) -> Ended {
    let mut waiting: VecDeque<Filled> = VecDeque::new();
    let mut turn = Turn::default();
    loop {
        if let Some(front) = waiting.front() {
            let ready = {
                let ready = pin!(send.ready(front.length));
                match select(ready, pin!(tunnel.socket.readable())).await {
                    Either::Left((ready, _)) => Some(ready),
                    Either::Right((Ok(()), _)) => None,
                    Either::Right((Err(_), _)) => return Ended::Unreachable,
                }
            };
            match ready {
                Some(Ok(room)) => {
                    if let Some(front) = waiting.pop_front()
                        && let Err(gone) = forward(tunnel, send, front, room).await
                    {
                        return gone;
                    }
                    continue;
                }
                Some(Err(gone)) => return gone.into(),
                None => {}
            }
        } else {
            let readable = pin!(tunnel.socket.readable());
            let gone = pin!(send.gone());
            match select(readable, gone).await {
                Either::Left((Ok(()), _)) => {}
                Either::Left((Err(_), _)) => return Ended::Unreachable,
                Either::Right((gone, _)) => return gone.into(),
            }
        }
        let room = tunnel.flow.as_ref().and_then(Flow::room);
        let received = match (&tunnel.flow, room) {
            (Some(flow), Some(room)) => by_datagrams(tunnel, flow, room),
            _ => by_capsules(tunnel, &mut waiting),
        };
        match received {
            Ok(bytes) => turn.moved(bytes + CALL).await,
            Err(ended) => return ended,
        }
    }
}

/// Receives a batch and sends it on in QUIC datagrams; how many bytes that were.
//= rfc9297 §2 datagrams-where-defined
//= rfc9297 §2.1 datagram-send-side-open
fn by_datagrams(tunnel: &Tunnel<'_>, flow: &Flow, room: usize) -> Result<usize, Ended> {
    let (mut datagrams, mut bytes, mut oversize) = (Vec::new(), 0, 0);
    let received = tunnel.socket.receive(|payload| {
        //= rfc9298 §6.1 oversize-to-client-dropped
        if CONTEXT.len() + payload.len() > room {
            oversize += 1;
        } else {
            bytes += payload.len();
            datagrams.push(flow.datagram(&CONTEXT, payload));
        }
    });
    match received {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
        Err(_) => return Err(Ended::Unreachable),
    }
    tunnel.metrics.datagrams_dropped_oversize.add(oversize);
    let count = datagrams.len() as u64;
    let dropped = flow.send(&mut datagrams);
    tunnel.metrics.datagrams_dropped_queue.add(dropped);
    tunnel.moved_down(count, bytes as u64);
    Ok(bytes)
}

/// Receives a batch into buffers of capsules; how many bytes that were.
fn by_capsules(tunnel: &Tunnel<'_>, waiting: &mut VecDeque<Filled>) -> Result<usize, Ended> {
    let mut bytes = 0;
    // What waits already is left as it is: the first one may be about to be sent.
    let before = waiting.len();
    let received = tunnel.socket.receive(|payload| {
        bytes += payload.len();
        let mut header = [0; MAX_OVERHEAD];
        let size = udp::capsule_header(payload.len(), &mut header);
        let length = size + payload.len();
        let fits = |filled: &Filled| filled.length + length <= PAYLOAD;
        if waiting.len() == before || !waiting.back().is_some_and(fits) {
            waiting.push_back(Filled {
                buffer: Buffer::take(),
                length: 0,
                datagrams: 0,
                bytes: 0,
            });
        }
        if let Some(filled) = waiting.back_mut() {
            let start = HEADROOM + filled.length;
            let room = &mut filled.buffer.bytes_mut()[start..start + length];
            room[..size].copy_from_slice(&header[..size]);
            room[size..].copy_from_slice(payload);
            filled.length += length;
            filled.datagrams += 1;
            filled.bytes += payload.len() as u64;
        }
    });
    while waiting.len() > WAITING {
        let oldest = waiting.pop_front().map_or(0, |filled| filled.datagrams);
        tunnel.metrics.datagrams_dropped_queue.add(oldest);
    }
    match received {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(_) => Err(Ended::Unreachable),
    }
}

/// Sends a buffer of capsules.
async fn forward<S: SendHalf>(
    tunnel: &Tunnel<'_>,
    send: &mut S,
    filled: Filled,
    room: usize,
) -> Result<(), Ended> {
    let Filled {
        buffer,
        length,
        datagrams,
        bytes,
    } = filled;
    let end = HEADROOM + length;
    if length <= room {
        send.send(buffer, HEADROOM, end).await?;
    } else {
        Box::pin(send_in_pieces(send, buffer, HEADROOM, end)).await?;
    }
    tunnel.moved_down(datagrams, bytes);
    Ok(())
}
