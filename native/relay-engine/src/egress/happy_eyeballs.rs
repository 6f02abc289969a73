//! Happy Eyeballs (RFC 8305) as a state machine: it decides whom to try next and when; time and sockets are the
//! caller's.
//!
//! The caller reports what happens ([`Race::resolved`], [`Race::failed`]) and asks [`Race::poll`] until it says to
//! wait. The first attempt that succeeds wins: the caller then drops the race and every other attempt.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long A records wait for AAAA records (RFC 8305 §8).
pub const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// How long an attempt runs before the next one starts beside it (RFC 8305 §8).
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Addresses of one family that take part: a name with hundreds of them must not turn the relay into a scanner.
pub const MAX_PER_FAMILY: usize = 8;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Start an attempt to this address, then poll again.
    Start(IpAddr),
    /// Nothing to start now: poll again at that time, or, without one, after the next report.
    Wait(Option<Instant>),
    /// Both families are known and every attempt has failed.
    Failed,
}

/// What is known of one family.
#[derive(Debug, Default)]
struct Candidates {
    known: bool,
    accepted: usize,
    waiting: VecDeque<IpAddr>,
}

/// One race for one target.
#[derive(Debug, Default)]
pub struct Race {
    v4: Candidates,
    v6: Candidates,
    running: Vec<IpAddr>,
    last: Option<Family>,
    /// When the next attempt may start beside the running ones.
    next_attempt: Option<Instant>,
    /// Until when A records wait for AAAA records.
    hold: Option<Instant>,
}

impl Race {
    /// A race that waits for the addresses of both families.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A race for a literal address.
    #[must_use]
    pub fn literal(address: IpAddr) -> Self {
        let mut race = Self::new();
        race.v4.known = true;
        race.v6.known = true;
        race.side(Family::of(address)).offer(address);
        race
    }

    /// The addresses of one family are known, in the resolver's order; none if there are none or resolving failed.
    ///
    /// Addresses of the other family, repeated ones and those beyond [`MAX_PER_FAMILY`] are left out.
    pub fn resolved(
        &mut self,
        family: Family,
        addresses: impl IntoIterator<Item = IpAddr>,
        now: Instant,
    ) {
        let side = self.side(family);
        side.known = true;
        for address in addresses {
            if Family::of(address) == family {
                side.offer(address);
            }
        }
        match family {
            //= rfc8305 §3 resolution-delay
            Family::V4 if !self.v6.known && self.last.is_none() => {
                self.hold.get_or_insert(now + RESOLUTION_DELAY);
            }
            Family::V6 => self.hold = None,
            Family::V4 => {}
        }
    }

    /// An attempt failed: the next one need not wait for the delay.
    pub fn failed(&mut self, address: IpAddr) {
        if let Some(index) = self.running.iter().position(|&other| other == address) {
            self.running.swap_remove(index);
            self.next_attempt = None;
        }
    }

    /// What to do now.
    pub fn poll(&mut self, now: Instant) -> Step {
        let waiting = !self.v4.waiting.is_empty() || !self.v6.waiting.is_empty();
        if !waiting {
            let over = self.v4.known && self.v6.known && self.running.is_empty();
            return if over { Step::Failed } else { Step::Wait(None) };
        }
        for barrier in [self.hold, self.next_attempt].into_iter().flatten() {
            if now < barrier {
                return Step::Wait(Some(barrier));
            }
        }
        // IPv6 goes first, then the families take turns.
        //= rfc8305 §4 interleave-families
        let preferred = self.last.map_or(Family::V6, Family::other);
        let next = match self.side(preferred).waiting.pop_front() {
            Some(address) => Some(address),
            None => self.side(preferred.other()).waiting.pop_front(),
        };
        let Some(address) = next else {
            return Step::Wait(None);
        };
        self.hold = None;
        self.last = Some(Family::of(address));
        self.running.push(address);
        //= rfc8305 §5 attempt-delay
        self.next_attempt = Some(now + ATTEMPT_DELAY);
        Step::Start(address)
    }

    /// Whether an attempt is under way.
    #[must_use]
    pub fn is_attempting(&self) -> bool {
        !self.running.is_empty()
    }

    fn side(&mut self, family: Family) -> &mut Candidates {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl Candidates {
    fn offer(&mut self, address: IpAddr) {
        if self.accepted < MAX_PER_FAMILY && !self.waiting.contains(&address) {
            self.accepted += 1;
            self.waiting.push_back(address);
        }
    }
}

#[cfg(test)]
#[path = "happy_eyeballs_tests.rs"]
mod tests;
