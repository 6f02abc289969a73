//! The life of one request: head → route → credentials → policy → dial → answer → pump → record.

mod answer;
mod bound;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use capsule_core::capsule_protocol;
use capsule_core::ecn_dscp::{Assignment, CapsuleTypes};
use capsule_core::fields::Fields;
use capsule_core::protocols::TargetKind;
use capsule_core::proxy_status::ProxyError;
use capsule_core::reject::Reject;
use capsule_core::request::{self, Challenge, Head, Request};
use capsule_core::target::{Host, Target};
use futures_util::future::{Either, select};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::access_log::{self, AccessLog, Record};
use crate::auth::Outcome as Known;
use crate::decide::{Decision, Question};
use crate::egress::{
    self, DatagramSocket, DialError, Dialled, Egress, MarkedSocket, dial, dial_datagrams,
};
use crate::hook;
use crate::policy;
use crate::pool;
use crate::pump::marked::Marked;
use crate::pump::outside::{Bound, Connected, Judge};
use crate::pump::{self, Bounds, Ended};
use crate::state::{Generation, Phase};
use crate::transport::{Exchange, Gone, Peer, RecvHalf, Refusal, RequestHead, SendHalf};
use crate::worker::Worker;

pub use answer::refusal;
use answer::{challenge, date, title};

struct HeaderFields<'a>(&'a HeaderMap);

impl Fields for HeaderFields<'_> {
    fn get_all<'s>(&'s self, name: &str, each: &mut dyn FnMut(&'s [u8])) {
        for value in self.0.get_all(name) {
            each(value.as_bytes());
        }
    }
}

/// Why a request got no tunnel: the answer, and what it adds to `Proxy-Status`.
struct Refused {
    reject: Reject,
    rcode: Option<String>,
}

impl From<Reject> for Refused {
    fn from(reject: Reject) -> Self {
        Self {
            reject,
            rcode: None,
        }
    }
}

/// A request on its way, and what the access log says of it.
struct Entry {
    request: Request,
    http: &'static str,
    client: SocketAddr,
    principal: Option<Arc<str>>,
    next_hop: Option<SocketAddr>,
    began: Instant,
    setup: Duration,
}

impl Entry {
    /// The client went away before it was answered.
    fn left(&self, worker: &Worker) {
        let log = worker.shared.log.load();
        self.write(&log, 0, None, "client gone before the answer", (0, 0), None);
    }

    fn write(
        &self,
        log: &AccessLog,
        status: u16,
        error: Option<ProxyError>,
        end: &str,
        bytes: (u64, u64),
        datagrams: Option<(u64, u64)>,
    ) {
        let target = match &self.request.target {
            Ok(target) => target.to_string(),
            Err(_) => String::new(),
        };
        log.write(&Record {
            time: access_log::now(),
            protocol: self.request.protocol.name,
            http: self.http,
            client: self.client,
            principal: self.principal.as_deref(),
            target: &target,
            next_hop: self.next_hop,
            status,
            error: error.map(ProxyError::token),
            end,
            bytes_up: bytes.0,
            bytes_down: bytes.1,
            datagrams_up: datagrams.map(|(up, _)| up),
            datagrams_down: datagrams.map(|(_, down)| down),
            setup_ms: access_log::milliseconds(self.setup),
            duration_ms: access_log::milliseconds(self.began.elapsed()),
        });
    }
}

/// What a tunnel leads to, ready to be used.
enum Reached {
    Stream(TcpStream),
    Datagrams(Connected),
    /// One place, with the marks of packets.
    Marked(Box<Marked>),
    /// Any peer, and perhaps one that the request named.
    Bound(Box<Bound>),
}

/// A way out for a tunnel, and where it leads if that is one place.
struct Way {
    reached: Reached,
    peer: Option<SocketAddr>,
}

/// A tunnel that the client was told of.
pub struct Opened<R, S> {
    entry: Entry,
    status: u16,
    recv: R,
    send: S,
    target: Reached,
    slot: crate::state::TunnelSlot,
    bounds: Bounds,
}

