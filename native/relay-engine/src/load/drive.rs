//! Threads of a run and the stages they go through together: prepare, go, release.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, LocalSet};

use super::datagram_path::DatagramPath;
use super::path::{Gate, Link, Path};
use super::plan::{Plan, Work};
use super::usage::{Meter, Reading, raise_descriptors};
use super::{Failure, Progress, failed};

/// How long the gateway may take to settle its accounts after the last byte, and connections to say goodbye.
const SETTLE: Duration = Duration::from_millis(30);
/// How often the controlling thread looks for a wish to stop.
const LOOK: Duration = Duration::from_millis(50);
/// Connections that a thread makes at a time.
const CONNECTING: usize = 16;
/// Tunnels that a thread opens at a time before it measures.
const OPENING: usize = 64;

/// What a kind of load does on each thread.
pub(super) trait Workload: 'static {
    /// What is set up and not measured; it lives until everybody is done.
    type Ready;
    /// What a thread found out.
    type Tally: Send + 'static;

    /// Connects.
    async fn prepare(share: &Share) -> Result<Self::Ready, Failure>;
    /// Does what is measured.
    async fn measure(share: &Share, ready: &mut Self::Ready) -> Result<Self::Tally, Failure>;
}

/// One thread's share of a run.
pub(super) struct Share {
    pub(super) plan: Arc<Plan>,
    pub(super) progress: Arc<Progress>,
    /// Index among the threads that have anything to do, and how many they are.
    pub(super) thread: (usize, usize),
    gate: Gate,
}

impl Share {
    fn connections(&self) -> usize {
        let (index, all) = self.thread;
        (index..self.plan.connections).step_by(all).count()
    }

    /// All connections of this thread. Not all at once: what handshakes need meanwhile is no part of what a connection costs.
    pub(super) async fn connect(&self) -> Result<Vec<Link>, Failure> {
        let gate = Rc::new(self.gate.clone());
        let turn = Rc::new(Semaphore::new(CONNECTING));
        all((0..self.connections()).map(|_| {
            let (gate, turn) = (gate.clone(), turn.clone());
            async move {
                let _turn = turn.acquire().await?;
                gate.connect().await
            }
        }))
        .await
    }

    /// All tunnels of this thread.
    pub(super) async fn open(&self, links: &[Link]) -> Result<Vec<Path>, Failure> {
        self.open_with(links, async |link| link.open().await).await
    }

    /// All tunnels of datagrams of this thread.
    pub(super) async fn open_datagrams(
        &self,
        links: &[Link],
    ) -> Result<Vec<DatagramPath>, Failure> {
        self.open_with(links, async |link| link.open_datagrams().await)
            .await
    }

    async fn open_with<T: 'static>(
        &self,
        links: &[Link],
        open: impl AsyncFn(Link) -> Result<T, Failure> + Copy + 'static,
    ) -> Result<Vec<T>, Failure> {
        let turn = Rc::new(Semaphore::new(OPENING));
        let streams = links
            .iter()
            .flat_map(|link| std::iter::repeat_n(link, self.plan.streams));
        all(streams.map(|link| {
            let (link, turn) = (link.clone(), turn.clone());
            async move {
                let _turn = turn.acquire().await?;
                open(link).await
            }
        }))
        .await
    }
}

/// Runs tasks beside each other; the first failure ends the others.
pub(super) async fn all<T: 'static>(
    tasks: impl Iterator<Item = impl Future<Output = Result<T, Failure>> + 'static>,
) -> Result<Vec<T>, Failure> {
    let mut set = JoinSet::new();
    for task in tasks {
        set.spawn_local(task);
    }
    let mut results = Vec::with_capacity(set.len());
    while let Some(result) = set.join_next().await {
        results.push(result??);
    }
    Ok(results)
}

/// What all threads found out, and what was read before anything, before the measured part, and after it.
pub(super) struct Outcome<T> {
    pub(super) tallies: Vec<T>,
    pub(super) start: Reading,
    /// When all was connected; the next reading is a moment later.
    pub(super) connected: Instant,
    pub(super) prepared: Reading,
    /// When the last thread was done; the last reading is a moment later.
    pub(super) done: Instant,
    pub(super) end: Reading,
}

