//! Moves the bytes of a stream tunnel between a client's data stream and a TCP target, and closes both by the rules.
//!
//! Two directions run side by side in one task: `up` (client to target) and `down` (target to client). Either may end cleanly
//! on its own; the first fault ends both.

pub mod datagram;
pub mod marked;
pub mod outside;
pub mod payloads;
mod pipe;
mod splice;
mod stream;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use capsule_core::tunnel::{AnyStreamTunnel, End, Finish, Malformed, StreamTunnel};
use futures_util::future::{Either, select};
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::metrics::WorkerMetrics;
use crate::pool::Buffer;
use crate::transport::wire::Wire;
use crate::transport::{FLUSH, Fault, Gone, Lost, RecvHalf, SendHalf};

/// How long a client may take to end its direction after the tunnel is over.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What one tunnel may move before its neighbours on the worker get their turn, in bytes: well below a millisecond's work.
const TURN: usize = 1 << 20;

/// A direction's share of the worker. Sockets that are always ready would otherwise never let go of it.
#[derive(Debug, Default)]
struct Turn(usize);

impl Turn {
    /// Counts bytes, and lets the neighbours go first when the turn is over.
    async fn moved(&mut self, bytes: usize) {
        self.0 += bytes;
        if self.0 >= TURN {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// How a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// Both directions ended cleanly.
    #[error("clean")]
    Clean,
    /// The client's side was reset or lost.
    #[error("client gone")]
    ClientGone,
    /// The client ended its data stream without saying that the data is complete.
    #[error("client ended without a final capsule")]
    ClientIncomplete,
    /// The client's data stream was malformed.
    #[error("malformed: {0}")]
    Malformed(Malformed),
    /// The client's message was malformed below the data stream.
    #[error("malformed message")]
    MalformedMessage,
    /// The target's connection broke.
    #[error("target reset")]
    TargetGone,
    /// The system says that there is nobody at the target's address.
    #[error("target unreachable")]
    Unreachable,
    /// No byte either way for the idle time.
    #[error("idle")]
    Idle,
    /// The relay is stopping.
    #[error("relay stopping")]
    Stopping,
}

impl From<Gone> for Ended {
    fn from(_: Gone) -> Self {
        Ended::ClientGone
    }
}

impl From<Lost> for Ended {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Gone => Ended::ClientGone,
            Lost::Malformed => Ended::MalformedMessage,
        }
    }
}

impl From<Malformed> for Ended {
    fn from(fault: Malformed) -> Self {
        Ended::Malformed(fault)
    }
}

/// What bounds one tunnel.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Ends after so long without a byte either way.
    pub idle: Duration,
    /// User space and pipes, both directions, in bytes.
    pub buffer: usize,
}

/// What a tunnel carried.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// How it ended.
    pub ended: Ended,
    /// Payload bytes to the target.
    pub up: u64,
    /// Payload bytes to the client.
    pub down: u64,
    /// Datagrams to the target and to the client, where the tunnel carries such.
    pub datagrams: Option<(u64, u64)>,
    /// Capsules of unknown, not reserved, types that were skipped.
    pub unknown_capsules: u64,
}

/// The target's socket, as it was dialled: closing it is a RST unless both sides ended cleanly.
struct Target {
    wire: Wire,
    clean: Cell<bool>,
}

impl Drop for Target {
    fn drop(&mut self) {
        //= connect-tcp §3.4 abrupt-end-sends-rst
        //= connect-tcp §3.4 end-without-final-sends-rst
        //= connect-tcp §3 data-after-final
        //= rfc9113 §8.5 connect-reset
        //= rfc9114 §4.4 connect-reset
        if self.clean.get() {
            self.wire.finish_on_close();
        }
    }
}

/// What both directions of one tunnel share.
struct Tunnel<'a> {
    machine: RefCell<AnyStreamTunnel>,
    target: Target,
    up: Cell<u64>,
    down: Cell<u64>,
    /// Bytes of the data stream that were taken from the client in user space, whatever they are.
    taken: Cell<u64>,
    /// The target's connection is known to be broken. A socket tells that only once: afterwards its end looks like a FIN.
    broken: Cell<bool>,
    /// FIN was sent to the target.
    fin_sent: Cell<bool>,
    fin_sent_wake: Notify,
    pipe_limit: usize,
    metrics: &'a WorkerMetrics,
}

