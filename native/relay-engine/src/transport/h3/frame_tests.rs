#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Headers(Vec<u8>),
    Data(Vec<u8>),
}

/// Feeds `stream` in the pieces that `cuts` make; runs of content are joined.
fn run(decoder: &mut Decoder, stream: &[u8], cuts: &[usize]) -> Result<Vec<Seen>, Fault> {
    let mut seen = Vec::new();
    let mut from = 0;
    for &cut in cuts.iter().chain([&stream.len()]) {
        let cut = cut.clamp(from, stream.len());
        let mut data = &stream[from..cut];
        from = cut;
        loop {
            match decoder.next(data)? {
                FrameStep::Skip(n) => {
                    assert!(n > 0);
                    data = &data[n..];
                }
                FrameStep::Headers(block) => seen.push(Seen::Headers(block)),
                FrameStep::Data(n) => {
                    let m = usize::try_from(n).unwrap_or(usize::MAX).min(data.len());
                    decoder.advance(m as u64);
                    match seen.last_mut() {
                        Some(Seen::Data(bytes)) => bytes.extend_from_slice(&data[..m]),
                        _ => seen.push(Seen::Data(data[..m].to_vec())),
                    }
                    data = &data[m..];
                }
                FrameStep::Idle => {
                    assert!(data.is_empty());
                    break;
                }
            }
        }
    }
    Ok(seen)
}

fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(kind, &mut out);
    put_varint(payload.len() as u64, &mut out);
    out.extend_from_slice(payload);
    out
}

fn server(frames: &[(u64, &[u8])]) -> Result<Vec<Seen>, Fault> {
    let stream: Vec<u8> = frames
        .iter()
        .flat_map(|(kind, payload)| frame(*kind, payload))
        .collect();
    run(&mut Decoder::new(Side::Server), &stream, &[])
}

//= rfc9114 §9 unknown-frames
#[test]
fn a_request_with_unknown_frames_content_and_trailers() {
    assert_eq!(
        server(&[
            (0x21, b"grease"),
            (kind::HEADERS, b"head"),
            (kind::DATA, b""),
            (kind::DATA, b"one "),
            (0x40, b""),
            (kind::DATA, b"two"),
            (kind::HEADERS, b"trailers"),
            (0x5f, b"x"),
        ]),
        Ok(vec![
            Seen::Headers(b"head".to_vec()),
            Seen::Data(b"one two".to_vec()),
            Seen::Headers(b"trailers".to_vec()),
        ])
    );
}

#[test]
fn order_is_enforced() {
    for stream in [
        &[(kind::DATA, &b"x"[..])][..],
        &[
            (kind::HEADERS, b"h"),
            (kind::HEADERS, b"t"),
            (kind::DATA, b""),
        ],
        &[
            (kind::HEADERS, b"h"),
            (kind::HEADERS, b"t"),
            (kind::HEADERS, b"u"),
        ],
    ] {
        assert_eq!(server(stream), Err(UNEXPECTED));
    }
}

//= rfc9114 §7.2.8 reserved-h2-frames
#[test]
fn frames_of_other_streams_and_of_http2_are_unexpected() {
    for kind in [
        0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0d, 0xf0700, 0xf0701,
    ] {
        assert_eq!(server(&[(kind, b"")]), Err(UNEXPECTED), "{kind:#x}");
        assert_eq!(
            server(&[(kind::HEADERS, b"h"), (kind, b"")]),
            Err(UNEXPECTED),
            "{kind:#x}"
        );
    }
}

//= rfc9114 §4.4 connect-frames
#[test]
fn a_tunnel_carries_data_only() {
    let mut decoder = Decoder::new(Side::Server);
    run(&mut decoder, &frame(kind::HEADERS, b"h"), &[]).unwrap();
    decoder.tunnel();
    assert_eq!(
        run(&mut decoder, &frame(kind::DATA, b"d"), &[]),
        Ok(vec![Seen::Data(b"d".to_vec())])
    );
    assert_eq!(run(&mut decoder, &frame(0x21, b"g"), &[]), Ok(vec![]));
    assert_eq!(
        run(&mut decoder, &frame(kind::HEADERS, b"t"), &[]),
        Err(UNEXPECTED)
    );
}

