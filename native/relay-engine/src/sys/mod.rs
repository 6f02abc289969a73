//! The only place for `unsafe`: socket options that no crate wraps, timers. Everything else goes through rustix and socket2.

pub mod queue;
pub mod reuseport;
pub mod timer;
