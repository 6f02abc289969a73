//! What the workers share: the current configuration, compiled, and the counts that limits are checked against.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use capsule_core::ecn_dscp::CapsuleTypes;
use capsule_core::protocols::{self, Profile};
use capsule_core::request::{Route, Routes};
use capsule_core::template::Template;
use tokio::sync::watch;

use crate::access_log::AccessLog;
use crate::auth::Credentials;
use crate::config::{Config, EcnDscpCapsules, Egress, Limits, Quic};
use crate::decide::Decider;
use crate::hook::HookCache;
use crate::metrics::{Stats, WorkerMetrics};
use crate::policy::Ruleset;
use crate::pool;
use crate::transport::tls::ListenerTls;

/// Where the engine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accepting.
    Running,
    /// No new connections and requests; tunnels go on.
    Draining,
    /// Everything ends now.
    Stopping,
}

/// One configuration, compiled. A reload makes a new one; connections and tunnels keep what they began with where it matters.
#[derive(Debug)]
pub struct Generation {
    /// Counts reloads.
    pub number: u64,
    /// What is served where.
    pub routes: Routes,
    /// Which targets may be reached.
    pub ruleset: Arc<Ruleset>,
    /// Known credentials.
    pub credentials: Arc<Credentials>,
    /// Whether anybody else is refused.
    pub auth_required: bool,
    /// The realm of challenges.
    pub realm: String,
    /// How targets are reached.
    pub egress: Egress,
    /// Addresses that the outside sees instead of those of bound tunnels' sockets.
    pub public_addresses: Vec<IpAddr>,
    /// Types of the capsules that register contexts for marks.
    pub mark_capsules: Option<CapsuleTypes>,
    /// Ask the control plane, and within which time.
    pub hook: Option<std::time::Duration>,
    /// Remembered decisions.
    pub hook_cache: HookCache,
    /// QUIC towards clients.
    pub quic: Quic,
    /// Bounds.
    pub limits: Limits,
    /// Budget for tunnel buffers in bytes.
    pub memory: u64,
    /// TLS of each listener; `None` = cleartext.
    pub tls: Vec<Option<ListenerTls>>,
}

impl Generation {
    /// Compiles `config`. Faults name the place.
    pub fn compile(config: &Config, number: u64) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let routes = routes(config, &mut faults);
        let mut tls = Vec::new();
        for (index, listener) in config.listeners.iter().enumerate() {
            match ListenerTls::load(listener) {
                Ok(loaded) => tls.push(loaded),
                Err(fault) => faults.push(format!("listeners[{index}]: {fault}")),
            }
        }
        let credentials = Credentials::new(&config.auth)
            .map_err(|fault| faults.push(format!("auth: {fault}")))
            .ok();
        let Some(credentials) = credentials.filter(|_| faults.is_empty()) else {
            return Err(faults);
        };
        let memory = match config.limits.memory {
            0 => machine_memory() / 4 * 3,
            bytes => bytes,
        };
        Ok(Self {
            number,
            routes,
            ruleset: Arc::new(Ruleset::compile(&config.policy)),
            credentials: Arc::new(credentials),
            auth_required: config.auth.required,
            realm: config.auth.realm.clone(),
            egress: config.egress.clone(),
            public_addresses: config
                .protocols
                .templated
                .iter()
                .filter_map(|templated| templated.bind.as_ref())
                .flat_map(|bind| bind.public_addresses.clone())
                .collect(),
            mark_capsules: config
                .protocols
                .templated
                .iter()
                .filter_map(|templated| templated.ecn_dscp?.capsules)
                .map(|EcnDscpCapsules { assign, ack }| CapsuleTypes { assign, ack })
                .next(),
            hook: config.policy.hook.then_some(config.policy.hook_timeout),
            hook_cache: HookCache::new(config.policy.hook_cache),
            quic: config.quic.clone(),
            limits: config.limits.clone(),
            memory,
            tls,
        })
    }
}

