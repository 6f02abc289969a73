//! The contexts of a bound tunnel: which are open, whose they are, and which IDs were ever used.

use alloc::collections::BTreeMap;
use core::net::SocketAddr;

use super::Role;
use crate::tunnel::Malformed;
use crate::varint;

/// Contexts that are open at a time; registrations beyond are rejected.
//= connect-udp-bind §9 bound-contexts
pub const MAX_CONTEXTS: usize = 1024;
/// Gaps between the IDs that the peer has used. Who counts up leaves none.
const MAX_GAPS: usize = 4 * MAX_CONTEXTS;

/// Why a context was not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// One that does the same is open.
    #[error("a context for this is open already")]
    Open,
    /// Only clients open the uncompressed one, and without it a proxy opens none.
    #[error("this end may not open such a context now")]
    NotHere,
    /// Too many are open, or the IDs are used up.
    #[error("too many contexts are open")]
    Many,
}

/// What a context ID in a datagram means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nothing: not yet, or no longer.
    Unknown,
    /// Context 0 without a target.
    Forbidden,
    /// A payload from or to this peer.
    Peer(SocketAddr),
    /// The peer stands before the payload.
    Uncompressed,
}

/// What becomes of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub accepted: bool,
    /// A context of ours that ends with it.
    pub closes: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Context {
    peer: Option<SocketAddr>,
    /// Registered here, not by the other end.
    ours: bool,
    acknowledged: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Contexts {
    role: Role,
    target: Option<SocketAddr>,
    open: BTreeMap<u64, Context>,
    by_peer: BTreeMap<SocketAddr, u64>,
    uncompressed: Option<u64>,
    /// IDs that the other end has used: first → last of each run of neighbours, halved.
    used: BTreeMap<u64, u64>,
    /// The next ID of ours.
    next: u64,
}

impl Contexts {
    //= connect-udp-bind §3 parity
    pub(super) const fn new(role: Role, target: Option<SocketAddr>) -> Self {
        Self {
            role,
            target,
            open: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            uncompressed: None,
            used: BTreeMap::new(),
            next: match role {
                Role::Client => 2,
                Role::Proxy => 1,
            },
        }
    }

    fn is_ours(&self, context: u64) -> bool {
        context.is_multiple_of(2) == (self.role == Role::Client)
    }

    pub(super) fn meaning(&self, context: u64) -> Meaning {
        match (context, self.target) {
            (0, None) => Meaning::Forbidden,
            //= connect-udp-bind §3 context-0-target
            (0, Some(target)) => Meaning::Peer(target),
            _ => match self.open.get(&context) {
                None => Meaning::Unknown,
                Some(Context { peer: None, .. }) => Meaning::Uncompressed,
                Some(Context {
                    peer: Some(peer), ..
                }) => Meaning::Peer(*peer),
            },
        }
    }

    /// The context for payloads of `peer`, and whether it stands for the peer.
    pub(super) fn towards(&self, peer: SocketAddr) -> Option<(u64, bool)> {
        if self.target == Some(peer) {
            return Some((0, true));
        }
        let compressed = self.by_peer.get(&peer).and_then(|context| {
            let known = self.open.get(context)?;
            // One that the other end may not know yet is used only if there is no better.
            let sure = !known.ours || known.acknowledged || self.uncompressed.is_none();
            sure.then_some((*context, true))
        });
        compressed.or_else(|| Some((self.uncompressed?, false)))
    }

    /// The other end registers a context.
    pub(super) fn assigned(
        &mut self,
        context: u64,
        peer: Option<SocketAddr>,
        permit: &mut dyn FnMut(SocketAddr) -> bool,
    ) -> Result<Answer, Malformed> {
        //= connect-udp-bind §3 parity
        if self.is_ours(context) {
            return Err(Malformed::Compression);
        }
        //= connect-udp-bind §3.1 repeated-id-malformed
        self.take_id(context / 2)?;
        let rejected = Answer {
            accepted: false,
            closes: None,
        };
        let mut closes = None;
        match peer {
            //= connect-udp-bind §4 one-uncompressed
            //= connect-udp-bind §4 uncompressed-by-client
            None if self.role == Role::Client || self.uncompressed.is_some() => {
                return Err(Malformed::Compression);
            }
            None => {}
            Some(peer) => match self.by_peer.get(&peer).copied() {
                //= connect-udp-bind §3.1 same-tuple-malformed
                Some(other) if !self.is_ours(other) => return Err(Malformed::Compression),
                //= connect-udp-bind §3.1 simultaneous-close-proxys
                Some(_) if self.role == Role::Client => return Ok(rejected),
                Some(ours) => {
                    self.close(ours);
                    closes = Some(ours);
                }
                None => {}
            },
        }
        //= connect-udp-bind §9 bound-contexts
        //= connect-udp-bind §9 check-each-target
        let accepted = self.open.len() < MAX_CONTEXTS && peer.is_none_or(permit);
        if accepted {
            self.insert(context, peer, false);
        }
        Ok(Answer { accepted, closes })
    }

    fn insert(&mut self, context: u64, peer: Option<SocketAddr>, ours: bool) {
        match peer {
            Some(peer) => {
                self.by_peer.insert(peer, context);
            }
            None => self.uncompressed = Some(context),
        }
        let acknowledged = false;
        self.open.insert(
            context,
            Context {
                peer,
                ours,
                acknowledged,
            },
        );
    }

    /// Registers a context here.
    //= connect-udp-bind §3.1 one-context-per-tuple
    //= connect-udp-bind §3.1 firewall
    pub(super) fn open(&mut self, peer: Option<SocketAddr>) -> Result<u64, NotOpened> {
        let taken = match peer {
            Some(peer) => self.by_peer.contains_key(&peer),
            None => self.uncompressed.is_some(),
        };
        match self.role {
            _ if taken => return Err(NotOpened::Open),
            Role::Proxy if peer.is_none() || self.uncompressed.is_none() => {
                return Err(NotOpened::NotHere);
            }
            _ => {}
        }
        if self.open.len() >= MAX_CONTEXTS || self.next > varint::MAX {
            return Err(NotOpened::Many);
        }
        let context = self.next;
        self.next += 2;
        self.insert(context, peer, true);
        Ok(context)
    }

    //= connect-udp-bind §3.2 ack-unknown-malformed
    pub(super) fn acknowledged(&mut self, context: u64) -> Result<(), Malformed> {
        if !self.is_ours(context) || context >= self.next {
            return Err(Malformed::Compression);
        }
        // One that was closed meanwhile is no fault.
        if let Some(known) = self.open.get_mut(&context) {
            known.acknowledged = true;
        }
        Ok(())
    }

    pub(super) fn is_acknowledged(&self, context: u64) -> bool {
        self.open
            .get(&context)
            .is_some_and(|known| known.acknowledged)
    }

    /// Either end closes a context; `false`: it was not open.
    //= connect-udp-bind §3.3 close-any
    //= connect-udp-bind §3.3 none-after-close
    pub(super) fn close(&mut self, context: u64) -> bool {
        let Some(known) = self.open.remove(&context) else {
            return false;
        };
        match known.peer {
            Some(peer) => {
                self.by_peer.remove(&peer);
            }
            None => self.uncompressed = None,
        }
        true
    }

    /// Marks an ID of the other end as used.
    fn take_id(&mut self, id: u64) -> Result<(), Malformed> {
        let before = self
            .used
            .range(..=id)
            .next_back()
            .map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| last >= id) {
            return Err(Malformed::Compression);
        }
        let first = match before {
            Some((first, last)) if last + 1 == id => first,
            _ => id,
        };
        let last = self.used.remove(&(id + 1)).unwrap_or(id);
        self.used.insert(first, last);
        if self.used.len() > MAX_GAPS {
            return Err(Malformed::TooManyContexts);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_remembered_in_little_room() {
        let mut contexts = Contexts::new(Role::Proxy, None);
        for id in (1..=50_000).rev().chain(50_001..100_000) {
            assert_eq!(contexts.take_id(id), Ok(()));
        }
        assert_eq!(contexts.used.len(), 1);
        for id in [1, 49_999, 50_000, 99_999] {
            assert_eq!(contexts.take_id(id), Err(Malformed::Compression));
        }
        let scattered = (0..=MAX_GAPS as u64).map(|n| 200_000 + 2 * n);
        let results: alloc::vec::Vec<_> = scattered.map(|id| contexts.take_id(id)).collect();
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 2);
        assert_eq!(results.last(), Some(&Err(Malformed::TooManyContexts)));
    }
}
