//! A timer of the kernel, good to microseconds: the runtime's own know milliseconds only.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A timer that one task waits on.
#[derive(Debug)]
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// Makes a timer; must run inside a runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and `AsyncFd` owns it.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
        Ok(Self(timer?))
    }

    /// Waits until `moment`.
    pub async fn until(&self, moment: Instant) -> io::Result<()> {
        let wait = moment.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        let timespec =
            |time: Duration| Timespec::try_from(time).map_err(|_| io::ErrorKind::InvalidInput);
        let once = Itimerspec {
            it_interval: timespec(Duration::ZERO)?,
            it_value: timespec(wait)?,
        };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        // Setting the timer forgot an earlier expiry, and readiness is told by edges: there is nothing to read.
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}
