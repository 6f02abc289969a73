use super::*;

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
        "connect-ip",
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
