//! Requests over HTTP/1.x: CONNECT, and GET with Upgrade.

use super::{
    Head, Request, Route, Routes, Version, classic, is_authority, is_known_method, is_path, refuse,
    templated,
};
use crate::fields;
use crate::protocols::Profile;
use crate::reject::Reject;
use crate::target::Target;
use crate::template::Captures;

pub(super) fn parse(routes: &Routes, head: &Head<'_>) -> Result<Request, Reject> {
    check_host(head).map_err(Reject::with_close)?;
    let target = head.path.unwrap_or_default();
    if head.method == "CONNECT" {
        //= rfc9931 §8 close-after-refused-connect
        return connect(routes, head, target).map_err(Reject::with_close);
    }
    if !is_known_method(head.method) {
        return Err(refuse::unknown_method());
    }
    let path = if head.method == "OPTIONS" && target == "*" {
        target
    } else {
        path_of(target)?
    };
    let matched = routes.at(path);
    if matched.is_empty() {
        return Err(refuse::not_found());
    }
    //= connect-tcp §3.1 h1-method
    if head.method != "GET" {
        return Err(refuse::method("GET"));
    }
    let Some((route, captures, profile)) = upgrade(&matched, head) else {
        return Err(refuse::upgrade_required(
            matched.iter().map(|(route, _)| *route),
            "this resource opens tunnels: ask for one of the protocols named by Upgrade",
        ));
    };
    check_content(head)?;
    Ok(templated(route, profile, captures, head))
}

fn connect(routes: &Routes, head: &Head<'_>, target: &str) -> Result<Request, Reject> {
    check_connect_content(head)?;
    if !routes.connect {
        return Err(refuse::no_connect_h1(routes));
    }
    //= rfc9112 §3.2.3 authority-form
    let mut request = classic(Target::from_authority(target), head);
    request.close_on_reject = true;
    request.target = request.target.map_err(Reject::with_close);
    Ok(request)
}

/// Exactly one valid Host; HTTP/1.0 may go without.
//= connect-tcp §3.1 h1-host
//= rfc9112 §3.2 one-host
fn check_host(head: &Head<'_>) -> Result<(), Reject> {
    let lines = fields::count(head.fields, "host");
    if lines > 1 {
        return Err(refuse::malformed("there is more than one Host field"));
    }
    let Some(host) = fields::first(head.fields, "host") else {
        return match head.version {
            Version::H1_0 => Ok(()),
            _ => Err(refuse::malformed("there is no Host field")),
        };
    };
    match core::str::from_utf8(host) {
        Ok(host) if is_authority(host) => Ok(()),
        _ => Err(refuse::malformed("the Host field is not a host and port")),
    }
}

/// Path and query of a request target in origin form or absolute form.
//= rfc9112 §3.2.2 absolute-form
fn path_of(target: &str) -> Result<&str, Reject> {
    let path = if target.starts_with('/') {
        target
    } else {
        let rest = strip_scheme(target)
            .ok_or_else(|| refuse::malformed("the request target is not a path").with_close())?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        if !is_authority(&rest[..end]) {
            return Err(
                refuse::malformed("the request target has no sound authority").with_close(),
            );
        }
        match &rest[end..] {
            "" => "/",
            path => path,
        }
    };
    if is_path(path) {
        Ok(path)
    } else {
        Err(refuse::malformed("the request target is not a path").with_close())
    }
}

fn strip_scheme(target: &str) -> Option<&str> {
    ["http://", "https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })
}

/// What the request asks to upgrade to, as far as it is served at this path: the first of its tokens wins.
//= connect-tcp §3.1 h1-connection
//= connect-tcp §3.1 h1-upgrade
//= rfc9110 §7.6.1 connection-options
//= rfc9110 §7.8 upgrade-needs-connection
//= rfc9110 §7.8 upgrade-order
fn upgrade<'m>(
    matched: &'m [(&'m Route, Captures)],
    head: &Head<'_>,
) -> Option<(&'m Route, &'m Captures, &'m Profile)> {
    let asked = head.version == Version::H1_1
        && fields::list(head.fields, "connection")
            .iter()
            .any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    if !asked {
        return None;
    }
    fields::list(head.fields, "upgrade")
        .into_iter()
        .find_map(|token| {
            matched.iter().find_map(|(route, captures)| {
                let served =
                    |profile: &&Profile| token.eq_ignore_ascii_case(profile.token.as_bytes());
                let profile = route.profiles.iter().find(served)?;
                Some((*route, captures, profile))
            })
        })
}

/// What follows the head must be the tunnel's, not content: else two parties could disagree where it starts.
//= rfc9297 §3.2 content-fields-malformed
fn check_content(head: &Head<'_>) -> Result<(), Reject> {
    for name in ["transfer-encoding", "content-length", "content-type"] {
        if fields::count(head.fields, name) > 0 {
            return Err(refuse::malformed(
                "a request for a tunnel has no content and no fields for it",
            )
            .with_close());
        }
    }
    Ok(())
}

/// CONNECT has no content either, but some clients say so with `Content-Length: 0`.
fn check_connect_content(head: &Head<'_>) -> Result<(), Reject> {
    let mut sound = fields::count(head.fields, "transfer-encoding") == 0;
    head.fields.get_all("content-length", &mut |value| {
        sound &= value.trim_ascii() == b"0";
    });
    if sound {
        Ok(())
    } else {
        Err(refuse::malformed("CONNECT has no content"))
    }
}
