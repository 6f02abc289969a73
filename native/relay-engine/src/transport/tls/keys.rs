//! The record protection of one direction, in place: one AEAD key, its nonces, its count of records (RFC 8446 §5.2, RFC 5246
//! §6.2.3.3, RFC 5288 §3, RFC 7905 §2).

use std::ops::Range;

use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion, SupportedCipherSuite};

/// The most content of one record.
pub const MOST_CONTENT: usize = 1 << 14;
/// A record's header.
pub const HEADER: usize = 5;
/// What may stand before the content: the header, and an explicit nonce in TLS 1.2.
pub const MOST_BEFORE: usize = HEADER + EXPLICIT;
/// What may stand behind the content: the inner content type of TLS 1.3, and the tag.
pub const MOST_BEHIND: usize = 1 + TAG;
const EXPLICIT: usize = 8;
const TAG: usize = 16;

/// Content types (RFC 8446 §5.1).
pub mod content {
    /// `alert`
    pub const ALERT: u8 = 21;
    /// `handshake`
    pub const HANDSHAKE: u8 = 22;
    /// `application_data`
    pub const DATA: u8 = 23;
}

/// Why a record cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It was not made with the peer's key, or was changed on its way.
    #[error("a record does not authenticate")]
    BadRecordMac,
    /// It is longer than a record may be.
    #[error("a record is too long")]
    RecordOverflow,
    /// It is of a type that has no place here.
    #[error("a record of an unexpected type")]
    Unexpected,
    /// What is in it is malformed.
    #[error("a malformed message")]
    Decode,
    /// A value that is not allowed, or more of something than is.
    #[error("an illegal message")]
    Illegal,
    /// The key has protected as many records as it may.
    #[error("the key is used up")]
    UsedUp,
    /// The TLS library refused.
    #[error("internal fault of the TLS library")]
    Internal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Tls13,
    /// With eight bytes of nonce in each record.
    Tls12Explicit,
    Tls12,
}

/// One direction's key and how far it is used.
pub struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
    /// Records that this key may still protect.
    left: u64,
    form: Form,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// The bytes around the content of records: before the first, behind the last, or between two.
#[derive(Debug, Clone, Copy, Default)]
pub struct Edge {
    bytes: [u8; MOST_BEHIND + MOST_BEFORE],
    length: usize,
}

