//! Whose turn it is to write, among the streams of a connection that wait for its window.
//!
//! A window that opens a little with every acknowledgement must not wake everybody who waits for it. Whoever finds it shut, or finds
//! others waiting, gets in line; the connection's driver hands out one turn at a time, and none while the window is known to be shut.

use std::collections::VecDeque;
use std::task::Waker;

use quinn_proto::StreamId;
use rustc_hash::FxHashMap;

/// Where a writer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The stack took nothing (more) and will say when it does.
    Blocked,
    /// In line; `credit`: its stream's own window is open, so that nothing but the connection's can stop it.
    InLine { credit: bool },
    /// It may write now.
    Turn { credit: bool },
}

/// The line.
#[derive(Debug, Default)]
pub(super) struct Turns {
    writers: FxHashMap<StreamId, (Place, Waker)>,
    line: VecDeque<StreamId>,
    /// The connection's window is shut; the stack will report the first one in line as writable.
    shut: bool,
}

impl Turns {
    /// Whether `stream` may write now. If not, it is in line, and `waker` is told.
    pub(super) fn admit(&mut self, stream: StreamId, waker: &Waker) -> bool {
        match self.writers.get_mut(&stream) {
            Some((Place::Turn { .. }, _)) => true,
            Some((_, known)) => {
                known.clone_from(waker);
                false
            }
            None if self.shut || !self.line.is_empty() => {
                let place = Place::InLine { credit: false };
                self.writers.insert(stream, (place, waker.clone()));
                self.line.push_back(stream);
                false
            }
            None => true,
        }
    }

    /// `stream` wrote all it had, or had nothing to write.
    pub(super) fn done(&mut self, stream: StreamId) {
        if !self.writers.is_empty() {
            self.writers.remove(&stream);
        }
    }

    /// The stack takes nothing more of `stream`; `wrote`: but it took something this time.
    pub(super) fn blocked(&mut self, stream: StreamId, wrote: bool, waker: &Waker) {
        let before = self.writers.get(&stream).map(|(place, _)| *place);
        let place = if before == Some(Place::Turn { credit: true }) && !wrote {
            self.shut = true;
            self.line.push_front(stream);
            Place::InLine { credit: true }
        } else {
            Place::Blocked
        };
        self.writers.insert(stream, (place, waker.clone()));
    }

    /// The stack reports that it takes something of `stream`.
    pub(super) fn writable(&mut self, stream: StreamId) {
        self.shut = false;
        let Some((place, _)) = self.writers.get_mut(&stream) else {
            return;
        };
        match *place {
            Place::Blocked => {
                // It holds what it wants to write: that goes before anybody takes up more.
                self.line.push_front(stream);
                *place = Place::InLine { credit: true };
            }
            Place::InLine { .. } => *place = Place::InLine { credit: true },
            Place::Turn { .. } => *place = Place::Turn { credit: true },
        }
    }

    /// Gives the turn to the next in line. Whoever had it before may keep it.
    pub(super) fn next(&mut self) -> Option<&Waker> {
        while !self.shut {
            let stream = self.line.pop_front()?;
            // A stream may be in line more than once, or gone.
            if let Some((place @ Place::InLine { .. }, _)) = self.writers.get_mut(&stream) {
                let Place::InLine { credit } = *place else {
                    continue;
                };
                *place = Place::Turn { credit };
                return self.writers.get(&stream).map(|(_, waker)| waker);
            }
        }
        None
    }

    /// Whether [`next`](Self::next) might give a turn.
    pub(super) fn is_moving(&self) -> bool {
        !self.shut && !self.line.is_empty()
    }

    /// `stream` must look at its state, whatever it waits for.
    pub(super) fn summon(&mut self, stream: StreamId) {
        if let Some((place, waker)) = self.writers.get_mut(&stream) {
            *place = Place::Turn { credit: false };
            waker.wake_by_ref();
        }
    }

    /// `stream` writes no more. The answer to "is the window open?" may have been its to get.
    pub(super) fn forget(&mut self, stream: StreamId) {
        if self.writers.remove(&stream).is_some() {
            self.shut = false;
        }
    }

    /// The connection is lost.
    pub(super) fn end(&mut self) {
        self.line.clear();
        self.shut = false;
        for (_, (_, waker)) in self.writers.drain() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use quinn_proto::{Dir, Side};

    use super::*;

    fn streams<const N: usize>() -> [StreamId; N] {
        std::array::from_fn(|index| StreamId::new(Side::Client, Dir::Bi, index as u64))
    }

    /// Gives the next turn and tells whose it is.
    fn turn(turns: &mut Turns, of: &[StreamId]) -> Option<usize> {
        turns.next()?;
        of.iter()
            .position(|id| matches!(turns.writers.get(id), Some((Place::Turn { .. }, _))))
    }

    #[test]
    fn a_window_that_opens_a_little_wakes_one() {
        let waker = Waker::noop();
        let mut turns = Turns::default();
        let ids = streams::<4>();
        // All find the window shut.
        for id in ids {
            assert!(turns.admit(id, waker));
            turns.blocked(id, false, waker);
        }
        assert!(!turns.is_moving());
        // It opens; the stack reports all of them, the last one first.
        for id in ids.into_iter().rev() {
            turns.writable(id);
        }
        assert_eq!(turn(&mut turns, &ids), Some(0));
        // It is shut again after a part of a chunk.
        turns.blocked(ids[0], true, waker);
        assert_eq!(turn(&mut turns, &ids), Some(1));
        turns.blocked(ids[1], false, waker);
        assert!(!turns.is_moving());
        assert!(turns.next().is_none());
        // Whoever comes now waits without asking.
        let [.., late] = streams::<5>();
        assert!(!turns.admit(late, waker));
        // What was begun goes on first, then whoever found the window shut.
        turns.writable(ids[0]);
        assert_eq!(turn(&mut turns, &ids), Some(0));
        turns.done(ids[0]);
        for next in 1..4 {
            assert_eq!(turn(&mut turns, &ids), Some(next));
            turns.done(ids[next]);
        }
        assert_eq!(turn(&mut turns, &[late]), Some(0));
        turns.done(late);
        assert!(turns.next().is_none());
        assert!(turns.writers.is_empty());
        assert!(turns.admit(ids[2], waker));
    }

    #[test]
    fn a_stream_without_credit_stops_nobody() {
        let waker = Waker::noop();
        let mut turns = Turns::default();
        let ids = streams::<3>();
        turns.blocked(ids[0], false, waker);
        turns.writable(ids[0]);
        assert!(!turns.admit(ids[1], waker));
        assert!(!turns.admit(ids[2], waker));
        assert_eq!(turn(&mut turns, &ids), Some(0));
        turns.done(ids[0]);
        // Its own window may be what is shut: the next one tries all the same.
        assert_eq!(turn(&mut turns, &ids), Some(1));
        turns.blocked(ids[1], false, waker);
        assert!(turns.is_moving());
        assert_eq!(turn(&mut turns, &ids), Some(2));
    }

    #[test]
    fn the_line_moves_on_when_the_first_one_leaves() {
        let waker = Waker::noop();
        let mut turns = Turns::default();
        let ids = streams::<2>();
        turns.blocked(ids[0], false, waker);
        turns.writable(ids[0]);
        turns.next();
        turns.blocked(ids[0], false, waker);
        assert!(!turns.admit(ids[1], waker));
        assert!(!turns.is_moving());
        turns.forget(ids[0]);
        assert!(turns.is_moving());
        assert_eq!(turn(&mut turns, &ids), Some(1));
    }
}
