//! Datagrams at an offered rate: how many arrive, and what each costs.

use std::cell::{Cell, RefCell};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value};
use tokio::time::{timeout, timeout_at};

use super::datagram_path::{DatagramPath, DatagramPathReceiver, DatagramPathSender};
use super::datagrams::{Counts, Header, Order, Pace, Window};
use super::drive::{Share, Workload, all, drive};
use super::path::Link;
use super::plan::{Course, Plan, Work};
use super::report::{Report, histogram, nanoseconds};
use super::{Failure, Progress, failed, usage};
use crate::sys::timer::Timer;

/// How long after the last datagram others are waited for.
const GRACE: Duration = Duration::from_millis(500);
/// How long an answer is waited for before its question is asked again, and how often.
const ANSWER: Duration = Duration::from_millis(100);
const QUESTIONS: usize = 50;

/// What a thread found out, tunnels taken together.
struct Tally {
    /// Datagrams that were due.
    offered: u64,
    /// Those that left.
    sent: u64,
    /// Those that found no room in the client itself, on their way out or in.
    client_dropped: u64,
    received: u64,
    reordered: u64,
    duplicates: u64,
    /// Times until datagrams were back.
    answers: Histogram<u64>,
    /// How late the client itself was.
    late: Histogram<u64>,
    /// What the origin's kernel had no room for, as the origin's whole.
    origin_dropped: u64,
}

impl Tally {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            offered: 0,
            sent: 0,
            client_dropped: 0,
            received: 0,
            reordered: 0,
            duplicates: 0,
            answers: histogram()?,
            late: histogram()?,
            origin_dropped: 0,
        })
    }

    fn came(&mut self, window: &Window) {
        self.received += window.received;
        self.reordered += window.reordered;
        self.duplicates += window.duplicates;
        self.client_dropped += window.unread;
    }
}

/// A tunnel, and what the origin wants to hear of it.
struct Lane {
    path: DatagramPath,
    token: u64,
    /// As the origin told before anything was sent.
    dropped: u64,
}

#[derive(Debug, Clone, Copy)]
struct Task {
    course: Course,
    run: u32,
    size: usize,
    /// Of the thread: datagrams a second, and all.
    rate: f64,
    count: u64,
}

impl Task {
    fn new(share: &Share, tunnels: usize) -> Result<Self, Failure> {
        let Work::Udp {
            direction,
            seconds,
            rate,
            size,
        } = share.plan.work
        else {
            return Err(usage("the plan sends no datagrams"));
        };
        let rate = rate * tunnels as f64 / share.plan.tunnels() as f64;
        Ok(Self {
            course: direction,
            run: RandomState::new().hash_one(0) as u32,
            size,
            rate,
            count: ((seconds * rate) as u64).max(1),
        })
    }
}

struct Udp;

impl Workload for Udp {
    type Ready = (Vec<Link>, Vec<Lane>);
    type Tally = Tally;

    async fn prepare(share: &Share) -> Result<Self::Ready, Failure> {
        let links = share.connect().await?;
        let paths = share.open_datagrams(&links).await?;
        let mut lanes = Vec::with_capacity(paths.len());
        for mut path in paths {
            let hello = [b'h'; 9];
            let answer = ask(&mut path, &hello, b'h').await?;
            let token = answer.get(1..9).and_then(|it| it.try_into().ok());
            let token = token.ok_or_else(|| failed("the origin's greeting is too short"))?;
            let dropped = counts(&mut path, 0).await?.dropped;
            lanes.push(Lane {
                path,
                token: u64::from_be_bytes(token),
                dropped,
            });
        }
        Ok((links, lanes))
    }

    async fn measure(share: &Share, (_, lanes): &mut Self::Ready) -> Result<Tally, Failure> {
        let task = Task::new(share, lanes.len())?;
        let lanes = std::mem::take(lanes);
        match task.course {
            Course::Up | Course::Echo => out(share, task, lanes).await,
            Course::Down => down(share, task, lanes).await,
        }
    }
}

