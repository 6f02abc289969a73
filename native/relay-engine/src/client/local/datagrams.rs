//! A tunnel of datagrams and its end, a socket of packets: a zero byte, then the payload.

use std::future::pending;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use capsule_core::protocols::udp::MAX_PAYLOAD;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::time::timeout;

use super::near::{End, Why, hung_up};
use crate::client::{DatagramReceiver, DatagramSender, DatagramTunnel};

/// What stands before a payload.
const MARK: [u8; 1] = [0];
/// Packets taken from the end at a time.
const BATCH: usize = 32;
/// What the kernel should hold for either side; it may give less.
const ROOM: usize = 1 << 20;

/// How long the proxy may take to end its direction after ours.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Moves datagrams until the tunnel is over.
pub(super) struct Pump {
    tunnel: DatagramTunnel,
    near: Near,
}

/// Our side of the end. However it is dropped, the other one never takes it for an end that the proxy wished.
struct Near {
    end: Arc<End>,
    socket: UnixDatagram,
}

impl Drop for Near {
    fn drop(&mut self) {
        self.end.fail(Why::Closed);
    }
}

impl Pump {
    /// The pump, and the end for whoever asked.
    pub(super) fn new(tunnel: DatagramTunnel, end: Arc<End>) -> io::Result<(Self, OwnedFd)> {
        let (near, far) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        for socket in [&near, &far] {
            socket.set_nonblocking(true)?;
            let _ = socket.set_send_buffer_size(ROOM);
        }
        let near = Near {
            end,
            socket: UnixDatagram::from_std(StdUnixDatagram::from(OwnedFd::from(near)))?,
        };
        Ok((Self { tunnel, near }, far.into()))
    }

    /// Until the end, or until the client is closed and the end is not.
    pub(super) async fn run(self: Box<Self>, mut closed: watch::Receiver<bool>) {
        let Self { mut tunnel, near } = *self;
        let closing = async {
            let _ = closed.wait_for(|closed| *closed).await;
            let gone = timeout(Duration::from_millis(1), hung_up(&near.socket));
            if matches!(gone.await, Ok(Ok(()))) {
                pending::<()>().await;
            }
        };
        let result = {
            let DatagramTunnel {
                receiver, sender, ..
            } = &mut tunnel;
            tokio::select! {
                result = up(sender, &near) => result.map(|()| false),
                result = down(receiver, &near) => result.map(|()| true),
                () = closing => Err(Why::Closed),
            }
        };
        match result {
            // The proxy ended it.
            Ok(true) => near.end.finish(),
            Ok(false) => {}
            Err(why) => near.end.fail(why),
        }
        let cut = near.end.cut().is_some();
        drop(near);
        if cut || timeout(LAST_WORD, tunnel.close()).await.is_err() {
            tunnel.receiver.abort();
            tunnel.sender.abort().await;
        }
    }
}

/// From the end to the target, until the end is closed. What the tunnel has no room for is dropped, and counted.
async fn up(sender: &mut DatagramSender, near: &Near) -> Result<(), Why> {
    let mut payloads: Vec<Bytes> = Vec::with_capacity(BATCH);
    let mut packet = vec![0; MARK.len() + MAX_PAYLOAD];
    loop {
        tokio::select! {
            ready = near.socket.readable() => if ready.is_err() { return Ok(()) },
            () = sender.gone() => return Err(Why::Reset),
        }
        let mut over = false;
        while payloads.len() < BATCH {
            match near.socket.try_recv(&mut packet) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // An empty packet is none: it is the end.
                Ok(0) | Err(_) => {
                    over = true;
                    break;
                }
                Ok(length) => payloads.push(Bytes::copy_from_slice(&packet[MARK.len()..length])),
            }
        }
        if !payloads.is_empty() {
            let sent = sender.send(&payloads).await?;
            near.end.count(sent.oversize + sent.crowded_out, 0);
            payloads.clear();
        }
        if over {
            return Ok(());
        }
    }
}

/// From the target to the end, until the proxy ends the tunnel. Datagrams for which there is no room are dropped, as UDP does.
async fn down(receiver: &mut DatagramReceiver, near: &Near) -> Result<(), Why> {
    let mut payloads = Vec::new();
    let mut lost = 0;
    loop {
        let more = receiver.recv(&mut payloads).await;
        let mut full = 0;
        for payload in payloads.drain(..) {
            let parts = [IoSlice::new(&MARK), IoSlice::new(&payload)];
            let sent = SockRef::from(&near.socket).send_vectored(&parts);
            full += u64::from(sent.is_err());
        }
        let before = std::mem::replace(&mut lost, receiver.dropped());
        near.end.count(0, full + lost - before);
        if !more? {
            return Ok(());
        }
    }
}
