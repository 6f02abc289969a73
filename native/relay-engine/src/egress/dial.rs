//! From a target to a TCP connection: resolve, judge every address, race, connect.

use std::future::ready;
use std::io;
use std::net::{IpAddr, SocketAddr};

use capsule_core::target::{Host, Target};
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::dns::{Resolver, Unresolved};
use super::error::DialError;
use super::happy_eyeballs::{Family, Race, Step};
use super::tcp::{self, Sources};
use super::udp::{self, BoundSockets, DatagramSocket};
use crate::config;
use crate::policy::Refusal;

/// What one worker needs to reach targets. Each worker has its own: the resolver's cache is not shared.
#[derive(Debug)]
pub struct Egress {
    resolver: Resolver,
    sources: Sources,
}

impl Egress {
    /// Reads the hosts file and, unless name servers are configured, the system's resolver configuration.
    #[must_use]
    pub fn new(config: &config::Egress) -> Self {
        Self::with_resolver(config, Resolver::new(&config.nameservers))
    }

    /// Whether nothing was left out for want of descriptors; else it serves for the moment only.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.resolver.is_complete()
    }

    pub(super) fn with_resolver(config: &config::Egress, resolver: Resolver) -> Self {
        Self {
            resolver,
            sources: Sources::new(&config.source_addresses),
        }
    }
}

/// A way to a target.
#[derive(Debug)]
pub struct Dialled<T> {
    /// What was connected.
    pub socket: T,
    /// Where it leads: the address that won.
    pub peer: SocketAddr,
}

enum Event<T> {
    Resolved(Family, Result<Vec<IpAddr>, Unresolved>),
    Attempted(IpAddr, Result<T, DialError>),
}

/// How a dial stands.
struct Progress {
    race: Race,
    /// Why a family has no addresses at all.
    v4: Option<Unresolved>,
    v6: Option<Unresolved>,
    refusal: Option<Refusal>,
    failure: Option<DialError>,
}

/// Connects to a target by TCP; TCP_NODELAY and keepalive are on, and the connection's close is a RST.
///
/// # Errors
/// The most telling error of all attempts.
pub async fn dial(
    egress: &Egress,
    target: &Target,
    permit: impl Fn(IpAddr) -> Result<(), Refusal>,
    deadline: Instant,
) -> Result<Dialled<TcpStream>, DialError> {
    let connect = |peer| tcp::connect(&egress.sources, peer);
    race(egress, target, permit, deadline, connect).await
}

/// Makes a UDP socket that talks to a target, at the first address that there is a way to. Nothing is sent.
///
/// # Errors
/// The most telling error of all attempts.
//= rfc9298 §3.1 dns-before-answer
pub async fn dial_datagrams(
    egress: &Egress,
    target: &Target,
    permit: impl Fn(IpAddr) -> Result<(), Refusal>,
    deadline: Instant,
) -> Result<Dialled<DatagramSocket>, DialError> {
    let connect = |peer| ready(udp::connect(&egress.sources, peer));
    race(egress, target, permit, deadline, connect).await
}

/// Binds sockets that any peer can reach and be reached from; see [`BoundSockets`]. `translated`: the addresses that the outside sees
/// instead of theirs.
///
/// # Errors
/// No address can be bound.
pub fn bind(egress: &Egress, translated: &[IpAddr]) -> Result<BoundSockets, DialError> {
    udp::bind(&egress.sources, translated).map_err(|error| DialError::from(&error))
}