#[test]
fn a_client_takes_interim_heads_until_told() {
    let mut decoder = Decoder::new(Side::Client);
    let head = frame(kind::HEADERS, b"h");
    assert_eq!(run(&mut decoder, &head, &[]).unwrap().len(), 1);
    assert_eq!(run(&mut decoder, &head, &[]).unwrap().len(), 1);
    assert_eq!(decoder.end(), Err(Fault::Stream(Code::MESSAGE_ERROR)));
    decoder.final_head();
    assert_eq!(
        run(&mut decoder, &frame(kind::DATA, b"d"), &[]).unwrap(),
        [Seen::Data(b"d".to_vec())]
    );
    assert_eq!(decoder.end(), Ok(()));
    assert_eq!(
        run(&mut Decoder::new(Side::Client), &head, &[]).map(|_| ()),
        Ok(())
    );
    assert_eq!(
        run(
            &mut Decoder::new(Side::Client),
            &frame(kind::DATA, b"d"),
            &[]
        ),
        Err(UNEXPECTED)
    );
    assert_eq!(
        run(
            &mut Decoder::new(Side::Client),
            &frame(kind::PUSH_PROMISE, b"\0"),
            &[]
        ),
        Err(Fault::Connection(Code::ID_ERROR))
    );
}

#[test]
fn a_field_section_is_bounded() {
    let mut stream = Vec::new();
    put_varint(kind::HEADERS, &mut stream);
    put_varint(MAX_BLOCK + 1, &mut stream);
    assert_eq!(
        run(&mut Decoder::new(Side::Server), &stream, &[]),
        Err(Fault::Stream(Code::EXCESSIVE_LOAD))
    );
}

#[test]
fn an_early_end_is_told_apart() {
    let end = |stream: &[u8]| {
        let mut decoder = Decoder::new(Side::Server);
        run(&mut decoder, stream, &[]).unwrap();
        decoder.end()
    };
    let truncated = Err(Fault::Connection(Code::FRAME_ERROR));
    assert_eq!(end(b""), Err(Fault::Stream(Code::REQUEST_INCOMPLETE)));
    assert_eq!(
        end(&[0x21, 0]),
        Err(Fault::Stream(Code::REQUEST_INCOMPLETE))
    );
    assert_eq!(end(&[0x01]), truncated);
    assert_eq!(end(&[0x01, 2, b'h']), truncated);
    assert_eq!(end(&[0x01, 1, b'h']), Ok(()));
    assert_eq!(end(&[0x01, 1, b'h', 0x00, 2, b'd']), truncated);
    assert_eq!(end(&[0x01, 1, b'h', 0x00, 1, b'd']), Ok(()));
    assert_eq!(end(&[0x01, 1, b'h', 0x21, 1]), truncated);
}

#[test]
fn content_of_any_length_streams_through() {
    let mut decoder = Decoder::new(Side::Server);
    run(&mut decoder, &frame(kind::HEADERS, b"h"), &[]).unwrap();
    let mut header = [0; MAX_DATA_HEADER];
    let size = data_header(varint::MAX, &mut header);
    assert_eq!(size, 9);
    assert_eq!(decoder.next(&header), Ok(FrameStep::Skip(9)));
    assert_eq!(decoder.next(b"abc"), Ok(FrameStep::Data(varint::MAX)));
    decoder.advance(3);
    assert_eq!(decoder.pending(), varint::MAX - 3);
}

proptest! {
    #[test]
    fn any_split_gives_the_same(
        frames in proptest::collection::vec(
            (prop_oneof![Just(0u64), Just(0), Just(0x21), Just(0x1f * 9_000_000 + 0x21)],
             proptest::collection::vec(any::<u8>(), 0..80)), 0..6),
        cuts in proptest::collection::vec(0usize..600, 0..12),
    ) {
        let mut stream = frame(kind::HEADERS, b"the head");
        for (kind, payload) in &frames {
            stream.extend(frame(*kind, payload));
        }
        let mut cuts = cuts;
        cuts.sort_unstable();
        let whole = run(&mut Decoder::new(Side::Server), &stream, &[]);
        prop_assert!(whole.is_ok());
        prop_assert_eq!(&run(&mut Decoder::new(Side::Server), &stream, &cuts), &whole);
        let each: Vec<usize> = (0..stream.len()).collect();
        prop_assert_eq!(&run(&mut Decoder::new(Side::Server), &stream, &each), &whole);
    }

    #[test]
    fn any_bytes_are_judged(stream in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut decoder = Decoder::new(Side::Server);
        if run(&mut decoder, &stream, &[]).is_ok() {
            let _ = decoder.end();
        }
    }
}
