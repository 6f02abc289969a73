//! Requests over HTTP/2 and HTTP/3: CONNECT, with and without `:protocol`.

use super::{
    Head, Request, Routes, classic, is_authority, is_known_method, is_path, refuse, templated,
};
use crate::fields;
use crate::reject::Reject;
use crate::target::Target;

pub(super) fn parse(routes: &Routes, head: &Head<'_>) -> Result<Request, Reject> {
    check_host(head)?;
    match (head.method, head.protocol) {
        ("CONNECT", None) => connect(routes, head),
        ("CONNECT", Some(protocol)) => extended(routes, head, protocol),
        (_, Some(_)) => Err(refuse::malformed(":protocol goes with CONNECT alone")),
        (method, None) if !is_known_method(method) => Err(refuse::unknown_method()),
        (_, None) => {
            let path = head.path.unwrap_or_default();
            if routes.at(path).is_empty() {
                return Err(refuse::not_found());
            }
            //= connect-tcp §3.2 method-connect
            Err(refuse::method("CONNECT"))
        }
    }
}

//= rfc9113 §8.5 connect-pseudo-fields
//= rfc9114 §4.4 connect-pseudo-fields
fn connect(routes: &Routes, head: &Head<'_>) -> Result<Request, Reject> {
    if head.scheme.is_some() || head.path.is_some() {
        return Err(refuse::malformed(
            "CONNECT without :protocol has neither :scheme nor :path",
        ));
    }
    let Some(authority) = head.authority else {
        return Err(refuse::malformed("CONNECT has no :authority"));
    };
    check_content(head, &["content-length", "transfer-encoding"])?;
    if !routes.connect {
        return Err(refuse::no_connect());
    }
    Ok(classic(Target::from_authority(authority), head))
}

//= rfc8441 §4 pseudo-fields
//= connect-tcp §3.2 nonconforming-is-client-error
fn extended(routes: &Routes, head: &Head<'_>, protocol: &str) -> Result<Request, Reject> {
    if !matches!(head.scheme, Some("http" | "https")) {
        return Err(refuse::malformed("an extended CONNECT has a :scheme"));
    }
    //= connect-tcp §3.2 authority-of-proxy
    if !head.authority.is_some_and(is_authority) {
        return Err(refuse::malformed(
            "an extended CONNECT has an :authority that is a host and port",
        ));
    }
    let path = head.path.unwrap_or_default();
    if !is_path(path) {
        return Err(refuse::malformed("an extended CONNECT has a :path"));
    }
    //= connect-tcp §3.2 protocol-token
    if !routes.serves(protocol) {
        return Err(refuse::unknown_protocol());
    }
    let matched = routes.at(path);
    if matched.is_empty() {
        return Err(refuse::not_found());
    }
    let served = matched.iter().find_map(|(route, captures)| {
        let profile = route.profiles.iter().find(|p| p.token == protocol)?;
        Some((*route, captures, profile))
    });
    let Some((route, captures, profile)) = served else {
        return Err(refuse::malformed("this :protocol is not served here"));
    };
    check_content(head, CONTENT)?;
    Ok(templated(route, profile, captures, head))
}

const CONTENT: &[&str] = &["content-length", "content-type", "transfer-encoding"];

//= rfc9297 §3.2 content-fields-malformed
fn check_content(head: &Head<'_>, names: &[&str]) -> Result<(), Reject> {
    for name in names {
        if fields::count(head.fields, name) > 0 {
            return Err(refuse::malformed(
                "a request for a tunnel has no content and no fields for it",
            ));
        }
    }
    Ok(())
}

/// A Host field beside :authority says the same.
//= rfc9113 §8.3.1 authority-and-host
//= rfc9114 §4.3.1 authority-and-host
fn check_host(head: &Head<'_>) -> Result<(), Reject> {
    let Some(host) = fields::first(head.fields, "host") else {
        return Ok(());
    };
    let same = fields::count(head.fields, "host") == 1
        && head
            .authority
            .is_none_or(|authority| host.eq_ignore_ascii_case(authority.as_bytes()));
    if same {
        Ok(())
    } else {
        Err(refuse::malformed("Host and :authority differ"))
    }
}
