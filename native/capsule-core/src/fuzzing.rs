//! Bodies of the fuzz targets: each takes any bytes and panics when a promise is broken. The targets, and a test that
//! replays their corpora, call the same functions.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::capsule::{Decoder, Event, MAX_HEADER, decode_header, encode_header, types};
use crate::ecn_dscp::{CapsuleTypes, Marks};
use crate::ecn_dscp_context_id as marks_field;
use crate::protocols::udp::{self, ConnectUdp};
use crate::protocols::udp_bind::{Bind, Role};
use crate::protocols::udp_marked::Marked;
use crate::protocols::{TABLE, tcp::ConnectTcp};
use crate::request::{Head, Request, Route, Routes, Version, parse};
use crate::target::{Host, Target};
use crate::template::Template;
use crate::tunnel::{End, Finish, Malformed, Step, StreamTunnel};
use crate::uri_template::UriTemplate;
use crate::{capsule_protocol, varint, whole};

/// A target: any bytes in, panics on a broken promise.
pub type Body = fn(&[u8]);

/// Every target by name; a corpus directory has the same name.
pub const TARGETS: &[(&str, Body)] = &[
    ("capsule", capsule),
    ("capsule_protocol", capsule_protocol_field),
    ("connect_tcp", connect_tcp),
    ("connect_udp", connect_udp),
    ("connect_udp_bind", connect_udp_bind),
    ("connect_udp_marked", connect_udp_marked),
    ("request", request),
    ("target", target),
    ("template", template),
    ("varint", varint_body),
];

/// Decoding and encoding agree.
pub fn varint_body(data: &[u8]) {
    let Some((value, used)) = varint::decode(data) else {
        assert!(data.len() < varint::MAX_LEN);
        return;
    };
    assert!(value <= varint::MAX && varint::len(value) <= used && used <= data.len());
    let mut out = [0; varint::MAX_LEN];
    let length = varint::encode(value, &mut out);
    assert_eq!(varint::decode(&out[..length]), Some((value, length)));
    for cut in 0..used {
        assert_eq!(varint::decode(&data[..cut]), None);
    }
}

/// The capsules of a data stream: type, length, the part of the value that came.
pub type Capsules = Vec<(u64, u64, Vec<u8>)>;

/// Decodes chunks; tells the capsules and whether the end is at a boundary.
pub fn capsules<'c>(chunks: impl Iterator<Item = &'c [u8]>) -> (Capsules, bool) {
    let mut decoder = Decoder::new();
    let mut capsules = Capsules::new();
    for mut chunk in chunks {
        loop {
            let used = match decoder.decode(chunk) {
                Event::Idle => break,
                Event::Partial { consumed } => {
                    assert_eq!(consumed, chunk.len());
                    consumed
                }
                Event::Header {
                    kind,
                    length,
                    consumed,
                } => {
                    capsules.push((kind, length, Vec::new()));
                    consumed
                }
                Event::Value { remaining } => {
                    let taken =
                        usize::try_from(remaining).map_or(chunk.len(), |n| n.min(chunk.len()));
                    if let Some((_, _, value)) = capsules.last_mut() {
                        value.extend_from_slice(&chunk[..taken]);
                    }
                    decoder.advance(taken as u64);
                    taken
                }
            };
            assert!(used > 0 && used <= chunk.len());
            chunk = &chunk[used..];
        }
    }
    (capsules, decoder.at_boundary())
}

/// Any split gives the same capsules.
pub fn capsule(data: &[u8]) {
    let whole = capsules(core::iter::once(data));
    assert_eq!(capsules(data.chunks(1)), whole);
    for size in [2, 3, 7] {
        assert_eq!(capsules(data.chunks(size)), whole);
    }
    if let Some((kind, length, _)) = decode_header(data) {
        let mut out = [0; MAX_HEADER];
        let used = encode_header(kind, length, &mut out);
        assert_eq!(decode_header(&out[..used]), Some((kind, length, used)));
    }
}

/// What one direction of a tunnel came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    /// Payload, joined.
    pub payload: Vec<u8>,
    /// Payload bytes that preceded each [`Step::Finish`].
    pub finishes: Vec<usize>,
    /// How it ended.
    pub end: Result<End, Malformed>,
    /// Capsules of unknown type.
    pub unknown: u64,
}

