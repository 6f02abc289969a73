//! The body of a fuzz target: a peer that has the keys and says what it likes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::crypto::ring::default_provider;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::UnbufferedStatus;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::handshake::{Next, Side, step};
use super::keys::MOST_CONTENT;
use super::outbox::Outbox;
use super::session::{Received, Session};
use super::throwaway_certificate;

type Configs = (Arc<ClientConfig>, Arc<ServerConfig>);

fn configs() -> Configs {
    let made = throwaway_certificate(&["localhost".into()]).expect("a certificate");
    let certificate = CertificateDer::from_pem_slice(made.certificate.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(made.private_key.as_bytes()).expect("PEM");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let mut client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let mut server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a key");
    server.enable_secret_extraction = true;
    server.send_tls13_tickets = 0;
    (Arc::new(client), Arc::new(server))
}

/// Goes on until the peer has to answer; `true` = done.
fn advance<S: Side>(side: &mut S, incoming: &mut Vec<u8>, outgoing: &mut Vec<u8>) -> bool {
    loop {
        let UnbufferedStatus { discard, state, .. } = side.process(incoming);
        let next = step(state, outgoing).expect("a handshake");
        incoming.drain(..discard);
        match next {
            Next::Again | Next::Write => {}
            Next::Record => return false,
            Next::Done => return true,
        }
    }
}

fn finish<S: Side>(side: S) -> Session {
    let (secrets, kernel) = side.into_kernel().expect("keys");
    Session::new(secrets, kernel).expect("a known suite")
}

/// Client and server after a handshake.
fn pair((client, server): &Configs) -> (Session, Session) {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = UnbufferedClientConnection::new(client.clone(), name).expect("a client");
    let mut server = UnbufferedServerConnection::new(server.clone()).expect("a server");
    let (mut up, mut down) = (Vec::new(), Vec::new());
    while !(advance(&mut client, &mut down, &mut up) & advance(&mut server, &mut up, &mut down)) {}
    (finish(client), finish(server))
}

/// What a session makes of a stream of records, until it has had enough.
fn hear(session: &mut Session, mut bytes: Vec<u8>) -> bool {
    let (mut end, mut at) = (0, 0);
    let mut out = Outbox::default();
    while let Ok(Some(length)) = session.length(&bytes[at..]) {
        if length > bytes.len() - at {
            return true;
        }
        match session.receive(&mut bytes[end..at + length], at - end, &mut out) {
            Ok(Received::Content(content)) => {
                assert!(content <= MOST_CONTENT);
                end += content;
            }
            Ok(Received::Nothing) => {}
            Ok(Received::Closed) => return false,
            Err(fault) => {
                session.reproach(fault, &mut out);
                return false;
            }
        }
        at += length;
    }
    at == bytes.len()
}

/// Records of a peer that has the keys (a type, a length, so many bytes), then bytes of one that has not.
pub fn tls_records(data: &[u8]) {
    thread_local! {
        static CONFIGS: Configs = configs();
    }
    let (mut client, mut server) = CONFIGS.with(pair);
    let mut rest = data;
    while let [kind, length, more @ ..] = rest {
        let (content, later) = more.split_at(usize::from(*length).min(more.len()));
        rest = later;
        let mut out = Outbox::default();
        client
            .say(*kind, content, &mut out)
            .expect("a short record");
        if !hear(&mut server, out.gathered().to_vec()) {
            break;
        }
    }
    // The other way too: only a client takes tickets.
    let mut out = Outbox::default();
    let ticket = &data[..data.len().min(1000)];
    server.say(22, ticket, &mut out).expect("a short record");
    hear(&mut client, out.gathered().to_vec());
    hear(&mut client, data.to_vec());
}