impl Tunnel<'_> {
    fn moved_up(&self, bytes: usize) {
        self.up.set(self.up.get() + bytes as u64);
        self.metrics.bytes_up.add(bytes as u64);
    }

    fn moved_down(&self, bytes: usize) {
        self.down.set(self.down.get() + bytes as u64);
        self.metrics.bytes_down.add(bytes as u64);
    }

    fn tcp(&self) -> &TcpStream {
        self.target.wire.tcp()
    }

    //= connect-tcp §3.4 final-data-sends-fin
    //= rfc9113 §8.5 connect-end-is-fin
    //= rfc9114 §4.4 connect-end-is-fin
    fn send_fin(&self) -> Result<(), Ended> {
        if !self.fin_sent.get() {
            self.target
                .wire
                .shutdown_write()
                .map_err(|_| Ended::TargetGone)?;
            self.fin_sent.set(true);
            self.fin_sent_wake.notify_one();
        }
        Ok(())
    }

    /// The client's data stream ended cleanly.
    fn client_ended(&self) -> Result<(), Ended> {
        let end = self.machine.borrow_mut().inbound_end();
        match end {
            End::Finish => self.send_fin(),
            End::Complete => Ok(()),
            //= connect-tcp §3.4 end-without-final-sends-rst
            End::Abort => Err(Ended::ClientIncomplete),
            End::Malformed(fault) => Err(fault.into()),
        }
    }

    /// The target sent FIN: tells the client, and ends the data stream when the protocol's rules say so.
    async fn target_ended<S: SendHalf>(&self, send: &mut S) -> Result<(), Ended> {
        let mut header = [0; capsule_core::capsule::MAX_HEADER];
        let finish = self.machine.borrow_mut().outbound_finish(&mut header);
        match finish {
            //= rfc9113 §8.5 connect-fin-is-end
            //= rfc9114 §4.4 connect-fin-is-end
            //= rfc9110 §9.3.6 connect-deliver-then-close
            Finish::EndStream => {}
            //= connect-tcp §3.4 fin-sends-final-data
            Finish::Bytes(length) => {
                let mut buffer = Buffer::take();
                let start = crate::pool::HEADROOM;
                buffer.bytes_mut()[start..start + length].copy_from_slice(&header[..length]);
                let mut sent = 0;
                while sent < length {
                    let room = send.ready(length - sent).await?.min(length - sent);
                    let mut piece = Buffer::take();
                    piece.bytes_mut()[start..start + room]
                        .copy_from_slice(&buffer.as_ref()[start + sent..start + sent + room]);
                    send.send(piece, start, start + room).await?;
                    sent += room;
                }
                self.target_closed(send).await?;
            }
        }
        send.finish().await?;
        Ok(())
    }

    /// Waits until the target's connection is closed in both directions, watching for a late RST and for the client to leave.
    async fn target_closed<S: SendHalf>(&self, send: &mut S) -> Result<(), Ended> {
        //= connect-tcp §3.4 closed-closes-stream
        //= connect-tcp §3.4 graceful-close
        let closed = async {
            while !self.fin_sent.get() {
                self.fin_sent_wake.notified().await;
            }
            // Nothing wakes a task when the last ACK arrives; on most paths it is there at once or after one round trip.
            let mut pause = Duration::from_millis(1);
            loop {
                match tcp_state(self.tcp()) {
                    Ok(TcpState::Closed) => return Ok(()),
                    Ok(TcpState::Open) => {}
                    Err(_) => return Err(Ended::TargetGone),
                }
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(256));
            }
        };
        let faults = async {
            let target = std::pin::pin!(self.target_failed());
            let client = std::pin::pin!(send.gone());
            match select(target, client).await {
                Either::Left((ended, _)) => ended,
                Either::Right((gone, _)) => gone.into(),
            }
        };
        match select(std::pin::pin!(closed), std::pin::pin!(faults)).await {
            Either::Left((result, _)) => result,
            Either::Right((fault, _)) => Err(fault),
        }
    }

    async fn target_failed(&self) -> Ended {
        self.target.wire.failed().await;
        Ended::TargetGone
    }
}

enum TcpState {
    Open,
    Closed,
}

/// Tells whether the kernel has nothing more to do for a connection on which both FINs are out.
fn tcp_state(tcp: &TcpStream) -> io::Result<TcpState> {
    if let Ok(Err(error)) = sockopt::socket_error(tcp) {
        return Err(error.into());
    }
    // Once both FINs are exchanged and acknowledged the socket has no peer any more (TIME-WAIT lives on without it).
    match rustix::net::getpeername(tcp) {
        Ok(_) => Ok(TcpState::Open),
        Err(rustix::io::Errno::NOTCONN) => Ok(TcpState::Closed),
        Err(error) => Err(error.into()),
    }
}

