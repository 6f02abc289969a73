#![allow(clippy::unwrap_used, clippy::expect_used)]

use alloc::format;
use alloc::string::{String, ToString as _};

use super::*;
use proptest::prelude::*;

const DEFAULT: &str = "/.well-known/masque/tcp/{target_host}/{target_port}/";
const QUERY: &str = "https://proxy.example/p{?target_host,target_port}";

fn read(template: &str, path: &str) -> Option<(String, String)> {
    let captures = Template::compile(template).unwrap().matches(path)?;
    Some((captures.host, captures.port))
}

fn pair(host: &str, port: &str) -> Option<(String, String)> {
    Some((host.to_string(), port.to_string()))
}

fn refused(template: &str) -> (usize, &'static str) {
    let fault = Template::compile(template).expect_err(template);
    (fault.position, fault.what)
}

//= connect-tcp §3 expand-into-uri
//= rfc9298 §3 percent-encoding
#[test]
fn expansions() {
    let default = Template::compile(DEFAULT).unwrap();
    assert_eq!(
        default.expand("192.0.2.1", 443),
        "/.well-known/masque/tcp/192.0.2.1/443/"
    );
    assert_eq!(
        default.expand("2001:db8::1", 1),
        "/.well-known/masque/tcp/2001%3Adb8%3A%3A1/1/"
    );
    let query = Template::validate_client(QUERY).unwrap();
    assert_eq!(
        query.expand("a.example", 80),
        "https://proxy.example/p?target_host=a.example&target_port=80"
    );
    assert_eq!(
        query.expand_path("::1", 80),
        "/p?target_host=%3A%3A1&target_port=80"
    );
    assert_eq!(query.scheme(), Some("https"));
    assert_eq!(query.authority(), Some("proxy.example"));
    assert_eq!(default.authority(), None);
    let others = Template::compile("/{x}/{target_host}/{target_port}{?y}").unwrap();
    assert_eq!(others.expand("a", 1), "//a/1");
}

//= connect-tcp §3.1 h1-target
//= connect-tcp §3.2 path-and-scheme
#[test]
fn paths_that_match() {
    for (path, host, port) in [
        ("/.well-known/masque/tcp/a.example/443/", "a.example", "443"),
        (
            "/.well-known/masque/tcp/2001%3Adb8%3A%3A1/1/",
            "2001%3Adb8%3A%3A1",
            "1",
        ),
        // Sloppy, legal in a path, and unambiguous.
        ("/.well-known/masque/tcp/2001:db8::1/1/", "2001:db8::1", "1"),
        // Matches with a fault.
        ("/.well-known/masque/tcp//443/", "", "443"),
        ("/.well-known/masque/tcp/a/+80/", "a", "+80"),
        ("/.well-known/masque/tcp/a%2Fb/%00/", "a%2Fb", "%00"),
        ("/.well-known/masque/tcp/a,b/443/", "a,b", "443"),
    ] {
        assert_eq!(read(DEFAULT, path), pair(host, port), "{path}");
    }
    for path in [
        "/",
        "",
        "/.well-known/masque/tcp/a/443",
        "/.well-known/masque/tcp/a/443//",
        "/.well-known/masque/tcp/a/443/x",
        "/.well-known/masque/tcp/a/b/443/",
        "/.well-known/masque/tcp/a/",
        "/.well-known/masque/tcp/a/443/?",
        "/.well-known/masque/tcp/a/443/?x=1",
        "/.well-known/masque/udp/a/443/",
        "/x/.well-known/masque/tcp/a/443/",
        "/.WELL-KNOWN/masque/tcp/a/443/",
        "*",
    ] {
        assert_eq!(read(DEFAULT, path), None, "{path}");
    }
}

#[test]
fn queries_that_match() {
    for (path, host, port) in [
        ("/p?target_host=a&target_port=1", "a", "1"),
        ("/p?target_port=1&target_host=a", "a", "1"),
        ("/p?target_host=%3A%3A1&target_port=1", "%3A%3A1", "1"),
        ("/p?target_host=a", "a", ""),
        ("/p?target_host=&target_port=1", "", "1"),
        ("/p", "", ""),
        ("/p?", "", ""),
    ] {
        assert_eq!(read(QUERY, path), pair(host, port), "{path}");
    }
    for path in [
        "/p?target_host=a&target_port=1&x=2",
        "/p?target_host=a&target_host=b&target_port=1",
        "/p?target_host=a&&target_port=1",
        "/p?target_host&target_port=1",
        "/p?TARGET_HOST=a&target_port=1",
        "/p/?target_host=a&target_port=1",
        "https://proxy.example/p?target_host=a&target_port=1",
    ] {
        assert_eq!(read(QUERY, path), None, "{path}");
    }
}

