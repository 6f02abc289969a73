//! The handshake: the TLS library sees one record after the other, so that it never holds what belongs behind the handshake. Then
//! it hands over the keys.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ExtractedSecrets, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::session::{Kernel, Session};
use super::stream::TlsStream;
use crate::transport::wire::Wire;

/// The most that a peer may send ahead: the longest handshake message, and some records around it.
const MOST: usize = 96 << 10;
/// What is read at a time.
const READ: usize = 4 << 10;
/// The longest record.
const MOST_RECORD: usize = (1 << 14) + 2048;

/// What the handshake found out.
#[derive(Debug)]
pub struct Agreed {
    /// The application protocol (ALPN).
    pub alpn: Option<Vec<u8>>,
    /// The peer's own certificate, if it showed one.
    pub certificate: Option<CertificateDer<'static>>,
}

/// Waits for a client's handshake on `wire`.
///
/// # Errors
/// Those of the socket; [`ErrorKind::InvalidData`] with the TLS library's reason, which the client was told.
pub async fn accept(config: Arc<ServerConfig>, wire: Wire) -> io::Result<(TlsStream, Agreed)> {
    debug_assert!(config.enable_secret_extraction);
    shake_hands(
        UnbufferedServerConnection::new(config).map_err(refused)?,
        wire,
    )
    .await
}

/// Makes the handshake with the server `name` on `wire`.
///
/// # Errors
/// As for [`accept`].
pub async fn connect(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    wire: Wire,
) -> io::Result<(TlsStream, Agreed)> {
    debug_assert!(config.enable_secret_extraction);
    shake_hands(
        UnbufferedClientConnection::new(config, name).map_err(refused)?,
        wire,
    )
    .await
}

fn refused(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

/// A side of a handshake.
pub(super) trait Side: Sized {
    type Data;

    fn process<'c, 'i>(&'c mut self, tls: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;

    fn into_kernel(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error>;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, tls: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(tls)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn into_kernel(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Server(kernel)))
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, tls: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(tls)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn into_kernel(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Client(kernel)))
    }
}

/// What is to be done before the library goes on.
pub(super) enum Next {
    /// Look again.
    Again,
    /// Write what is there.
    Write,
    /// Let it see another record.
    Record,
    /// Nothing: the handshake is done.
    Done,
}

async fn shake_hands<S: Side>(mut side: S, mut wire: Wire) -> io::Result<(TlsStream, Agreed)> {
    let mut incoming = Vec::new();
    // What the library may see of it.
    let mut seen = 0;
    let mut outgoing = Vec::new();
    loop {
        let UnbufferedStatus { discard, state, .. } = side.process(&mut incoming[..seen]);
        let next = match step(state, &mut outgoing) {
            Ok(next) => next,
            Err(error) => {
                tell(&mut side, &mut outgoing);
                // The reason counts, whether or not the peer still hears it.
                let _ = wire.write_all(&outgoing).await;
                return Err(error);
            }
        };
        incoming.drain(..discard);
        seen -= discard;
        match next {
            Next::Again => {}
            Next::Write => {
                wire.write_all(&outgoing).await?;
                outgoing.clear();
            }
            Next::Record => {
                seen = loop {
                    if let Some(end) = record(&incoming, seen) {
                        break end;
                    }
                    read(&mut wire, &mut incoming).await?;
                };
            }
            Next::Done => break,
        }
    }
    let common = side.common();
    let agreed = Agreed {
        alpn: common.alpn_protocol().map(<[u8]>::to_vec),
        certificate: common
            .peer_certificates()
            .and_then(|chain| Some(chain.first()?.clone().into_owned())),
    };
    let (secrets, kernel) = side.into_kernel().map_err(refused)?;
    let session = Session::new(secrets, kernel)?;
    Ok((TlsStream::new(wire, session, incoming), agreed))
}

pub(super) fn step<Data>(
    state: Result<ConnectionState<'_, '_, Data>, rustls::Error>,
    outgoing: &mut Vec<u8>,
) -> io::Result<Next> {
    match state.map_err(refused)? {
        ConnectionState::EncodeTlsData(mut data) => {
            encode(&mut data, outgoing).map_err(|_| ErrorKind::InvalidData)?;
            Ok(Next::Again)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Next::Write)
        }
        ConnectionState::BlockedHandshake => Ok(Next::Record),
        ConnectionState::WriteTraffic(_) => Ok(Next::Done),
        // An end in the middle of the handshake, or data before its end.
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Collects the alert of a handshake that has failed, and nothing else: what is left of a record that holds more messages than the
/// one at fault, the library must not be asked about.
fn tell<S: Side>(side: &mut S, outgoing: &mut Vec<u8>) {
    while side.common().wants_write()
        && let Ok(ConnectionState::EncodeTlsData(mut data)) = side.process(&mut []).state
    {
        if encode(&mut data, outgoing).is_err() {
            return;
        }
    }
}

fn encode<Data>(
    data: &mut EncodeTlsData<'_, Data>,
    outgoing: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let at = outgoing.len();
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        outgoing.resize(at + size.required_size, 0);
        data.encode(&mut outgoing[at..])?;
    }
    Ok(())
}

/// Where the record that begins at `from` ends, once all of it is there. What is no record is for the library to refuse.
fn record(bytes: &[u8], from: usize) -> Option<usize> {
    let [kind, major, _, high, low] = *bytes.get(from..)?.first_chunk::<5>()?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if !(20..=24).contains(&kind) || major != 3 || length > MOST_RECORD {
        return Some(bytes.len());
    }
    let end = from + 5 + length;
    (end <= bytes.len()).then_some(end)
}

async fn read(wire: &mut Wire, incoming: &mut Vec<u8>) -> io::Result<()> {
    if incoming.len() >= MOST {
        return Err(ErrorKind::InvalidData.into());
    }
    let at = incoming.len();
    incoming.resize(at + READ, 0);
    let length = wire.read(&mut incoming[at..]).await?;
    incoming.truncate(at + length);
    if length == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
