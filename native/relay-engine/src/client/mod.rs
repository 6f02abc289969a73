//! The client side: connections to a proxy over HTTP/1.1, HTTP/2 and HTTP/3, and tunnels through them.
//!
//! It shares the data streams of [`transport`](crate::transport) and the tunnel machines of `capsule-core` with the relay.
//! Everything here stays on one thread: run it inside a `tokio::task::LocalSet`.

mod datagrams;
mod failure;
mod h1;
mod h2;
mod h3;
mod halves;
mod link;
pub mod local;
mod tls;
mod tunnel;

pub use datagrams::{DatagramReceiver, DatagramSender, DatagramTunnel, Sent};
pub use failure::{Failure, Reason};
pub use halves::{Recv, Send};
pub use link::{Link, Settings};
pub use tls::{trusting, trusting_the_system};
pub use tunnel::{Cut, Receiver, Sender, Tunnel};

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capsule_core::protocols::{self, Profile, Protocol, TargetKind};
use capsule_core::template::Template;
use capsule_core::tunnel::AnyStreamTunnel;
use http::header::{AUTHORIZATION, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderName, HeaderValue};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::config::{CongestionControl, Http};
use crate::transport::wire::Wire;

/// Silence of a TCP connection after which the proxy is asked whether it is still there, and how often until it is given up.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// `Capsule-Protocol`.
const CAPSULE_PROTOCOL: HeaderName = HeaderName::from_static("capsule-protocol");

/// Where a proxy is and how to speak to it.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Address to connect to.
    pub address: SocketAddr,
    /// Host, and port unless it is the scheme's: `Host`, `:authority` and the name that TLS verifies.
    pub authority: String,
    /// TLS without ALPN, as [`trusting`] makes it; `None` for cleartext, which h3 has not.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Credentials, e.g. `Bearer …`: sent as `Authorization`, or `Proxy-Authorization` for classic CONNECT.
    pub credentials: Option<HeaderValue>,
    /// Largest HTTP/2 frame that the proxy may send, 16384 to 16777215; `None` = what serves bulk best.
    pub max_frame: Option<u32>,
    /// HTTP/3: of what is sent to the proxy.
    pub congestion_control: CongestionControl,
}

impl Proxy {
    fn host(&self) -> &str {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.authority,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    fn server_name(&self) -> Result<rustls_pki_types::ServerName<'static>, Error> {
        rustls_pki_types::ServerName::try_from(self.host().to_owned())
            .map_err(|_| Error::Usage("the proxy's authority is no name that TLS can verify"))
    }

    async fn dial(&self) -> Result<Wire, Error> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        // A path that died without a word must not be taken for a connection for ever.
        let probes = TcpKeepalive::new()
            .with_time(PROBE_AFTER)
            .with_interval(PROBE_EVERY);
        SockRef::from(&tcp).set_tcp_keepalive(&probes)?;
        Ok(Wire::new(tcp))
    }
}

/// How a tunnel is asked for.
#[derive(Debug, Clone)]
pub enum Form {
    /// Classic CONNECT.
    Connect,
    /// A templated protocol: its row, the proxy's URI template, and the token to use.
    Templated {
        /// Row of the protocol table.
        protocol: &'static Protocol,
        /// Where the proxy serves it.
        template: Template,
        /// Token and capsule types.
        profile: Profile,
    },
}

impl Form {
    /// connect-tcp at the default template with the preferred profile.
    ///
    /// # Errors
    /// None as long as the protocol table is sound.
    pub fn connect_tcp() -> Result<Self, Error> {
        Self::by_name("connect-tcp")
    }

    /// connect-udp at the default template.
    ///
    /// # Errors
    /// None as long as the protocol table is sound.
    pub fn connect_udp() -> Result<Self, Error> {
        Self::by_name("connect-udp")
    }

    /// `connect`, or a templated protocol by one of its tokens, at its default template.
    #[must_use]
    pub fn by_token(token: &str) -> Option<Self> {
        if token == "connect" {
            return Some(Self::Connect);
        }
        protocols::TABLE.iter().find_map(|protocol| {
            let profile = protocol.profiles.iter().find(|it| it.token == token)?;
            Some(Self::Templated {
                protocol,
                template: Template::compile(protocol.default_template?).ok()?,
                profile: profile.clone(),
            })
        })
    }

