//! HTTP/1.1: a connection a tunnel.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::{Error, Opened, Proxy, Recv, Send, Wanted, check, tls};
use crate::transport::h1::{Io, clear_halves, secure_halves};
use crate::transport::tls::connect;
use crate::transport::wire::Wire;

/// The longest response head.
const MOST: usize = 32 * 1024;

/// A request on its way. Given up before there is an answer, it is a RST: FIN would only tell the proxy that nothing more is sent.
struct Unanswered(Option<Wire>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(wire) = &self.0 {
            wire.reset_on_close();
        }
    }
}

/// `patience`: how long it may take until there is a connection to ask on.
pub(super) async fn open(
    proxy: &Proxy,
    wanted: Wanted,
    patience: Option<Duration>,
) -> Result<Opened, Error> {
    let until = patience.map(|patience| Instant::now() + patience);
    let wire = within(until, proxy.dial()).await?;
    let mut unanswered = Unanswered(Some(wire.clone()));
    let opened = ask(proxy, wanted, wire, until).await;
    unanswered.0 = None;
    opened
}

async fn within<T, E: Into<Error>>(
    until: Option<Instant>,
    reach: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    let Some(until) = until else {
        return reach.await.map_err(Into::into);
    };
    match timeout_at(until, reach).await {
        Ok(reached) => reached.map_err(Into::into),
        Err(_) => Err(io::Error::from(ErrorKind::TimedOut).into()),
    }
}

async fn ask(
    proxy: &Proxy,
    wanted: Wanted,
    mut wire: Wire,
    until: Option<Instant>,
) -> Result<Opened, Error> {
    let request = render(proxy, &wanted);
    match &proxy.tls {
        None => {
            let (fields, early) = exchange(&mut wire, &request, &wanted).await?;
            let (recv, send) = clear_halves(wire, early.freeze());
            Ok(Opened::new(fields, Recv::Clear(recv), Send::Clear(send)))
        }
        Some(config) => {
            let config = Arc::new(tls::with_alpn(config, &[b"http/1.1"]));
            let name = proxy.server_name()?;
            let (mut stream, _) = within(until, connect(config, name, wire)).await?;
            let (fields, early) = exchange(&mut stream, &request, &wanted).await?;
            let (recv, send) = secure_halves(stream, early.freeze());
            Ok(Opened::new(fields, Recv::Secure(recv), Send::Secure(send)))
        }
    }
}

fn render(proxy: &Proxy, wanted: &Wanted) -> Vec<u8> {
    let target = &wanted.target;
    let mut head = match &wanted.token {
        None => format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n"),
        //= connect-tcp §3.1 h1-target
        Some(token) => format!(
            "GET {target} HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: {token}\r\n",
            proxy.authority
        ),
    };
    for (name, value) in &wanted.fields {
        let _ = write!(
            head,
            "{name}: {}\r\n",
            String::from_utf8_lossy(value.as_bytes())
        );
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// Sends the request and reads up to the answer that counts. Nothing of the tunnel is sent before it (RFC 9931 §8).
//= connect-tcp §4.1 h1-not-optimistic
//= rfc9931 §8 client-waits
async fn exchange<I: Io>(
    io: &mut I,
    request: &[u8],
    wanted: &Wanted,
) -> Result<(HeaderMap, BytesMut), Error> {
    io.write_all(request).await?;
    io.flush().await?;
    let mut buffer = BytesMut::with_capacity(4096);
    loop {
        let Some((status, fields)) = parse(&mut buffer)? else {
            if buffer.len() >= MOST {
                return Err(Error::Protocol("the response head is too large"));
            }
            if io.read_buf(&mut buffer).await? == 0 {
                return Err(Error::Protocol("the connection ended before an answer"));
            }
            continue;
        };
        return match (status, &wanted.token) {
            (101, Some(token)) if switches_to(&fields, token) => Ok((fields, buffer)),
            (101, _) => Err(Error::Protocol("101 for a protocol that was not asked for")),
            (100..=199, _) => continue,
            // A 2xx to an Upgrade is an answer of the resource, no tunnel.
            (200..=299, Some(_)) => Err(Error::Protocol("the proxy did not upgrade")),
            _ => Ok((check(status, fields)?, buffer)),
        };
    }
}

fn switches_to(fields: &HeaderMap, token: &str) -> bool {
    let mut tokens = fields.get_all(http::header::UPGRADE).iter();
    let only = tokens.next().and_then(|value| value.to_str().ok());
    tokens.next().is_none() && only.is_some_and(|only| only.trim().eq_ignore_ascii_case(token))
}

/// Takes a response head from the front of `buffer`; `None` = more bytes are needed.
fn parse(buffer: &mut BytesMut) -> Result<Option<(u16, HeaderMap)>, Error> {
    const BAD: Error = Error::Protocol("the response head is malformed");
    let mut lines = [httparse::EMPTY_HEADER; 100];
    let mut response = httparse::Response::new(&mut lines);
    let size = match response.parse(buffer).map_err(|_| BAD)? {
        httparse::Status::Complete(size) => size,
        httparse::Status::Partial => return Ok(None),
    };
    let status = response.code.ok_or(BAD)?;
    let mut fields = HeaderMap::new();
    for line in response.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| BAD)?;
        let value = HeaderValue::from_bytes(line.value).map_err(|_| BAD)?;
        fields.append(name, value);
    }
    let _ = buffer.split_to(size);
    Ok(Some((status, fields)))
}
