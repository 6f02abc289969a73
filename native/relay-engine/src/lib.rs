//! The data plane of capsule-relay: sockets, TLS, QUIC, HTTP/1.1, HTTP/2 and HTTP/3, and the pumps between them.
//!
//! [`Engine`] runs it; everything it decides by is in [`config::Config`], everything it asks goes through [`decide::Decider`].

mod access_log;
pub mod auth;
pub mod client;
pub mod config;
pub mod decide;
pub mod egress;
mod engine;
#[doc(hidden)]
pub mod fuzzing;
mod hook;
mod listener;
pub mod load;
pub mod metrics;
pub mod policy;
pub mod pool;
mod pump;
mod session;
mod state;
mod sys;
pub mod transport;
mod worker;

pub use config::Config;
pub use engine::{Bound, Engine, StartError};
pub use metrics::Stats;
pub use transport::tls;