    fn by_name(name: &str) -> Result<Self, Error> {
        const UNSOUND: Error = Error::Usage("the protocol table has no such templated protocol");
        let protocol = protocols::by_name(name).ok_or(UNSOUND)?;
        let template = protocol.default_template.ok_or(UNSOUND)?;
        Ok(Self::Templated {
            protocol,
            template: Template::compile(template).map_err(|_| UNSOUND)?,
            profile: protocol.profiles.first().ok_or(UNSOUND)?.clone(),
        })
    }

    fn carries(&self) -> TargetKind {
        match self {
            Self::Connect => TargetKind::Stream,
            Self::Templated { protocol, .. } => protocol.target,
        }
    }

    fn is_of_datagrams(&self) -> bool {
        self.carries() == TargetKind::Datagram
    }

    fn machine(&self) -> Result<AnyStreamTunnel, Error> {
        let (protocol, profile) = match self {
            Self::Connect => (protocols::classic(), None),
            Self::Templated {
                protocol, profile, ..
            } => (*protocol, Some(profile)),
        };
        let make = protocol.tunnel;
        let make = make.ok_or(Error::Usage("the protocol carries no byte stream"))?;
        Ok(make(profile))
    }
}

/// What is asked of the proxy, before a version gives it shape.
struct Wanted {
    /// Request target: `host:port` for CONNECT, else path and query.
    target: String,
    /// Token of a templated protocol.
    token: Option<String>,
    fields: HeaderMap,
    /// HTTP datagrams are what the tunnel carries.
    datagrams: bool,
}

impl Wanted {
    fn new(proxy: &Proxy, form: &Form, host: &str, port: u16) -> Self {
        let datagrams = form.carries() == TargetKind::Datagram;
        let mut fields = HeaderMap::new();
        let mut put = |name, value: &Option<HeaderValue>| {
            if let Some(value) = value {
                fields.insert(name, value.clone());
            }
        };
        match form {
            Form::Connect => {
                put(PROXY_AUTHORIZATION, &proxy.credentials);
                let target = if host.contains(':') {
                    format!("[{host}]:{port}")
                } else {
                    format!("{host}:{port}")
                };
                Self {
                    target,
                    token: None,
                    fields,
                    datagrams,
                }
            }
            //= connect-tcp §3 expand-into-uri
            Form::Templated {
                protocol,
                template,
                profile,
            } => {
                put(AUTHORIZATION, &proxy.credentials);
                if protocol.capsule_protocol {
                    //= connect-tcp §3.1 h1-request-capsule-protocol
                    //= rfc9297 §3.4 field-sent
                    put(CAPSULE_PROTOCOL, &Some(HeaderValue::from_static("?1")));
                }
                Self {
                    target: template.expand_path(host, port),
                    token: Some(profile.token.clone().into_owned()),
                    fields,
                    datagrams,
                }
            }
        }
    }
}

