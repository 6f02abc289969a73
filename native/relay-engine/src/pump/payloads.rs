//! UDP payloads out of a data stream of capsules, as relay and client take them.

use bytes::{Buf as _, Bytes, BytesMut};
use capsule_core::tunnel::Malformed;
use capsule_core::whole::Step;

/// Sorts the payloads out of a chunk of the data stream: `look` at the front of what is at hand, and hand them to `each`. `held` keeps
/// a capsule that is not complete. After `most` looks or a few more the rest is left in `chunk`: it may hold a hundred thousand capsules.
///
/// # Errors
/// [`Malformed`], after the payloads that came before.
pub fn take<P>(
    mut look: impl FnMut(&[u8]) -> Result<Step<P>, Malformed>,
    held: &mut BytesMut,
    chunk: &mut Bytes,
    most: usize,
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
    for _ in 0..most {
        match look(chunk)? {
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
                held.extend_from_slice(&std::mem::take(chunk));
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::RefCell;

    use capsule_core::protocols::udp::ConnectUdp;

    use super::*;

    #[test]
    fn a_chunk_of_many_capsules_is_looked_at_in_parts() {
        let stream = [0, 2, 0, 7].repeat(1000);
        for size in [1, 3, 4, 4000] {
            let machine = RefCell::new(ConnectUdp::new());
            let look = |data: &[u8]| machine.borrow_mut().inbound(data);
            let (mut held, mut payloads) = (BytesMut::new(), Vec::new());
            for part in stream.chunks(size) {
                let mut chunk = Bytes::copy_from_slice(part);
                loop {
                    let before = payloads.len();
                    take(look, &mut held, &mut chunk, 10, |(), payload| {
                        payloads.push(payload);
                    })
                    .unwrap();
                    assert!(payloads.len() - before <= 11);
                    if chunk.is_empty() {
                        break;
                    }
                }
            }
            assert_eq!(payloads, vec![&[7][..]; 1000], "{size}");
        }
    }
}
