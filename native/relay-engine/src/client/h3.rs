//! HTTP/3: one QUIC connection.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::spawn_local;

use super::{Error, Opened, Proxy, Recv, Send, Wanted, check, tls};
use crate::transport::h3::code::{Code, Fault};
use crate::transport::h3::control::{self, Control};
use crate::transport::h3::frame::{Decoder, Side};
use crate::transport::h3::requests::Requests;
use crate::transport::h3::settings::Settings;
use crate::transport::h3::stream::{H3Recv, H3Send, read_field_section};
use crate::transport::h3::uni::{self, Purpose};
use crate::transport::h3::{message, qpack};
use crate::transport::quic::{self, VarInt};

/// What the proxy may send on one stream before it is taken.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes read at once from a stream of frames.
const READ: usize = 64 * 1024;

fn failed(error: impl fmt::Display) -> Error {
    Error::Quic(error.to_string())
}

fn number(code: Code) -> VarInt {
    VarInt::from_u64(code.value()).unwrap_or(VarInt::MAX)
}

/// An HTTP/3 connection to a proxy; it is closed when this and the last tunnel are gone.
pub(super) struct Connection(Rc<Shared>);

/// What the connection and its tunnels hold: the last one closes.
struct Shared {
    quic: quic::Connection,
    requests: Requests,
    /// The proxy's settings, once they arrived.
    settings: watch::Receiver<Option<Settings>>,
    /// The proxy takes no more requests (GOAWAY).
    leaving: Cell<bool>,
    /// Our control stream, which must not end before the connection.
    _control: quic::SendStream,
    _endpoint: quic::Endpoint,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.quic.close(number(Code::NO_ERROR), b"");
    }
}

/// A request that is open.
pub(super) struct OpenRequest {
    connection: Rc<Shared>,
    stream: u64,
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.connection.requests.close(self.stream);
    }
}

impl fmt::Debug for OpenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenRequest").field(&self.stream).finish()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("remote", &self.0.quic.remote_address())
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) async fn open(proxy: &Proxy) -> Result<Self, Error> {
        let config = proxy.tls.as_ref().ok_or(Error::Usage("HTTP/3 needs TLS"))?;
        let mut crypto = tls::with_alpn(config, &[b"h3"]);
        crypto.enable_early_data = false;
        let crypto = quic::QuicClientConfig::try_from(crypto).map_err(failed)?;
        let mut client = quic::ClientConfig::new(Arc::new(crypto));
        let mut transport = quic::transport_config(STREAM_WINDOW, proxy.congestion_control);
        // A server opens no bidirectional stream in HTTP/3.
        transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
        client.transport_config(Arc::new(transport));
        let local: SocketAddr = if proxy.address.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let endpoint = quic::Endpoint::client(local)?;
        let connecting = endpoint.connect(client, proxy.address, proxy.host());
        let quic = connecting.map_err(failed)?.await.map_err(failed)?;
        let mut control = quic.open_uni().await.map_err(failed)?;
        let grease = quic.id() as u64 >> 6;
        // Only servers take extended CONNECT.
        let ours = Settings {
            enable_connect_protocol: false,
            ..Settings::ours()
        };
        control
            .write_all(&control::preface(&ours, grease))
            .await
            .map_err(failed)?;
        let (sender, settings) = watch::channel(None);
        let shared = Rc::new(Shared {
            quic: quic.clone(),
            requests: Requests::new(Side::Client),
            settings,
            leaving: Cell::new(false),
            _control: control,
            _endpoint: endpoint,
        });
        spawn_local(take_datagrams(quic.clone(), Rc::downgrade(&shared)));
        spawn_local(listen(quic, sender, Rc::downgrade(&shared)));
        Ok(Self(shared))
    }

    /// Whether it has ended, or will.
    pub(super) fn is_over(&self) -> bool {
        self.0.leaving.get() || self.0.quic.close_reason().is_some()
    }

    pub(super) async fn open_tunnel(&self, proxy: &Proxy, wanted: Wanted) -> Result<Opened, Error> {
        let datagrams = wanted.datagrams;
        let request = self.request(proxy, wanted).await?;
        let Shared { quic, requests, .. } = &*self.0;
        let (mut send, mut recv) = quic.open_bi().await.map_err(failed)?;
        let stream = u64::from(VarInt::from(send.id()));
        let verdict = requests.open(stream);
        let open = Rc::new(OpenRequest {
            connection: self.0.clone(),
            stream,
        });
        let mut head = Vec::with_capacity(256);
        message::put_request(&request, &mut head);
        send.write_chunk(head.into()).await.map_err(failed)?;
        let mut decoder = Decoder::new(Side::Client);
        let mut early = Bytes::new();
        let response = loop {
            let response = read_head(&mut recv, &mut decoder, &mut early).await;
            match response {
                Ok(Some(response)) if response.is_interim() => {}
                Ok(Some(response)) => break response,
                Ok(None) => return Err(Error::Protocol("the proxy reset the request")),
                Err(Fault::Connection(code)) => {
                    quic.close(number(code), b"");
                    return Err(Error::Protocol("the proxy broke HTTP/3's framing"));
                }
                Err(Fault::Stream(code)) => {
                    send.reset(number(code));
                    recv.stop(number(code));
                    return Err(Error::Protocol("the response is malformed"));
                }
            }
        };
        let fields = match check(response.status, response.fields) {
            Ok(fields) => fields,
            Err(refused) => {
                send.reset(number(Code::REQUEST_CANCELLED));
                return Err(refused);
            }
        };
        decoder.final_head();
        verdict.datagrams(datagrams);
        let recv = H3Recv::new(
            recv,
            quic.clone(),
            decoder,
            vec![early],
            verdict.clone(),
            requests.permitted().clone(),
        );
        let send = H3Send::new(send, verdict);
        Ok(Opened {
            fields,
            recv: Recv::H3(Box::new(recv)),
            send: Send::H3(Box::new(send)),
            open: Some(open),
        })
    }

    /// As if the proxy took no HTTP datagrams in QUIC DATAGRAM frames.
    #[cfg(test)]
    pub(super) fn forbid_datagrams(&self) {
        self.0.requests.permitted().set(false);
    }

    async fn request(&self, proxy: &Proxy, wanted: Wanted) -> Result<message::Request, Error> {
        let Some(token) = wanted.token else {
            return Ok(message::Request {
                method: "CONNECT".to_owned(),
                scheme: None,
                authority: Some(wanted.target),
                path: None,
                protocol: None,
                fields: wanted.fields,
            });
        };
        let mut settings = self.0.settings.clone();
        let settings = settings.wait_for(Option::is_some).await.map_err(failed)?;
        if !settings.is_some_and(|settings| settings.enable_connect_protocol) {
            return Err(Error::Protocol("the proxy does not offer extended CONNECT"));
        }
        //= connect-tcp §3.2 path-and-scheme
        Ok(message::Request {
            method: "CONNECT".to_owned(),
            scheme: Some(proxy.scheme().to_owned()),
            authority: Some(proxy.authority.clone()),
            path: Some(wanted.target),
            protocol: Some(token),
            fields: wanted.fields,
        })
    }
}