impl Edge {
    /// Adds bytes, at most [`MOST_BEHIND`] and then [`MOST_BEFORE`].
    pub fn push(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        self.bytes[self.length..end].copy_from_slice(bytes);
        self.length = end;
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Keys {
    /// Takes over a direction whose next record has number `sequence`.
    ///
    /// # Errors
    /// [`Fault::Internal`] for a suite that this does not know.
    pub fn new(
        suite: SupportedCipherSuite,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Fault> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Fault::Internal),
        };
        let form = match suite.version().version {
            ProtocolVersion::TLSv1_3 => Form::Tls13,
            _ if algorithm == &CHACHA20_POLY1305 => Form::Tls12,
            _ => Form::Tls12Explicit,
        };
        let limit = match suite {
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| Fault::Internal)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().map_err(|_| Fault::Internal)?,
            sequence,
            left: limit.saturating_sub(sequence),
            form,
        })
    }

    /// Whether this is TLS 1.3.
    pub fn is_tls13(&self) -> bool {
        self.form == Form::Tls13
    }

    /// Records that may still be protected before the key has to be replaced.
    pub fn left(&self) -> u64 {
        self.left
    }

    #[cfg(test)]
    pub fn wear_out(&mut self, left: u64) {
        self.left = left;
    }

    /// Bytes before and behind the content of each record.
    pub fn overhead(&self) -> (usize, usize) {
        match self.form {
            Form::Tls13 => (HEADER, 1 + TAG),
            Form::Tls12Explicit => (HEADER + EXPLICIT, TAG),
            Form::Tls12 => (HEADER, TAG),
        }
    }

    //= rfc8446 §5.3 nonce
    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..]
            .iter_mut()
            .zip(self.sequence.to_be_bytes())
        {
            *byte ^= number;
        }
        nonce
    }

    /// What TLS 1.2 authenticates with a record.
    fn aad12(&self, kind: u8, length: usize) -> [u8; 13] {
        let mut aad = [0; 13];
        aad[..8].copy_from_slice(&self.sequence.to_be_bytes());
        aad[8..].copy_from_slice(&header(kind, length));
        aad
    }

    /// Counts a record.
    fn next(&mut self) -> Result<(), Fault> {
        self.left = self.left.saturating_sub(1);
        //= rfc8446 §5.3 no-wrap
        self.sequence = self.sequence.checked_add(1).ok_or(Fault::UsedUp)?;
        Ok(())
    }

    /// Makes a record of `bytes[at]` in place; returns what stands before and behind it. The byte after it is used meanwhile,
    /// and has its value back at the end.
    ///
    /// # Errors
    /// [`Fault::UsedUp`]: the key has to be replaced before. [`Fault::Internal`]: more than [`MOST_CONTENT`], or no byte after it.
    pub fn seal(
        &mut self,
        kind: u8,
        bytes: &mut [u8],
        at: Range<usize>,
    ) -> Result<(Edge, Edge), Fault> {
        //= rfc8446 §5.5 key-limit
        if self.left == 0 {
            return Err(Fault::UsedUp);
        }
        let length = at.len();
        //= rfc8446 §5.1 most-content
        if length > MOST_CONTENT || at.end >= bytes.len() {
            return Err(Fault::Internal);
        }
        let (mut before, mut behind) = (Edge::default(), Edge::default());
        let nonce = self.nonce();
        let tag = if self.form == Form::Tls13 {
            let header = header(content::DATA, length + 1 + TAG);
            before.push(&header);
            let kept = std::mem::replace(&mut bytes[at.end], kind);
            let tag = self.key.seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(header),
                &mut bytes[at.start..=at.end],
            );
            behind.push(&[std::mem::replace(&mut bytes[at.end], kept)]);
            tag
        } else {
            let explicit: &[u8] = match self.form {
                Form::Tls12Explicit => &nonce[NONCE_LEN - EXPLICIT..],
                _ => &[],
            };
            before.push(&header(kind, explicit.len() + length + TAG));
            before.push(explicit);
            self.key.seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(self.aad12(kind, length)),
                &mut bytes[at],
            )
        };
        behind.push(tag.map_err(|_| Fault::Internal)?.as_ref());
        self.next()?;
        Ok((before, behind))
    }

    /// Opens the record that `bytes[record..]` is. Its content goes to the front of `bytes`; returns type and length of it.
    ///
    /// # Errors
    /// [`Fault`]; what `bytes` holds then is unspecified.
    pub fn open(&mut self, bytes: &mut [u8], record: usize) -> Result<(u8, usize), Fault> {
        let nonce = self.nonce();
        let Some(&[kind, major, minor, high, low]) = bytes[record..].first_chunk::<HEADER>() else {
            return Err(Fault::Internal);
        };
        //= rfc8446 §5.2 only-data
        if self.is_tls13() && kind != content::DATA {
            return Err(Fault::Unexpected);
        }
        let (before, behind) = self.overhead();
        let sealed = record + before;
        // No room for a tag, or the explicit nonce before it.
        let length = bytes
            .len()
            .checked_sub(sealed + behind)
            .ok_or(Fault::BadRecordMac)?;
        let opened = match self.form {
            Form::Tls13 => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let aad = Aad::from([kind, major, minor, high, low]);
                self.key.open_within(nonce, aad, bytes, sealed..)
            }
            Form::Tls12Explicit => {
                let mut whole = [0; NONCE_LEN];
                whole[..NONCE_LEN - EXPLICIT].copy_from_slice(&self.iv[..NONCE_LEN - EXPLICIT]);
                whole[NONCE_LEN - EXPLICIT..].copy_from_slice(&bytes[record + HEADER..sealed]);
                let nonce = Nonce::assume_unique_for_key(whole);
                let aad = Aad::from(self.aad12(kind, length));
                self.key.open_within(nonce, aad, bytes, sealed..)
            }
            Form::Tls12 => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let aad = Aad::from(self.aad12(kind, length));
                self.key.open_within(nonce, aad, bytes, sealed..)
            }
        };
        //= rfc8446 §5.2 bad-record-mac
        let plain = opened.map_err(|_| Fault::BadRecordMac)?;
        let (kind, length) = if self.form == Form::Tls13 {
            //= rfc8446 §5.2 most-plaintext
            if plain.len() > MOST_CONTENT + 1 {
                return Err(Fault::RecordOverflow);
            }
            //= rfc8446 §5.4 padding
            let end = plain.iter().rposition(|&byte| byte != 0);
            let end = end.ok_or(Fault::Unexpected)?;
            (plain[end], end)
        } else {
            if plain.len() > MOST_CONTENT {
                return Err(Fault::RecordOverflow);
            }
            (kind, plain.len())
        };
        self.next()?;
        Ok((kind, length))
    }

    /// The length of the record that `bytes` begins with, header included; `None` = more bytes are needed to know.
    ///
    /// # Errors
    /// [`Fault::RecordOverflow`], [`Fault::Unexpected`].
    pub fn length(&self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        let Some(&[kind, major, _, high, low]) = bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        if !(20..=24).contains(&kind) || major != 3 {
            return Err(Fault::Unexpected);
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        //= rfc8446 §5.2 most-record
        let most = MOST_CONTENT + if self.is_tls13() { 256 } else { 2048 };
        if length > most {
            return Err(Fault::RecordOverflow);
        }
        Ok(Some(HEADER + length))
    }
}