/// From the head of a request to an open tunnel, which is then to be [carried](carry); `None`: the client left, or it was refused
/// and was told so.
///
/// Two steps, because a tunnel may live for days: what opening it takes, most of it the caller's to box, is given back before.
pub async fn open<E: Exchange>(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    head: RequestHead,
    mut exchange: E,
) -> Option<Box<Opened<E::Recv, E::Send>>> {
    let (worker, peer) = (&worker, &*peer);
    let began = Instant::now();
    let generation = worker.shared.generation.load_full();
    let metrics = worker.metrics();
    metrics.requests.add(1);
    let fields = HeaderFields(&head.fields);
    let parsed = request::parse(
        &generation.routes,
        &Head {
            version: head.version,
            method: &head.method,
            scheme: head.scheme.as_deref(),
            authority: head.authority.as_deref(),
            path: head.path.as_deref(),
            protocol: head.protocol.as_deref(),
            fields: &fields,
        },
    );
    let request = match parsed {
        Ok(request) => request,
        Err(reject) => {
            metrics.requests_refused.add(1);
            refuse(&generation, exchange, refusal(&reject, None, &[])).await;
            return None;
        }
    };
    let mut entry = Entry {
        request,
        http: head.http().name(),
        client: peer.address,
        principal: peer.principal.clone(),
        next_hop: None,
        began,
        setup: Duration::ZERO,
    };
    let datagrams = entry.request.protocol.target == TargetKind::Datagram;
    exchange.datagrams(datagrams);
    let admitted = admit(worker, &generation, peer, &head, &mut exchange, &mut entry).await;
    let (way, slot) = match admitted {
        Ok(Some(admitted)) => admitted,
        // The client went away: nobody is left to answer.
        Ok(None) => {
            entry.setup = began.elapsed();
            entry.left(worker);
            return None;
        }
        Err(mut refused) => {
            metrics.requests_refused.add(1);
            entry.setup = began.elapsed();
            //= rfc9931 §8 close-after-refused-connect
            refused.reject.close |= entry.request.close_on_reject;
            let challenges = match refused.reject.status {
                401 | 407 => challenge(entry.request.auth_kind, &generation.realm),
                _ => Vec::new(),
            };
            let answer = refusal(&refused.reject, refused.rcode.as_deref(), &challenges);
            // Logged first: an answer may linger until the client has taken it.
            let Reject {
                status,
                error,
                ref detail,
                ..
            } = refused.reject;
            entry.write(
                &worker.shared.log.load(),
                status,
                error,
                detail,
                (0, 0),
                None,
            );
            refuse(&generation, exchange, answer).await;
            return None;
        }
    };
    entry.next_hop = way.peer;
    entry.setup = began.elapsed();
    let mut answer = vec![answer::next_hop(way.peer.map(|peer| peer.ip()))];
    match &way.reached {
        Reached::Bound(bound) => answer.extend(answer::bound(bound.public())),
        Reached::Marked(marked) => answer.push(answer::marks(&marked.assigned())),
        Reached::Stream(_) | Reached::Datagrams(_) => {}
    }
    //= rfc9297 §3.4 field-sent
    //= rfc9297 §3.4 field-statuses
    //= connect-tcp §3.1 h1-success-capsule-protocol
    //= connect-tcp §3.2 capsule-protocol-field
    if entry.request.protocol.capsule_protocol {
        answer.push((
            HeaderName::from_static(capsule_protocol::NAME),
            HeaderValue::from_static(capsule_protocol::TRUE),
        ));
    }
    let token = entry.request.token.as_deref();
    let status = if head.version <= request::Version::H1_1 && token.is_some() {
        101
    } else {
        //= rfc9110 §6.6.1 date
        answer.push((header::DATE, date()));
        200
    };
    //= connect-tcp §4.1 buffer-optimistic
    //= rfc9297 §3.2 only-after-success
    //= rfc9297 §3.2 no-204-205-206
    let accepting = exchange.accept(answer, token);
    let accepted = timeout(generation.limits.header_timeout, accepting).await;
    let Ok(Ok((recv, send))) = accepted else {
        entry.left(worker);
        return None;
    };
    Some(Box::new(Opened {
        entry,
        status,
        recv,
        send,
        target: way.reached,
        slot,
        bounds: Bounds {
            idle: if datagrams {
                generation.limits.idle_timeout_datagram
            } else {
                generation.limits.idle_timeout
            },
            buffer: generation.limits.buffer_per_tunnel,
        },
    }))
}

