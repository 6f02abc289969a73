//! connect-udp with the marks of IP packets (draft-ietf-masque-connect-udp-ecn-dscp): a datagram's context says which DSCP and ECN bits
//! the packet of its payload had or is to have.

mod contexts;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::udp::MAX_PAYLOAD;
use super::udp_bind::Role;
use crate::capsule::{self, types};
use crate::ecn_dscp::{self, Assignment, CapsuleTypes, MAX_VALUE, Marks};
use crate::tunnel::Malformed;
use crate::varint;
use crate::whole::{self, Front, Inbound, Wanted};

pub use contexts::Registered;

/// The longest HTTP datagram that can carry a payload.
const MAX_DATAGRAM: usize = varint::MAX_LEN + MAX_PAYLOAD;

/// What stands at the front of the received data stream.
pub type Step = whole::Step<Marks>;

/// One end of a tunnel with marks.
#[derive(Debug, Clone)]
pub struct Marked {
    stream: Inbound,
    capsules: Option<CapsuleTypes>,
    theirs: Registered,
    ours: Registered,
    /// DSCPs whose contexts the other end has not acknowledged.
    unsure: BTreeSet<u8>,
    /// The next ID of ours.
    next: u64,
    /// Capsules to be sent, in order.
    pending: Vec<u8>,
}

struct Capsules(Option<CapsuleTypes>);

impl Wanted for Capsules {
    fn longest(&self, kind: u64) -> Option<usize> {
        match self.0 {
            _ if kind == types::DATAGRAM => Some(MAX_DATAGRAM),
            Some(known) if kind == known.assign || kind == known.ack => Some(MAX_VALUE),
            _ => None,
        }
    }

    fn shown(&self) -> usize {
        varint::MAX_LEN
    }
}

impl Marked {
    /// The proxy's end, when a request came with the field; `client`: what it assigns. Registers contexts for DSCP 0 and those that the
    /// client names, which are what [`ours`](Self::ours) tells. `capsules`: without them there will be no others.
    #[must_use]
    pub fn proxy(client: &[Assignment], capsules: Option<CapsuleTypes>) -> Self {
        let mut tunnel = Self::new(Role::Proxy, capsules);
        tunnel.take(client);
        for assignment in client {
            tunnel.assign(assignment.dscp);
        }
        tunnel
    }

    /// The client's end, with contexts for DSCP 0 and `dscps`.
    #[must_use]
    pub fn client(dscps: &[u8], capsules: Option<CapsuleTypes>) -> Self {
        let mut tunnel = Self::new(Role::Client, capsules);
        for &dscp in dscps {
            tunnel.assign(dscp & ecn_dscp::MAX_DSCP);
        }
        tunnel
    }

    fn new(role: Role, capsules: Option<CapsuleTypes>) -> Self {
        let (other, next) = match role {
            Role::Client => (Role::Proxy, 2),
            Role::Proxy => (Role::Client, 1),
        };
        let mut tunnel = Self {
            stream: Inbound::new(),
            capsules,
            theirs: Registered::new(other),
            ours: Registered::new(role),
            unsure: BTreeSet::new(),
            next,
            pending: Vec::new(),
        };
        tunnel.assign(0);
        tunnel
    }

    /// Takes what the other end's field assigns, as [`from_fields`](crate::ecn_dscp_context_id::from_fields) read it.
    pub fn take(&mut self, theirs: &[Assignment]) {
        for assignment in theirs {
            // A field with a fault was never read.
            let _ = self.theirs.register(assignment);
        }
    }

    /// What this end has assigned: for the field, as long as there is nothing pending.
    #[must_use]
    pub fn ours(&self) -> Vec<Assignment> {
        self.ours.all()
    }

    /// Assigns contexts to a DSCP that has none of ours.
    //= connect-udp-ecn-dscp §2 all-ecn-values
    fn assign(&mut self, dscp: u8) -> Option<Assignment> {
        if self.ours.of(dscp).is_some() {
            return None;
        }
        let first = self.next;
        //= connect-udp-ecn-dscp §2 context-0
        let contexts = if dscp == 0 {
            [0, first, first + 2, first + 4]
        } else {
            [first, first + 2, first + 4, first + 6]
        };
        self.next = contexts[3] + 2;
        let assignment = Assignment { dscp, contexts };
        self.ours.register(&assignment).ok()?;
        Some(assignment)
    }

