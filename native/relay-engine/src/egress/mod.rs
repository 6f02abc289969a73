//! How targets are reached: names become addresses, addresses race, one connection wins.

mod dial;
pub mod dns;
mod error;
pub mod happy_eyeballs;
mod tcp;
#[cfg(test)]
mod test_server;
mod udp;

pub use dial::{Dialled, Egress, bind, dial, dial_datagrams};
pub use error::DialError;
pub(crate) use error::is_limit;
pub use udp::{Addressed, BoundSockets, DatagramSocket, MarkedPayload, MarkedSocket, Sent};
