//! Frames of a request stream (RFC 9114 §4.1, §4.4, §7), decoded without waiting for a whole DATA frame.

use capsule_core::varint;

use super::code::{Code, Fault};
use super::settings::{put_varint, reserved};

/// Frame types.
pub mod kind {
    /// DATA.
    pub const DATA: u64 = 0x00;
    /// HEADERS.
    pub const HEADERS: u64 = 0x01;
    /// CANCEL_PUSH.
    pub const CANCEL_PUSH: u64 = 0x03;
    /// SETTINGS.
    pub const SETTINGS: u64 = 0x04;
    /// PUSH_PROMISE.
    pub const PUSH_PROMISE: u64 = 0x05;
    /// GOAWAY.
    pub const GOAWAY: u64 = 0x07;
    /// MAX_PUSH_ID.
    pub const MAX_PUSH_ID: u64 = 0x0d;
    /// PRIORITY_UPDATE for a request (RFC 9218 §7.2).
    pub const PRIORITY_UPDATE_REQUEST: u64 = 0xf0700;
    /// PRIORITY_UPDATE for a push.
    pub const PRIORITY_UPDATE_PUSH: u64 = 0xf0701;

    /// Types of HTTP/2 that HTTP/3 forbids (RFC 9114 §7.2.8).
    pub(in super::super) const fn is_http2(kind: u64) -> bool {
        matches!(kind, 0x02 | 0x06 | 0x08 | 0x09)
    }
}

/// The largest encoded field section that is taken in, in bytes.
pub const MAX_BLOCK: u64 = 32 * 1024;

/// The longest frame header of a DATA frame, in bytes: a type of one byte, a length of up to eight.
pub const MAX_DATA_HEADER: usize = 9;

const UNEXPECTED: Fault = Fault::Connection(Code::FRAME_UNEXPECTED);

/// Which end of the connection this side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It answers requests.
    Server,
    /// It sends requests.
    Client,
}

/// What to do with the bytes at the front of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum FrameStep {
    /// Drop this many bytes, at least one: they are dealt with.
    Skip(usize),
    /// A whole encoded field section, whose bytes were dropped before; nothing further is consumed.
    Headers(Vec<u8>),
    /// This many bytes, perhaps more than are at hand, are content. Take m of them and call [`advance`](Decoder::advance).
    Data(u64),
    /// More bytes are needed; only for empty input.
    Idle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Field sections only; a client stays here through interim responses.
    Head,
    /// DATA, then perhaps trailers.
    Body,
    /// After the trailers: nothing that is known.
    Trailed,
    /// A CONNECT that succeeded: DATA only.
    Tunnel,
}

#[derive(Debug)]
enum Inside {
    /// Between frames, or in a frame header.
    Header,
    /// In a field section that is being collected: bytes still to come.
    Block(usize),
    /// In a DATA frame: bytes still to come.
    Data(u64),
    /// In a frame of an unknown type: bytes still to come.
    Unknown(u64),
}

/// Incremental decoder of one direction of a request stream. Keeps part of a frame header and one field section, never content.
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    stage: Stage,
    inside: Inside,
    head: [u8; 16],
    head_len: u8,
    block: Vec<u8>,
}

impl Decoder {
    /// A decoder for what `side` receives: requests for a server, responses for a client.
    #[must_use]
    pub const fn new(side: Side) -> Self {
        Self {
            side,
            stage: Stage::Head,
            inside: Inside::Header,
            head: [0; 16],
            head_len: 0,
            block: Vec::new(),
        }
    }

    /// Client only: the last field section was a final response; content may follow.
    pub fn final_head(&mut self) {
        if self.stage == Stage::Head {
            self.stage = Stage::Body;
        }
    }

    /// The CONNECT on this stream succeeded: from here on any known frame but DATA is a violation (RFC 9114 §4.4).
    pub const fn tunnel(&mut self) {
        self.stage = Stage::Tunnel;
    }

    /// Content bytes that are known to come next.
    #[must_use]
    pub const fn pending(&self) -> u64 {
        match self.inside {
            Inside::Data(rest) => rest,
            _ => 0,
        }
    }

    /// `taken` bytes of content were taken, at most [`pending`](Self::pending).
    pub const fn advance(&mut self, taken: u64) {
        if let Inside::Data(rest) = self.inside {
            debug_assert!(taken <= rest);
            self.inside = match rest.saturating_sub(taken) {
                0 => Inside::Header,
                rest => Inside::Data(rest),
            };
        }
    }