/// Runs a tunnel's receiving side as an engine does, taking at most `bite` bytes of payload at a time.
pub fn course<'c>(
    tunnel: &mut impl StreamTunnel,
    chunks: impl Iterator<Item = &'c [u8]>,
    bite: usize,
) -> Course {
    let mut payload = Vec::new();
    let mut finishes = Vec::new();
    let mut end = None;
    'chunks: for mut chunk in chunks.chain(core::iter::once(&[][..])) {
        loop {
            let used = match tunnel.inbound(chunk) {
                Err(fault) => {
                    assert_eq!(tunnel.inbound(chunk), Err(fault));
                    assert_eq!(tunnel.inbound_end(), End::Malformed(fault));
                    end = Some(Err(fault));
                    break 'chunks;
                }
                Ok(Step::Idle) => {
                    assert!(chunk.is_empty());
                    break;
                }
                Ok(Step::Finish) => {
                    finishes.push(payload.len());
                    continue;
                }
                Ok(Step::Skip(used)) => used,
                Ok(Step::Payload(next)) => {
                    assert_eq!(next, tunnel.payload_pending());
                    let next = usize::try_from(next).unwrap_or(usize::MAX);
                    let taken = next.min(chunk.len()).min(bite);
                    payload.extend_from_slice(&chunk[..taken]);
                    tunnel.advance(taken as u64);
                    taken
                }
            };
            assert!(used > 0 && used <= chunk.len());
            chunk = &chunk[used..];
        }
    }
    assert!(finishes.len() <= 1);
    Course {
        payload,
        finishes,
        end: end.unwrap_or_else(|| Ok(tunnel.inbound_end())),
        unknown: tunnel.unknown_capsules(),
    }
}

/// Any split and any bite give the same course; what one end sends the other understands.
pub fn connect_tcp(data: &[u8]) {
    let fresh = || ConnectTcp::new(types::DATA_12, types::FINAL_DATA_12);
    let whole = course(&mut fresh(), core::iter::once(data), usize::MAX);
    for (size, bite) in [(1, 1), (2, 2), (3, 1), (5, usize::MAX), (16, 7)] {
        assert_eq!(course(&mut fresh(), data.chunks(size), bite), whole);
    }
    let mut sender = fresh();
    let mut stream = Vec::new();
    let mut header = [0; MAX_HEADER];
    for part in data.chunks(5) {
        let used = sender.outbound_header(part.len(), &mut header);
        stream.extend_from_slice(&header[..used]);
        stream.extend_from_slice(part);
    }
    if let Finish::Bytes(used) = sender.outbound_finish(&mut header) {
        stream.extend_from_slice(&header[..used]);
    }
    let received = course(&mut fresh(), stream.chunks(3), usize::MAX);
    assert_eq!(received.payload, data);
    assert_eq!(received.finishes, [data.len()]);
    assert_eq!(received.end, Ok(End::Complete));
}

/// The payloads of a data stream with what its machine says of each, and how it ended.
pub type Payloads<P> = (Vec<(P, Vec<u8>)>, Result<(), Malformed>);

/// Runs a datagram tunnel's receiving side as an engine does: `look` at what is at hand, and tell of the end.
fn payloads<'c, M, P: core::fmt::Debug + PartialEq>(
    machine: &mut M,
    chunks: impl Iterator<Item = &'c [u8]>,
    mut look: impl FnMut(&mut M, &[u8]) -> Result<whole::Step<P>, Malformed>,
    end: impl FnOnce(&mut M, usize) -> Result<(), Malformed>,
) -> Payloads<P> {
    let (mut held, mut payloads) = (Vec::new(), Vec::new());
    for chunk in chunks {
        held.extend_from_slice(chunk);
        loop {
            match look(machine, &held) {
                Ok(whole::Step::Idle) => break,
                Ok(whole::Step::More(bytes)) => {
                    assert!(bytes > held.len());
                    break;
                }
                Ok(whole::Step::Skip(bytes)) => {
                    assert!(bytes > 0);
                    held.drain(..bytes);
                }
                Ok(whole::Step::Payload {
                    peer,
                    start,
                    length,
                }) => {
                    assert!(length <= udp::MAX_PAYLOAD);
                    payloads.push((peer, held[start..start + length].to_vec()));
                    held.drain(..start + length);
                }
                Err(fault) => {
                    assert_eq!(look(machine, &held), Err(fault));
                    return (payloads, Err(fault));
                }
            }
        }
    }
    let end = end(machine, held.len());
    (payloads, end)
}

/// Runs the receiving side of a connect-udp tunnel.
pub fn datagrams<'c>(
    tunnel: &mut ConnectUdp,
    chunks: impl Iterator<Item = &'c [u8]>,
) -> (Vec<Vec<u8>>, Result<(), Malformed>) {
    let (payloads, end) = payloads(tunnel, chunks, ConnectUdp::inbound, ConnectUdp::inbound_end);
    (payloads.into_iter().map(|((), it)| it).collect(), end)
}

