//! From a request head to a tunnel request or the answer that refuses it.

use alloc::string::String;
use alloc::vec::Vec;

use crate::fields::Fields;
use crate::protocols::{Profile, Protocol};
use crate::reject::Reject;
use crate::target::Target;
use crate::template::Template;
use crate::tunnel::AnyStreamTunnel;

/// The HTTP version a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0
    H1_0,
    /// HTTP/1.1
    H1_1,
    /// HTTP/2
    H2,
    /// HTTP/3
    H3,
}

/// A request head as the transport read it.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// HTTP version.
    pub version: Version,
    /// Method, as written.
    pub method: &'a str,
    /// `:scheme` (H2, H3).
    pub scheme: Option<&'a str>,
    /// `:authority` (H2, H3).
    pub authority: Option<&'a str>,
    /// `:path` (H2, H3); the request target as written (H1).
    pub path: Option<&'a str>,
    /// `:protocol` (H2, H3).
    pub protocol: Option<&'a str>,
    /// Header fields.
    pub fields: &'a dyn Fields,
}

/// What is served where.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// Classic CONNECT is on.
    pub connect: bool,
    /// Templated protocols; the first that matches a path wins.
    pub templated: Vec<Route>,
}

/// One templated protocol at one template.
#[derive(Debug, Clone)]
pub struct Route {
    /// Row of the protocol table.
    pub protocol: &'static Protocol,
    /// Where it is served.
    pub template: Template,
    /// Under which tokens, in order of preference; not empty.
    pub profiles: Vec<Profile>,
}

/// How missing or wrong credentials are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Challenge {
    /// 401 with `WWW-Authenticate`.
    Origin,
    /// 407 with `Proxy-Authenticate`.
    Proxy,
}

/// A request for a tunnel.
#[derive(Debug, Clone)]
pub struct Request {
    /// Row of the protocol table.
    pub protocol: &'static Protocol,
    /// The token to echo in an HTTP/1.1 `Upgrade` field, as configured; `None` for classic CONNECT.
    pub token: Option<String>,
    /// The capsule types in use; `None` for classic CONNECT.
    pub profile: Option<Profile>,
    /// The target, or the answer to its fault: due only after credentials were found good.
    pub target: Result<Target, Reject>,
    /// `Expect: 100-continue` was sent.
    pub expect_continue: bool,
    /// How missing or wrong credentials are answered.
    pub auth_kind: Challenge,
    /// HTTP/1.x: every refusal of this request closes the connection (RFC 9931 on classic CONNECT).
    pub close_on_reject: bool,
}

impl Request {
    /// A fresh machine for the tunnel.
    #[must_use]
    pub fn tunnel(&self) -> AnyStreamTunnel {
        (self.protocol.tunnel)(self.profile.as_ref())
    }
}

/// Judges a request head.
///
/// # Errors
/// The answer, when the request is for no tunnel that is served here. A fault of the target alone is inside `Ok`.
pub fn parse(routes: &Routes, head: &Head<'_>) -> Result<Request, Reject> {
    let _ = (routes, head);
    Err(Reject::new(
        404,
        "Not Found",
        "there is no such resource here",
    ))
}