/// A record's header with the version that both TLS 1.2 and 1.3 have there.
fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let [high, low] = (length as u16).to_be_bytes();
    [kind, 3, 3, high, low]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use rustls::crypto::cipher::{AeadKey, Iv};
    use rustls::crypto::ring::cipher_suite;

    use super::*;

    fn keys(tls13: bool, chacha: bool) -> Keys {
        let (key, iv) = (AeadKey::from([7; 32]), Iv::from([9; 12]));
        let (suite, secrets) = match (tls13, chacha) {
            (true, true) => (
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
                ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
            ),
            (true, false) => (
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                ConnectionTrafficSecrets::Aes256Gcm { key, iv },
            ),
            (false, true) => (
                cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
                ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
            ),
            (false, false) => (
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                ConnectionTrafficSecrets::Aes256Gcm { key, iv },
            ),
        };
        Keys::new(suite, (3, secrets)).unwrap()
    }

    fn sealed(keys: &mut Keys, kind: u8, plain: &[u8]) -> Vec<u8> {
        let mut bytes = [plain, &[99]].concat();
        let (before, behind) = keys.seal(kind, &mut bytes, 0..plain.len()).unwrap();
        assert_eq!(bytes[plain.len()], 99);
        [before.bytes(), &bytes[..plain.len()], behind.bytes()].concat()
    }

    proptest! {
        //= rfc8446 §5.3 nonce
        #[test]
        fn what_is_sealed_is_opened(
            tls13: bool,
            chacha: bool,
            plains in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..5),
            gap in 0usize..50,
        ) {
            let (mut tx, mut rx) = (keys(tls13, chacha), keys(tls13, chacha));
            for plain in plains {
                let record = sealed(&mut tx, content::DATA, &plain);
                prop_assert_eq!(rx.length(&record), Ok(Some(record.len())));
                let mut bytes = [&vec![0; gap][..], &record].concat();
                let (kind, length) = rx.open(&mut bytes, gap).unwrap();
                prop_assert_eq!((kind, &bytes[..length]), (content::DATA, &plain[..]));
            }
        }

        //= rfc8446 §5.2 bad-record-mac
        #[test]
        fn what_was_changed_is_not(
            tls13: bool,
            chacha: bool,
            plain in prop::collection::vec(any::<u8>(), 0..100),
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let mut record = sealed(&mut keys(tls13, chacha), content::DATA, &plain);
            // A version in TLS 1.2 is not what is authenticated, but the one that was agreed.
            let from = if tls13 { 0 } else { HEADER };
            let at = from + at.index(record.len() - from);
            record[at] ^= 1 << bit;
            prop_assert!(keys(tls13, chacha).open(&mut record, 0).is_err());
        }

        #[test]
        fn nonsense_is_refused(tls13: bool, chacha: bool, mut bytes: Vec<u8>, record: prop::sample::Index) {
            let mut keys = keys(tls13, chacha);
            let _ = keys.length(&bytes);
            if !bytes.is_empty() {
                let record = record.index(bytes.len());
                prop_assert!(keys.open(&mut bytes, record).is_err());
            }
        }
    }

    //= rfc8446 §5.1 most-content
    //= rfc8446 §5.2 most-plaintext
    #[test]
    fn sizes_have_ends() {
        for tls13 in [true, false] {
            let mut bytes = vec![1; MOST_CONTENT + 100];
            let mut tx = keys(tls13, false);
            assert_eq!(
                tx.seal(content::DATA, &mut bytes, 0..MOST_CONTENT + 1)
                    .err(),
                Some(Fault::Internal)
            );
            let record = sealed(&mut tx, content::DATA, &bytes[..MOST_CONTENT]);
            let mut rx = keys(tls13, false);
            assert_eq!(rx.length(&record), Ok(Some(record.len())));
            assert_eq!(
                rx.open(&mut record.clone(), 0),
                Ok((content::DATA, MOST_CONTENT))
            );
        }
    }

    //= rfc8446 §5.3 no-wrap
    #[test]
    fn numbers_do_not_wrap() {
        let mut keys = keys(true, false);
        keys.sequence = u64::MAX;
        assert_eq!(
            keys.seal(content::DATA, &mut [0; 9], 0..8).err(),
            Some(Fault::UsedUp)
        );
    }

    //= rfc8446 §5.5 key-limit
    #[test]
    fn a_used_up_key_seals_no_more() {
        let mut keys = keys(true, false);
        keys.wear_out(1);
        assert!(keys.seal(content::DATA, &mut [0; 9], 0..8).is_ok());
        assert_eq!(
            keys.seal(content::DATA, &mut [0; 9], 0..8).err(),
            Some(Fault::UsedUp)
        );
    }
}
