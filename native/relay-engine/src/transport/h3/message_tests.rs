#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use proptest::prelude::*;

fn lines(text: &[(&'static str, &'static str)]) -> Vec<Line> {
    text.iter()
        .map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into()))
        .collect()
}

const EXTENDED: [(&str, &str); 5] = [
    (":method", "CONNECT"),
    (":protocol", "connect-tcp"),
    (":scheme", "https"),
    (":authority", "proxy.example"),
    (":path", "/.well-known/masque/tcp/192.0.2.1/443/"),
];
const CLASSIC: [(&str, &str); 2] = [(":method", "CONNECT"), (":authority", "192.0.2.1:443")];
const GET: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", "proxy.example"),
    (":path", "/"),
];

fn with(head: &[(&'static str, &'static str)], more: &[(&'static str, &'static str)]) -> Vec<Line> {
    lines(&[head, more].concat())
}

/// `head` with the pseudo-header field `name` left out, or given another value.
fn but(
    head: &[(&'static str, &'static str)],
    name: &str,
    value: Option<&'static str>,
) -> Result<Request, Fault> {
    let changed: Vec<_> = head
        .iter()
        .filter_map(|&(n, v)| {
            (n != name)
                .then_some((n, v))
                .or(value.map(|value| (n, value)))
        })
        .collect();
    request(lines(&changed))
}

#[test]
fn the_forms_of_a_request() {
    let extended = request(with(&EXTENDED, &[("capsule-protocol", "?1")])).unwrap();
    assert_eq!(extended.method, "CONNECT");
    assert_eq!(extended.protocol.as_deref(), Some("connect-tcp"));
    assert_eq!(extended.scheme.as_deref(), Some("https"));
    assert_eq!(extended.authority.as_deref(), Some("proxy.example"));
    assert_eq!(extended.fields["capsule-protocol"], "?1");
    let classic = request(lines(&CLASSIC)).unwrap();
    assert_eq!(classic.authority.as_deref(), Some("192.0.2.1:443"));
    assert_eq!(classic.path, None);
    let get = request(with(&GET, &[("te", "trailers"), ("host", "PROXY.example")])).unwrap();
    assert_eq!(get.path.as_deref(), Some("/"));
    assert!(request(lines(&[GET[0], GET[1], GET[3], ("host", "h")])).is_ok());
    assert!(
        request(lines(&[
            (":method", "OPTIONS"),
            (":scheme", "https"),
            (":authority", "h"),
            (":path", "*")
        ]))
        .is_ok()
    );
}

//= rfc9114 §4.1.2 malformed-request
//= rfc9114 §4.3.1 authority-and-host
//= rfc9114 §4.4 connect-pseudo-fields
//= rfc8441 §4 pseudo-fields
#[test]
fn pseudo_header_rules() {
    for (head, name, value) in [
        (&EXTENDED[..], ":method", None),
        (&EXTENDED, ":method", Some("GET")),
        (&EXTENDED, ":method", Some("")),
        (&EXTENDED, ":method", Some("CON NECT")),
        (&EXTENDED, ":scheme", None),
        (&EXTENDED, ":scheme", Some("ht tp")),
        (&EXTENDED, ":scheme", Some("")),
        (&EXTENDED, ":authority", None),
        (&EXTENDED, ":authority", Some("")),
        (&EXTENDED, ":authority", Some("user@proxy.example")),
        (&EXTENDED, ":path", None),
        (&EXTENDED, ":path", Some("")),
        (&EXTENDED, ":path", Some("no-slash")),
        (&EXTENDED, ":path", Some("/a\r\nb")),
        (&EXTENDED, ":protocol", Some("")),
        (&EXTENDED, ":protocol", None),
        (&CLASSIC, ":authority", None),
        (&CLASSIC, ":authority", Some("")),
        (&GET, ":scheme", None),
        (&GET, ":path", None),
        (&GET, ":authority", None),
    ] {
        assert_eq!(but(head, name, value), Err(MALFORMED), "{name} {value:?}");
    }
    for more in [
        (":path", "/"),
        (":method", "CONNECT"),
        (":status", "200"),
        (":unknown", "x"),
        (":", "x"),
    ] {
        assert_eq!(
            request(with(&EXTENDED, &[more])),
            Err(MALFORMED),
            "{more:?}"
        );
    }
    assert_eq!(
        request(with(&[("accept", "*/*")], &EXTENDED)),
        Err(MALFORMED),
        "pseudo-header fields come first"
    );
    assert_eq!(
        request(with(&CLASSIC, &[(":scheme", "https")])),
        Err(MALFORMED)
    );
    assert_eq!(request(with(&CLASSIC, &[(":path", "/")])), Err(MALFORMED));
}

