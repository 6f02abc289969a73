//! The data stream of a cleartext HTTP/1.1 tunnel: the socket itself.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::pool::{Buffer, HEADROOM, PAYLOAD};
use crate::transport::wire::Wire;
use crate::transport::{FLUSH, Fault, Gone, Lost, RecvHalf, SendHalf};

/// Resets the connection unless both directions ended cleanly.
#[derive(Debug)]
struct Shared {
    wire: Wire,
    sent_fin: Cell<bool>,
    got_fin: Cell<bool>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        //= connect-tcp §3.4 abrupt-close-h1
        if !(self.sent_fin.get() && self.got_fin.get()) {
            self.wire.reset_on_close();
        }
    }
}

/// Bytes from the client.
#[derive(Debug)]
pub struct ClearRecv {
    shared: Rc<Shared>,
    early: Bytes,
}

/// Bytes to the client.
#[derive(Debug)]
pub struct ClearSend {
    shared: Rc<Shared>,
}

/// Splits a connection; `early` was read behind the head and comes first.
pub fn halves(wire: Wire, early: Bytes) -> (ClearRecv, ClearSend) {
    let shared = Rc::new(Shared {
        wire,
        sent_fin: Cell::new(false),
        got_fin: Cell::new(false),
    });
    let recv = ClearRecv {
        shared: shared.clone(),
        early,
    };
    (recv, ClearSend { shared })
}

impl RecvHalf for ClearRecv {
    async fn recv(&mut self, chunks: &mut Vec<Bytes>) -> Result<bool, Lost> {
        if !self.early.is_empty() {
            chunks.push(std::mem::take(&mut self.early));
            return Ok(true);
        }
        let tcp = self.shared.wire.tcp();
        loop {
            tcp.readable().await.map_err(|_| Lost::Gone)?;
            let mut buffer = Buffer::take();
            match tcp.try_read(buffer.payload_mut(PAYLOAD)) {
                Ok(0) => {
                    self.shared.got_fin.set(true);
                    return Ok(false);
                }
                Ok(n) => {
                    chunks.push(buffer.freeze(HEADROOM, HEADROOM + n));
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Lost::Gone),
            }
        }
    }

    fn release(&mut self, _: usize) {}

    fn abort(&mut self, _: Fault) {
        self.shared.wire.reset_on_close();
    }

    fn socket(&self) -> Option<&TcpStream> {
        self.early.is_empty().then(|| self.shared.wire.tcp())
    }

    fn ended(&mut self) {
        self.shared.got_fin.set(true);
    }
}

impl SendHalf for ClearSend {
    async fn ready(&mut self, want: usize) -> Result<usize, Gone> {
        self.shared.wire.tcp().writable().await.map_err(|_| Gone)?;
        Ok(want)
    }

    async fn send(&mut self, buffer: Buffer, start: usize, end: usize) -> Result<(), Gone> {
        let tcp = self.shared.wire.tcp();
        let mut rest = &buffer.as_ref()[start..end];
        while !rest.is_empty() {
            match tcp.try_write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tcp.writable().await.map_err(|_| Gone)?;
                }
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Gone> {
        self.shared.wire.shutdown_write().map_err(|_| Gone)?;
        self.shared.sent_fin.set(true);
        Ok(())
    }

    fn delivered(&self) -> bool {
        self.shared.wire.is_delivered()
    }

    async fn abort(&mut self, fault: Fault) {
        if fault == Fault::Target {
            // A RST takes what is queued with it: what the target sent before it broke goes first.
            self.shared.wire.delivered(FLUSH).await;
        }
        //= connect-tcp §3.4 abrupt-close-h1
        //= rfc9112 §8 incomplete-close
        self.shared.wire.reset_on_close();
    }

    async fn gone(&mut self) -> Gone {
        self.shared.wire.failed().await
    }

    fn socket(&self) -> Option<&TcpStream> {
        Some(self.shared.wire.tcp())
    }
}
