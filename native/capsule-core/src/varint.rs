//! Variable-length integers of QUIC (RFC 9000 §16): the two top bits of the first byte give a length of 1, 2, 4 or 8 bytes.

/// The largest value: 2^62 − 1.
pub const MAX: u64 = (1 << 62) - 1;

/// The longest form, in bytes.
pub const MAX_LEN: usize = 8;

/// Bytes of the shortest form of `value`: 1, 2, 4 or 8.
///
/// `value` ≤ [`MAX`] is the caller's duty; a larger one counts as [`MAX`].
#[inline]
#[must_use]
pub const fn len(value: u64) -> usize {
    debug_assert!(value <= MAX);
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Writes the shortest form of `value` to the front of `out` and returns its length.
///
/// `value` ≤ [`MAX`] is the caller's duty; a larger one is written as [`MAX`].
///
/// # Panics
/// If `out` is shorter than [`len`]`(value)`; [`MAX_LEN`] bytes are always enough.
#[inline]
pub fn encode(value: u64, out: &mut [u8]) -> usize {
    let value = value.min(MAX);
    let bytes = value.to_be_bytes();
    let length = len(value);
    out[..length].copy_from_slice(&bytes[8 - length..]);
    out[0] |= match length {
        1 => 0x00,
        2 => 0x40,
        4 => 0x80,
        _ => 0xc0,
    };
    length
}

/// Reads an integer at the front of `buf`: its value and its length in bytes. `None` = more bytes are needed.
///
/// Longer forms than necessary are accepted, as RFC 9000 §16 allows.
//= rfc9000 §16 varint
#[inline]
#[must_use]
pub fn decode(buf: &[u8]) -> Option<(u64, usize)> {
    let first = *buf.first()?;
    let length = 1usize << (first >> 6);
    let bytes = buf.get(..length)?;
    let mut value = u64::from(first & 0x3f);
    for &byte in &bytes[1..] {
        value = value << 8 | u64::from(byte);
    }
    Some((value, length))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    //= rfc9000 §16 varint
    #[test]
    fn vectors_of_rfc9000_a1() {
        let vectors: [(&[u8], u64); 5] = [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (bytes, value) in vectors {
            assert_eq!(decode(bytes), Some((value, bytes.len())));
            for cut in 0..bytes.len() {
                assert_eq!(decode(&bytes[..cut]), None);
            }
            let mut out = [0; MAX_LEN];
            let length = encode(value, &mut out);
            if bytes != [0x40, 0x25] {
                assert_eq!(&out[..length], bytes);
            }
        }
    }

    #[test]
    fn lengths_change_at_the_powers() {
        for (value, length) in [
            (0, 1),
            (63, 1),
            (64, 2),
            (16_383, 2),
            (16_384, 4),
            ((1 << 30) - 1, 4),
            (1 << 30, 8),
            (MAX, 8),
        ] {
            assert_eq!(len(value), length);
            let mut out = [0xaa; MAX_LEN];
            assert_eq!(encode(value, &mut out), length);
            assert_eq!(decode(&out), Some((value, length)));
            assert!(out[length..].iter().all(|&byte| byte == 0xaa));
        }
    }

    proptest! {
        #[test]
        fn round_trip(value in 0..=MAX, tail in any::<[u8; 3]>()) {
            let mut out = [0; MAX_LEN + 3];
            let length = encode(value, &mut out);
            out[length..length + 3].copy_from_slice(&tail);
            prop_assert_eq!(decode(&out), Some((value, length)));
        }

        #[test]
        fn any_form_is_read(value in 0u64..=0x3f, form in 0u32..4) {
            let length = 1usize << form;
            let mut bytes = [0; MAX_LEN];
            bytes[length - 1] = u8::try_from(value).unwrap();
            bytes[0] |= u8::try_from(form).unwrap() << 6;
            prop_assert_eq!(decode(&bytes), Some((value, length)));
        }
    }
}
