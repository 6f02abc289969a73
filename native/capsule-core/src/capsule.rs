//! Capsules (RFC 9297 §3.2): type, length, value. The decoder streams values and never holds more than a header.

use crate::varint;

/// The longest capsule header, in bytes: two varints.
pub const MAX_HEADER: usize = 2 * varint::MAX_LEN;

/// Capsule types.
pub mod types {
    /// An HTTP datagram (RFC 9297 §3.5).
    pub const DATAGRAM: u64 = 0x00;
    /// COMPRESSION_ASSIGN of connect-udp's bind mode: registers a context ID.
    pub const COMPRESSION_ASSIGN: u64 = 0x11;
    /// COMPRESSION_ACK of connect-udp's bind mode: accepts a registration.
    pub const COMPRESSION_ACK: u64 = 0x12;
    /// COMPRESSION_CLOSE of connect-udp's bind mode: rejects or ends a registration.
    pub const COMPRESSION_CLOSE: u64 = 0x13;
    /// connect-tcp DATA of the interop numbers "08".
    pub const DATA_08: u64 = 0x2028_d7f0;
    /// connect-tcp FINAL_DATA of the interop numbers "08".
    pub const FINAL_DATA_08: u64 = 0x2028_d7f1;
    /// connect-tcp DATA of the interop numbers "12".
    pub const DATA_12: u64 = 0x2028_d7f2;
    /// connect-tcp FINAL_DATA of the interop numbers "12".
    pub const FINAL_DATA_12: u64 = 0x2028_d7f3;
    /// WRAP_UP: the server asks the client to start new work elsewhere.
    pub const WRAP_UP: u64 = 0x272d_da5e;

    /// Whether `kind` is one of the types 0x29·N + 0x17 that exist only to be skipped (RFC 9297 §5.4).
    #[must_use]
    pub const fn is_grease(kind: u64) -> bool {
        kind >= 0x17 && (kind - 0x17).is_multiple_of(0x29)
    }
}

/// Writes a capsule header to the front of `out` and returns its length. `kind` and `length` ≤ [`varint::MAX`].
#[inline]
pub fn encode_header(kind: u64, length: u64, out: &mut [u8; MAX_HEADER]) -> usize {
    let used = varint::encode(kind, out);
    used + varint::encode(length, &mut out[used..])
}

/// Reads a capsule header at the front of `buf`: type, length of the value, length of the header.
/// `None` = more bytes are needed.
#[inline]
#[must_use]
pub fn decode_header(buf: &[u8]) -> Option<(u64, u64, usize)> {
    let (kind, first) = varint::decode(buf)?;
    let (length, second) = varint::decode(&buf[first..])?;
    Some((kind, length, first + second))
}

/// What stands at the front of the bytes given to [`Decoder::decode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nothing at hand: more bytes are needed.
    Idle,
    /// A part of a header: all `consumed` bytes given were taken, more are needed.
    Partial {
        /// Bytes to drop from the front.
        consumed: usize,
    },
    /// A header is complete. A value of length 0 is over at once: the next event belongs to the next capsule.
    Header {
        /// Capsule type.
        kind: u64,
        /// Length of the value in bytes, up to 2^62 − 1.
        length: u64,
        /// Bytes to drop from the front.
        consumed: usize,
    },
    /// The bytes at the front belong to the value. Take up to `remaining` of them and call [`Decoder::advance`].
    Value {
        /// Bytes of the value still to come, these included; never 0.
        remaining: u64,
    },
}

//= rfc9297 §3.2 capsule-format
/// An incremental capsule decoder: takes any split, keeps at most [`MAX_HEADER`] − 1 bytes of a header, no values.
#[derive(Debug, Clone, Default)]
pub struct Decoder {
    partial: [u8; MAX_HEADER],
    held: usize,
    remaining: u64,
}