/// A final answer that opens no tunnel.
#[derive(Debug, Clone)]
pub struct Refused {
    /// HTTP status.
    pub status: u16,
    /// Header fields, `Proxy-Status` among them.
    pub fields: HeaderMap,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// TCP or TLS towards the proxy.
    #[error("connection to the proxy: {0}")]
    Io(#[from] io::Error),
    /// HTTP/2 towards the proxy.
    #[error("HTTP/2: {0}")]
    H2(#[from] ::h2::Error),
    /// QUIC towards the proxy.
    #[error("QUIC: {0}")]
    Quic(String),
    /// The proxy answered, but not with a tunnel.
    #[error("the proxy refused with status {}", .0.status)]
    Refused(Box<Refused>),
    /// The proxy broke a rule of HTTP.
    #[error("the proxy broke the protocol: {0}")]
    Protocol(&'static str),
    /// It was asked for something that cannot be.
    #[error("{0}")]
    Usage(&'static str),
}

/// A client of one proxy over one HTTP version: a connection that all tunnels share (h2, h3), or one a tunnel (h1).
#[derive(Debug)]
pub struct Client {
    proxy: Proxy,
    connection: Connection,
    /// HTTP/1.1: how long each tunnel's connection may take, TLS included.
    patience: Option<Duration>,
}

#[derive(Debug)]
enum Connection {
    H1,
    H2(h2::Connection),
    H3(h3::Connection),
}

impl Client {
    /// Connects; HTTP/1.1 waits for [`open`](Self::open).
    ///
    /// # Errors
    /// [`Error`], if the proxy cannot be reached or does not speak the version.
    pub async fn connect(proxy: Proxy, http: Http) -> Result<Self, Error> {
        let connection = match http {
            Http::H1 => Connection::H1,
            Http::H2 => Connection::H2(h2::Connection::open(&proxy).await?),
            Http::H3 => Connection::H3(h3::Connection::open(&proxy).await?),
        };
        Ok(Self {
            proxy,
            connection,
            patience: None,
        })
    }

    /// Connects by TCP and takes HTTP/2 or else HTTP/1.1, as the proxy wants it by ALPN.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub async fn negotiate(proxy: Proxy) -> Result<Self, Error> {
        let connection = h2::Connection::negotiate(&proxy, &[b"h2", b"http/1.1"]).await?;
        let connection = connection.map_or(Connection::H1, Connection::H2);
        Ok(Self {
            proxy,
            connection,
            patience: None,
        })
    }

    /// Bounds how long the connections that are still to be made may take.
    fn patient(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// The version spoken.
    #[must_use]
    pub fn http(&self) -> Http {
        match &self.connection {
            Connection::H1 => Http::H1,
            Connection::H2(_) => Http::H2,
            Connection::H3(_) => Http::H3,
        }
    }

    /// Whether there is any hope that another tunnel can be opened.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        match &self.connection {
            Connection::H1 => true,
            Connection::H2(connection) => !connection.is_over(),
            Connection::H3(connection) => !connection.is_over(),
        }
    }

    /// Opens a tunnel to `host` (a name, or an address without brackets) and `port`.
    ///
    /// # Errors
    /// [`Error::Refused`] with the proxy's answer, or whatever else went wrong.
    pub async fn open(&self, form: &Form, host: &str, port: u16) -> Result<Tunnel, Error> {
        let machine = form.machine()?;
        Ok(Tunnel::new(self.request(form, host, port).await?, machine))
    }

    /// Opens a tunnel of datagrams to `host` (a name, or an address without brackets) and `port`.
    ///
    /// # Errors
    /// [`Error::Refused`] with the proxy's answer, or whatever else went wrong.
    pub async fn open_datagrams(
        &self,
        form: &Form,
        host: &str,
        port: u16,
    ) -> Result<DatagramTunnel, Error> {
        if form.carries() != TargetKind::Datagram {
            return Err(Error::Usage("the protocol carries no datagrams"));
        }
        Ok(DatagramTunnel::new(self.request(form, host, port).await?))
    }

    async fn request(&self, form: &Form, host: &str, port: u16) -> Result<Opened, Error> {
        let wanted = Wanted::new(&self.proxy, form, host, port);
        match &self.connection {
            Connection::H1 => h1::open(&self.proxy, wanted, self.patience).await,
            Connection::H2(connection) => connection.open_tunnel(&self.proxy, wanted).await,
            Connection::H3(connection) => connection.open_tunnel(&self.proxy, wanted).await,
        }
    }
}

/// What a version hands over once the proxy agreed.
struct Opened {
    fields: HeaderMap,
    recv: Recv,
    send: Send,
    /// HTTP/3: held as long as one of the halves.
    open: Option<Rc<h3::OpenRequest>>,
}

impl Opened {
    fn new(fields: HeaderMap, recv: Recv, send: Send) -> Self {
        Self {
            fields,
            recv,
            send,
            open: None,
        }
    }
}

/// Refuses statuses and fields that open no tunnel.
fn check(status: u16, fields: HeaderMap) -> Result<HeaderMap, Error> {
    match status {
        //= rfc9297 §3.2 no-204-205-206
        204..=206 => Err(Error::Protocol("the status opens no tunnel")),
        200..=299 => Ok(fields),
        _ => Err(Error::Refused(Box::new(Refused { status, fields }))),
    }
}

#[cfg(test)]
mod tests;
