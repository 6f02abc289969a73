//! Answer times at an offered rate.
//!
//! Messages leave by a timetable that does not wait for answers, and each is timed from the moment it was due: a gateway that
//! stalls delays all that were due meanwhile, and every one of them counts (no coordinated omission).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value};
use tokio::sync::Notify;

use super::drive::{Share, Workload, all, drive};

use super::path::{Link, Path, PathReceiver, PathSender};
use super::plan::{Plan, Work};
use super::report::{Report, histogram, nanoseconds};
use super::{Failure, Progress, failed, usage};
use crate::sys::timer::Timer;

/// How long after the last message answers are waited for.
const GRACE: Duration = Duration::from_secs(5);

/// When the messages of one thread are due.
#[derive(Debug, Clone, Copy)]
struct Timetable {
    start: Instant,
    interval: f64,
    /// Messages of the thread.
    messages: u64,
    tunnels: u64,
}

impl Timetable {
    fn due(&self, message: u64) -> Instant {
        self.start + Duration::from_secs_f64(message as f64 * self.interval)
    }

    /// Messages of one tunnel: they take turns.
    fn of(&self, tunnel: u64) -> u64 {
        (self.messages + self.tunnels - 1 - tunnel) / self.tunnels
    }
}

/// How many messages of a tunnel are due so far.
#[derive(Debug, Default)]
struct Due {
    count: Cell<u64>,
    more: Notify,
}

/// What a thread found out.
struct Tally {
    answers: Histogram<u64>,
    /// How late the client itself was.
    late: Histogram<u64>,
    unanswered: u64,
}

struct Latency;

impl Workload for Latency {
    type Ready = (Vec<Link>, Vec<Path>);
    type Tally = Tally;

    async fn prepare(share: &Share) -> Result<Self::Ready, Failure> {
        let links = share.connect().await?;
        let mut paths = share.open(&links).await?;
        for path in &mut paths {
            path.sender.send(b"e?").await?;
            path.receiver.take(1).await?;
        }
        Ok((links, paths))
    }

    async fn measure(share: &Share, (_, paths): &mut Self::Ready) -> Result<Tally, Failure> {
        let Work::Latency {
            seconds,
            rate,
            size,
        } = share.plan.work
        else {
            return Err(usage("the plan sends no messages"));
        };
        let mine = rate * paths.len() as f64 / share.plan.tunnels() as f64;
        let table = Timetable {
            start: Instant::now() + Duration::from_millis(1),
            interval: 1.0 / mine,
            messages: ((seconds * mine) as u64).max(1),
            tunnels: paths.len() as u64,
        };
        let answers = Rc::new(RefCell::new(histogram()?));
        let due: Vec<Rc<Due>> = paths.iter().map(|_| Rc::default()).collect();
        let lanes = (0..).zip(&due).map(|(tunnel, due)| Lane {
            tunnel,
            table,
            size,
            due: due.clone(),
            answers: answers.clone(),
            progress: share.progress.clone(),
        });
        let exchanges = lanes
            .zip(std::mem::take(paths))
            .map(|(lane, path)| lane.exchange(path));
        let (late, unanswered) = tokio::try_join!(pace(&table, &due), all(exchanges))?;
        Ok(Tally {
            answers: answers.replace(Histogram::new(1)?),
            late,
            unanswered: unanswered.into_iter().sum(),
        })
    }
}

/// One tunnel's part in the timetable.
struct Lane {
    tunnel: u64,
    table: Timetable,
    size: usize,
    due: Rc<Due>,
    /// Of all tunnels of the thread.
    answers: Rc<RefCell<Histogram<u64>>>,
    progress: Arc<Progress>,
}

impl Lane {
    /// All messages of the tunnel; how many were never answered.
    async fn exchange(self, mut path: Path) -> Result<u64, Failure> {
        let send = self.send(&mut path.sender);
        let receive = self.receive(&mut path.receiver);
        let ((), unanswered) = tokio::try_join!(send, receive)?;
        if unanswered == 0 {
            path.end().await?;
        }
        Ok(unanswered)
    }

