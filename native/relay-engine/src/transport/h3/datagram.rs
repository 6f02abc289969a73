//! HTTP datagrams in QUIC DATAGRAM frames (RFC 9297 §2.1).

use capsule_core::varint;

use super::code::{Code, Fault};

/// The largest quarter stream ID: 2^60 − 1.
pub const MAX_QUARTER_STREAM_ID: u64 = (1 << 60) - 1;

/// Splits a QUIC DATAGRAM frame: the ID of the request stream, and where the HTTP datagram begins (it may be empty).
///
/// # Errors
/// H3_DATAGRAM_ERROR for the connection if the quarter stream ID is incomplete or too large.
pub fn parse(frame: &[u8]) -> Result<(u64, usize), Fault> {
    //= rfc9297 §2.1 quarter-stream-id-range
    //= rfc9297 §2.1 datagram-too-short
    match varint::decode(frame) {
        Some((quarter, size)) if quarter <= MAX_QUARTER_STREAM_ID => Ok((quarter * 4, size)),
        _ => Err(Fault::Connection(Code::DATAGRAM_ERROR)),
    }
}

/// Writes what goes before an HTTP datagram of the request on `stream`; returns its size.
pub fn header(stream: u64, out: &mut [u8; varint::MAX_LEN]) -> usize {
    debug_assert!(stream.is_multiple_of(4));
    varint::encode(stream / 4, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BAD: Result<(u64, usize), Fault> = Err(Fault::Connection(Code::DATAGRAM_ERROR));

    //= rfc9297 §2.1 quarter-stream-id-range
    //= rfc9297 §2.1 datagram-too-short
    #[test]
    fn short_and_oversize_ids() {
        assert_eq!(parse(&[]), BAD);
        assert_eq!(parse(&[0x40]), BAD);
        assert_eq!(parse(&[0x01]), Ok((4, 1)));
        assert_eq!(parse(&[0x40, 0x01, b'x']), Ok((4, 2)));
        assert_eq!(
            parse(&(0xc000_0000_0000_0000 | (1u64 << 60)).to_be_bytes()),
            BAD
        );
        assert_eq!(
            parse(&(0xc000_0000_0000_0000 | MAX_QUARTER_STREAM_ID).to_be_bytes()),
            Ok((MAX_QUARTER_STREAM_ID * 4, 8))
        );
    }

    proptest! {
        #[test]
        fn a_header_is_read_back(quarter in 0..=MAX_QUARTER_STREAM_ID) {
            let mut out = [0; varint::MAX_LEN];
            let size = header(quarter * 4, &mut out);
            prop_assert_eq!(parse(&out[..size]), Ok((quarter * 4, size)));
        }
    }
}
