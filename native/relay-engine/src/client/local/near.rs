//! What the two sides of an end know of each other.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::client::Cut;

/// Why a tunnel ended before its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The proxy or the target broke it off, or the connection is lost.
    #[error("the tunnel was cut off")]
    Reset,
    /// The proxy sent what its protocol does not allow.
    #[error("{0}")]
    Malformed(String),
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

impl From<Cut> for Why {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Reset => Self::Reset,
            Cut::Malformed(_) => Self::Malformed(cut.to_string()),
        }
    }
}

/// How a tunnel fares, for whoever has its end.
#[derive(Debug, Default)]
pub struct End {
    finished: AtomicBool,
    why: OnceLock<Why>,
    sent_dropped: AtomicU64,
    received_dropped: AtomicU64,
}

impl End {
    /// Why reading ends. `None`: it was a clean end, or is none yet.
    #[must_use]
    pub fn fault(&self) -> Option<&Why> {
        if self.finished.load(Ordering::Acquire) {
            return None;
        }
        self.why.get()
    }

    /// Why the tunnel as a whole ended, even if the target's direction had ended cleanly before.
    #[must_use]
    pub fn cut(&self) -> Option<&Why> {
        self.why.get()
    }

    /// Datagrams that were dropped: (to the target, from the target).
    #[must_use]
    pub fn dropped(&self) -> (u64, u64) {
        (
            self.sent_dropped.load(Ordering::Relaxed),
            self.received_dropped.load(Ordering::Relaxed),
        )
    }

    pub(super) fn count(&self, sent: usize, received: u64) {
        self.sent_dropped.fetch_add(sent as u64, Ordering::Relaxed);
        self.received_dropped.fetch_add(received, Ordering::Relaxed);
    }

    /// The target's direction is over.
    pub(super) fn finish(&self) {
        self.finished.store(true, Ordering::Release);
    }

    /// The first reason counts.
    pub(super) fn fail(&self, why: Why) {
        let _ = self.why.set(why);
    }
}

/// Resolves once the other end of a socket is closed altogether, whatever is still to be read.
pub(super) async fn hung_up(socket: &impl AsFd) -> io::Result<()> {
    // Readiness of its own: what is forgotten here, the pump still knows.
    let socket = StdUnixStream::from(socket.as_fd().try_clone_to_owned()?);
    let socket = UnixStream::from_std(socket)?;
    loop {
        let ready = socket.ready(Interest::WRITABLE).await?;
        if ready.is_write_closed() {
            return Ok(());
        }
        let forget = || Err::<(), _>(ErrorKind::WouldBlock.into());
        let _ = socket.try_io(Interest::WRITABLE, forget);
    }
}
