//! Endpoints of both kinds on loopback.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::future::pending;
use std::net::{Ipv4Addr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn_proto::{EndpointConfig, TransportConfig};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::timeout;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

struct Pair {
    server: Endpoint,
    client: Endpoint,
    here: Connection,
    there: Connection,
}

fn identity() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    (made.cert.into(), key)
}

fn configs(transport: TransportConfig) -> (ServerConfig, ClientConfig) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (certificate, key) = identity();
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let transport = Arc::new(transport);
    let mut server =
        ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).unwrap()));
    server.transport_config(transport.clone());
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
    client.transport_config(transport);
    (server, client)
}

async fn pair(transport: TransportConfig) -> Pair {
    let (server_config, client_config) = configs(transport);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    let server_config = Arc::new(server_config);
    let server = ServerConfig::clone(&server_config);
    let server = Endpoint::new(socket, EndpointConfig::default(), Some(server)).unwrap();
    let client = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let connecting = client.connect(client_config, address, "localhost").unwrap();
    let accepting = async {
        let incoming = server.accept().await;
        incoming.accept(server_config).unwrap().await.unwrap()
    };
    let (there, here) = tokio::join!(accepting, async { connecting.await.unwrap() });
    Pair {
        server,
        client,
        here,
        there,
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        timeout(LIMIT, test).await.unwrap();
    });
}

async fn read_all(stream: &mut RecvStream) -> Result<Vec<u8>, ReadError> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.read_chunk(usize::MAX).await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[test]
fn streams_carry_bytes_both_ways_and_end() {
    run(async {
        let pair = pair(TransportConfig::default()).await;
        let (mut send, mut recv) = pair.here.open_bi().await.unwrap();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
        send.write_all(b"request").await.unwrap();
        send.finish().unwrap();
        let (mut answer, mut request) = pair.there.accept_bi().await.unwrap();
        assert_eq!(read_all(&mut request).await.unwrap(), b"request");
        let chunk = Bytes::from(sent.clone());
        spawn_local(async move {
            answer.write_chunk(chunk).await.unwrap();
            answer.finish().unwrap();
            // Everything arrived.
            assert_eq!(answer.stopped().await, Ok(None));
        });
        assert_eq!(read_all(&mut recv).await.unwrap(), sent);
        // An end that was seen stays seen.
        assert_eq!(recv.read_chunk(1).await, Ok(None));
    });
}

#[test]
fn resets_and_stops_tell_their_codes() {
    run(async {
        let pair = pair(TransportConfig::default()).await;
        let (mut send, mut recv) = pair.here.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        let (mut their_send, mut their_recv) = pair.there.accept_bi().await.unwrap();
        send.reset(VarInt::from_u32(7));
        let error = read_all(&mut their_recv).await.unwrap_err();
        assert_eq!(error, ReadError::Reset(VarInt::from_u32(7)));
        recv.stop(VarInt::from_u32(9));
        assert_eq!(their_send.stopped().await, Ok(Some(VarInt::from_u32(9))));
        let error = their_send.write_all(b"y").await.unwrap_err();
        assert_eq!(error, WriteError::Stopped(VarInt::from_u32(9)));
        assert_eq!(recv.read_chunk(1).await, Err(ReadError::Closed));
    });
}

#[test]
fn everybody_hears_of_a_close() {
    run(async {
        let pair = pair(TransportConfig::default()).await;
        let (_send, mut recv) = pair.here.open_bi().await.unwrap();
        let here = pair.here.clone();
        let waiting = [
            spawn_local(async move { assert!(recv.read_chunk(1).await.is_err()) }),
            spawn_local({
                let here = here.clone();
                async move { assert!(here.accept_bi().await.is_err()) }
            }),
            spawn_local(async move { assert!(here.read_datagram().await.is_err()) }),
        ];
        yield_now().await;
        pair.there.close(VarInt::from_u32(3), b"enough");
        for waiting in waiting {
            waiting.await.unwrap();
        }
        let Some(ConnectionError::ApplicationClosed(close)) = pair.here.close_reason() else {
            panic!("{:?}", pair.here.close_reason());
        };
        assert_eq!(
            (close.error_code.into_inner(), &close.reason[..]),
            (3, &b"enough"[..])
        );
        pair.server.wait_idle().await;
        pair.client.wait_idle().await;
    });
}

#[test]
fn the_last_handle_closes() {
    run(async {
        let Pair {
            server,
            client,
            here,
            there,
        } = pair(TransportConfig::default()).await;
        let (send, recv) = here.open_bi().await.unwrap();
        drop(here);
        assert_eq!(there.close_reason(), None);
        drop((send, recv));
        assert!(there.accept_uni().await.is_err());
        client.wait_idle().await;
        drop(there);
        server.wait_idle().await;
    });
}

