#![allow(clippy::unwrap_used)]

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
fn h1(method: &str, target: &str, fields: &[Line<'_>]) -> Result<Request, Reject> {
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
    h1(
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

//= connect-tcp §3.1 h1-target
//= connect-tcp §3.1 h1-connection
//= connect-tcp §3.1 h1-upgrade
//= rfc9110 §7.6.1 connection-options
#[test]
fn h1_upgrade_is_a_tunnel() {
    let request = upgrade(PATH, &[]).unwrap();
    assert_eq!(request.protocol.name, "connect-tcp");
    assert_eq!(request.token.as_deref(), Some("connect-tcp-12"));
    assert_eq!(request.auth_kind, Challenge::Origin);
    assert!(!request.expect_continue && !request.close_on_reject);
    let target = request.target.as_ref().unwrap();
    assert_eq!(target.host, Host::Name("a.example".into()));
    assert_eq!(target.port, 443);
    for (connection, upgrade) in [
        ("keep-alive, UPGRADE", "CONNECT-TCP-12"),
        ("upgrade,close", "websocket, connect-tcp-12"),
        ("a , upgrade ", "connect-tcp-12,connect-tcp-07"),
    ] {
        let request = h1(
            "GET",
            PATH,
            &[
                HOST,
                ("connection", connection.as_bytes()),
                ("upgrade", upgrade.as_bytes()),
            ],
        );
        let token = request.unwrap().token;
        assert_eq!(token.as_deref(), Some("connect-tcp-12"), "{upgrade}");
    }
}

//= rfc9112 §3.2.2 absolute-form
#[test]
fn h1_targets_in_absolute_form() {
    for start in [
        "http://relay.example",
        "HTTPS://other:8443",
        "https://[::1]:1",
    ] {
        assert_eq!(
            target(upgrade(&format!("{start}{PATH}"), &[])),
            "a.example:443"
        );
    }
    let query = "/proxy?target_host=2001%3Adb8%3A%3A1&target_port=1";
    assert_eq!(target(upgrade(query, &[])), "[2001:db8::1]:1");
    for bad in [
        "relay.example",
        "ftp://relay.example/",
        "https:///x",
        "https://u@h/",
        "/a#b",
        "/\u{e9}",
        "/a b",
        "*",
        "",
        "a.example:443",
    ] {
        let reject = upgrade(bad, &[]).unwrap_err();
        assert_eq!((reject.status, reject.close), (400, true), "{bad:?}");
    }
    assert_eq!(status(upgrade("https://relay.example", &[])), 404);
}

//= rfc9110 §7.8 upgrade-order
#[test]
fn the_first_served_token_wins_and_brings_its_capsule_types() {
    for (list, token, final_data) in [
        (
            "connect-tcp-07, connect-tcp-12",
            "connect-tcp-07",
            types::FINAL_DATA_08,
        ),
        (
            "connect-tcp-12, connect-tcp-07",
            "connect-tcp-12",
            types::FINAL_DATA_12,
        ),
        (
            "connect-udp, connect-tcp-07",
            "connect-tcp-07",
            types::FINAL_DATA_08,
        ),
    ] {
        let fields = [HOST, CONNECTION, ("Upgrade", list.as_bytes())];
        let request = h1("GET", PATH, &fields).unwrap();
        assert_eq!(request.token.as_deref(), Some(token));
        let mut header = [0; crate::capsule::MAX_HEADER];
        request.tunnel().outbound_finish(&mut header);
        let written = crate::capsule::decode_header(&header);
        assert_eq!(written, Some((final_data, 0, 5)));
    }
}

//= rfc9110 §7.8 upgrade-needs-connection
//= rfc9110 §15.5.22 upgrade-required
//= connect-tcp §3.1 h1-connection
//= connect-tcp §3.1 h1-upgrade
//= connect-tcp §3.1 refuse-with-4xx
#[test]
fn a_matched_path_without_upgrade_says_what_to_ask_for() {
    let other: Line<'_> = ("Upgrade", b"websocket");
    for fields in [
        &[HOST][..],
        &[HOST, CONNECTION],
        &[HOST, UPGRADE],
        &[HOST, UPGRADE, ("Connection", b"close")],
        &[HOST, CONNECTION, other],
    ] {
        let reject = h1("GET", PATH, fields).unwrap_err();
        assert_eq!(reject.status, 426);
        let tokens = field(&reject, "upgrade");
        assert_eq!(tokens, Some("connect-tcp-12, connect-tcp-07"));
        assert!(!reject.close);
    }
    let fields = [HOST, CONNECTION, UPGRADE];
    let old = h1_at(&fuzzing::routes(), Version::H1_0, "GET", PATH, &fields);
    assert_eq!(status(old), 426);
}

#[test]
fn an_unmatched_path_is_404_to_everybody() {
    for path in ["/", "/x", "/.well-known/masque/udp/a/443/"] {
        assert_eq!(status(upgrade(path, &[])), 404);
        assert_eq!(status(h1("POST", path, &[HOST])), 404);
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
    assert_eq!(status(h1("OPTIONS", "*", &[HOST])), 404);
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
        let reject = h1(method, PATH, &[HOST, CONNECTION, UPGRADE]).unwrap_err();
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
        assert_eq!(status(h1(method, PATH, &[HOST])), 501);
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

//= connect-tcp §3.1 h1-host
//= rfc9112 §3.2 one-host
#[test]
fn h1_has_one_sound_host() {
    let tunnel = [CONNECTION, UPGRADE];
    for hosts in [
        &[][..],
        &[HOST, HOST],
        &[("Host", b"")],
        &[("Host", b"a b")],
        &[("Host", b"u@h")],
        &[("Host", b"a,b/")],
        &[("Host", b"h:port")],
        &[("Host", b"[::1")],
        &[("Host", b"\xff")],
    ] {
        for (method, path) in [("GET", PATH), ("CONNECT", "a.example:443"), ("GET", "/")] {
            let reject = h1(method, path, &[hosts, &tunnel].concat()).unwrap_err();
            assert_eq!((reject.status, reject.close), (400, true), "{hosts:?}");
        }
    }
    for host in [
        "relay.example:8443",
        "[2001:db8::1]",
        "[::1]:443",
        "127.0.0.1",
    ] {
        let fields = [("host", host.as_bytes()), CONNECTION, UPGRADE];
        assert!(h1("GET", PATH, &fields).is_ok(), "{host}");
    }
    let old = h1_at(&fuzzing::routes(), Version::H1_0, "CONNECT", "a:1", &[]);
    assert!(old.is_ok());
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
        let reject = h1("CONNECT", "a.example:443", &[HOST, line]).unwrap_err();
        assert_eq!((reject.status, reject.close), (400, true), "{line:?}");
        let fields = &[line];
        assert_eq!(status(Multiplexed { fields, ..CLASSIC }.parse()), 400);
    }
    assert!(h1("CONNECT", "a.example:443", &[HOST, lines[1]]).is_ok());
}

//= connect-tcp §3.2 protocol-token
//= connect-tcp §3.2 path-and-scheme
//= connect-tcp §3.2 method-connect
//= rfc8441 §4 pseudo-fields
#[test]
fn extended_connect_is_a_tunnel() {
    let request = EXTENDED.parse().unwrap();
    assert_eq!(request.protocol.name, "connect-tcp");
    assert_eq!(request.profile.unwrap().data, types::DATA_12);
    assert_eq!(request.auth_kind, Challenge::Origin);
    let old = Multiplexed {
        protocol: Some("connect-tcp-07"),
        ..EXTENDED
    };
    assert_eq!(old.parse().unwrap().profile.unwrap().data, types::DATA_08);
    assert_eq!(
        target(
            Multiplexed {
                scheme: Some("http"),
                ..EXTENDED
            }
            .parse()
        ),
        "a.example:443"
    );
}

//= connect-tcp §3.2 nonconforming-is-client-error
//= connect-tcp §3.2 authority-of-proxy
//= rfc8441 §4 pseudo-fields
//= rfc9113 §8.3.1 authority-and-host
//= rfc9114 §4.3.1 authority-and-host
#[test]
fn extended_connect_that_breaks_a_rule() {
    let differing: &[Line<'_>] = &[("host", b"other.example")];
    let twice: &[Line<'_>] = &[("host", b"relay.example"), ("host", b"relay.example")];
    for broken in [
        Multiplexed {
            scheme: None,
            ..EXTENDED
        },
        Multiplexed {
            scheme: Some("ftp"),
            ..EXTENDED
        },
        Multiplexed {
            authority: None,
            ..EXTENDED
        },
        Multiplexed {
            authority: Some(""),
            ..EXTENDED
        },
        Multiplexed {
            authority: Some("user@relay.example"),
            ..EXTENDED
        },
        Multiplexed {
            path: None,
            ..EXTENDED
        },
        Multiplexed {
            path: Some(""),
            ..EXTENDED
        },
        Multiplexed {
            path: Some("x"),
            ..EXTENDED
        },
        Multiplexed {
            method: "GET",
            ..EXTENDED
        },
        Multiplexed {
            fields: differing,
            ..EXTENDED
        },
        Multiplexed {
            fields: twice,
            ..EXTENDED
        },
    ] {
        let reject = broken.parse().unwrap_err();
        assert_eq!(reject.status, 400, "{}", reject.detail);
        assert_eq!(reject.error, Some(ProxyError::HttpRequestError));
    }
    let same: &[Line<'_>] = &[("host", b"Relay.Example")];
    assert!(
        Multiplexed {
            fields: same,
            ..EXTENDED
        }
        .parse()
        .is_ok()
    );
}

//= rfc9220 §3 unknown-protocol
//= connect-tcp §3.2 protocol-token
#[test]
fn unknown_protocols_are_501_and_compare_exactly() {
    for protocol in [
        "websocket",
        "connect-udp",
        "CONNECT-TCP-12",
        "connect-tcp",
        "",
    ] {
        for path in [PATH, "/"] {
            let request = Multiplexed {
                protocol: Some(protocol),
                path: Some(path),
                ..EXTENDED
            };
            assert_eq!(status(request.parse()), 501, "{protocol} {path}");
        }
    }
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

//= rfc9112 §3.2.3 authority-form
//= rfc9110 §9.3.6 connect-authority-form
//= rfc9931 §8 close-after-refused-connect
#[test]
fn classic_connect_over_h1() {
    let request = h1("CONNECT", "[2001:db8::1]:443", &[HOST]).unwrap();
    assert_eq!(request.protocol.name, "connect");
    assert_eq!(
        (request.token.as_ref(), request.profile.as_ref()),
        (None, None)
    );
    assert_eq!(request.auth_kind, Challenge::Proxy);
    assert!(request.close_on_reject);
    assert_eq!(target(Ok(request)), "[2001:db8::1]:443");
    for bad in [
        "a.example",
        "a.example:",
        "a:0",
        "a:+80",
        "u@a:1",
        "/",
        "https://a:1/",
        "",
    ] {
        let request = h1("CONNECT", bad, &[HOST]).unwrap();
        let reject = request.target.unwrap_err();
        assert_eq!((reject.status, reject.close), (400, true), "{bad:?}");
    }
}

//= rfc9113 §8.5 connect-pseudo-fields
//= rfc9114 §4.4 connect-pseudo-fields
#[test]
fn classic_connect_over_h2_and_h3() {
    let request = CLASSIC.parse().unwrap();
    assert_eq!(request.protocol.name, "connect");
    assert!(!request.close_on_reject);
    assert_eq!(target(Ok(request)), "a.example:443");
    for broken in [
        Multiplexed {
            scheme: Some("https"),
            ..CLASSIC
        },
        Multiplexed {
            path: Some("/"),
            ..CLASSIC
        },
        Multiplexed {
            authority: None,
            ..CLASSIC
        },
    ] {
        assert_eq!(status(broken.parse()), 400);
    }
    let bad = Multiplexed {
        authority: Some("a.example"),
        ..CLASSIC
    };
    let reject = bad.parse().unwrap().target.unwrap_err();
    assert_eq!((reject.status, reject.close), (400, false));
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
