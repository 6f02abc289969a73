//! Unidirectional streams of the peer (RFC 9114 §6.2, RFC 9204 §4.2).

use capsule_core::varint;

use super::code::{Code, Fault};
use super::frame::Side;

/// Stream types.
pub mod kind {
    /// Control stream.
    pub const CONTROL: u64 = 0x00;
    /// Push stream.
    pub const PUSH: u64 = 0x01;
    /// QPACK encoder stream.
    pub const QPACK_ENCODER: u64 = 0x02;
    /// QPACK decoder stream.
    pub const QPACK_DECODER: u64 = 0x03;
}

/// What a stream of the peer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Frames of the connection; see [`control`](super::control).
    Control,
    /// Instructions for this side's decoder; see [`qpack::encoder_stream`](super::qpack::encoder_stream).
    QpackEncoder,
    /// Instructions for this side's encoder; see [`qpack::DecoderStream`](super::qpack::DecoderStream).
    QpackDecoder,
    /// Unknown or reserved: to be stopped with H3_STREAM_CREATION_ERROR, or read and dropped. Never an error.
    Unknown,
}

/// The type at the front of a stream and its size in bytes; `None` = more bytes are needed, at most
/// [`varint::MAX_LEN`]. A stream that ends or is reset before its type is complete is no error.
#[must_use]
pub fn stream_type(data: &[u8]) -> Option<(u64, usize)> {
    varint::decode(data)
}

/// Which of the streams that exist once the peer has opened.
#[derive(Debug)]
pub struct Opened {
    side: Side,
    seen: [bool; 3],
}

impl Opened {
    /// Nothing opened yet; `side` is this end.
    #[must_use]
    pub const fn new(side: Side) -> Self {
        Self {
            side,
            seen: [false; 3],
        }
    }

    /// The peer opened a stream of type `kind`.
    ///
    /// # Errors
    /// H3_STREAM_CREATION_ERROR for a second control or QPACK stream and for a push stream from a client; H3_ID_ERROR for a
    /// push stream from a server, since this side never allows a push.
    pub const fn open(&mut self, kind: u64) -> Result<Purpose, Fault> {
        let (slot, purpose) = match kind {
            kind::CONTROL => (0, Purpose::Control),
            kind::QPACK_ENCODER => (1, Purpose::QpackEncoder),
            kind::QPACK_DECODER => (2, Purpose::QpackDecoder),
            kind::PUSH => {
                return Err(Fault::Connection(match self.side {
                    Side::Server => Code::STREAM_CREATION_ERROR,
                    Side::Client => Code::ID_ERROR,
                }));
            }
            //= rfc9114 §9 unknown-frames
            _ => return Ok(Purpose::Unknown),
        };
        //= rfc9114 §6.2.1 control-stream-stays
        if self.seen[slot] {
            return Err(Fault::Connection(Code::STREAM_CREATION_ERROR));
        }
        self.seen[slot] = true;
        Ok(purpose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    //= rfc9114 §6.2.1 control-stream-stays
    #[test]
    fn each_critical_stream_opens_once() {
        let mut opened = Opened::new(Side::Server);
        for (kind, purpose) in [
            (kind::QPACK_DECODER, Purpose::QpackDecoder),
            (kind::CONTROL, Purpose::Control),
            (kind::QPACK_ENCODER, Purpose::QpackEncoder),
        ] {
            assert_eq!(opened.open(kind), Ok(purpose));
            assert_eq!(
                opened.open(kind),
                Err(Fault::Connection(Code::STREAM_CREATION_ERROR))
            );
        }
    }

    //= rfc9114 §9 unknown-frames
    #[test]
    fn unknown_types_are_tolerated_and_pushes_are_not() {
        let mut opened = Opened::new(Side::Server);
        for kind in [0x21, 0x40, 0x54, 0x21, varint::MAX] {
            assert_eq!(opened.open(kind), Ok(Purpose::Unknown));
        }
        assert_eq!(
            opened.open(kind::PUSH),
            Err(Fault::Connection(Code::STREAM_CREATION_ERROR))
        );
        assert_eq!(
            Opened::new(Side::Client).open(kind::PUSH),
            Err(Fault::Connection(Code::ID_ERROR))
        );
    }

    #[test]
    fn a_type_may_take_any_length() {
        assert_eq!(stream_type(&[]), None);
        assert_eq!(stream_type(&[0x40]), None);
        assert_eq!(stream_type(&[0x40, 0x02, 9]), Some((2, 2)));
    }
}