/// A window of the connection that is much smaller than what the streams want to write, next to a stream whose own is shut.
#[test]
fn streams_that_wait_for_the_window_all_get_through() {
    run(async {
        let mut transport = TransportConfig::default();
        transport
            .send_window(40_000)
            .stream_receive_window(VarInt::from_u32(20_000))
            .receive_window(VarInt::MAX);
        let pair = pair(transport).await;
        // Nobody reads this one.
        let (mut stuck, _unread) = pair.here.open_bi().await.unwrap();
        let stuck = spawn_local(async move { stuck.write_all(&[0; 100_000]).await });
        let written = Rc::new(Cell::new(0));
        for number in 0..60_u8 {
            let (mut send, _) = pair.here.open_bi().await.unwrap();
            let written = written.clone();
            spawn_local(async move {
                for _ in 0..5 {
                    send.turn().await;
                    send.write_all(&[number; 30_000]).await.unwrap();
                }
                send.finish().unwrap();
                written.set(written.get() + 1);
                // The stream must outlive what it wrote.
                let _ = send.stopped().await;
            });
        }
        let mut readers = Vec::new();
        let mut held = Vec::new();
        for number in 0..61 {
            let (send, mut recv) = pair.there.accept_bi().await.unwrap();
            if number == 0 {
                held.push((send, recv));
                continue;
            }
            readers.push(spawn_local(async move {
                let all = read_all(&mut recv).await.unwrap();
                assert_eq!(all.len(), 150_000);
                assert!(all.iter().all(|byte| *byte == all[0]));
            }));
        }
        for reader in readers {
            reader.await.unwrap();
        }
        assert_eq!(written.get(), 60);
        assert!(!stuck.is_finished());
        drop(held);
    });
}

/// Writers that leave while others wait behind them.
#[test]
fn the_line_survives_those_who_leave_it() {
    run(async {
        let mut transport = TransportConfig::default();
        transport.send_window(10_000);
        let pair = pair(transport).await;
        let mut tasks = Vec::new();
        for number in 0..40 {
            let (mut send, _) = pair.here.open_bi().await.unwrap();
            tasks.push(spawn_local(async move {
                let writing = send.write_all(&[1; 50_000]);
                if number % 2 == 0 {
                    // Given up after a few turns of the runtime, at whatever it is then.
                    tokio::select! {
                        biased;
                        _ = writing => {}
                        () = async { for _ in 0..number { yield_now().await } } => {}
                    }
                    send.reset(VarInt::from_u32(1));
                } else {
                    writing.await.unwrap();
                    send.finish().unwrap();
                    let _ = send.stopped().await;
                }
            }));
        }
        let there = pair.there.clone();
        let reading = spawn_local(async move {
            loop {
                let (send, mut recv) = there.accept_bi().await.unwrap();
                spawn_local(async move {
                    let _ = read_all(&mut recv).await;
                    drop(send);
                });
            }
        });
        for task in tasks {
            task.await.unwrap();
        }
        reading.abort();
    });
}

#[test]
fn an_endpoint_without_handles_ends_and_one_that_is_torn_down_leaves_its_connections_usable() {
    let kept = Rc::new(Cell::new(None));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async {
        let pair = timeout(LIMIT, pair(TransportConfig::default()))
            .await
            .unwrap();
        let streams = pair.here.open_bi().await.unwrap();
        kept.set(Some((pair, streams)));
        spawn_local(pending::<()>());
    });
    drop(tasks);
    let (pair, (mut send, recv)) = kept.take().unwrap();
    send.reset(VarInt::from_u32(1));
    pair.here.close(VarInt::from_u32(0), b"");
    drop((send, recv, pair));
}

#[test]
fn a_refused_client_hears_of_it_before_and_after_a_retry() {
    run(async {
        let (server_config, client_config) = configs(TransportConfig::default());
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let server = Endpoint::new(socket, EndpointConfig::default(), Some(server_config)).unwrap();
        let client = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let first = client
            .connect(client_config.clone(), address, "localhost")
            .unwrap();
        let refusing = async { server.accept().await.refuse() };
        let (refused, ()) = tokio::join!(first, refusing);
        assert!(
            matches!(refused, Err(ConnectionError::ConnectionClosed(_))),
            "{refused:?}"
        );
        let second = client.connect(client_config, address, "localhost").unwrap();
        let (retried, ()) = tokio::join!(second, async {
            let incoming = server.accept().await;
            assert!(incoming.may_retry() && !incoming.remote_address_validated());
            incoming.retry();
            let incoming = server.accept().await;
            assert!(incoming.remote_address_validated());
            incoming.refuse();
        });
        assert!(
            matches!(retried, Err(ConnectionError::ConnectionClosed(_))),
            "{retried:?}"
        );
    });
}
