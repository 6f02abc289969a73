//! How much a client may send on a stream before its target takes it: as much as the path holds, found out by measuring.
//!
//! A ping is sent while the targets take bytes; what the busiest stream moved until its answer is compared with the window. If that was
//! most of the window, the window was the bound, and it doubles. Time and bytes are arguments: no clock, no connection.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What every stream starts with.
pub const FIRST: u32 = 512 << 10;
/// The most that a stream is given.
const MOST: u32 = 8 << 20;
/// The most that all streams of a connection are given together, beyond what they start with.
const TOGETHER: u64 = 64 << 20;
/// Shorter round trips need no larger window: it would only be memory.
const WORTH_IT: Duration = Duration::from_millis(2);
/// After an answer that changed nothing.
const PAUSE: Duration = Duration::from_secs(1);

/// What the streams of one connection have moved since the last ping.
#[derive(Debug, Clone, Default)]
pub struct Meter(Rc<Metered>);

#[derive(Debug, Default)]
struct Metered {
    /// Counts pings, so that streams know when to start anew.
    round: Cell<u64>,
    /// Of the busiest stream, in bytes.
    most: Cell<u64>,
    streams: Cell<u64>,
}

/// One stream's share in a [`Meter`].
#[derive(Debug)]
pub struct Stream {
    meter: Meter,
    round: u64,
    moved: u64,
}

impl Meter {
    /// Counts a stream for as long as the result lives.
    pub fn stream(&self) -> Stream {
        self.0.streams.set(self.0.streams.get() + 1);
        Stream {
            meter: self.clone(),
            round: self.0.round.get(),
            moved: 0,
        }
    }
}

impl Stream {
    /// The target took so many bytes.
    pub fn moved(&mut self, bytes: usize) {
        let metered = &self.meter.0;
        if self.round != metered.round.get() {
            (self.round, self.moved) = (metered.round.get(), 0);
        }
        self.moved += bytes as u64;
        metered.most.set(metered.most.get().max(self.moved));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let streams = &self.meter.0.streams;
        streams.set(streams.get() - 1);
    }
}

/// The window of one connection's streams.
#[derive(Debug)]
pub struct Window {
    meter: Meter,
    size: u32,
    asked: Option<Instant>,
    /// Not before.
    next: Option<Instant>,
}

impl Window {
    /// Starts with [`FIRST`].
    pub fn new(meter: Meter) -> Self {
        Self {
            meter,
            size: FIRST,
            asked: None,
            next: None,
        }
    }

    /// Whether a ping would tell something now; if so, it is to be sent.
    pub fn ask(&mut self, now: Instant) -> bool {
        let metered = &self.meter.0;
        // Something moves, and there is something to gain.
        let ask = self.asked.is_none()
            && self.size < MOST
            && metered.most.get() > 0
            && self.next.is_none_or(|next| now >= next);
        if ask {
            metered.round.set(metered.round.get() + 1);
            metered.most.set(0);
            self.asked = Some(now);
        }
        ask
    }

    /// A ping was answered: the new window, if there is one.
    pub fn answered(&mut self, now: Instant) -> Option<u32> {
        let round_trip = now.saturating_duration_since(self.asked.take()?);
        let metered = &self.meter.0;
        let filled = metered.most.get() >= u64::from(self.size / 4 * 3);
        let larger = self.size.saturating_mul(2).min(MOST);
        let affordable = u64::from(larger - FIRST) * metered.streams.get() <= TOGETHER;
        if round_trip < WORTH_IT || !filled || !affordable {
            self.next = Some(now + PAUSE);
            return None;
        }
        self.size = larger;
        Some(larger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The windows that come of pings that take `milliseconds`, while one of `streams` moves `share` of its window in each.
    fn windows(milliseconds: u64, streams: usize, share: f64) -> Vec<u32> {
        let meter = Meter::default();
        let mut window = Window::new(meter.clone());
        let mut streams: Vec<_> = (0..streams).map(|_| meter.stream()).collect();
        let mut now = Instant::now();
        let mut found = Vec::new();
        for _ in 0..20 {
            streams[0].moved(1);
            if window.ask(now) {
                assert!(!window.ask(now));
                let moved = f64::from(window.size) * share;
                streams[0].moved(moved as usize / 2);
                streams[0].moved(moved as usize / 2);
                now += Duration::from_millis(milliseconds);
                found.extend(window.answered(now));
            }
        }
        found
    }

    #[test]
    fn a_window_that_is_the_bound_doubles_up_to_the_most() {
        assert_eq!(windows(40, 1, 1.0), [1 << 20, 2 << 20, 4 << 20, MOST]);
    }

    #[test]
    fn one_that_is_not_stays() {
        assert_eq!(windows(40, 1, 0.5), [0; 0]);
        assert_eq!(windows(1, 1, 1.0), [0; 0]);
    }

    #[test]
    fn many_streams_get_less() {
        assert_eq!(windows(40, 100, 1.0), [1 << 20]);
        assert_eq!(windows(40, 200, 1.0), [0; 0]);
    }

    #[test]
    fn nothing_is_asked_while_nothing_moves() {
        let meter = Meter::default();
        let mut window = Window::new(meter.clone());
        let mut stream = meter.stream();
        let now = Instant::now();
        assert!(!window.ask(now));
        stream.moved(1);
        assert!(window.ask(now));
        assert_eq!(window.answered(now), None);
        // That changed nothing: there is time.
        stream.moved(1);
        assert!(!window.ask(now));
        assert!(window.ask(now + PAUSE));
        assert_eq!(window.answered(now + PAUSE), None);
        // An answer that nobody asked for.
        assert_eq!(window.answered(now), None);
        assert!(!window.ask(now));
    }
}