/// Asks the origin until it answers.
async fn ask(path: &mut DatagramPath, question: &[u8], kind: u8) -> Result<Vec<u8>, Failure> {
    for _ in 0..QUESTIONS {
        path.sender.send(&[question]).await?;
        let mut answer = Vec::new();
        let receive = async {
            while answer.is_empty() {
                path.receiver
                    .receive(|datagram| {
                        if datagram.first() == Some(&kind) {
                            answer = datagram.to_vec();
                        }
                    })
                    .await?;
            }
            Ok::<_, Failure>(())
        };
        if let Ok(result) = timeout(ANSWER, receive).await {
            result?;
            return Ok(answer);
        }
    }
    Err(failed("the origin does not answer to datagrams"))
}

/// What the origin knows of a run.
async fn counts(path: &mut DatagramPath, run: u32) -> Result<Counts, Failure> {
    let mut question = Counts {
        run,
        ..Counts::default()
    }
    .bytes();
    question[0] = b'q';
    let answer = ask(path, &question, b'r').await?;
    Counts::read(&answer).ok_or_else(|| failed("the origin's counts are too short"))
}

/// Sends in all tunnels by the timetable; what comes back is timed.
async fn out(share: &Share, task: Task, lanes: Vec<Lane>) -> Result<Tally, Failure> {
    let mut tally = Tally::new()?;
    let before = lanes.iter().map(|lane| lane.dropped).max().unwrap_or(0);
    let start = Instant::now() + Duration::from_millis(1);
    let pace = Pace::new(start, task.rate, task.count);
    let limit = (pace.end() + GRACE).into();
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for lane in lanes {
        senders.push((lane.path.sender, 0));
        receivers.push(lane.path.receiver);
    }
    let back = task.course == Course::Echo;
    let answers = Rc::new(RefCell::new(histogram()?));
    let returning = receivers.into_iter().map(|mut receiver| {
        let (answers, progress) = (answers.clone(), share.progress.clone());
        async move {
            let mut window = Window::default();
            if back {
                let receive = echoes(
                    &mut receiver,
                    task.run,
                    start,
                    &answers,
                    &mut window,
                    &progress,
                );
                if let Ok(result) = timeout_at(limit, receive).await {
                    result?;
                }
            }
            window.unread = receiver.dropped();
            Ok((receiver, window))
        }
    });
    let sending = send(task, pace, &mut senders, &mut tally, &share.progress);
    let ((), returned) = tokio::try_join!(sending, all_in_order(returning))?;
    if back {
        for (_, window) in &returned {
            tally.came(window);
        }
        std::mem::swap(&mut tally.answers, &mut *answers.borrow_mut());
    }
    for ((sender, sent), (receiver, _)) in senders.into_iter().zip(returned) {
        let mut path = DatagramPath { sender, receiver };
        let mut last = counts(&mut path, task.run).await?;
        // The last ones may be on their way.
        let patience = Instant::now() + GRACE;
        while !back && last.received < sent && Instant::now() < patience {
            tokio::time::sleep(ANSWER / 4).await;
            last = counts(&mut path, task.run).await?;
        }
        if !back {
            tally.received += last.received;
            tally.reordered += last.reordered;
            tally.duplicates += last.duplicates;
        }
        tally.origin_dropped = tally
            .origin_dropped
            .max(last.dropped - before.min(last.dropped));
        path.end().await;
    }
    Ok(tally)
}

