//! The data stream of an HTTP/1.1 tunnel over TLS. A connection that ends without close_notify is truncated, never a clean end.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::pool::Buffer;
use crate::transport::tls::{Content, TlsStream};
use crate::transport::wire::Wire;
use crate::transport::{Fault, Gone, Lost, RecvHalf, SendHalf};

#[derive(Debug)]
struct Shared {
    tls: RefCell<TlsStream>,
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
pub fn halves(tls: TlsStream, early: Bytes) -> (SecureRecv, SecureSend) {
    let wire = tls.wire().clone();
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
        let received = poll_fn(|cx| self.shared.tls.borrow_mut().poll_receive(cx)).await;
        match received {
            Ok(Some(Content { buffer, start, end })) => {
                chunks.push(buffer.freeze(start, end));
                Ok(true)
            }
            // The end is reported again by the next call.
            Ok(None) => Ok(false),
            //= rfc9112 §9.8 tls-truncation
            Err(_) => Err(Lost::Gone),
        }
    }

    fn release(&mut self, _: usize) {}

    fn abort(&mut self, _: Fault) {}
}

impl SendHalf for SecureSend {
    async fn ready(&mut self, want: usize) -> Result<usize, Gone> {
        Ok(want)
    }

    async fn send(&mut self, buffer: Buffer, start: usize, end: usize) -> Result<(), Gone> {
        let mut content = Some(Content { buffer, start, end });
        poll_fn(|cx| self.shared.tls.borrow_mut().poll_send(cx, &mut content))
            .await
            .map_err(|_| Gone)
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
