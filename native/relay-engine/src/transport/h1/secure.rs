//! The data stream of an HTTP/1.1 tunnel over TLS. A connection that ends without close_notify is truncated, never a clean end.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::pool::{Buffer, HEADROOM, PAYLOAD};
use crate::transport::read_ahead::Tls;
use crate::transport::wire::Wire;
use crate::transport::{Fault, Gone, Lost, RecvHalf, SendHalf};

#[derive(Debug)]
struct Shared {
    tls: RefCell<Tls>,
    wire: Wire,
    sent_fin: Cell<bool>,
}

/// Bytes from the peer.
#[derive(Debug)]
pub struct SecureRecv {
    shared: Rc<Shared>,
    early: Bytes,
}

/// Bytes to the peer.
#[derive(Debug)]
pub struct SecureSend {
    shared: Rc<Shared>,
}

/// Splits a connection; `early` was read behind the head and comes first.
pub fn halves(tls: Tls, early: Bytes) -> (SecureRecv, SecureSend) {
    let wire = tls.get_ref().0.wire().clone();
    let shared = Rc::new(Shared {
        tls: RefCell::new(tls),
        wire,
        sent_fin: Cell::new(false),
    });
    let recv = SecureRecv {
        shared: shared.clone(),
        early,
    };
    (recv, SecureSend { shared })
}

impl RecvHalf for SecureRecv {
    async fn recv(&mut self, chunks: &mut Vec<Bytes>) -> Result<bool, Lost> {
        if !self.early.is_empty() {
            chunks.push(std::mem::take(&mut self.early));
            return Ok(true);
        }
        poll_fn(|cx| {
            let mut tls = self.shared.tls.borrow_mut();
            // Taken only for the length of a poll: an idle tunnel holds no buffer.
            let mut buffer = Buffer::take();
            let mut filled = 0;
            // Several records a wake-up, so that they leave in one write.
            while filled < PAYLOAD {
                let mut room = ReadBuf::new(&mut buffer.payload_mut(PAYLOAD)[filled..]);
                match Pin::new(&mut *tls).poll_read(cx, &mut room) {
                    Poll::Pending if filled == 0 => return Poll::Pending,
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) => match room.filled().len() {
                        // The end is reported again by the next call.
                        0 if filled == 0 => return Poll::Ready(Ok(false)),
                        0 => break,
                        n => filled += n,
                    },
                    //= rfc9112 §9.8 tls-truncation
                    Poll::Ready(Err(_)) if filled == 0 => return Poll::Ready(Err(Lost::Gone)),
                    Poll::Ready(Err(_)) => break,
                }
            }
            chunks.push(buffer.freeze(HEADROOM, HEADROOM + filled));
            Poll::Ready(Ok(true))
        })
        .await
    }

    fn release(&mut self, _: usize) {}

    fn abort(&mut self, _: Fault) {}
}

impl SendHalf for SecureSend {
    async fn ready(&mut self, want: usize) -> Result<usize, Gone> {
        Ok(want)
    }

    async fn send(&mut self, buffer: Buffer, start: usize, end: usize) -> Result<(), Gone> {
        let mut at = start;
        poll_fn(|cx| {
            let mut tls = self.shared.tls.borrow_mut();
            let mut tls = Pin::new(&mut *tls);
            while at < end {
                match tls.as_mut().poll_write(cx, &buffer.as_ref()[at..end]) {
                    Poll::Ready(Ok(n)) if n > 0 => at += n,
                    Poll::Ready(_) => return Poll::Ready(Err(Gone)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            tls.poll_flush(cx).map_err(|_| Gone)
        })
        .await
    }

    async fn finish(&mut self) -> Result<(), Gone> {
        poll_fn(|cx| Pin::new(&mut *self.shared.tls.borrow_mut()).poll_shutdown(cx))
            .await
            .map_err(|_| Gone)?;
        self.shared.sent_fin.set(true);
        Ok(())
    }

    fn delivered(&self) -> bool {
        self.shared.wire.is_delivered()
    }

    async fn abort(&mut self, fault: Fault) {
        //= connect-tcp §3.4 abrupt-close-h1-tls
        //= rfc9297 §3.3 malformed-capsule
        //= rfc9112 §8 incomplete-close
        // FIN without close_notify: the peer's TLS layer sees a truncation, and what was sent before still arrives.
        if !self.shared.sent_fin.get() {
            let _ = self.shared.wire.shutdown_write();
            if fault == Fault::Target {
                // A close over unread input would be a RST and take with it what the target sent before it broke.
                self.shared.wire.linger().await;
            }
        }
    }

    async fn gone(&mut self) -> Gone {
        self.shared.wire.failed().await
    }
}
