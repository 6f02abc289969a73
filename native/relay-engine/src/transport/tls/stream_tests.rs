#![allow(clippy::unwrap_used, clippy::expect_used)]
//! Against the TLS library's own record layer over real sockets, and against ourselves for what that would not say.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use rustls::crypto::ring;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Connection, HandshakeKind, RootCertStore,
    ServerConfig, ServerConnection, SupportedCipherSuite,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::keys::content;
use super::super::{accept, connect, throwaway_certificate};
use super::*;
use crate::pool::{HEADROOM, PAYLOAD};

struct Made {
    server: ServerConfig,
    client: ClientConfig,
}

fn made(suite: Option<SupportedCipherSuite>) -> Made {
    let throwaway = throwaway_certificate(&["localhost".into()]).unwrap();
    let certificate = CertificateDer::from_pem_slice(throwaway.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(throwaway.private_key.as_bytes()).unwrap();
    let mut provider = ring::default_provider();
    if let Some(suite) = suite {
        provider.cipher_suites = vec![suite];
    }
    let provider = Arc::new(provider);
    let version = suite.map_or(&rustls::version::TLS13, |suite| suite.version());
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    server.ticketer = ring::Ticketer::new().unwrap();
    server.enable_secret_extraction = true;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    Made { server, client }
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// The TLS library on the other end of a blocking socket.
struct Peer {
    tls: Connection,
    tcp: TcpStream,
}

impl Peer {
    fn new(mut tls: Connection, mut tcp: TcpStream) -> Self {
        tls.set_buffer_limit(None);
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp).unwrap();
        }
        Self { tls, tcp }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).unwrap();
        while self.tls.wants_write() {
            self.tls.complete_io(&mut self.tcp).unwrap();
        }
    }

    /// Reads what there is; nothing is the end.
    fn read_some(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; 1 << 16];
        loop {
            match self.tls.reader().read(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.tls.complete_io(&mut self.tcp)?;
                }
                other => {
                    bytes.truncate(other?);
                    return Ok(bytes);
                }
            }
        }
    }

    fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let more = self.read_some().unwrap();
            assert!(!more.is_empty());
            bytes.extend(more);
        }
        bytes
    }

    fn update_keys(&mut self) {
        match &mut self.tls {
            Connection::Client(client) => client.refresh_traffic_keys().unwrap(),
            Connection::Server(server) => server.refresh_traffic_keys().unwrap(),
        }
    }

    fn close(&mut self) {
        self.tls.send_close_notify();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.tcp).unwrap();
        }
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bounded = async {
        tokio::time::timeout(std::time::Duration::from_secs(20), future)
            .await
            .expect("in time")
    };
    runtime.block_on(bounded)
}

fn wire(tcp: TcpStream) -> Wire {
    tcp.set_nonblocking(true).unwrap();
    Wire::new(tokio::net::TcpStream::from_std(tcp).unwrap())
}

/// Runs `ours` on the accepted side of a connection, and `peer` on the library's side, a client.
fn served<O, F, P, T>(made: Made, peer: P, ours: O) -> T
where
    O: FnOnce(TlsStream) -> F,
    F: Future<Output = T>,
    P: FnOnce(Peer) + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = Arc::new(made.client);
    let peer = thread::spawn(move || {
        let tcp = TcpStream::connect(address).unwrap();
        let tls = Connection::Client(ClientConnection::new(client, localhost()).unwrap());
        peer(Peer::new(tls, tcp));
    });
    let result = run(async {
        let wire = wire(listener.accept().unwrap().0);
        let (stream, _) = accept(Arc::new(made.server), wire).await.unwrap();
        ours(stream).await
    });
    peer.join().unwrap();
    result
}

