#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hickory_resolver::Hosts;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::super::test_server::{Answer, NameServer};
use super::*;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn none() -> Answer {
    Answer::Addresses(Vec::new())
}

fn v4() -> Answer {
    Answer::Addresses(vec![V4])
}

fn v6() -> Answer {
    Answer::Addresses(vec![V6])
}

fn config() -> config::Egress {
    config::Egress {
        dial_timeout: Duration::from_secs(10),
        source_addresses: Vec::new(),
        nameservers: Vec::new(),
    }
}

fn egress(server: &NameServer) -> Egress {
    Egress::with_resolver(
        &config(),
        Resolver::with_hosts(&[server.address], Hosts::default()),
    )
}

/// Without name servers.
fn literals() -> Egress {
    Egress::new(&config())
}

fn target(host: &str, port: u16) -> Target {
    Target::from_values(host, &port.to_string()).unwrap()
}

fn anything(_: IpAddr) -> Result<(), Refusal> {
    Ok(())
}

fn within(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

/// Everything that runs on a worker runs in a LocalSet.
async fn on_worker<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

/// A port of the loopback that refuses connections: bound, so that nobody else gets it, and not listening.
fn refusing() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(V4, 0).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

/// A listener whose queue is full, so that further connections get no answer at all.
fn silent(address: IpAddr) -> (Socket, Vec<std::net::TcpStream>, u16) {
    let domain = if address.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(address, 0).into()).unwrap();
    socket.listen(0).unwrap();
    let listening = socket.local_addr().unwrap().as_socket().unwrap();
    let filling = std::iter::from_fn(|| {
        std::net::TcpStream::connect_timeout(&listening, Duration::from_millis(200)).ok()
    });
    let filled = filling.take(16).collect();
    (socket, filled, listening.port())
}

/// Makes room in a listener from [`silent`]: no attempt is still at its door, the next connection is our own.
async fn nobody_waits(socket: Socket, filled: Vec<std::net::TcpStream>, address: SocketAddr) {
    socket.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(socket.into()).unwrap();
    for _ in &filled {
        listener.accept().await.unwrap();
    }
    let own = TcpStream::connect(address).await.unwrap();
    let (_, from) = listener.accept().await.unwrap();
    assert_eq!(from, own.local_addr().unwrap());
}

