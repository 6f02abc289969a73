//! CPU time and memory of processes.

use std::fs;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::{Failure, failed};

/// CPU time and memory at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// When.
    pub at: Instant,
    /// User and system time of the client.
    pub client: Duration,
    /// User and system time of the gateway, if it is known.
    pub relay: Option<Duration>,
    /// Resident bytes of the gateway: now, and the most since the meter was made.
    pub resident: Option<(u64, u64)>,
    /// Proportional set size of the gateway in bytes, if it was asked for.
    pub pss: Option<u64>,
}

/// Reads what the gateway's processes and our own have used.
#[derive(Debug)]
pub(super) struct Meter {
    clocks: Vec<ClockId>,
    pids: Vec<i32>,
    pss: bool,
}

impl Meter {
    /// Finds the processes; `pss` asks for their proportional set size, which the kernel walks all pages for.
    pub(super) fn new(pids: &[i32], pss: bool) -> Result<Self, Failure> {
        let clock = |pid: &i32| {
            clock_getcpuclockid(Pid::from_raw(*pid))
                .map_err(|error| failed(format_args!("process {pid}: {}", error.desc())))
        };
        let clocks = pids.iter().map(clock).collect::<Result<_, _>>()?;
        for pid in pids {
            // The peak begins anew, where the kernel allows it.
            let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
        Ok(Self {
            clocks,
            pids: pids.to_vec(),
            pss: pss && !pids.is_empty(),
        })
    }

    pub(super) fn read(&self) -> Result<Reading, Failure> {
        let mut relay = Duration::ZERO;
        let (mut now, mut most, mut pss) = (0, 0, 0);
        for (pid, clock) in self.pids.iter().zip(&self.clocks) {
            let time =
                clock_gettime(*clock).map_err(|_| failed(format_args!("process {pid} ended")))?;
            relay += Duration::from(time);
            let path = format!("/proc/{pid}/status");
            now += field(&path, "VmRSS:")?;
            most += field(&path, "VmHWM:")?;
            if self.pss {
                pss += field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")?;
            }
        }
        let known = !self.pids.is_empty();
        Ok(Reading {
            at: Instant::now(),
            client: clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into(),
            relay: known.then_some(relay),
            resident: known.then_some((now, most)),
            pss: self.pss.then_some(pss),
        })
    }
}

/// A field in KiB, as bytes.
fn field(path: &str, name: &str) -> Result<u64, Failure> {
    let text = fs::read_to_string(path).map_err(|error| failed(format_args!("{path}: {error}")))?;
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| failed(format_args!("{path}: has no {name}")))
}

/// Lets this process have as many descriptors as it may.
pub(super) fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Fewer descriptors do for most runs.
    let _ = setrlimit(Resource::Nofile, limit);
}
