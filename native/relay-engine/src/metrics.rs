//! Counters: one set per worker, written by that worker alone, summed when asked.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// A counter or gauge that one worker writes and anybody reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Takes from it.
    pub fn sub(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What one worker counts.
        #[derive(Debug, Default)]
        pub struct WorkerMetrics {
            $($(#[$doc])* pub $name: Counter,)*
        }

        /// The sum over all workers, at one moment.
        #[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
        pub struct Stats {
            /// Worker threads.
            pub workers: u64,
            /// Bytes of tunnel buffers and pipes in use.
            pub buffer_bytes: u64,
            /// Access log lines that the log's reader was too slow for.
            pub log_lines_lost: u64,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// Adds a worker's counters.
            pub fn add(&mut self, worker: &WorkerMetrics) {
                $(self.$name += worker.$name.get();)*
            }
        }
    };
}

counters! {
    /// Connections accepted.
    connections_accepted,
    /// Connections refused because there were too many.
    connections_refused,
    /// Connections open now.
    connections_open,
    /// Requests of any kind.
    requests,
    /// Requests that got an answer other than a tunnel.
    requests_refused,
    /// Tunnels opened.
    tunnels_opened,
    /// Tunnels open now.
    tunnels_open,
    /// Tunnels that did not end cleanly.
    tunnels_aborted,
    /// Payload bytes from clients to targets.
    bytes_up,
    /// Payload bytes from targets to clients.
    bytes_down,
    /// Datagrams from clients to targets.
    datagrams_up,
    /// Datagrams from targets to clients.
    datagrams_down,
    /// Datagrams that were dropped because they fit no packet of the path.
    datagrams_dropped_oversize,
    /// Datagrams that were dropped because a queue was full.
    datagrams_dropped_queue,
    /// Datagrams that were dropped because no context is registered for them.
    datagrams_dropped_context,
    /// Datagrams of bound tunnels that were dropped because the policy refuses their destination.
    datagrams_dropped_policy,
    /// Capsules of types without a meaning, reserved ones not counted.
    unknown_capsules,
    /// Decisions asked of the hook.
    hook_questions,
    /// Decisions that the hook did not give in time.
    hook_timeouts,
    /// Microseconds spent waiting for the hook, over all tunnels.
    hook_wait_us,
}
