//! One worker: a thread with a current-thread runtime, its own sockets, and every connection that arrives on them.

use std::cell::RefCell;
use std::net::{TcpListener, UdpSocket};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::auth;
use crate::config::Http;
use crate::egress::Egress;
use crate::metrics::WorkerMetrics;
use crate::state::{Generation, Phase, Shared};
use crate::transport::prefixed::Prefixed;
use crate::transport::wire::Wire;
use crate::transport::{Peer, h1, h2, h3, quic, tls};

/// The client connection preface of HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// After a failed accept, e.g. for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Silence after which a client's host is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long connections may take to say goodbye when the relay stops.
const GOODBYE: Duration = Duration::from_secs(1);

/// A worker's share of one listener.
#[derive(Debug)]
pub struct ListenerShare {
    /// Index in the configuration.
    pub index: usize,
    /// HTTP versions offered.
    pub http: Vec<Http>,
    /// TCP socket, if TCP is listened on.
    pub tcp: Option<TcpListener>,
    /// UDP socket, if h3 is offered.
    pub udp: Option<UdpSocket>,
}

/// What the tasks of one worker share.
pub struct Worker {
    /// Index among the workers.
    pub index: usize,
    /// What all workers share.
    pub shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
    egress: RefCell<Option<(u64, Rc<Egress>)>>,
}

impl Worker {
    /// This worker's counters.
    pub fn metrics(&self) -> &WorkerMetrics {
        &self.shared.metrics[self.index]
    }

    /// Where the engine is in its life.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Resolves when the engine is at `phase` or beyond.
    pub fn reached(&self, phase: Phase) -> impl Future<Output = ()> + use<> {
        let mut receiver = self.phase.clone();
        async move {
            // A closed channel means that the engine is gone.
            let _ = receiver.wait_for(|now| *now >= phase).await;
        }
    }

    /// The dialler of a configuration; resolver and its cache live as long as the configuration does.
    pub fn egress(&self, generation: &Generation) -> Rc<Egress> {
        let mut slot = self.egress.borrow_mut();
        match &*slot {
            Some((number, egress)) if *number == generation.number => egress.clone(),
            _ => {
                let egress = Rc::new(Egress::new(&generation.egress));
                if egress.is_complete() {
                    *slot = Some((generation.number, egress.clone()));
                }
                egress
            }
        }
    }
}

/// Runs a worker until the engine stops. `started` is told once its sockets are being served.
pub fn run(
    index: usize,
    shared: Arc<Shared>,
    listeners: Vec<ListenerShare>,
    started: std::sync::mpsc::Sender<Result<(), String>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(31)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(format!("worker {index}: no runtime: {error}")));
            return;
        }
    };
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async {
        let phase = shared.phase.subscribe();
        let worker = Rc::new(Worker {
            index,
            shared,
            phase,
            egress: RefCell::new(None),
        });
        // While descriptors are sure to be had.
        worker.egress(&worker.shared.generation.load());
        let mut endpoints = Vec::new();
        for listener in listeners {
            match serve_listener(&worker, listener) {
                Ok(Some(endpoint)) => endpoints.push(endpoint),
                Ok(None) => {}
                Err(fault) => {
                    let _ = started.send(Err(fault));
                    return;
                }
            }
        }
        let _ = started.send(Ok(()));
        drop(started);
        worker.reached(Phase::Stopping).await;
        // Tunnels reset their streams and connections write that down; then whatever is left is dropped.
        let _ = timeout(GOODBYE, async {
            while worker.metrics().connections_open.get() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
            for endpoint in endpoints {
                endpoint.wait_idle().await;
            }
        })
        .await;
    });
    drop(tasks);
    runtime.shutdown_timeout(Duration::from_millis(100));
}

fn serve_listener(
    worker: &Rc<Worker>,
    listener: ListenerShare,
) -> Result<Option<quic::Endpoint>, String> {
    let place = format!("listeners[{}]", listener.index);
    let http: Rc<[Http]> = listener.http.into();
    if let Some(socket) = listener.tcp {
        let socket = tokio::net::TcpListener::from_std(socket)
            .map_err(|error| format!("{place}: {error}"))?;
        spawn_local(accept(worker.clone(), socket, listener.index, http));
    }
    let Some(socket) = listener.udp else {
        return Ok(None);
    };
    let generation = worker.shared.generation.load_full();
    let Some(tls) = &generation.tls[listener.index] else {
        return Err(format!("{place}: h3 needs a certificate and a private key"));
    };
    let endpoint = quic::endpoint(
        socket,
        worker.index,
        quic::server_config(tls, &generation.quic),
    )
    .map_err(|error| format!("{place}: {error}"))?;
    spawn_local(h3::accept(worker.clone(), endpoint.clone(), listener.index));
    Ok(Some(endpoint))
}