    /// Looks at the front of `data`. To be called until it says [`FrameStep::Idle`].
    ///
    /// # Errors
    /// H3_FRAME_UNEXPECTED for a frame that may not come now, H3_ID_ERROR for a push that was never allowed (both end the
    /// connection); H3_EXCESSIVE_LOAD for a field section over [`MAX_BLOCK`] (ends the stream, or deserves a 431). The decoder
    /// is of no use afterwards.
    pub fn next(&mut self, data: &[u8]) -> Result<FrameStep, Fault> {
        if let Inside::Block(0) = self.inside {
            self.inside = Inside::Header;
            self.stage = match (self.stage, self.side) {
                (Stage::Head, Side::Server) => Stage::Body,
                // An interim response may follow; the caller knows.
                (Stage::Head, Side::Client) => Stage::Head,
                _ => Stage::Trailed,
            };
            return Ok(FrameStep::Headers(std::mem::take(&mut self.block)));
        }
        if data.is_empty() {
            return Ok(FrameStep::Idle);
        }
        Ok(match &mut self.inside {
            Inside::Data(rest) => FrameStep::Data(*rest),
            Inside::Unknown(rest) => {
                let taken = usize::try_from(*rest).map_or(data.len(), |rest| rest.min(data.len()));
                *rest -= taken as u64;
                if *rest == 0 {
                    self.inside = Inside::Header;
                }
                FrameStep::Skip(taken)
            }
            Inside::Block(rest) => {
                let taken = data.len().min(*rest);
                self.block.extend_from_slice(&data[..taken]);
                *rest -= taken;
                FrameStep::Skip(taken)
            }
            Inside::Header => FrameStep::Skip(self.header(data)?),
        })
    }

    /// The peer ended its direction.
    ///
    /// # Errors
    /// H3_FRAME_ERROR inside a frame (ends the connection); H3_REQUEST_INCOMPLETE for a request without a head and
    /// H3_MESSAGE_ERROR for a response without one (end the stream).
    pub const fn end(&self) -> Result<(), Fault> {
        if !matches!(self.inside, Inside::Header) || self.head_len > 0 {
            return Err(Fault::Connection(Code::FRAME_ERROR));
        }
        match (self.stage, self.side) {
            (Stage::Head, Side::Server) => Err(Fault::Stream(Code::REQUEST_INCOMPLETE)),
            (Stage::Head, Side::Client) => Err(Fault::Stream(Code::MESSAGE_ERROR)),
            _ => Ok(()),
        }
    }

    /// Takes bytes of a frame header; returns how many.
    fn header(&mut self, data: &[u8]) -> Result<usize, Fault> {
        let have = usize::from(self.head_len);
        let fresh = data.len().min(self.head.len() - have);
        self.head[have..have + fresh].copy_from_slice(&data[..fresh]);
        match parse_header(&self.head[..have + fresh]) {
            None => {
                // At most 15 bytes can be an incomplete header.
                #[allow(clippy::cast_possible_truncation)]
                {
                    self.head_len = (have + fresh) as u8;
                }
                Ok(fresh)
            }
            Some((kind, length, consumed)) => {
                self.head_len = 0;
                self.inside = self.enter(kind, length)?;
                Ok(consumed - have)
            }
        }
    }

    fn enter(&self, kind: u64, length: u64) -> Result<Inside, Fault> {
        match kind {
            kind::DATA if matches!(self.stage, Stage::Body | Stage::Tunnel) => {
                return Ok(match length {
                    0 => Inside::Header,
                    length => Inside::Data(length),
                });
            }
            kind::HEADERS if matches!(self.stage, Stage::Head | Stage::Body) => {
                if length > MAX_BLOCK {
                    return Err(Fault::Stream(Code::EXCESSIVE_LOAD));
                }
                return usize::try_from(length)
                    .map(Inside::Block)
                    .map_err(|_| Fault::Stream(Code::EXCESSIVE_LOAD));
            }
            // No MAX_PUSH_ID was ever sent, so every push ID is beyond the limit.
            kind::PUSH_PROMISE if self.side == Side::Client => {
                return Err(Fault::Connection(Code::ID_ERROR));
            }
            //= rfc9114 §4.4 connect-frames
            kind::DATA
            | kind::HEADERS
            | kind::PUSH_PROMISE
            | kind::CANCEL_PUSH
            | kind::SETTINGS
            | kind::GOAWAY
            | kind::MAX_PUSH_ID
            | kind::PRIORITY_UPDATE_REQUEST
            | kind::PRIORITY_UPDATE_PUSH => return Err(UNEXPECTED),
            //= rfc9114 §7.2.8 reserved-h2-frames
            kind if kind::is_http2(kind) => return Err(UNEXPECTED),
            //= rfc9114 §9 unknown-frames
            _ => {}
        }
        Ok(match length {
            0 => Inside::Header,
            length => Inside::Unknown(length),
        })
    }
}

/// Type, length and size of the frame header at the front of `buf`; `None` = more bytes are needed.
pub(super) fn parse_header(buf: &[u8]) -> Option<(u64, u64, usize)> {
    let (kind, first) = varint::decode(buf)?;
    let (length, second) = varint::decode(&buf[first..])?;
    Some((kind, length, first + second))
}

/// Writes the header of a DATA frame with `length` bytes of content; returns its size.
pub fn data_header(length: u64, out: &mut [u8; MAX_DATA_HEADER]) -> usize {
    out[0] = 0;
    1 + varint::encode(length, &mut out[1..])
}

/// Appends a HEADERS frame with an encoded field section.
pub fn put_headers(block: &[u8], out: &mut Vec<u8>) {
    put_varint(kind::HEADERS, out);
    put_varint(block.len() as u64, out);
    out.extend_from_slice(block);
}

/// Appends an empty frame of a reserved type, which receivers skip.
pub fn put_grease(seed: u64, out: &mut Vec<u8>) {
    put_varint(reserved(seed), out);
    put_varint(0, out);
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
