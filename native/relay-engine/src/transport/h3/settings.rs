//! SETTINGS (RFC 9114 §7.2.4, RFC 9220 §3, RFC 9297 §2.1.1, RFC 9204 §5).

use capsule_core::varint;

use super::code::{Code, Fault};

/// Identifiers of settings.
pub mod id {
    /// SETTINGS_QPACK_MAX_TABLE_CAPACITY.
    pub const QPACK_MAX_TABLE_CAPACITY: u64 = 0x01;
    /// SETTINGS_MAX_FIELD_SECTION_SIZE.
    pub const MAX_FIELD_SECTION_SIZE: u64 = 0x06;
    /// SETTINGS_QPACK_BLOCKED_STREAMS.
    pub const QPACK_BLOCKED_STREAMS: u64 = 0x07;
    /// SETTINGS_ENABLE_CONNECT_PROTOCOL.
    pub const ENABLE_CONNECT_PROTOCOL: u64 = 0x08;
    /// SETTINGS_H3_DATAGRAM.
    pub const H3_DATAGRAM: u64 = 0x33;
}

/// The largest field section that this side accepts, as RFC 9114 §4.2.2 counts (name + value + 32 a line).
pub const MAX_FIELD_SECTION: u64 = 32 * 1024;

/// The settings of one side; the default is what holds before SETTINGS arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// Extended CONNECT may be used towards the sender.
    pub enable_connect_protocol: bool,
    /// The sender understands HTTP datagrams in QUIC DATAGRAM frames.
    pub h3_datagram: bool,
    /// Largest field section the sender accepts, in bytes; `None` = unlimited.
    pub max_field_section_size: Option<u64>,
    /// Bytes of dynamic table that the sender's decoder offers.
    pub qpack_max_table_capacity: u64,
    /// Streams that may wait for the sender's decoder.
    pub qpack_blocked_streams: u64,
}

impl Settings {
    /// What this side sends: extended CONNECT, datagrams, [`MAX_FIELD_SECTION`], no dynamic table.
    #[must_use]
    pub const fn ours() -> Self {
        Self {
            //= rfc9220 §3 setting
            enable_connect_protocol: true,
            //= rfc9297 §2.1.1 setting-always-sent
            h3_datagram: true,
            max_field_section_size: Some(MAX_FIELD_SECTION),
            qpack_max_table_capacity: 0,
            qpack_blocked_streams: 0,
        }
    }

    /// Appends the payload of a SETTINGS frame; zero values are left out, `grease` picks the one reserved setting.
    pub fn encode(&self, grease: u64, out: &mut Vec<u8>) {
        let mut put = |id, value| {
            put_varint(id, out);
            put_varint(value, out);
        };
        if self.qpack_max_table_capacity > 0 {
            put(id::QPACK_MAX_TABLE_CAPACITY, self.qpack_max_table_capacity);
        }
        if let Some(size) = self.max_field_section_size {
            put(id::MAX_FIELD_SECTION_SIZE, size);
        }
        if self.qpack_blocked_streams > 0 {
            put(id::QPACK_BLOCKED_STREAMS, self.qpack_blocked_streams);
        }
        if self.enable_connect_protocol {
            put(id::ENABLE_CONNECT_PROTOCOL, 1);
        }
        if self.h3_datagram {
            put(id::H3_DATAGRAM, 1);
        }
        put(reserved(grease), grease & 0x3f);
    }

    /// Reads the payload of a SETTINGS frame.
    ///
    /// # Errors
    /// H3_FRAME_ERROR if it ends inside a pair; H3_SETTINGS_ERROR for an identifier that occurs twice or is reserved from
    /// HTTP/2, and for a switch that is neither 0 nor 1.
    pub fn parse(mut payload: &[u8]) -> Result<Self, Fault> {
        const BAD: Fault = Fault::Connection(Code::SETTINGS_ERROR);
        let mut settings = Self::default();
        let mut seen = Vec::new();
        while !payload.is_empty() {
            let id = take_varint(&mut payload)?;
            let value = take_varint(&mut payload)?;
            seen.push(id);
            match id {
                //= rfc9114 §7.2.4.1 reserved-h2-settings
                0x00 | 0x02..=0x05 => return Err(BAD),
                id::QPACK_MAX_TABLE_CAPACITY => settings.qpack_max_table_capacity = value,
                id::MAX_FIELD_SECTION_SIZE => settings.max_field_section_size = Some(value),
                id::QPACK_BLOCKED_STREAMS => settings.qpack_blocked_streams = value,
                id::ENABLE_CONNECT_PROTOCOL => {
                    settings.enable_connect_protocol = switch(value).ok_or(BAD)?;
                }
                //= rfc9297 §2.1.1 setting-values
                id::H3_DATAGRAM => settings.h3_datagram = switch(value).ok_or(BAD)?,
                //= rfc9114 §9 unknown-frames
                _ => {}
            }
        }
        seen.sort_unstable();
        if seen.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(BAD);
        }
        Ok(settings)
    }
}

