#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep_until};

use super::*;
use crate::{Config, Engine};

mod datagrams;

/// A relay with a cleartext and a TLS listener, and its certificate.
struct Relay {
    engine: Engine,
    directory: std::path::PathBuf,
    pem: Vec<u8>,
}

impl Relay {
    fn start(name: &str) -> Self {
        let directory =
            std::env::temp_dir().join(format!("relay-client-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let made = crate::tls::throwaway_certificate(&["localhost".into()]).unwrap();
        let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
        std::fs::write(&certificate, &made.certificate).unwrap();
        std::fs::write(&key, &made.private_key).unwrap();
        let listener = |http: &[&str], tls: bool| {
            json!({
                "address": "127.0.0.1:0", "http": http, "client_ca": null, "client_auth_required": false,
                "certificate": tls.then_some(&certificate), "private_key": tls.then_some(&key),
            })
        };
        let templated: Vec<_> = protocols::TABLE
            .iter()
            .filter(|protocol| protocol.templated)
            .map(|protocol| {
                let profiles: Vec<_> = protocol
                    .profiles
                    .iter()
                    .map(|it| json!({"token": it.token, "data": it.data, "final_data": it.final_data}))
                    .collect();
                json!({
                    "protocol": protocol.name, "template": protocol.default_template, "profiles": profiles,
                })
            })
            .collect();
        let config: Config = serde_json::from_value(json!({
            "workers": 1,
            "listeners": [listener(&["h1", "h2"], false), listener(&["h1", "h2", "h3"], true)],
            "auth": {"required": false, "realm": "relay", "users": [], "tokens": []},
            "protocols": {"connect": true, "templated": templated},
            "egress": {"dial_timeout": 5.0, "source_addresses": [], "nameservers": []},
            "policy": {
                "allow_networks": ["127.0.0.0/8"], "deny_networks": [], "deny_ports": [25], "rules": [],
                "hook": false, "hook_timeout": 1.0, "hook_cache": 0.0,
            },
            "quic": {"congestion_control": "cubic"},
            "limits": {
                "header_timeout": 5.0, "idle_timeout": 60.0, "idle_timeout_datagram": 120.0, "drain_timeout": 1.0,
                "max_connections": 1000, "max_tunnels_per_principal": 1000, "buffer_per_tunnel": 1 << 20,
                "memory": 1 << 30,
            },
            "log": {"access": ""},
        }))
        .unwrap();
        let engine = Engine::start(config, None).unwrap();
        Self {
            engine,
            directory,
            pem: made.certificate.into_bytes(),
        }
    }

    fn proxy(&self, tls: bool) -> Proxy {
        let bound = self
            .engine
            .addresses()
            .iter()
            .find(|bound| bound.tls == tls)
            .unwrap();
        Proxy {
            address: bound.address,
            authority: format!("localhost:{}", bound.address.port()),
            tls: tls.then(|| trusting(&self.pem).unwrap()),
            credentials: None,
            max_frame: None,
            congestion_control: CongestionControl::default(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.engine.close();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

const TRANSPORTS: [(Http, bool); 5] = [
    (Http::H1, false),
    (Http::H1, true),
    (Http::H2, false),
    (Http::H2, true),
    (Http::H3, true),
];

fn forms() -> [Form; 2] {
    [Form::Connect, Form::connect_tcp().unwrap()]
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("took too long")
}

/// Runs `cell` with each transport and form, one after another, against a target listener.
fn matrix(name: &str, cell: impl AsyncFn(&Client, &Form, TcpListener)) {
    let relay = Relay::start(name);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        for (http, tls) in TRANSPORTS {
            for form in forms() {
                let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
                within(async {
                    let client = Client::connect(relay.proxy(tls), http).await.unwrap();
                    cell(&client, &form, target).await;
                })
                .await;
            }
        }
    });
}

async fn open(client: &Client, form: &Form, target: &TcpListener) -> (Tunnel, TcpStream) {
    let port = target.local_addr().unwrap().port();
    let (tunnel, accepted) = tokio::join!(client.open(form, "127.0.0.1", port), target.accept());
    (tunnel.unwrap(), accepted.unwrap().0)
}

//= rfc8441 §3 setting
#[test]
fn payload_and_half_closes_in_every_cell() {
    matrix("echo", async |client, form, listener| {
        let (mut tunnel, mut target) = open(client, form, &listener).await;
        assert!(tunnel.fields.contains_key("proxy-status"));
        let payload: Vec<u8> = (0..3_000_000u32).map(|n| (n >> 7 ^ n) as u8).collect();
        let up = async {
            tunnel.sender.send(&payload).await.unwrap();
            tunnel.sender.finish().await.unwrap();
        };
        let echo = async {
            let mut got = Vec::new();
            target.read_to_end(&mut got).await.unwrap();
            // The other direction works on after the FIN.
            target.write_all(&got).await.unwrap();
            target.shutdown().await.unwrap();
        };
        let down = async {
            let mut got = Vec::new();
            while let Some(bytes) = tunnel.receiver.recv().await.unwrap() {
                assert!(!bytes.is_empty());
                got.extend_from_slice(&bytes);
            }
            got
        };
        let (_, _, got) = tokio::join!(up, echo, down);
        assert!(got == payload);
        tunnel.sender.close().await.unwrap();
        tunnel.receiver.end().await.unwrap();
    });
}

/// Hands on what comes from `from`, each piece after `delay`.
async fn later(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut waiting) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let take = async move {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            let due = Instant::now() + delay;
            if sender.send((due, piece[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let give = async move {
        while let Some((due, piece)) = waiting.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(take, give);
}

/// With a fixed window the upload would take `SIZE / window` round trips, whatever the machine can do.
#[test]
fn uploads_over_a_long_path_are_given_larger_windows() {
    const ONE_WAY: Duration = Duration::from_millis(25);
    const SIZE: usize = 96 << 20;
    const FIXED: Duration = Duration::from_millis(50 * (SIZE / (512 << 10)) as u64);
    let relay = Relay::start("long");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let mut proxy = relay.proxy(true);
        let path = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = std::mem::replace(&mut proxy.address, path.local_addr().unwrap());
        spawn_local(async move {
            let (client, _) = path.accept().await.unwrap();
            let (client_recv, client_send) = client.into_split();
            let (relay_recv, relay_send) = TcpStream::connect(near).await.unwrap().into_split();
            tokio::join!(
                later(client_recv, relay_send, ONE_WAY),
                later(relay_recv, client_send, ONE_WAY)
            );
        });
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        within(async {
            let client = Client::connect(proxy, Http::H2).await.unwrap();
            let form = Form::connect_tcp().unwrap();
            let (mut tunnel, mut target) = open(&client, &form, &target).await;
            let began = Instant::now();
            let up = async {
                let piece = vec![7; 1 << 20];
                for _ in 0..SIZE >> 20 {
                    tunnel.sender.send(&piece).await.unwrap();
                }
                tunnel.sender.finish().await.unwrap();
            };
            let mut taken = 0;
            let take = async {
                let mut room = vec![0; 64 << 10];
                while let length @ 1.. = target.read(&mut room).await.unwrap() {
                    taken += length;
                }
            };
            tokio::join!(up, take);
            assert_eq!(taken, SIZE);
            let took = began.elapsed();
            assert!(took < FIXED * 3 / 4, "{took:?} of {FIXED:?}");
        })
        .await;
    });
}

/// The h2 crate ends a connection whose frames are larger than was offered.
#[test]
fn frames_are_as_small_as_was_asked_for() {
    let relay = Relay::start("frames");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(
        &runtime,
        within(async {
            let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let proxy = Proxy {
                max_frame: Some(16_384),
                congestion_control: CongestionControl::default(),
                ..relay.proxy(true)
            };
            let client = Client::connect(proxy, Http::H2).await.unwrap();
            let (mut tunnel, mut target) = open(&client, &Form::Connect, &target).await;
            let sending = tokio::task::spawn_local(async move {
                target.write_all(&vec![7; 1 << 20]).await.unwrap();
                target.shutdown().await.unwrap();
            });
            let mut got = 0;
            while let Some(bytes) = tunnel.receiver.recv().await.unwrap() {
                assert!(bytes.len() <= 16_384);
                got += bytes.len();
            }
            assert_eq!(got, 1 << 20);
            sending.await.unwrap();
        }),
    );
}

#[test]
fn a_reset_of_the_target_is_no_clean_end() {
    matrix("reset", async |client, form, listener| {
        let (mut tunnel, mut target) = open(client, form, &listener).await;
        target.write_all(b"last words").await.unwrap();
        let mut got = tunnel.receiver.recv().await.unwrap().unwrap().to_vec();
        target.set_zero_linger().unwrap();
        drop(target);
        let end = loop {
            match tunnel.receiver.recv().await {
                Ok(Some(bytes)) => got.extend_from_slice(&bytes),
                end => break end,
            }
        };
        assert_eq!(got, b"last words");
        assert_eq!(end, Err(Cut::Reset));
    });
}

#[test]
fn an_abort_resets_the_target() {
    matrix("abort", async |client, form, listener| {
        let (mut tunnel, mut target) = open(client, form, &listener).await;
        tunnel.sender.send(b"x").await.unwrap();
        assert_eq!(target.read_u8().await.unwrap(), b'x');
        tunnel.receiver.abort();
        tunnel.sender.abort().await;
        drop(tunnel);
        let error = target.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_refusal_carries_status_and_fields() {
    matrix("refusal", async |client, form, listener| {
        drop(listener);
        let refused = client.open(form, "127.0.0.1", 25).await.unwrap_err();
        let Error::Refused(answer) = refused else {
            panic!("{refused}");
        };
        assert_eq!(answer.status, 403);
        assert!(answer.fields.contains_key("proxy-status"));
    });
}

/// A proxy by hand: gives `answer` to the first request head, and that head with whatever came behind it.
async fn by_hand(answer: &str, form: &Form) -> (Result<Tunnel, Error>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy {
        address: listener.local_addr().unwrap(),
        authority: "proxy.example".to_owned(),
        tls: None,
        credentials: Some(HeaderValue::from_static("Bearer secret")),
        max_frame: None,
        congestion_control: CongestionControl::default(),
    };
    let client = Client::connect(proxy, Http::H1).await.unwrap();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            seen.push(stream.read_u8().await.unwrap());
        }
        // Bytes sent before the answer would be here by now: they would have left with the head.
        let mut early = [0; 64];
        if let Ok(more) = stream.try_read(&mut early) {
            seen.extend_from_slice(&early[..more]);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        (stream, String::from_utf8(seen).unwrap())
    };
    let (tunnel, (_stream, seen)) = tokio::join!(client.open(form, "2001:db8::1", 443), serve);
    (tunnel, seen)
}

fn on_one_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, within(test));
}

//= connect-tcp §4.1 h1-not-optimistic
//= rfc9931 §8 client-waits
#[test]
fn nothing_goes_before_the_answer_of_an_http1_proxy() {
    on_one_thread(async {
        let (tunnel, seen) = by_hand("HTTP/1.1 200 OK\r\n\r\nhello", &Form::Connect).await;
        let mut tunnel = tunnel.unwrap();
        assert_eq!(
            seen,
            "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nhost: [2001:db8::1]:443\r\n\
             proxy-authorization: Bearer secret\r\n\r\n"
        );
        assert_eq!(tunnel.receiver.recv().await.unwrap().unwrap(), "hello");

        let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: Connect-TCP-12\r\n\r\n";
        let (tunnel, seen) = by_hand(answer, &Form::connect_tcp().unwrap()).await;
        tunnel.unwrap();
        assert_eq!(
            seen,
            "GET /.well-known/masque/tcp/2001%3Adb8%3A%3A1/443/ HTTP/1.1\r\nhost: proxy.example\r\n\
             connection: Upgrade\r\nupgrade: connect-tcp-12\r\nauthorization: Bearer secret\r\n\
             capsule-protocol: ?1\r\n\r\n"
        );
    });
}

#[test]
fn answers_that_open_no_tunnel() {
    on_one_thread(async {
        let templated = Form::connect_tcp().unwrap();
        for (form, answer) in [
            (&templated, "HTTP/1.1 200 OK\r\n\r\n"),
            (
                &templated,
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
            ),
            (&templated, "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
            (
                &Form::Connect,
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: connect-tcp-12\r\n\r\n",
            ),
            (&Form::Connect, "HTTP/1.1 204 No Content\r\n\r\n"),
            (&Form::Connect, "SSH-2.0-OpenSSH\r\n\r\n"),
        ] {
            let (tunnel, _) = by_hand(answer, form).await;
            assert!(matches!(tunnel, Err(Error::Protocol(_))), "{answer}");
        }
        let (tunnel, _) = by_hand(
            "HTTP/1.1 407 Who?\r\nProxy-Status: x\r\n\r\n",
            &Form::Connect,
        )
        .await;
        let Err(Error::Refused(answer)) = tunnel else {
            panic!("a 407 opened a tunnel");
        };
        assert_eq!(
            (answer.status, &answer.fields["proxy-status"]),
            (407, &HeaderValue::from_static("x"))
        );
    });
}

#[test]
fn short_and_long_writes_keep_their_order() {
    matrix("order", async |client, form, listener| {
        let (mut tunnel, mut target) = open(client, form, &listener).await;
        let sizes = [
            1, 70_000, 3, 40_000, 65_536, 100, 0, 200_000, 33_000, 7, 31_000,
        ];
        let payload: Vec<u8> = (0..2_500_000u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let up = async {
            let mut rest = &payload[..];
            for size in sizes.into_iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(size));
                tunnel.sender.send(now).await.unwrap();
                rest = later;
                if rest.is_empty() {
                    break;
                }
                if size == 100 {
                    // Lets the relay run dry now and then.
                    tokio::task::yield_now().await;
                }
            }
            tunnel.sender.finish().await.unwrap();
        };
        let down = async {
            let mut got = Vec::new();
            target.read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), got) = tokio::join!(up, down);
        assert!(got == payload);
    });
}

/// What was announced and not sent cannot be made up for: the target sees a reset, or nothing was announced and the end is clean.
#[test]
fn a_send_that_is_given_up_leaves_no_capsule_half_full() {
    matrix("given up", async |client, form, listener| {
        let (mut tunnel, mut target) = open(client, form, &listener).await;
        let payload = vec![7; 30_000_000];
        {
            let sending = std::pin::pin!(tunnel.sender.send(&payload));
            assert!(futures_util::poll!(sending).is_pending());
        }
        let up = async {
            let finished = tunnel.sender.finish().await.is_ok();
            (finished, finished.then_some(tunnel))
        };
        let down = async {
            let mut got = Vec::new();
            let read = target.read_to_end(&mut got).await;
            assert!(
                got.iter().all(|byte| *byte == 7),
                "a header among the payload"
            );
            (read.is_ok(), got.len())
        };
        let ((finished, _tunnel), (clean, length)) = tokio::join!(up, down);
        assert_eq!(finished, clean, "{length} bytes");
        assert!(length < payload.len());
    });
}
