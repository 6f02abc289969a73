//! CPU time and memory of a process, from /proc.

use std::fs;

use crate::options::{Failure, failed};

/// User and system seconds that `process` (a number, or `self`) has used.
pub fn cpu_seconds(process: &str) -> Result<f64, Failure> {
    let path = format!("/proc/{process}/stat");
    let stat =
        fs::read_to_string(&path).map_err(|error| failed(format_args!("{path}: {error}")))?;
    // Behind the name, which may hold anything, user and system ticks are fields 14 and 15 of the whole line.
    let ticks = stat.rsplit_once(')').and_then(|(_, rest)| {
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let user: u64 = fields.get(11)?.parse().ok()?;
        let system: u64 = fields.get(12)?.parse().ok()?;
        Some(user + system)
    });
    let ticks = ticks.ok_or_else(|| failed(format_args!("{path}: not understood")))?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Resident bytes of `process`: now, and the most since [`forget_peak`].
pub fn resident(process: &str) -> Result<(u64, u64), Failure> {
    let path = format!("/proc/{process}/status");
    let status =
        fs::read_to_string(&path).map_err(|error| failed(format_args!("{path}: {error}")))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    field("VmRSS:")
        .zip(field("VmHWM:"))
        .ok_or_else(|| failed(format_args!("{path}: not understood")))
}

/// Lets the peak of [`resident`] begin anew, where the kernel allows it.
pub fn forget_peak(process: &str) {
    let _ = fs::write(format!("/proc/{process}/clear_refs"), "5");
}
