//! The compiled rules and the two moments at which they speak: before anything is resolved, and for each address.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use capsule_core::proxy_status::ProxyError;
use capsule_core::reject::Reject;
use capsule_core::target::Host;

use super::address::{canonical, is_public};
use super::hosts::{HostPatterns, normalised};
use super::networks::Networks;
use super::own::is_own;
use crate::config;

/// Why a target is refused. Says nothing about what a name resolved to.
//= rfc9209 §4 no-secrets
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// The port is one of the denied ones.
    #[error("this relay does not connect to port {0}")]
    Port(u16),
    /// A rule denies the target as it is named.
    #[error("a rule of this relay denies the target")]
    Rule,
    /// The address, or every address of the name, may not be reached.
    #[error("the target's address is not one that this relay connects to")]
    Address,
}

impl Refusal {
    /// HTTP status of the answer: 403, also where RFC 9209 recommends 502, since the refusal is the relay's own.
    #[must_use]
    pub fn status(self) -> u16 {
        403
    }

    /// Error type for `Proxy-Status`.
    #[must_use]
    pub fn error(self) -> ProxyError {
        match self {
            Self::Port(_) | Self::Rule => ProxyError::HttpRequestDenied,
            Self::Address => ProxyError::DestinationIpProhibited,
        }
    }

    /// The whole answer.
    #[must_use]
    pub fn reject(self) -> Reject {
        Reject::new(self.status(), "Target not allowed", self.to_string()).with_error(self.error())
    }
}

#[derive(Debug)]
struct Rule {
    allow: bool,
    principals: HashSet<Box<str>>,
    hosts: HostPatterns,
    networks: Networks,
    ports: Vec<(u16, u16)>,
    protocols: Vec<Box<str>>,
}

impl Rule {
    fn compile(rule: &config::Rule) -> Self {
        Self {
            allow: rule.allow,
            principals: rule
                .principals
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            hosts: HostPatterns::new(&rule.hosts),
            networks: Networks::new(&rule.networks),
            ports: rule.ports.clone(),
            protocols: rule
                .protocols
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
        }
    }

    fn concerns_principal(&self, principal: Option<&str>, protocol: &str) -> bool {
        (self.principals.is_empty() || principal.is_some_and(|name| self.principals.contains(name)))
            && (self.protocols.is_empty() || self.protocols.iter().any(|name| &**name == protocol))
    }

    /// Whether it speaks of every target.
    fn is_unconditional(&self) -> bool {
        self.hosts.is_empty() && self.networks.is_empty() && self.ports.is_empty()
    }

    /// Whether every condition but the networks holds.
    fn concerns(&self, principal: Option<&str>, protocol: &str, host: &str, port: u16) -> bool {
        self.concerns_principal(principal, protocol)
            && (self.ports.is_empty()
                || self
                    .ports
                    .iter()
                    .any(|&(low, high)| (low..=high).contains(&port)))
            && (self.hosts.is_empty() || self.hosts.match_host(host))
    }
}

/// A compiled `[policy]`; immutable, shared by all workers.
#[derive(Debug)]
pub struct Ruleset {
    allow_networks: Networks,
    deny_networks: Networks,
    deny_ports: HashSet<u16>,
    rules: Vec<Rule>,
}

impl Ruleset {
    /// Compiles a policy. Never fails: the values are typed already.
    #[must_use]
    pub fn compile(policy: &config::Policy) -> Self {
        Self {
            allow_networks: Networks::new(&policy.allow_networks),
            deny_networks: Networks::new(&policy.deny_networks),
            deny_ports: policy.deny_ports.iter().copied().collect(),
            rules: policy.rules.iter().map(Rule::compile).collect(),
        }
    }

    /// What goes before the hook: denied ports, and denied networks where the target is an address.
    ///
    /// # Errors
    /// The refusal, if the target can never be reached.
    //= rfc9110 §9.3.6 connect-restrict
    pub fn before_hook(&self, host: &Host, port: u16) -> Result<(), Refusal> {
        if let Host::Ip(address) = host
            && self.deny_networks.touch(*address)
        {
            return Err(Refusal::Address);
        }
        if self.deny_ports.contains(&port) {
            return Err(Refusal::Port(port));
        }
        Ok(())
    }

    /// What can be said of a tunnel that leads to any peer: each of them is judged when it comes up.
    ///
    /// # Errors
    /// The refusal, if no peer could be reached.
    pub fn before_bind(&self, principal: Option<&str>, protocol: &str) -> Result<(), Refusal> {
        let of_any = |rule: &&Rule| rule.concerns_principal(principal, protocol);
        let decides = |rule: &&Rule| rule.allow || rule.is_unconditional();
        match self.rules.iter().filter(of_any).find(decides) {
            Some(rule) if !rule.allow => Err(Refusal::Rule),
            _ => Ok(()),
        }
    }

    /// Everything that can be said before a name is resolved, [`Ruleset::before_hook`] included.
    ///
    /// # Errors
    /// The refusal, if no address could make the target reachable.
    pub fn before_dns(
        self: &Arc<Self>,
        principal: Option<&str>,
        protocol: &str,
        host: &Host,
        port: u16,
    ) -> Result<Admission, Refusal> {
        self.before_hook(host, port)?;
        let spelling = match host {
            Host::Ip(address) => canonical(*address).to_string(),
            Host::Name(name) => normalised(name),
            Host::Any => host.to_string(),
        };
        let mut concerned = Vec::new();
        for (index, rule) in self.rules.iter().enumerate() {
            if !rule.concerns(principal, protocol, &spelling, port) {
                continue;
            }
            concerned.push(index);
            // A deny rule that asks for no network ends the matter for every address.
            if !rule.allow && rule.networks.is_empty() {
                if concerned.iter().all(|&index| !self.rules[index].allow) {
                    return Err(Refusal::Rule);
                }
                break;
            }
        }
        Ok(Admission {
            ruleset: Arc::clone(self),
            concerned: concerned.into(),
        })
    }
}

/// A target that may be resolved; judges the addresses that come of it.
#[derive(Debug, Clone)]
pub struct Admission {
    ruleset: Arc<Ruleset>,
    /// The rules whose other conditions hold, in order.
    concerned: Arc<[usize]>,
}

impl Admission {
    /// Whether this address may be dialled.
    ///
    /// The first rule that decides wins. An allow rule without `networks` speaks of public addresses, those of this machine
    /// left out, and those of `allow_networks` only: for any other address the search goes on.
    ///
    /// # Errors
    /// The refusal, if not.
    pub fn permits(&self, address: IpAddr) -> Result<(), Refusal> {
        let ruleset = &*self.ruleset;
        // The kernel takes the unspecified address for this machine, which no network of a policy means by it.
        if canonical(address).is_unspecified() || ruleset.deny_networks.touch(address) {
            return Err(Refusal::Address);
        }
        let reachable = ruleset.allow_networks.contain(address)
            || (is_public(address) && !is_own(canonical(address)));
        for &index in &*self.concerned {
            let rule = &ruleset.rules[index];
            let decides = match (rule.networks.is_empty(), rule.allow) {
                (true, true) => reachable,
                (true, false) => true,
                (false, true) => rule.networks.contain(address),
                // Denied networks are meant whatever spelling leads there.
                (false, false) => rule.networks.touch(address),
            };
            if decides {
                return if rule.allow {
                    Ok(())
                } else {
                    Err(Refusal::Address)
                };
            }
        }
        if reachable {
            Ok(())
        } else {
            Err(Refusal::Address)
        }
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
