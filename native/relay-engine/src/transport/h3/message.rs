//! Requests and responses as field sections (RFC 9114 §4.2–§4.5, RFC 9220 §3).

use http::header::{CONTENT_LENGTH, HOST, TE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::code::{Code, Fault};
use super::frame::put_headers;
use super::qpack::{self, Line};

/// A message that breaks the rules of HTTP/3: resets the stream, and nothing else.
//= rfc9114 §4.1.2 malformed-request
pub const MALFORMED: Fault = Fault::Stream(Code::MESSAGE_ERROR);

/// The head of a request. Which parts are present follows from the method, as RFC 9114 §4.3.1 and RFC 8441 §4 say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `:method`, a token.
    pub method: String,
    /// `:scheme`.
    pub scheme: Option<String>,
    /// `:authority`; if a Host field came too, they agree.
    pub authority: Option<String>,
    /// `:path`.
    pub path: Option<String>,
    /// `:protocol` of an extended CONNECT.
    pub protocol: Option<String>,
    /// The other fields.
    pub fields: HeaderMap,
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// `:status`, 100–599 but 101.
    pub status: u16,
    /// The other fields.
    pub fields: HeaderMap,
}

impl Response {
    /// Whether another response follows.
    #[must_use]
    pub const fn is_interim(&self) -> bool {
        self.status < 200
    }
}

/// Makes a request of a decoded field section.
///
/// # Errors
/// [`MALFORMED`].
pub fn request(lines: Vec<Line>) -> Result<Request, Fault> {
    let mut pseudo: [Option<String>; 5] = Default::default();
    let fields = split(lines, |name, value| {
        let slot = match name {
            b":method" => 0,
            b":scheme" => 1,
            b":authority" => 2,
            b":path" => 3,
            b":protocol" => 4,
            _ => return None,
        };
        pseudo[slot].replace(value).is_none().then_some(())
    })?;
    let [method, scheme, authority, path, protocol] = pseudo;
    let request = Request {
        method: method.ok_or(MALFORMED)?,
        scheme,
        authority,
        path,
        protocol,
        fields,
    };
    if is_well_formed(&request) {
        Ok(request)
    } else {
        Err(MALFORMED)
    }
}

/// Makes a response of a decoded field section.
///
/// # Errors
/// [`MALFORMED`].
pub fn response(lines: Vec<Line>) -> Result<Response, Fault> {
    let mut status = None;
    let fields = split(lines, |name, value| {
        if name != b":status" || status.is_some() {
            return None;
        }
        let digits = value.len() == 3 && value.bytes().all(|byte| byte.is_ascii_digit());
        status = Some(value.parse().ok().filter(|_| digits)?);
        Some(())
    })?;
    match status {
        // 101 has no meaning in HTTP/3 (RFC 9114 §4.5).
        Some(status @ (100 | 102..=599)) => Ok(Response { status, fields }),
        _ => Err(MALFORMED),
    }
}

/// Checks and takes trailers.
///
/// # Errors
/// [`MALFORMED`] for any pseudo-header field and for whatever a head may not hold either.
pub fn trailers(lines: Vec<Line>) -> Result<HeaderMap, Fault> {
    split(lines, |_, _| None)
}

/// Appends a HEADERS frame with a request.
pub fn put_request(request: &Request, out: &mut Vec<u8>) {
    let pseudo = [
        (":method", Some(&request.method)),
        (":protocol", request.protocol.as_ref()),
        (":scheme", request.scheme.as_ref()),
        (":authority", request.authority.as_ref()),
        (":path", request.path.as_ref()),
    ];
    let pseudo = pseudo
        .iter()
        .filter_map(|(name, value)| value.map(|value| (name.as_bytes(), value.as_bytes())));
    put_headers(&qpack::encode(pseudo.chain(lines(&request.fields))), out);
}

/// Appends a HEADERS frame with a response; fields keep their order.
pub fn put_response<'a>(
    status: u16,
    fields: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>,
    out: &mut Vec<u8>,
) {
    let status = status.to_string();
    let fields = fields
        .into_iter()
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    let head = [(&b":status"[..], status.as_bytes())];
    put_headers(&qpack::encode(head.into_iter().chain(fields)), out);
}

fn lines(fields: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    fields
        .iter()
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

/// Gives pseudo-header fields, which must come first, to `pseudo`, and makes a map of the others.
fn split(
    lines: Vec<Line>,
    mut pseudo: impl FnMut(&[u8], String) -> Option<()>,
) -> Result<HeaderMap, Fault> {
    let mut fields = HeaderMap::with_capacity(lines.len());
    for (name, value) in lines {
        if name.first() == Some(&b':') {
            let text = String::from_utf8(value.into_owned()).map_err(|_| MALFORMED)?;
            if !fields.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(MALFORMED);
            }
            pseudo(&name, text).ok_or(MALFORMED)?;
        } else {
            // `from_lowercase` takes tokens without capitals, `from_bytes` no control but HTAB.
            let name = HeaderName::from_lowercase(&name).map_err(|_| MALFORMED)?;
            let value = HeaderValue::from_bytes(value.trim_ascii()).map_err(|_| MALFORMED)?;
            if is_forbidden(&name, &value) {
                return Err(MALFORMED);
            }
            fields.try_append(name, value).map_err(|_| MALFORMED)?;
        }
    }
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
        if !digits || lengths.any(|other| other != length) {
            return Err(MALFORMED);
        }
    }
    Ok(fields)
}

/// Fields that speak about an HTTP/1.1 connection (RFC 9114 §4.2).
fn is_forbidden(name: &HeaderName, value: &HeaderValue) -> bool {
    match name.as_str() {
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => true,
        _ => name == TE && !value.as_bytes().eq_ignore_ascii_case(b"trailers"),
    }
}

fn is_well_formed(request: &Request) -> bool {
    if HeaderName::from_bytes(request.method.as_bytes()).is_err() {
        return false;
    }
    //= rfc9114 §4.3.1 authority-and-host
    // Host and :authority must agree (RFC 9114 §4.3.1).
    let mut hosts = request.fields.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return false;
    }
    if let (Some(host), Some(authority)) = (host, &request.authority)
        && !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes())
    {
        return false;
    }
    let connect = request.method == "CONNECT";
    //= rfc9114 §4.4 connect-pseudo-fields
    if connect && request.protocol.is_none() {
        return request.scheme.is_none()
            && request.path.is_none()
            && request.authority.as_ref().is_some_and(|it| !it.is_empty());
    }
    if !connect && request.protocol.is_some() {
        return false;
    }
    //= rfc8441 §4 pseudo-fields
    let (Some(scheme), Some(path)) = (&request.scheme, &request.path) else {
        return false;
    };
    let web = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
    let authority = match (&request.authority, host) {
        (Some(authority), _) => Some(authority.as_bytes()),
        // An extended CONNECT has :authority in any case (RFC 8441 §4).
        (None, Some(host)) if request.protocol.is_none() => Some(host.as_bytes()),
        _ => None,
    };
    is_scheme(scheme)
        && request.protocol.as_ref().is_none_or(|it| !it.is_empty())
        && if web {
            let path_fits = path.starts_with('/') || (path == "*" && request.method == "OPTIONS");
            path_fits && authority.is_some_and(|it| !it.is_empty() && !it.contains(&b'@'))
        } else {
            authority.is_some() || request.protocol.is_none()
        }
}

fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