/// Two streams of ours that face each other.
async fn pair(made: Made) -> (TlsStream, TlsStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = wire(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    let far = wire(listener.accept().unwrap().0);
    let (client, server) = tokio::join!(
        connect(Arc::new(made.client), localhost(), near),
        accept(Arc::new(made.server), far)
    );
    (client.unwrap().0, server.unwrap().0)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

async fn receive(stream: &mut TlsStream) -> std::io::Result<Option<Vec<u8>>> {
    let content = std::future::poll_fn(|cx| stream.poll_receive(cx)).await?;
    Ok(content.map(|it| it.buffer.as_ref()[it.start..it.end].to_vec()))
}

async fn send(stream: &mut TlsStream, bytes: &[u8]) -> std::io::Result<()> {
    for piece in bytes.chunks(PAYLOAD) {
        let mut buffer = crate::pool::Buffer::take();
        buffer.payload_mut(piece.len()).copy_from_slice(piece);
        let (start, end) = (HEADROOM, HEADROOM + piece.len());
        let mut content = Some(Content { buffer, start, end });
        std::future::poll_fn(|cx| stream.poll_send(cx, &mut content)).await?;
    }
    Ok(())
}

#[test]
fn every_suite_carries_both_directions_in_both_ways() {
    for suite in ring::ALL_CIPHER_SUITES {
        // The certificate's key is ECDSA.
        if format!("{:?}", suite.suite()).contains("RSA_WITH") {
            continue;
        }
        let sent = pattern(300_001);
        let expected = sent.clone();
        let length = sent.len();
        let peer = move |mut peer: Peer| {
            peer.write(&sent);
            assert_eq!(peer.read(2 * length), [&sent[..], &sent].concat());
            peer.close();
            assert_eq!(peer.read_some().unwrap(), b"");
        };
        served(made(Some(*suite)), peer, |mut stream| async move {
            let mut got = Vec::new();
            while got.len() < expected.len() {
                got.extend(receive(&mut stream).await.unwrap().unwrap());
            }
            assert!(got == expected, "{suite:?}");
            send(&mut stream, &got).await.unwrap();
            for piece in got.chunks(7_001) {
                stream.write_all(piece).await.unwrap();
            }
            stream.flush().await.unwrap();
            assert_eq!(receive(&mut stream).await.unwrap(), None);
            // The other direction is still open.
            stream.shutdown().await.unwrap();
        });
    }
}

#[test]
fn a_client_resumes_with_the_tickets_it_was_given() {
    let made = made(None);
    let (server, client) = (Arc::new(made.server), Arc::new(made.client));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let peer = thread::spawn(move || {
        [(); 2].map(|()| {
            let tcp = listener.accept().unwrap().0;
            let tls = Connection::Server(ServerConnection::new(server.clone()).unwrap());
            let mut peer = Peer::new(tls, tcp);
            assert_eq!(peer.read(5), b"hello");
            peer.write(b"there");
            assert_eq!(peer.read_some().unwrap(), b"");
            peer.tls.handshake_kind().unwrap()
        })
    });
    run(async {
        for _ in 0..2 {
            let wire = wire(TcpStream::connect(address).unwrap());
            let (mut stream, _) = connect(client.clone(), localhost(), wire).await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            stream.flush().await.unwrap();
            let mut got = [0; 5];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"there");
            stream.shutdown().await.unwrap();
        }
    });
    assert_eq!(
        peer.join().unwrap(),
        [HandshakeKind::Full, HandshakeKind::Resumed]
    );
}

//= rfc8446 §4.6.3 receive-with-next-keys
//= rfc8446 §4.6.3 answer-request
//= rfc8446 §5.5 key-limit
#[test]
fn keys_are_changed_by_either_side() {
    let peer = |mut peer: Peer| {
        for _ in 0..40 {
            peer.update_keys();
            peer.write(b"new");
            assert_eq!(peer.read(4), b"keys");
        }
    };
    served(made(None), peer, |mut stream| async move {
        for _ in 0..40 {
            let mut got = [0; 3];
            stream.read_exact(&mut got).await.unwrap();
            stream.session.wear_out();
            send(&mut stream, b"ke").await.unwrap();
            stream.session.wear_out();
            stream.write_all(b"ys").await.unwrap();
            stream.flush().await.unwrap();
        }
    });
}

//= rfc8446 §5.5 key-limit
#[test]
fn a_key_that_cannot_be_changed_ends_the_connection() {
    let suite = ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    let peer = |mut peer: Peer| {
        assert_eq!(peer.read_some().unwrap(), b"");
    };
    served(made(Some(suite)), peer, |mut stream| async move {
        stream.session.wear_out();
        let error = stream.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        // There is still enough of it to say goodbye.
        stream.shutdown().await.unwrap();
    });
}

//= rfc8446 §6.1 truncation
#[test]
fn an_end_without_close_notify_is_an_error_after_what_came_before() {
    let peer = |mut peer: Peer| {
        peer.write(b"half");
        peer.tcp.shutdown(Shutdown::Write).unwrap();
        // A close over unread tickets would be a RST.
        peer.tcp.read_to_end(&mut Vec::new()).unwrap();
    };
    served(made(None), peer, |mut stream| async move {
        assert_eq!(receive(&mut stream).await.unwrap().unwrap(), b"half");
        for _ in 0..2 {
            let error = receive(&mut stream).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        }
    });
}

//= rfc8446 §5.2 bad-record-mac
//= rfc8446 §5.2 most-record
//= rfc8446 §5.2 only-data
//= rfc8446 §6.2 fatal-alert
#[test]
fn what_is_no_record_is_told_to_the_peer() {
    let forged = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
    let short = vec![23, 3, 3, 0, 1, 0];
    for (bytes, alert) in [
        (forged, AlertDescription::BadRecordMac),
        (short, AlertDescription::BadRecordMac),
        (vec![23, 3, 3, 0x41, 1], AlertDescription::RecordOverflow),
        (vec![22, 3, 3, 0, 1, 0], AlertDescription::UnexpectedMessage),
        (vec![20, 3, 3, 0, 1, 1], AlertDescription::UnexpectedMessage),
        (
            b"GET / HTTP/1.1".to_vec(),
            AlertDescription::UnexpectedMessage,
        ),
    ] {
        let peer = move |mut peer: Peer| {
            peer.write(b"before");
            peer.tcp.write_all(&bytes).unwrap();
            let error = peer.read_some().unwrap_err();
            let wanted = rustls::Error::AlertReceived(alert).to_string();
            assert_eq!(error.to_string(), wanted);
        };
        served(made(None), peer, |mut stream| async move {
            let mut got = [0; 6];
            stream.read_exact(&mut got).await.unwrap();
            let error = receive(&mut stream).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            let error = stream.write_all(b"more").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        });
    }
}

#[test]
fn a_failed_handshake_is_told_to_the_peer() {
    let made = made(None);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let peer = thread::spawn(move || {
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).unwrap();
        answer
    });
    let error = run(async {
        let wire = wire(listener.accept().unwrap().0);
        accept(Arc::new(made.server), wire).await.unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    // A fatal alert.
    assert_eq!(peer.join().unwrap()[..6], [21, 3, 3, 0, 2, 2]);
}

/// Behind the certificate more messages stand in the same record.
#[test]
fn a_certificate_that_is_not_accepted_is_told_to_the_peer() {
    let (ours, others) = (made(None), made(None));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, server) = run(async {
        let near = wire(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let far = wire(listener.accept().unwrap().0);
        tokio::join!(
            connect(Arc::new(others.client), localhost(), near),
            accept(Arc::new(ours.server), far)
        )
    });
    let client = client.unwrap_err().to_string();
    assert!(client.contains("invalid peer certificate"), "{client}");
    let server = server.unwrap_err().to_string();
    assert!(server.contains("received fatal alert"), "{server}");
}

/// What one of ours makes of records that the other sends; `Ok` = content.
fn told(records: &[(u8, &[u8])]) -> Result<Vec<u8>, String> {
    run(async {
        let (mut client, mut server) = pair(made(None)).await;
        for (kind, bytes) in records {
            client.session.say(*kind, bytes, &mut client.out).unwrap();
            client.flush().await.unwrap();
        }
        client.write_all(b"end").await.unwrap();
        client.flush().await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"end") {
            match receive(&mut server).await {
                Ok(Some(content)) => got.extend(content),
                Ok(None) => return Ok(got),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(got)
    })
}

//= rfc8446 §5 unknown-type
//= rfc8446 §5.1 no-interleaving
//= rfc8446 §5.1 no-empty-handshake
//= rfc8446 §5.1 key-change-aligned
//= rfc8446 §5.4 padding
//= rfc8446 §6.1 close-notify-ends
//= rfc8446 §6.1 nothing-after-close
//= rfc8446 §6.2 error-alert-ends
#[test]
fn what_a_record_may_hold() {
    use content::{ALERT, DATA, HANDSHAKE};
    let unexpected = Err("a record of an unexpected type".to_owned());
    assert_eq!(told(&[(DATA, b"to the ")]), Ok(b"to the end".to_vec()));
    assert_eq!(told(&[(DATA, b"")]), Ok(b"end".to_vec()));
    assert_eq!(told(&[(25, b"?")]), unexpected);
    // Nothing but padding.
    assert_eq!(told(&[(0, b"")]), unexpected);
    assert_eq!(told(&[(HANDSHAKE, b"")]), unexpected);
    // Content of another type between the parts of a message.
    assert_eq!(told(&[(HANDSHAKE, &[24, 0])]), unexpected);
    // A client's ticket; a message behind a change of keys; a second ClientHello.
    assert_eq!(told(&[(HANDSHAKE, &[4, 0, 0, 0])]), unexpected);
    assert_eq!(told(&[(HANDSHAKE, &[24, 0, 0, 1, 0, 24])]), unexpected);
    assert_eq!(told(&[(HANDSHAKE, &[1, 0, 0, 0])]), unexpected);
    let illegal = Err("an illegal message".to_owned());
    assert_eq!(told(&[(HANDSHAKE, &[24, 0, 0, 1, 2])]), illegal);
    let malformed = Err("a malformed message".to_owned());
    assert_eq!(told(&[(HANDSHAKE, &[24, 255, 0, 1])]), malformed);
    assert_eq!(told(&[(ALERT, &[1])]), malformed);
    // close_notify of either level; what follows is not looked at.
    assert_eq!(
        told(&[(DATA, b"all"), (ALERT, &[1, 0])]),
        Ok(b"all".to_vec())
    );
    assert_eq!(told(&[(ALERT, &[2, 0])]), Ok(Vec::new()));
    // user_canceled means nothing, four times; every other alert is the end.
    assert_eq!(told(&[(ALERT, &[1, 90][..]); 4]), Ok(b"end".to_vec()));
    assert_eq!(told(&[(ALERT, &[1, 90][..]); 5]), illegal);
    assert_eq!(told(&[(ALERT, &[1, 80])]), illegal);
}

//= rfc8446 §5.4 padding
#[test]
fn padding_is_taken_off() {
    // The inner type is the last byte that is not zero: content that ends in type and zeros, in a record of type zero.
    let padded = [&b"in a "[..], &[content::DATA], &[0; 100]].concat();
    assert_eq!(told(&[(0, &padded)]), Ok(b"in a end".to_vec()));
}

#[test]
fn endless_changes_of_keys_are_refused() {
    let got = run(async {
        let (mut client, mut server) = pair(made(None)).await;
        for _ in 0..40 {
            client.session.wear_out();
            client.session.clear(&mut client.out).unwrap();
            client.flush().await.unwrap();
        }
        receive(&mut server)
            .await
            .map_err(|error| error.to_string())
    });
    assert_eq!(got, Err("a record of an unexpected type".to_owned()));
}

//= rfc8446 §6.1 close-notify-sent
#[test]
fn a_stalled_peer_gets_everything_in_order_and_the_close_last() {
    let all = pattern(3 << 20);
    let expected = all.clone();
    run(async {
        let (mut client, mut server) = pair(made(None)).await;
        let sending = async {
            // In turns, both ways of sending, more than the sockets hold.
            for (number, piece) in all.chunks(100_003).enumerate() {
                if number % 2 == 0 {
                    send(&mut client, piece).await.unwrap();
                } else {
                    client.write_all(piece).await.unwrap();
                }
            }
            client.shutdown().await.unwrap();
            assert_eq!(
                client.write(b"more").await.unwrap_err().kind(),
                ErrorKind::BrokenPipe
            );
        };
        let taking = async {
            let mut got = Vec::new();
            while let Some(content) = receive(&mut server).await.unwrap() {
                got.extend(content);
                tokio::task::yield_now().await;
            }
            assert!(got == expected);
        };
        tokio::join!(sending, taking);
    });
}