#[tokio::test]
async fn a_literal_is_connected_with_the_options_of_a_tunnel() {
    let listener = TcpListener::bind((V4, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut dialled = dial(
        &literals(),
        &target("127.0.0.1", port),
        anything,
        within(5000),
    )
    .await
    .unwrap();
    assert_eq!(dialled.peer, SocketAddr::new(V4, port));
    let options = SockRef::from(&dialled.socket);
    assert!(options.tcp_nodelay().unwrap());
    assert!(options.keepalive().unwrap());
    let (mut accepted, from) = listener.accept().await.unwrap();
    assert_eq!(from, dialled.socket.local_addr().unwrap());
    dialled.socket.write_all(b"hello").await.unwrap();
    let mut bytes = [0; 5];
    accepted.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hello");
}

#[tokio::test]
async fn a_mapped_literal_is_dialled_over_ipv4() {
    let listener = TcpListener::bind((V4, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = std::cell::Cell::new(None);
    let permit = |address| {
        seen.set(Some(address));
        Ok(())
    };
    let dialled = dial(
        &literals(),
        &target("::ffff:127.0.0.1", port),
        permit,
        within(5000),
    )
    .await
    .unwrap();
    assert_eq!(dialled.peer, SocketAddr::new(V4, port));
    assert_eq!(seen.get(), Some(V4));
}

#[tokio::test]
async fn a_refused_connection_is_reported_as_refused() {
    let (_socket, port) = refusing();
    let error = dial(
        &literals(),
        &target("127.0.0.1", port),
        anything,
        within(5000),
    )
    .await
    .unwrap_err();
    assert_eq!(error, DialError::Refused);
}

#[tokio::test]
async fn a_silent_target_ends_at_the_deadline() {
    let (_socket, _filled, port) = silent(V4);
    let error = dial(
        &literals(),
        &target("127.0.0.1", port),
        anything,
        within(300),
    )
    .await
    .unwrap_err();
    assert_eq!((error.status(), error), (504, DialError::TimedOut));
}

#[tokio::test]
async fn a_prohibited_literal_is_never_dialled() {
    let listener = TcpListener::bind((V4, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let refuse = |_| Err(Refusal::Address);
    let error = dial(
        &literals(),
        &target("127.0.0.1", port),
        refuse,
        within(5000),
    )
    .await
    .unwrap_err();
    assert_eq!(error, DialError::Prohibited(Refusal::Address));
    let pending = futures_util::poll!(std::pin::pin!(listener.accept()));
    assert!(pending.is_pending());
}

#[tokio::test]
//= rfc8305 §3 parallel-queries
async fn a_name_is_resolved_and_no_search_domain_is_tried() {
    on_worker(async {
        let listener = TcpListener::bind((V4, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = NameServer::with(v4, none).await;
        let dialled = dial(
            &egress(&server),
            &target("single", port),
            anything,
            within(5000),
        )
        .await
        .unwrap();
        assert_eq!(dialled.peer, SocketAddr::new(V4, port));
        let mut asked = server.asked.borrow().clone();
        asked.sort_by_key(|(_, record_type)| u16::from(*record_type));
        assert_eq!(
            asked,
            [
                ("single.".to_owned(), RecordType::A),
                ("single.".to_owned(), RecordType::AAAA)
            ]
        );
    })
    .await;
}

#[tokio::test]
async fn answers_are_cached() {
    on_worker(async {
        let listener = TcpListener::bind((V4, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = NameServer::with(v4, v6).await;
        let egress = egress(&server);
        for _ in 0..3 {
            dial(
                &egress,
                &target("cached.example", port),
                anything,
                within(5000),
            )
            .await
            .unwrap();
        }
        assert_eq!(server.asked.borrow().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn prohibited_addresses_leave_the_race_and_the_others_run_it() {
    on_worker(async {
        let listener = TcpListener::bind((V4, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = NameServer::with(
            || Answer::Addresses(vec![IpAddr::from([127, 0, 0, 9]), V4]),
            || Answer::Addresses(vec![V6]),
        )
        .await;
        let permit = |address| {
            if address == V4 {
                Ok(())
            } else {
                Err(Refusal::Address)
            }
        };
        let dialled = dial(
            &egress(&server),
            &target("mixed.example", port),
            permit,
            within(5000),
        )
        .await
        .unwrap();
        assert_eq!(dialled.peer.ip(), V4);

        let refuse = |_| Err(Refusal::Address);
        let error = dial(
            &egress(&server),
            &target("mixed.example", port),
            refuse,
            within(5000),
        )
        .await
        .unwrap_err();
        assert_eq!(error, DialError::Prohibited(Refusal::Address));
    })
    .await;
}

#[tokio::test]
async fn a_failing_family_gives_way_to_the_other() {
    on_worker(async {
        // Only IPv4 listens on this port: the attempt over IPv6 is refused, and IPv4 follows at once.
        let listener = TcpListener::bind((V4, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = NameServer::with(v4, v6).await;
        let dialled = dial(
            &egress(&server),
            &target("dual.example", port),
            anything,
            within(5000),
        )
        .await
        .unwrap();
        assert_eq!(dialled.peer, SocketAddr::new(V4, port));
    })
    .await;
}

#[tokio::test]
//= rfc8305 §5 attempt-delay
//= rfc8305 §5 cancel-losers
//= connect-tcp §4.1 race-addresses
//= connect-tcp §4.1 race-holds-payload
async fn a_silent_family_gives_way_to_the_other_and_is_called_off() {
    on_worker(async {
        let (socket, filled, port) = silent(V6);
        let listener = TcpListener::bind((V4, port)).await.unwrap();
        let server = NameServer::with(v4, v6).await;
        let started = Instant::now();
        let dialled = dial(
            &egress(&server),
            &target("dual.example", port),
            anything,
            within(8000),
        )
        .await
        .unwrap();
        assert_eq!(dialled.peer, listener.local_addr().unwrap());
        assert!(started.elapsed() >= super::super::happy_eyeballs::ATTEMPT_DELAY);
        nobody_waits(socket, filled, SocketAddr::new(V6, port)).await;
    })
    .await;
}

#[tokio::test]
async fn one_family_is_enough_when_the_other_stays_unanswered() {
    on_worker(async {
        let listener = TcpListener::bind((V4, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = NameServer::with(v4, || Answer::Silence).await;
        let dialled = dial(
            &egress(&server),
            &target("half.example", port),
            anything,
            within(5000),
        )
        .await
        .unwrap();
        assert_eq!(dialled.peer.ip(), V4);
        let server = NameServer::with(v4, || Answer::Code(ResponseCode::ServFail)).await;
        let dialled = dial(
            &egress(&server),
            &target("half.example", port),
            anything,
            within(5000),
        )
        .await
        .unwrap();
        assert_eq!(dialled.peer.ip(), V4);
    })
    .await;
}

#[tokio::test]
//= rfc9209 §2.1.1 error-most-specific
async fn failures_of_resolution_carry_the_response_code() {
    type Case = (fn() -> Answer, &'static str);
    let table: [Case; 4] = [
        (|| Answer::Code(ResponseCode::NXDomain), "NXDOMAIN"),
        (|| Answer::Code(ResponseCode::ServFail), "SERVFAIL"),
        (|| Answer::Code(ResponseCode::Refused), "REFUSED"),
        (none, "NOERROR"),
    ];
    on_worker(async {
        for (answer, rcode) in table {
            let server = NameServer::with(answer, answer).await;
            let error = dial(
                &egress(&server),
                &target("missing.example", 80),
                anything,
                within(8000),
            )
            .await
            .unwrap_err();
            assert_eq!(
                (error.status(), error.error().token(), error.rcode()),
                (502, "dns_error", Some(rcode))
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_silent_name_server_ends_at_the_deadline() {
    on_worker(async {
        let server = NameServer::with(|| Answer::Silence, || Answer::Silence).await;
        let error = dial(
            &egress(&server),
            &target("slow.example", 80),
            anything,
            within(300),
        )
        .await
        .unwrap_err();
        assert_eq!((error.status(), error), (504, DialError::DnsTimeout));
    })
    .await;
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_says_all() {
    on_worker(async {
        let listener = TcpListener::bind((V4, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = NameServer::with(none, none).await;
        let mut hosts = Hosts::default();
        hosts
            .read_hosts_conf(&b"127.0.0.1 origin.test other.test\n"[..])
            .unwrap();
        let egress =
            Egress::with_resolver(&config(), Resolver::with_hosts(&[server.address], hosts));
        for name in ["origin.test", "ORIGIN.test.", "other.test"] {
            let dialled = dial(&egress, &target(name, port), anything, within(5000))
                .await
                .unwrap();
            assert_eq!(dialled.peer.ip(), V4);
        }
        assert_eq!(server.asked.borrow().len(), 0);
    })
    .await;
}

#[tokio::test]
async fn connections_come_from_the_configured_addresses_in_turn() {
    let listener = TcpListener::bind((V4, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let first = IpAddr::from([127, 0, 0, 2]);
    let second = IpAddr::from([127, 0, 0, 3]);
    let config = config::Egress {
        source_addresses: vec![first, second],
        ..config()
    };
    let egress = Egress::new(&config);
    let mut from = Vec::new();
    for _ in 0..4 {
        let dialled = dial(&egress, &target("127.0.0.1", port), anything, within(5000))
            .await
            .unwrap();
        from.push(dialled.socket.local_addr().unwrap().ip());
        listener.accept().await.unwrap();
    }
    assert_eq!(from, [first, second, first, second]);
    // No address to send from in the target's family.
    let error = dial(&egress, &target("::1", port), anything, within(5000))
        .await
        .unwrap_err();
    assert_eq!(error, DialError::Unroutable);
}

#[tokio::test]
async fn a_dropped_dial_closes_what_it_opened() {
    // The attempt is under way when the future is dropped; later the listener makes room, and nobody comes.
    let (socket, filled, port) = silent(V4);
    let egress = literals();
    let target = target("127.0.0.1", port);
    {
        let dialling = std::pin::pin!(dial(&egress, &target, anything, within(60_000)));
        assert!(futures_util::poll!(dialling).is_pending());
    }
    nobody_waits(socket, filled, SocketAddr::new(V4, port)).await;
}
