//! Error codes of HTTP/3, QPACK and HTTP datagrams, and how far an error reaches.

use std::fmt;

/// An application error code, as RESET_STREAM, STOP_SENDING and CONNECTION_CLOSE carry it.
///
/// Codes that are not listed are legal on receipt and mean the same as [`NO_ERROR`](Self::NO_ERROR) (RFC 9114 §9).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(u64);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Code {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The registered name, if there is one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// QUIC datagram that cannot be parsed, or one for a request that gives datagrams no meaning (RFC 9297 §5.2).
    DATAGRAM_ERROR = 0x33, "H3_DATAGRAM_ERROR";
    /// Nothing is wrong; also what GREASE codes mean.
    NO_ERROR = 0x100, "H3_NO_ERROR";
    /// A violation without a code of its own.
    GENERAL_PROTOCOL_ERROR = 0x101, "H3_GENERAL_PROTOCOL_ERROR";
    /// A fault of this side.
    INTERNAL_ERROR = 0x102, "H3_INTERNAL_ERROR";
    /// The peer opened a stream that this side does not accept.
    STREAM_CREATION_ERROR = 0x103, "H3_STREAM_CREATION_ERROR";
    /// The control stream or a QPACK stream ended.
    CLOSED_CRITICAL_STREAM = 0x104, "H3_CLOSED_CRITICAL_STREAM";
    /// A frame that is not allowed in this state or on this stream.
    FRAME_UNEXPECTED = 0x105, "H3_FRAME_UNEXPECTED";
    /// A frame with a bad layout or size.
    FRAME_ERROR = 0x106, "H3_FRAME_ERROR";
    /// The peer asks for more than this side is willing to do.
    EXCESSIVE_LOAD = 0x107, "H3_EXCESSIVE_LOAD";
    /// A stream or push ID out of its bounds.
    ID_ERROR = 0x108, "H3_ID_ERROR";
    /// A fault in SETTINGS.
    SETTINGS_ERROR = 0x109, "H3_SETTINGS_ERROR";
    /// The control stream does not begin with SETTINGS.
    MISSING_SETTINGS = 0x10a, "H3_MISSING_SETTINGS";
    /// A request that was not processed at all.
    REQUEST_REJECTED = 0x10b, "H3_REQUEST_REJECTED";
    /// A request, or its response, that is no longer wanted.
    REQUEST_CANCELLED = 0x10c, "H3_REQUEST_CANCELLED";
    /// The stream ended before the request was complete.
    REQUEST_INCOMPLETE = 0x10d, "H3_REQUEST_INCOMPLETE";
    /// A malformed message.
    MESSAGE_ERROR = 0x10e, "H3_MESSAGE_ERROR";
    /// The TCP connection behind a CONNECT broke.
    CONNECT_ERROR = 0x10f, "H3_CONNECT_ERROR";
    /// The request is to be tried again over HTTP/1.1.
    VERSION_FALLBACK = 0x110, "H3_VERSION_FALLBACK";
    /// A field section that cannot be decoded (RFC 9204 §6).
    QPACK_DECOMPRESSION_FAILED = 0x200, "QPACK_DECOMPRESSION_FAILED";
    /// An encoder instruction that cannot be carried out.
    QPACK_ENCODER_STREAM_ERROR = 0x201, "QPACK_ENCODER_STREAM_ERROR";
    /// A decoder instruction that cannot be right.
    QPACK_DECODER_STREAM_ERROR = 0x202, "QPACK_DECODER_STREAM_ERROR";
}

impl Code {
    /// A code as received.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number on the wire, below 2^62.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A violation by the peer, and whether it ends one stream or the whole connection (RFC 9114 §8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The connection is to be closed with this code.
    #[error("connection error {0}")]
    Connection(Code),
    /// The stream is to be reset, and its other direction stopped, with this code.
    #[error("stream error {0}")]
    Stream(Code),
}

impl Fault {
    /// The code to close or reset with.
    #[must_use]
    pub const fn code(self) -> Code {
        match self {
            Self::Connection(code) | Self::Stream(code) => code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_registered_values_and_names() {
        let table = [
            (0x33, "H3_DATAGRAM_ERROR"),
            (0x100, "H3_NO_ERROR"),
            (0x101, "H3_GENERAL_PROTOCOL_ERROR"),
            (0x102, "H3_INTERNAL_ERROR"),
            (0x103, "H3_STREAM_CREATION_ERROR"),
            (0x104, "H3_CLOSED_CRITICAL_STREAM"),
            (0x105, "H3_FRAME_UNEXPECTED"),
            (0x106, "H3_FRAME_ERROR"),
            (0x107, "H3_EXCESSIVE_LOAD"),
            (0x108, "H3_ID_ERROR"),
            (0x109, "H3_SETTINGS_ERROR"),
            (0x10a, "H3_MISSING_SETTINGS"),
            (0x10b, "H3_REQUEST_REJECTED"),
            (0x10c, "H3_REQUEST_CANCELLED"),
            (0x10d, "H3_REQUEST_INCOMPLETE"),
            (0x10e, "H3_MESSAGE_ERROR"),
            (0x10f, "H3_CONNECT_ERROR"),
            (0x110, "H3_VERSION_FALLBACK"),
            (0x200, "QPACK_DECOMPRESSION_FAILED"),
            (0x201, "QPACK_ENCODER_STREAM_ERROR"),
            (0x202, "QPACK_DECODER_STREAM_ERROR"),
        ];
        for (value, name) in table {
            assert_eq!(Code::new(value).name(), Some(name));
        }
        assert_eq!(Code::new(0x21).to_string(), "0x21");
        assert_eq!(Code::CONNECT_ERROR.value(), 0x10f);
    }
}
