//! The server side of HTTP/3 connections: control streams, requests, GOAWAY, and the codes that violations end with.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use capsule_core::request::Version;
use http::header::CONTENT_LENGTH;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::code::{Code, Fault as Violation};
use super::control::{self, Control};
use super::exchange::{H3Exchange, Unanswered, Unread, answer};
use super::frame::{Decoder, Side};
use super::message;
use super::qpack;
use super::requests::Requests;
use super::settings::Settings;
use super::stream::{H3Recv, H3Send, READ, Verdict, close, number, read_field_section};
use super::uni::{self, Opened, Purpose};
use crate::auth;
use crate::session;
use crate::state::Phase;
use crate::transport::quic::{self, STREAMS, STREAMS_MOST, VarInt};
use crate::transport::{Peer, RequestHead};
use crate::worker::{OpenConnection, Worker};

/// Handshakes under way on a worker beyond which clients must prove their address first.
const UNPROVEN: u32 = 512;
/// How long streams may take to say goodbye when the relay stops.
const GOODBYE: Duration = Duration::from_millis(300);
/// A connection without a request is ended after this.
const IDLE: Duration = Duration::from_secs(300);

/// Accepts connections on a worker's endpoint until the relay drains.
pub async fn accept(worker: Rc<Worker>, endpoint: quic::Endpoint, listener: usize) {
    let mut server: Option<(u64, Arc<quic::ServerConfig>)> = None;
    let handshakes = Rc::new(Cell::new(0));
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = worker.reached(Phase::Draining) => break,
        };
        let generation = worker.shared.generation.load_full();
        if handshakes.get() >= UNPROVEN
            && incoming.may_retry()
            && !incoming.remote_address_validated()
        {
            incoming.retry();
            continue;
        }
        worker.metrics().connections_accepted.add(1);
        let Some(slot) = worker.shared.admit_connection() else {
            worker.metrics().connections_refused.add(1);
            incoming.refuse();
            continue;
        };
        // A reload counts from the next connection on.
        let config = match &server {
            Some((number, config)) if *number == generation.number => config.clone(),
            _ => {
                let Some(tls) = generation.tls.get(listener).and_then(Option::as_ref) else {
                    incoming.refuse();
                    continue;
                };
                let config = Arc::new(quic::server_config(tls, &generation.quic));
                server = Some((generation.number, config.clone()));
                config
            }
        };
        let Ok(connecting) = incoming.accept(config) else {
            continue;
        };
        let (worker, handshakes) = (worker.clone(), handshakes.clone());
        let limit = generation.limits.header_timeout;
        spawn_local(async move {
            worker.metrics().connections_open.add(1);
            let open = OpenConnection(&worker);
            handshakes.set(handshakes.get() + 1);
            let handshake = timeout(limit, connecting).await;
            handshakes.set(handshakes.get() - 1);
            if let Ok(Ok(quic)) = handshake {
                serve(&worker, quic).await;
            }
            drop((open, slot));
        });
    }
    endpoint.stop_accepting();
}

/// One connection's state, shared by the tasks of its streams.
struct Connection {
    quic: quic::Connection,
    peer: Rc<Peer>,
    opened: RefCell<Opened>,
    requests: Requests,
    /// Request streams the client may have open.
    limit: Cell<u32>,
    /// The first request that is not processed, once GOAWAY was sent.
    goaway: Cell<Option<u64>>,
    idle: Notify,
    /// When the last request was over; without meaning while there is one.
    quiet_since: Cell<Option<Instant>>,
}

impl Connection {
    fn violated(&self, code: Code) {
        close(&self.quic, code);
    }
}

