use alloc::vec;
use alloc::vec::Vec;
use core::iter::once;

use super::*;
use crate::fuzzing::{Course, course};
use crate::varint;
use proptest::prelude::*;

const DATA: u64 = types::DATA_12;
const FINAL: u64 = types::FINAL_DATA_12;

fn tunnel() -> ConnectTcp {
    ConnectTcp::new(DATA, FINAL)
}

fn capsule(kind: u64, value: &[u8]) -> Vec<u8> {
    let mut header = [0; MAX_HEADER];
    let used = capsule::encode_header(kind, value.len() as u64, &mut header);
    [&header[..used], value].concat()
}

fn run(stream: &[u8]) -> Course {
    let whole = course(&mut tunnel(), once(stream), usize::MAX);
    for size in 1..=stream.len() {
        assert_eq!(
            course(&mut tunnel(), stream.chunks(size), usize::MAX),
            whole
        );
    }
    assert_eq!(course(&mut tunnel(), stream.chunks(3), 1), whole);
    whole
}

//= connect-tcp §3 payload-is-stream
#[test]
fn values_join_to_the_stream() {
    let stream = [
        capsule(DATA, b"one "),
        capsule(DATA, b""),
        capsule(DATA, b"two "),
        capsule(FINAL, b"three"),
    ]
    .concat();
    assert_eq!(
        run(&stream),
        Course {
            payload: b"one two three".to_vec(),
            finishes: vec![13],
            end: Ok(End::Complete),
            unknown: 0,
        }
    );
}

//= connect-tcp §3.4 final-data-sends-fin
#[test]
fn an_empty_final_data_finishes() {
    for stream in [
        capsule(FINAL, b""),
        [capsule(DATA, b"x"), capsule(FINAL, b"")].concat(),
    ] {
        let course = run(&stream);
        assert_eq!(course.finishes, [course.payload.len()]);
        assert_eq!(course.end, Ok(End::Complete));
    }
}

#[test]
fn finish_is_due_without_further_bytes() {
    let mut tunnel = tunnel();
    let stream = capsule(FINAL, b"");
    assert_eq!(tunnel.inbound(&stream), Ok(Step::Skip(stream.len())));
    assert_eq!(tunnel.inbound(b""), Ok(Step::Finish));
    assert!(tunnel.inbound_finished());
    assert_eq!(tunnel.inbound(b""), Ok(Step::Idle));
    assert_eq!(tunnel.inbound_end(), End::Complete);
}

#[test]
fn an_end_before_finish_was_taken_is_the_finish() {
    let mut tunnel = tunnel();
    let stream = capsule(FINAL, b"");
    assert_eq!(tunnel.inbound(&stream), Ok(Step::Skip(stream.len())));
    assert_eq!(tunnel.inbound_end(), End::Finish);
    assert_eq!(tunnel.inbound_end(), End::Complete);
}

//= connect-tcp §3 data-after-final
//= rfc9297 §3.3 malformed-capsule
#[test]
fn data_after_final_is_malformed() {
    for kind in [DATA, FINAL] {
        let stream = [capsule(FINAL, b"end"), capsule(kind, b"")].concat();
        let course = run(&stream);
        assert_eq!(course.payload, b"end");
        assert_eq!(course.finishes, [3]);
        assert_eq!(course.end, Err(Malformed::DataAfterFinal));
    }
}

//= rfc9297 §3.2 skip-unknown
//= rfc9297 §5.4 skip-grease
#[test]
fn unknown_capsules_are_skipped_anywhere() {
    let long = vec![7; 300];
    let stream = [
        capsule(0x17, b"grease"),
        capsule(types::WRAP_UP, b""),
        capsule(DATA, b"a"),
        capsule(types::DATA_08, &long),
        capsule(0x40, &long),
        capsule(FINAL, b"b"),
        capsule(types::WRAP_UP, b"after the end"),
    ]
    .concat();
    assert_eq!(
        run(&stream),
        Course {
            payload: b"ab".to_vec(),
            finishes: vec![2],
            end: Ok(End::Complete),
            unknown: 3,
        }
    );
}

//= rfc9297 §3.3 truncated-capsule
#[test]
fn an_end_inside_a_capsule_is_malformed() {
    for last in [
        capsule(DATA, b"abc"),
        capsule(FINAL, b"abc"),
        capsule(0x17, b"abc"),
    ] {
        for cut in 1..last.len() {
            let stream = [capsule(DATA, b"x"), last[..cut].to_vec()].concat();
            let course = run(&stream);
            assert_eq!(course.end, Ok(End::Malformed(Malformed::TruncatedCapsule)));
            assert!(course.finishes.is_empty());
        }
    }
    let after_final = [capsule(FINAL, b""), vec![0x17]].concat();
    let course = run(&after_final);
    assert_eq!(course.end, Ok(End::Malformed(Malformed::TruncatedCapsule)));
}

