//! The pump of datagram tunnels: UDP payloads between sockets and capsules, or QUIC datagrams where both ends have them.
//! Batches on both sides; nothing is held back to fill one.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use capsule_core::capsule::{MAX_HEADER, encode_header, types};
use capsule_core::protocols::udp_bind::MAX_PREFIX;
use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use tokio::time::timeout;

use super::outside::Outside;
use super::payloads::take;
use super::stream::send_in_pieces;
use super::{Bounds, Ended, LAST_WORD, Outcome, Turn, guard};
use crate::metrics::WorkerMetrics;
use crate::pool::{Buffer, HEADROOM, PAYLOAD};
use crate::transport::h3::Flow;
use crate::transport::{FLUSH, Fault, RecvHalf, SendHalf};

/// Buffers of capsules that wait for the client's window, each of many datagrams; the oldest make room for the newest.
const WAITING: usize = 16;

/// What a call of the system for datagrams counts for in a turn, in bytes that could be moved meanwhile: small ones cost as much as
/// large ones.
const CALL: usize = 8 << 10;

/// Looks at a data stream between which others may have their turn.
const LOOKS: usize = 64;

/// What both directions share.
struct Tunnel<'a, O> {
    outside: O,
    flow: Option<Flow>,
    bytes_up: Cell<u64>,
    bytes_down: Cell<u64>,
    datagrams_up: Cell<u64>,
    datagrams_down: Cell<u64>,
    /// Bytes of the data stream that were taken, whatever they are.
    taken: Cell<u64>,
    /// Capsules are on their way to the client, and the data stream cannot end well before they are.
    sending: Cell<bool>,
    /// The tunnel has ended, and nothing more is begun.
    over: Cell<bool>,
    metrics: &'a WorkerMetrics,
}

impl<O: Outside> Tunnel<'_, O> {
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

    /// Closes the sockets; what the tunnel carried.
    fn close(self, ended: Ended) -> Outcome {
        let dropped = self.outside.dropped();
        let unread = self.flow.as_ref().map_or(0, Flow::dropped);
        let metrics = self.metrics;
        metrics.datagrams_dropped_queue.add(unread);
        metrics.datagrams_dropped_context.add(dropped.contexts);
        metrics.datagrams_dropped_policy.add(dropped.refused);
        Outcome {
            ended,
            up: self.bytes_up.get(),
            down: self.bytes_down.get(),
            datagrams: Some((self.datagrams_up.get(), self.datagrams_down.get())),
            unknown_capsules: dropped.capsules,
        }
    }
}

impl Ended {
    /// Whether the client's data stream ends as a whole.
    fn is_gentle(self) -> bool {
        matches!(self, Self::Clean | Self::Idle | Self::Unreachable)
    }

    /// How long the client may take for what is on its way.
    fn last_word(self) -> Duration {
        if self == Self::Clean {
            LAST_WORD
        } else {
            FLUSH
        }
    }
}

