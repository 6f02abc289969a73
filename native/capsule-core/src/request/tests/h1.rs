use super::*;

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
        let request = h1_request(
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
            "connect-ip, connect-tcp-07",
            "connect-tcp-07",
            types::FINAL_DATA_08,
        ),
    ] {
        let fields = [HOST, CONNECTION, ("Upgrade", list.as_bytes())];
        let request = h1_request("GET", PATH, &fields).unwrap();
        assert_eq!(request.token.as_deref(), Some(token));
        let mut header = [0; crate::capsule::MAX_HEADER];
        request.tunnel().unwrap().outbound_finish(&mut header);
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
        let reject = h1_request("GET", PATH, fields).unwrap_err();
        assert_eq!(reject.status, 426);
        let tokens = field(&reject, "upgrade");
        assert_eq!(tokens, Some("connect-tcp-12, connect-tcp-07"));
        assert!(!reject.close);
    }
    let fields = [HOST, CONNECTION, UPGRADE];
    let old = h1_at(&fuzzing::routes(), Version::H1_0, "GET", PATH, &fields);
    assert_eq!(status(old), 426);
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
            let reject = h1_request(method, path, &[hosts, &tunnel].concat()).unwrap_err();
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
        assert!(h1_request("GET", PATH, &fields).is_ok(), "{host}");
    }
    let old = h1_at(&fuzzing::routes(), Version::H1_0, "CONNECT", "a:1", &[]);
    assert!(old.is_ok());
}

//= rfc9112 §3.2.3 authority-form
//= rfc9110 §9.3.6 connect-authority-form
//= rfc9931 §8 close-after-refused-connect
#[test]
fn classic_connect_over_h1() {
    let request = h1_request("CONNECT", "[2001:db8::1]:443", &[HOST]).unwrap();
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
        let request = h1_request("CONNECT", bad, &[HOST]).unwrap();
        let reject = request.target.unwrap_err();
        assert_eq!((reject.status, reject.close), (400, true), "{bad:?}");
    }
}
