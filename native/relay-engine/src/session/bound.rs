//! Who a bound tunnel may talk to: each peer is judged by the policy in force when it comes up.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use capsule_core::target::Host;

use crate::pump::outside::{Judge, Verdict};
use crate::worker::Worker;

/// Verdicts that are remembered at a time; more than most tunnels have peers.
const MOST: usize = 1024;

/// Judges the peers of one tunnel. Remembers its verdicts until the policy changes.
//= connect-udp-bind §9 check-each-target
pub(super) fn judge(
    worker: &Rc<Worker>,
    principal: Option<&Arc<str>>,
    protocol: &'static str,
) -> Judge {
    let (worker, principal) = (Rc::clone(worker), principal.cloned());
    let mut verdicts: HashMap<SocketAddr, bool> = HashMap::new();
    let mut number = 0;
    Box::new(move |peer| {
        let generation = worker.shared.generation.load();
        if generation.number != number || verdicts.len() >= MOST {
            verdicts.clear();
            number = generation.number;
        }
        let entry = match verdicts.entry(peer) {
            Entry::Occupied(known) => {
                return Verdict {
                    permitted: *known.get(),
                    fresh: false,
                };
            }
            Entry::Vacant(entry) => entry,
        };
        let address = peer.ip();
        // A mapped address would go to another family's socket than it says.
        let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        let ruleset = &generation.ruleset;
        let (principal, host) = (principal.as_deref(), Host::Ip(address));
        let permitted = peer.port() != 0
            && !mapped
            && ruleset
                .before_dns(principal, protocol, &host, peer.port())
                .and_then(|admission| admission.permits(address))
                .is_ok();
        entry.insert(permitted);
        Verdict {
            permitted,
            fresh: true,
        }
    })
}