#[test]
fn other_shapes_match() {
    let cases = [
        ("/{target_host}:{target_port}", "/a:1", pair("a", "1")),
        ("/{target_host,target_port}", "/a,1", pair("a", "1")),
        ("/{target_host,target_port}", "/a", None),
        (
            "/p?h={target_host}&p={target_port}",
            "/p?h=a&p=1",
            pair("a", "1"),
        ),
        (
            "/p?h={target_host}&p={target_port}",
            "/p?p=1&h=a",
            pair("a", "1"),
        ),
        ("/p?h={target_host}&p={target_port}", "/p?h=a", None),
        (
            "/p?v=1{&target_host,target_port}",
            "/p?v=1&target_host=a&target_port=1",
            pair("a", "1"),
        ),
        (
            "/p?v=1{&target_host,target_port}",
            "/p?target_host=a&target_port=1",
            None,
        ),
        (
            "/{target_host}{?target_port}",
            "/a?target_port=1",
            pair("a", "1"),
        ),
        (
            "/p{?target_host,x,target_port}",
            "/p?target_host=a&target_port=1",
            pair("a", "1"),
        ),
        (
            "/p{?target_host,x,target_port}",
            "/p?x=9&target_host=a&target_port=1",
            pair("a", "1"),
        ),
        (
            "/p{?target_host,target_port}&v=1",
            "/p?target_host=a&target_port=1&v=1",
            pair("a", "1"),
        ),
        (
            "/{x}/{target_host}/{target_port}",
            "/any/a/1",
            pair("a", "1"),
        ),
        ("/{x}/{target_host}/{target_port}", "//a/1", pair("a", "1")),
    ];
    for (template, path, expected) in cases {
        assert_eq!(read(template, path), expected, "{template} {path}");
    }
}

//= rfc9298 §3 percent-encoding
#[test]
fn values_are_split_before_they_are_decoded() {
    let target = |path: &str| {
        let template = Template::compile(DEFAULT).unwrap();
        template.matches(path).unwrap().target()
    };
    let base = "/.well-known/masque/tcp/";
    assert_eq!(
        target(&format!("{base}2001%3adb8%3A%3a1/%34%34%33/")),
        Target::from_values("2001:db8::1", "443")
    );
    for host in ["a%2Fb", "a%00", "a%20b", "a%2Cb", "%5B::1%5D"] {
        let path = format!("{base}{host}/443/");
        assert_eq!(target(&path), Err(TargetError::BadHost), "{path}");
    }
    for host in ["a%", "a%2", "a%zz", "a%ff", "%C3%28"] {
        let path = format!("{base}{host}/443/");
        assert_eq!(target(&path), Err(TargetError::BadEncoding), "{path}");
    }
    // Once: what looks encoded after decoding stays.
    assert_eq!(
        target(&format!("{base}%2561/443/")),
        Err(TargetError::BadHost)
    );
    assert_eq!(
        target(&format!("{base}a/%2B80/")),
        Err(TargetError::BadPort)
    );
}