/// As [`all`], in the order that they were given.
async fn all_in_order<T: 'static>(
    tasks: impl Iterator<Item = impl Future<Output = Result<T, Failure>> + 'static>,
) -> Result<Vec<T>, Failure> {
    let numbered = tasks.enumerate();
    let mut results =
        all(numbered.map(|(index, task)| async move { Ok((index, task.await?)) })).await?;
    results.sort_unstable_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// Sends what is due when it is due, tunnels in turn.
async fn send(
    task: Task,
    mut pace: Pace,
    senders: &mut [(DatagramPathSender, u64)],
    tally: &mut Tally,
    progress: &Arc<Progress>,
) -> Result<(), Failure> {
    let timer = Timer::new()?;
    let kind = if task.course == Course::Echo {
        b'e'
    } else {
        b'k'
    };
    let mut batch: Vec<Vec<u8>> = Vec::new();
    let mut turn = 0;
    let lanes = senders.len();
    while !pace.is_over() {
        timer.until(pace.wake(Instant::now())).await?;
        let now = Instant::now();
        let mut due = pace.take(now);
        let count = due.end - due.start;
        if count > 0 {
            let late = now.saturating_duration_since(pace.start() + pace.leaves(due.start));
            tally.late.saturating_record(nanoseconds(late));
        }
        let (each, more) = (count as usize / lanes, count as usize % lanes);
        for index in 0..lanes.min(count as usize) {
            let (sender, number) = &mut senders[(turn + index) % lanes];
            let size = each + usize::from(index < more);
            while batch.len() < size {
                batch.push(vec![b'.'; task.size]);
            }
            for ((datagram, number), due) in batch[..size].iter_mut().zip(*number..).zip(&mut due) {
                let header = Header {
                    kind,
                    run: task.run,
                    number,
                    due: nanoseconds(pace.leaves(due)),
                };
                header.put(datagram);
            }
            let sent = sender.send(&batch[..size]).await?;
            if sent.oversize > 0 {
                return Err(failed(format_args!(
                    "datagrams of {} bytes do not fit the way to the gateway, which holds {}",
                    task.size,
                    sender.longest()
                )));
            }
            *number += sent.sent as u64;
            tally.sent += sent.sent as u64;
            tally.client_dropped += sent.crowded_out as u64;
        }
        turn = (turn + more) % lanes;
        if task.course == Course::Up {
            progress.add(count);
        }
        // The sockets must have their turn even if the timetable cannot be kept.
        tokio::task::yield_now().await;
    }
    tally.offered += task.count;
    Ok(())
}

/// Times what comes back, for as long as it is asked to.
async fn echoes(
    receiver: &mut DatagramPathReceiver,
    run: u32,
    start: Instant,
    answers: &RefCell<Histogram<u64>>,
    window: &mut Window,
    progress: &Progress,
) -> Result<(), Failure> {
    loop {
        let mut count = 0;
        let came = receiver.receive(|datagram| {
            if let Some(header) = Header::read(datagram)
                && (header.kind, header.run) == (b'e', run)
            {
                window.count(header.number);
                count += 1;
                let now = nanoseconds(start.elapsed());
                let time = now.saturating_sub(header.due);
                answers.borrow_mut().saturating_record(time);
            }
        });
        came.await?;
        progress.add(count);
    }
}

/// Has the origin send in all tunnels.
async fn down(share: &Share, task: Task, lanes: Vec<Lane>) -> Result<Tally, Failure> {
    let tunnels = lanes.len() as u64;
    let received = all(lanes.into_iter().zip(0..).map(|(mut lane, index)| {
        let progress = share.progress.clone();
        async move {
            let order = Order {
                run: task.run,
                token: lane.token,
                rate: task.rate / tunnels as f64,
                size: task.size as u32,
                count: (task.count + tunnels - 1 - index) / tunnels,
            };
            let mut window = Window::default();
            let end = Pace::new(Instant::now(), order.rate, order.count).end();
            let receive = stream(&mut lane.path, &order, &mut window, &progress);
            if let Ok(result) = timeout_at((end + GRACE).into(), receive).await {
                result?;
            }
            window.unread = lane.path.receiver.dropped();
            let counts = counts(&mut lane.path, task.run).await?;
            lane.path.end().await;
            Ok((order.count, window, counts, lane.dropped))
        }
    }));
    let mut tally = Tally::new()?;
    for (count, window, counts, before) in received.await? {
        tally.offered += count;
        tally.sent += counts.sent;
        tally.came(&window);
        tally.origin_dropped = tally
            .origin_dropped
            .max(counts.dropped.saturating_sub(before));
    }
    Ok(tally)
}

/// Orders a stream and counts it, up to its last datagram.
async fn stream(
    path: &mut DatagramPath,
    order: &Order,
    window: &mut Window,
    progress: &Progress,
) -> Result<(), Failure> {
    let begun = Cell::new(false);
    while window.received < order.count {
        let before = window.received;
        let receive = path.receiver.receive(|datagram| match datagram.first() {
            Some(b'd') => {
                if let Some(header) = Header::read(datagram).filter(|it| it.run == order.run) {
                    window.count(header.number);
                }
            }
            Some(b'a') => begun.set(true),
            _ => {}
        });
        if begun.get() {
            receive.await?;
        } else {
            path.sender.send(&[order.bytes()]).await?;
            if let Ok(received) = timeout(ANSWER, receive).await {
                received?;
            }
            if window.received > 0 {
                begun.set(true);
            }
        }
        progress.add(window.received - before);
    }
    Ok(())
}

pub(super) fn run(
    plan: &Arc<Plan>,
    progress: &Arc<Progress>,
) -> Result<Map<String, Value>, Failure> {
    let Work::Udp {
        direction,
        seconds,
        rate,
        size,
    } = plan.work
    else {
        return Err(usage("the plan sends no datagrams"));
    };
    let before = host_dropped();
    let outcome = drive::<Udp>(plan, progress)?;
    let dropped = host_dropped().saturating_sub(before);
    let mut all = Tally::new()?;
    for tally in &outcome.tallies {
        all.offered += tally.offered;
        all.sent += tally.sent;
        all.client_dropped += tally.client_dropped;
        all.received += tally.received;
        all.reordered += tally.reordered;
        all.duplicates += tally.duplicates;
        all.answers.add(&tally.answers)?;
        all.late.add(&tally.late)?;
        all.origin_dropped = all.origin_dropped.max(tally.origin_dropped);
    }
    let lost = all.sent.saturating_sub(all.received);
    let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    let mut report = Report::new(plan, &outcome);
    report.put("direction", direction);
    report.put("size", size);
    report.put("offered_s", rate);
    report.put("offered", all.offered);
    report.put("sent", all.sent);
    report.put(
        "unsent_percent",
        percent(all.offered.saturating_sub(all.sent), all.offered),
    );
    report.put("received", all.received);
    report.put("lost", lost);
    report.put("loss_percent", percent(lost, all.sent));
    report.put("reordered", all.reordered);
    report.put("duplicates", all.duplicates);
    report.put("client_dropped", all.client_dropped);
    report.put("origin_dropped", all.origin_dropped);
    report.put("host_dropped", dropped);
    report.put("received_s", all.received as f64 / seconds);
    report.put(
        "gbit_s",
        (all.received * size as u64) as f64 * 8e-9 / seconds,
    );
    let mut carried = all.sent;
    if direction == Course::Echo {
        // There and back.
        carried += all.received;
        report.distribution("latency_us", &all.answers);
    }
    report.distribution("client_late_us", &all.late);
    report.cost_per("datagram", carried as f64);
    Ok(report.finish())
}

/// Messages over IPv4, each perhaps of many datagrams, that this host's kernel had no room for at any socket.
fn host_dropped() -> u64 {
    let text = fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter(|line| line.starts_with("Udp: "));
    let (names, values) = (
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
    );
    let found = names.split(' ').zip(values.split(' '));
    found
        .filter(|(name, _)| *name == "RcvbufErrors")
        .find_map(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}
