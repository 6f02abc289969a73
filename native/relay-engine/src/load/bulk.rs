//! Bytes in bulk, through one tunnel or many at once.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::drive::{Share, Workload, all, drive};
use super::path::{Link, Path};
use super::pattern::Pattern;
use super::plan::{Direction, Plan, Work};
use super::report::Report;
use super::{Failure, Progress, failed, usage};

/// What one tunnel has to do.
#[derive(Debug, Clone)]
struct Task {
    up: bool,
    bytes: u64,
    verify: bool,
    /// Hash of what comes down.
    expected: Option<[u8; 32]>,
    progress: Arc<Progress>,
}

impl Task {
    fn new(plan: &Plan, progress: &Arc<Progress>) -> Result<Self, Failure> {
        let Work::Bulk {
            direction,
            bytes,
            verify,
        } = plan.work
        else {
            return Err(usage("the plan moves no bytes"));
        };
        let up = direction == Direction::Up;
        let bytes = bytes.div_ceil(plan.tunnels() as u64);
        Ok(Self {
            up,
            bytes,
            verify,
            expected: (verify && !up).then(|| Pattern::digest(bytes)),
            progress: progress.clone(),
        })
    }
}

struct Bulk;

impl Workload for Bulk {
    type Ready = (Task, Vec<Link>, Vec<Path>);
    type Tally = ();

    async fn prepare(share: &Share) -> Result<Self::Ready, Failure> {
        let task = Task::new(&share.plan, &share.progress)?;
        let links = share.connect().await?;
        let paths = share.open(&links).await?;
        Ok((task, links, paths))
    }

    async fn measure(_: &Share, (task, _, paths): &mut Self::Ready) -> Result<(), Failure> {
        let paths = std::mem::take(paths);
        all(paths.into_iter().map(|path| {
            let task = task.clone();
            async move {
                if task.up {
                    up(path, &task).await
                } else {
                    down(path, &task).await
                }
            }
        }))
        .await?;
        Ok(())
    }
}

pub(super) fn run(
    plan: &Arc<Plan>,
    progress: &Arc<Progress>,
) -> Result<Map<String, Value>, Failure> {
    let task = Task::new(plan, progress)?;
    let bytes = task.bytes * plan.tunnels() as u64;
    let outcome = drive::<Bulk>(plan, progress)?;
    let gigabytes = bytes as f64 / 1e9;
    let mut report = Report::new(plan, &outcome);
    report.put("direction", if task.up { "up" } else { "down" });
    report.put("bytes", bytes);
    report.put("verified", task.verify);
    report.put("gbit_s", gigabytes * 8.0 / outcome.seconds());
    report.cost_per("gb", gigabytes);
    Ok(report.finish())
}

/// A transfer is over with its last byte, not with FIN: many gateways take a FIN of one side for the end of both.
async fn down(mut path: Path, task: &Task) -> Result<(), Failure> {
    let mut order = vec![b's'];
    order.extend_from_slice(&task.bytes.to_be_bytes());
    order.push(u8::from(task.verify));
    path.sender.send(&order).await?;
    let mut hash = Sha256::new();
    let mut received = 0;
    while received < task.bytes {
        let size = path.receiver.recv(|bytes| {
            if task.verify {
                hash.update(bytes);
            }
        });
        match size.await? {
            0 => break,
            size => {
                received += size as u64;
                task.progress.add(size as u64);
            }
        }
    }
    if received != task.bytes {
        return Err(failed(format_args!(
            "{received} bytes arrived instead of {}",
            task.bytes
        )));
    }
    if task
        .expected
        .is_some_and(|expected| expected != <[u8; 32]>::from(hash.finalize()))
    {
        return Err(failed(
            "the bytes that arrived are not those that were sent",
        ));
    }
    end(path, task).await
}

async fn up(mut path: Path, task: &Task) -> Result<(), Failure> {
    let mut order = vec![b'k'];
    order.extend_from_slice(&task.bytes.to_be_bytes());
    order.push(u8::from(task.verify));
    path.sender.send(&order).await?;
    let mut pattern = Pattern::new();
    let mut hash = Sha256::new();
    let mut rest = task.bytes;
    while rest > 0 {
        let sent = path.sender.send_some(rest, |bytes| {
            if task.verify {
                pattern.fill(bytes);
                hash.update(bytes);
            }
        });
        let sent = sent.await?;
        rest -= sent;
        task.progress.add(sent);
    }
    let mut due = task.bytes.to_be_bytes().to_vec();
    due.extend_from_slice(&if task.verify {
        hash.finalize().into()
    } else {
        [0; 32]
    });
    let mut answer = Vec::new();
    while answer.len() < due.len() {
        let more = within(path.receiver.recv(|bytes| answer.extend_from_slice(bytes))).await?;
        if more == 0 {
            break;
        }
    }
    if answer != due {
        return Err(failed("the origin did not take the bytes that were sent"));
    }
    end(path, task).await
}

/// Ends the tunnel: in good order where every byte is checked, else beside what is measured.
async fn end(path: Path, task: &Task) -> Result<(), Failure> {
    if task.verify {
        return path.end().await;
    }
    tokio::task::spawn_local(async move {
        // How a gateway ends a tunnel that has done its work is none of this load's business.
        let _ = path.end().await;
    });
    Ok(())
}

/// The answer follows the last byte closely, or never comes.
async fn within<T>(answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(Duration::from_secs(60), answer)
        .await
        .unwrap_or_else(|_| Err(failed("the origin does not answer")))
}