//= connect-tcp §3.4 end-without-final-sends-rst
#[test]
fn a_clean_end_without_final_data_aborts() {
    for stream in [vec![], capsule(DATA, b"abc"), capsule(0x17, b"")] {
        assert_eq!(run(&stream).end, Ok(End::Abort));
    }
}

//= rfc9297 §2 datagram-without-meaning
//= rfc9297 §3.5 datagram-capsule-like-frame
//= rfc9297 §3.5 oversize-datagram
#[test]
fn a_datagram_capsule_ends_the_request_without_being_read() {
    let mut stream = capsule(DATA, b"x");
    let mut header = [0; MAX_HEADER];
    let used = capsule::encode_header(types::DATAGRAM, varint::MAX, &mut header);
    stream.extend_from_slice(&header[..used]);
    let course = run(&stream);
    assert_eq!(course.payload, b"x");
    assert_eq!(course.end, Err(Malformed::UnexpectedDatagram));
}

//= connect-tcp §3 forward-partial
//= rfc9297 §3.2 never-accumulate
#[test]
fn payload_is_handed_on_while_the_capsule_lasts() {
    let mut tunnel = tunnel();
    let mut header = [0; MAX_HEADER];
    let used = capsule::encode_header(DATA, varint::MAX, &mut header);
    assert_eq!(tunnel.inbound(&header[..used]), Ok(Step::Skip(used)));
    assert_eq!(tunnel.payload_pending(), varint::MAX);
    assert_eq!(tunnel.inbound(b"abc"), Ok(Step::Payload(varint::MAX)));
    tunnel.advance(3);
    assert_eq!(tunnel.payload_pending(), varint::MAX - 3);
    // Moved unseen.
    tunnel.advance(varint::MAX - 3);
    assert_eq!(tunnel.payload_pending(), 0);
    assert_eq!(tunnel.inbound(b""), Ok(Step::Idle));
}

#[test]
fn skipped_values_are_no_payload() {
    let mut tunnel = tunnel();
    let stream = capsule(0x17, b"abc");
    assert_eq!(tunnel.inbound(&stream), Ok(Step::Skip(2)));
    assert_eq!(tunnel.payload_pending(), 0);
    assert_eq!(tunnel.inbound(b"ab"), Ok(Step::Skip(2)));
    assert_eq!(tunnel.inbound(b"c\x17"), Ok(Step::Skip(1)));
}

//= connect-tcp §3.4 fin-sends-final-data
//= connect-tcp §3 no-data-after-own-final
#[test]
fn a_finish_is_written_once() {
    let mut tunnel = tunnel();
    let mut out = [0; MAX_HEADER];
    let used = tunnel.outbound_header(300, &mut out);
    assert_eq!(out[..used], [0xa0, 0x28, 0xd7, 0xf2, 0x41, 0x2c]);
    assert!(!tunnel.outbound_finished());
    assert_eq!(tunnel.outbound_finish(&mut out), Finish::Bytes(5));
    assert_eq!(out[..5], [0xa0, 0x28, 0xd7, 0xf3, 0]);
    assert!(tunnel.outbound_finished());
    assert_eq!(tunnel.outbound_finish(&mut out), Finish::Bytes(0));
}

#[derive(Debug, Clone)]
enum Sent {
    Data(Vec<u8>),
    Skipped(u64, Vec<u8>),
}

fn sent() -> impl Strategy<Value = Sent> {
    let value = || prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        3 => value().prop_map(Sent::Data),
        1 => (
            prop_oneof![(0u64..99).prop_map(|n| 0x29 * n + 0x17), 0x4000u64..0x5000],
            value()
        )
            .prop_map(|(kind, value)| Sent::Skipped(kind, value)),
    ]
}

proptest! {
    #[test]
    fn every_split_gives_the_same_course(
        before in prop::collection::vec(sent(), 0..5),
        last in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        bite in 1usize..50,
    ) {
        let mut stream = Vec::new();
        let mut expected = Course { payload: vec![], finishes: vec![], end: Ok(End::Abort), unknown: 0 };
        for item in &before {
            match item {
                Sent::Data(value) => {
                    stream.extend(capsule(DATA, value));
                    expected.payload.extend(value);
                }
                Sent::Skipped(kind, value) => {
                    stream.extend(capsule(*kind, value));
                    expected.unknown += u64::from(!types::is_grease(*kind));
                }
            }
        }
        if let Some(value) = last {
            stream.extend(capsule(FINAL, &value));
            expected.payload.extend(value);
            expected.finishes.push(expected.payload.len());
            expected.end = Ok(End::Complete);
        }
        for split in 0..=stream.len() {
            let (left, right) = stream.split_at(split);
            prop_assert_eq!(&course(&mut tunnel(), [left, right].into_iter(), bite), &expected);
        }
        prop_assert_eq!(&course(&mut tunnel(), stream.chunks(1), bite), &expected);
    }
}
