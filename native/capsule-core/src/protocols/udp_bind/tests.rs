#![allow(clippy::unwrap_used)]

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::fuzzing::bound as course;

/// Payloads with their peers.
type Received = Vec<(SocketAddr, Vec<u8>)>;

fn peer(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn v4() -> SocketAddr {
    peer("192.0.2.7:4433")
}

fn v6() -> SocketAddr {
    peer("[2001:db8::1]:53")
}

fn proxy() -> Bind {
    Bind::new(Role::Proxy, None)
}

fn client() -> Bind {
    Bind::new(Role::Client, None)
}

fn assign(context: u64, peer: Option<SocketAddr>) -> Vec<u8> {
    let mut out = Vec::new();
    Compression::Assign { context, peer }.encode(&mut out);
    out
}

fn ack(context: u64) -> Vec<u8> {
    let mut out = Vec::new();
    Compression::Ack { context }.encode(&mut out);
    out
}

fn close(context: u64) -> Vec<u8> {
    let mut out = Vec::new();
    Compression::Close { context }.encode(&mut out);
    out
}

fn capsule(value: &[u8]) -> Vec<u8> {
    let mut header = [0; MAX_HEADER];
    let used = capsule_header(value.len(), &mut header);
    [&header[..used], value].concat()
}

/// What `tunnel` makes of a whole stream.
fn take(tunnel: &mut Bind, stream: &[u8]) -> Result<Received, Malformed> {
    let (payloads, end) = course(tunnel, core::iter::once(stream), &mut |_| true);
    end.map(|()| payloads)
}

/// A datagram as `sender` puts it, capsule and all.
fn put(sender: &Bind, peer: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let mut out = [0; MAX_PREFIX];
    let used = sender.prefix(peer, &mut out)?;
    Some(capsule(&[&out[..used], payload].concat()))
}

/// Carries what waits at each end to the other until nothing does.
fn exchange(client: &mut Bind, proxy: &mut Bind) {
    while client.has_pending() || proxy.has_pending() {
        take(proxy, &client.take_pending()).unwrap();
        take(client, &proxy.take_pending()).unwrap();
    }
}

//= connect-udp-bind §3.1 answer-assign
//= connect-udp-bind §3.1 one-context-per-tuple
//= connect-udp-bind §8 forward-by-context
#[test]
fn uncompressed_then_compressed() {
    let (mut client, mut proxy) = (client(), proxy());
    assert_eq!(put(&client, v4(), b"a"), None);
    assert_eq!(put(&proxy, v4(), b"a"), None);
    assert_eq!(client.open_uncompressed(), Ok(2));
    assert_eq!(client.open_uncompressed(), Err(NotOpened::Open));
    assert_eq!(client.take_pending(), assign(2, None));
    assert_eq!(take(&mut proxy, &assign(2, None)), Ok(vec![]));
    assert_eq!(proxy.take_pending(), ack(2));
    assert!(!client.is_acknowledged(2));
    take(&mut client, &ack(2)).unwrap();
    assert!(client.is_acknowledged(2));

    for peer in [v4(), v6()] {
        let up = put(&client, peer, b"to").unwrap();
        assert_eq!(take(&mut proxy, &up), Ok(vec![(peer, b"to".to_vec())]));
        let down = put(&proxy, peer, b"").unwrap();
        assert_eq!(take(&mut client, &down), Ok(vec![(peer, vec![])]));
    }
    assert_eq!(
        put(&proxy, v4(), b"!").unwrap(),
        [0, 9, 2, 4, 192, 0, 2, 7, 0x11, 0x51, b'!']
    );

    assert_eq!(client.open_compressed(v4()), Ok(4));
    assert_eq!(client.open_compressed(v4()), Err(NotOpened::Open));
    // Not known to the proxy for sure, so the uncompressed one is used until it is.
    assert_eq!(put(&client, v4(), b"!").unwrap()[2], 2);
    exchange(&mut client, &mut proxy);
    assert_eq!(put(&client, v4(), b"!").unwrap(), [0, 2, 4, b'!']);
    assert_eq!(put(&proxy, v4(), b"!").unwrap(), [0, 2, 4, b'!']);
    assert_eq!(put(&proxy, v6(), b"!").unwrap()[2], 2);
    let up = put(&client, v4(), b"to").unwrap();
    assert_eq!(take(&mut proxy, &up), Ok(vec![(v4(), b"to".to_vec())]));
}

//= connect-udp-bind §3 context-0-aborts
//= connect-udp-bind §3 context-0-target
#[test]
fn context_0_is_the_targets_or_nobodys() {
    let stream = capsule(&[0, b'!']);
    assert_eq!(take(&mut proxy(), &stream), Err(Malformed::ContextZero));
    assert_eq!(
        proxy().datagram(&[0], &mut |_| true),
        Err(Malformed::ContextZero)
    );
    let mut long = [0; MAX_HEADER];
    let used = capsule_header(1 << 20, &mut long);
    let stream_of_long = [&long[..used], &[0; 8][..]].concat();
    assert_eq!(
        take(&mut proxy(), &stream_of_long),
        Err(Malformed::ContextZero)
    );

    let mut bound = Bind::new(Role::Proxy, Some(v4()));
    assert_eq!(take(&mut bound, &stream), Ok(vec![(v4(), b"!".to_vec())]));
    assert_eq!(put(&bound, v4(), b"!").unwrap(), stream);
    assert_eq!(put(&bound, v6(), b"!"), None);
    assert_eq!(
        take(&mut bound, &stream_of_long),
        Err(Malformed::OversizePayload)
    );
}

/// Each course of capsules breaks a rule with the last of them.
//= connect-udp-bind §3 parity
//= connect-udp-bind §3.1 repeated-id-malformed
//= connect-udp-bind §3.1 same-tuple-malformed
//= connect-udp-bind §3.1 context-0-malformed
//= connect-udp-bind §3.2 ack-unknown-malformed
//= connect-udp-bind §3.3 close-0-malformed
//= connect-udp-bind §4 one-uncompressed
#[test]
fn what_a_proxy_calls_malformed() {
    let courses: [&[Vec<u8>]; 14] = [
        &[assign(1, None)],
        &[assign(3, Some(v4()))],
        &[assign(2, None), assign(4, None)],
        &[assign(2, None), assign(2, Some(v4()))],
        &[assign(2, Some(v4())), close(2), assign(2, Some(v4()))],
        &[assign(2, Some(v4())), assign(4, Some(v4()))],
        &[ack(2)],
        &[ack(1)],
        &[vec![0x11, 2, 0, 0]],
        &[vec![0x12, 1, 0]],
        &[vec![0x13, 1, 0]],
        &[vec![0x11, 3, 2, 0, 0]],
        &[vec![0x11, 29]
            .into_iter()
            .chain([0x40; 29])
            .collect::<Vec<u8>>()],
        &[assign(2, None), capsule(&[2, 5, 1, 2, 3, 4, 0, 1])],
    ];
    for course in courses {
        let mut tunnel = proxy();
        let (last, before) = course.split_last().unwrap();
        assert!(take(&mut tunnel, &before.concat()).is_ok(), "{course:?}");
        let fault = take(&mut tunnel, last);
        assert_eq!(fault, Err(Malformed::Compression), "{course:?}");
        assert_eq!(take(&mut tunnel, &[]), Err(Malformed::Compression));
    }
}

//= connect-udp-bind §4 uncompressed-by-client
#[test]
fn what_a_client_calls_malformed() {
    for stream in [assign(1, None), assign(2, Some(v4())), ack(2), ack(1)] {
        assert_eq!(take(&mut client(), &stream), Err(Malformed::Compression));
    }
}

//= connect-udp-bind §3.1 simultaneous-close-proxys
#[test]
fn of_two_for_one_peer_the_proxys_is_closed() {
    let (mut client, mut proxy) = (client(), proxy());
    client.open_uncompressed().unwrap();
    exchange(&mut client, &mut proxy);
    assert_eq!(client.open_compressed(v4()), Ok(4));
    assert_eq!(proxy.open_compressed(v4()), Ok(1));
    let (up, down) = (client.take_pending(), proxy.take_pending());
    take(&mut client, &down).unwrap();
    take(&mut proxy, &up).unwrap();
    assert_eq!(client.pending, close(1));
    assert_eq!(proxy.pending, [close(1), ack(4)].concat());
    exchange(&mut client, &mut proxy);
    for end in [&client, &proxy] {
        assert_eq!(put(end, v4(), b"!").unwrap(), [0, 2, 4, b'!']);
    }
}

//= connect-udp-bind §3.1 firewall
//= connect-udp-bind §8.1 no-context-no-datagram
#[test]
fn without_the_uncompressed_context_only_registered_peers_get_through() {
    let (mut client, mut proxy) = (client(), proxy());
    assert_eq!(proxy.open_compressed(v4()), Err(NotOpened::NotHere));
    assert_eq!(proxy.open_uncompressed(), Err(NotOpened::NotHere));
    client.open_uncompressed().unwrap();
    exchange(&mut client, &mut proxy);
    assert_eq!(proxy.open_compressed(v4()), Ok(1));
    exchange(&mut client, &mut proxy);
    assert!(client.close(2));
    assert!(!client.close(2));
    exchange(&mut client, &mut proxy);
    assert_eq!(proxy.open_compressed(v6()), Err(NotOpened::NotHere));
    assert_eq!(put(&proxy, v6(), b"!"), None);
    assert_eq!(put(&proxy, v4(), b"!").unwrap(), [0, 2, 1, b'!']);
    // Opened again, under another ID.
    assert_eq!(client.open_uncompressed(), Ok(4));
    exchange(&mut client, &mut proxy);
    assert_eq!(put(&proxy, v6(), b"!").unwrap()[2], 4);
}

//= connect-udp-bind §3.3 close-any
//= connect-udp-bind §3.3 none-after-close
//= connect-udp-bind §3.3 late-datagrams-dropped
#[test]
fn closed_contexts_carry_nothing() {
    let (mut client, mut proxy) = (client(), proxy());
    client.open_compressed(v4()).unwrap();
    let late = put(&client, v4(), b"late").unwrap();
    exchange(&mut client, &mut proxy);
    assert!(proxy.close(2));
    assert_eq!(take(&mut proxy, &late), Ok(vec![]));
    assert_eq!(proxy.unknown_contexts(), 1);
    // Closed by both at once.
    assert!(client.close(2));
    exchange(&mut client, &mut proxy);
    assert_eq!(put(&client, v4(), b"!"), None);
    assert_eq!(put(&proxy, v4(), b"!"), None);
    // An ACK that crossed the CLOSE is no fault.
    assert_eq!(take(&mut client, &ack(2)), Ok(vec![]));
}

//= connect-udp-bind §9 check-each-target
#[test]
fn peers_that_may_not_be_reached() {
    let permit = &mut |peer: SocketAddr| peer.is_ipv6();
    let mut tunnel = proxy();
    let stream = [
        assign(2, None),
        assign(4, Some(v4())),
        assign(6, Some(v6())),
    ]
    .concat();
    let (_, end) = course(&mut tunnel, core::iter::once(&stream[..]), permit);
    assert_eq!(end, Ok(()));
    assert_eq!(tunnel.take_pending(), [ack(2), close(4), ack(6)].concat());
    let mut sender = client();
    sender.open_uncompressed().unwrap();
    let stream = [
        put(&sender, v4(), b"no").unwrap(),
        put(&sender, v6(), b"yes").unwrap(),
    ]
    .concat();
    let (payloads, end) = course(&mut tunnel, core::iter::once(&stream[..]), permit);
    assert_eq!((payloads, end), (vec![(v6(), b"yes".to_vec())], Ok(())));
    assert_eq!(tunnel.refused(), 1);
}

fn numbered(number: u16) -> SocketAddr {
    SocketAddr::new(v4().ip(), number)
}

//= connect-udp-bind §9 bound-contexts
//= connect-udp-bind §9 bound-answers
#[test]
fn contexts_and_answers_are_bounded() {
    let mut tunnel = proxy();
    let last = MAX_CONTEXTS as u64;
    for number in 1..=last {
        take(
            &mut tunnel,
            &assign(2 * number, Some(numbered(number as u16))),
        )
        .unwrap();
    }
    tunnel.take_pending();
    let further = assign(2 * (last + 1), Some(v6()));
    assert_eq!(take(&mut tunnel, &further), Ok(vec![]));
    assert_eq!(tunnel.take_pending(), close(2 * (last + 1)));
    // A place is free again.
    take(&mut tunnel, &close(2)).unwrap();
    take(&mut tunnel, &assign(2 * (last + 2), Some(v6()))).unwrap();
    assert_eq!(tunnel.take_pending(), ack(2 * (last + 2)));

    let mut tunnel = proxy();
    for number in 1..=MAX_PENDING as u64 {
        take(
            &mut tunnel,
            &assign(2 * number, Some(numbered(number as u16))),
        )
        .unwrap();
    }
    let further = assign(2 * (MAX_PENDING as u64 + 1), Some(v6()));
    let end = take(&mut tunnel, &further);
    assert_eq!(end, Err(Malformed::TooManyContexts));
}

#[test]
fn payloads_of_any_size() {
    let mut sender = client();
    let mut receiver = proxy();
    sender.open_uncompressed().unwrap();
    take(&mut receiver, &sender.take_pending()).unwrap();
    for length in [0, 1, 1200, 1472, MAX_PAYLOAD] {
        for peer in [v4(), v6()] {
            let payload = vec![7; length];
            let stream = put(&sender, peer, &payload).unwrap();
            assert_eq!(take(&mut receiver, &stream), Ok(vec![(peer, payload)]));
        }
    }
    let stream = put(&sender, v4(), &vec![0; MAX_PAYLOAD + 1]).unwrap();
    let end = take(&mut receiver.clone(), &stream);
    assert_eq!(end, Err(Malformed::OversizePayload));
    // Of others nothing is known, however long they are.
    let mut stream = vec![0; 100_000];
    stream[0] = 8;
    assert_eq!(take(&mut receiver, &capsule(&stream)), Ok(vec![]));
    assert_eq!(receiver.unknown_contexts(), 1);
}

fn capsules() -> impl Strategy<Value = Vec<u8>> {
    let peers = prop::sample::select(vec![None, Some(v4()), Some(v6())]);
    let one = prop_oneof![
        (1u64..12, peers).prop_map(|(context, peer)| assign(context, peer)),
        (1u64..12).prop_map(ack),
        (1u64..12).prop_map(close),
        (0u8..12, prop::collection::vec(any::<u8>(), 0..30))
            .prop_map(|(context, rest)| capsule(&[&[context][..], &rest].concat())),
    ];
    prop::collection::vec(one, 0..12).prop_map(|capsules| capsules.concat())
}

proptest! {
    #[test]
    fn any_split_gives_the_same(stream in capsules(), size in 1usize..9, target in any::<bool>()) {
        let fresh = || Bind::new(Role::Proxy, target.then(v4));
        let (mut whole, mut split) = (fresh(), fresh());
        let permit = &mut |peer: SocketAddr| peer != v6();
        let expected = course(&mut whole, core::iter::once(&stream[..]), permit);
        prop_assert_eq!(course(&mut split, stream.chunks(size), permit), expected);
        prop_assert_eq!(whole.take_pending(), split.take_pending());
    }
}