impl Decoder {
    /// A decoder at the start of a data stream.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            partial: [0; MAX_HEADER],
            held: 0,
            remaining: 0,
        }
    }

    /// Looks at the front of `data`. Header bytes are consumed by this call, value bytes by [`Decoder::advance`].
    #[inline]
    pub fn decode(&mut self, data: &[u8]) -> Event {
        if data.is_empty() {
            return Event::Idle;
        }
        if self.remaining > 0 {
            return Event::Value {
                remaining: self.remaining,
            };
        }
        if self.held == 0
            && let Some((kind, length, consumed)) = decode_header(data)
        {
            self.remaining = length;
            return Event::Header {
                kind,
                length,
                consumed,
            };
        }
        self.resume_header(data)
    }

    fn resume_header(&mut self, data: &[u8]) -> Event {
        let room = MAX_HEADER - self.held;
        let taken = data.len().min(room);
        self.partial[self.held..self.held + taken].copy_from_slice(&data[..taken]);
        match decode_header(&self.partial[..self.held + taken]) {
            Some((kind, length, used)) => {
                let consumed = used - self.held;
                self.held = 0;
                self.remaining = length;
                Event::Header {
                    kind,
                    length,
                    consumed,
                }
            }
            None => {
                // A full buffer always decodes, so everything given fitted.
                self.held += taken;
                Event::Partial { consumed: taken }
            }
        }
    }

    /// Tells that `taken` bytes of the value were taken, at most the `remaining` of the last event.
    #[inline]
    pub fn advance(&mut self, taken: u64) {
        debug_assert!(taken <= self.remaining);
        self.remaining = self.remaining.saturating_sub(taken);
    }

    /// Bytes of the current value still to come.
    #[inline]
    #[must_use]
    pub const fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Whether the data stream may end here: no capsule is begun and unfinished.
    #[inline]
    #[must_use]
    pub const fn at_boundary(&self) -> bool {
        self.held == 0 && self.remaining == 0
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;
    use crate::fuzzing::{self, Capsules};
    use proptest::prelude::*;

    /// A varint in any of its forms that can hold it.
    fn varint_in_form(value: u64, form: u32) -> Vec<u8> {
        let shortest = varint::len(value);
        let length = (1usize << form).max(shortest);
        let mut bytes = value.to_be_bytes()[8 - length..].to_vec();
        bytes[0] |= match length {
            1 => 0,
            2 => 0x40,
            4 => 0x80,
            _ => 0xc0,
        };
        bytes
    }

    prop_compose! {
        fn arbitrary_capsule()(
            kind in prop_oneof![
                Just(types::DATAGRAM),
                Just(types::DATA_12),
                Just(0x17),
                0..=varint::MAX,
            ],
            value in prop::collection::vec(any::<u8>(), 0..80),
            forms in (0u32..4, 0u32..4),
        ) -> (u64, Vec<u8>, Vec<u8>) {
            let mut bytes = varint_in_form(kind, forms.0);
            bytes.extend(varint_in_form(value.len() as u64, forms.1));
            bytes.extend(&value);
            (kind, value, bytes)
        }
    }

    proptest! {
        //= rfc9297 §3.2 capsule-format
        #[test]
        fn any_split_gives_the_same_capsules(
            given in prop::collection::vec(arbitrary_capsule(), 0..5),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut stream = Vec::new();
            let mut expected = Capsules::new();
            for (kind, value, bytes) in given {
                stream.extend(bytes);
                expected.push((kind, value.len() as u64, value));
            }
            prop_assert_eq!(
                fuzzing::capsules(core::iter::once(&stream[..])),
                (expected.clone(), true)
            );
            for split in 0..=stream.len() {
                let (left, right) = stream.split_at(split);
                prop_assert_eq!(
                    fuzzing::capsules([left, right].into_iter()),
                    (expected.clone(), true)
                );
            }
            prop_assert_eq!(fuzzing::capsules(stream.chunks(1)), (expected.clone(), true));
            if !stream.is_empty() {
                let cut = cut.index(stream.len());
                let (some, _) = fuzzing::capsules(core::iter::once(&stream[..cut]));
                prop_assert!(some.len() <= expected.len());
            }
        }

        #[test]
        fn header_round_trip(kind in 0..=varint::MAX, length in 0..=varint::MAX) {
            let mut out = [0; MAX_HEADER];
            let used = encode_header(kind, length, &mut out);
            prop_assert_eq!(decode_header(&out[..used]), Some((kind, length, used)));
            prop_assert_eq!(decode_header(&out[..used - 1]), None);
        }
    }

    #[test]
    fn wire_bytes_of_the_types() {
        let mut out = [0; MAX_HEADER];
        for (kind, bytes) in [
            (types::DATAGRAM, &[0x00][..]),
            (types::DATA_08, &[0xa0, 0x28, 0xd7, 0xf0]),
            (types::FINAL_DATA_08, &[0xa0, 0x28, 0xd7, 0xf1]),
            (types::DATA_12, &[0xa0, 0x28, 0xd7, 0xf2]),
            (types::FINAL_DATA_12, &[0xa0, 0x28, 0xd7, 0xf3]),
            (types::WRAP_UP, &[0xa7, 0x2d, 0xda, 0x5e]),
            (0x17, &[0x17]),
            (0x40, &[0x40, 0x40]),
        ] {
            let used = encode_header(kind, 0, &mut out);
            assert_eq!(&out[..used - 1], bytes);
            assert_eq!(out[used - 1], 0);
        }
    }

    #[test]
    fn grease_types() {
        for n in 0..1000 {
            assert!(types::is_grease(0x29 * n + 0x17));
            assert!(!types::is_grease(0x29 * n + 0x18));
        }
        assert!(!types::is_grease(0));
        for kind in [types::DATA_08, types::DATA_12, types::WRAP_UP] {
            assert!(!types::is_grease(kind));
        }
    }

    #[test]
    fn a_huge_value_streams_through() {
        let mut decoder = Decoder::new();
        let mut header = [0; MAX_HEADER];
        let used = encode_header(types::DATA_12, varint::MAX, &mut header);
        assert_eq!(
            decoder.decode(&header[..used]),
            Event::Header {
                kind: types::DATA_12,
                length: varint::MAX,
                consumed: used
            }
        );
        let chunk = vec![0; 1 << 16];
        let mut left = varint::MAX;
        for _ in 0..100 {
            assert_eq!(decoder.decode(&chunk), Event::Value { remaining: left });
            decoder.advance(1 << 16);
            left -= 1 << 16;
        }
        assert_eq!(decoder.remaining(), left);
        decoder.advance(left);
        assert!(decoder.at_boundary());
    }

    #[test]
    fn the_longest_header_byte_by_byte() {
        let mut stream = varint_in_form(5, 3);
        stream.extend(varint_in_form(1, 3));
        stream.push(9);
        assert_eq!(stream.len(), MAX_HEADER + 1);
        assert_eq!(
            fuzzing::capsules(stream.chunks(1)),
            (vec![(5, 1, vec![9])], true)
        );
        for cut in 1..stream.len() {
            assert!(!fuzzing::capsules(core::iter::once(&stream[..cut])).1);
        }
    }
}
