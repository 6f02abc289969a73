//! The two directions of a stream.

use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use quinn_proto::{
    ConnectionError, FinishError, ReadError as Unread, StreamId, VarInt, WriteError as Unwritten,
};
use thiserror::Error;

use super::connection::{Handle, State};

/// A stream takes nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WriteError {
    /// The peer wants no more of it.
    #[error("stopped by the peer with code {0}")]
    Stopped(VarInt),
    /// It was finished or reset before.
    #[error("the stream is closed")]
    Closed,
    /// The connection is lost.
    #[error("connection lost: {0}")]
    Lost(ConnectionError),
}

/// A stream gives nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReadError {
    /// The peer reset it.
    #[error("reset by the peer with code {0}")]
    Reset(VarInt),
    /// It was stopped before.
    #[error("the stream is closed")]
    Closed,
    /// The connection is lost.
    #[error("connection lost: {0}")]
    Lost(ConnectionError),
}

/// The direction that this side writes. Dropped as it is, it ends cleanly.
pub struct SendStream {
    connection: Rc<Handle>,
    id: StreamId,
}

impl fmt::Debug for SendStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SendStream").field(&self.id).finish()
    }
}

impl SendStream {
    pub(super) const fn new(connection: Rc<Handle>, id: StreamId) -> Self {
        Self { connection, id }
    }

    /// Which stream it is.
    pub const fn id(&self) -> StreamId {
        self.id
    }

    /// Does something to the stream that the peer is to hear of.
    fn act<T>(&self, act: impl FnOnce(&mut State, StreamId) -> T) -> T {
        let inner = &self.connection.0;
        let done = act(&mut inner.state.borrow_mut(), self.id);
        inner.touch();
        done
    }

