//! The control stream (RFC 9114 §6.2.1, §7.2).

use capsule_core::varint;

use super::code::{Code, Fault};
use super::frame::{Side, kind, parse_header};
use super::settings::{Settings, put_varint, take_varint};
use super::uni;

/// The largest SETTINGS payload that is taken in, in bytes.
pub const MAX_SETTINGS: u64 = 4096;

const UNEXPECTED: Fault = Fault::Connection(Code::FRAME_UNEXPECTED);
const BAD_ID: Fault = Fault::Connection(Code::ID_ERROR);
const BAD_FRAME: Fault = Fault::Connection(Code::FRAME_ERROR);

/// The end of the peer's control or QPACK stream, by FIN or by reset.
//= rfc9114 §6.2.1 control-stream-stays
pub const CLOSED: Fault = Fault::Connection(Code::CLOSED_CRITICAL_STREAM);

/// What the peer says on its control stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Its settings; always first, exactly once.
    Settings(Settings),
    /// It goes away: a server will not process requests from this stream ID on, a client accepts no push from this push ID on.
    Goaway(u64),
    /// Server side: the client would allow pushes up to this ID.
    MaxPushId(u64),
}

#[derive(Debug)]
enum Inside {
    Header,
    /// A frame whose payload is collected.
    Known {
        kind: u64,
        rest: usize,
    },
    /// A frame that is skipped.
    Skipped(u64),
}

/// Incremental decoder of the peer's control stream, after the stream type. Keeps at most [`MAX_SETTINGS`] bytes.
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    settled: bool,
    goaway: Option<u64>,
    max_push: Option<u64>,
    inside: Inside,
    partial: Vec<u8>,
}

impl Decoder {
    /// A decoder for `side`, this end of the connection.
    #[must_use]
    pub const fn new(side: Side) -> Self {
        Self {
            side,
            settled: false,
            goaway: None,
            max_push: None,
            inside: Inside::Header,
            partial: Vec::new(),
        }
    }

    /// Takes bytes from the front of `data` up to the next thing said; `None` once all are taken.
    ///
    /// # Errors
    /// Every fault ends the connection; the decoder is of no use afterwards.
    pub fn next(&mut self, data: &mut &[u8]) -> Result<Option<Control>, Fault> {
        loop {
            match &mut self.inside {
                Inside::Known { kind, rest } => {
                    let taken = data.len().min(*rest);
                    self.partial.extend_from_slice(&data[..taken]);
                    *data = &data[taken..];
                    *rest -= taken;
                    if *rest > 0 {
                        return Ok(None);
                    }
                    let kind = *kind;
                    self.inside = Inside::Header;
                    let payload = std::mem::take(&mut self.partial);
                    return self.frame(kind, &payload).map(Some);
                }
                Inside::Skipped(rest) => {
                    let taken =
                        usize::try_from(*rest).map_or(data.len(), |rest| rest.min(data.len()));
                    *data = &data[taken..];
                    *rest -= taken as u64;
                    if *rest > 0 {
                        return Ok(None);
                    }
                    self.inside = Inside::Header;
                }
                Inside::Header => {
                    let Some((&byte, rest)) = data.split_first() else {
                        return Ok(None);
                    };
                    *data = rest;
                    self.partial.push(byte);
                    if let Some((kind, length, _)) = parse_header(&self.partial) {
                        self.partial.clear();
                        self.inside = self.enter(kind, length)?;
                    }
                }
            }
        }
    }

    /// Whether the peer's SETTINGS arrived.
    #[must_use]
    pub const fn settled(&self) -> bool {
        self.settled
    }

    fn enter(&mut self, kind: u64, length: u64) -> Result<Inside, Fault> {
        //= rfc9114 §6.2.1 settings-first
        if !self.settled && kind != kind::SETTINGS {
            return Err(Fault::Connection(Code::MISSING_SETTINGS));
        }
        let known = |limit, fault| match usize::try_from(length) {
            Ok(rest) if length <= limit => Ok(Inside::Known { kind, rest }),
            _ => Err(fault),
        };
        match kind {
            kind::SETTINGS if self.settled => Err(UNEXPECTED),
            kind::SETTINGS => {
                self.settled = true;
                known(MAX_SETTINGS, Fault::Connection(Code::EXCESSIVE_LOAD))
            }
            kind::MAX_PUSH_ID if self.side == Side::Client => Err(UNEXPECTED),
            kind::GOAWAY | kind::MAX_PUSH_ID | kind::CANCEL_PUSH => {
                known(varint::MAX_LEN as u64, BAD_FRAME)
            }
            kind::PRIORITY_UPDATE_REQUEST | kind::PRIORITY_UPDATE_PUSH
                if self.side == Side::Client =>
            {
                Err(UNEXPECTED)
            }
            kind::DATA | kind::HEADERS | kind::PUSH_PROMISE => Err(UNEXPECTED),
            //= rfc9114 §7.2.8 reserved-h2-frames
            kind if kind::is_http2(kind) => Err(UNEXPECTED),
            _ => Ok(Inside::Skipped(length)),
        }
    }

    fn frame(&mut self, kind: u64, mut payload: &[u8]) -> Result<Control, Fault> {
        if kind == kind::SETTINGS {
            return Settings::parse(payload).map(Control::Settings);
        }
        let id = take_varint(&mut payload)?;
        if !payload.is_empty() {
            return Err(BAD_FRAME);
        }
        match kind {
            kind::GOAWAY => {
                let is_request = id.is_multiple_of(4);
                if self.goaway.is_some_and(|before| id > before)
                    || (self.side == Side::Client && !is_request)
                {
                    return Err(BAD_ID);
                }
                self.goaway = Some(id);
                Ok(Control::Goaway(id))
            }
            kind::MAX_PUSH_ID => {
                if self.max_push.is_some_and(|before| id < before) {
                    return Err(BAD_ID);
                }
                self.max_push = Some(id);
                Ok(Control::MaxPushId(id))
            }
            // CANCEL_PUSH: this side neither promises nor allows a push, so no push ID can be right.
            _ => Err(BAD_ID),
        }
    }
}

/// The beginning of this side's control stream: the stream type and SETTINGS, with `grease` choosing the reserved setting.
#[must_use]
pub fn preface(settings: &Settings, grease: u64) -> Vec<u8> {
    let mut payload = Vec::with_capacity(32);
    settings.encode(grease, &mut payload);
    let mut out = Vec::with_capacity(payload.len() + 4);
    put_varint(uni::kind::CONTROL, &mut out);
    put_varint(kind::SETTINGS, &mut out);
    put_varint(payload.len() as u64, &mut out);
    out.extend_from_slice(&payload);
    out
}

/// Appends GOAWAY with a stream ID (server) or push ID (client), which must not be larger than the one sent before.
pub fn put_goaway(id: u64, out: &mut Vec<u8>) {
    put_varint(kind::GOAWAY, out);
    put_varint(varint::len(id) as u64, out);
    put_varint(id, out);
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