//= connect-tcp §3 template-rules
//= rfc9298 §2 template-level
//= rfc9298 §2 template-operators
//= rfc9298 §2 template-variables
//= rfc9298 §2 template-characters
//= rfc9298 §2 template-variable-place
//= rfc9298 §2 template-path
#[test]
fn faults_have_places() {
    for (template, position, word) in [
        ("", 0, "absolute URI"),
        ("proxy/{target_host}/{target_port}", 0, "absolute URI"),
        ("//proxy/{target_host}/{target_port}", 0, "one /"),
        ("1x://h/{target_host}/{target_port}", 0, "absolute URI"),
        ("https:///{target_host}/{target_port}", 8, "authority"),
        ("https://h?{target_host}/{target_port}", 9, "path is empty"),
        ("https://h", 9, "path is empty"),
        ("https://{target_host}/{target_port}", 8, "authority"),
        (
            "https://h{target_host}/{target_port}",
            9,
            "only in path and query",
        ),
        ("/{target_host}/", 0, "{target_port}"),
        ("/{target_port}/", 0, "{target_host}"),
        (
            "/{target_host}/{target_port}/{target_host}",
            29,
            "second time",
        ),
        ("/{target_host}/{target_port}/#top", 29, "fragment"),
        ("/{target_host}/{+target_port}", 15, "operators"),
        ("/{#target_host}/{target_port}", 1, "operators"),
        ("/x{.target_host}/{target_port}", 2, "operators"),
        ("/x{/target_host,target_port}", 2, "operators"),
        ("/x{;target_host,target_port}", 2, "operators"),
        ("/{target_host:3}/{target_port}", 13, "level 4"),
        ("/{target_host*}/{target_port}", 13, "level 4"),
        ("/{target_host}/{target_port", 15, "not closed"),
        ("/target_host}/{target_port}", 12, "without a {"),
        ("/{target_host}/{}", 16, "name is missing"),
        ("/{target_host}/{target port}", 22, "0x21"),
        ("/{target_host}/{target-port}", 22, "letters"),
        ("/{target_host}/ä/{target_port}", 15, "0x21"),
        ("/{target_host}/%zz/{target_port}", 15, "hexadecimal"),
        ("/<{target_host}/{target_port}", 1, "percent-encode"),
        ("/p?{?target_host,target_port}", 3, "has begun"),
        ("/p{&target_host,target_port}", 2, "has not begun"),
        ("/{target_host}{target_port}", 14, "side by side"),
        ("/{target_host}-{target_port}", 14, "part of its value"),
        ("/{target_host}%2F{target_port}", 14, "part of its value"),
        ("/{x,target_host}/{target_port}", 1, "expression of its own"),
        ("/{target_host}{?target_port}x=1", 28, "an & must follow"),
        (
            "/{target_host}/{target_port}{?x}{&y}",
            32,
            "nothing may follow",
        ),
        ("/p?a={target_host}&a={target_port}", 21, "second time"),
    ] {
        let (at, what) = refused(template);
        assert!(what.contains(word), "{template}: {what}");
        assert_eq!(at, position, "{template}: {what}");
    }
}

//= rfc9298 §2 template-absolute
//= rfc9298 §2 template-reject
#[test]
fn clients_need_absolute_templates() {
    assert!(Template::validate_client(QUERY).is_ok());
    // Fine for a client, though no server could take it apart.
    assert!(Template::validate_client("https://h/{target_host}{target_port}").is_ok());
    for template in [
        DEFAULT,
        "https://h{target_host}/{target_port}",
        "https://h/{target_host}",
        "https:///{target_host}/{target_port}",
    ] {
        assert!(Template::validate_client(template).is_err(), "{template}");
    }
}

#[test]
fn faults_say_where() {
    let fault = Template::compile("/{target_host}/").unwrap_err();
    assert_eq!(
        fault.to_string(),
        "at byte 0: the variable {target_port} is missing"
    );
}

fn hosts() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z][a-z0-9-]{0,20}(\\.[a-z][a-z0-9_-]{0,10}){0,4}",
        any::<core::net::Ipv4Addr>().prop_map(|address| address.to_string()),
        any::<core::net::Ipv6Addr>().prop_map(|address| address.to_string()),
    ]
}

proptest! {
    #[test]
    fn what_expands_matches(
        template in prop::sample::select(&[
            DEFAULT,
            QUERY,
            "/{target_port}/{target_host}",
            "/{target_host,target_port}",
            "/p?h={target_host}&p={target_port}&z",
            "/a?x=1{&target_port,y,target_host}",
            "/{target_host}/{x}{?target_port}",
        ][..]),
        host in hosts(),
        port in 1..=u16::MAX,
    ) {
        let template = Template::compile(template).unwrap();
        let path = template.expand_path(&host, port);
        let captures = template.matches(&path).unwrap();
        prop_assert_eq!(captures.target(), Target::from_values(&host, &port.to_string()));
    }

    #[test]
    fn any_path_is_taken_apart_without_panic(path in "[/?&=%{},:.a-z0-9_]{0,60}") {
        for template in [DEFAULT, QUERY, "/p?v=1{&target_host,target_port}"] {
            let captures = Template::compile(template).unwrap().matches(&path);
            let _ = captures.map(|captures| captures.target());
        }
    }
}