    /// Looks at the front of `data`, the received bytes of the data stream not yet dropped.
    ///
    /// # Errors
    /// [`Malformed`], and the same again on every later call.
    pub fn inbound(&mut self, data: &[u8]) -> Result<Step, Malformed> {
        Ok(match self.stream.look(data, &Capsules(self.capsules))? {
            Front::Idle => Step::Idle,
            Front::Skip(bytes) => Step::Skip(bytes),
            Front::More(bytes) => {
                // What is known to be too long is not waited for.
                if let Some((types::DATAGRAM, length, start)) = capsule::decode_header(data)
                    && let Some((context, size)) = varint::decode(&data[start..])
                {
                    self.judge(context, length - (size as u64).min(length))?;
                }
                Step::More(bytes)
            }
            Front::Unknown { header, .. } => Step::Skip(header),
            Front::Whole {
                kind: types::DATAGRAM,
                start,
                length,
            } => match self.datagram(&data[start..start + length])? {
                Some((marks, context)) => Step::Payload {
                    peer: marks,
                    start: start + context,
                    length: length - context,
                },
                None => Step::Skip(start + length),
            },
            Front::Whole {
                kind,
                start,
                length,
            } => {
                self.registration(kind, &data[start..start + length])
                    .map_err(|fault| self.stream.fail(fault))?;
                Step::Skip(start + length)
            }
            Front::Long {
                kind: types::DATAGRAM,
                start,
                length,
            } => {
                //= rfc9297 §3.3 malformed-capsule
                let (context, size) = varint::decode(&data[start..])
                    .ok_or_else(|| self.stream.fail(Malformed::NoContext))?;
                if self.judge(context, length - size as u64)?.is_none() {
                    self.stream.unknown_context();
                }
                self.stream.skip(start, length);
                return self.inbound(data);
            }
            //= connect-udp-ecn-dscp §3.1.2 bound-assignments
            Front::Long { .. } => return Err(self.stream.fail(Malformed::EcnDscp)),
        })
    }

    /// Looks at an HTTP datagram that came by itself: its packet's marks, and where its payload begins; `None`: nobody registered its
    /// context, and it is to be dropped.
    ///
    /// # Errors
    /// [`Malformed`], and the same again on every later call.
    pub fn datagram(&mut self, datagram: &[u8]) -> Result<Option<(Marks, usize)>, Malformed> {
        self.stream.check()?;
        //= rfc9297 §3.3 malformed-capsule
        let (context, size) =
            varint::decode(datagram).ok_or_else(|| self.stream.fail(Malformed::NoContext))?;
        let marks = self.judge(context, (datagram.len() - size) as u64)?;
        if marks.is_none() {
            self.stream.unknown_context();
        }
        Ok(marks.map(|marks| (marks, size)))
    }

    /// What a context stands for, with a payload of `length` bytes; `None`: nothing.
    //= connect-udp-ecn-dscp §3.1.1 direction
    //= connect-udp-ecn-dscp §4.1 unknown-context
    fn judge(&mut self, context: u64, length: u64) -> Result<Option<Marks>, Malformed> {
        let marks = match context {
            0 => Some(Marks::NONE),
            id => self.theirs.meaning(id).or_else(|| self.back(id)),
        };
        //= rfc9298 §5 context-0-limit
        if marks.is_some() && length > MAX_PAYLOAD as u64 {
            return Err(self.stream.fail(Malformed::OversizePayload));
        }
        Ok(marks)
    }

    /// What a context of ours stands for, if the other end may use it too: those of a proxy.
    fn back(&self, context: u64) -> Option<Marks> {
        self.ours
            .meaning(context)
            .filter(|_| !context.is_multiple_of(2))
    }

    fn registration(&mut self, kind: u64, value: &[u8]) -> Result<(), Malformed> {
        let Some(known) = self.capsules else {
            return Ok(());
        };
        let assignments = ecn_dscp::decode(value)?;
        if kind == known.assign {
            for assignment in &assignments {
                self.theirs.register(assignment)?;
            }
            //= connect-udp-ecn-dscp §3.1.2 ack-what-came
            if !assignments.is_empty() {
                ecn_dscp::encode(known.ack, &assignments, &mut self.pending);
            }
            return Ok(());
        }
        for assignment in &assignments {
            //= connect-udp-ecn-dscp §3.1.2 ack-unknown-malformed
            if self.ours.of(assignment.dscp) != Some(assignment) {
                return Err(Malformed::EcnDscp);
            }
            self.unsure.remove(&assignment.dscp);
        }
        Ok(())
    }

    /// The received data stream ended cleanly, with `held` bytes that [`inbound`](Self::inbound) wanted more of.
    ///
    /// # Errors
    /// [`Malformed::TruncatedCapsule`].
    pub fn inbound_end(&mut self, held: usize) -> Result<(), Malformed> {
        self.stream.end(held)
    }

    /// The context for the payload of a packet with these marks. A DSCP without contexts gets some, if there are capsules to say so;
    /// until the other end knows them, and where it never will, the packet counts as one of DSCP 0, and its ECN bits are kept.
    //= connect-udp-ecn-dscp §4.1 marks-choose-context
    //= connect-udp-ecn-dscp §4.1 register-dscp
    pub fn context(&mut self, marks: Marks) -> u64 {
        let dscp = marks.dscp();
        if let Some(known) = self.capsules
            && let Some(assignment) = self.assign(dscp)
        {
            ecn_dscp::encode(known.assign, &[assignment], &mut self.pending);
            self.unsure.insert(dscp);
        }
        let sure = (!self.unsure.contains(&dscp)).then(|| self.ours.of(dscp));
        let set = sure.flatten().or_else(|| self.ours.of(0));
        set.map_or(0, |set| set.contexts[usize::from(marks.ecn())])
    }

    /// Whether capsules wait to be sent.
    #[must_use]
    pub const fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes the capsules that wait to be sent on the data stream.
    pub fn take_pending(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.pending)
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

#[cfg(test)]
mod tests;