/// Any split gives the same payloads, and what is sent is received.
pub fn connect_udp(data: &[u8]) {
    let whole = datagrams(&mut ConnectUdp::new(), core::iter::once(data));
    for size in [1, 2, 3, 7] {
        let split = datagrams(&mut ConnectUdp::new(), data.chunks(size));
        assert_eq!(split, whole);
    }
    let _ = ConnectUdp::new().datagram(data);
    let mut stream = Vec::new();
    let mut header = [0; udp::MAX_OVERHEAD];
    for payload in data.chunks(9) {
        let used = udp::capsule_header(payload.len(), &mut header);
        stream.extend_from_slice(&header[..used]);
        stream.extend_from_slice(payload);
    }
    let (payloads, end) = datagrams(&mut ConnectUdp::new(), stream.chunks(4));
    assert_eq!((payloads.concat(), end), (data.to_vec(), Ok(())));
}

/// Runs the receiving side of a bound tunnel; payloads come with their peers.
pub fn bound<'c>(
    tunnel: &mut Bind,
    chunks: impl Iterator<Item = &'c [u8]>,
    permit: &mut dyn FnMut(SocketAddr) -> bool,
) -> Payloads<SocketAddr> {
    let look = |tunnel: &mut Bind, data: &[u8]| tunnel.inbound(data, permit);
    payloads(tunnel, chunks, look, Bind::inbound_end)
}

/// Any split gives the same payloads and answers, whatever the peer registers; what an end sends, the other end takes.
pub fn connect_udp_bind(data: &[u8]) {
    for (role, other) in [(Role::Proxy, Role::Client), (Role::Client, Role::Proxy)] {
        let mut whole = Bind::new(role, None);
        let expected = bound(&mut whole, core::iter::once(data), &mut |peer| {
            peer.is_ipv4()
        });
        let answers = whole.take_pending();
        for size in [1, 2, 3, 7] {
            let mut tunnel = Bind::new(role, None);
            let split = bound(&mut tunnel, data.chunks(size), &mut |peer| peer.is_ipv4());
            assert_eq!(split, expected);
            assert_eq!(tunnel.take_pending(), answers);
        }
        let _ = whole.datagram(data, &mut |_| true);
        // Answers are capsules that the other end can read, even if it never asked.
        let mut reader = Bind::new(other, None);
        if let (_, Err(fault)) = bound(&mut reader, core::iter::once(&answers[..]), &mut |_| true) {
            assert_eq!(fault, Malformed::Compression);
        }
    }
}

/// Runs the receiving side of a tunnel with marks; payloads come with those of their packets.
pub fn marked<'c>(tunnel: &mut Marked, chunks: impl Iterator<Item = &'c [u8]>) -> Payloads<Marks> {
    payloads(tunnel, chunks, Marked::inbound, Marked::inbound_end)
}

/// The field (first line), then a data stream: any split gives the same payloads and answers, which the other end can read.
pub fn connect_udp_marked(data: &[u8]) {
    const TYPES: CapsuleTypes = CapsuleTypes {
        assign: 0x3b,
        ack: 0x3c,
    };
    let end = data.iter().position(|&byte| byte == b'\n');
    let (line, stream) = data.split_at(end.map_or(data.len(), |end| end + 1));
    let client = marks_field::from_fields(&[(marks_field::NAME, line)], Role::Client);
    let client = client.unwrap_or_default();
    let field = marks_field::to_field(&client);
    let read = marks_field::from_fields(&[(marks_field::NAME, field.as_bytes())], Role::Client);
    assert_eq!(read.as_deref(), Some(&client[..]));
    for types in [Some(TYPES), None] {
        let mut whole = Marked::proxy(&client, types);
        let expected = marked(&mut whole, core::iter::once(stream));
        let contexts: Vec<u64> = (0..=u8::MAX)
            .map(|byte| whole.context(Marks(byte)))
            .collect();
        let answers = whole.take_pending();
        for size in [1, 2, 3, 7] {
            let mut tunnel = Marked::proxy(&client, types);
            assert_eq!(marked(&mut tunnel, stream.chunks(size)), expected);
            let again: Vec<u64> = (0..=u8::MAX)
                .map(|byte| tunnel.context(Marks(byte)))
                .collect();
            assert_eq!(
                (again, tunnel.take_pending()),
                (contexts.clone(), answers.clone())
            );
        }
        let _ = whole.datagram(stream);
        let mut reader = Marked::client(&[], types);
        reader.take(&Marked::proxy(&client, types).ours());
        if let (_, Err(fault)) = marked(&mut reader, core::iter::once(&answers[..])) {
            assert_eq!(fault, Malformed::EcnDscp);
        }
    }
}

/// The field's parser never panics.
pub fn capsule_protocol_field(data: &[u8]) {
    let lines: Vec<(&str, &[u8])> = data
        .split(|&byte| byte == b'\n')
        .map(|line| (capsule_protocol::NAME, line))
        .collect();
    assert!(!capsule_protocol::is_true(&lines) || lines.len() == 1);
}

