use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::fuzzing::datagrams as course;

fn varint_of(value: u64) -> Vec<u8> {
    let mut out = [0; varint::MAX_LEN];
    let used = varint::encode(value, &mut out);
    out[..used].to_vec()
}

fn capsule_of(kind: u64, value: &[u8]) -> Vec<u8> {
    let mut out = [0; MAX_HEADER];
    let used = capsule::encode_header(kind, value.len() as u64, &mut out);
    [&out[..used], value].concat()
}

fn datagram(context: u64, payload: &[u8]) -> Vec<u8> {
    [varint_of(context), payload.to_vec()].concat()
}

fn once(stream: &[u8]) -> (Vec<Vec<u8>>, Result<(), Malformed>) {
    course(&mut ConnectUdp::new(), core::iter::once(stream))
}

#[test]
fn payloads_of_any_size() {
    for length in [0, 1, 63, 1200, 1472, 16_382, MAX_PAYLOAD] {
        let payload = vec![7; length];
        let mut out = [0; MAX_OVERHEAD];
        let used = capsule_header(length, &mut out);
        let stream = [&out[..used], &payload].concat();
        assert_eq!(stream, capsule_of(types::DATAGRAM, &datagram(0, &payload)));
        assert_eq!(once(&stream), (vec![payload.clone()], Ok(())));
        let by_itself = datagram(0, &payload);
        assert_eq!(ConnectUdp::new().datagram(&by_itself), Ok(Some(1)));
    }
}

//= rfc9298 §5 context-0-limit
#[test]
fn a_payload_that_is_too_long_for_udp_ends_the_tunnel() {
    let payload = vec![0; MAX_PAYLOAD + 1];
    let long = datagram(0, &payload);
    let expected = (vec![], Err(Malformed::OversizePayload));
    assert_eq!(once(&capsule_of(types::DATAGRAM, &long)), expected);
    let mut tunnel = ConnectUdp::new();
    assert_eq!(tunnel.datagram(&long), Err(Malformed::OversizePayload));
    assert_eq!(tunnel.inbound(&[]), Err(Malformed::OversizePayload));
    // As soon as it is announced, whatever follows.
    let mut header = [0; MAX_HEADER];
    let used = capsule::encode_header(types::DATAGRAM, varint::MAX, &mut header);
    let mut stream = header[..used].to_vec();
    stream.extend([0; varint::MAX_LEN]);
    assert_eq!(once(&stream), expected);
    let begun = &capsule_of(types::DATAGRAM, &long)[..20];
    assert_eq!(
        ConnectUdp::new().inbound(begun),
        Err(Malformed::OversizePayload)
    );
    // The same length in a context that nobody knows is dropped.
    let other = capsule_of(types::DATAGRAM, &datagram(2, &payload));
    let after = capsule_of(types::DATAGRAM, &datagram(0, b"x"));
    let mut tunnel = ConnectUdp::new();
    let stream = [other, after].concat();
    assert_eq!(
        course(&mut tunnel, stream.chunks(5000)),
        (vec![b"x".to_vec()], Ok(()))
    );
    assert_eq!(tunnel.unknown_contexts(), 1);
    // A context ID may be longer than it has to be, and the payload as long as ever.
    let mut padded = vec![0xc0, 0, 0, 0, 0, 0, 0, 0];
    padded.extend(vec![1; MAX_PAYLOAD]);
    assert_eq!(
        once(&capsule_of(types::DATAGRAM, &padded)),
        (vec![vec![1; MAX_PAYLOAD]], Ok(()))
    );
}

//= rfc9298 §4 unknown-context
//= rfc9297 §3.2 skip-unknown
//= rfc9297 §5.4 skip-grease
#[test]
fn what_is_unknown_is_dropped_and_counted() {
    let stream = [
        capsule_of(types::DATAGRAM, &datagram(4, b"even")),
        capsule_of(types::DATAGRAM, &datagram(5, b"odd")),
        capsule_of(0x1234, b"capsule"),
        capsule_of(0x17, b"grease"),
        capsule_of(types::DATAGRAM, &datagram(0, b"ours")),
    ]
    .concat();
    let mut tunnel = ConnectUdp::new();
    assert_eq!(
        course(&mut tunnel, stream.chunks(3)),
        (vec![b"ours".to_vec()], Ok(()))
    );
    assert_eq!(
        (tunnel.unknown_contexts(), tunnel.unknown_capsules()),
        (2, 1)
    );
}

//= rfc9297 §3.3 malformed-capsule
//= rfc9297 §3.3 truncated-capsule
#[test]
fn datagrams_without_context_and_streams_that_end_early() {
    for value in [&[][..], &[0x40], &[0xc0, 0, 0]] {
        assert_eq!(
            once(&capsule_of(types::DATAGRAM, value)),
            (vec![], Err(Malformed::NoContext))
        );
        assert_eq!(ConnectUdp::new().datagram(value), Err(Malformed::NoContext));
    }
    let stream = capsule_of(types::DATAGRAM, &datagram(0, b"payload"));
    for cut in 1..stream.len() {
        assert_eq!(
            once(&stream[..cut]),
            (vec![], Err(Malformed::TruncatedCapsule))
        );
    }
}

proptest! {
    #[test]
    fn any_split_gives_the_same_payloads(
        given in prop::collection::vec((0u64..3, 0u64..3, prop::collection::vec(any::<u8>(), 0..100)), 0..6),
        size in 1usize..20,
    ) {
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for (kind, context, payload) in given {
            stream.extend(capsule_of(kind, &datagram(context, &payload)));
            if kind == types::DATAGRAM && context == 0 {
                expected.push(payload);
            }
        }
        prop_assert_eq!(course(&mut ConnectUdp::new(), stream.chunks(size)), (expected.clone(), Ok(())));
        prop_assert_eq!(once(&stream), (expected, Ok(())));
    }
}