impl<T> Outcome<T> {
    /// Seconds of the measured part.
    pub(super) fn seconds(&self) -> f64 {
        (self.done - self.prepared.at).as_secs_f64()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Prepare,
    Go,
    Release,
    Stop,
}

enum Event<T> {
    Prepared,
    Done(T, Instant),
    Failed(Failure),
}

/// Runs a workload on the plan's threads.
pub(super) fn drive<W: Workload>(
    plan: &Arc<Plan>,
    progress: &Arc<Progress>,
) -> Result<Outcome<W::Tally>, Failure> {
    raise_descriptors();
    let gate = Gate::new(&plan.route)?;
    let meter = Meter::new(&plan.pids, matches!(plan.work, Work::Idle { .. }))?;
    let (stage, _) = watch::channel(Stage::Prepare);
    let (events, inbox) = mpsc::channel();
    let start = meter.read()?;
    let count = plan.threads.min(plan.connections);
    let mut threads = Vec::with_capacity(count);
    for index in 0..count {
        let share = Share {
            plan: plan.clone(),
            progress: progress.clone(),
            thread: (index, count),
            gate: gate.clone(),
        };
        let (stage, events) = (stage.subscribe(), events.clone());
        let name = format!("load-{index}");
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || work::<W>(share, stage, &events));
        threads.push(thread?);
    }
    drop(events);
    let result = conduct(plan, progress, &meter, start, count, &stage, &inbox);
    stage.send_replace(if result.is_ok() {
        Stage::Release
    } else {
        Stage::Stop
    });
    for thread in threads {
        if thread.join().is_err() {
            return Err(failed("a thread of the load client panicked"));
        }
    }
    result
}

fn conduct<T>(
    plan: &Plan,
    progress: &Progress,
    meter: &Meter,
    start: Reading,
    count: usize,
    stage: &watch::Sender<Stage>,
    inbox: &mpsc::Receiver<Event<T>>,
) -> Result<Outcome<T>, Failure> {
    let deadline = start.at + Duration::from_secs_f64(plan.timeout);
    let next = || loop {
        if progress.stop.load(Ordering::Relaxed) {
            return Err(failed("interrupted"));
        }
        if Instant::now() > deadline {
            return Err(failed(format_args!("not done after {} s", plan.timeout)));
        }
        match inbox.recv_timeout(LOOK) {
            Ok(Event::Failed(failure)) => return Err(failure),
            Ok(event) => return Ok(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed("the load client's threads are gone"));
            }
        }
    };
    for _ in 0..count {
        next()?;
    }
    let connected = Instant::now();
    // What was opened may still cost something, such as a record in a log.
    thread::sleep(SETTLE);
    let prepared = meter.read()?;
    progress.running.store(true, Ordering::Relaxed);
    stage.send_replace(Stage::Go);
    let (mut tallies, mut done) = (Vec::with_capacity(count), prepared.at);
    while tallies.len() < count {
        if let Event::Done(tally, at) = next()? {
            tallies.push(tally);
            done = done.max(at);
        }
    }
    thread::sleep(SETTLE);
    Ok(Outcome {
        tallies,
        start,
        connected,
        prepared,
        done,
        end: meter.read()?,
    })
}

fn work<W: Workload>(
    share: Share,
    stage: watch::Receiver<Stage>,
    events: &mpsc::Sender<Event<W::Tally>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = events.send(Event::Failed(error.into()));
            return;
        }
    };
    LocalSet::new().block_on(&runtime, async {
        let mut stop = stage.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stage| *stage == Stage::Stop) => {}
            result = play::<W>(share, stage, events) => {
                if let Err(failure) = result {
                    let _ = events.send(Event::Failed(failure));
                }
            }
        }
        tokio::time::sleep(SETTLE).await;
    });
}

async fn play<W: Workload>(
    share: Share,
    mut stage: watch::Receiver<Stage>,
    events: &mpsc::Sender<Event<W::Tally>>,
) -> Result<(), Failure> {
    let mut ready = W::prepare(&share).await?;
    let _ = events.send(Event::Prepared);
    stage.wait_for(|stage| *stage == Stage::Go).await?;
    let tally = W::measure(&share, &mut ready).await?;
    let _ = events.send(Event::Done(tally, Instant::now()));
    stage.wait_for(|stage| *stage == Stage::Release).await?;
    Ok(())
}
