//! Bytes that both ends can make and check without telling each other.

use sha2::{Digest, Sha256};

/// An endless stream of pseudo-random bytes, the same in each process.
#[derive(Debug)]
pub(super) struct Pattern(u64);

impl Pattern {
    /// The start of the stream.
    pub(super) fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// The next bytes. Pieces must be multiples of eight, but for the last.
    pub(super) fn fill(&mut self, out: &mut [u8]) {
        for piece in out.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            piece.copy_from_slice(&self.0.to_le_bytes()[..piece.len()]);
        }
    }

    /// SHA-256 of the first `length` bytes of the stream.
    pub(super) fn digest(length: u64) -> [u8; 32] {
        let mut pattern = Self::new();
        let mut hash = Sha256::new();
        let mut block = vec![0; 1 << 20];
        let mut rest = length;
        while rest > 0 {
            let size = usize::try_from(rest).unwrap_or(usize::MAX).min(block.len());
            pattern.fill(&mut block[..size]);
            hash.update(&block[..size]);
            rest -= size as u64;
        }
        hash.finalize().into()
    }
}