    /// After this nothing is waited for.
    fn limit(&self) -> tokio::time::Instant {
        (self.table.due(self.table.messages) + GRACE).into()
    }

    async fn send(&self, sender: &mut PathSender) -> Result<(), Failure> {
        let message = vec![b'.'; self.size];
        let mut sent = 0;
        let send = async {
            while sent < self.table.of(self.tunnel) {
                if sent == self.due.count.get() {
                    self.due.more.notified().await;
                    continue;
                }
                sender.send(&message).await?;
                sent += 1;
            }
            Ok(())
        };
        // What could not be sent is unanswered, which the other direction tells.
        tokio::time::timeout_at(self.limit(), send)
            .await
            .unwrap_or(Ok(()))
    }

    /// Times the answers; how many never came, which count as they stand.
    async fn receive(&self, receiver: &mut PathReceiver) -> Result<u64, Failure> {
        let (mut bytes, mut answered) = (0u64, 0u64);
        let expected = self.table.of(self.tunnel);
        let record = |message: u64| {
            let due = self.table.due(message * self.table.tunnels + self.tunnel);
            let time = Instant::now().saturating_duration_since(due);
            self.answers
                .borrow_mut()
                .saturating_record(nanoseconds(time));
        };
        let receive = async {
            while answered < expected {
                match receiver.recv(|_| {}).await? {
                    0 => return Err(failed("the origin ended a tunnel before its answers")),
                    more => bytes += more as u64,
                }
                while answered < bytes / self.size as u64 {
                    record(answered);
                    answered += 1;
                    self.progress.add(1);
                }
            }
            Ok(())
        };
        if let Ok(result) = tokio::time::timeout_at(self.limit(), receive).await {
            result?;
        }
        (answered..expected).for_each(record);
        Ok(expected - answered)
    }
}

/// Lets messages go when they are due; how late that was.
async fn pace(table: &Timetable, due: &[Rc<Due>]) -> Result<Histogram<u64>, Failure> {
    let timer = Timer::new()?;
    let mut late = histogram()?;
    let mut next = 0;
    while next < table.messages {
        timer.until(table.due(next)).await?;
        let now = Instant::now();
        while next < table.messages && table.due(next) <= now {
            late.saturating_record(nanoseconds(now - table.due(next)));
            let tunnel = &due[(next % table.tunnels) as usize];
            tunnel.count.set(tunnel.count.get() + 1);
            tunnel.more.notify_one();
            next += 1;
        }
        if next < table.messages && table.due(next) <= Instant::now() {
            // The sockets must have their turn even if the timetable cannot be kept.
            tokio::task::yield_now().await;
        }
    }
    Ok(late)
}

pub(super) fn run(
    plan: &Arc<Plan>,
    progress: &Arc<Progress>,
) -> Result<Map<String, Value>, Failure> {
    let Work::Latency {
        seconds,
        rate,
        size,
    } = plan.work
    else {
        return Err(usage("the plan sends no messages"));
    };
    let outcome = drive::<Latency>(plan, progress)?;
    let (mut answers, mut late, mut unanswered) = (histogram()?, histogram()?, 0);
    for tally in &outcome.tallies {
        answers.add(&tally.answers)?;
        late.add(&tally.late)?;
        unanswered += tally.unanswered;
    }
    let mut report = Report::new(plan, &outcome);
    report.put("offered_s", rate);
    report.put("size", size);
    report.put("messages", answers.len());
    report.put("unanswered", unanswered);
    let answered = answers.len() - unanswered;
    report.put(
        "answered_s",
        answered as f64 / outcome.seconds().max(seconds),
    );
    report.distribution("latency_us", &answers);
    report.distribution("client_late_us", &late);
    report.cost_per("message", answers.len() as f64);
    Ok(report.finish())
}
