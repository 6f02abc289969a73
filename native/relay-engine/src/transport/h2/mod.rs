//! HTTP/2: a connection that carries many requests, each of which may become a tunnel.

pub mod gather;
mod window;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::pool::{Allowance, Backlog, Buffer};
use crate::session;
use crate::state::Phase;
use crate::transport::{
    CHUNKS, Exchange, FLUSH, Fault, Gone, Lost, Peer, RecvHalf, Refusal, RequestHead, SendHalf,
};
use crate::worker::Worker;
use gather::gather;
use window::{Meter, Window};

/// The connection's window is never the bound: a stalled tunnel must not freeze its neighbours.
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
const HEADER_LIST: u32 = 32 << 10;
const STREAMS: u32 = 4096;
/// Unsent bytes of one stream that the library holds.
const SEND_BUFFER: usize = 256 << 10;
/// Unsent bytes of all streams of a connection. None of them waits for a window: a stream is given only what its own has room for.
pub const UNSENT: usize = 1 << 20;
/// Memory that small DATA frames of stalled tunnels may cost a connection.
const SMALL_FRAMES: usize = 64 << 20;
/// Streams that a client reset before they were looked at.
const RESET_UNSEEN: usize = 256;
/// A connection without a stream is ended after about this.
const IDLE: Duration = Duration::from_secs(300);
/// A connection that is to end and has no stream is cut off after twice this.
const GOODBYE: Duration = Duration::from_secs(1);
/// Chunks taken from a stream in one go.
const BATCH: usize = 256 << 10;

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        //= rfc8441 §3 setting
        //= connect-tcp §3.2 enable-connect-protocol
        .enable_connect_protocol()
        .initial_window_size(window::FIRST)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(256 << 10)
        .max_header_list_size(HEADER_LIST)
        .max_concurrent_streams(STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(RESET_UNSEEN)
        .data_frame_budget(SMALL_FRAMES);
    builder
}

/// Serves a connection until it ends. The first request is to arrive before `until`.
pub fn serve<I>(
    worker: Rc<Worker>,
    peer: Peer,
    io: I,
    until: Instant,
) -> impl Future<Output = ()> + 'static
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    gather(io, |io| drive(worker, peer, io, until))
}

async fn drive<I>(worker: Rc<Worker>, peer: Peer, io: I, until: Instant)
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let Ok(Ok(mut connection)) = timeout_at(until, builder().handshake::<I, Bytes>(io)).await
    else {
        return;
    };
    let (worker, peer) = (&worker, Rc::new(peer));
    let allowance = Allowance::new(UNSENT);
    let meter = Meter::default();
    let mut window = Window::new(meter.clone());
    let mut pings = connection.ping_pong();
    let mut draining = false;
    let mut asked = false;
    // How often in a row the connection was looked at and had no stream.
    let mut quiet = 0;
    let mut look = until;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            larger = poll_fn(|cx| widen(cx, &mut window, pings.as_mut())) => {
                // Only a connection that is over refuses.
                let _ = connection.set_initial_window_size(larger);
                continue;
            }
            () = worker.reached(Phase::Draining), if !draining => {
                draining = true;
                connection.graceful_shutdown();
                (quiet, look) = (0, Instant::now() + GOODBYE);
                continue;
            }
            // Tunnels reset their streams now; what remains to be written gets a moment.
            () = worker.reached(Phase::Stopping) => {
                let _ = timeout(FLUSH, poll_fn(|cx| connection.poll_closed(cx))).await;
                return;
            }
            () = sleep_until(look) => {
                quiet = if connection.has_streams() { 0 } else { quiet + 1 };
                match (draining, asked, quiet) {
                    // A client that does not let the connection end is cut off.
                    (true, _, 2..) => return,
                    // One that asks for nothing in time has no claim to a gentle end.
                    (false, false, 1..) => {
                        connection.abrupt_shutdown(Reason::NO_ERROR);
                        let _ = timeout(FLUSH, poll_fn(|cx| connection.poll_closed(cx))).await;
                        return;
                    }
                    (false, true, 2..) => {
                        draining = true;
                        connection.graceful_shutdown();
                        quiet = 0;
                    }
                    _ => {}
                }
                look = Instant::now() + if draining { GOODBYE } else { IDLE / 2 };
                continue;
            }
        };
        let Some(Ok((request, respond))) = accepted else {
            return;
        };
        asked = true;
        //= rfc9113 §8.2.1 value-whitespace
        let mut respond = respond;
        if request.headers().values().any(is_padded) {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            continue;
        }
        let (head, exchange) = exchange(request, respond, allowance.clone(), &meter);
        // Boxed before it is spawned: a task keeps room for what it was given.
        let opening = Box::pin(session::open(worker.clone(), peer.clone(), head, exchange));
        let worker = worker.clone();
        tokio::task::spawn_local(async move {
            if let Some(opened) = opening.await {
                Box::pin(session::carry(&worker, opened)).await;
            }
        });
    }
}

