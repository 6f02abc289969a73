//! Field sections (RFC 9204) without a dynamic table, over the `qpack` crate.
//!
//! The crate is the codec of hyperium's h3. It lets some faults pass that RFC 9204 and RFC 7541 forbid, so [`decode`] walks a
//! section first.

use std::borrow::Cow;
use std::sync::LazyLock;

use qpack::{DecoderError, HeaderField, decode_stateless, encode_stateless};

use super::code::{Code, Fault};
use super::settings::MAX_FIELD_SECTION;

/// A field line: name and value as bytes.
pub type Line = (Cow<'static, [u8]>, Cow<'static, [u8]>);

/// Why a field section was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SectionError {
    /// It is larger than [`MAX_FIELD_SECTION`]; a server answers 431.
    #[error("the field section is too large")]
    TooLarge,
    /// It cannot be decoded, which ends the connection.
    #[error("the field section cannot be decoded")]
    Malformed,
}

impl From<SectionError> for Fault {
    fn from(error: SectionError) -> Self {
        match error {
            SectionError::TooLarge => Self::Stream(Code::EXCESSIVE_LOAD),
            SectionError::Malformed => Self::Connection(Code::QPACK_DECOMPRESSION_FAILED),
        }
    }
}

/// Encodes field lines in order, with the static table and Huffman coding.
#[must_use]
pub fn encode<'a>(lines: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut block = Vec::with_capacity(256);
    let fields = lines
        .into_iter()
        .map(|(name, value)| HeaderField::new(name, value));
    // Every octet has a Huffman code, and no table can overflow: there is nothing to fail.
    let encoded = encode_stateless(&mut block, fields);
    debug_assert!(encoded.is_ok());
    block
}

/// Decodes a field section; order and repeated names are kept.
///
/// # Errors
/// See [`SectionError`]. A reference to the dynamic table cannot be resolved, as none is offered.
pub fn decode(block: &[u8]) -> Result<Vec<Line>, SectionError> {
    let literals = walk(block).ok_or(SectionError::Malformed)?;
    let mut rest = block;
    let decoded = decode_stateless(&mut rest, MAX_FIELD_SECTION).map_err(|error| match error {
        DecoderError::HeaderTooLong(_) => SectionError::TooLarge,
        _ => SectionError::Malformed,
    })?;
    if literals.len() != decoded.fields.len() {
        return Err(SectionError::Malformed);
    }
    let mut lines = Vec::with_capacity(decoded.fields.len());
    for (field, [name_size, value_size]) in decoded.fields.into_iter().zip(literals) {
        let (name, value) = field.into_inner();
        let fits = |text: &[u8], size: Option<usize>| size.is_none_or(|s| s == huffman_len(text));
        if !fits(&name, name_size) || !fits(&value, value_size) {
            return Err(SectionError::Malformed);
        }
        lines.push((name, value));
    }
    Ok(lines)
}

/// For each field line, the wire sizes of its Huffman-coded name and value, where there are such. `None` = the section needs a
/// dynamic table or is cut off.
///
/// A Huffman string of the right size has no EOS symbol in it and less than eight bits of padding (RFC 7541 §5.2), which the
/// crate does not check.
fn walk(block: &[u8]) -> Option<Vec<[Option<usize>; 2]>> {
    // Required Insert Count 0, and a Base that is not negative.
    let (&0, mut rest) = block.split_first()? else {
        return None;
    };
    if rest.first()? & 0x80 != 0 {
        return None;
    }
    integer(&mut rest, 7)?;
    let mut literals = Vec::new();
    while let Some(&first) = rest.first() {
        literals.push(match first {
            0b1100_0000.. => {
                integer(&mut rest, 6)?;
                [None, None]
            }
            0b0101_0000..=0b0101_1111 | 0b0111_0000..=0b0111_1111 => {
                integer(&mut rest, 4)?;
                [None, literal(&mut rest, 7)?]
            }
            0b0010_0000..=0b0011_1111 => [literal(&mut rest, 3)?, literal(&mut rest, 7)?],
            _ => return None,
        });
    }
    Some(literals)
}

/// Skips a string literal whose length has a prefix of `bits`; the size of a Huffman-coded one.
fn literal(rest: &mut &[u8], bits: u32) -> Option<Option<usize>> {
    let huffman = rest.first()? >> bits & 1 == 1;
    let size = usize::try_from(integer(rest, bits)?).ok()?;
    *rest = rest.get(size..)?;
    Some(huffman.then_some(size))
}

/// Takes an integer with a prefix of `bits` (RFC 7541 §5.1), up to 2^62.
fn integer(rest: &mut &[u8], bits: u32) -> Option<u64> {
    let (&first, mut tail) = rest.split_first()?;
    let mask = (1u64 << bits) - 1;
    let mut value = u64::from(first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (&byte, next) = tail.split_first()?;
            tail = next;
            value += u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 56 {
                return None;
            }
        }
    }
    *rest = tail;
    (value < 1 << 62).then_some(value)
}

/// Bytes of `text` when Huffman-coded.
fn huffman_len(text: &[u8]) -> usize {
    /// Bits of each octet's code: the encoder turns eight copies into as many bytes.
    static BITS: LazyLock<[u8; 256]> = LazyLock::new(|| {
        std::array::from_fn(|octet| {
            #[allow(clippy::cast_possible_truncation)]
            let text = [octet as u8; 8];
            let bare = encode([(&b"~"[..], &b""[..])]).len();
            let size = encode([(&b"~"[..], &text[..])]).len() - bare;
            u8::try_from(size).unwrap_or(u8::MAX)
        })
    });
    let bits: usize = text
        .iter()
        .map(|&octet| usize::from(BITS[usize::from(octet)]))
        .sum();
    bits.div_ceil(8)
}

/// Judges bytes of the peer's encoder stream: with a capacity of 0 the one legal instruction is to set it to 0.
///
/// # Errors
/// QPACK_ENCODER_STREAM_ERROR for the connection.
pub fn encoder_stream(data: &[u8]) -> Result<(), Fault> {
    const SET_CAPACITY_0: u8 = 0b0010_0000;
    if data.iter().all(|&byte| byte == SET_CAPACITY_0) {
        Ok(())
    } else {
        Err(Fault::Connection(Code::QPACK_ENCODER_STREAM_ERROR))
    }
}

/// Judge of the peer's decoder stream: no section of ours refers to the dynamic table, so all it may say is Stream Cancellation.
#[derive(Debug, Default)]
pub struct DecoderStream {
    /// Bytes of an unfinished integer; 0 = between instructions.
    inside: u8,
}

impl DecoderStream {
    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// QPACK_DECODER_STREAM_ERROR for the connection.
    pub fn feed(&mut self, data: &[u8]) -> Result<(), Fault> {
        const BAD: Fault = Fault::Connection(Code::QPACK_DECODER_STREAM_ERROR);
        for &byte in data {
            if self.inside == 0 {
                match byte {
                    0b0111_1111 => self.inside = 1,
                    0b0100_0000..=0b0111_1110 => {}
                    _ => return Err(BAD),
                }
            } else if byte & 0x80 == 0 {
                self.inside = 0;
            } else if self.inside == 9 {
                return Err(BAD);
            } else {
                self.inside += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "qpack_tests.rs"]
mod tests;
