//! UDP payloads out of a data stream of capsules, as relay and client take them.

use bytes::{Buf as _, Bytes, BytesMut};
use capsule_core::tunnel::Malformed;
use capsule_core::whole::Step;

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