/// Asks and hears how much the path holds; ready with a larger window. Looks whenever the connection does anything.
fn widen(cx: &mut Context<'_>, window: &mut Window, pings: Option<&mut PingPong>) -> Poll<u32> {
    let Some(pings) = pings else {
        return Poll::Pending;
    };
    loop {
        match pings.poll_pong(cx) {
            Poll::Ready(Ok(_)) => {
                if let Some(larger) = window.answered(Instant::now().into_std()) {
                    return Poll::Ready(larger);
                }
            }
            Poll::Ready(Err(_)) => return Poll::Pending,
            Poll::Pending => break,
        }
    }
    // One that cannot be sent is never answered: no more are asked for then.
    if window.ask(Instant::now().into_std()) {
        let _ = pings.send_ping(Ping::opaque());
    }
    Poll::Pending
}

/// Whether a value begins or ends with white space.
fn is_padded(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    [bytes.first(), bytes.last()]
        .iter()
        .any(|end| matches!(end, Some(b' ' | b'\t')))
}

//= rfc9113 §8.1.1 malformed-request
// The library resets the stream of a malformed head; what is left to judge is the request itself.
fn exchange(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    allowance: Allowance,
    meter: &Meter,
) -> (RequestHead, H2Exchange) {
    let (parts, body) = request.into_parts();
    let protocol = parts.extensions.get::<h2::ext::Protocol>();
    let head = RequestHead {
        version: capsule_core::request::Version::H2,
        method: parts.method.as_str().to_owned(),
        scheme: parts.uri.scheme_str().map(str::to_owned),
        authority: parts
            .uri
            .authority()
            .map(|authority| authority.as_str().to_owned()),
        path: parts
            .uri
            .path_and_query()
            .map(|path| path.as_str().to_owned()),
        protocol: protocol.map(|protocol| protocol.as_str().to_owned()),
        fields: parts.headers,
    };
    let head_only = head.method == "HEAD";
    let exchange = H2Exchange {
        head_only,
        body: H2Recv {
            body,
            stream: Some(meter.stream()),
        },
        respond,
        allowance,
    };
    (head, exchange)
}

struct H2Exchange {
    /// An answer has no content (RFC 9110 §9.3.2).
    head_only: bool,
    body: H2Recv,
    respond: SendResponse<Bytes>,
    allowance: Allowance,
}

fn response(status: u16, fields: Vec<(HeaderName, HeaderValue)>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in fields {
        // Connection-specific fields have no place here.
        if name != http::header::UPGRADE && name != http::header::CONNECTION {
            response.headers_mut().append(name, value);
        }
    }
    response
}

impl Exchange for H2Exchange {
    type Recv = H2Recv;
    type Send = H2Send;

    async fn proceed(&mut self) -> Result<(), Gone> {
        self.respond
            .send_informational(response(100, Vec::new()))
            .map_err(|_| Gone)
    }

    async fn refuse(mut self, refusal: Refusal) {
        let mut answer = response(refusal.status, refusal.fields);
        answer.headers_mut().insert(
            http::header::CONTENT_LENGTH,
            HeaderValue::from(refusal.body.len()),
        );
        if let Ok(stream) = self.respond.send_response(answer, self.head_only)
            && !self.head_only
        {
            // Given up by the caller's time-out, it resets the stream.
            let mut send = H2Send::new(stream, self.allowance);
            let body = send.backlog.count(refusal.body);
            if send.stream.send_data(body, true).is_err() {
                return;
            }
            let backlog = send.backlog.clone();
            tokio::select! {
                () = backlog.below(1) => send.over = true,
                _ = send.gone() => {}
            }
        }
        //= connect-tcp §4.1 discard-optimistic
        // Optimistic bytes are dropped with the body: the library ends the stream with NO_ERROR.
    }

    async fn accept(
        mut self,
        fields: Vec<(HeaderName, HeaderValue)>,
        _: Option<&str>,
    ) -> Result<(H2Recv, H2Send), Gone> {
        let stream = self
            .respond
            .send_response(response(200, fields), false)
            .map_err(|_| Gone)?;
        Ok((self.body, H2Send::new(stream, self.allowance)))
    }

    async fn gone(&mut self) -> Gone {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
        Gone
    }
}

/// Bytes from the peer.
#[derive(Debug)]
pub struct H2Recv {
    body: RecvStream,
    /// Counts towards the connection's window.
    stream: Option<window::Stream>,
}

impl H2Recv {
    /// Reads the stream's DATA frames.
    pub fn new(body: RecvStream) -> Self {
        Self { body, stream: None }
    }
}

