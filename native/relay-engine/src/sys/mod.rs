//! The only place for `unsafe`: socket options that no crate wraps, timers, memory that is used again. Everything else goes through rustix and socket2.

pub mod queue;
pub mod reusable;
pub mod reuseport;
pub mod timer;
