#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use proptest::prelude::*;

const MALFORMED: Result<Vec<Line>, SectionError> = Err(SectionError::Malformed);

fn lines(block: &[u8]) -> Vec<(String, String)> {
    decode(block)
        .unwrap()
        .into_iter()
        .map(|(name, value)| {
            (
                String::from_utf8(name.into_owned()).unwrap(),
                String::from_utf8(value.into_owned()).unwrap(),
            )
        })
        .collect()
}

fn line(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A section with one line: name `a` in plain, a Huffman-coded value.
fn huffman(value: &[u8]) -> Vec<u8> {
    let mut block = vec![0, 0, 0x21, b'a', 0x80 | u8::try_from(value.len()).unwrap()];
    block.extend_from_slice(value);
    block
}

#[test]
fn every_representation_without_a_dynamic_table() {
    // RFC 9204 B.1: a literal with a name reference.
    assert_eq!(
        lines(b"\x00\x00\x51\x0b/index.html"),
        [line(":path", "/index.html")]
    );
    // The same as never indexed; an indexed line; a literal name, plain and in Huffman; the last index.
    assert_eq!(lines(b"\x00\x00\x71\x01/"), [line(":path", "/")]);
    assert_eq!(lines(&[0, 0, 0xc0 | 15]), [line(":method", "CONNECT")]);
    assert_eq!(lines(b"\x00\x00\x23abc\x01d"), [line("abc", "d")]);
    assert_eq!(lines(b"\x00\x00\x33abc\x01d"), [line("abc", "d")]);
    assert_eq!(lines(&[0, 0, 0x29, 0x1f, 0x81, 0x1f]), [line("a", "a")]);
    assert_eq!(
        lines(&[0, 0, 0xff, 98 - 63]),
        [line("x-frame-options", "sameorigin")]
    );
    assert_eq!(lines(&[0, 0]), []);
    assert_eq!(lines(&[0, 0x7f, 0x05]), [], "any Base that is not negative");
}

#[test]
fn the_dynamic_table_cannot_be_used() {
    for block in [
        &[1, 0][..],            // a Required Insert Count
        &[0, 0x80],             // a negative Base
        &[0, 0, 0x80],          // indexed
        &[0, 0, 0x10],          // indexed, post-base
        &[0, 0, 0x40, 0],       // name reference
        &[0, 0, 0x00, 0],       // name reference, post-base
        &[0, 0, 0xff, 99 - 63], // beyond the static table
    ] {
        assert_eq!(decode(block), MALFORMED, "{block:x?}");
    }
}

#[test]
fn what_is_cut_off_is_malformed() {
    let block = encode([(&b":path"[..], &b"/x"[..]), (b"some-name", b"some value")]);
    let ends: Vec<bool> = (0..block.len())
        .map(|n| decode(&block[..n]).is_ok())
        .collect();
    // Only after the prefix and after the first line.
    assert_eq!(ends.iter().filter(|&&ok| ok).count(), 2);
    assert_eq!(decode(&[0, 0, 0xff, 0xff, 0xff]), MALFORMED);
    assert_eq!(
        decode(&[0, 0, 0x21, b'a', 0x7f, 0xff, 0xff, 0xff, 0x0f]),
        MALFORMED
    );
}

#[test]
fn huffman_padding_is_strict() {
    assert_eq!(lines(&huffman(&[0b0001_1111])), [line("a", "a")]);
    for bad in [
        &[0b0001_1000][..],   // padding that is not the beginning of EOS
        &[0b0001_1111, 0xff], // more than seven bits of padding
        &[0xff],
        &[0xff, 0xff, 0xff, 0xff], // EOS
        &[0xff, 0xff, 0xff, 0xfc],
    ] {
        assert_eq!(decode(&huffman(bad)), MALFORMED, "{bad:x?}");
    }
}

#[test]
fn a_section_is_bounded_by_its_decoded_size() {
    // 1,000 indexed lines are 1,000 bytes, but count 32 and more each.
    let mut block = vec![0, 0];
    block.extend(std::iter::repeat_n(0xc0 | 15, 1000));
    assert_eq!(decode(&block), Err(SectionError::TooLarge));
    assert_eq!(
        Fault::from(SectionError::TooLarge),
        Fault::Stream(Code::EXCESSIVE_LOAD)
    );
    assert_eq!(
        Fault::from(SectionError::Malformed),
        Fault::Connection(Code::QPACK_DECOMPRESSION_FAILED)
    );
}

#[test]
fn a_connect_in_bytes_that_other_stacks_make() {
    // Written by ls-qpack: CONNECT, connect-tcp, https, proxy.example:443, the path, capsule-protocol: ?1.
    let block = include_bytes!("testdata/ls_qpack_connect.bin");
    assert_eq!(
        lines(block),
        [
            line(":method", "CONNECT"),
            line(":protocol", "connect-tcp"),
            line(":scheme", "https"),
            line(":authority", "proxy.example:443"),
            line(":path", "/.well-known/masque/tcp/192.0.2.1/443/"),
            line("capsule-protocol", "?1"),
            line("authorization", "Bearer 0123456789abcdef"),
        ]
    );
}

#[test]
fn encoder_instructions_but_capacity_0_are_errors() {
    let bad = Err(Fault::Connection(Code::QPACK_ENCODER_STREAM_ERROR));
    assert_eq!(encoder_stream(&[]), Ok(()));
    assert_eq!(encoder_stream(&[0x20, 0x20]), Ok(()));
    for byte in [0x00, 0x21, 0x3f, 0x40, 0x80, 0xc0] {
        assert_eq!(encoder_stream(&[0x20, byte]), bad, "{byte:#x}");
    }
}

#[test]
fn decoder_instructions_but_cancellation_are_errors() {
    let bad = Err(Fault::Connection(Code::QPACK_DECODER_STREAM_ERROR));
    let mut stream = DecoderStream::default();
    for piece in [&[0x40, 0x7e, 0x7f][..], &[0x80], &[0xff, 0x01, 0x41]] {
        assert_eq!(stream.feed(piece), Ok(()));
    }
    for byte in [0x80, 0xff, 0x00, 0x01, 0x3f] {
        assert_eq!(DecoderStream::default().feed(&[byte]), bad, "{byte:#x}");
    }
    assert_eq!(DecoderStream::default().feed(&[0x7f; 1]), Ok(()));
    let mut endless = vec![0x7f];
    endless.resize(12, 0xff);
    assert_eq!(DecoderStream::default().feed(&endless), bad);
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        fields in proptest::collection::vec(
            (prop_oneof![
                Just(b":path".to_vec()), Just(b"cookie".to_vec()), Just(b"x-frame-options".to_vec()),
                proptest::collection::vec(any::<u8>(), 0..20),
            ], proptest::collection::vec(any::<u8>(), 0..200)), 0..12),
    ) {
        let block = encode(fields.iter().map(|(n, v)| (&n[..], &v[..])));
        let back: Vec<(Vec<u8>, Vec<u8>)> = decode(&block)
            .unwrap()
            .into_iter()
            .map(|(n, v)| (n.into_owned(), v.into_owned()))
            .collect();
        prop_assert_eq!(back, fields);
    }

    #[test]
    fn any_bytes_are_judged(block in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = decode(&block);
        let _ = decode(&[&[0, 0], &block[..]].concat());
    }
}