/// A sound target survives being written and read again.
pub fn target(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else {
        return;
    };
    if let Ok(target) = Target::from_authority(text) {
        check_target(&target);
    }
    let (host, port) = text.split_once('\n').unwrap_or((text, "443"));
    if let Ok(target) = Target::from_values(host, port) {
        check_target(&target);
    }
}

fn check_target(target: &Target) {
    use alloc::string::ToString as _;
    if *target == Target::ANY {
        return;
    }
    assert!(target.port > 0);
    assert_eq!(
        Target::from_authority(&target.to_string()).as_ref(),
        Ok(target)
    );
    let port = target.port.to_string();
    assert_eq!(
        Target::from_values(&target.host.to_string(), &port).as_ref(),
        Ok(target)
    );
    if let Host::Name(name) = &target.host {
        assert!(name.len() <= 254 && name.is_ascii());
    }
}

/// What a template expands to, it matches; compiled templates keep the rules. First line: template; second: path.
pub fn template(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else {
        return;
    };
    let (text, path) = text.split_once('\n').unwrap_or((text, "/"));
    if let Ok(uri) = UriTemplate::parse(text) {
        let expanded = uri.expand(&|name| name.starts_with('t').then_some("a b/é%2f"));
        assert!(expanded.is_ascii());
    }
    let _ = Template::validate_client(text);
    match Template::compile(text) {
        Err(fault) => assert!(fault.position <= text.len()),
        Ok(template) => {
            if let Some(captures) = template.matches(path) {
                let _ = captures.target();
            }
            for (host, port) in [
                ("2001:db8::1", 65535),
                ("192.0.2.1", 1),
                ("a-b.example", 443),
            ] {
                let expanded = template.expand_path(host, port);
                let read = template
                    .matches(&expanded)
                    .map(|captures| captures.target());
                let port = alloc::format!("{port}");
                assert_eq!(read, Some(Target::from_values(host, &port)), "{expanded}");
            }
        }
    }
}

/// Routes that serve everything at the default templates, and one query template.
#[must_use]
pub fn routes() -> Routes {
    let mut templated = Vec::new();
    for protocol in TABLE.iter().filter(|protocol| protocol.templated) {
        for template in protocol
            .default_template
            .into_iter()
            .chain([QUERY_TEMPLATE])
        {
            if let Ok(template) = Template::compile(template) {
                templated.push(Route {
                    protocol,
                    template,
                    profiles: protocol.profiles.to_vec(),
                    bind: protocol.can_bind,
                    marks: protocol.can_mark,
                });
            }
        }
    }
    Routes {
        connect: true,
        templated,
    }
}

const QUERY_TEMPLATE: &str = "/proxy{?target_host,target_port}";

/// Every answer is one that can be sent. Lines: version (a digit), method, :scheme, :authority, path, :protocol (empty
/// = absent), then `name: value` fields.
pub fn request(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n');
    let mut text = || core::str::from_utf8(lines.next().unwrap_or_default()).ok();
    let (Some(version), Some(method)) = (text(), text()) else {
        return;
    };
    let mut pseudo = vec![None; 4];
    for slot in &mut pseudo {
        let Some(value) = text() else { return };
        *slot = Some(value).filter(|value| !value.is_empty());
    }
    let fields: Vec<(&str, &[u8])> = lines
        .filter_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            let name = core::str::from_utf8(&line[..colon]).ok()?;
            Some((name, line[colon + 1..].trim_ascii()))
        })
        .collect();
    let head = Head {
        version: match version {
            "0" => Version::H1_0,
            "1" => Version::H1_1,
            "2" => Version::H2,
            _ => Version::H3,
        },
        method,
        scheme: pseudo[0],
        authority: pseudo[1],
        path: pseudo[2],
        protocol: pseudo[3],
        fields: &fields,
    };
    let mut routes = routes();
    for connect in [true, false] {
        routes.connect = connect;
        match parse(&routes, &head) {
            Ok(request) => check_request(&request),
            Err(reject) => check_reject(&reject),
        }
    }
}

fn check_request(request: &Request) {
    assert_eq!(request.token.is_some(), request.protocol.templated);
    assert_eq!(request.profile.is_some(), request.protocol.templated);
    let _ = request.tunnel();
    match &request.target {
        Ok(target) => check_target(target),
        Err(reject) => {
            check_reject(reject);
            assert_eq!(reject.close, request.close_on_reject);
        }
    }
}

fn check_reject(reject: &crate::reject::Reject) {
    assert!((400..600).contains(&reject.status));
    let has = |name: &str| reject.fields.iter().any(|(field, _)| *field == name);
    assert_eq!(reject.status == 405, has("allow"));
    assert_eq!(reject.status == 426, has("upgrade"));
    let body: String = reject.problem();
    assert!(body.starts_with('{') && body.ends_with('}'));
}
