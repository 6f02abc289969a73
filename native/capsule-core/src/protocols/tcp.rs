//! connect-tcp: DATA and FINAL_DATA capsules, whose values joined are the byte stream; FINAL_DATA is the FIN.

use super::Profile;
use crate::capsule::{self, Decoder, Event, MAX_HEADER, types};
use crate::tunnel::{End, Finish, Malformed, Step, StreamTunnel};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inbound {
    /// DATA may come.
    Open,
    /// Inside FINAL_DATA.
    Final,
    /// FINAL_DATA was taken and reported.
    Finished,
    Failed(Malformed),
}

/// One end of a connect-tcp tunnel; client and proxy behave alike.
#[derive(Debug, Clone)]
pub struct ConnectTcp {
    data: u64,
    final_data: u64,
    decoder: Decoder,
    inbound: Inbound,
    /// The value at hand belongs to a capsule that is skipped.
    skipping: bool,
    outbound_finished: bool,
    unknown: u64,
}

impl ConnectTcp {
    /// A fresh tunnel with the capsule types of a profile.
    #[must_use]
    pub const fn new(data: u64, final_data: u64) -> Self {
        Self {
            data,
            final_data,
            decoder: Decoder::new(),
            inbound: Inbound::Open,
            skipping: false,
            outbound_finished: false,
            unknown: 0,
        }
    }

    /// A fresh tunnel of a profile.
    #[must_use]
    pub const fn with_profile(profile: &Profile) -> Self {
        Self::new(profile.data, profile.final_data)
    }

    /// Whether FINAL_DATA was received and reported by [`Step::Finish`].
    #[must_use]
    pub const fn inbound_finished(&self) -> bool {
        matches!(self.inbound, Inbound::Finished)
    }

    /// Whether FINAL_DATA was written.
    #[must_use]
    pub const fn outbound_finished(&self) -> bool {
        self.outbound_finished
    }

    fn begin(&mut self, kind: u64) -> Result<(), Malformed> {
        let known = kind == self.data || kind == self.final_data;
        self.skipping = !known;
        if !known {
            //= rfc9297 §2 datagram-without-meaning
            //= rfc9297 §3.5 datagram-capsule-like-frame
            //= rfc9297 §3.5 oversize-datagram
            if kind == types::DATAGRAM {
                return Err(self.fail(Malformed::UnexpectedDatagram));
            }
            //= rfc9297 §3.2 skip-unknown
            //= rfc9297 §5.4 skip-grease
            if !types::is_grease(kind) {
                self.unknown = self.unknown.saturating_add(1);
            }
        } else if self.inbound != Inbound::Open {
            //= connect-tcp §3 data-after-final
            return Err(self.fail(Malformed::DataAfterFinal));
        } else if kind == self.final_data {
            self.inbound = Inbound::Final;
        }
        Ok(())
    }

    const fn fail(&mut self, fault: Malformed) -> Malformed {
        self.inbound = Inbound::Failed(fault);
        fault
    }
}

impl StreamTunnel for ConnectTcp {
    #[inline]
    fn inbound(&mut self, data: &[u8]) -> Result<Step, Malformed> {
        match self.inbound {
            Inbound::Failed(fault) => return Err(fault),
            // At a boundary in this state the capsule's header and value were taken to the end.
            Inbound::Final if self.decoder.at_boundary() => {
                //= connect-tcp §3.4 final-data-sends-fin
                self.inbound = Inbound::Finished;
                return Ok(Step::Finish);
            }
            _ => {}
        }
        Ok(match self.decoder.decode(data) {
            Event::Idle => Step::Idle,
            Event::Partial { consumed } => Step::Skip(consumed),
            Event::Header { kind, consumed, .. } => {
                self.begin(kind)?;
                Step::Skip(consumed)
            }
            //= rfc9297 §3.2 skip-unknown
            Event::Value { remaining } if self.skipping => {
                let taken = usize::try_from(remaining).map_or(data.len(), |n| n.min(data.len()));
                self.decoder.advance(taken as u64);
                Step::Skip(taken)
            }
            //= connect-tcp §3 payload-is-stream
            //= connect-tcp §3 forward-partial
            //= rfc9297 §3.2 never-accumulate
            Event::Value { remaining } => Step::Payload(remaining),
        })
    }

    #[inline]
    fn advance(&mut self, taken: u64) {
        debug_assert!(taken == 0 || !self.skipping);
        self.decoder.advance(taken);
    }

    #[inline]
    fn payload_pending(&self) -> u64 {
        if self.skipping || matches!(self.inbound, Inbound::Failed(_)) {
            0
        } else {
            self.decoder.remaining()
        }
    }

    fn inbound_end(&mut self) -> End {
        if let Inbound::Failed(fault) = self.inbound {
            return End::Malformed(fault);
        }
        if !self.decoder.at_boundary() {
            //= rfc9297 §3.3 truncated-capsule
            return End::Malformed(self.fail(Malformed::TruncatedCapsule));
        }
        match self.inbound {
            //= connect-tcp §3.4 end-without-final-sends-rst
            Inbound::Open => End::Abort,
            Inbound::Final => {
                self.inbound = Inbound::Finished;
                End::Finish
            }
            _ => End::Complete,
        }
    }

    #[inline]
    fn outbound_header(&mut self, payload: usize, out: &mut [u8; MAX_HEADER]) -> usize {
        debug_assert!(!self.outbound_finished);
        capsule::encode_header(self.data, payload as u64, out)
    }

    fn outbound_finish(&mut self, out: &mut [u8; MAX_HEADER]) -> Finish {
        //= connect-tcp §3.4 fin-sends-final-data
        //= connect-tcp §3 no-data-after-own-final
        if core::mem::replace(&mut self.outbound_finished, true) {
            return Finish::Bytes(0);
        }
        Finish::Bytes(capsule::encode_header(self.final_data, 0, out))
    }

    fn unknown_capsules(&self) -> u64 {
        self.unknown
    }
}

#[cfg(test)]
mod tests;
