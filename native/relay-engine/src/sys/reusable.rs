//! Memory for receive calls, lent out in pieces and used again once all pieces are gone.

use bytes::BytesMut;

/// Bytes of one: the most that a call returns for one buffer, whether the kernel joins datagrams or not.
pub const SIZE: usize = 1 << 16;

/// [`SIZE`] bytes.
#[derive(Debug)]
pub struct Reusable(BytesMut);

impl Default for Reusable {
    fn default() -> Self {
        Self(BytesMut::zeroed(SIZE))
    }
}

impl Reusable {
    /// All of it, unless a piece is still in use.
    pub fn whole(&mut self) -> Option<&mut [u8]> {
        if self.0.len() < SIZE {
            self.0.clear();
            if !self.0.try_reclaim(SIZE) {
                return None;
            }
            // SAFETY: reclaiming never allocates, so this is the memory that `default` zeroed, from its first byte on, since a
            // reclaim that needs all of it begins there; whoever held a piece could only write initialised bytes to it.
            unsafe { self.0.set_len(SIZE) };
        }
        Some(&mut self.0)
    }

    /// Lends the first `length` bytes; [`whole`](Self::whole) must have come before.
    pub fn lend(&mut self, length: usize) -> BytesMut {
        self.0.split_to(length.min(self.0.len()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn is_whole_again_once_every_piece_is_gone() {
        let mut memory = Reusable::default();
        let start = memory.whole().unwrap().as_ptr();
        memory.whole().unwrap()[..3].copy_from_slice(b"abc");
        let mut pieces = memory.lend(3);
        let first = pieces.split_to(1).freeze();
        assert!(memory.whole().is_none());
        drop(pieces);
        assert!(memory.whole().is_none());
        assert_eq!(&first[..], b"a");
        drop(first);
        for _ in 0..3 {
            let whole = memory.whole().unwrap();
            assert_eq!((whole.as_ptr(), whole.len()), (start, SIZE));
            drop(memory.lend(SIZE));
        }
    }
}
