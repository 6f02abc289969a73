//! Tunnels that do nothing: what each costs in memory.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::drive::{Share, Workload, all, drive};
use super::path::{Link, Path};
use super::plan::{Plan, Work};
use super::report::Report;
use super::{Failure, Progress, usage};
use crate::config::Http;

struct Idle;

impl Workload for Idle {
    type Ready = (Vec<Link>, Vec<Path>);
    type Tally = usize;

    async fn prepare(share: &Share) -> Result<Self::Ready, Failure> {
        Ok((share.connect().await?, Vec::new()))
    }

    async fn measure(share: &Share, (links, open): &mut Self::Ready) -> Result<usize, Failure> {
        let Work::Idle { hold } = share.plan.work else {
            return Err(usage("the plan leaves no tunnels idle"));
        };
        let paths = share.open(links).await?;
        // One round trip each: an answer alone does not show that the tunnel works.
        let tried = paths.into_iter().map(|mut path| {
            let progress = share.progress.clone();
            async move {
                path.sender.send(b"e?").await?;
                path.receiver.take(1).await?;
                progress.add(1);
                Ok(path)
            }
        });
        *open = all(tried).await?;
        tokio::time::sleep(Duration::from_secs_f64(hold)).await;
        Ok(open.len())
    }
}

pub(super) fn run(
    plan: &Arc<Plan>,
    progress: &Arc<Progress>,
) -> Result<Map<String, Value>, Failure> {
    let outcome = drive::<Idle>(plan, progress)?;
    let opened: usize = outcome.tallies.iter().sum();
    let grown = |from: Option<u64>, to: Option<u64>, by: usize| {
        Some((to? as f64 - from? as f64) / by.max(1) as f64)
    };
    let (start, prepared, end) = (&outcome.start, &outcome.prepared, &outcome.end);
    let mut report = Report::new(plan, &outcome);
    report.put("opened", opened);
    report.put("relay_pss_start", start.pss);
    report.put("relay_pss_connected", prepared.pss);
    report.put("relay_pss_end", end.pss);
    // Over HTTP/1.1 a tunnel is its connection.
    let shared = plan.route.http.is_some_and(|it| it.http() != Http::H1);
    let connected = prepared.pss.filter(|_| shared);
    report.put(
        "pss_per_connection",
        grown(start.pss, connected, plan.connections),
    );
    report.put("pss_per_tunnel", grown(prepared.pss, end.pss, opened));
    Ok(report.finish())
}
