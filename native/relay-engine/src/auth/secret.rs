//! Passwords and tokens as they are stored.

use argon2::password_hash::{Output, PasswordHash, PasswordHasher as _, Salt, SaltString};
use argon2::{ARGON2ID_IDENT, Algorithm, Argon2, Block, Params, Version};
use ring::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha256};

/// Memory of one verification, in KiB.
const MEMORY: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
const SALT_LENGTH: usize = 16;

/// Memory that a stored hash may ask for, in KiB: 1 GiB.
const MAX_MEMORY: u32 = 1 << 20;

/// Allocations of this size are never pooled by glibc (DEFAULT_MMAP_THRESHOLD_MAX): they go back to the system when
/// freed, whichever thread frees them. Only what is used of them is ever resident.
const RETURNED_AT_ONCE: usize = 33 << 20;

/// A password could not be hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The system gave no random numbers.
    #[error("the system gave no random numbers")]
    Random,
    /// The password is longer than 4 GiB, or there is no memory.
    #[error("the password could not be hashed")]
    Argon2,
}

/// A PHC string `$argon2id$v=19$m=19456,t=2,p=1$…` with a fresh salt.
///
/// # Errors
/// No random numbers, no memory.
pub fn hash_password(password: &str) -> Result<String, HashError> {
    let mut salt = [0; SALT_LENGTH];
    SystemRandom::new()
        .fill(&mut salt)
        .map_err(|_| HashError::Random)?;
    let salt = SaltString::encode_b64(&salt).map_err(|_| HashError::Argon2)?;
    let params = Params::new(MEMORY, PASSES, LANES, None).map_err(|_| HashError::Argon2)?;
    let hash = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password(password.as_bytes(), &salt)
        .map_err(|_| HashError::Argon2)?;
    Ok(hash.to_string())
}

/// A PHC string taken apart.
struct Stored {
    argon2: Argon2<'static>,
    salt: Vec<u8>,
    output: Output,
}

fn parse(phc: &str) -> Option<Stored> {
    let hash = PasswordHash::new(phc).ok()?;
    if hash.algorithm != ARGON2ID_IDENT {
        return None;
    }
    let version = match hash.version {
        Some(version) => Version::try_from(version).ok()?,
        None => Version::V0x10,
    };
    let params = Params::try_from(&hash).ok()?;
    let mut buffer = [0; Salt::MAX_LENGTH];
    let salt = hash.salt?.decode_b64(&mut buffer).ok()?.to_vec();
    if salt.len() < argon2::MIN_SALT_LEN || params.m_cost() > MAX_MEMORY {
        return None;
    }
    Some(Stored {
        argon2: Argon2::new(Algorithm::Argon2id, version, params),
        salt,
        output: hash.hash?,
    })
}

/// Whether a password fits a PHC string; `None` if there is no memory to find out. Takes tens of milliseconds: not for
/// a worker's thread.
pub(crate) fn fits(password: &[u8], phc: &str) -> Option<bool> {
    let Some(stored) = parse(phc) else {
        return Some(false);
    };
    let blocks = stored.argon2.params().block_count();
    let mut memory: Vec<Block> = Vec::new();
    memory
        .try_reserve_exact(blocks.max(RETURNED_AT_ONCE / Block::SIZE))
        .ok()?;
    memory.resize(blocks, Block::default());
    let computed = Output::init_with(stored.output.len(), |out| {
        let result =
            stored
                .argon2
                .hash_password_into_with_memory(password, &stored.salt, out, &mut memory);
        Ok(result?)
    });
    // Outputs compare in constant time.
    Some(computed.is_ok_and(|output| output == stored.output))
}

/// Whether a string is an argon2id hash, in PHC format, that passwords can be verified with.
#[must_use]
pub fn is_argon2id(phc: &str) -> bool {
    parse(phc).is_some()
}

/// SHA-256 of a token.
pub(crate) fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// SHA-256 of a token in lower-case hex. Tokens are random, so no salt and no slowness is needed.
#[must_use]
pub fn hash_token(token: &str) -> String {
    digest(token.as_bytes())
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|nibble| char::from_digit(u32::from(nibble), 16))
        .collect()
}

/// The digest that [`hash_token`] wrote.
pub(crate) fn parse_digest(hex: &str) -> Option<[u8; 32]> {
    let hex = hex.as_bytes();
    if hex.len() != 64 {
        return None;
    }
    let nibble = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn passwords_round_trip() {
        let phc = hash_password("correct horse").unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(is_argon2id(&phc));
        assert_eq!(fits(b"correct horse", &phc), Some(true));
        assert_eq!(fits(b"battery staple", &phc), Some(false));
        assert_ne!(phc, hash_password("correct horse").unwrap());
    }

    #[test]
    fn a_hash_of_another_implementation_fits() {
        // By the reference implementation (argon2-cffi).
        let phc = "$argon2id$v=19$m=19456,t=2,p=1$gzujHSPRxZunmdBgrnZ2Bg$uRFQvfEqmotrOzYInHJLwDYf159dbGTBP+BS0xinmYY";
        assert!(is_argon2id(phc));
        assert_eq!(fits(b"secret", phc), Some(true));
    }

    #[test]
    fn other_strings_are_no_argon2id() {
        for text in [
            "",
            "plain",
            "$2b$12$abc",
            "$argon2id$",
            "$argon2id$v=19$m=4294967295,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g",
            "$argon2i$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g",
            "$argon2id$v=19$m=0,t=0,p=0$c2FsdHNhbHQ$aGFzaGhhc2g",
        ] {
            assert!(!is_argon2id(text), "{text}");
            assert_eq!(fits(b"", text), Some(false));
        }
    }

    #[test]
    fn tokens_round_trip() {
        let hex = hash_token("abc");
        assert_eq!(
            hex,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(parse_digest(&hex), Some(digest(b"abc")));
        assert_eq!(parse_digest(&hex.to_uppercase()), Some(digest(b"abc")));
        assert_eq!(parse_digest(&hex[1..]), None);
        assert_eq!(parse_digest(&"g".repeat(64)), None);
    }
}
