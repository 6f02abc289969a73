//! A TCP socket that several owners may use at once: TLS or HTTP above it, and whoever watches it for errors.

use std::future::pending;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::Gone;
use crate::sys::queue;

/// A shared TCP socket.
#[derive(Debug, Clone)]
pub struct Wire(Rc<TcpStream>);

impl Wire {
    /// Takes a connected socket.
    pub fn new(stream: TcpStream) -> Self {
        Self(Rc::new(stream))
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.0
    }

    /// Makes the close of the socket a RST that discards what is queued.
    pub fn reset_on_close(&self) {
        let _ = SockRef::from(&*self.0).set_linger(Some(Duration::ZERO));
    }

    /// Undoes [`reset_on_close`](Self::reset_on_close).
    pub fn finish_on_close(&self) {
        let _ = SockRef::from(&*self.0).set_linger(None);
    }

    /// Whether the peer has acknowledged everything.
    pub fn is_delivered(&self) -> bool {
        !matches!(queue::unacknowledged(self.tcp()), Ok(1..))
    }

    /// Waits, not longer than `limit`, until the peer has acknowledged everything.
    pub async fn delivered(&self, limit: Duration) {
        let until = tokio::time::Instant::now() + limit;
        // No event tells of the last ACK. This wait happens once, at the end of a broken tunnel.
        while !self.is_delivered() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Sends FIN.
    pub fn shutdown_write(&self) -> io::Result<()> {
        SockRef::from(&*self.0).shutdown(Shutdown::Write)
    }

    /// Resolves when the socket has failed (RST, time-out); a FIN is no failure.
    pub async fn failed(&self) -> Gone {
        match self.0.ready(Interest::ERROR).await {
            Ok(_) => Gone,
            Err(_) => pending().await,
        }
    }

    /// Waits until the peer took what was sent, so that a close does not become a RST that destroys it: FIN, then whatever the
    /// peer still sends is read and forgotten, within bounds of size and time.
    pub async fn linger(&self) {
        const MOST: usize = 1 << 20;
        const LONGEST: Duration = Duration::from_secs(2);
        if self.shutdown_write().is_err() {
            return;
        }
        let _ = tokio::time::timeout(LONGEST, async {
            let mut seen = 0;
            while seen < MOST && self.0.readable().await.is_ok() {
                match self.forget_some() {
                    Ok(0) => break,
                    Ok(n) => seen += n,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
        })
        .await;
    }

    /// Reads some bytes for nothing. Apart, because their room has no place in the memory of whoever waits.
    fn forget_some(&self) -> io::Result<usize> {
        self.0.try_read(&mut [0; 4096])
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if would_block(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(buf) {
                Err(error) if would_block(&error) => {}
                other => return Poll::Ready(other),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(bufs) {
                Err(error) if would_block(&error) => {}
                other => return Poll::Ready(other),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown_write())
    }
}