/// Resolves, and connects by `connect` to one address or another.
///
/// Every address is put to `permit` before anything is sent to it; those refused never enter the race. All of it ends
/// by `deadline`; dropping the future ends it at once and closes what was open.
///
/// # Errors
/// The most telling error of all attempts.
//= connect-tcp §4.1 race-addresses
//= connect-tcp §4.1 race-holds-payload
async fn race<T, F: Future<Output = io::Result<T>>>(
    egress: &Egress,
    target: &Target,
    permit: impl Fn(IpAddr) -> Result<(), Refusal>,
    deadline: Instant,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<Dialled<T>, DialError> {
    let mut events: FuturesUnordered<LocalBoxFuture<'_, Event<T>>> = FuturesUnordered::new();
    let mut progress = Progress {
        race: Race::new(),
        v4: None,
        v6: None,
        refusal: None,
        failure: None,
    };
    match &target.host {
        Host::Ip(address) => {
            // A mapped address is dialled as what it is.
            let address = address.to_canonical();
            permit(address).map_err(DialError::Prohibited)?;
            progress.race = Race::literal(address);
        }
        // Leads to no one: there is nothing to connect to.
        Host::Any => return Err(DialError::Unroutable),
        Host::Name(name) => {
            //= rfc8305 §3 parallel-queries
            for family in [Family::V6, Family::V4] {
                let lookup = egress.resolver.lookup(name, family);
                events.push(Box::pin(
                    async move { Event::Resolved(family, lookup.await) },
                ));
            }
        }
    }

    let timer = sleep_until(deadline);
    tokio::pin!(timer);
    loop {
        let wait = loop {
            match progress.race.poll(Instant::now().into_std()) {
                Step::Start(address) => {
                    let peer = SocketAddr::new(address, target.port);
                    let attempt = connect(peer);
                    events.push(Box::pin(async move {
                        let result = attempt.await.map_err(|error| DialError::from(&error));
                        Event::Attempted(address, result)
                    }));
                }
                Step::Wait(until) => break until,
                Step::Failed => return Err(progress.into_error()),
            }
        };
        let until = wait.map_or(deadline, |until| deadline.min(Instant::from_std(until)));
        timer.as_mut().reset(until);
        tokio::select! {
            biased;
            Some(event) = events.next() => match event {
                Event::Attempted(address, Ok(socket)) => {
                    // The other attempts go with this future, and nothing was ever sent on them.
                    //= rfc8305 §5 cancel-losers
                    return Ok(Dialled { socket, peer: SocketAddr::new(address, target.port) });
                }
                Event::Attempted(address, Err(error)) => {
                    progress.race.failed(address);
                    progress.failure = progress.failure.max(Some(error));
                }
                Event::Resolved(family, answer) => progress.resolved(family, answer, &permit),
            },
            () = &mut timer => {
                if Instant::now() >= deadline {
                    return Err(progress.into_timeout());
                }
            }
        }
    }
}

impl Progress {
    fn resolved(
        &mut self,
        family: Family,
        answer: Result<Vec<IpAddr>, Unresolved>,
        permit: impl Fn(IpAddr) -> Result<(), Refusal>,
    ) {
        let mut addresses = match answer {
            Ok(addresses) => addresses,
            Err(why) => {
                match family {
                    Family::V4 => self.v4 = Some(why),
                    Family::V6 => self.v6 = Some(why),
                }
                Vec::new()
            }
        };
        addresses.retain(|&address| match permit(address) {
            Ok(()) => true,
            Err(refusal) => {
                self.refusal = Some(refusal);
                false
            }
        });
        self.race
            .resolved(family, addresses, Instant::now().into_std());
    }

    /// Every attempt has failed, or there was none to make.
    fn into_error(self) -> DialError {
        if let Some(error) = self.failure {
            return error;
        }
        if let Some(refusal) = self.refusal {
            return DialError::Prohibited(refusal);
        }
        DialError::unresolved(
            self.v4.unwrap_or(Unresolved::NoData),
            self.v6.unwrap_or(Unresolved::NoData),
        )
    }

    fn into_timeout(self) -> DialError {
        let now = if self.race.is_attempting() {
            DialError::TimedOut
        } else {
            DialError::DnsTimeout
        };
        self.failure.map_or(now.clone(), |failure| failure.max(now))
    }
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;