/// Moves the tunnel's bytes until it ends. Keeps nothing of a configuration that a reload may replace.
pub async fn carry<R: RecvHalf, S: SendHalf>(worker: &Rc<Worker>, mut opened: Box<Opened<R, S>>) {
    let metrics = worker.metrics();
    metrics.tunnels_opened.add(1);
    metrics.tunnels_open.add(1);
    let open = Open(worker);
    let stop = std::pin::pin!(worker.reached(Phase::Stopping));
    // The halves stay where they are: a future keeps room twice for what it is given.
    let (recv, send, bounds) = (&mut opened.recv, &mut opened.send, opened.bounds);
    let outcome = match (opened.target, opened.entry.request.tunnel()) {
        (Reached::Stream(target), Some(machine)) => {
            pump::run(machine, recv, send, target, bounds, metrics, stop).await
        }
        (Reached::Datagrams(outside), _) => {
            Box::pin(pump::datagram::run(
                recv, send, outside, bounds, metrics, stop,
            ))
            .await
        }
        (Reached::Marked(outside), _) => {
            Box::pin(pump::datagram::run(
                recv, send, *outside, bounds, metrics, stop,
            ))
            .await
        }
        (Reached::Bound(outside), _) => {
            Box::pin(pump::datagram::run(
                recv, send, *outside, bounds, metrics, stop,
            ))
            .await
        }
        // A byte stream without a machine: the table has no such row.
        (Reached::Stream(_), None) => return,
    };
    drop((opened.recv, opened.send, open, opened.slot));
    metrics.unknown_capsules.add(outcome.unknown_capsules);
    if outcome.ended != Ended::Clean {
        metrics.tunnels_aborted.add(1);
    }
    // The log of the moment, not of the beginning: a tunnel may outlive a log file.
    opened.entry.write(
        &worker.shared.log.load(),
        opened.status,
        None,
        &outcome.ended.to_string(),
        (outcome.up, outcome.down),
        outcome.datagrams,
    );
}

/// Answers without a tunnel. A client that does not take the answer in time does without.
async fn refuse<E: Exchange>(generation: &Generation, exchange: E, answer: Refusal) {
    let _ = timeout(generation.limits.header_timeout, exchange.refuse(answer)).await;
}

/// Keeps the gauge of open tunnels right, whatever ends the task.
struct Open<'a>(&'a Rc<Worker>);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.metrics().tunnels_open.sub(1);
    }
}

