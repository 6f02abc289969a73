//! UDP payloads out of a data stream of capsules, as relay and client take them.

use bytes::{Buf as _, Bytes, BytesMut};
use capsule_core::protocols::{udp, udp_bind};
use capsule_core::tunnel::Malformed;

/// What stands at the front of a data stream: [`udp::Step`] or [`udp_bind::Step`], whichever machine looked.
#[derive(Debug, Clone, Copy)]
pub enum Step<P> {
    /// Nothing to do until more bytes arrive.
    Idle,
    /// Drop that many bytes.
    Skip(usize),
    /// Keep what is at hand until there are that many bytes.
    More(usize),
    /// A payload of `length` bytes behind `start` others.
    Payload {
        /// Whom it comes from or goes to.
        peer: P,
        /// Where it begins.
        start: usize,
        /// Its bytes.
        length: usize,
    },
}

impl From<udp::Step> for Step<()> {
    fn from(step: udp::Step) -> Self {
        match step {
            udp::Step::Idle => Self::Idle,
            udp::Step::Skip(bytes) => Self::Skip(bytes),
            udp::Step::More(bytes) => Self::More(bytes),
            udp::Step::Payload { start, length } => Self::Payload {
                peer: (),
                start,
                length,
            },
        }
    }
}

impl From<udp_bind::Step> for Step<std::net::SocketAddr> {
    fn from(step: udp_bind::Step) -> Self {
        match step {
            udp_bind::Step::Idle => Self::Idle,
            udp_bind::Step::Skip(bytes) => Self::Skip(bytes),
            udp_bind::Step::More(bytes) => Self::More(bytes),
            udp_bind::Step::Payload {
                peer,
                start,
                length,
            } => Self::Payload {
                peer,
                start,
                length,
            },
        }
    }
}

/// Sorts the payloads out of a chunk of the data stream: `look` at the front of what is at hand, and hand them to `each`. `held` keeps
/// a capsule that is not complete.
///
/// # Errors
/// [`Malformed`], after the payloads that came before.
pub fn take<P>(
    mut look: impl FnMut(&[u8]) -> Result<Step<P>, Malformed>,
    held: &mut BytesMut,
    mut chunk: Bytes,
    mut each: impl FnMut(P, Bytes),
) -> Result<(), Malformed> {
    // What is missing of the capsule that is held, and no more, so that the rest need not be copied.
    while !held.is_empty() {
        match look(held)? {
            Step::More(_) | Step::Idle if chunk.is_empty() => return Ok(()),
            Step::More(bytes) => {
                let missing = chunk.len().min(bytes - held.len());
                held.extend_from_slice(&chunk.split_to(missing));
            }
            Step::Skip(bytes) => held.advance(bytes),
            Step::Payload {
                peer,
                start,
                length,
            } => each(peer, held.split().freeze().slice(start..start + length)),
            Step::Idle => {}
        }
    }
    loop {
        match look(&chunk)? {
            Step::Idle => return Ok(()),
            Step::Skip(bytes) => chunk.advance(bytes),
            Step::Payload {
                peer,
                start,
                length,
            } => {
                each(peer, chunk.slice(start..start + length));
                chunk.advance(start + length);
            }
            Step::More(bytes) => {
                held.reserve(bytes);
                held.extend_from_slice(&chunk);
                return Ok(());
            }
        }
    }
}
