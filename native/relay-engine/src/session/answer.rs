//! What answers are made of: `Proxy-Status`, challenges, problem documents.

use std::net::{IpAddr, SocketAddr};

use capsule_core::connect_udp_bind;
use capsule_core::ecn_dscp::Assignment;
use capsule_core::ecn_dscp_context_id;
use capsule_core::proxy_public_address;
use capsule_core::proxy_status::{self, ProxyError, ProxyStatus};
use capsule_core::reject::Reject;
use capsule_core::request::Challenge;
use http::header::{self, HeaderName, HeaderValue};

use crate::transport::Refusal;

/// How the relay calls itself in `Proxy-Status`.
const NAME: &str = "capsule-relay";

pub(super) fn title(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Refused")
}

/// `Proxy-Status` of a tunnel that opened.
//= connect-tcp §4.2 proxy-status
//= rfc9209 §2.1.2 next-hop
pub(super) fn next_hop(address: Option<IpAddr>) -> (HeaderName, HeaderValue) {
    let next_hop = address.map(|address| address.to_canonical().to_string());
    let status = ProxyStatus {
        name: NAME,
        next_hop: next_hop.as_deref(),
        ..ProxyStatus::default()
    };
    (
        HeaderName::from_static(proxy_status::NAME),
        value(&status.to_field()),
    )
}

/// What tells the client that its tunnel is bound, and where the outside reaches it.
//= connect-udp-bind §6 both-say-so
//= connect-udp-bind §7 public-address
pub(super) fn bound(public: &[SocketAddr]) -> [(HeaderName, HeaderValue); 2] {
    [
        (
            HeaderName::from_static(connect_udp_bind::NAME),
            HeaderValue::from_static(connect_udp_bind::TRUE),
        ),
        (
            HeaderName::from_static(proxy_public_address::NAME),
            value(&proxy_public_address::to_field(public)),
        ),
    ]
}

/// What tells the client that marks are carried, and which contexts the relay has for them.
//= connect-udp-ecn-dscp §3.1.1 both-say-so
pub(super) fn marks(assigned: &[Assignment]) -> (HeaderName, HeaderValue) {
    (
        HeaderName::from_static(ecn_dscp_context_id::NAME),
        value(&ecn_dscp_context_id::to_field(assigned)),
    )
}

pub(super) fn date() -> HeaderValue {
    value(&httpdate::fmt_http_date(std::time::SystemTime::now()))
}

pub(super) fn value(text: &str) -> HeaderValue {
    // What a field cannot hold is left out rather than sent.
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

pub(super) fn challenge(kind: Challenge, realm: &str) -> Vec<(HeaderName, HeaderValue)> {
    let name = match kind {
        Challenge::Origin => header::WWW_AUTHENTICATE,
        Challenge::Proxy => header::PROXY_AUTHENTICATE,
    };
    let quoted: String = realm
        .chars()
        .flat_map(|c| {
            matches!(c, '"' | '\\')
                .then_some('\\')
                .into_iter()
                .chain([c])
        })
        .collect();
    vec![
        (
            name.clone(),
            value(&format!("Basic realm=\"{quoted}\", charset=\"UTF-8\"")),
        ),
        (name, value(&format!("Bearer realm=\"{quoted}\""))),
    ]
}

/// Makes the answer: a problem document (RFC 9457) and `Proxy-Status`.
pub fn refusal(
    reject: &Reject,
    rcode: Option<&str>,
    further: &[(HeaderName, HeaderValue)],
) -> Refusal {
    //= connect-tcp §4.2 proxy-status
    let status = ProxyStatus {
        name: NAME,
        error: Some(reject.error.unwrap_or(ProxyError::HttpRequestError)),
        rcode,
        ..ProxyStatus::default()
    };
    let mut fields = vec![
        //= rfc9110 §6.6.1 date
        (header::DATE, date()),
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        ),
        (
            HeaderName::from_static(proxy_status::NAME),
            value(&status.to_field()),
        ),
    ];
    for (name, text) in &reject.fields {
        fields.push((HeaderName::from_static(name), value(text)));
    }
    fields.extend_from_slice(further);
    Refusal {
        status: reject.status,
        fields,
        body: reject.problem().into(),
        close: reject.close,
    }
}
