//! Capsules (RFC 9297 §3.2): type, length, value. The decoder streams values and never holds more than a header.

use crate::varint;

/// The longest capsule header, in bytes: two varints.
pub const MAX_HEADER: usize = 2 * varint::MAX_LEN;

/// Capsule types.
pub mod types {
    /// An HTTP datagram (RFC 9297 §3.5).
    pub const DATAGRAM: u64 = 0x00;
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
