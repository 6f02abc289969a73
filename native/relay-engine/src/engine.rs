//! Starting, reloading, draining and stopping the data plane.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::access_log::AccessLog;
use crate::config::{Config, Http, Listener, Log};
use crate::decide::Decider;
use crate::listener::Sockets;
use crate::metrics::Stats;
use crate::state::{Generation, Phase, Shared};
use crate::worker::{self, ListenerShare};

/// How long a started worker may take to say so.
const START: Duration = Duration::from_secs(30);
/// After the last tunnel ended, idle client connections get this long to close.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long the access log may take to be written to the end.
const LAST_LINES: Duration = Duration::from_secs(2);
/// How often a drain looks whether it is over.
const LOOK: Duration = Duration::from_millis(10);

/// Why the engine does not run with a configuration: one line per fault, each with place and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError(pub Vec<String>);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for StartError {}

/// An address that is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// With its real port.
    pub address: SocketAddr,
    /// HTTP versions offered.
    pub http: Vec<Http>,
    /// Whether TLS is spoken.
    pub tls: bool,
}

/// A running data plane. Dropping it closes it.
pub struct Engine {
    shared: Arc<Shared>,
    bound: Vec<Bound>,
    workers: usize,
    listeners: Vec<Listener>,
    reloads: Mutex<Reloads>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Reloads {
    number: u64,
    log: Log,
    writers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

/// One worker per core, but not more than the process has descriptors for.
fn workers_that_fit(listeners: usize) -> usize {
    /// Standard streams, the control plane's loop, files that are open for a moment, and a few connections.
    const RESERVED: u64 = 32;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let per_worker = 4 + 2 * listeners as u64;
    let fit = limit.map_or(u64::MAX, |limit| {
        limit.saturating_sub(RESERVED) / per_worker
    });
    cores.min(usize::try_from(fit).unwrap_or(usize::MAX)).max(1)
}

impl Engine {
    /// Binds all sockets, starts the workers and returns once they serve.
    pub fn start(config: Config, decider: Option<Arc<dyn Decider>>) -> Result<Self, StartError> {
        // Connection IDs carry the worker in one byte.
        let workers = match config.workers {
            0 => workers_that_fit(config.listeners.len()),
            workers => workers,
        }
        .min(256);
        let lost = Arc::new(AtomicU64::new(0));
        let mut faults = Vec::new();
        let generation = Generation::compile(&config, 0).map_err(|more| faults.extend(more));
        let mut sockets = Vec::new();
        for (index, listener) in config.listeners.iter().enumerate() {
            match Sockets::bind(listener, workers) {
                Ok(bound) => sockets.push(bound),
                Err(error) => faults.push(bind_fault(index, listener, &error)),
            }
        }
        let log = AccessLog::open(&config.log, lost.clone()).map_err(|fault| faults.push(fault));
        let (Ok(generation), Ok((log, writer)), true) = (generation, log, faults.is_empty()) else {
            return Err(StartError(faults));
        };
        let bound = sockets
            .iter()
            .zip(&config.listeners)
            .map(|(sockets, listener)| Bound {
                address: sockets.address,
                http: listener.http.clone(),
                tls: listener.certificate.is_some(),
            })
            .collect();
        let shared = Arc::new(Shared::new(generation, log, workers, decider, lost));
        let engine = Self {
            shared: shared.clone(),
            bound,
            workers: config.workers,
            listeners: config.listeners.clone(),
            reloads: Mutex::new(Reloads {
                number: 0,
                log: config.log.clone(),
                writers: writer.into_iter().collect(),
            }),
            threads: Mutex::default(),
        };
        engine.spawn(&shared, workers, &config, sockets)?;
        Ok(engine)
    }

    fn spawn(
        &self,
        shared: &Arc<Shared>,
        workers: usize,
        config: &Config,
        sockets: Vec<Sockets>,
    ) -> Result<(), StartError> {
        let mut shares: Vec<Vec<ListenerShare>> = (0..workers).map(|_| Vec::new()).collect();
        for (index, mut sockets) in sockets.into_iter().enumerate() {
            // From the last to the first, so that the index of a socket in its group is the worker's.
            for share in shares.iter_mut().rev() {
                share.push(ListenerShare {
                    index,
                    http: config.listeners[index].http.clone(),
                    tcp: sockets.tcp.pop(),
                    udp: sockets.udp.pop(),
                });
            }
        }
        let (started, reports) = mpsc::channel();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, share) in shares.into_iter().enumerate() {
            let (shared, started) = (shared.clone(), started.clone());
            let thread = std::thread::Builder::new()
                .name(format!("relay-{index}"))
                .spawn(move || worker::run(index, shared, share, started))
                .map_err(|error| {
                    StartError(vec![format!("workers: cannot start a thread: {error}")])
                })?;
            threads.push(thread);
        }
        drop((started, threads));
        let mut faults = Vec::new();
        for _ in 0..workers {
            match reports.recv_timeout(START) {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => faults.push(fault),
                Err(_) => faults.push("workers: a worker thread ended while it started".into()),
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(StartError(faults))
        }
    }

    /// Where the engine listens, in the order of the configuration.
    pub fn addresses(&self) -> &[Bound] {
        &self.bound
    }

    /// All counters, summed over the workers.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Puts a new configuration and its certificates in force for new connections and requests; running tunnels go on. On an
    /// error the old configuration stays.
    pub fn reload(&self, config: Config) -> Result<(), StartError> {
        let mut reloads = self.reloads.lock().unwrap_or_else(PoisonError::into_inner);
        if *self.shared.phase.borrow() == Phase::Stopping {
            // Nobody would end the new log's writer.
            return Err(StartError(vec!["the relay has ended".into()]));
        }
        let mut faults = Vec::new();
        if config.workers != self.workers {
            faults.push("workers: cannot change while running: restart the relay".into());
        }
        if config.listeners.len() != self.listeners.len() {
            faults.push(
                "listeners: cannot be added or removed while running: restart the relay".into(),
            );
        }
        for (index, (new, old)) in config.listeners.iter().zip(&self.listeners).enumerate() {
            let tls = |listener: &Listener| listener.certificate.is_some();
            if new.address != old.address || new.http != old.http || tls(new) != tls(old) {
                faults.push(format!(
                    "listeners[{index}]: address, http and the use of TLS cannot change while running: restart the relay"
                ));
            }
        }
        let generation =
            Generation::compile(&config, reloads.number + 1).map_err(|more| faults.extend(more));
        // A file is opened anew, so that a rotated log is let go of.
        let same = config.log.access == reloads.log.access
            && matches!(config.log.access.as_str(), "" | "-");
        let lost = self.shared.log_lines_lost.clone();
        let log = (!same)
            .then(|| AccessLog::open(&config.log, lost))
            .transpose()
            .map_err(|fault| faults.push(fault));
        let (Ok(generation), Ok(log), true) = (generation, log, faults.is_empty()) else {
            return Err(StartError(faults));
        };
        if let Some((log, writer)) = log {
            self.shared.log.store(Arc::new(log));
            reloads.writers.retain(|writer| !writer.is_finished());
            reloads.writers.extend(writer);
        }
        reloads.number += 1;
        reloads.log = config.log;
        self.shared.generation.store(Arc::new(generation));
        Ok(())
    }

    /// Stops accepting, tells clients (GOAWAY), waits up to `grace` for tunnels to end, then ends what is left. Blocks.
    pub fn drain(&self, grace: Duration) {
        self.advance(Phase::Draining);
        let until = Instant::now().checked_add(grace);
        let mut quiet_since = None;
        while until.is_none_or(|until| Instant::now() < until)
            && *self.shared.phase.borrow() < Phase::Stopping
        {
            if self.shared.connections.load(Ordering::Relaxed) == 0 {
                break;
            }
            if self.shared.tunnels.load(Ordering::Relaxed) > 0 {
                quiet_since = None;
            } else if quiet_since.get_or_insert_with(Instant::now).elapsed() > FAREWELL {
                break;
            }
            std::thread::sleep(LOOK);
        }
        self.close();
    }

    /// Ends everything now and waits for the threads. Once is enough; more does no harm.
    pub fn close(&self) {
        self.advance(Phase::Stopping);
        // Whoever comes second, as the drain does that was told to hurry, waits as well: the threads have lines to log until they end.
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            let _ = thread.join();
        }
        drop(threads);
        // Behind a reload that is on its way, which may open another log.
        let mut reloads = self.reloads.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.log.load().close();
        let until = Instant::now() + LAST_LINES;
        for writer in reloads.writers.drain(..) {
            // A reader of the log that does not read must not hold up the end.
            while !writer.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn advance(&self, phase: Phase) {
        self.shared.phase.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

fn bind_fault(index: usize, listener: &Listener, error: &std::io::Error) -> String {
    let address = listener.address;
    let remedy = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "is in use: stop what listens there, or choose another port (0 = any free one)"
        }
        std::io::ErrorKind::AddrNotAvailable => "is no address of this machine",
        std::io::ErrorKind::PermissionDenied => {
            "needs privileges: choose a port from 1024 on, or grant CAP_NET_BIND_SERVICE"
        }
        _ => "cannot be listened on",
    };
    format!("listeners[{index}].address: {address} {remedy} ({error})")
}
