//! Bodies of the fuzz targets: each takes any bytes and panics when a promise is broken. The targets, and a test that
//! replays their corpora, call the same functions.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::cell::RefCell;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::transport::h1::head;
use crate::transport::h3::code::Fault;
use crate::transport::h3::frame::{self, FrameStep, Side};
use crate::transport::h3::{control, datagram, message, qpack};
pub use crate::transport::tls::fuzzing::tls_records;

/// A target: any bytes in, panics on a broken promise.
pub type Body = fn(&[u8]);

/// Every target by name; a corpus directory has the same name.
pub const TARGETS: &[(&str, Body)] = &[
    ("h1_head", h1_head),
    ("h3_control", h3_control),
    ("h3_frames", h3_frames),
    ("h3_section", h3_section),
    ("tls_records", tls_records),
];

/// A request head reads the same in one piece and in two.
pub fn h1_head(data: &[u8]) {
    thread_local! {
        static RUNTIME: RefCell<Runtime> = RefCell::new(
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime"),
        );
    }
    let read = |cut: usize| {
        let (mut first, second) = data.split_at(cut);
        let mut io = (&mut first).chain(second);
        let mut buffer = BytesMut::new();
        let reading = async {
            let until = Instant::now() + Duration::from_secs(60);
            head::read(&mut io, &mut buffer, until).await
        };
        let parsed = RUNTIME.with_borrow(|runtime| runtime.block_on(reading));
        parsed.map_or_else(|error| format!("{error:?}"), |parsed| format!("{parsed:?}"))
    };
    let cut = data
        .first()
        .map_or(0, |&byte| usize::from(byte) % data.len());
    assert_eq!(read(0), read(cut));
}

/// Field sections (true) and content of a stream, and how it ended.
type Frames = (Vec<(bool, Vec<u8>)>, Result<(), Fault>);

/// What a decoder of frames makes of a stream that arrives in pieces; runs of content are joined.
fn frames(side: Side, data: &[u8], piece: usize) -> Frames {
    let mut decoder = frame::Decoder::new(side);
    let mut seen: Vec<(bool, Vec<u8>)> = Vec::new();
    for mut data in data.chunks(piece) {
        loop {
            match decoder.next(data) {
                Ok(FrameStep::Skip(bytes)) => {
                    assert!(bytes > 0);
                    data = &data[bytes..];
                }
                Ok(FrameStep::Headers(block)) => {
                    assert!(block.len() as u64 <= frame::MAX_BLOCK);
                    seen.push((true, block));
                    decoder.final_head();
                }
                Ok(FrameStep::Data(bytes)) => {
                    assert_eq!(bytes, decoder.pending());
                    let length = usize::try_from(bytes).unwrap_or(usize::MAX).min(data.len());
                    let (now, later) = data.split_at(length);
                    match seen.last_mut() {
                        Some((false, joined)) => joined.extend_from_slice(now),
                        _ => seen.push((false, now.to_vec())),
                    }
                    decoder.advance(length as u64);
                    data = later;
                }
                Ok(FrameStep::Idle) => {
                    assert!(data.is_empty());
                    break;
                }
                Err(fault) => return (seen, Err(fault)),
            }
        }
    }
    (seen, decoder.end())
}

/// Frames of a request stream are the same in any pieces.
pub fn h3_frames(data: &[u8]) {
    for side in [Side::Server, Side::Client] {
        let whole = frames(side, data, usize::MAX);
        for piece in [1, 3] {
            assert_eq!(frames(side, data, piece), whole);
        }
    }
}

/// A control stream says the same in any pieces.
pub fn h3_control(data: &[u8]) {
    let said = |side, piece| {
        let mut decoder = control::Decoder::new(side);
        let mut said = Vec::new();
        for mut data in data.chunks(piece) {
            loop {
                match decoder.next(&mut data) {
                    Ok(Some(control)) => said.push(control),
                    Ok(None) => break,
                    Err(fault) => return (said, Some(fault)),
                }
            }
            assert!(data.is_empty());
        }
        (said, None)
    };
    for side in [Side::Server, Side::Client] {
        let whole = said(side, usize::MAX);
        for piece in [1, 3] {
            assert_eq!(said(side, piece), whole);
        }
    }
    let _ = datagram::parse(data);
    let _ = qpack::encoder_stream(data);
    let _ = qpack::DecoderStream::default().feed(data);
}

/// A field section that decodes survives encoding, and a message made of it stays the same.
pub fn h3_section(data: &[u8]) {
    let Ok(lines) = qpack::decode(data) else {
        return;
    };
    let again = qpack::encode(lines.iter().map(|(name, value)| (&**name, &**value)));
    assert_eq!(qpack::decode(&again).as_ref(), Ok(&lines));
    let _ = message::response(lines.clone());
    let _ = message::trailers(lines.clone());
    if let Ok(request) = message::request(lines) {
        let mut out = Vec::new();
        message::put_request(&request, &mut out);
        let (seen, end) = frames(Side::Server, &out, usize::MAX);
        assert_eq!(end, Ok(()));
        let lines = qpack::decode(&seen[0].1).expect("what was just encoded");
        assert_eq!(message::request(lines), Ok(request));
    }
}
