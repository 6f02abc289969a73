//! Capsules that are taken whole: HTTP datagrams, and the short ones that go with them. Values of other types are skipped as they
//! come; nothing is held here, the caller keeps an unfinished capsule and shows it again with more behind it.

use crate::capsule::{decode_header, types};
use crate::tunnel::Malformed;
use crate::varint;

/// What stands at the front of a data stream of datagrams, as their tunnel's machine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<P> {
    /// Nothing to do until more bytes arrive.
    Idle,
    /// Drop that many bytes from the front.
    Skip(usize),
    /// Keep what is at hand and come again once that many bytes are.
    More(usize),
    /// `data[start..start + length]` is a payload, perhaps empty; drop `start + length` bytes then.
    Payload {
        /// Whom it comes from or goes to, or what else its context says of it.
        peer: P,
        /// Where it begins.
        start: usize,
        /// Its bytes.
        length: usize,
    },
}

/// What stands at the front of the data stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// Nothing at hand.
    Idle,
    /// That many bytes (never 0, never more than at hand) are of no interest.
    Skip(usize),
    /// A capsule is begun and unfinished: keep what is at hand and come again with that many bytes, if they are to be had.
    More(usize),
    /// A capsule of a type that was asked for, with all of its value.
    Whole {
        /// Capsule type.
        kind: u64,
        /// Where its value begins; before that there are only bytes of the header.
        start: usize,
        /// Bytes of the value.
        length: usize,
    },
    /// A capsule of a type that was asked for whose value is longer than was asked for. Its header is at hand, and at least as much
    /// of the value as was asked to be shown.
    Long {
        /// Capsule type.
        kind: u64,
        /// Where its value begins.
        start: usize,
        /// Bytes of the value.
        length: u64,
    },
    /// A capsule of a type that was not asked for begins; its value will be skipped. Comes with a [`Front::Skip`] of its header.
    Unknown {
        /// Capsule type.
        kind: u64,
        /// Bytes to drop from the front.
        header: usize,
    },
}

/// Which types are taken, and how long their values may be.
pub trait Wanted {
    /// The longest value that is taken whole; `None`: the type is unknown.
    fn longest(&self, kind: u64) -> Option<usize>;

    /// How much of a value that is too long must be at hand to judge it.
    fn shown(&self) -> usize {
        0
    }
}

/// Reads a data stream. At a capsule's beginning it knows nothing of what came before.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    /// Bytes of a value that are still to be skipped.
    skipping: u64,
}

impl Reader {
    /// A reader at the start of a data stream.
    #[must_use]
    pub const fn new() -> Self {
        Self { skipping: 0 }
    }

    /// Looks at the front of `data`. The caller drops what [`Front::Skip`] and [`Front::Unknown`] say, and a whole capsule once it
    /// has seen to it.
    //= rfc9297 §3.2 capsule-format
    //= rfc9297 §3.2 never-accumulate
    pub fn look(&mut self, data: &[u8], wanted: &impl Wanted) -> Front {
        if data.is_empty() {
            return Front::Idle;
        }
        if self.skipping > 0 {
            let taken = usize::try_from(self.skipping).map_or(data.len(), |n| n.min(data.len()));
            self.skipping -= taken as u64;
            return Front::Skip(taken);
        }
        let Some((kind, length, start)) = decode_header(data) else {
            return Front::More(data.len() + 1);
        };
        let Some(longest) = wanted.longest(kind) else {
            //= rfc9297 §3.2 skip-unknown
            self.skipping = length;
            return Front::Unknown {
                kind,
                header: start,
            };
        };
        match usize::try_from(length) {
            Ok(length) if length <= longest => {
                if data.len() - start >= length {
                    Front::Whole {
                        kind,
                        start,
                        length,
                    }
                } else {
                    Front::More(start + length)
                }
            }
            _ if data.len() - start < wanted.shown() => Front::More(start + wanted.shown()),
            _ => Front::Long {
                kind,
                start,
                length,
            },
        }
    }

    /// Skips what [`Front::Long`] told of, its header too.
    pub const fn skip(&mut self, start: usize, length: u64) {
        // Lengths are varints: the sum has room.
        self.skipping = start as u64 + length;
    }

    /// Whether the data stream may end here, `held` bytes of it being unfinished at the caller's.
    #[must_use]
    pub const fn at_boundary(&self, held: usize) -> bool {
        self.skipping == 0 && held == 0
    }
}

/// Where a machine of datagrams is in the data stream that it receives: its fault, which stays, and what it left out.
#[derive(Debug, Clone, Default)]
pub struct Inbound {
    reader: Reader,
    failed: Option<Malformed>,
    unknown_capsules: u64,
    unknown_contexts: u64,
}

