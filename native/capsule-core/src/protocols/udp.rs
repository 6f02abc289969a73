//! connect-udp (RFC 9298): UDP payloads in HTTP datagrams, each behind a context ID. Context 0 is the payload as it is; nothing here
//! registers another.

use crate::capsule::{self, MAX_HEADER, types};
use crate::tunnel::Malformed;
use crate::varint;
use crate::whole::{self, Front, Inbound, Wanted};

/// The longest UDP payload (RFC 9298 §5), in bytes.
pub const MAX_PAYLOAD: usize = 65_527;
/// What goes before a payload in a capsule, at most: the capsule's header and the context ID.
pub const MAX_OVERHEAD: usize = MAX_HEADER + 1;
/// What goes before a payload in an HTTP datagram: context ID 0.
//= rfc9298 §5 context-0-payload
pub const CONTEXT: [u8; 1] = [0];
/// The longest HTTP datagram that can carry a payload of context 0: a context ID may be written longer than it needs to be.
const MAX_DATAGRAM: usize = varint::MAX_LEN + MAX_PAYLOAD;

/// What stands at the front of the received data stream.
pub type Step = whole::Step<()>;

/// One end of a connect-udp tunnel; client and proxy behave alike.
#[derive(Debug, Clone, Default)]
pub struct ConnectUdp {
    stream: Inbound,
}

struct Datagrams;

impl Wanted for Datagrams {
    fn longest(&self, kind: u64) -> Option<usize> {
        (kind == types::DATAGRAM).then_some(MAX_DATAGRAM)
    }

    fn shown(&self) -> usize {
        varint::MAX_LEN
    }
}

impl ConnectUdp {
    /// A fresh tunnel.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            stream: Inbound::new(),
        }
    }

    /// Looks at the front of `data`, the received bytes of the data stream not yet dropped.
    ///
    /// # Errors
    /// [`Malformed`], and the same again on every later call.
    pub fn inbound(&mut self, data: &[u8]) -> Result<Step, Malformed> {
        Ok(match self.stream.look(data, &Datagrams)? {
            Front::Idle => Step::Idle,
            Front::Skip(bytes) => Step::Skip(bytes),
            Front::More(bytes) => {
                // What is known to be too long is not waited for.
                if let Some((_, length, start)) = capsule::decode_header(data)
                    && let Err(Malformed::OversizePayload) = payload_start(&data[start..], length)
                {
                    return Err(self.stream.fail(Malformed::OversizePayload));
                }
                Step::More(bytes)
            }
            Front::Unknown { header, .. } => Step::Skip(header),
            Front::Whole { start, length, .. } => {
                match self.datagram(&data[start..start + length])? {
                    Some(context) => Step::Payload {
                        peer: (),
                        start: start + context,
                        length: length - context,
                    },
                    None => Step::Skip(start + length),
                }
            }
            Front::Long { start, length, .. } => {
                // Longer than any payload of context 0; of the others nothing is known.
                self.datagram_of(&data[start..], length)?;
                self.stream.skip(start, length);
                return self.inbound(data);
            }
        })
    }

    /// Looks at an HTTP datagram that came by itself: where its UDP payload begins, or `None` if it is none of ours.
    ///
    /// # Errors
    /// [`Malformed`], and the same again on every later call.
    pub fn datagram(&mut self, datagram: &[u8]) -> Result<Option<usize>, Malformed> {
        self.stream.check()?;
        self.datagram_of(datagram, datagram.len() as u64)
    }

    /// A datagram of `length` bytes that begins with `front`.
    fn datagram_of(&mut self, front: &[u8], length: u64) -> Result<Option<usize>, Malformed> {
        let start = payload_start(front, length).map_err(|fault| self.stream.fail(fault))?;
        if start.is_none() {
            self.stream.unknown_context();
        }
        Ok(start)
    }

    /// The received data stream ended cleanly, with `held` bytes that [`inbound`](Self::inbound) wanted more of.
    ///
    /// # Errors
    /// [`Malformed::TruncatedCapsule`].
    pub fn inbound_end(&mut self, held: usize) -> Result<(), Malformed> {
        self.stream.end(held)
    }

    /// Capsules skipped so far because their type means nothing here, reserved ("grease") types not counted.
    #[must_use]
    pub const fn unknown_capsules(&self) -> u64 {
        self.stream.unknown_capsules()
    }

    /// Datagrams dropped so far because nobody registered their context.
    #[must_use]
    pub const fn unknown_contexts(&self) -> u64 {
        self.stream.unknown_contexts()
    }
}

/// Where the payload begins in a datagram of `length` bytes that begins with `front`; `None`: its context is none of ours.
fn payload_start(front: &[u8], length: u64) -> Result<Option<usize>, Malformed> {
    match varint::decode(front) {
        //= rfc9298 §5 context-0-limit
        Some((0, size)) if length - size as u64 > MAX_PAYLOAD as u64 => {
            Err(Malformed::OversizePayload)
        }
        Some((0, size)) => Ok(Some(size)),
        //= rfc9298 §4 unknown-context
        Some(_) => Ok(None),
        //= rfc9297 §3.3 malformed-capsule
        None => Err(Malformed::NoContext),
    }
}

/// Writes what goes before a payload of `length` bytes in a capsule to the front of `out` and returns its size.
pub fn capsule_header(length: usize, out: &mut [u8; MAX_OVERHEAD]) -> usize {
    let mut header = [0; MAX_HEADER];
    let datagram = (CONTEXT.len() + length) as u64;
    let used = capsule::encode_header(types::DATAGRAM, datagram, &mut header);
    out[..used].copy_from_slice(&header[..used]);
    out[used] = CONTEXT[0];
    used + CONTEXT.len()
}

#[cfg(test)]
mod tests;
