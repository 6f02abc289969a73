#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use proptest::prelude::*;

fn run(side: Side, stream: &[u8], piece: usize) -> Result<Vec<Control>, Fault> {
    let mut decoder = Decoder::new(side);
    let mut said = Vec::new();
    for mut data in stream.chunks(piece) {
        while let Some(control) = decoder.next(&mut data)? {
            said.push(control);
        }
        assert!(data.is_empty());
    }
    Ok(said)
}

fn server(frames: &[u8]) -> Result<Vec<Control>, Fault> {
    let stream = [&[0x04, 0x00][..], frames].concat();
    run(Side::Server, &stream, stream.len())
}

#[test]
fn the_preface_is_read_by_the_other_side() {
    let stream = preface(&Settings::ours(), 77);
    assert_eq!(stream[0], 0x00);
    assert_eq!(
        run(Side::Client, &stream[1..], 3),
        Ok(vec![Control::Settings(Settings::ours())])
    );
}

//= rfc9114 §6.2.1 settings-first
#[test]
fn settings_come_first_and_once() {
    let missing = Err(Fault::Connection(Code::MISSING_SETTINGS));
    for frame in [&[0x07, 1, 0][..], &[0x21, 0], &[0x00, 0], &[0x0d, 1, 0]] {
        assert_eq!(run(Side::Server, frame, 9), missing);
    }
    assert_eq!(
        server(&[]),
        Ok(vec![Control::Settings(Settings::default())])
    );
    assert_eq!(server(&[0x04, 0]), Err(UNEXPECTED));
}

#[test]
fn settings_are_bounded() {
    let mut stream = Vec::new();
    put_varint(kind::SETTINGS, &mut stream);
    put_varint(MAX_SETTINGS + 1, &mut stream);
    assert_eq!(
        run(Side::Server, &stream, 99),
        Err(Fault::Connection(Code::EXCESSIVE_LOAD))
    );
}

//= rfc9114 §7.2.8 reserved-h2-frames
#[test]
fn request_frames_and_http2_frames_are_unexpected() {
    for kind in [0x00, 0x01, 0x02, 0x05, 0x06, 0x08, 0x09] {
        assert_eq!(server(&[kind, 0]), Err(UNEXPECTED), "{kind:#x}");
    }
}

#[test]
fn identifiers_move_one_way() {
    assert_eq!(
        server(&[0x07, 1, 8, 0x07, 1, 8, 0x07, 1, 3]).unwrap()[1..],
        [Control::Goaway(8), Control::Goaway(8), Control::Goaway(3)]
    );
    assert_eq!(server(&[0x07, 1, 4, 0x07, 1, 8]), Err(BAD_ID));
    assert_eq!(
        server(&[0x0d, 1, 4, 0x0d, 1, 4]).unwrap()[1..],
        [Control::MaxPushId(4), Control::MaxPushId(4)]
    );
    assert_eq!(server(&[0x0d, 1, 4, 0x0d, 1, 3]), Err(BAD_ID));
    assert_eq!(server(&[0x03, 1, 0]), Err(BAD_ID));
}

#[test]
fn a_client_checks_what_only_servers_may_say() {
    let client = |frames: &[u8]| run(Side::Client, &[&[0x04, 0][..], frames].concat(), 99);
    assert_eq!(client(&[0x07, 1, 8]).unwrap()[1..], [Control::Goaway(8)]);
    assert_eq!(client(&[0x07, 1, 7]), Err(BAD_ID));
    assert_eq!(client(&[0x0d, 1, 0]), Err(UNEXPECTED));
    assert_eq!(client(&[0x80, 0x0f, 0x07, 0x00, 0]), Err(UNEXPECTED));
}

#[test]
fn payloads_that_do_not_fit_are_frame_errors() {
    for frame in [
        &[0x07, 0][..],
        &[0x07, 1, 0x40],
        &[0x07, 2, 4, 0],
        &[0x0d, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(server(frame), Err(BAD_FRAME));
    }
}

//= rfc9114 §9 unknown-frames
#[test]
fn unknown_frames_and_priorities_are_skipped() {
    let mut frames = vec![0x21, 3, 1, 2, 3, 0x80, 0x0f, 0x07, 0x00, 4];
    frames.extend_from_slice(b"\x00u=1");
    put_goaway(0, &mut frames);
    assert_eq!(server(&frames).unwrap()[1..], [Control::Goaway(0)]);
}

proptest! {
    #[test]
    fn any_split_gives_the_same(
        frames in proptest::collection::vec(
            (prop_oneof![Just(0x21u64), Just(0x07), Just(0x0d), Just(0x4242)], 0u64..64), 0..8),
        piece in 1usize..9,
    ) {
        let mut stream = preface(&Settings::ours(), 5).split_off(1);
        for (kind, value) in frames {
            put_varint(kind, &mut stream);
            put_varint(1, &mut stream);
            put_varint(value, &mut stream);
        }
        prop_assert_eq!(
            run(Side::Server, &stream, piece),
            run(Side::Server, &stream, stream.len())
        );
    }

    #[test]
    fn any_bytes_are_judged(stream in proptest::collection::vec(any::<u8>(), 1..100)) {
        let _ = run(Side::Server, &stream, 7);
        let _ = run(Side::Client, &[&[4, 0], &stream[..]].concat(), 7);
    }
}
