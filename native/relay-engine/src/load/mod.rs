//! Load for benchmarks: what a gateway costs and how fast it answers, measured from the client's side.
//!
//! A [`Plan`] says what to do and through which gateway; [`run`] does it and reports as JSON. [`Origin`] is what the tunnels lead
//! to; it belongs into a process of its own, so that its CPU time is not the client's.

mod bulk;
mod datagram_path;
mod datagrams;
mod drive;
mod idle;
mod latency;
mod origin;
mod path;
mod pattern;
mod plan;
mod rate;
mod report;
mod tls;
mod udp;
mod udp_origin;
mod usage;

pub use origin::Origin;
pub use plan::{Course, Direction, Mode, Plan, Route, Transport, Work};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Map, Value};

/// Why a run ended without a result: one line for people.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What happened.
    pub message: String,
    /// Whether the plan was at fault, and not the run.
    pub usage: bool,
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        failed(error)
    }
}

/// A failure while running.
pub fn failed(message: impl std::fmt::Display) -> Failure {
    Failure {
        message: message.to_string(),
        usage: false,
    }
}

/// A fault of the plan.
pub fn usage(message: impl std::fmt::Display) -> Failure {
    Failure {
        message: message.to_string(),
        usage: true,
    }
}

/// What a run has done so far; another thread may look, and ask it to stop.
#[derive(Debug, Default)]
pub struct Progress {
    running: AtomicBool,
    done: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Whether what is measured has begun: all is connected.
    pub fn running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Bytes moved (bulk), tunnels closed (rate), messages answered (latency), tunnels open (idle),
    /// datagrams (udp).
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends the run soon; it fails.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn add(&self, amount: u64) {
        self.done.fetch_add(amount, Ordering::Relaxed);
    }
}

/// Runs a plan to its end. It blocks.
///
/// # Errors
/// [`Failure`]: a plan that cannot be, or the first thing that went wrong.
pub fn run(plan: Plan, progress: &Arc<Progress>) -> Result<Map<String, Value>, Failure> {
    plan.check()?;
    let plan = Arc::new(plan);
    match plan.work {
        Work::Bulk { .. } => bulk::run(&plan, progress),
        Work::Rate { .. } => rate::run(&plan, progress),
        Work::Latency { .. } => latency::run(&plan, progress),
        Work::Idle { .. } => idle::run(&plan, progress),
        Work::Udp { .. } => udp::run(&plan, progress),
    }
}

#[cfg(test)]
mod tests;