/// Everything between a routed request and a way to its target. `Ok(None)`: the client is gone.
async fn admit<E: Exchange>(
    worker: &Rc<Worker>,
    generation: &Arc<Generation>,
    peer: &Peer,
    head: &RequestHead,
    exchange: &mut E,
    entry: &mut Entry,
) -> Result<Option<(Way, crate::state::TunnelSlot)>, Refused> {
    entry.principal = authenticate(generation, peer, head, &entry.request).await?;
    let (request, principal) = (&entry.request, &entry.principal);
    let target = request.target.as_ref().map_err(Clone::clone)?;
    if *worker.shared.phase.borrow() != Phase::Running {
        return Err(overload("the relay is stopping").into());
    }
    let name = principal.as_deref();
    // Whoever may talk to any peer is asked about as such, whatever target the request names.
    let asked = if request.bind { &Target::ANY } else { target };
    generation
        .ruleset
        .before_hook(&target.host, target.port)
        .map_err(denied)?;
    if let Some(limit) = generation.hook {
        // The decision may take its time: the client is told first.
        if request.expect_continue && !proceed(exchange, generation).await {
            return Ok(None);
        }
        decide(
            worker,
            generation,
            peer,
            head,
            request,
            asked,
            principal.as_ref(),
            limit,
        )
        .await?;
    }
    if request.bind {
        let bind = generation.ruleset.before_bind(name, request.protocol.name);
        bind.map_err(denied)?;
    }
    // A tunnel to any peer has none to be judged yet.
    let admission = if *target == Target::ANY {
        None
    } else {
        let protocol = request.protocol.name;
        let named = generation
            .ruleset
            .before_dns(name, protocol, &target.host, target.port);
        Some(named.map_err(denied)?)
    };
    let permit = |address| match &admission {
        Some(admission) => admission.permits(address),
        None => Err(policy::Refusal::Address),
    };
    if pool::in_use() as u64 >= generation.memory {
        return Err(overload("the relay's memory for tunnels is used up").into());
    }
    let slot = worker
        .shared
        .admit_tunnel(
            principal.as_ref(),
            generation.limits.max_tunnels_per_principal,
        )
        .ok_or_else(|| overload("too many tunnels are open for this principal"))?;
    //= connect-tcp §4.2 expect-continue
    //= rfc9110 §10.1.1 expect-continue
    if request.expect_continue && generation.hook.is_none() {
        // Nor is there a 100 where an address as such is refused.
        if let Host::Ip(address) = target.host {
            permit(address).map_err(denied)?;
        }
        if !proceed(exchange, generation).await {
            return Ok(None);
        }
    }
    let egress = worker.egress(generation);
    let deadline = tokio::time::Instant::now() + generation.egress.dial_timeout;
    //= connect-tcp §3.1 attempt-before-status
    //= connect-tcp §3.1 no-switch-without-connection
    let reached = {
        let reach = async {
            if !request.bind {
                let capsules = generation.mark_capsules;
                let connected = |socket| connected(socket, request.marks.as_deref(), capsules);
                let kind = request.protocol.target;
                return reach(kind, &egress, target, permit, deadline, connected).await;
            }
            let judge = bound::judge(worker, principal.as_ref(), request.protocol.name);
            let translated = &generation.public_addresses;
            reach_any(&egress, target, permit, deadline, translated, judge).await
        };
        let gone = std::pin::pin!(exchange.gone());
        match select(std::pin::pin!(reach), gone).await {
            Either::Left((result, _)) => result,
            Either::Right((Gone, _)) => return Ok(None),
        }
    };
    match reached {
        Ok(way) => Ok(Some((way, slot))),
        Err(error) => Err(Refused {
            reject: error.reject(),
            rcode: error.rcode().map(Into::into),
        }),
    }
}

/// Connects to the target in the way that the protocol wants.
async fn reach(
    kind: TargetKind,
    egress: &Egress,
    target: &Target,
    permit: impl Fn(IpAddr) -> Result<(), policy::Refusal>,
    deadline: tokio::time::Instant,
    connected: impl FnOnce(DatagramSocket) -> Reached,
) -> Result<Way, DialError> {
    Ok(if kind == TargetKind::Datagram {
        let Dialled { socket, peer } = dial_datagrams(egress, target, permit, deadline).await?;
        Way {
            reached: connected(socket),
            peer: Some(peer),
        }
    } else {
        let Dialled { socket, peer } = dial(egress, target, permit, deadline).await?;
        Way {
            reached: Reached::Stream(socket),
            peer: Some(peer),
        }
    })
}

/// A tunnel through a connected socket, with marks if the client asked for them and the system sees to them.
//= connect-udp-ecn-dscp §4.1 able-or-not-enabled
fn connected(
    socket: DatagramSocket,
    marks: Option<&[Assignment]>,
    capsules: Option<CapsuleTypes>,
) -> Reached {
    let Some(client) = marks else {
        return Reached::Datagrams(Connected::new(socket));
    };
    match MarkedSocket::new(socket) {
        Ok(socket) => Reached::Marked(Box::new(Marked::new(socket, client, capsules))),
        Err(socket) => Reached::Datagrams(Connected::new(socket)),
    }
}