//= rfc9114 §4.1.2 malformed-request
//= rfc9114 §4.3.1 authority-and-host
#[test]
fn field_rules() {
    for more in [
        ("Accept", "x"),
        ("", "x"),
        ("a b", "x"),
        ("accept", "a\nb"),
        ("accept", "a\rb"),
        ("accept", "a\0b"),
        ("connection", "close"),
        ("keep-alive", "x"),
        ("proxy-connection", "x"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "connect-tcp"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
        ("host", "other.example"),
        ("content-length", "x"),
        ("content-length", "-1"),
        ("content-length", ""),
    ] {
        assert_eq!(request(with(&GET, &[more])), Err(MALFORMED), "{more:?}");
        assert!(request(lines(&GET)).is_ok());
    }
    assert_eq!(
        request(with(
            &GET,
            &[("content-length", "1"), ("content-length", "2")]
        )),
        Err(MALFORMED)
    );
    assert_eq!(
        request(with(
            &GET,
            &[("host", "proxy.example"), ("host", "proxy.example")]
        )),
        Err(MALFORMED)
    );
    let kept = request(with(&GET, &[("x", "1"), ("y", " a\tb "), ("x", "2")])).unwrap();
    assert_eq!(
        kept.fields.get_all("x").iter().collect::<Vec<_>>(),
        ["1", "2"]
    );
    assert_eq!(kept.fields["y"], "a\tb");
}

#[test]
fn responses() {
    let ok = response(lines(&[(":status", "200"), ("proxy-status", "relay")])).unwrap();
    assert_eq!((ok.status, ok.is_interim()), (200, false));
    assert!(response(lines(&[(":status", "100")])).unwrap().is_interim());
    for head in [
        &[][..],
        &[(":status", "101")],
        &[(":status", "99")],
        &[(":status", "600")],
        &[(":status", "+20")],
        &[(":status", "0200")],
        &[(":status", "200"), (":status", "200")],
        &[(":status", "200"), (":path", "/")],
        &[("x", "y"), (":status", "200")],
        &[(":status", "200"), ("connection", "close")],
    ] {
        assert_eq!(response(lines(head)), Err(MALFORMED), "{head:?}");
    }
}

#[test]
fn trailers_have_no_pseudo_header_fields() {
    assert_eq!(trailers(lines(&[("x", "y")])).unwrap()["x"], "y");
    assert_eq!(trailers(lines(&[(":status", "200")])), Err(MALFORMED));
}

/// The field section of the one HEADERS frame in `frame`.
fn section(frame: &[u8]) -> Vec<Line> {
    let (kind, length, size) = super::super::frame::parse_header(frame).unwrap();
    assert_eq!(kind, 1);
    assert_eq!(frame.len(), size + usize::try_from(length).unwrap());
    qpack::decode(&frame[size..]).unwrap()
}

#[test]
fn what_is_sent_is_read() {
    for head in [&EXTENDED[..], &CLASSIC, &GET] {
        let sent = request(with(head, &[("x", "1"), ("x", "2")])).unwrap();
        let mut out = Vec::new();
        put_request(&sent, &mut out);
        assert_eq!(request(section(&out)), Ok(sent));
    }
    let mut fields = HeaderMap::new();
    fields.append("proxy-status", HeaderValue::from_static("relay"));
    let mut out = Vec::new();
    put_response(200, &fields, &mut out);
    assert_eq!(
        response(section(&out)),
        Ok(Response {
            status: 200,
            fields
        })
    );
}

proptest! {
    #[test]
    fn any_section_is_judged(
        section in proptest::collection::vec(
            ("(:method|:path|:scheme|:authority|:protocol|:status|te|host|[a-zA-Z:]{0,3})", ".{0,6}"), 0..8),
    ) {
        let make = || section.iter().map(|(n, v)| (n.clone().into_bytes().into(), v.clone().into_bytes().into())).collect();
        let _ = request(make());
        let _ = response(make());
        let _ = trailers(make());
    }
}