async fn serve(worker: &Rc<Worker>, quic: quic::Connection) {
    let address = quic.remote_address();
    let certificate = quic.peer_certificates();
    let peer = Peer {
        address: std::net::SocketAddr::new(address.ip().to_canonical(), address.port()),
        principal: certificate
            .and_then(|chain| auth::principal_of_certificate(chain.first()?))
            .map(Into::into),
    };
    let connection = Rc::new(Connection {
        quic,
        peer: Rc::new(peer),
        opened: RefCell::new(Opened::new(Side::Server)),
        requests: Requests::new(Side::Server),
        limit: Cell::new(STREAMS),
        goaway: Cell::new(None),
        idle: Notify::new(),
        quiet_since: Cell::new(Some(Instant::now())),
    });
    // The seed of reserved values only has to vary.
    let grease = connection.quic.id() as u64 >> 6;
    let limit = worker.shared.generation.load().limits.header_timeout;
    let opening = async {
        let mut control = connection.quic.open_uni().await.ok()?;
        let preface = control::preface(&Settings::ours(), grease % 1024);
        control.write_all(&preface).await.ok()?;
        Some(control)
    };
    // RFC 9114 §6.2 has clients allow for the control stream; one that does not cannot be spoken to.
    let Ok(Some(mut control)) = timeout(limit, opening).await else {
        return close(&connection.quic, Code::GENERAL_PROTOCOL_ERROR);
    };
    let mut draining = false;
    let mut frames = Vec::new();
    let mut idle_until = Instant::now() + limit;
    let control_stopped = control.stopped();
    tokio::pin!(control_stopped);
    loop {
        tokio::select! {
            //= rfc9114 §6.2.1 control-stream-stays
            stopped = &mut control_stopped => {
                // Otherwise the connection is lost.
                if stopped.is_ok() {
                    connection.violated(Code::CLOSED_CRITICAL_STREAM);
                }
                return;
            }
            stream = connection.quic.accept_bi() => {
                let Ok((send, recv)) = stream else { return };
                begin(worker, &connection, send, recv);
            }
            stream = connection.quic.accept_uni() => {
                let Ok(recv) = stream else { return };
                let connection = connection.clone();
                spawn_local(async move {
                    if let Err(Violation::Connection(code) | Violation::Stream(code)) = unidirectional(&connection, recv).await {
                        connection.violated(code);
                    }
                });
            }
            arrived = connection.quic.read_datagrams(&mut frames) => {
                if arrived.is_err() {
                    return;
                }
                for frame in frames.drain(..) {
                    if let Err(fault) = connection.requests.datagram(frame) {
                        connection.violated(fault.code());
                    }
                }
            }
            () = worker.reached(Phase::Draining), if !draining => {
                draining = true;
                let id = connection.requests.next();
                connection.goaway.set(Some(id));
                let mut goaway = Vec::new();
                control::put_goaway(id, &mut goaway);
                let _ = timeout(GOODBYE, control.write_all(&goaway)).await;
            }
            () = no_requests(&connection), if draining => {
                // The last answers get a moment to arrive before the connection goes.
                sleep(GOODBYE).await;
                return close(&connection.quic, Code::NO_ERROR);
            }
            () = sleep_until(idle_until), if !draining => {
                let quiet = connection.quiet_since.get().filter(|_| connection.requests.count() == 0);
                match quiet.map(|since| since + IDLE) {
                    // One that asked for nothing in time has no claim to more of it.
                    Some(until) if connection.requests.next() == 0 || until <= Instant::now() => {
                        return close(&connection.quic, Code::NO_ERROR);
                    }
                    Some(until) => idle_until = until,
                    None => idle_until = Instant::now() + IDLE,
                }
            }
            () = worker.reached(Phase::Stopping) => {
                let _ = timeout(GOODBYE, no_requests(&connection)).await;
                tokio::task::yield_now().await;
                return close(&connection.quic, Code::NO_ERROR);
            }
        }
    }
}

async fn no_requests(connection: &Connection) {
    loop {
        let idle = connection.idle.notified();
        if connection.requests.count() == 0 {
            return;
        }
        idle.await;
    }
}

/// Starts a request stream's task.
fn begin(
    worker: &Rc<Worker>,
    connection: &Rc<Connection>,
    mut send: quic::SendStream,
    mut recv: quic::RecvStream,
) {
    let id = u64::from(VarInt::from(send.id()));
    if connection.goaway.get().is_some_and(|first| id >= first) {
        send.reset(number(Code::REQUEST_REJECTED));
        recv.stop(number(Code::REQUEST_REJECTED));
        return;
    }
    let verdict = connection.requests.open(id);
    let open = connection.requests.count() as u32;
    // Every permitted stream costs memory, so the limit follows what the client uses.
    let limit = connection.limit.get();
    if open > limit / 4 * 3 && limit < STREAMS_MOST {
        connection.limit.set(limit * 2);
        connection
            .quic
            .set_max_concurrent_bi_streams(VarInt::from_u32(limit * 2));
    }
    let (worker, connection) = (worker.clone(), connection.clone());
    // Boxed before it is spawned: a task keeps room for what it was given.
    let opening = Box::pin(request(
        worker.clone(),
        connection.clone(),
        verdict,
        send,
        recv,
    ));
    spawn_local(async move {
        let _open = OpenRequest {
            connection: &connection,
            id,
        };
        if let Some(opened) = opening.await {
            Box::pin(session::carry(&worker, opened)).await;
        }
    });
}