/// An identifier that is reserved to keep the extension point in use: 0x1f · N + 0x21 (RFC 9114 §7.2.4.1, §7.2.8, §6.2.3).
#[must_use]
pub const fn reserved(seed: u64) -> u64 {
    0x1f * (seed & 0x00ff_ffff) + 0x21
}

const fn switch(value: u64) -> Option<bool> {
    match value {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// Appends the shortest form of `value`.
pub(super) fn put_varint(value: u64, out: &mut Vec<u8>) {
    let mut form = [0; varint::MAX_LEN];
    let length = varint::encode(value, &mut form);
    out.extend_from_slice(&form[..length]);
}

/// Takes an integer from the front of a frame's payload.
pub(super) fn take_varint(payload: &mut &[u8]) -> Result<u64, Fault> {
    let (value, length) = varint::decode(payload).ok_or(Fault::Connection(Code::FRAME_ERROR))?;
    *payload = &payload[length..];
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    const BAD: Result<Settings, Fault> = Err(Fault::Connection(Code::SETTINGS_ERROR));

    //= rfc9220 §3 setting
    //= rfc9297 §2.1.1 setting-always-sent
    #[test]
    fn ours_on_the_wire() {
        let mut out = Vec::new();
        Settings::ours().encode(0, &mut out);
        assert_eq!(
            out,
            [0x06, 0x80, 0, 0x80, 0, 0x08, 1, 0x33, 1, 0x21, 0],
            "max field section 32768, extended CONNECT, datagrams, one reserved setting"
        );
        assert_eq!(Settings::parse(&out), Ok(Settings::ours()));
    }

    #[test]
    fn nothing_is_announced_by_an_empty_frame() {
        assert_eq!(Settings::parse(&[]), Ok(Settings::default()));
    }

    //= rfc9114 §7.2.4.1 reserved-h2-settings
    //= rfc9297 §2.1.1 setting-values
    #[test]
    fn reserved_from_http2_duplicates_and_bad_switches() {
        for id in [0x00, 0x02, 0x03, 0x04, 0x05] {
            assert_eq!(Settings::parse(&[id, 0]), BAD);
        }
        assert_eq!(Settings::parse(&[0x08, 1, 0x08, 1]), BAD);
        assert_eq!(Settings::parse(&[0x21, 0, 0x21, 0]), BAD);
        assert_eq!(Settings::parse(&[0x08, 2]), BAD);
        assert_eq!(Settings::parse(&[0x33, 2]), BAD);
        assert!(Settings::parse(&[0x33, 0]).is_ok());
    }

    #[test]
    fn half_a_pair_is_a_frame_error() {
        for payload in [&[0x08][..], &[0x08, 0x40], &[0x40]] {
            assert_eq!(
                Settings::parse(payload),
                Err(Fault::Connection(Code::FRAME_ERROR))
            );
        }
    }

    proptest! {
        #[test]
        fn any_payload_is_judged(payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Settings::parse(&payload);
        }

        #[test]
        fn what_is_sent_is_read(
            enable_connect_protocol: bool,
            h3_datagram: bool,
            size in proptest::option::of(0..=varint::MAX),
            qpack_max_table_capacity in 0..=varint::MAX,
            qpack_blocked_streams in 0..=varint::MAX,
            grease: u64,
        ) {
            let settings = Settings {
                enable_connect_protocol,
                h3_datagram,
                max_field_section_size: size,
                qpack_max_table_capacity,
                qpack_blocked_streams,
            };
            let mut out = Vec::new();
            settings.encode(grease, &mut out);
            // The smallest reserved identifiers would collide with assigned ones only if 0x1f·N + 0x21 hit them; none does.
            prop_assert_eq!(Settings::parse(&out), Ok(settings));
        }
    }
}
