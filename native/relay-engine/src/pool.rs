//! Read buffers with headroom, reused per worker thread while they are hot.
//!
//! A buffer lends its front to the headers that go before a payload (capsule header, HTTP frame header), so that header and
//! payload leave as one chunk without a copy. Dropping the last `Bytes` of a buffer gives it back to the thread that drops it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Bytes kept free in front of a payload: 16 for a capsule header, 9 for an HTTP/3 frame header, rounded up.
pub const HEADROOM: usize = 32;
/// Payload room of one buffer.
pub const PAYLOAD: usize = 64 * 1024;
/// Bytes behind the payload: what TLS puts between and behind the records of a full buffer.
const TAILROOM: usize = 256;
/// All bytes of one buffer.
pub const SIZE: usize = HEADROOM + PAYLOAD + TAILROOM;
/// Below this bytes are copied out: a queue of small chunks must not keep a whole buffer for each.
const WORTH_KEEPING: usize = PAYLOAD / 4;
/// Buffers that a thread keeps for itself.
const KEEP: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of all buffers that are in use anywhere in the process.
static IN_USE: AtomicUsize = AtomicUsize::new(0);

/// Bytes of tunnel buffers in use in the process, pipes included.
pub fn in_use() -> usize {
    IN_USE.load(Ordering::Relaxed)
}

/// Accounts for memory that is not in these buffers, such as pipe pages.
pub fn account(bytes: usize) {
    IN_USE.fetch_add(bytes, Ordering::Relaxed);
}

/// The reverse of [`account`].
pub fn unaccount(bytes: usize) {
    IN_USE.fetch_sub(bytes, Ordering::Relaxed);
}

/// A buffer of [`SIZE`] bytes on loan.
#[derive(Debug)]
pub struct Buffer {
    storage: Option<Box<[u8]>>,
    hold: Option<Hold>,
}

/// What all tunnels of a connection may have given to its transport without its having let go of it, in bytes. Keeps the memory that
/// many tunnels send from as small and as hot as that of one, and lets them send in turn.
#[derive(Debug, Clone)]
pub struct Allowance(Arc<Allowed>);

#[derive(Debug)]
struct Allowed {
    most: usize,
    held: AtomicUsize,
    less: Notify,
}

impl Allowance {
    /// So many bytes.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Allowed {
            most,
            held: AtomicUsize::new(0),
            less: Notify::new(),
        }))
    }

    /// Whether there is room.
    pub fn has_room(&self) -> bool {
        self.0.held.load(Ordering::Acquire) < self.0.most
    }

    /// Waits for room. Whoever is let through passes the word on, by [`pass_on`](Self::pass_on), once it took what it needs.
    pub async fn room(&self) {
        while !self.has_room() {
            let less = self.0.less.notified();
            // Between the look and the wait the last byte may have gone.
            if self.has_room() {
                return;
            }
            less.await;
        }
    }

    /// Lets the next one look.
    pub fn pass_on(&self) {
        if self.has_room() {
            self.0.less.notify_one();
        }
    }
}

/// Counts the chunks that a transport was given and has not let go of yet.
#[derive(Debug, Clone, Default)]
pub struct Backlog(Arc<Held>);

#[derive(Debug, Default)]
struct Held {
    chunks: AtomicUsize,
    waiting: AtomicBool,
    fewer: Notify,
    allowance: Option<Allowance>,
}

impl Backlog {
    /// One whose bytes count against an allowance too.
    pub fn within(allowance: &Allowance) -> Self {
        Self(Arc::new(Held {
            allowance: Some(allowance.clone()),
            ..Held::default()
        }))
    }

    /// Chunks that are still held.
    pub fn held(&self) -> usize {
        self.0.chunks.load(Ordering::Acquire)
    }

    /// Waits until fewer than `most` chunks are held. One waiter at a time.
    pub async fn below(&self, most: usize) {
        loop {
            let fewer = self.0.fewer.notified();
            self.0.waiting.store(true, Ordering::Release);
            if self.held() < most {
                self.0.waiting.store(false, Ordering::Release);
                return;
            }
            fewer.await;
        }
    }

    /// Waits, not longer than `limit`, until nothing is held.
    pub async fn drained(&self, limit: Duration) {
        let _ = timeout(limit, self.below(1)).await;
    }

    /// Counts bytes that are not in a buffer until the last reference to them is dropped.
    pub fn count(&self, bytes: Bytes) -> Bytes {
        struct Counted {
            bytes: Bytes,
            _hold: Hold,
        }
        impl AsRef<[u8]> for Counted {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        let _hold = self.hold(bytes.len());
        Bytes::from_owner(Counted { bytes, _hold })
    }

    fn hold(&self, bytes: usize) -> Hold {
        self.0.chunks.fetch_add(1, Ordering::AcqRel);
        if let Some(allowance) = &self.0.allowance {
            allowance.0.held.fetch_add(bytes, Ordering::AcqRel);
        }
        Hold {
            backlog: self.clone(),
            bytes,
        }
    }
}

/// One chunk's place in a backlog.
#[derive(Debug)]
struct Hold {
    backlog: Backlog,
    bytes: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let held = &self.backlog.0;
        if let Some(allowance) = &held.allowance {
            allowance.0.held.fetch_sub(self.bytes, Ordering::AcqRel);
            allowance.pass_on();
        }
        held.chunks.fetch_sub(1, Ordering::AcqRel);
        if held.waiting.load(Ordering::Acquire) {
            held.fewer.notify_one();
        }
    }
}