/// Takes a request off the list, whatever ends its task.
struct OpenRequest<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        if self.connection.requests.close(self.id) {
            self.connection.quiet_since.set(Some(Instant::now()));
            self.connection.idle.notify_waiters();
        }
    }
}

/// Reads the head of a request and opens its tunnel; `None`: there will be none.
async fn request(
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    verdict: Rc<Verdict>,
    mut send: quic::SendStream,
    mut recv: quic::RecvStream,
) -> Option<Box<session::Opened<H3Recv, H3Send>>> {
    let limit = worker.shared.generation.load().limits.header_timeout;
    let mut decoder = Decoder::new(Side::Server);
    let mut early = Bytes::new();
    let reading = timeout(limit, async {
        let section = read_field_section(&mut recv, &mut decoder, &mut early).await?;
        section
            .map(|block| message::request(qpack::decode(&block)?))
            .transpose()
    })
    .await;
    let fault = match reading {
        Ok(Ok(Some(head))) => {
            let request_ends = head.method != "CONNECT";
            let announced = head.fields.get(CONTENT_LENGTH).filter(|_| request_ends);
            let exchange = H3Exchange {
                head_only: head.method == "HEAD",
                send: Unanswered(Some(send)),
                recv: Unread::new(recv),
                content_length: announced.and_then(|length| length.to_str().ok()?.parse().ok()),
                request_ends,
                quic: connection.quic.clone(),
                decoder,
                early: vec![early],
                verdict,
                datagrams: connection.requests.permitted().clone(),
            };
            let head = RequestHead {
                version: Version::H3,
                method: head.method,
                scheme: head.scheme,
                authority: head.authority,
                path: head.path,
                protocol: head.protocol,
                fields: head.fields,
            };
            return session::open(worker, connection.peer.clone(), head, exchange).await;
        }
        // The client gave up.
        Ok(Ok(None)) => Violation::Stream(Code::REQUEST_CANCELLED),
        Ok(Err(fault)) => fault,
        Err(_) => Violation::Stream(Code::REQUEST_CANCELLED),
    };
    match fault {
        Violation::Connection(code) => connection.violated(code),
        Violation::Stream(Code::EXCESSIVE_LOAD) => {
            let reject = capsule_core::reject::Reject::new(
                431,
                "Request Header Fields Too Large",
                "the request head is too large",
            );
            let refusal = session::refusal(&reject, None, &[]);
            let answering = answer(Unanswered(Some(send)), refusal, false);
            let _ = timeout(limit, answering).await;
            recv.stop(number(Code::NO_ERROR));
        }
        //= rfc9114 §4.1.2 malformed-request
        Violation::Stream(code) => {
            send.reset(number(code));
            recv.stop(number(code));
        }
    }
    None
}

/// A stream that the client opened for the connection's own sake.
async fn unidirectional(
    connection: &Connection,
    mut recv: quic::RecvStream,
) -> Result<(), Violation> {
    let mut kind = Vec::new();
    let kind = loop {
        match recv.read_chunk(1).await {
            Ok(Some(chunk)) => kind.extend_from_slice(&chunk),
            // A stream that ends before it says what it is is no error.
            Ok(None) | Err(_) => return Ok(()),
        }
        if let Some((kind, _)) = uni::stream_type(&kind) {
            break kind;
        }
    };
    let purpose = connection.opened.borrow_mut().open(kind)?;
    let mut control = control::Decoder::new(Side::Server);
    let mut acknowledgements = qpack::DecoderStream::default();
    loop {
        let chunk = match recv.read_chunk(READ).await {
            Ok(Some(chunk)) => chunk,
            //= rfc9114 §6.2.1 control-stream-stays
            Ok(None) | Err(quic::ReadError::Reset(_)) if purpose != Purpose::Unknown => {
                return Err(control::CLOSED);
            }
            Ok(None) | Err(_) => return Ok(()),
        };
        let mut data = &chunk[..];
        match purpose {
            // What else a client says there needs no answer: it cannot be pushed to.
            Purpose::Control => {
                while let Some(said) = control.next(&mut data)? {
                    if let Control::Settings(settings) = said {
                        connection.requests.permitted().set(settings.h3_datagram);
                    }
                }
            }
            Purpose::QpackEncoder => qpack::encoder_stream(data)?,
            Purpose::QpackDecoder => acknowledgements.feed(data)?,
            Purpose::Unknown => {
                recv.stop(number(Code::STREAM_CREATION_ERROR));
                return Ok(());
            }
        }
    }
}
