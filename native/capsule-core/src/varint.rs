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