impl RecvHalf for H2Recv {
    async fn recv(&mut self, chunks: &mut Vec<Bytes>) -> Result<bool, Lost> {
        let more = poll_fn(|cx| {
            let mut taken = 0;
            while taken < BATCH {
                match self.body.poll_data(cx) {
                    Poll::Ready(Some(Ok(data))) => {
                        taken += data.len();
                        if !data.is_empty() {
                            chunks.push(data);
                        }
                    }
                    Poll::Ready(None) if chunks.is_empty() => return Poll::Ready(Ok(false)),
                    Poll::Ready(Some(Err(_))) if chunks.is_empty() => {
                        return Poll::Ready(Err(Lost::Gone));
                    }
                    Poll::Pending if chunks.is_empty() => return Poll::Pending,
                    // Reported again by the next call.
                    Poll::Ready(None | Some(Err(_))) | Poll::Pending => break,
                }
            }
            Poll::Ready(Ok(true))
        })
        .await?;
        if !more {
            //= connect-tcp §4.2 no-trailers
            let trailers = poll_fn(|cx| self.body.poll_trailers(cx)).await;
            match trailers {
                Ok(None) => {}
                Ok(Some(_)) => return Err(Lost::Malformed),
                Err(_) => return Err(Lost::Gone),
            }
        }
        Ok(more)
    }

    fn release(&mut self, bytes: usize) {
        let _ = self.body.flow_control().release_capacity(bytes);
        if let Some(stream) = &mut self.stream {
            stream.moved(bytes);
        }
    }

    fn abort(&mut self, _: Fault) {}
}

/// Bytes to the peer.
#[derive(Debug)]
pub struct H2Send {
    stream: SendStream<Bytes>,
    backlog: Backlog,
    allowance: Allowance,
    over: bool,
}

impl H2Send {
    /// Writes the stream's DATA frames.
    pub fn new(stream: SendStream<Bytes>, allowance: Allowance) -> Self {
        Self {
            stream,
            backlog: Backlog::within(&allowance),
            allowance,
            over: false,
        }
    }
}

impl SendHalf for H2Send {
    async fn ready(&mut self, want: usize) -> Result<usize, Gone> {
        if self.backlog.held() >= CHUNKS {
            let backlog = self.backlog.clone();
            tokio::select! {
                () = backlog.below(CHUNKS) => {}
                gone = self.gone() => return Err(gone),
            }
        }
        if !self.allowance.has_room() {
            let allowance = self.allowance.clone();
            tokio::select! {
                () = allowance.room() => {}
                gone = self.gone() => return Err(gone),
            }
        }
        self.stream.reserve_capacity(want);
        poll_fn(|cx| {
            loop {
                let room = self.stream.capacity();
                if room > 0 {
                    return Poll::Ready(Ok(room.min(want)));
                }
                match self.stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Gone)),
                    Poll::Pending => {
                        // Its own window is closed: others may have what it does not take.
                        self.allowance.pass_on();
                        return Poll::Pending;
                    }
                }
            }
        })
        .await
    }

    fn unready(&mut self) {
        // The connection's window is shared: what one stream has reserved no other can use.
        self.stream.reserve_capacity(0);
        self.allowance.pass_on();
    }

    async fn send(&mut self, buffer: Buffer, start: usize, end: usize) -> Result<(), Gone> {
        let chunk = buffer.freeze_counted(start, end, &self.backlog);
        self.stream.send_data(chunk, false).map_err(|_| Gone)?;
        self.unready();
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Gone> {
        self.over = true;
        self.stream
            .send_data(Bytes::new(), true)
            .map_err(|_| Gone)?;
        // A drain may not cut off what still waits here.
        let backlog = self.backlog.clone();
        tokio::select! {
            () = backlog.below(1) => Ok(()),
            gone = self.gone() => Err(gone),
        }
    }

    fn delivered(&self) -> bool {
        self.backlog.held() == 0
    }

    async fn abort(&mut self, fault: Fault) {
        //= rfc9113 §8.5 connect-error
        //= connect-tcp §3.4 abrupt-close-h2
        //= rfc8441 §5 stream-end
        //= rfc9297 §3.3 malformed-capsule
        let reason = match fault {
            Fault::Target | Fault::Client => Reason::CONNECT_ERROR,
            Fault::Malformed | Fault::Datagram => Reason::PROTOCOL_ERROR,
            Fault::Cancelled => Reason::CANCEL,
        };
        if fault == Fault::Target {
            // A reset takes queued frames with it: what the target sent before it broke goes first.
            self.backlog.drained(FLUSH).await;
        }
        self.over = true;
        self.stream.send_reset(reason);
    }

    async fn gone(&mut self) -> Gone {
        let _ = poll_fn(|cx| self.stream.poll_reset(cx)).await;
        Gone
    }
}

impl Drop for H2Send {
    fn drop(&mut self) {
        // A task that ends without a word, by a panic, a time-out or a cancelled runtime, must not look like a clean end.
        if !self.over {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}
