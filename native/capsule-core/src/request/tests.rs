#![allow(clippy::unwrap_used)]

mod h1;
mod multiplexed;

use alloc::format;
use alloc::string::String;
use alloc::vec;

use super::*;
use crate::capsule::types;
use crate::fuzzing;
use crate::proxy_status::ProxyError;
use crate::target::Host;
use crate::tunnel::StreamTunnel as _;

const PATH: &str = "/.well-known/masque/tcp/a.example/443/";

type Line<'a> = (&'a str, &'a [u8]);

const HOST: Line<'static> = ("Host", b"relay.example");
const CONNECTION: Line<'static> = ("Connection", b"Upgrade");
const UPGRADE: Line<'static> = ("Upgrade", b"connect-tcp-12");

/// An HTTP/1.1 request as written.
fn h1_request(method: &str, target: &str, fields: &[Line<'_>]) -> Result<Request, Reject> {
    h1_at(&fuzzing::routes(), Version::H1_1, method, target, fields)
}

fn h1_at(
    routes: &Routes,
    version: Version,
    method: &str,
    target: &str,
    fields: &[Line<'_>],
) -> Result<Request, Reject> {
    let head = Head {
        version,
        method,
        scheme: None,
        authority: None,
        path: Some(target),
        protocol: None,
        fields: &fields,
    };
    parse(routes, &head)
}

fn upgrade(target: &str, more: &[Line<'_>]) -> Result<Request, Reject> {
    h1_request(
        "GET",
        target,
        &[&[HOST, CONNECTION, UPGRADE], more].concat(),
    )
}

/// What HTTP/2 and HTTP/3 carry, both judged and found equal.
#[derive(Clone, Copy)]
struct Multiplexed<'a> {
    method: &'a str,
    scheme: Option<&'a str>,
    authority: Option<&'a str>,
    path: Option<&'a str>,
    protocol: Option<&'a str>,
    fields: &'a [Line<'a>],
}

const EXTENDED: Multiplexed<'static> = Multiplexed {
    method: "CONNECT",
    scheme: Some("https"),
    authority: Some("relay.example"),
    path: Some(PATH),
    protocol: Some("connect-tcp-12"),
    fields: &[],
};

const CLASSIC: Multiplexed<'static> = Multiplexed {
    method: "CONNECT",
    scheme: None,
    authority: Some("a.example:443"),
    path: None,
    protocol: None,
    fields: &[],
};

impl Multiplexed<'_> {
    fn parse(self) -> Result<Request, Reject> {
        self.parse_at(&fuzzing::routes())
    }

    fn parse_at(self, routes: &Routes) -> Result<Request, Reject> {
        let [h2, h3] = [Version::H2, Version::H3].map(|version| {
            let head = Head {
                version,
                method: self.method,
                scheme: self.scheme,
                authority: self.authority,
                path: self.path,
                protocol: self.protocol,
                fields: &self.fields,
            };
            parse(routes, &head)
        });
        match (&h2, &h3) {
            (Ok(a), Ok(b)) => assert_eq!((&a.token, &a.target), (&b.token, &b.target)),
            (Err(a), Err(b)) => assert_eq!(a, b),
            _ => panic!("HTTP/2 and HTTP/3 differ: {h2:?} {h3:?}"),
        }
        h2
    }
}

fn status(result: Result<Request, Reject>) -> u16 {
    result.err().unwrap().status
}

fn target(result: Result<Request, Reject>) -> String {
    format!("{}", result.unwrap().target.unwrap())
}

fn field<'r>(reject: &'r Reject, name: &str) -> Option<&'r str> {
    let (_, value) = reject.fields.iter().find(|(field, _)| *field == name)?;
    Some(value)
}

#[test]
fn an_unmatched_path_is_404_to_everybody() {
    for path in ["/", "/x", "/.well-known/masque/ip/a/443/"] {
        assert_eq!(status(upgrade(path, &[])), 404);
        assert_eq!(status(h1_request("POST", path, &[HOST])), 404);
        assert_eq!(
            status(
                Multiplexed {
                    path: Some(path),
                    ..EXTENDED
                }
                .parse()
            ),
            404
        );
    }
    assert_eq!(status(h1_request("OPTIONS", "*", &[HOST])), 404);
    let get = Multiplexed {
        method: "GET",
        protocol: None,
        path: Some("/"),
        ..EXTENDED
    };
    assert_eq!(status(get.parse()), 404);
}

//= connect-tcp §3.1 h1-method
//= connect-tcp §3.2 method-connect
//= rfc9110 §15.5.6 method-not-allowed
//= rfc9110 §9.1 unknown-method
#[test]
fn other_methods() {
    for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"] {
        let reject = h1_request(method, PATH, &[HOST, CONNECTION, UPGRADE]).unwrap_err();
        assert_eq!((reject.status, field(&reject, "allow")), (405, Some("GET")));
    }
    for method in ["GET", "HEAD", "POST"] {
        let reject = Multiplexed {
            method,
            protocol: None,
            ..EXTENDED
        }
        .parse()
        .unwrap_err();
        assert_eq!(
            (reject.status, field(&reject, "allow")),
            (405, Some("CONNECT"))
        );
    }
    for method in ["BREW", "get", "connect", ""] {
        assert_eq!(status(h1_request(method, PATH, &[HOST])), 501);
        assert_eq!(
            status(
                Multiplexed {
                    method,
                    protocol: None,
                    ..EXTENDED
                }
                .parse()
            ),
            501
        );
    }
}

