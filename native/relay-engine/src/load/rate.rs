//! Tunnels a second: open, one round trip, close.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value};

use super::drive::{Share, Workload, all, drive};
use super::path::Link;
use super::plan::{Plan, Work};
use super::report::{Report, histogram, nanoseconds};
use super::{Failure, Progress, usage};

/// What goes to the origin and comes back.
const MESSAGE: &[u8; 8] = b"go there";

struct Rate;

impl Workload for Rate {
    type Ready = Vec<Link>;
    type Tally = Histogram<u64>;

    async fn prepare(share: &Share) -> Result<Self::Ready, Failure> {
        share.connect().await
    }

    async fn measure(share: &Share, links: &mut Self::Ready) -> Result<Self::Tally, Failure> {
        let Work::Rate { seconds } = share.plan.work else {
            return Err(usage("the plan opens no tunnels"));
        };
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let streams = links
            .iter()
            .flat_map(|link| std::iter::repeat_n(link, share.plan.streams));
        let found = all(streams.map(|link| repeat(link.clone(), until, share.progress.clone())));
        let mut took = histogram()?;
        for times in found.await? {
            for time in times {
                took.saturating_record(time);
            }
        }
        Ok(took)
    }
}

/// One tunnel after another; what each took, in nanoseconds.
async fn repeat(link: Link, until: Instant, progress: Arc<Progress>) -> Result<Vec<u64>, Failure> {
    let mut times = Vec::new();
    loop {
        let begun = Instant::now();
        if begun >= until {
            return Ok(times);
        }
        let mut path = link.open().await?;
        path.sender.send(&[&b"e"[..], MESSAGE].concat()).await?;
        path.receiver.take(MESSAGE.len()).await?;
        path.end().await?;
        times.push(nanoseconds(begun.elapsed()));
        progress.add(1);
    }
}

pub(super) fn run(
    plan: &Arc<Plan>,
    progress: &Arc<Progress>,
) -> Result<Map<String, Value>, Failure> {
    let outcome = drive::<Rate>(plan, progress)?;
    let mut took = histogram()?;
    for tally in &outcome.tallies {
        took.add(tally)?;
    }
    let mut report = Report::new(plan, &outcome);
    report.put("opened", took.len());
    report.put("tunnels_s", took.len() as f64 / outcome.seconds());
    report.distribution("latency_us", &took);
    report.cost_per("tunnel", took.len() as f64);
    Ok(report.finish())
}