    /// Waits until it is this stream's turn to write: behind the others of its connection, if the connection's window is shut.
    /// A stream whose own window is shut is let through.
    pub async fn turn(&self) {
        poll_fn(|cx| {
            let mut state = self.connection.0.state.borrow_mut();
            if state.error.is_some() || state.turns.admit(self.id, cx.waker()) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// Gives the turn up, with nothing written.
    pub fn pass(&self) {
        self.connection.0.state.borrow_mut().turns.done(self.id);
    }

    /// Writes all of `chunk`, without a copy.
    ///
    /// # Errors
    /// The peer stopped the stream, it was closed, or the connection is lost.
    pub async fn write_chunk(&mut self, chunk: Bytes) -> Result<(), WriteError> {
        let mut chunk = [chunk];
        poll_fn(|cx| self.poll_write(cx, &mut chunk)).await
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    /// As for [`write_chunk`](Self::write_chunk).
    pub async fn write_all(&mut self, data: &[u8]) -> Result<(), WriteError> {
        self.write_chunk(Bytes::copy_from_slice(data)).await
    }

    fn poll_write(
        &self,
        cx: &mut Context<'_>,
        chunk: &mut [Bytes; 1],
    ) -> Poll<Result<(), WriteError>> {
        let inner = &self.connection.0;
        let mut state = inner.state.borrow_mut();
        if let Some(error) = &state.error {
            return Poll::Ready(Err(WriteError::Lost(error.clone())));
        }
        if !state.turns.admit(self.id, cx.waker()) {
            return Poll::Pending;
        }
        let mut wrote = false;
        let result = loop {
            match state.proto.send_stream(self.id).write_chunks(chunk) {
                Ok(_) if chunk[0].is_empty() => {
                    wrote = true;
                    state.turns.done(self.id);
                    break Poll::Ready(Ok(()));
                }
                Ok(_) => wrote = true,
                Err(Unwritten::Blocked) => {
                    state.turns.blocked(self.id, wrote, cx.waker());
                    break Poll::Pending;
                }
                Err(Unwritten::Stopped(code)) => {
                    break Poll::Ready(Err(WriteError::Stopped(code)));
                }
                Err(Unwritten::ClosedStream) => break Poll::Ready(Err(WriteError::Closed)),
            }
        };
        // Others may wait for what became of this turn.
        if wrote || state.turns.is_moving() {
            drop(state);
            inner.touch();
        }
        result
    }

    /// Ends the stream behind what was written.
    ///
    /// # Errors
    /// It was closed before.
    pub fn finish(&mut self) -> Result<(), WriteError> {
        self.act(|state, id| {
            state.turns.forget(id);
            match state.proto.send_stream(id).finish() {
                // Whoever wants to know whether the peer stopped it asks `stopped`.
                Ok(()) | Err(FinishError::Stopped(_)) => Ok(()),
                Err(FinishError::ClosedStream) => Err(WriteError::Closed),
            }
        })
    }

    /// Gives up the stream, and what was written and is not delivered. Nothing happens if it is over.
    pub fn reset(&mut self, code: VarInt) {
        self.act(|state, id| {
            state.turns.forget(id);
            let _ = state.proto.send_stream(id).reset(code);
        });
    }

    /// Resolves when the peer stopped the stream, with its code, or everything arrived after [`finish`](Self::finish): `None`.
    /// Outlives the stream. One task at a time.
    pub fn stopped(&self) -> impl Future<Output = Result<Option<VarInt>, ConnectionError>> + use<> {
        let (connection, id) = (self.connection.clone(), self.id);
        poll_fn(move |cx| poll_stopped(&connection, id, cx))
    }

    /// As [`stopped`](Self::stopped), without a future of its own.
    pub fn poll_stopped(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<VarInt>, ConnectionError>> {
        poll_stopped(&self.connection, self.id, cx)
    }
}

fn poll_stopped(
    connection: &Handle,
    id: StreamId,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<VarInt>, ConnectionError>> {
    let mut state = connection.0.state.borrow_mut();
    match state.proto.send_stream(id).stopped() {
        Err(_) => return Poll::Ready(Ok(None)),
        Ok(Some(code)) => return Poll::Ready(Ok(Some(code))),
        Ok(None) => {}
    }
    if let Some(error) = &state.error {
        return Poll::Ready(Err(error.clone()));
    }
    state.stopped.insert(id, cx.waker().clone());
    Poll::Pending
}

impl Drop for SendStream {
    fn drop(&mut self) {
        let inner = &self.connection.0;
        let mut state = inner.state.borrow_mut();
        state.turns.forget(self.id);
        state.stopped.remove(&self.id);
        if state.error.is_some() {
            return;
        }
        match state.proto.send_stream(self.id).finish() {
            Ok(()) => {}
            Err(FinishError::Stopped(code)) => {
                let _ = state.proto.send_stream(self.id).reset(code);
            }
            // It is over; others may have waited behind it all the same.
            Err(FinishError::ClosedStream) if !state.turns.is_moving() => return,
            Err(FinishError::ClosedStream) => {}
        }
        drop(state);
        inner.touch();
    }
}

/// The direction that the peer writes. Dropped as it is, it is stopped with code 0.
pub struct RecvStream {
    connection: Rc<Handle>,
    id: StreamId,
    /// How it ended, once that was seen.
    end: Option<Result<(), ReadError>>,
}

impl fmt::Debug for RecvStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RecvStream").field(&self.id).finish()
    }
}

impl RecvStream {
    pub(super) const fn new(connection: Rc<Handle>, id: StreamId) -> Self {
        Self {
            connection,
            id,
            end: None,
        }
    }

    /// Which stream it is.
    pub const fn id(&self) -> StreamId {
        self.id
    }

    /// The next bytes, at most `most`; `None`: the stream is at its end. The peer gets credit for what is read.
    ///
    /// # Errors
    /// The peer reset the stream, it was stopped, or the connection is lost.
    pub async fn read_chunk(&mut self, most: usize) -> Result<Option<Bytes>, ReadError> {
        let mut batch = [Bytes::new()];
        let count = poll_fn(|cx| self.poll_read(Some(cx), &mut batch, most)).await?;
        let [chunk] = batch;
        Ok((count > 0).then_some(chunk))
    }

    /// Takes what is at hand into `batch`: how many chunks that were. `None`: nothing, not even the end.
    ///
    /// # Errors
    /// As for [`read_chunk`](Self::read_chunk).
    pub fn try_read(&mut self, batch: &mut [Bytes]) -> Result<Option<usize>, ReadError> {
        match self.poll_read(None, batch, usize::MAX) {
            Poll::Ready(read) => read.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    fn poll_read(
        &mut self,
        cx: Option<&mut Context<'_>>,
        batch: &mut [Bytes],
        most: usize,
    ) -> Poll<Result<usize, ReadError>> {
        if let Some(end) = &self.end {
            return Poll::Ready(end.clone().map(|()| 0));
        }
        let inner = &self.connection.0;
        let mut state = inner.state.borrow_mut();
        let mut stream = state.proto.recv_stream(self.id);
        let Ok(mut chunks) = stream.read(true) else {
            return Poll::Ready(Err(ReadError::Closed));
        };
        let mut count = 0;
        while let Some(slot) = batch.get_mut(count) {
            match chunks.next(most) {
                Ok(Some(chunk)) => {
                    *slot = chunk.bytes;
                    count += 1;
                }
                Ok(None) => {
                    self.end = Some(Ok(()));
                    break;
                }
                Err(Unread::Reset(code)) => {
                    self.end = Some(Err(ReadError::Reset(code)));
                    break;
                }
                Err(Unread::Blocked) => break,
            }
        }
        let credit = chunks.finalize().should_transmit();
        let result = match (&self.end, cx) {
            _ if count > 0 => Poll::Ready(Ok(count)),
            (Some(end), _) => Poll::Ready(end.clone().map(|()| 0)),
            (None, cx) => match (&state.error, cx) {
                (Some(error), _) => Poll::Ready(Err(ReadError::Lost(error.clone()))),
                (None, Some(cx)) => {
                    state.readers.insert(self.id, cx.waker().clone());
                    Poll::Pending
                }
                (None, None) => Poll::Pending,
            },
        };
        drop(state);
        if credit {
            inner.touch();
        }
        result
    }

    /// Tells the peer that no more is wanted, and forgets what arrived. Nothing happens if it is over.
    pub fn stop(&mut self, code: VarInt) {
        let inner = &self.connection.0;
        let _ = inner
            .state
            .borrow_mut()
            .proto
            .recv_stream(self.id)
            .stop(code);
        inner.touch();
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        let lost = {
            let mut state = self.connection.0.state.borrow_mut();
            state.readers.remove(&self.id);
            state.error.is_some()
        };
        if self.end.is_none() && !lost {
            self.stop(VarInt::from_u32(0));
        }
    }
}