async fn accept(
    worker: Rc<Worker>,
    listener: tokio::net::TcpListener,
    index: usize,
    http: Rc<[Http]>,
) {
    let mut draining = std::pin::pin!(worker.reached(Phase::Draining));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut draining => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(_) => {
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        worker.metrics().connections_accepted.add(1);
        let Some(slot) = worker.shared.admit_connection() else {
            worker.metrics().connections_refused.add(1);
            continue;
        };
        let _ = stream.set_nodelay(true);
        // A client that vanished without a word is found out, however long its tunnel may be idle.
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE / 4)
            .with_retries(4);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let peer = Peer {
            address: std::net::SocketAddr::new(address.ip().to_canonical(), address.port()),
            principal: None,
        };
        let worker = worker.clone();
        let greeting = greet(worker.clone(), index, http.clone(), peer, Wire::new(stream));
        let greeting = Box::pin(greeting);
        spawn_local(async move {
            worker.metrics().connections_open.add(1);
            let open = OpenConnection(&worker);
            if let Some(serving) = greeting.await {
                serving.await;
            }
            drop((open, slot));
        });
    }
}

/// Keeps the gauge of open connections right, whatever ends the task.
pub struct OpenConnection<'a>(pub &'a Rc<Worker>);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.metrics().connections_open.sub(1);
    }
}

/// What a connection does for the rest of its life.
type Serving = Pin<Box<dyn Future<Output = ()>>>;

/// The beginning of a TCP connection: TLS if the listener has it, then the version that the client speaks. Apart from what follows,
/// which may take days and needs none of what this does.
async fn greet(
    worker: Rc<Worker>,
    index: usize,
    http: Rc<[Http]>,
    mut peer: Peer,
    mut wire: Wire,
) -> Option<Serving> {
    let (until, config) = {
        let generation = worker.shared.generation.load();
        (
            Instant::now() + generation.limits.header_timeout,
            generation.tls[index].as_ref().map(|tls| tls.tcp.clone()),
        )
    };
    let Some(config) = config else {
        let mut read = BytesMut::new();
        let version = tokio::select! {
            biased;
            version = timeout_at(until, speaks_h2(&mut wire, &http, &mut read)) => version,
            () = worker.reached(Phase::Draining) => Ok(Some(Http::H1)),
        };
        return match version {
            Ok(Some(Http::H2)) => {
                let io = Prefixed::new(read, wire);
                Some(Box::pin(h2::serve(worker, peer, io, until)))
            }
            // Whoever is too slow gets the answer that says so.
            Ok(Some(_)) | Err(_) if http.contains(&Http::H1) => {
                let connection = h1::Connection::new(wire, read);
                Some(Box::pin(h1::exchange::serve(
                    worker, peer, connection, until,
                )))
            }
            _ => None,
        };
    };
    let accepted = timeout_at(until, tls::accept(config, wire)).await;
    let (stream, agreed) = accepted.ok()?.ok()?;
    peer.principal = agreed
        .certificate
        .and_then(|certificate| auth::principal_of_certificate(&certificate))
        .map(Into::into);
    // A client without ALPN speaks HTTP/1.1.
    if agreed.alpn.as_deref() == Some(b"h2") {
        return Some(Box::pin(h2::serve(worker, peer, stream, until)));
    }
    let connection = h1::Connection::new(stream, BytesMut::new());
    let serving = h1::exchange::serve(worker, peer, connection, until);
    http.contains(&Http::H1)
        .then(|| Box::pin(serving) as Serving)
}

/// Reads until it is clear whether a cleartext client speaks HTTP/2 with prior knowledge; `None` if it left.
async fn speaks_h2(wire: &mut Wire, http: &[Http], read: &mut BytesMut) -> Option<Http> {
    if !http.contains(&Http::H2) {
        return Some(Http::H1);
    }
    loop {
        let seen = read.len().min(PREFACE.len());
        if read[..seen] != PREFACE[..seen] {
            return Some(Http::H1);
        }
        if seen == PREFACE.len() {
            return Some(Http::H2);
        }
        if !matches!(wire.read_buf(read).await, Ok(n) if n > 0) {
            return None;
        }
    }
}