/// Runs a datagram tunnel to its end: until the client ends its data stream, the target turns out not to be there, nothing came for
/// the idle time, or `stop` resolves. The sockets are closed with it.
pub async fn run<R: RecvHalf, S: SendHalf, O: Outside>(
    recv: &mut R,
    send: &mut S,
    outside: O,
    bounds: Bounds,
    metrics: &WorkerMetrics,
    stop: impl Future<Output = ()> + Unpin,
) -> Outcome {
    let tunnel = Tunnel {
        outside,
        flow: recv.flow(),
        bytes_up: Cell::new(0),
        bytes_down: Cell::new(0),
        datagrams_up: Cell::new(0),
        datagrams_down: Cell::new(0),
        taken: Cell::new(0),
        sending: Cell::new(false),
        over: Cell::new(false),
        metrics,
    };
    let ended = {
        let both = async {
            let up = pin!(up(&tunnel, recv));
            let down = pin!(down(&tunnel, send));
            match select(up, down).await {
                Either::Left((ended, down)) => {
                    let ended = ended.map_or_else(|ended| ended, |()| Ended::Clean);
                    tunnel.over.set(true);
                    if tunnel.sending.get() && ended.is_gentle() {
                        let _ = timeout(ended.last_word(), down).await;
                    }
                    ended
                }
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
    let cut = tunnel.sending.get();
    let outcome = tunnel.close(ended);
    match ended {
        // A capsule that is begun is no end.
        //= rfc9297 §3.3 truncated-capsule
        _ if cut && ended.is_gentle() => abort(recv, send, Fault::Cancelled).await,
        //= rfc9298 §3.1 socket-gone-closes-stream
        //= rfc9298 §3.1 idle-closes-stream
        Ended::Clean | Ended::Idle | Ended::Unreachable => {
            let _ = timeout(ended.last_word(), send.finish()).await;
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
async fn up<R: RecvHalf, O: Outside>(tunnel: &Tunnel<'_, O>, recv: &mut R) -> Result<(), Ended> {
    let (mut chunks, mut datagrams, mut payloads) = (Vec::new(), Vec::new(), Vec::new());
    let mut held = BytesMut::new();
    let mut turn = Turn::default();
    loop {
        let more = match &tunnel.flow {
            Some(flow) => {
                let stream = pin!(recv.recv(&mut chunks));
                // What came before the end of the stream goes before it; however many datagrams come, the stream is heard.
                match select(pin!(flow.recv(&mut datagrams)), stream).await {
                    Either::Left(((), stream)) => stream.now_or_never().unwrap_or(Ok(true))?,
                    Either::Right((more, _)) => more?,
                }
            }
            None => recv.recv(&mut chunks).await?,
        };
        for datagram in datagrams.drain(..) {
            let datagram: Bytes = datagram;
            if let Some((peer, start)) = tunnel.outside.datagram(&datagram)? {
                payloads.push(O::address(peer, datagram.slice(start..)));
            }
            turn.moved(tunnel.outside.toil()).await;
        }
        let mut received = 0;
        for chunk in chunks.drain(..) {
            let mut chunk: Bytes = chunk;
            received += chunk.len();
            while !chunk.is_empty() {
                let look = |data: &[u8]| tunnel.outside.look(data);
                take(look, &mut held, &mut chunk, LOOKS, |peer, payload| {
                    payloads.push(O::address(peer, payload));
                })?;
                turn.moved(tunnel.outside.toil()).await;
            }
        }
        tunnel.taken.set(tunnel.taken.get() + received as u64);
        let bytes = write(tunnel, &mut payloads, &mut turn).await?;
        recv.release(received);
        if !more {
            tunnel.outside.inbound_end(held.len())?;
            return Ok(());
        }
        turn.moved(received.saturating_sub(bytes)).await;
    }
}

/// Sends all of `payloads` to where they go; how many bytes that were.
async fn write<O: Outside>(
    tunnel: &Tunnel<'_, O>,
    payloads: &mut Vec<O::Payload>,
    turn: &mut Turn,
) -> Result<usize, Ended> {
    let mut done = 0;
    let mut all = 0;
    while done < payloads.len() {
        let sent = tunnel.outside.send(&payloads[done..]);
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
        if let Some(next) = payloads.get(done) {
            let writable = tunnel.outside.writable(next).await;
            writable.map_err(|_| Ended::Unreachable)?;
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

impl Filled {
    fn empty() -> Self {
        Self {
            buffer: Buffer::take(),
            length: 0,
            datagrams: 0,
            bytes: 0,
        }
    }

    /// Room for `length` more bytes, if there is.
    fn room(&mut self, length: usize) -> Option<&mut [u8]> {
        if self.length + length > PAYLOAD {
            return None;
        }
        let start = HEADROOM + self.length;
        self.length += length;
        self.buffer.bytes_mut().get_mut(start..start + length)
    }
}

/// What happens next on the way to the client.
enum Event {
    /// So many bytes may be sent.
    Room(usize),
    /// Something may have arrived.
    Arrived,
    /// There are answers to send.
    Answers,
}

/// Waits for what happens next; `length`: bytes that wait to be sent, if any do.
async fn next<S: SendHalf, O: Outside>(
    tunnel: &Tunnel<'_, O>,
    send: &mut S,
    length: Option<usize>,
    answering: bool,
) -> Result<Event, Ended> {
    let to_client = async {
        match length {
            Some(length) => Ok(Event::Room(send.ready(length).await?)),
            None => Err(send.gone().await.into()),
        }
    };
    let outside = async {
        let readable = tunnel.outside.readable().await;
        readable.map_err(|_| Ended::Unreachable)?;
        Ok(Event::Arrived)
    };
    tokio::select! {
        biased;
        event = to_client => event,
        event = outside => event,
        () = tunnel.outside.answering(), if answering => Ok(Event::Answers),
    }
}

/// Peers to client; ends with a fault only.
async fn down<S: SendHalf, O: Outside>(tunnel: &Tunnel<'_, O>, send: &mut S) -> Ended {
    let mut waiting: VecDeque<Filled> = VecDeque::new();
    // Not to be lost, and before datagrams that may rely on them.
    let mut answers: VecDeque<Filled> = VecDeque::new();
    let mut closed = 0;
    let mut turn = Turn::default();
    loop {
        let first = answers.front().or(waiting.front());
        let length = first.map(|filled| filled.length);
        let event = next(tunnel, send, length, answers.is_empty()).await;
        // What waits may be of a context that was closed meanwhile, and then it may not be sent.
        //= connect-udp-bind §3.3 none-after-close
        let closed_now = tunnel.outside.closed();
        if closed != closed_now {
            closed = closed_now;
            let stale = waiting.drain(..).map(|filled| filled.datagrams).sum();
            tunnel.metrics.datagrams_dropped_context.add(stale);
        }
        let moved = match event {
            Ok(Event::Room(room)) => match answers.pop_front().or_else(|| waiting.pop_front()) {
                Some(filled) => {
                    let sending = pin!(forward(tunnel, send, filled, room));
                    meanwhile(tunnel, sending, &mut waiting).await
                }
                None => Ok(0),
            },
            Ok(Event::Arrived) => receive(tunnel, &mut waiting),
            Ok(Event::Answers) => {
                for piece in tunnel.outside.answers().chunks(PAYLOAD) {
                    let mut filled = Filled::empty();
                    if let Some(room) = filled.room(piece.len()) {
                        room.copy_from_slice(piece);
                    }
                    answers.push_back(filled);
                }
                Ok(0)
            }
            Err(ended) => return ended,
        };
        match moved {
            Ok(_) if tunnel.over.get() => return Ended::Clean,
            Ok(bytes) => turn.moved(bytes).await,
            Err(ended) => return ended,
        }
    }
}

/// Sends to the end, and meanwhile receives: what a slow client has no room for makes room itself, the oldest first.
async fn meanwhile<O: Outside>(
    tunnel: &Tunnel<'_, O>,
    mut sending: Pin<&mut impl Future<Output = Result<usize, Ended>>>,
    waiting: &mut VecDeque<Filled>,
) -> Result<usize, Ended> {
    let mut moved = 0;
    loop {
        let readable = match select(sending.as_mut(), pin!(tunnel.outside.readable())).await {
            Either::Left((sent, _)) => return sent.map(|_| moved),
            Either::Right((readable, _)) => readable,
        };
        let received = readable.map_err(|_| Ended::Unreachable);
        match received.and_then(|()| receive(tunnel, waiting)) {
            Ok(bytes) => moved += bytes,
            Err(ended) => {
                // A capsule that is begun gets its moment; what is cut all the same is no whole end.
                let _ = timeout(FLUSH, sending).await;
                return Err(ended);
            }
        }
    }
}

/// Receives a batch, which leaves at once or waits; what that counts for in a turn.
fn receive<O: Outside>(
    tunnel: &Tunnel<'_, O>,
    waiting: &mut VecDeque<Filled>,
) -> Result<usize, Ended> {
    let received = match &tunnel.flow {
        Some(flow) if let Some(room) = flow.room() => by_datagrams(tunnel, flow, room),
        _ => by_capsules(tunnel, waiting),
    };
    received.map(|bytes| bytes + CALL)
}

/// Receives a batch and sends it on in QUIC datagrams; how many bytes that were.
//= rfc9297 §2 datagrams-where-defined
//= rfc9297 §2.1 datagram-send-side-open
fn by_datagrams<O: Outside>(
    tunnel: &Tunnel<'_, O>,
    flow: &Flow,
    room: usize,
) -> Result<usize, Ended> {
    let (mut datagrams, mut bytes, mut oversize, mut unwanted) = (Vec::new(), 0, 0, 0);
    let mut prefix = [0; MAX_PREFIX];
    let received = tunnel.outside.receive(|peer, payload| {
        let Some(used) = tunnel.outside.prefix(peer, &mut prefix) else {
            unwanted += 1;
            return;
        };
        //= rfc9298 §6.1 oversize-to-client-dropped
        if used + payload.len() > room {
            oversize += 1;
        } else {
            bytes += payload.len();
            datagrams.push(flow.datagram(&prefix[..used], payload));
        }
    });
    match received {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
        Err(_) => return Err(Ended::Unreachable),
    }
    tunnel.metrics.datagrams_dropped_oversize.add(oversize);
    tunnel.metrics.datagrams_dropped_context.add(unwanted);
    let count = datagrams.len() as u64;
    let dropped = flow.send(&mut datagrams);
    tunnel.metrics.datagrams_dropped_queue.add(dropped);
    tunnel.moved_down(count, bytes as u64);
    Ok(bytes)
}

/// Receives a batch into buffers of capsules; how many bytes that were.
fn by_capsules<O: Outside>(
    tunnel: &Tunnel<'_, O>,
    waiting: &mut VecDeque<Filled>,
) -> Result<usize, Ended> {
    let (mut bytes, mut unwanted) = (0, 0);
    let (mut prefix, mut header) = ([0; MAX_PREFIX], [0; MAX_HEADER]);
    // What waits already is left as it is: the first one may be about to be sent.
    let before = waiting.len();
    let received = tunnel.outside.receive(|peer, payload| {
        let Some(used) = tunnel.outside.prefix(peer, &mut prefix) else {
            unwanted += 1;
            return;
        };
        let datagram = used + payload.len();
        let size = encode_header(types::DATAGRAM, datagram as u64, &mut header);
        let fits = |last: &Filled| last.length + size + datagram <= PAYLOAD;
        if waiting.len() == before || !waiting.back().is_some_and(fits) {
            waiting.push_back(Filled::empty());
        }
        if let Some(filled) = waiting.back_mut()
            && let Some(room) = filled.room(size + datagram)
        {
            let (front, rest) = room.split_at_mut(size + used);
            front[..size].copy_from_slice(&header[..size]);
            front[size..].copy_from_slice(&prefix[..used]);
            rest.copy_from_slice(payload);
            filled.datagrams += 1;
            filled.bytes += payload.len() as u64;
            bytes += payload.len();
        }
    });
    tunnel.metrics.datagrams_dropped_context.add(unwanted);
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

/// Sends a buffer of capsules. Nothing for the turn: its bytes counted when they arrived.
async fn forward<S: SendHalf, O: Outside>(
    tunnel: &Tunnel<'_, O>,
    send: &mut S,
    filled: Filled,
    room: usize,
) -> Result<usize, Ended> {
    let Filled {
        buffer,
        length,
        datagrams,
        bytes,
    } = filled;
    let end = HEADROOM + length;
    tunnel.sending.set(true);
    if length <= room {
        send.send(buffer, HEADROOM, end).await?;
    } else {
        Box::pin(send_in_pieces(send, buffer, HEADROOM, end)).await?;
    }
    tunnel.sending.set(false);
    tunnel.moved_down(datagrams, bytes);
    Ok(0)
}
