#![allow(clippy::unwrap_used)]

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::capsule::{MAX_HEADER, encode_header};
use crate::fuzzing::marked as course;

const TYPES: CapsuleTypes = CapsuleTypes {
    assign: 0x3b,
    ack: 0x3c,
};
const ECT1: u8 = 0b01;
const CE: u8 = 0b11;

fn set(dscp: u8, contexts: [u64; 4]) -> Assignment {
    Assignment { dscp, contexts }
}

fn proxy(client: &[Assignment]) -> Marked {
    Marked::proxy(client, Some(TYPES))
}

fn registration(kind: u64, assignments: &[Assignment]) -> Vec<u8> {
    let mut out = Vec::new();
    ecn_dscp::encode(kind, assignments, &mut out);
    out
}

fn datagram(context: u64, payload: &[u8]) -> Vec<u8> {
    let mut id = [0; varint::MAX_LEN];
    let used = varint::encode(context, &mut id);
    let mut header = [0; MAX_HEADER];
    let length = (used + payload.len()) as u64;
    let begun = encode_header(types::DATAGRAM, length, &mut header);
    [&header[..begun], &id[..used], payload].concat()
}

/// What `tunnel` makes of a whole stream.
fn take(tunnel: &mut Marked, stream: &[u8]) -> Result<Vec<(Marks, Vec<u8>)>, Malformed> {
    let (payloads, end) = course(tunnel, core::iter::once(stream));
    end.map(|()| payloads)
}

//= connect-udp-ecn-dscp §2 all-ecn-values
//= connect-udp-ecn-dscp §2 context-parity
//= connect-udp-ecn-dscp §3.1.1 direction
#[test]
fn each_end_assigns_for_what_it_sends() {
    let theirs = [set(46, [8, 10, 12, 14]), set(0, [0, 2, 4, 6])];
    let mut tunnel = proxy(&theirs);
    let ours = tunnel.ours();
    assert_eq!(ours, [set(0, [0, 1, 3, 5]), set(46, [7, 9, 11, 13])]);
    // Theirs and ours are good for what they send, ours alone for what we send.
    for assignment in theirs.iter().chain(&ours) {
        for (context, marks) in assignment.meanings() {
            let stream = datagram(context, b"up");
            assert_eq!(
                take(&mut tunnel, &stream),
                Ok(vec![(marks, b"up".to_vec())])
            );
        }
    }
    for assignment in ours {
        for (context, marks) in assignment.meanings() {
            assert_eq!(tunnel.context(marks), context);
        }
    }
    assert!(!tunnel.has_pending());
}

//= connect-udp-ecn-dscp §4.1 unknown-context
#[test]
fn unknown_contexts_are_dropped() {
    let mut tunnel = proxy(&[]);
    for context in [2, 7, 1 << 40] {
        assert_eq!(take(&mut tunnel, &datagram(context, b"x")), Ok(vec![]));
    }
    assert_eq!(take(&mut tunnel, &datagram(2, &[0; 70_000])), Ok(vec![]));
    assert_eq!(tunnel.unknown_contexts(), 4);
    // A proxy may use none of a client's own.
    let mut client = Marked::client(&[], Some(TYPES));
    assert_eq!(take(&mut client, &datagram(2, b"x")), Ok(vec![]));
}

//= connect-udp-ecn-dscp §4.1 register-dscp
//= connect-udp-ecn-dscp §4.1 marks-choose-context
#[test]
fn a_dscp_that_was_not_known_gets_contexts() {
    let mut tunnel = proxy(&[]);
    let marks = Marks::new(10, CE);
    // Not before the other end knows them.
    assert_eq!(tunnel.context(marks), 5);
    let assigned = set(10, [7, 9, 11, 13]);
    assert_eq!(
        tunnel.take_pending(),
        registration(TYPES.assign, &[assigned])
    );
    assert_eq!(tunnel.context(marks), 5);
    assert!(!tunnel.has_pending());
    assert_eq!(
        take(&mut tunnel, &registration(TYPES.ack, &[assigned])),
        Ok(vec![])
    );
    assert_eq!(tunnel.context(marks), 13);
    // Without capsules it never will.
    let mut tunnel = Marked::proxy(&[], None);
    assert_eq!(tunnel.context(marks), 5);
    assert!(!tunnel.has_pending());
    let stream = registration(TYPES.assign, &[set(3, [2, 4, 6, 8])]);
    assert_eq!(take(&mut tunnel, &stream), Ok(vec![]));
    assert_eq!(
        (tunnel.unknown_capsules(), tunnel.has_pending()),
        (1, false)
    );
}

//= connect-udp-ecn-dscp §3.1.2 ack-what-came
#[test]
fn what_the_other_end_assigns_later_is_acknowledged() {
    let mut tunnel = proxy(&[set(0, [0, 2, 4, 6])]);
    let later = [set(46, [8, 10, 12, 14]), set(1, [16, 18, 20, 22])];
    let stream = [
        registration(TYPES.assign, &later),
        datagram(18, b"at once"),
        registration(TYPES.assign, &[]),
    ];
    let expected = vec![(Marks::new(1, ECT1), b"at once".to_vec())];
    assert_eq!(take(&mut tunnel, &stream.concat()), Ok(expected));
    assert_eq!(tunnel.take_pending(), registration(TYPES.ack, &later));
}

