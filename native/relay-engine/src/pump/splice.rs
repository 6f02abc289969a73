//! The pump inside the kernel, for tunnels whose data stream is a plain socket: `splice(2)` through a pipe. Capsule headers are
//! read and written from user space, payload never is.

use std::io::{self, ErrorKind};

use bytes::Bytes;
use capsule_core::capsule::MAX_HEADER;
use capsule_core::tunnel::StreamTunnel;
use futures_util::future::{Either, select};
use rustix::net::{RecvFlags, SendFlags, recv, send as send_message};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::pipe::Loan;
use super::stream::{self, take, write};
use super::{Ended, Tunnel, Turn};
use crate::pool::{Buffer, HEADROOM, PAYLOAD};
use crate::transport::{RecvHalf, SendHalf};

/// Payload below this is cheaper to copy than to splice.
const WORTH_SPLICING: u64 = 32 * 1024;
/// What is read to learn the next header when long payloads follow each other: exactly a header of one that is worth splicing,
/// unless its type or length takes more bytes than common.
const PEEK: usize = 8;

fn would_block(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

/// Client to target until the client's data stream ends.
///
/// While payloads are long the data stream goes into a pipe as it comes, headers and all. From there headers are read and payloads
/// spliced on: two short calls a capsule, whatever its length, and one call for all of them at the client's socket.
pub(super) async fn up<R: RecvHalf>(tunnel: &Tunnel<'_>, half: &mut R) -> Result<(), Ended> {
    let Some(client) = half.socket() else {
        return stream::up(tunnel, half).await;
    };
    let mut payload = Vec::new();
    let mut turn = Turn::default();
    let mut long = false;
    loop {
        // The rest of a long payload goes the way of its beginning, and so does the payload after it.
        if long || tunnel.machine.borrow().payload_pending() >= WORTH_SPLICING {
            match fill(client, tunnel.pipe_limit).await? {
                Filled::Pipe(pipe) => {
                    long = forward(tunnel, pipe, &mut payload, &mut turn).await?;
                    continue;
                }
                Filled::Copied(chunk) => {
                    turn.moved(chunk.len()).await;
                    take(tunnel, chunk, &mut payload).await?;
                    write(tunnel, &mut payload).await?;
                    continue;
                }
                Filled::End => break,
                // No pipe to be had: copy.
                Filled::NoPipe => {}
            }
        }
        client.readable().await.map_err(|_| Ended::ClientGone)?;
        let mut buffer = Buffer::take();
        match client.try_read(buffer.payload_mut(PAYLOAD)) {
            Ok(0) => break,
            Ok(length) => {
                turn.moved(length).await;
                let chunk: Bytes = buffer.freeze(HEADROOM, HEADROOM + length);
                take(tunnel, chunk, &mut payload).await?;
                write(tunnel, &mut payload).await?;
                long = tunnel.machine.borrow().payload_pending() >= WORTH_SPLICING;
            }
            Err(error) if would_block(&error) => {}
            Err(_) => return Err(Ended::ClientGone),
        }
    }
    half.ended();
    tunnel.client_ended()
}

/// What became of an attempt to fill a pipe.
enum Filled {
    /// It holds bytes of the data stream.
    Pipe(Loan),
    /// Splicing stops at urgent data; these bytes, urgent ones left out, were read past it.
    Copied(Bytes),
    /// The client sent FIN.
    End,
    /// There is no pipe to be had.
    NoPipe,
}

/// Waits for bytes of the data stream and moves them into a pipe.
async fn fill(client: &TcpStream, pipe_limit: usize) -> Result<Filled, Ended> {
    loop {
        match fill_now(client, pipe_limit) {
            Ok(Some((_, 0))) => return Ok(Filled::End),
            Ok(Some((pipe, _))) => return Ok(Filled::Pipe(pipe)),
            Ok(None) => return Ok(Filled::NoPipe),
            Err(error) if would_block(&error) => {}
            // A socket tells its error only once.
            Err(_) => return Err(Ended::ClientGone),
        }
        match receive(client) {
            Ok((_, 0)) => return Ok(Filled::End),
            Ok((buffer, length)) => {
                return Ok(Filled::Copied(buffer.freeze(HEADROOM, HEADROOM + length)));
            }
            Err(error) if would_block(&error) => {}
            Err(_) => return Err(Ended::ClientGone),
        }
        client.readable().await.map_err(|_| Ended::ClientGone)?;
    }
}

/// Moves the data stream in a pipe on to the target, headers left out. Tells whether payloads are still long.
async fn forward(
    tunnel: &Tunnel<'_>,
    mut pipe: Loan,
    payload: &mut Vec<Bytes>,
    turn: &mut Turn,
) -> Result<bool, Ended> {
    // Whether the payload at hand is a long one: then its last bytes are spliced too, however few they are.
    let mut long = true;
    // The target's socket holds bytes back because more was to follow.
    let mut corked = false;
    while pipe.held() > 0 {
        let pending = tunnel.machine.borrow().payload_pending();
        if pending >= WORTH_SPLICING || (long && pending > 0) {
            long = true;
            let most = usize::try_from(pending)
                .unwrap_or(usize::MAX)
                .min(pipe.held());
            // What is no longer than a header may be one, with nothing behind it to wait for.
            let more = pipe.held() - most > MAX_HEADER;
            let moved = drain(&mut pipe, tunnel.tcp(), most, more)
                .await
                .map_err(|_| Ended::TargetGone)?;
            corked = more && moved == most;
            tunnel.moved_up(moved);
            tunnel.machine.borrow_mut().advance(moved as u64);
            // The end of the payload may also be the end of the direction.
            take(tunnel, Bytes::new(), payload).await?;
            turn.moved(moved).await;
            continue;
        }
        let most = if long { PEEK } else { PAYLOAD };
        let mut buffer = Buffer::take();
        let length = pipe
            .read(buffer.payload_mut(most))
            .map_err(|_| Ended::TargetGone)?;
        turn.moved(length).await;
        take(tunnel, buffer.freeze(HEADROOM, HEADROOM + length), payload).await?;
        long = tunnel.machine.borrow().payload_pending() >= WORTH_SPLICING
            || (long && payload.is_empty());
        if long && pipe.held() > 0 {
            // The first bytes of a long payload, read with its header, leave with the rest of it.
            for few in payload.drain(..) {
                send_more(tunnel.tcp(), &few)
                    .await
                    .map_err(|_| Ended::TargetGone)?;
                tunnel.moved_up(few.len());
                corked = true;
            }
        } else {
            corked &= payload.is_empty();
            write(tunnel, payload).await?;
        }
    }
    if corked {
        // Sets free what waits for more.
        let _ = tunnel.tcp().set_nodelay(true);
    }
    Ok(long)
}

/// Reads whatever there is, not through the socket's readiness: past urgent data, where splicing sees nothing to move.
fn receive(from: &TcpStream) -> io::Result<(Buffer, usize)> {
    let mut buffer = Buffer::take();
    let (length, _) = recv(from, buffer.payload_mut(PAYLOAD), RecvFlags::DONTWAIT)?;
    Ok((buffer, length))
}

/// Moves what `from` has into a pipe, as far as it fits; `None` if there is no pipe to be had.
fn fill_now(from: &TcpStream, pipe_limit: usize) -> io::Result<Option<(Loan, usize)>> {
    let Ok(mut pipe) = Loan::take(pipe_limit) else {
        return Ok(None);
    };
    let moved = from.try_io(Interest::READABLE, || pipe.fill(from, pipe_limit))?;
    Ok(Some((pipe, moved)))
}

/// Moves some of `most` bytes from a pipe to a socket; `more` has them wait for what follows.
async fn drain(pipe: &mut Loan, to: &TcpStream, most: usize, more: bool) -> io::Result<usize> {
    loop {
        match to.try_io(Interest::WRITABLE, || pipe.drain(to, most, more)) {
            Err(error) if would_block(&error) => to.writable().await?,
            other => return other,
        }
    }
}

/// Target to client until the target sends FIN.
pub(super) async fn down<S: SendHalf>(tunnel: &Tunnel<'_>, send: &mut S) -> Result<(), Ended> {
    let target = tunnel.tcp();
    let mut turn = Turn::default();
    loop {
        let Some(client) = send.socket() else {
            return stream::down(tunnel, send).await;
        };
        match fill_now(target, tunnel.pipe_limit) {
            Ok(Some((_, 0))) => return Ok(()),
            Ok(Some((mut pipe, length))) => {
                let mut header = [0; MAX_HEADER];
                let size = tunnel
                    .machine
                    .borrow_mut()
                    .outbound_header(length, &mut header);
                send_more(client, &header[..size])
                    .await
                    .map_err(|_| Ended::ClientGone)?;
                while pipe.held() > 0 {
                    let held = pipe.held();
                    let moved = drain(&mut pipe, client, held, false)
                        .await
                        .map_err(|_| Ended::ClientGone)?;
                    tunnel.moved_down(moved);
                }
                drop(pipe);
                turn.moved(length).await;
                continue;
            }
            Ok(None) => return stream::down(tunnel, send).await,
            Err(error) if would_block(&error) => {}
            Err(_) => return Err(Ended::TargetGone),
        }
        match receive(target) {
            Ok((_, 0)) => return Ok(()),
            Ok((buffer, length)) => {
                stream::forward(tunnel, send, buffer, length, PAYLOAD + HEADROOM).await?;
                continue;
            }
            Err(error) if would_block(&error) => {}
            Err(_) => return Err(Ended::TargetGone),
        }
        let readable = std::pin::pin!(target.readable());
        let gone = std::pin::pin!(send.gone());
        match select(readable, gone).await {
            Either::Left((ready, _)) => ready.map_err(|_| Ended::TargetGone)?,
            Either::Right((gone, _)) => return Err(gone.into()),
        }
    }
}

/// Writes a few bytes that leave with what is spliced after them.
async fn send_more(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let flags = SendFlags::MORE | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = to.try_io(Interest::WRITABLE, || {
            send_message(to, bytes, flags).map_err(io::Error::from)
        });
        match sent {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if would_block(&error) => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
