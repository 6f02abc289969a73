//! Writes of a connection, gathered: the library flushes after each DATA frame that is not tiny, so that the frames of many streams
//! would leave in as many records and calls of the system.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::pool::PAYLOAD;

/// What is flushed when the library says so, in bytes; less waits for the end of the connection's turn.
const ENOUGH: usize = PAYLOAD - (4 << 10);

/// A connection as the library sees it.
#[derive(Debug)]
pub struct Gathered<I>(Rc<RefCell<Writes<I>>>);

#[derive(Debug)]
struct Writes<I> {
    io: I,
    /// Written and not flushed, in bytes.
    waiting: usize,
}

impl<I: AsyncWrite + Unpin> Writes<I> {
    fn wrote(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = result {
            self.waiting += bytes;
        }
        result
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        if flushed.is_ready() {
            self.waiting = 0;
        }
        flushed
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Gathered<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gathered<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut writes = self.0.borrow_mut();
        let result = Pin::new(&mut writes.io).poll_write(cx, buf);
        writes.wrote(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut writes = self.0.borrow_mut();
        let result = Pin::new(&mut writes.io).poll_write_vectored(cx, bufs);
        writes.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().io.is_write_vectored()
    }

    /// Ready at once for what may wait until [`Turns`] flushes it.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut writes = self.0.borrow_mut();
        if writes.waiting < ENOUGH {
            return Poll::Ready(Ok(()));
        }
        writes.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut writes = self.0.borrow_mut();
        writes.waiting = 0;
        Pin::new(&mut writes.io).poll_shutdown(cx)
    }
}

/// Drives a connection, and flushes at the end of each turn what it wrote in it.
#[derive(Debug)]
pub struct Turns<I, F> {
    driving: Pin<Box<F>>,
    writes: Rc<RefCell<Writes<I>>>,
}

/// Gathers the writes of what `drive` makes of `io`.
pub fn gather<I, F: Future>(io: I, drive: impl FnOnce(Gathered<I>) -> F) -> Turns<I, F> {
    let writes = Rc::new(RefCell::new(Writes { io, waiting: 0 }));
    Turns {
        driving: Box::pin(drive(Gathered(writes.clone()))),
        writes,
    }
}

impl<I: AsyncWrite + Unpin, F: Future> Future for Turns<I, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let output = self.driving.as_mut().poll(cx);
        let mut writes = self.writes.borrow_mut();
        if writes.waiting > 0 {
            // An error shows again in whatever the connection does next; for that it is woken.
            if let Poll::Ready(Err(_)) = writes.poll_flush(cx) {
                cx.waker().wake_by_ref();
            }
        }
        output
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::pending;
    use std::task::Waker;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Counts flushes.
    #[derive(Debug, Default)]
    struct Counting {
        written: Vec<usize>,
        flushes: usize,
    }

    impl AsyncWrite for Counting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.written.push(buf.len());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn poll<F: Future>(turns: &mut Turns<Counting, F>) -> Poll<F::Output> {
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(turns).poll(&mut cx)
    }

    #[test]
    fn what_is_written_in_a_turn_is_flushed_at_its_end() {
        let mut turns = gather(Counting::default(), async |mut io: Gathered<Counting>| {
            for _ in 0..25 {
                io.write_all(&[0; 1200]).await.unwrap();
                io.flush().await.unwrap();
            }
            assert_eq!(io.0.borrow().io.flushes, 0);
            tokio::task::yield_now().await;
            assert_eq!(io.0.borrow().io.flushes, 1);
            // Nothing to be said is not said.
            tokio::task::yield_now().await;
            assert_eq!(io.0.borrow().io.flushes, 1);
            io.write_all(&vec![0; ENOUGH]).await.unwrap();
            io.flush().await.unwrap();
            assert_eq!(io.0.borrow().io.flushes, 2);
            io.write_all(b"the last words").await.unwrap();
        });
        let writes = turns.writes.clone();
        for _ in 0..2 {
            assert!(poll(&mut turns).is_pending());
        }
        assert!(poll(&mut turns).is_ready());
        assert_eq!(writes.borrow().io.flushes, 3);
    }

    #[test]
    fn a_turn_without_writes_flushes_nothing() {
        let mut turns = gather(Counting::default(), |io| async move {
            let _io = io;
            pending::<()>().await;
        });
        assert!(poll(&mut turns).is_pending());
        assert_eq!(turns.writes.borrow().io.flushes, 0);
    }
}
