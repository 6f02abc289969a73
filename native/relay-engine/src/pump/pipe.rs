//! Pipes for `splice(2)`, lent by a per-thread pool only while bytes are in flight.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::pool;

/// Empty pipes that a thread keeps.
const KEEP: usize = 16;
/// What every pipe has without asking.
const DEFAULT_SIZE: usize = 64 * 1024;

thread_local! {
    static FREE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

/// A pipe on loan, and how many bytes are in it.
#[derive(Debug)]
pub(super) struct Loan {
    pipe: Option<Pipe>,
    held: usize,
    size: usize,
}

impl Loan {
    /// Borrows an empty pipe of about `limit` bytes. Fails when descriptors are used up.
    pub(super) fn take(limit: usize) -> io::Result<Self> {
        let pooled = FREE.with_borrow_mut(|free| {
            let fitting = free
                .iter()
                .rposition(|pipe| pipe.size <= limit.max(DEFAULT_SIZE))?;
            Some(free.swap_remove(fitting))
        });
        let pipe = match pooled {
            Some(pipe) => pipe,
            None => {
                let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
                // Unprivileged users have a budget of pipe pages; beyond it the pipe stays as it is.
                let size = fcntl_setpipe_size(&write, limit).unwrap_or(DEFAULT_SIZE);
                Pipe { read, write, size }
            }
        };
        pool::account(pipe.size);
        Ok(Self {
            size: pipe.size,
            pipe: Some(pipe),
            held: 0,
        })
    }

    /// Bytes in the pipe.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves up to `most` bytes from a socket into the pipe; 0 is the socket's end.
    pub(super) fn fill(&mut self, from: impl AsFd, most: usize) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = splice(from, None, &pipe.write, None, most.min(self.size), flags)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves up to `most` bytes from the pipe to a socket; `more`: others follow at once, and may leave with them.
    pub(super) fn drain(&mut self, to: impl AsFd, most: usize, more: bool) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        flags.set(SpliceFlags::MORE, more);
        let moved = splice(&pipe.read, None, to, None, most.min(self.held), flags)?;
        self.held -= moved;
        Ok(moved)
    }

    /// Takes bytes out of the pipe.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let length = rustix::io::read(&pipe.read, into)?;
        self.held -= length.min(self.held);
        Ok(length)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        pool::unaccount(self.size);
        // A pipe with bytes of a broken tunnel in it is closed, never lent again.
        if self.held == 0
            && let Some(pipe) = self.pipe.take()
        {
            let _ = FREE.try_with(|free| {
                let mut free = free.borrow_mut();
                if free.len() < KEEP {
                    free.push(pipe);
                }
            });
        }
    }
}