/// Binds sockets for any peer that `judge` permits; of a target that the request names, the address is found first.
async fn reach_any(
    egress: &Egress,
    target: &Target,
    permit: impl Fn(IpAddr) -> Result<(), policy::Refusal>,
    deadline: tokio::time::Instant,
    translated: &[IpAddr],
    judge: Judge,
) -> Result<Way, DialError> {
    let named = if *target == Target::ANY {
        None
    } else {
        Some(dial_datagrams(egress, target, permit, deadline).await?)
    };
    let sockets = egress::bind(egress, translated)?;
    Ok(match named {
        // Out of reach from the addresses that can be bound: the tunnel that the client would have without the extension.
        Some(Dialled { socket, peer }) if !sockets.reaches(peer) => Way {
            reached: Reached::Datagrams(Connected::new(socket)),
            peer: Some(peer),
        },
        named => {
            let peer = named.map(|dialled| dialled.peer);
            let bound = Bound::new(sockets, peer, judge);
            Way {
                reached: Reached::Bound(Box::new(bound)),
                peer,
            }
        }
    })
}

/// Sends `100 (Continue)`; `false`: the client is gone, or does not take it in time.
async fn proceed<E: Exchange>(exchange: &mut E, generation: &Generation) -> bool {
    let proceeding = timeout(generation.limits.header_timeout, exchange.proceed());
    matches!(proceeding.await, Ok(Ok(())))
}

async fn authenticate(
    generation: &Arc<Generation>,
    peer: &Peer,
    head: &RequestHead,
    request: &Request,
) -> Result<Option<Arc<str>>, Refused> {
    let known = generation
        .credentials
        .authenticate(&HeaderFields(&head.fields), peer.principal.as_ref())
        .await;
    match known {
        Known::Principal(principal) => Ok(Some(principal)),
        Known::Anonymous if !generation.auth_required => Ok(None),
        Known::Anonymous | Known::Invalid => {
            //= connect-tcp §3.3.2 challenge-401
            //= rfc9110 §15.5.2 challenge-401
            //= rfc9110 §15.5.8 challenge-407
            let status = match request.auth_kind {
                Challenge::Origin => 401,
                Challenge::Proxy => 407,
            };
            Err(
                Reject::new(status, title(status), "valid credentials are required")
                    .with_error(ProxyError::HttpRequestDenied)
                    .into(),
            )
        }
        Known::Busy => Err(overload("too many credentials wait to be checked").into()),
    }
}

#[allow(clippy::too_many_arguments)]
async fn decide(
    worker: &Rc<Worker>,
    generation: &Generation,
    peer: &Peer,
    head: &RequestHead,
    request: &Request,
    target: &Target,
    principal: Option<&Arc<str>>,
    limit: Duration,
) -> Result<(), Refused> {
    let question = || Question {
        protocol: request.protocol.name,
        http: head.http().name(),
        host: target.host.to_string(),
        port: target.port,
        principal: principal.map(ToString::to_string),
        client: peer.address,
        headers: head
            .fields
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect(),
    };
    let decision = hook::ask(
        worker.shared.decider.as_ref(),
        &generation.hook_cache,
        limit,
        principal,
        question,
        worker.metrics(),
    )
    .await;
    match decision {
        Decision::Allow => Ok(()),
        Decision::Failed { reason } => Err(Reject::new(503, title(503), reason)
            .with_error(ProxyError::HttpRequestDenied)
            .into()),
        Decision::Deny { status, reason } => Err(Reject::new(status, title(status), reason)
            .with_error(ProxyError::HttpRequestDenied)
            .into()),
    }
}

fn denied(refusal: policy::Refusal) -> Refused {
    refusal.reject().into()
}

fn overload(detail: &str) -> Reject {
    Reject::new(503, title(503), detail).with_error(ProxyError::ConnectionLimitReached)
}