//= rfc9297 §3.2 content-fields-malformed
#[test]
fn a_tunnel_request_has_no_content() {
    let lines: [Line<'_>; 4] = [
        ("Content-Length", b"5"),
        ("Content-Length", b"0"),
        ("Transfer-Encoding", b"chunked"),
        ("Content-Type", b"text/plain"),
    ];
    for line in lines {
        let reject = upgrade(PATH, &[line]).unwrap_err();
        assert_eq!((reject.status, reject.close), (400, true), "{line:?}");
        let fields = &[line];
        assert_eq!(status(Multiplexed { fields, ..EXTENDED }.parse()), 400);
    }
    for line in [lines[0], lines[2]] {
        let reject = h1_request("CONNECT", "a.example:443", &[HOST, line]).unwrap_err();
        assert_eq!((reject.status, reject.close), (400, true), "{line:?}");
        let fields = &[line];
        assert_eq!(status(Multiplexed { fields, ..CLASSIC }.parse()), 400);
    }
    assert!(h1_request("CONNECT", "a.example:443", &[HOST, lines[1]]).is_ok());
}

#[test]
fn a_token_of_another_path() {
    let mut routes = fuzzing::routes();
    routes.templated[0].profiles.truncate(1);
    let request = Multiplexed {
        protocol: Some("connect-tcp-07"),
        ..EXTENDED
    };
    assert_eq!(status(request.parse_at(&routes)), 400);
    let fields = [HOST, CONNECTION, ("Upgrade", &b"connect-tcp-07"[..])];
    let reject = h1_at(&routes, Version::H1_1, "GET", PATH, &fields).unwrap_err();
    assert_eq!(
        (reject.status, field(&reject, "upgrade")),
        (426, Some("connect-tcp-12"))
    );
}

//= rfc9298 §3.1 bad-request
//= connect-tcp §3.1 refuse-with-4xx
#[test]
fn a_bad_target_is_a_fault_for_later() {
    for (host, port) in [
        ("", "443"),
        ("a", "0"),
        ("a", "%2B80"),
        ("127.1", "80"),
        ("a%zz", "1"),
    ] {
        let path = format!("/.well-known/masque/tcp/{host}/{port}/");
        let requests = [
            upgrade(&path, &[]).unwrap(),
            Multiplexed {
                path: Some(&path),
                ..EXTENDED
            }
            .parse()
            .unwrap(),
        ];
        for request in requests {
            let reject = request.target.unwrap_err();
            assert_eq!((reject.status, reject.close), (400, false), "{path}");
            assert_eq!(reject.error, Some(ProxyError::HttpRequestError));
        }
    }
}

//= connect-tcp §5.2 templated-only-answers
//= rfc9931 §8 close-after-refused-connect
#[test]
fn classic_connect_while_it_is_off() {
    let mut routes = fuzzing::routes();
    routes.connect = false;
    let refused =
        |routes: &Routes| h1_at(routes, Version::H1_1, "CONNECT", "a:1", &[HOST]).unwrap_err();
    let reject = refused(&routes);
    assert_eq!((reject.status, reject.close), (426, true));
    let tokens = field(&reject, "upgrade");
    assert_eq!(tokens, Some("connect-tcp-12, connect-tcp-07"));
    assert_eq!(status(CLASSIC.parse_at(&routes)), 501);
    routes.templated = vec![];
    let reject = refused(&routes);
    assert_eq!((reject.status, reject.close), (501, true));
}

//= rfc9110 §10.1.1 expect-continue
#[test]
fn expectations() {
    let expect: &[Line<'_>] = &[("Expect", b"100-Continue")];
    assert!(upgrade(PATH, expect).unwrap().expect_continue);
    assert!(
        Multiplexed {
            fields: expect,
            ..EXTENDED
        }
        .parse()
        .unwrap()
        .expect_continue
    );
    assert!(
        Multiplexed {
            fields: expect,
            ..CLASSIC
        }
        .parse()
        .unwrap()
        .expect_continue
    );
    let routes = fuzzing::routes();
    let old = h1_at(&routes, Version::H1_0, "CONNECT", "a:1", expect);
    assert!(!old.unwrap().expect_continue);
}

//= connect-tcp §3.1 h1-request-capsule-protocol
#[test]
fn capsule_protocol_may_be_absent() {
    assert!(upgrade(PATH, &[]).is_ok());
    assert!(upgrade(PATH, &[("Capsule-Protocol", b"?0")]).is_ok());
}

//= connect-tcp §3.3.2 challenge-401
#[test]
fn challenges_by_form() {
    assert_eq!(upgrade(PATH, &[]).unwrap().auth_kind, Challenge::Origin);
    assert_eq!(EXTENDED.parse().unwrap().auth_kind, Challenge::Origin);
    assert_eq!(CLASSIC.parse().unwrap().auth_kind, Challenge::Proxy);
}