impl Inbound {
    /// At the start of a data stream.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            reader: Reader::new(),
            failed: None,
            unknown_capsules: 0,
            unknown_contexts: 0,
        }
    }

    /// Goes on unless there was a fault.
    ///
    /// # Errors
    /// The fault.
    pub const fn check(&self) -> Result<(), Malformed> {
        match self.failed {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// Remembers a fault, and gives it back.
    pub const fn fail(&mut self, fault: Malformed) -> Malformed {
        self.failed = Some(fault);
        fault
    }

    /// Looks at the front of `data` as [`Reader::look`] does, and counts the capsules of unknown types; reserved ones are not counted.
    ///
    /// # Errors
    /// The fault that was before.
    pub fn look(&mut self, data: &[u8], wanted: &impl Wanted) -> Result<Front, Malformed> {
        self.check()?;
        let front = self.reader.look(data, wanted);
        //= rfc9297 §5.4 skip-grease
        if let Front::Unknown { kind, .. } = front
            && !types::is_grease(kind)
        {
            self.unknown_capsules = self.unknown_capsules.saturating_add(1);
        }
        Ok(front)
    }

    /// As [`Reader::skip`].
    pub const fn skip(&mut self, start: usize, length: u64) {
        self.reader.skip(start, length);
    }

    /// Counts a datagram whose context means nothing.
    pub const fn unknown_context(&mut self) {
        self.unknown_contexts = self.unknown_contexts.saturating_add(1);
    }

    /// The data stream ended cleanly, with `held` bytes that more was wanted of.
    ///
    /// # Errors
    /// [`Malformed::TruncatedCapsule`], or the fault that was before.
    //= rfc9297 §3.3 truncated-capsule
    pub fn end(&mut self, held: usize) -> Result<(), Malformed> {
        self.check()?;
        if self.reader.at_boundary(held) {
            Ok(())
        } else {
            Err(self.fail(Malformed::TruncatedCapsule))
        }
    }

    /// Capsules skipped so far because their type means nothing, reserved ("grease") types not counted.
    #[must_use]
    pub const fn unknown_capsules(&self) -> u64 {
        self.unknown_capsules
    }

    /// Datagrams dropped so far because their context means nothing.
    #[must_use]
    pub const fn unknown_contexts(&self) -> u64 {
        self.unknown_contexts
    }
}

/// The longest value that [`varint::MAX`] allows for fits `u64` with any header before it.
const _: () = assert!(varint::MAX < u64::MAX / 2);

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;
    use crate::capsule::{MAX_HEADER, encode_header};
    use proptest::prelude::*;

    struct Short;

    impl Wanted for Short {
        fn longest(&self, kind: u64) -> Option<usize> {
            (kind < 2).then_some(10)
        }

        fn shown(&self) -> usize {
            2
        }
    }

    fn capsule(kind: u64, value: &[u8]) -> Vec<u8> {
        let mut header = [0; MAX_HEADER];
        let used = encode_header(kind, value.len() as u64, &mut header);
        [&header[..used], value].concat()
    }

    /// Whole capsules, and those that were too long (their first bytes), as a caller sees them that gets `chunks`.
    fn read<'c>(chunks: impl Iterator<Item = &'c [u8]>) -> (Vec<(u64, Vec<u8>)>, bool) {
        let (mut reader, mut held, mut seen) = (Reader::new(), Vec::new(), Vec::new());
        for chunk in chunks {
            held.extend_from_slice(chunk);
            loop {
                match reader.look(&held, &Short) {
                    Front::Idle => break,
                    Front::More(most) => {
                        assert!(most > held.len());
                        break;
                    }
                    Front::Skip(bytes) | Front::Unknown { header: bytes, .. } => {
                        assert!(bytes > 0);
                        held.drain(..bytes);
                    }
                    Front::Whole {
                        kind,
                        start,
                        length,
                    } => {
                        seen.push((kind, held[start..start + length].to_vec()));
                        held.drain(..start + length);
                    }
                    Front::Long {
                        kind,
                        start,
                        length,
                    } => {
                        seen.push((kind, held[start..start + 2].to_vec()));
                        reader.skip(start, length);
                    }
                }
            }
        }
        (seen, reader.at_boundary(held.len()))
    }

    proptest! {
        //= rfc9297 §3.2 capsule-format
        //= rfc9297 §3.2 skip-unknown
        //= rfc9297 §3.2 never-accumulate
        #[test]
        fn any_split_gives_the_same_capsules(
            given in prop::collection::vec((0u64..4, prop::collection::vec(any::<u8>(), 0..20)), 0..6),
            size in 1usize..9,
        ) {
            let stream: Vec<u8> = given.iter().flat_map(|(kind, value)| capsule(*kind, value)).collect();
            let expected: Vec<_> = given
                .into_iter()
                .filter(|(kind, _)| *kind < 2)
                .map(|(kind, mut value)| {
                    if value.len() > 10 {
                        value.truncate(2);
                    }
                    (kind, value)
                })
                .collect();
            prop_assert_eq!(read(stream.chunks(size)), (expected.clone(), true));
            prop_assert_eq!(read(core::iter::once(&stream[..])), (expected, true));
        }
    }

    #[test]
    fn an_unfinished_capsule_is_no_boundary() {
        let stream = capsule(0, &[1, 2, 3]);
        for cut in 1..stream.len() {
            assert_eq!(read(core::iter::once(&stream[..cut])), (vec![], false));
        }
        let unknown = capsule(9, &[0; 30]);
        assert!(!read(core::iter::once(&unknown[..9])).1);
    }

    #[test]
    fn the_longest_length_is_skipped_too() {
        let mut reader = Reader::new();
        let mut header = [0; MAX_HEADER];
        let used = encode_header(0, varint::MAX, &mut header);
        let mut data = header[..used].to_vec();
        assert_eq!(reader.look(&data, &Short), Front::More(used + 2));
        data.extend([7, 7]);
        let length = varint::MAX;
        let start = used;
        assert_eq!(
            reader.look(&data, &Short),
            Front::Long {
                kind: 0,
                start,
                length
            }
        );
        reader.skip(start, length);
        assert_eq!(reader.look(&data, &Short), Front::Skip(used + 2));
        assert!(!reader.at_boundary(0));
    }
}