/// Runs a tunnel to its end.
///
/// `stop` resolves when the relay gives its tunnels up. The target is reset unless the tunnel ends cleanly, also when this
/// future is dropped.
pub async fn run<R: RecvHalf, S: SendHalf>(
    machine: AnyStreamTunnel,
    recv: &mut R,
    send: &mut S,
    target: TcpStream,
    bounds: Bounds,
    metrics: &WorkerMetrics,
    stop: impl Future<Output = ()> + Unpin,
) -> Outcome {
    let tunnel = Rc::new(Tunnel {
        machine: RefCell::new(machine),
        target: Target {
            wire: Wire::new(target),
            clean: Cell::new(false),
        },
        up: Cell::new(0),
        down: Cell::new(0),
        taken: Cell::new(0),
        broken: Cell::new(false),
        fin_sent: Cell::new(false),
        fin_sent_wake: Notify::new(),
        pipe_limit: (bounds.buffer / 2).clamp(4096, 1 << 20),
        metrics,
    });
    let result = {
        let both = both_directions(&tunnel, recv, send);
        let progress = || (tunnel.up.get(), tunnel.down.get(), tunnel.taken.get());
        let guard = guard(progress, bounds.idle, stop);
        match select(std::pin::pin!(both), std::pin::pin!(guard)).await {
            Either::Left((result, _)) => result,
            Either::Right((ended, _)) => Err(ended),
        }
    };
    let ended = match result {
        Ok(()) => {
            tunnel.target.clean.set(true);
            recv.ended();
            Ended::Clean
        }
        Err(ended) => {
            let fault = match ended {
                Ended::TargetGone | Ended::Unreachable => Fault::Target,
                Ended::Malformed(Malformed::UnexpectedDatagram) => Fault::Datagram,
                Ended::Malformed(_) | Ended::MalformedMessage => Fault::Malformed,
                //= connect-tcp §3.4 abrupt-close-h2
                //= connect-tcp §3.4 abrupt-close-h3
                Ended::ClientGone | Ended::ClientIncomplete => Fault::Client,
                Ended::Clean | Ended::Idle | Ended::Stopping => Fault::Cancelled,
            };
            recv.abort(fault);
            Box::pin(send.abort(fault)).await;
            ended
        }
    };
    let unknown_capsules = tunnel.machine.borrow().unknown_capsules();
    Outcome {
        ended,
        up: tunnel.up.get(),
        down: tunnel.down.get(),
        datagrams: None,
        unknown_capsules,
    }
}

async fn both_directions<R: RecvHalf, S: SendHalf>(
    tunnel: &Tunnel<'_>,
    recv: &mut R,
    send: &mut S,
) -> Result<(), Ended> {
    let up = std::pin::pin!(up(tunnel, recv));
    // Gives `send` back when it is done: the client's leaving is watched for until the end.
    let down = std::pin::pin!(async { (down(tunnel, send).await, send) });
    match select(up, down).await {
        Either::Left((Ok(()), down)) => down.await.0,
        // The target takes no more, but what it sent before may still be there to be read.
        Either::Left((Err(Ended::TargetGone), down)) => {
            let _ = timeout(FLUSH, down).await;
            Err(Ended::TargetGone)
        }
        Either::Right(((Ok(()), send), up)) => Box::pin(rest(tunnel, up, send)).await,
        Either::Left((fault, _)) | Either::Right(((fault, _), _)) => fault,
    }
}

/// The client-to-target direction after the other one ended.
async fn rest<S: SendHalf>(
    tunnel: &Tunnel<'_>,
    mut up: impl Future<Output = Result<(), Ended>> + Unpin,
    send: &mut S,
) -> Result<(), Ended> {
    loop {
        let pause = async {
            if tunnel.fin_sent.get() {
                sleep(LAST_WORD).await;
            } else {
                pending().await
            }
        };
        tokio::select! {
            biased;
            result = &mut up => return match result {
                // As below: a client that has everything may leave as it likes.
                Err(Ended::ClientGone) if tunnel.fin_sent.get() && send.delivered() => Ok(()),
                other => other,
            },
            ended = tunnel.target_failed(), if !tunnel.fin_sent.get() => return Err(ended),
            // A client that has everything may leave as it likes.
            gone = send.gone() => return match tunnel.fin_sent.get() && send.delivered() {
                true => Ok(()),
                false => Err(gone.into()),
            },
            // The tunnel is over in both directions. A client that took everything and does not end its own direction is
            // left behind; one that is slow to take it has until the tunnel counts as idle.
            () = pause => if send.delivered() {
                return Ok(());
            },
        }
    }
}

async fn up<R: RecvHalf>(tunnel: &Tunnel<'_>, recv: &mut R) -> Result<(), Ended> {
    let result = if recv.socket().is_some() {
        // Boxed, as all that most tunnels have no use for: what waits for years had better be small.
        Box::pin(splice::up(tunnel, recv)).await
    } else {
        stream::up(tunnel, recv).await
    };
    if result == Err(Ended::TargetGone) {
        tunnel.broken.set(true);
    }
    result
}

async fn down<S: SendHalf>(tunnel: &Tunnel<'_>, send: &mut S) -> Result<(), Ended> {
    if send.socket().is_some() {
        Box::pin(splice::down(tunnel, send)).await?;
    } else {
        stream::down(tunnel, send).await?;
    }
    if tunnel.broken.get() {
        return Err(Ended::TargetGone);
    }
    Box::pin(tunnel.target_ended(send)).await
}

/// Resolves when the tunnel must end although both sides would go on.
async fn guard(
    progress: impl Fn() -> (u64, u64, u64),
    idle: Duration,
    stop: impl Future<Output = ()> + Unpin,
) -> Ended {
    let quiet = async {
        // Looking four times an idle period costs nothing a byte and is exact to a quarter.
        let (mut seen, mut same) = ((0, 0, 0), 0);
        while same < 4 {
            sleep(idle / 4).await;
            // Also what is no payload is a sign of life.
            let now = progress();
            same = if now == seen { same + 1 } else { 0 };
            seen = now;
        }
        Ended::Idle
    };
    match select(std::pin::pin!(quiet), stop).await {
        Either::Left((ended, _)) => ended,
        Either::Right(((), _)) => Ended::Stopping,
    }
}
