//! TLS for TCP and QUIC: certificates from PEM files, ALPN, client certificates.
//!
//! Over TCP the TLS library makes the handshake and hands over the keys; records are then opened and sealed in the buffers they
//! lie in ([`stream`]).

pub mod fuzzing;
mod handshake;
mod keys;
mod outbox;
mod session;
mod stream;

pub use handshake::{Agreed, accept, connect};
pub use stream::{Content, TlsStream};

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::quic::QuicServerConfig;
use rustls::RootCertStore;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Http, Listener};

/// TLS of one listener, made anew at each reload.
#[derive(Clone)]
pub struct ListenerTls {
    /// For TCP: ALPN `h2` and `http/1.1` as the listener offers them.
    pub tcp: Arc<rustls::ServerConfig>,
    /// For QUIC: ALPN `h3`, TLS 1.3 only.
    pub quic: Arc<QuicServerConfig>,
}

impl std::fmt::Debug for ListenerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ListenerTls").finish_non_exhaustive()
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path)?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{}: not a PEM certificate chain: {error}", path.display()))?;
    if chain.is_empty() {
        return Err(format!(
            "{}: holds no PEM certificate (-----BEGIN CERTIFICATE-----)",
            path.display()
        ));
    }
    Ok(chain)
}

/// A chain that can be shown: its first certificate is one.
fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = certificates(path)?;
    if let Some(first) = chain.first() {
        ParsedCertificate::try_from(first)
            .map_err(|error| format!("{}: not a usable certificate: {error}", path.display()))?;
    }
    Ok(chain)
}

/// A key that can be signed with.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let unusable = |error: &dyn std::fmt::Display| {
        format!(
            "{}: holds no usable PEM private key (PKCS#8, PKCS#1 or SEC1): {error}",
            path.display()
        )
    };
    let key = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| unusable(&error))?;
    provider()
        .key_provider
        .load_private_key(key.clone_key())
        .map_err(|error| unusable(&error))?;
    Ok(key)
}

/// What judges the certificates of clients by the roots in a file.
fn client_verifier(path: &Path, required: bool) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for root in certificates(path)? {
        roots
            .add(root)
            .map_err(|error| format!("{}: not a usable root: {error}", path.display()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let verifier = if required {
        verifier
    } else {
        verifier.allow_unauthenticated()
    };
    verifier
        .build()
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Builds one server configuration; faults name the file.
fn server_config(
    certificate: &Path,
    key: &Path,
    client_ca: Option<&Path>,
    client_auth_required: bool,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<rustls::ServerConfig, String> {
    let chain = chain(certificate)?;
    let key_der = private_key(key)?;
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|error| error.to_string())?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            builder.with_client_cert_verifier(client_verifier(path, client_auth_required)?)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key_der)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => format!(
                "{} does not belong to {}: give the key that the certificate was issued for",
                key.display(),
                certificate.display()
            ),
            other => format!("{}: {other}", certificate.display()),
        })?;
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(|error| error.to_string())?;
    Ok(config)
}

impl ListenerTls {
    /// Reads the listener's files; `None` for a cleartext listener. The error names the file and what is wrong with it.
    pub fn load(listener: &Listener) -> Result<Option<Self>, String> {
        let (Some(certificate), Some(key)) = (&listener.certificate, &listener.private_key) else {
            return Ok(None);
        };
        let client_ca = listener.client_ca.as_deref();
        let required = listener.client_auth_required;
        let mut tcp = server_config(
            certificate,
            key,
            client_ca,
            required,
            &[&rustls::version::TLS13, &rustls::version::TLS12],
        )?;
        for http in &listener.http {
            match http {
                Http::H1 => tcp.alpn_protocols.push(b"http/1.1".to_vec()),
                Http::H2 => tcp.alpn_protocols.insert(0, b"h2".to_vec()),
                Http::H3 => {}
            }
        }
        tcp.enable_secret_extraction = true;
        let mut quic = server_config(
            certificate,
            key,
            client_ca,
            required,
            &[&rustls::version::TLS13],
        )?;
        quic.alpn_protocols = vec![b"h3".to_vec()];
        let quic = QuicServerConfig::try_from(quic).map_err(|error| error.to_string())?;
        Ok(Some(Self {
            tcp: Arc::new(tcp),
            quic: Arc::new(quic),
        }))
    }
}

/// Checks that a file holds a certificate chain that can be shown.
pub fn check_certificate(path: &Path) -> Result<(), String> {
    chain(path).map(|_| ())
}

/// Checks that a file holds a key that can be signed with.
pub fn check_private_key(path: &Path) -> Result<(), String> {
    private_key(path).map(|_| ())
}

/// Checks that a file holds roots that certificates of clients can be judged by.
pub fn check_client_ca(path: &Path) -> Result<(), String> {
    client_verifier(path, false).map(|_| ())
}

/// Checks that TLS can be served from these files: each is sound, and the key belongs to the certificate.
pub fn check(certificate: &Path, private_key: &Path) -> Result<(), String> {
    let versions = &[&rustls::version::TLS13];
    server_config(certificate, private_key, None, false, versions).map(|_| ())
}

/// A certificate for trying things out.
#[derive(Debug, Clone)]
pub struct Throwaway {
    /// PEM certificate, its own root.
    pub certificate: String,
    /// PEM private key.
    pub private_key: String,
}

/// Makes a self-signed certificate for `names` (host names and addresses).
pub fn throwaway_certificate(names: &[String]) -> Result<Throwaway, String> {
    let made = rcgen::generate_simple_self_signed(names.to_vec()).map_err(|e| e.to_string())?;
    Ok(Throwaway {
        certificate: made.cert.pem(),
        private_key: made.signing_key.serialize_pem(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(directory: &Path, name: &str, content: &str) -> std::path::PathBuf {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn faults_name_the_file() {
        let directory = std::env::temp_dir().join(format!("relay-tls-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let one = throwaway_certificate(&["localhost".into()]).unwrap();
        let two = throwaway_certificate(&["localhost".into()]).unwrap();
        let certificate = write(&directory, "one.pem", &one.certificate);
        let key = write(&directory, "one.key", &one.private_key);
        let other = write(&directory, "two.key", &two.private_key);
        let empty = write(&directory, "empty.pem", "");
        let pem = |label| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        let no_certificate = write(&directory, "no.pem", &pem("CERTIFICATE"));
        let no_key = write(&directory, "no.key", &pem("PRIVATE KEY"));
        assert_eq!(check(&certificate, &key), Ok(()));
        assert!(
            check(&certificate, &other)
                .unwrap_err()
                .contains("two.key does not belong")
        );
        for (check, sound, faulty) in [
            (
                check_certificate as fn(&Path) -> _,
                &certificate,
                &no_certificate,
            ),
            (check_private_key, &key, &no_key),
            (check_client_ca, &certificate, &no_certificate),
        ] {
            assert_eq!(check(sound), Ok(()));
            for path in [faulty, &empty, &directory.join("none")] {
                let error = check(path).unwrap_err();
                assert!(error.starts_with(&path.display().to_string()), "{error}");
            }
        }
        // Whichever file is at fault is the one that is named.
        assert_eq!(check(&certificate, &no_key), check_private_key(&no_key));
        assert_eq!(
            check(&no_certificate, &key),
            check_certificate(&no_certificate)
        );
        fs::remove_dir_all(&directory).unwrap();
    }
}
