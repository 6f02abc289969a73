//! A tunnel of bytes and its end, a stream socket.

use std::future::pending;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::near::{End, Why, hung_up};
use crate::client::{Receiver, Sender, Tunnel};
use crate::pool::{Buffer, PAYLOAD};

/// How long the target may take to end its direction once the end is closed; Linux is as patient with sockets of its own.
const ORPHAN: Duration = Duration::from_secs(60);
/// How long the proxy may take to end the data stream once both directions are over.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long what the target sent may take to arrive after the other direction broke.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Moves bytes until both directions are over.
pub(super) struct Pump {
    tunnel: Tunnel,
    near: Near,
}

/// Our side of the end. However it is dropped, the other one never takes it for a clean end unless it was one.
struct Near {
    end: Arc<End>,
    socket: UnixStream,
    /// The target's FIN was passed on.
    fin: Notify,
}

impl Drop for Near {
    fn drop(&mut self) {
        self.end.fail(Why::Closed);
    }
}

/// Why the pump stops.
enum Stop {
    /// Something is wrong with the tunnel.
    Far(Why),
    /// The end was closed while there was more for it, or with something unread.
    Near,
}

impl<T: Into<Why>> From<T> for Stop {
    fn from(why: T) -> Self {
        Self::Far(why.into())
    }
}

impl Pump {
    /// The pump, and the end for whoever asked.
    pub(super) fn new(tunnel: Tunnel, end: Arc<End>) -> io::Result<(Self, OwnedFd)> {
        let (near, far) = std::os::unix::net::UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        let near = Near {
            end,
            socket: UnixStream::from_std(near)?,
            fin: Notify::new(),
        };
        Ok((Self { tunnel, near }, far.into()))
    }

    /// Until the end, or until the client is closed and the end is not.
    pub(super) async fn run(self: Box<Self>, closed: watch::Receiver<bool>) {
        let Self { mut tunnel, near } = *self;
        let closing = async {
            let _ = closed.clone().wait_for(|closed| *closed).await;
            // What was written before the end was closed is delivered.
            let gone = timeout(Duration::from_millis(1), hung_up(&near.socket));
            if matches!(gone.await, Ok(Ok(()))) {
                pending::<()>().await;
            }
        };
        let result = {
            let Tunnel {
                receiver, sender, ..
            } = &mut tunnel;
            tokio::select! {
                result = both(receiver, sender, &near, closed.clone()) => result,
                () = closing => Err(Stop::Far(Why::Closed)),
            }
        };
        let Err(stop) = result else {
            return;
        };
        if let Stop::Far(why) = stop {
            near.end.fail(why);
        }
        drop(near);
        tunnel.receiver.abort();
        tunnel.sender.abort().await;
    }
}

async fn both(
    receiver: &mut Receiver,
    sender: &mut Sender,
    near: &Near,
    mut closed: watch::Receiver<bool>,
) -> Result<(), Stop> {
    let mut down = pin!(down(receiver, near));
    let mut up = pin!(async {
        up(sender, near).await?;
        tokio::select! {
            () = near.fin.notified() => {}
            () = forgotten(near) => return Err(Stop::Near),
            // All is sent. A target that goes on listening is no reason to keep a client that is closed.
            _ = closed.wait_for(|closed| *closed) => {
                if timeout(LAST_WORD, near.fin.notified()).await.is_err() {
                    return Err(Stop::Near);
                }
            }
        }
        // Both directions ended well: whatever is wrong now, nobody lost anything.
        let _ = sender.close().await;
        Ok(())
    });
    tokio::select! {
        result = &mut down => {
            result?;
            up.await
        }
        result = &mut up => {
            if let Err(Stop::Far(_)) = &result {
                let _ = timeout(LAST_WORD, down).await;
            } else if result.is_ok() {
                let _ = timeout(GOODBYE, down).await;
            }
            result
        }
    }
}

/// Resolves when the end was closed and the target has had its time.
async fn forgotten(near: &Near) {
    if hung_up(&near.socket).await.is_ok() {
        tokio::time::sleep(ORPHAN).await;
    } else {
        pending::<()>().await;
    }
}

/// From the end to the target.
async fn up(sender: &mut Sender, near: &Near) -> Result<(), Stop> {
    let socket = &near.socket;
    loop {
        tokio::select! {
            ready = socket.readable() => ready.map_err(|_| Stop::Near)?,
            () = sender.gone() => return Err(Stop::Far(Why::Reset)),
        }
        let room = sender.room(PAYLOAD).await?;
        let mut buffer = Buffer::take();
        match socket.try_read(buffer.payload_mut(room)) {
            Ok(0) => {
                sender.unready();
                return Ok(sender.finish().await?);
            }
            Ok(length) => sender.send_buffer(buffer, length, length).await?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => sender.unready(),
            Err(_) => return Err(Stop::Near),
        }
    }
}

/// From the target to the end, up to the end of the data stream.
async fn down(receiver: &mut Receiver, near: &Near) -> Result<(), Stop> {
    let socket = &near.socket;
    while let Some(bytes) = receiver.recv().await? {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match socket.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    socket.writable().await.map_err(|_| Stop::Near)?;
                }
                Err(_) => return Err(Stop::Near),
            }
        }
    }
    near.end.finish();
    near.fin.notify_one();
    SockRef::from(socket)
        .shutdown(Shutdown::Write)
        .map_err(|_| Stop::Near)?;
    Ok(receiver.end().await?)
}