fn routes(config: &Config, faults: &mut Vec<String>) -> Routes {
    let mut routes = Routes {
        connect: config.protocols.connect,
        templated: Vec::new(),
    };
    for templated in &config.protocols.templated {
        let place = format!("protocols.{}", templated.protocol);
        let Some(protocol) = protocols::by_name(&templated.protocol).filter(|row| row.templated)
        else {
            faults.push(format!("{place}: no such templated protocol"));
            continue;
        };
        match Template::compile(&templated.template) {
            Ok(template) => routes.templated.push(Route {
                protocol,
                template,
                profiles: templated
                    .profiles
                    .iter()
                    .map(|profile| Profile {
                        token: profile.token.clone().into(),
                        data: profile.data,
                        final_data: profile.final_data,
                    })
                    .collect(),
                bind: protocol.can_bind && templated.bind.is_some(),
                marks: protocol.can_mark && templated.ecn_dscp.is_some(),
            }),
            Err(fault) => faults.push(format!("{place}.template: {fault}")),
        }
    }
    routes
}

/// Memory of the machine, or of the control group if that has less.
fn machine_memory() -> u64 {
    let total = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(1 << 30, |kib| kib * 1024);
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(u64::MAX);
    total.min(group)
}

/// What all workers share.
pub struct Shared {
    /// The current configuration.
    pub generation: ArcSwap<Generation>,
    /// Where closed tunnels are written; its own, so that an old one ends with the reload, not with the last old tunnel.
    pub log: ArcSwap<AccessLog>,
    /// One set of counters per worker.
    pub metrics: Vec<WorkerMetrics>,
    /// The control plane.
    pub decider: Option<Arc<dyn Decider>>,
    /// Where the engine is in its life.
    pub phase: watch::Sender<Phase>,
    /// Connections open now.
    pub connections: AtomicUsize,
    /// Tunnels open or being opened now.
    pub tunnels: AtomicUsize,
    /// Access log lines lost.
    pub log_lines_lost: Arc<AtomicU64>,
    principals: Mutex<HashMap<Arc<str>, usize>>,
}

impl Shared {
    /// Starts in [`Phase::Running`].
    pub fn new(
        generation: Generation,
        log: AccessLog,
        workers: usize,
        decider: Option<Arc<dyn Decider>>,
        log_lines_lost: Arc<AtomicU64>,
    ) -> Self {
        Self {
            generation: ArcSwap::from_pointee(generation),
            log: ArcSwap::from_pointee(log),
            metrics: (0..workers).map(|_| WorkerMetrics::default()).collect(),
            decider,
            phase: watch::Sender::new(Phase::Running),
            connections: AtomicUsize::new(0),
            tunnels: AtomicUsize::new(0),
            log_lines_lost,
            principals: Mutex::default(),
        }
    }

    /// All counters, summed.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            workers: self.metrics.len() as u64,
            buffer_bytes: pool::in_use() as u64,
            log_lines_lost: self.log_lines_lost.load(Ordering::Relaxed),
            ..Stats::default()
        };
        for worker in &self.metrics {
            stats.add(worker);
        }
        stats
    }

    /// Takes a connection's place; `None` when there are as many as the limit allows.
    pub fn admit_connection(self: &Arc<Self>) -> Option<ConnectionSlot> {
        let most = self.generation.load().limits.max_connections;
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let slot = ConnectionSlot(self.clone());
        (before < most).then_some(slot)
    }

    /// Takes a tunnel's place; `None` when the principal has as many as the limit allows.
    pub fn admit_tunnel(
        self: &Arc<Self>,
        principal: Option<&Arc<str>>,
        most: usize,
    ) -> Option<TunnelSlot> {
        if let Some(principal) = principal {
            let mut counts = self
                .principals
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(principal.clone()).or_default();
            if *count >= most {
                return None;
            }
            *count += 1;
        }
        self.tunnels.fetch_add(1, Ordering::Relaxed);
        Some(TunnelSlot {
            shared: self.clone(),
            principal: principal.cloned(),
        })
    }
}

/// An open connection's place in the count.
pub struct ConnectionSlot(Arc<Shared>);

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open tunnel's place in the counts.
pub struct TunnelSlot {
    shared: Arc<Shared>,
    principal: Option<Arc<str>>,
}

impl Drop for TunnelSlot {
    fn drop(&mut self) {
        self.shared.tunnels.fetch_sub(1, Ordering::Relaxed);
        if let Some(principal) = &self.principal {
            let mut counts = self
                .shared
                .principals
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = counts.get_mut(principal) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(principal);
                }
            }
        }
    }
}
