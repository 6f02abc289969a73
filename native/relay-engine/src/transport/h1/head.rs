//! Reading a request head, strictly: what two parsers could read in two ways is refused.

use bytes::{Buf, BytesMut};
use capsule_core::request::Version;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use crate::transport::RequestHead;

/// The longest head.
pub const MOST: usize = 32 * 1024;
/// The most header fields.
const FIELDS: usize = 100;

/// A request head and how its body, if any, is framed.
#[derive(Debug)]
pub struct Parsed {
    /// The head.
    pub head: RequestHead,
    /// Content follows: the connection cannot be used for another request unless it is read.
    pub has_body: bool,
    /// The client wants the connection to end after the answer.
    pub close: bool,
}

/// Why there is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The client ended or broke the connection between requests.
    #[error("the connection ended")]
    Ended,
    /// The head did not arrive in time.
    #[error("the request head took too long")]
    TooSlow,
    /// The head is longer than [`MOST`] or has more than 100 fields.
    #[error("the request head is too large")]
    TooLarge,
    /// An HTTP version other than 1.0 and 1.1.
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken here")]
    Version,
    /// A transfer coding other than chunked.
    #[error("the transfer coding is not supported")]
    Coding,
    /// Anything else that is not a request head.
    #[error("{0}")]
    Malformed(&'static str),
}

impl HeadError {
    /// The answer's status; `None` when there is nobody to answer.
    pub fn status(self) -> Option<u16> {
        match self {
            HeadError::Ended => None,
            HeadError::TooSlow => Some(408),
            HeadError::TooLarge => Some(431),
            HeadError::Version => Some(505),
            HeadError::Coding => Some(501),
            HeadError::Malformed(_) => Some(400),
        }
    }
}

/// Reads up to the end of the head, not longer than `until`; what follows stays in `buffer`. Safe to drop and call again.
pub async fn read<I: AsyncRead + Unpin>(
    io: &mut I,
    buffer: &mut BytesMut,
    until: Instant,
) -> Result<Parsed, HeadError> {
    let reading = async {
        let mut scanned = 0;
        loop {
            // Empty lines before the request line are tolerated (RFC 9112 §2.2), but they count.
            if scanned == 0 {
                while buffer.starts_with(b"\r\n") {
                    buffer.advance(2);
                }
            }
            match scan(buffer, scanned)? {
                Some(end) => return parse(&buffer.split_to(end)),
                None => scanned = buffer.len().saturating_sub(3),
            }
            if buffer.len() >= MOST {
                return Err(HeadError::TooLarge);
            }
            buffer.reserve(4096);
            match io.read_buf(buffer).await {
                Ok(0) if buffer.is_empty() => return Err(HeadError::Ended),
                Ok(0) => return Err(HeadError::Malformed("the request head is incomplete")),
                Ok(_) => {}
                Err(_) => return Err(HeadError::Ended),
            }
        }
    };
    timeout_at(until, reading)
        .await
        .unwrap_or(Err(HeadError::TooSlow))
}

/// Finds the end of the head; `from` was looked at before.
fn scan(bytes: &[u8], from: usize) -> Result<Option<usize>, HeadError> {
    for at in from..bytes.len().min(MOST) {
        match bytes[at] {
            //= rfc9112 §2.2 bare-lf
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => {
                return Err(HeadError::Malformed("a line ends in LF without CR"));
            }
            b'\n' if at >= 3 && bytes[at - 3..at] == *b"\r\n\r" => return Ok(Some(at + 1)),
            //= rfc9112 §5.2 obs-fold
            b' ' | b'\t' if at >= 1 && bytes[at - 1] == b'\n' => {
                return Err(HeadError::Malformed("a header field is folded over lines"));
            }
            //= rfc9112 §2.2 bare-lf
            byte if byte != b'\n' && at >= 1 && bytes[at - 1] == b'\r' => {
                return Err(HeadError::Malformed("a CR stands alone"));
            }
            0 => return Err(HeadError::Malformed("the head contains a NUL")),
            _ => {}
        }
    }
    Ok(None)
}

/// Parses a complete head.
pub fn parse(bytes: &[u8]) -> Result<Parsed, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    //= rfc9112 §5.1 space-before-colon
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => {
            return Err(HeadError::Malformed("the request head is incomplete"));
        }
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(httparse::Error::Version) => return other_version(bytes),
        Err(_) => return Err(HeadError::Malformed("the request head cannot be parsed")),
    }
    let version = match request.version {
        Some(0) => Version::H1_0,
        Some(1) => Version::H1_1,
        _ => return Err(HeadError::Version),
    };
    let mut map = HeaderMap::with_capacity(request.headers.len());
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| HeadError::Malformed("a header field's name is not a token"))?;
        let value = HeaderValue::from_bytes(field.value)
            .map_err(|_| HeadError::Malformed("a header field's value has a control character"))?;
        map.append(name, value);
    }
    let has_body = body(&map, version)?;
    let close = ends(&map, version);
    Ok(Parsed {
        head: RequestHead {
            version,
            method: request.method.unwrap_or_default().to_owned(),
            scheme: None,
            authority: None,
            path: request.path.map(str::to_owned),
            protocol: None,
            fields: map,
        },
        has_body,
        close,
    })
}

/// A head that is not of HTTP/1.0 or HTTP/1.1 in so many letters.
//= rfc9110 §2.5 higher-minor
fn other_version(bytes: &[u8]) -> Result<Parsed, HeadError> {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or(bytes);
    let mut words = line.split(|byte| *byte == b' ').skip(2);
    match (words.next(), words.next()) {
        // A higher minor version is read as the highest that is known.
        (Some([b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9']), None) => {
            let mut known = bytes.to_vec();
            known[line.len() - 1] = b'1';
            parse(&known)
        }
        (Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None)
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(HeadError::Version)
        }
        _ => Err(HeadError::Malformed("the request line cannot be parsed")),
    }
}

/// Elements of a comma-separated list over all lines of a field.
fn elements<'a>(fields: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a [u8]> {
    fields
        .get_all(name)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
}

/// Tells whether content follows the head.
fn body(fields: &HeaderMap, version: Version) -> Result<bool, HeadError> {
    let mut length = None;
    for element in elements(fields, "content-length") {
        //= rfc9112 §6.3 length-conflict
        let digits = !element.is_empty() && element.iter().all(u8::is_ascii_digit);
        let value = digits
            .then(|| std::str::from_utf8(element).ok()?.parse::<u64>().ok())
            .flatten()
            .ok_or(HeadError::Malformed("Content-Length is not a number"))?;
        if length.is_some_and(|known| known != value) {
            return Err(HeadError::Malformed(
                "Content-Length is given twice and differs",
            ));
        }
        length = Some(value);
    }
    if fields.contains_key("transfer-encoding") {
        //= rfc9112 §6.3 length-conflict
        if length.is_some() {
            return Err(HeadError::Malformed(
                "Content-Length and Transfer-Encoding are both given",
            ));
        }
        if version == Version::H1_0 {
            return Err(HeadError::Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        let mut codings = elements(fields, "transfer-encoding");
        let chunked = codings
            .next()
            .is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
        if !chunked || codings.next().is_some() {
            return Err(HeadError::Coding);
        }
        return Ok(true);
    }
    Ok(length.is_some_and(|length| length > 0))
}

fn ends(fields: &HeaderMap, version: Version) -> bool {
    let says = |option: &[u8]| {
        elements(fields, "connection").any(|element| element.eq_ignore_ascii_case(option))
    };
    match version {
        Version::H1_0 => !says(b"keep-alive"),
        _ => says(b"close"),
    }
}
