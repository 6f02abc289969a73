//! HTTP/2: one connection, ALPN or prior knowledge.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::ext::Protocol;
use h2::{Ping, PingPong};
use http::{Method, Request, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::{Error, Opened, Proxy, Recv, Send, Wanted, check, tls};
use crate::pool::Allowance;
use crate::transport::h2::gather::gather;
use crate::transport::h2::{H2Recv, H2Send, UNSENT};
use crate::transport::tls::connect;

/// What the proxy may send on one stream before it is taken.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Larger frames cost both sides less (the least that can be offered is 16 KiB).
const MAX_FRAME: u32 = 256 << 10;

/// An HTTP/2 connection to a proxy; it ends when this and the last tunnel are gone.
#[derive(Debug)]
pub(super) struct Connection {
    requests: SendRequest<Bytes>,
    allowance: Allowance,
    over: Rc<Cell<bool>>,
}

impl Connection {
    pub(super) async fn open(proxy: &Proxy) -> Result<Self, Error> {
        match Self::negotiate(proxy, &[b"h2"]).await? {
            Some(connection) => Ok(connection),
            None => Err(Error::Protocol("the proxy did not agree to h2")),
        }
    }

    /// Connects and offers `protocols` by ALPN; `None`: the proxy took another one than h2, or none. In the clear it is not asked.
    pub(super) async fn negotiate(
        proxy: &Proxy,
        protocols: &[&[u8]],
    ) -> Result<Option<Self>, Error> {
        let frame = proxy.max_frame.unwrap_or(MAX_FRAME);
        let wire = proxy.dial().await?;
        match &proxy.tls {
            None => Self::start(wire, frame).await.map(Some),
            Some(config) => {
                let config = Arc::new(tls::with_alpn(config, protocols));
                let name = proxy.server_name()?;
                let (stream, agreed) = connect(config, name, wire).await?;
                if agreed.alpn.as_deref() != Some(b"h2") {
                    return Ok(None);
                }
                Self::start(stream, frame).await.map(Some)
            }
        }
    }

    /// Whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    async fn start<I>(io: I, max_frame: u32) -> Result<Self, Error>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let mut builder = Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(max_frame)
            .max_header_list_size(32 << 10)
            .max_send_buffer_size(256 << 10)
            .enable_push(false);
        let over = Rc::new(Cell::new(false));
        let ended = over.clone();
        let (tell, told) = oneshot::channel();
        spawn_local(gather(io, |io| async move {
            match builder.handshake(io).await {
                Ok((requests, mut connection)) => {
                    let _ = tell.send(Ok((requests, connection.ping_pong())));
                    // Its end shows on every stream.
                    let _ = connection.await;
                    ended.set(true);
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        }));
        let told = told.await;
        let (requests, ping) =
            told.map_err(|_| Error::Protocol("the connection was given up"))??;
        // SETTINGS are the first frame of the server, so a PONG comes after them; extended CONNECT depends on them.
        if let Some(ping) = ping {
            settled(ping).await?;
        }
        Ok(Self {
            requests,
            allowance: Allowance::new(UNSENT),
            over,
        })
    }

    pub(super) async fn open_tunnel(&self, proxy: &Proxy, wanted: Wanted) -> Result<Opened, Error> {
        const BAD: Error = Error::Usage("the target makes no valid URI");
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.headers_mut() = wanted.fields;
        match &wanted.token {
            None => *request.uri_mut() = wanted.target.parse().map_err(|_| BAD)?,
            //= connect-tcp §3.2 path-and-scheme
            Some(token) => {
                if !self.requests.is_extended_connect_protocol_enabled() {
                    return Err(Error::Protocol("the proxy does not offer extended CONNECT"));
                }
                *request.uri_mut() = Uri::builder()
                    .scheme(proxy.scheme())
                    .authority(proxy.authority.as_str())
                    .path_and_query(wanted.target.as_str())
                    .build()
                    .map_err(|_| BAD)?;
                request
                    .extensions_mut()
                    .insert(Protocol::from(token.as_str()));
            }
        }
        let mut requests = self.requests.clone().ready().await?;
        let (response, stream) = requests.send_request(request, false)?;
        // The crate deals with interim answers.
        let (head, body) = response.await?.into_parts();
        let fields = check(head.status.as_u16(), head.headers)?;
        Ok(Opened::new(
            fields,
            Recv::H2(H2Recv::new(body)),
            Send::H2(H2Send::new(stream, self.allowance.clone())),
        ))
    }
}

async fn settled(mut ping: PingPong) -> Result<(), Error> {
    ping.ping(Ping::opaque()).await?;
    Ok(())
}