/// Reads up to the end of the next response head; `None`: the stream was reset or ended before it.
async fn read_head(
    recv: &mut quic::RecvStream,
    decoder: &mut Decoder,
    early: &mut Bytes,
) -> Result<Option<message::Response>, Fault> {
    let section = read_field_section(recv, decoder, early).await?;
    section
        .map(|block| message::response(qpack::decode(&block)?))
        .transpose()
}

/// Hands the proxy's QUIC datagrams to the requests that they name, until the connection ends.
async fn take_datagrams(quic: quic::Connection, connection: Weak<Shared>) {
    let mut frames = Vec::new();
    while quic.read_datagrams(&mut frames).await.is_ok() {
        let Some(connection) = connection.upgrade() else {
            return;
        };
        for frame in frames.drain(..) {
            if let Err(fault) = connection.requests.datagram(frame) {
                quic.close(number(fault.code()), b"");
                return;
            }
        }
    }
}

/// Takes the proxy's unidirectional streams until the connection ends.
async fn listen(
    quic: quic::Connection,
    settings: watch::Sender<Option<Settings>>,
    connection: Weak<Shared>,
) {
    let opened = Rc::new(RefCell::new(uni::Opened::new(Side::Client)));
    let settings = Rc::new(settings);
    while let Ok(recv) = quic.accept_uni().await {
        let (quic, opened) = (quic.clone(), opened.clone());
        let (settings, connection) = (settings.clone(), connection.clone());
        spawn_local(async move {
            if let Err(fault) = unidirectional(recv, &opened, &settings, &connection).await {
                quic.close(number(fault.code()), b"");
            }
        });
    }
}

async fn unidirectional(
    mut recv: quic::RecvStream,
    opened: &RefCell<uni::Opened>,
    settings: &watch::Sender<Option<Settings>>,
    connection: &Weak<Shared>,
) -> Result<(), Fault> {
    let mut front = Vec::new();
    let kind = loop {
        match recv.read_chunk(1).await {
            Ok(Some(chunk)) => front.extend_from_slice(&chunk),
            Ok(None) | Err(_) => return Ok(()),
        }
        if let Some((kind, _)) = uni::stream_type(&front) {
            break kind;
        }
    };
    let purpose = opened.borrow_mut().open(kind)?;
    let mut control = control::Decoder::new(Side::Client);
    let mut acknowledgements = qpack::DecoderStream::default();
    loop {
        let chunk = match recv.read_chunk(READ).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) | Err(quic::ReadError::Reset(_)) if purpose != Purpose::Unknown => {
                return Err(control::CLOSED);
            }
            Ok(None) | Err(_) => return Ok(()),
        };
        let mut data = &chunk[..];
        match purpose {
            Purpose::Control => {
                while let Some(said) = control.next(&mut data)? {
                    let connection = connection.upgrade();
                    match said {
                        Control::Settings(theirs) => {
                            if let Some(connection) = connection {
                                connection.requests.permitted().set(theirs.h3_datagram);
                            }
                            settings.send_replace(Some(theirs));
                        }
                        Control::Goaway(_) => {
                            if let Some(connection) = connection {
                                connection.leaving.set(true);
                            }
                        }
                        Control::MaxPushId(_) => {}
                    }
                }
            }
            Purpose::QpackEncoder => qpack::encoder_stream(data)?,
            Purpose::QpackDecoder => acknowledgements.feed(data)?,
            Purpose::Unknown => {
                recv.stop(number(Code::STREAM_CREATION_ERROR));
                return Ok(());
            }
        }
    }
}
