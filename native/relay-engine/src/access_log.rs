//! The access log: JSON lines, written by a thread of its own so that no worker ever waits for a disk or a pipe.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use nix::libc;
use serde::Serialize;

use crate::config::Log;

/// Lines that may wait for the thread.
const QUEUE: usize = 16 * 1024;
/// What comes within this after a line leaves with it: to wake the thread for each costs more than to write it.
const GATHER: Duration = Duration::from_millis(10);

/// One tunnel, or one refused request for a tunnel.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    /// When it ended, RFC 3339 in UTC.
    pub time: String,
    /// Protocol name.
    pub protocol: &'a str,
    /// HTTP version.
    pub http: &'a str,
    /// The client's address.
    pub client: SocketAddr,
    /// Who asked.
    pub principal: Option<&'a str>,
    /// `host:port` as asked for.
    pub target: &'a str,
    /// The address that was dialled.
    pub next_hop: Option<SocketAddr>,
    /// HTTP status of the answer.
    pub status: u16,
    /// `Proxy-Status` error of a refusal.
    pub error: Option<&'a str>,
    /// How the tunnel ended; for a refusal, why.
    pub end: &'a str,
    /// Payload bytes to the target.
    pub bytes_up: u64,
    /// Payload bytes to the client.
    pub bytes_down: u64,
    /// Datagrams to the target and to the client, of tunnels that carry such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datagrams_up: Option<u64>,
    /// The other way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datagrams_down: Option<u64>,
    /// Milliseconds from the request to the answer.
    pub setup_ms: f64,
    /// Milliseconds from the request to the end.
    pub duration_ms: f64,
}

/// Now, as the log writes it.
pub fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Milliseconds with three decimals.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// Where lines are queued. Clones share one thread; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// `None` on the channel asks the thread to end.
    lines: Option<SyncSender<Option<String>>>,
    lost: Arc<AtomicU64>,
}

impl AccessLog {
    /// Opens the log; the handle is the writing thread's. The error names the file.
    pub fn open(
        config: &Log,
        lost: Arc<AtomicU64>,
    ) -> Result<(Self, Option<JoinHandle<()>>), String> {
        let output: Box<dyn Write + Send> = match config.access.as_str() {
            "" => return Ok((Self { lines: None, lost }, None)),
            "-" => Box::new(io::stdout()),
            path => {
                Box::new(append_to(path).map_err(|fault| format!("log.access: {path}: {fault}"))?)
            }
        };
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("relay-log".into())
            .spawn(move || write(&receiver, BufWriter::new(output)))
            .map_err(|error| format!("log.access: no thread: {error}"))?;
        let log = Self {
            lines: Some(sender),
            lost,
        };
        Ok((log, Some(thread)))
    }

    /// Asks the thread to write what is queued and end.
    pub fn close(&self) {
        if let Some(lines) = &self.lines {
            let _ = lines.try_send(None);
        }
    }

    /// Queues a line; a line that finds no room is counted as lost.
    pub fn write(&self, record: &Record<'_>) {
        let Some(lines) = &self.lines else { return };
        let Ok(mut line) = serde_json::to_string(record) else {
            return;
        };
        line.push('\n');
        if lines.try_send(Some(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Opens a file or a pipe to append to. It never waits for a pipe's reader: a relay that waits here cannot be told to end.
fn append_to(path: &str) -> Result<File, String> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENXIO) => {
                "nobody reads this pipe: start its reader first (standard output is \"-\")".into()
            }
            _ => error.to_string(),
        })?;
    // The writing thread may wait, its queue is bounded.
    rustix::io::ioctl_fionbio(&file, false).map_err(|error| error.to_string())?;
    Ok(file)
}

fn write(lines: &Receiver<Option<String>>, mut output: BufWriter<Box<dyn Write + Send>>) {
    while let Ok(Some(line)) = lines.recv() {
        let _ = output.write_all(line.as_bytes());
        std::thread::sleep(GATHER);
        // Everything that waits leaves in one write.
        while let Ok(waiting) = lines.try_recv() {
            let Some(line) = waiting else {
                let _ = output.flush();
                return;
            };
            let _ = output.write_all(line.as_bytes());
        }
        let _ = output.flush();
    }
}
