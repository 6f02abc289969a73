//! Which targets may be reached: the configured rules, compiled once, asked once per tunnel and once per address.
//!
//! The order is: denied networks, denied ports, (the hook, which is not ours), rules, and at last public unicast. A
//! non-public address is reachable only through `allow_networks` or an allow rule whose `networks` contain it.

mod address;
mod hosts;
mod networks;
mod own;
mod rules;

pub use address::is_public;
pub use rules::{Admission, Refusal, Ruleset};
