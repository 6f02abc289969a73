//! Answer times at an offered rate.
//!
//! Messages leave by a timetable that does not wait for answers, and each is timed from the moment it was due: a gateway that
//! stalls delays all that were due meanwhile, and every one of them counts (no coordinated omission).

use std::cell::Cell;
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
        let due: Vec<Rc<Due>> = paths.iter().map(|_| Rc::default()).collect();
        let tunnels = (0..).zip(std::mem::take(paths)).map(|(tunnel, path)| {
            let (due, progress) = (due[tunnel as usize].clone(), share.progress.clone());
            exchange(path, due, table, tunnel, size, progress)
        });
        let (late, answers) = tokio::try_join!(pace(&table, &due), all(tunnels))?;
        let mut tally = Tally {
            answers: histogram()?,
            late,
            unanswered: 0,
        };
        for (answers, unanswered) in answers {
            tally.answers.add(&answers)?;
            tally.unanswered += unanswered;
        }
        Ok(tally)
    }
}

/// All messages of one tunnel: the times of its answers, and how many never came.
async fn exchange(
    mut path: Path,
    due: Rc<Due>,
    table: Timetable,
    tunnel: u64,
    size: usize,
    progress: Arc<Progress>,
) -> Result<(Histogram<u64>, u64), Failure> {
    let send = send(&mut path.sender, due, table, tunnel, size);
    let receive = receive(&mut path.receiver, table, tunnel, size, progress);
    let ((), (answers, unanswered)) = tokio::try_join!(send, receive)?;
    if unanswered == 0 {
        path.end().await?;
    }
    Ok((answers, unanswered))
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

async fn send(
    sender: &mut PathSender,
    due: Rc<Due>,
    table: Timetable,
    tunnel: u64,
    size: usize,
) -> Result<(), Failure> {
    let message = vec![b'.'; size];
    let mut sent = 0;
    let send = async {
        while sent < table.of(tunnel) {
            if sent == due.count.get() {
                due.more.notified().await;
                continue;
            }
            sender.send(&message).await?;
            sent += 1;
        }
        Ok(())
    };
    let limit = table.due(table.messages) + GRACE;
    // What could not be sent is unanswered, which the other direction tells.
    tokio::time::timeout_at(limit.into(), send)
        .await
        .unwrap_or(Ok(()))
}

/// Times of a tunnel's answers, and how many never came: those count as they stand.
async fn receive(
    receiver: &mut PathReceiver,
    table: Timetable,
    tunnel: u64,
    size: usize,
    progress: Arc<Progress>,
) -> Result<(Histogram<u64>, u64), Failure> {
    let mut answers = histogram()?;
    let (mut bytes, mut answered) = (0u64, 0u64);
    let expected = table.of(tunnel);
    let since = |answered: u64| {
        let due = table.due(answered * table.tunnels + tunnel);
        nanoseconds(Instant::now().saturating_duration_since(due))
    };
    let limit = table.due(table.messages) + GRACE;
    let receive = async {
        while answered < expected {
            match receiver.recv(|_| {}).await? {
                0 => return Err(failed("the origin ended a tunnel before its answers")),
                more => bytes += more as u64,
            }
            while answered < bytes / size as u64 {
                answers.saturating_record(since(answered));
                answered += 1;
                progress.add(1);
            }
        }
        Ok(())
    };
    if let Ok(result) = tokio::time::timeout_at(limit.into(), receive).await {
        result?;
    }
    for missing in answered..expected {
        answers.saturating_record(since(missing));
    }
    Ok((answers, expected - answered))
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