impl Buffer {
    /// Borrows a buffer; its content is unspecified.
    pub fn take() -> Self {
        IN_USE.fetch_add(SIZE, Ordering::Relaxed);
        let storage = FREE
            .with_borrow_mut(Vec::pop)
            .unwrap_or_else(|| vec![0; SIZE].into_boxed_slice());
        Self {
            storage: Some(storage),
            hold: None,
        }
    }

    /// The whole buffer, headroom first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.storage.as_deref_mut().unwrap_or_default()
    }

    /// The room for payload, up to `limit` bytes.
    pub fn payload_mut(&mut self, limit: usize) -> &mut [u8] {
        &mut self.bytes_mut()[HEADROOM..HEADROOM + limit.min(PAYLOAD)]
    }

    /// Puts `header` right before whatever starts at `start`; returns the new start.
    pub fn prepend(&mut self, start: usize, header: &[u8]) -> usize {
        let front = start - header.len();
        self.bytes_mut()[front..start].copy_from_slice(header);
        front
    }

    /// Freezes `start..end` of the buffer without a copy, unless it is so little that it had better not keep the buffer.
    pub fn freeze(self, start: usize, end: usize) -> Bytes {
        if end - start < WORTH_KEEPING {
            return Bytes::copy_from_slice(&self.as_ref()[start..end]);
        }
        Bytes::from_owner(self).slice(start..end)
    }

    /// As [`freeze`](Self::freeze), and counted by `backlog` until the last `Bytes` is dropped.
    pub fn freeze_counted(mut self, start: usize, end: usize, backlog: &Backlog) -> Bytes {
        if end - start < WORTH_KEEPING {
            return Bytes::from_owner(Few {
                bytes: self.as_ref()[start..end].into(),
                _hold: backlog.hold(end - start),
            });
        }
        self.hold = Some(backlog.hold(end - start));
        self.freeze(start, end)
    }
}

/// A few bytes that were copied out of a buffer.
struct Few {
    bytes: Box<[u8]>,
    _hold: Hold,
}

impl AsRef<[u8]> for Few {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.storage.as_deref().unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        IN_USE.fetch_sub(SIZE, Ordering::Relaxed);
        if let Some(storage) = self.storage.take() {
            // A thread that is ending has no list any more; the buffer is simply freed then.
            let _ = FREE.try_with(|free| {
                let mut free = free.borrow_mut();
                if free.len() < KEEP {
                    free.push(storage);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn header_and_payload_leave_as_one_chunk() {
        let mut buffer = Buffer::take();
        buffer.payload_mut(5).copy_from_slice(b"hello");
        let start = buffer.prepend(HEADROOM, b"capsule ");
        let start = buffer.prepend(start, b"frame ");
        let chunk = buffer.freeze(start, HEADROOM + 5);
        assert_eq!(&chunk[..], b"frame capsule hello");
    }

    #[test]
    fn a_dropped_buffer_is_reused() {
        let buffer = Buffer::take();
        let address = buffer.as_ref().as_ptr();
        drop(buffer.freeze(0, SIZE));
        assert_eq!(Buffer::take().as_ref().as_ptr(), address);
    }

    #[test]
    fn a_few_bytes_do_not_keep_a_buffer() {
        let backlog = Backlog::default();
        let mut buffer = Buffer::take();
        let address = buffer.as_ref().as_ptr();
        buffer.payload_mut(3).copy_from_slice(b"few");
        let few = buffer.freeze_counted(HEADROOM, HEADROOM + 3, &backlog);
        assert_eq!(Buffer::take().as_ref().as_ptr(), address);
        assert_eq!((&few[..], backlog.held()), (&b"few"[..], 1));
        drop(few);
        assert_eq!(backlog.held(), 0);
    }

    #[tokio::test]
    async fn an_allowance_lets_them_send_in_turn() {
        let allowance = Allowance::new(100);
        let (one, two) = (Backlog::within(&allowance), Backlog::within(&allowance));
        allowance.room().await;
        // What was let through may be more than what was left.
        let chunks = [one.count(vec![0; 60].into()), two.count(vec![0; 60].into())];
        let waiting = [(); 2].map(|()| {
            tokio::spawn({
                let allowance = allowance.clone();
                async move {
                    allowance.room().await;
                    allowance.pass_on();
                }
            })
        });
        tokio::task::yield_now().await;
        assert!(!waiting[0].is_finished());
        drop(chunks);
        for waiting in waiting {
            waiting.await.unwrap();
        }
    }
}