//= connect-udp-ecn-dscp §3.1.2 ack-unknown-malformed
//= connect-udp-ecn-dscp §3.1.2 bound-assignments
//= connect-udp-ecn-dscp §3.1.1 none-twice
#[test]
fn what_breaks_a_rule_is_malformed() {
    let given = [set(0, [0, 2, 4, 6])];
    let long = [&[0x3b, 0x48, 0x50][..], &[0; 8]].concat();
    for stream in [
        registration(TYPES.ack, &given),
        registration(TYPES.ack, &[set(0, [0, 1, 3, 7])]),
        registration(TYPES.ack, &[set(9, [7, 9, 11, 13])]),
        registration(TYPES.assign, &given),
        registration(TYPES.assign, &[set(9, [6, 8, 10, 12])]),
        registration(TYPES.assign, &[set(9, [1, 8, 10, 12])]),
        vec![0x3b, 1, 0],
        long,
    ] {
        let mut tunnel = proxy(&given);
        assert_eq!(
            take(&mut tunnel, &stream),
            Err(Malformed::EcnDscp),
            "{stream:?}"
        );
        assert_eq!(tunnel.datagram(&[0]), Err(Malformed::EcnDscp));
        assert_eq!(tunnel.inbound_end(0), Err(Malformed::EcnDscp));
    }
    // What the field said may be acknowledged, more than once.
    let mut tunnel = proxy(&given);
    let ack = registration(TYPES.ack, &[set(0, [0, 1, 3, 5])]);
    assert_eq!(take(&mut tunnel, &ack.repeat(2)), Ok(vec![]));
}

//= rfc9298 §5 context-0-limit
#[test]
fn payloads_that_udp_cannot_carry() {
    for context in [0, 1, 4] {
        let mut tunnel = proxy(&[set(0, [0, 2, 4, 6])]);
        let fits = datagram(context, &[0; MAX_PAYLOAD]);
        assert_eq!(take(&mut tunnel, &fits).unwrap()[0].1.len(), MAX_PAYLOAD);
        for length in [MAX_PAYLOAD + 1, MAX_PAYLOAD + 100] {
            let stream = datagram(context, &vec![0; length]);
            let fault = Err(Malformed::OversizePayload);
            assert_eq!(tunnel.clone().datagram(&stream[5..]).map(|_| ()), fault);
            // Known by its front.
            assert_eq!(take(&mut tunnel.clone(), &stream[..40]).map(|_| ()), fault);
        }
    }
    let mut tunnel = proxy(&[]);
    assert_eq!(tunnel.datagram(&[]), Err(Malformed::NoContext));
}

proptest! {
    //= connect-udp-ecn-dscp §4.1 marks-choose-context
    #[test]
    fn marks_arrive_as_they_were(
        known in prop::collection::vec(0u8..64, 0..4),
        octets in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut client = Marked::client(&known, Some(TYPES));
        let mut proxy = proxy(&client.ours());
        client.take(&proxy.ours());
        for octet in octets {
            let marks = Marks(octet);
            for (from, to) in [(true, false), (false, true)] {
                let (sender, receiver) = if from { (&mut client, &mut proxy) } else { (&mut proxy, &mut client) };
                let first = sender.context(marks);
                let stream = datagram(first, b"x");
                let seen = take(receiver, &stream).unwrap()[0].0;
                prop_assert_eq!(seen.ecn(), marks.ecn());
                prop_assert!(seen.dscp() == marks.dscp() || seen.dscp() == 0);
                // Once both know, the DSCP arrives too.
                take(receiver, &sender.take_pending()).unwrap();
                take(sender, &receiver.take_pending()).unwrap();
                let stream = datagram(sender.context(marks), b"x");
                prop_assert_eq!(take(receiver, &stream).unwrap()[0].0, marks);
                prop_assert!(to != from);
            }
        }
    }

    #[test]
    fn any_split_gives_the_same(
        pieces in prop::collection::vec((0u64..3, 0u8..8, prop::array::uniform4(0u64..30)), 0..8),
        size in 1usize..9,
    ) {
        let stream: Vec<u8> = pieces
            .into_iter()
            .flat_map(|(kind, dscp, contexts)| match kind {
                0 => datagram(contexts[0], b"payload"),
                kind => registration(0x3a + kind, &[set(dscp, contexts)]),
            })
            .collect();
        let (mut whole, mut split) = (proxy(&[]), proxy(&[]));
        let expected = course(&mut whole, core::iter::once(&stream[..]));
        prop_assert_eq!(course(&mut split, stream.chunks(size)), expected);
        prop_assert_eq!(split.take_pending(), whole.take_pending());
    }
}
