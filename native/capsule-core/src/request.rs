//! From a request head to a tunnel request or the answer that refuses it.

mod h1;
mod multiplexed;
mod refuse;

use alloc::string::String;
use alloc::vec::Vec;

use crate::connect_udp_bind;
use crate::ecn_dscp::Assignment;
use crate::ecn_dscp_context_id;
use crate::fields::{self, Fields};
use crate::protocols::udp_bind::Role;
use crate::protocols::{self, Profile, Protocol};
use crate::reject::Reject;
use crate::target::{Target, TargetError};
use crate::template::{Captures, Template};
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
    /// Tunnels are bound for clients that ask for it (connect-udp).
    pub bind: bool,
    /// Marks of packets are carried for clients that ask for it (connect-udp).
    pub marks: bool,
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
    /// The client asks for a bound tunnel, and such are served. Its target may be [`Target::ANY`].
    pub bind: bool,
    /// The client asks for the marks of packets, and they are carried: the contexts that it assigns to some. Never of a bound tunnel.
    pub marks: Option<Vec<Assignment>>,
    /// `Expect: 100-continue` was sent.
    pub expect_continue: bool,
    /// How missing or wrong credentials are answered.
    pub auth_kind: Challenge,
    /// HTTP/1.x: every refusal of this request closes the connection (RFC 9931 on classic CONNECT).
    pub close_on_reject: bool,
}

impl Request {
    /// A fresh machine for the tunnel, where the target is a byte stream.
    #[must_use]
    pub fn tunnel(&self) -> Option<AnyStreamTunnel> {
        self.protocol.tunnel.map(|make| make(self.profile.as_ref()))
    }
}

/// Judges a request head.
///
/// # Errors
/// The answer, when the request is for no tunnel that is served here. A fault of the target alone is inside `Ok`.
pub fn parse(routes: &Routes, head: &Head<'_>) -> Result<Request, Reject> {
    match head.version {
        Version::H1_0 | Version::H1_1 => h1::parse(routes, head),
        Version::H2 | Version::H3 => multiplexed::parse(routes, head),
    }
}

impl Routes {
    /// The routes that a path belongs to, with its values.
    fn at<'r>(&'r self, path: &str) -> Vec<(&'r Route, Captures)> {
        let matched = |route: &'r Route| Some((route, route.template.matches(path)?));
        self.templated.iter().filter_map(matched).collect()
    }

    /// Whether a token is served at any path.
    fn serves(&self, token: &str) -> bool {
        let tokens = self.templated.iter().flat_map(|route| &route.profiles);
        tokens.into_iter().any(|profile| profile.token == token)
    }
}

/// A request for a templated protocol; a fault of its target is for later. Capsule-Protocol is not asked for: the
/// token alone says that capsules follow.
//= connect-tcp §3.1 h1-request-capsule-protocol
fn templated(route: &Route, profile: &Profile, captures: &Captures, head: &Head<'_>) -> Request {
    //= connect-udp-bind §6 both-say-so
    let bind = route.bind && connect_udp_bind::is_true(head.fields);
    //= connect-udp-bind §2 star-both
    let target = if bind && captures.is_any() {
        Ok(Target::ANY)
    } else {
        captures.target().map_err(refuse::target)
    };
    //= connect-udp-ecn-dscp §3.1.1 both-say-so
    let marks = if route.marks && !bind {
        ecn_dscp_context_id::from_fields(head.fields, Role::Client)
    } else {
        None
    };
    Request {
        protocol: route.protocol,
        token: Some(profile.token.clone().into_owned()),
        profile: Some(profile.clone()),
        target,
        bind,
        marks,
        expect_continue: expects_continue(head),
        //= connect-tcp §3.3.2 challenge-401
        auth_kind: Challenge::Origin,
        close_on_reject: false,
    }
}

/// A request for classic CONNECT.
fn classic(target: Result<Target, TargetError>, head: &Head<'_>) -> Request {
    Request {
        protocol: protocols::classic(),
        token: None,
        profile: None,
        target: target.map_err(refuse::target),
        bind: false,
        marks: None,
        expect_continue: expects_continue(head),
        auth_kind: Challenge::Proxy,
        close_on_reject: false,
    }
}

//= rfc9110 §10.1.1 expect-continue
fn expects_continue(head: &Head<'_>) -> bool {
    head.version != Version::H1_0
        && fields::list(head.fields, "expect")
            .iter()
            .any(|expectation| expectation.eq_ignore_ascii_case(b"100-continue"))
}

/// Whether the server knows the method at all; others are answered with 501.
//= rfc9110 §9.1 unknown-method
fn is_known_method(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH"
    )
}

/// Whether a text may stand as path and query: visible ASCII, no fragment.
fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path
            .bytes()
            .all(|byte| matches!(byte, 0x21..=0x7e) && byte != b'#')
}

/// Whether a text may stand as the authority of an http(s) URI: host and optional port, no userinfo.
//= rfc9113 §8.3.1 authority-and-host
//= rfc9114 §4.3.1 authority-and-host
fn is_authority(authority: &str) -> bool {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (authority, ""),
    };
    let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let sound = match literal {
        Some(address) => {
            !address.is_empty()
                && address
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b":.-_~".contains(&byte))
        }
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte))
        }
    };
    sound && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests;
