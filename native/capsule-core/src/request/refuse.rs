//! The answers of this module.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::{Route, Routes};
use crate::protocols::TargetKind;
use crate::proxy_status::ProxyError;
use crate::reject::Reject;
use crate::target::TargetError;

/// 400 for a head that breaks the rules.
//= connect-tcp §3.1 refuse-with-4xx
pub(super) fn malformed(detail: impl Into<String>) -> Reject {
    Reject::new(400, "Bad Request", detail).with_error(ProxyError::HttpRequestError)
}

/// 400 for a target that cannot be read.
//= rfc9298 §3.1 bad-request
pub(super) fn target(fault: TargetError) -> Reject {
    malformed(fault.to_string())
}

/// 404 for a path that belongs to nothing.
pub(super) fn not_found() -> Reject {
    Reject::new(404, "Not Found", "there is no such resource here")
}

/// 405 for a method that a tunnel resource does not take.
//= rfc9110 §15.5.6 method-not-allowed
pub(super) fn method(allow: &'static str) -> Reject {
    Reject::new(
        405,
        "Method Not Allowed",
        "this resource opens tunnels and takes no other request",
    )
    .with_error(ProxyError::HttpRequestError)
    .with_field("allow", allow)
}

/// 426 for a request that must ask for one of the protocols of these routes.
//= rfc9110 §15.5.22 upgrade-required
pub(super) fn upgrade_required<'r>(
    routes: impl Iterator<Item = &'r Route>,
    detail: &'static str,
) -> Reject {
    let mut tokens: Vec<&str> = Vec::new();
    for profile in routes.flat_map(|route| &route.profiles) {
        if !tokens.contains(&profile.token.as_ref()) {
            tokens.push(&profile.token);
        }
    }
    Reject::new(426, "Upgrade Required", detail)
        .with_error(ProxyError::HttpRequestError)
        .with_field("upgrade", tokens.join(", "))
}

/// 501 for a method that is not known.
pub(super) fn unknown_method() -> Reject {
    Reject::new(
        501,
        "Not Implemented",
        "this request method is not implemented",
    )
}

/// 501 for a `:protocol` that is not served anywhere.
//= rfc9220 §3 unknown-protocol
pub(super) fn unknown_protocol() -> Reject {
    Reject::new(501, "Not Implemented", "this :protocol is not implemented")
}

/// 501 for classic CONNECT while it is off.
//= connect-tcp §5.2 templated-only-answers
pub(super) fn no_connect() -> Reject {
    Reject::new(
        501,
        "Not Implemented",
        "CONNECT without :protocol is not served here",
    )
}

/// The answer over HTTP/1.x to classic CONNECT while it is off.
//= connect-tcp §5.2 templated-only-answers
pub(super) fn no_connect_h1(routes: &Routes) -> Reject {
    let stream = |route: &&Route| route.protocol.target == TargetKind::Stream;
    if !routes.templated.iter().any(|route| stream(&route)) {
        return Reject::new(501, "Not Implemented", "CONNECT is not served here");
    }
    upgrade_required(
        routes.templated.iter().filter(stream),
        "CONNECT is not served here; use the protocols named by Upgrade",
    )
}
