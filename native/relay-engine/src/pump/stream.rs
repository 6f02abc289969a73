//! The pump through user space: `Bytes` from the client go to the target as they are, target bytes are read behind headroom so
//! that header and payload leave as one chunk.

use std::io::{self, ErrorKind, IoSlice};
use std::time::Duration;

use bytes::{Buf, Bytes};
use capsule_core::capsule::MAX_HEADER;
use capsule_core::tunnel::{Step, StreamTunnel};
use futures_util::future::{Either, select};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Ended, Tunnel, Turn};
use crate::pool::{Buffer, HEADROOM, PAYLOAD};
use crate::transport::{RecvHalf, SendHalf};

/// Slices of one `writev`.
const SLICES: usize = 64;

/// How often a client is looked after while the target takes nothing.
const LOOK: Duration = Duration::from_secs(1);

/// Client to target until the client's data stream ends.
pub(super) async fn up<R: RecvHalf>(tunnel: &Tunnel<'_>, recv: &mut R) -> Result<(), Ended> {
    let mut chunks = Vec::new();
    let mut payload = Vec::new();
    let mut turn = Turn::default();
    while recv.recv(&mut chunks).await? {
        let mut received = 0;
        for chunk in chunks.drain(..) {
            received += chunk.len();
            take(tunnel, chunk, &mut payload).await?;
        }
        {
            let mut writing = std::pin::pin!(write(tunnel, &mut payload));
            loop {
                match timeout(LOOK, &mut writing).await {
                    Ok(written) => break written?,
                    //= rfc9114 §4.4 connect-reset
                    Err(_) if recv.lost() => return Err(Ended::ClientGone),
                    Err(_) => {}
                }
            }
        }
        recv.release(received);
        turn.moved(received).await;
    }
    tunnel.client_ended()
}

/// Sorts the payload out of a chunk; sends FIN where the protocol says so.
pub(super) async fn take(
    tunnel: &Tunnel<'_>,
    mut chunk: Bytes,
    payload: &mut Vec<Bytes>,
) -> Result<(), Ended> {
    tunnel.taken.set(tunnel.taken.get() + chunk.len() as u64);
    loop {
        let step = tunnel.machine.borrow_mut().inbound(&chunk)?;
        match step {
            Step::Skip(bytes) => chunk.advance(bytes),
            Step::Payload(_) if chunk.is_empty() => return Ok(()),
            //= connect-tcp §3 forward-partial
            //= connect-tcp §3 payload-is-stream
            Step::Payload(bytes) => {
                let length = usize::try_from(bytes)
                    .unwrap_or(usize::MAX)
                    .min(chunk.len());
                payload.push(chunk.split_to(length));
                tunnel.machine.borrow_mut().advance(length as u64);
            }
            Step::Finish => {
                write(tunnel, payload).await?;
                tunnel.send_fin()?;
            }
            Step::Idle => return Ok(()),
        }
    }
}

/// Writes all of `payload` to the target, many slices a system call.
pub(super) async fn write(tunnel: &Tunnel<'_>, payload: &mut Vec<Bytes>) -> Result<(), Ended> {
    let tcp = tunnel.tcp();
    let mut first = 0;
    while first < payload.len() {
        match try_write(tcp, &payload[first..]) {
            Ok(mut written) => {
                tunnel.moved_up(written);
                while written > 0 {
                    let front = payload[first].len().min(written);
                    payload[first].advance(front);
                    written -= front;
                    if payload[first].is_empty() {
                        first += 1;
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                tcp.writable().await.map_err(|_| Ended::TargetGone)?;
            }
            Err(_) => return Err(Ended::TargetGone),
        }
    }
    payload.clear();
    Ok(())
}

/// Writes what the socket takes at once. Apart, because its slices have no place in the memory of a tunnel that waits.
fn try_write(tcp: &TcpStream, payload: &[Bytes]) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); SLICES];
    let count = payload.len().min(SLICES);
    for (slice, bytes) in slices.iter_mut().zip(payload) {
        *slice = IoSlice::new(bytes);
    }
    tcp.try_write_vectored(&slices[..count])
}

/// Target to client until the target sends FIN.
pub(super) async fn down<S: SendHalf>(tunnel: &Tunnel<'_>, send: &mut S) -> Result<(), Ended> {
    let tcp = tunnel.tcp();
    let mut turn = Turn::default();
    loop {
        // Nothing is reserved while the target is quiet: neither a buffer nor the client's window.
        {
            let readable = std::pin::pin!(tcp.readable());
            let gone = std::pin::pin!(send.gone());
            match select(readable, gone).await {
                Either::Left((ready, _)) => ready.map_err(|_| Ended::TargetGone)?,
                Either::Right((gone, _)) => return Err(gone.into()),
            }
        }
        let room = send.ready(PAYLOAD).await?;
        let limit = room.saturating_sub(overhead(tunnel, room)).max(1);
        let mut buffer = Buffer::take();
        match tcp.try_read(buffer.payload_mut(limit)) {
            Ok(0) => {
                send.unready();
                return Ok(());
            }
            Ok(length) => {
                forward(tunnel, send, buffer, length, room).await?;
                turn.moved(length).await;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => send.unready(),
            Err(_) => return Err(Ended::TargetGone),
        }
    }
}

/// Sends the payload of `buffer` as the protocol has it.
pub(super) async fn forward<S: SendHalf>(
    tunnel: &Tunnel<'_>,
    send: &mut S,
    mut buffer: Buffer,
    length: usize,
    room: usize,
) -> Result<(), Ended> {
    let mut header = [0; MAX_HEADER];
    let size = tunnel
        .machine
        .borrow_mut()
        .outbound_header(length, &mut header);
    let start = buffer.prepend(HEADROOM, &header[..size]);
    let end = HEADROOM + length;
    if end - start <= room {
        send.send(buffer, start, end).await?;
    } else {
        Box::pin(send_in_pieces(send, buffer, start, end)).await?;
    }
    tunnel.moved_down(length);
    Ok(())
}

/// Sends a chunk that is longer than the window, which happens only where that is smaller than a header: in buffers of their own.
pub(super) async fn send_in_pieces<S: SendHalf>(
    send: &mut S,
    buffer: Buffer,
    start: usize,
    end: usize,
) -> Result<(), Ended> {
    let mut at = start;
    while at < end {
        let length = send.ready(end - at).await?.min(end - at);
        let mut piece = Buffer::take();
        piece
            .payload_mut(length)
            .copy_from_slice(&buffer.as_ref()[at..at + length]);
        send.send(piece, HEADROOM, HEADROOM + length).await?;
        at += length;
    }
    Ok(())
}

/// Bytes that the protocol puts before a payload of up to `room` bytes.
fn overhead(tunnel: &Tunnel<'_>, room: usize) -> usize {
    tunnel
        .machine
        .borrow_mut()
        .outbound_header(room, &mut [0; MAX_HEADER])
}
