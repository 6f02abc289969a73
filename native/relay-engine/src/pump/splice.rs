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
pub(super) async fn up<R: RecvHalf>(tunnel: &Tunnel<'_>, half: &mut R) -> Result<(), Ended> {
    let Some(client) = half.socket() else {
        return stream::up(tunnel, half).await;
    };
    let mut payload = Vec::new();
    let mut turn = Turn::default();
    let mut long = false;
    loop {
        let pending = tunnel.machine.borrow().payload_pending();
        // The rest of a long payload goes the way of its beginning.
        if pending >= WORTH_SPLICING || (long && pending > 0) {
            match splice_up(tunnel, client, pending).await? {
                Moved::End => break,
                Moved::Copied(chunk) => {
                    turn.moved(chunk.len()).await;
                    take(tunnel, chunk, &mut payload).await?;
                    write(tunnel, &mut payload).await?;
                    continue;
                }
                Moved::Spliced(moved) => {
                    tunnel.machine.borrow_mut().advance(moved);
                    // The end of the payload may also be the end of the direction.
                    take(tunnel, Bytes::new(), &mut payload).await?;
                    long = true;
                    turn.moved(usize::try_from(moved).unwrap_or(usize::MAX))
                        .await;
                    continue;
                }
                // No pipe to be had: copy.
                Moved::NoPipe => long = false,
            }
        }
        if tunnel.piped.borrow().is_none() {
            client.readable().await.map_err(|_| Ended::ClientGone)?;
        }
        let mut buffer = Buffer::take();
        let most = if long { PEEK } else { PAYLOAD };
        match client.try_read(buffer.payload_mut(most)) {
            Ok(0) => break,
            Ok(length) => {
                turn.moved(length).await;
                let chunk: Bytes = buffer.freeze(HEADROOM, HEADROOM + length);
                take(tunnel, chunk, &mut payload).await?;
                let pending = tunnel.machine.borrow().payload_pending();
                if long && payload.is_empty() && pending >= WORTH_SPLICING {
                    // A header alone: what is in the pipe waits for what can be had at once.
                    continue;
                }
                long = pending >= WORTH_SPLICING;
                flush(tunnel).await?;
                // The first bytes of a long payload, read with its header, leave with what can be spliced already.
                let next = match &payload[..] {
                    [_] if long => fill_now(client, pending, tunnel.pipe_limit),
                    _ => Ok(None),
                };
                match (next, &payload[..]) {
                    (Ok(Some((pipe, moved))), [few]) if moved > 0 => {
                        send_more(tunnel.tcp(), few)
                            .await
                            .map_err(|_| Ended::TargetGone)?;
                        tunnel.moved_up(few.len());
                        payload.clear();
                        tunnel.piped.borrow_mut().replace(pipe);
                        flush(tunnel).await?;
                        tunnel.machine.borrow_mut().advance(moved as u64);
                        take(tunnel, Bytes::new(), &mut payload).await?;
                    }
                    // A socket tells its error only once.
                    (Err(error), _) if !would_block(&error) => return Err(Ended::ClientGone),
                    // An end shows again at the next read.
                    _ => write(tunnel, &mut payload).await?,
                }
            }
            Err(error) if would_block(&error) => flush(tunnel).await?,
            Err(_) => return Err(Ended::ClientGone),
        }
    }
    flush(tunnel).await?;
    half.ended();
    tunnel.client_ended()
}

/// What became of an attempt to splice.
enum Moved {
    /// So many bytes are in the pipe.
    Spliced(u64),
    /// Splicing stops at urgent data; these bytes, urgent ones left out, were read past it.
    Copied(Bytes),
    /// The client sent FIN.
    End,
    /// There is no pipe to be had.
    NoPipe,
}

/// Moves payload from the client into the pipe. What is in the pipe leaves once it is full or the client pauses: short capsules reach the target as long writes.
async fn splice_up(tunnel: &Tunnel<'_>, client: &TcpStream, most: u64) -> Result<Moved, Ended> {
    let piped = tunnel.piped.borrow_mut().take();
    if let Some(mut pipe) = piped {
        let room = tunnel.pipe_limit.saturating_sub(pipe.held());
        let room = usize::try_from(most).unwrap_or(usize::MAX).min(room);
        // Not through the socket's readiness: a full pipe and an empty socket look the same here.
        let filled = if room > 0 {
            pipe.fill(client, room)
        } else {
            Ok(0)
        };
        tunnel.piped.borrow_mut().replace(pipe);
        match filled {
            Ok(moved) if moved > 0 => return Ok(Moved::Spliced(moved as u64)),
            // A socket tells its error only once.
            Err(error) if !would_block(&error) => return Err(Ended::ClientGone),
            // Full, empty or at the end: which one shows once the pipe is empty.
            _ => flush(tunnel).await?,
        }
    }
    loop {
        match fill_now(client, most, tunnel.pipe_limit) {
            Ok(Some((_, 0))) => return Ok(Moved::End),
            Ok(Some((pipe, moved))) => {
                tunnel.piped.borrow_mut().replace(pipe);
                return Ok(Moved::Spliced(moved as u64));
            }
            Ok(None) => return Ok(Moved::NoPipe),
            Err(error) if would_block(&error) => {}
            Err(_) => return Err(Ended::ClientGone),
        }
        match receive(client) {
            Ok((_, 0)) => return Ok(Moved::End),
            Ok((buffer, length)) => {
                return Ok(Moved::Copied(buffer.freeze(HEADROOM, HEADROOM + length)));
            }
            Err(error) if would_block(&error) => {}
            Err(_) => return Err(Ended::ClientGone),
        }
        client.readable().await.map_err(|_| Ended::ClientGone)?;
    }
}

/// Reads whatever there is, not through the socket's readiness: past urgent data, where splicing sees nothing to move.
fn receive(from: &TcpStream) -> io::Result<(Buffer, usize)> {
    let mut buffer = Buffer::take();
    let (length, _) = recv(from, buffer.payload_mut(PAYLOAD), RecvFlags::DONTWAIT)?;
    Ok((buffer, length))
}

/// Moves everything in the pipe to the target.
pub(super) async fn flush(tunnel: &Tunnel<'_>) -> Result<(), Ended> {
    let piped = tunnel.piped.borrow_mut().take();
    if let Some(mut pipe) = piped {
        while pipe.held() > 0 {
            let drained = drain(&mut pipe, tunnel.tcp())
                .await
                .map_err(|_| Ended::TargetGone)?;
            tunnel.moved_up(drained);
        }
    }
    Ok(())
}

/// Moves what `from` has, up to `most` bytes, into a pipe; `None` if there is no pipe to be had.
fn fill_now(from: &TcpStream, most: u64, pipe_limit: usize) -> io::Result<Option<(Loan, usize)>> {
    let Ok(mut pipe) = Loan::take(pipe_limit) else {
        return Ok(None);
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX).min(pipe_limit);
    let moved = from.try_io(Interest::READABLE, || pipe.fill(from, most))?;
    Ok(Some((pipe, moved)))
}

async fn drain(pipe: &mut Loan, to: &TcpStream) -> io::Result<usize> {
    loop {
        match to.try_io(Interest::WRITABLE, || pipe.drain(to)) {
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
        let most = tunnel.pipe_limit as u64;
        match fill_now(target, most, tunnel.pipe_limit) {
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
                    let moved = drain(&mut pipe, client)
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
