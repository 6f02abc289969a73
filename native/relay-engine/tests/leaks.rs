//! What is over leaves nothing behind: descriptors and memory, counted for the whole process. One test, so that
//! nothing else runs in it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use base64::Engine as _;
use capsule_core::target::Target;
use relay_engine::auth::{Credentials, Outcome, hash_password};
use relay_engine::config;
use relay_engine::egress::{DialError, Egress, dial};
use relay_engine::policy::Refusal;
use socket2::{Domain, Socket, Type};
use tokio::task::LocalSet;
use tokio::time::Instant;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn bound(listen: bool) -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(LOOPBACK, 0).into()).unwrap();
    if listen {
        socket.listen(0).unwrap();
    }
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

fn anything(_: IpAddr) -> Result<(), Refusal> {
    Ok(())
}

async fn dials() {
    let name_server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let egress = Egress::new(&config::Egress {
        dial_timeout: Duration::from_secs(10),
        source_addresses: Vec::new(),
        nameservers: vec![name_server.local_addr().unwrap()],
    });
    let target = |host: &str, port: u16| Target::from_values(host, &port.to_string()).unwrap();
    let later = || Instant::now() + Duration::from_secs(60);
    let (_refusing, refusing) = bound(false);
    let (_silent, silent) = bound(true);
    let filled: Vec<_> = std::iter::from_fn(|| {
        let address = SocketAddr::new(LOOPBACK, silent);
        std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()
    })
    .take(16)
    .collect();
    let before = descriptors();

    for _ in 0..100 {
        let error = dial(&egress, &target("127.0.0.1", refusing), anything, later()).await;
        assert_eq!(error.unwrap_err(), DialError::Refused);
        let refuse = |_| Err(Refusal::Address);
        let error = dial(&egress, &target("127.0.0.1", silent), refuse, later()).await;
        assert_eq!(error.unwrap_err(), DialError::Prohibited(Refusal::Address));
    }
    {
        let silent = target("127.0.0.1", silent);
        let unknown: Vec<_> = (0..50)
            .map(|n| target(&format!("n{n}.example"), 80))
            .collect();
        let mut pending = Vec::new();
        for unknown in &unknown {
            pending.push(Box::pin(dial(&egress, &silent, anything, later())));
            pending.push(Box::pin(dial(&egress, unknown, anything, later())));
        }
        let pending = futures_util::future::join_all(pending);
        name_server.set_nonblocking(true).unwrap();
        let asked = tokio::net::UdpSocket::from_std(name_server.try_clone().unwrap()).unwrap();
        let mut question = [0; 512];
        // A question has arrived: the resolver is at work, and sockets are open.
        tokio::select! {
            _ = pending => panic!("nobody answers"),
            received = asked.recv_from(&mut question) => assert!(received.is_ok()),
        }
    }
    // Futures of the resolver that are dropped close their sockets when their tasks are next run.
    for _ in 0..1000 {
        if descriptors() == before {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(descriptors(), before);
    drop(filled);
}

async fn passwords() {
    let credentials = Credentials::new(&config::Auth {
        required: true,
        realm: "relay".to_owned(),
        users: vec![("alice".to_owned(), hash_password("sesame").unwrap())],
        tokens: Vec::new(),
    })
    .unwrap();
    let ask = async |password: String| {
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("alice:{password}"));
        let value = format!("Basic {encoded}");
        let fields: [(&str, &[u8]); 1] = [("authorization", value.as_bytes())];
        credentials.authenticate(&fields, None).await
    };
    assert_eq!(
        ask("sesame".to_owned()).await,
        Outcome::Principal("alice".into())
    );
    let before = resident_kib();
    for round in 0..8 {
        let questions = (0..4).map(|n| ask(format!("{round}-{n}")));
        let outcomes = futures_util::future::join_all(questions).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Invalid));
    }
    let grown = resident_kib().saturating_sub(before);
    // Two verifications at once take 38 MiB, and give it back.
    assert!(grown < 32 * 1024, "{grown} KiB");
}

#[tokio::test]
async fn what_is_over_leaves_nothing_behind() {
    LocalSet::new()
        .run_until(async {
            dials().await;
            passwords().await;
        })
        .await;
}
