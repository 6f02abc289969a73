//! What client and origin share of loads of datagrams: their form, counting them, pacing them, and a socket that moves them in batches.
//!
//! A datagram begins with one byte that says what it is. Numbers are big-endian.
//!
//! | first byte | behind it | what the origin does |
//! |---|---|---|
//! | `h` | anything of 8 bytes or more | answers with `h` and a token of the sender's address (64 bits) |
//! | `k`, `e` | [`Header`] | counts it; sends it back as it is |
//! | `s` | [`Order`] | if the token is right answers with `a` and the run, then sends datagrams `d`, each with a [`Header`] |
//! | `q` | run, and room for the answer | answers with `r` and [`Counts`] |
//!
//! No answer is longer than its question, and a stream of datagrams goes only to an address that has shown that it is there.

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::time::{Duration, Instant};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Datagrams leave in bursts of what is due, so often.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// What could not be sent for so long is given up: a load that catches up is another load.
const BACKLOG: Duration = Duration::from_millis(10);
/// Messages that one call receives.
const BATCH: usize = 16;
/// Bytes of one message.
const MESSAGE: usize = 1 << 16;
/// Bytes and segments that one call sends.
const MOST_BYTES: usize = 65_507;
const MOST_SEGMENTS: usize = 64;
/// What the kernel is asked to hold each way.
const KERNEL_BUFFER: usize = 8 << 20;
/// Rates that can be ordered, in datagrams a second: at slower ones a clock has no word for when the next is due.
const RATES: RangeInclusive<f64> = 1e-3..=1e7;
/// The most that can be ordered, in bytes a second: what is due after a pause is made at once.
const MOST_RATE: f64 = 16e9;

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// What stands in front of each datagram that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) run: u32,
    pub(super) number: u64,
    /// When it was due, in nanoseconds of the sender's clock.
    pub(super) due: u64,
}

impl Header {
    pub(super) const SIZE: usize = 21;

    pub(super) fn put(&self, out: &mut [u8]) {
        out[0] = self.kind;
        out[1..5].copy_from_slice(&self.run.to_be_bytes());
        out[5..13].copy_from_slice(&self.number.to_be_bytes());
        out[13..21].copy_from_slice(&self.due.to_be_bytes());
    }

    pub(super) fn read(datagram: &[u8]) -> Option<Self> {
        Some(Self {
            kind: *datagram.first()?,
            run: u32_at(datagram, 1)?,
            number: u64_at(datagram, 5)?,
            due: u64_at(datagram, 13)?,
        })
    }
}

/// Asks for a stream of datagrams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Order {
    pub(super) run: u32,
    pub(super) token: u64,
    /// Datagrams a second.
    pub(super) rate: f64,
    pub(super) size: u32,
    pub(super) count: u64,
}

impl Order {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = vec![b's'];
        out.extend_from_slice(&self.run.to_be_bytes());
        out.extend_from_slice(&self.token.to_be_bytes());
        out.extend_from_slice(&self.rate.to_be_bytes());
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&self.count.to_be_bytes());
        out
    }

    /// `None`, unless it is sound.
    pub(super) fn read(datagram: &[u8]) -> Option<Self> {
        let order = Self {
            run: u32_at(datagram, 1)?,
            token: u64_at(datagram, 5)?,
            rate: f64::from_bits(u64_at(datagram, 13)?),
            size: u32_at(datagram, 21)?,
            count: u64_at(datagram, 25)?,
        };
        let sound = (Header::SIZE..=MOST_BYTES).contains(&(order.size as usize))
            && RATES.contains(&order.rate)
            && order.rate * f64::from(order.size) <= MOST_RATE;
        sound.then_some(order)
    }
}

/// What the origin knows of one run of one sender.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) run: u32,
    /// Datagrams `k` and `e` that came, each counted once.
    pub(super) received: u64,
    /// Those of them that came after one with a higher number.
    pub(super) reordered: u64,
    /// Datagrams that came again.
    pub(super) duplicates: u64,
    /// Datagrams `d` that were sent.
    pub(super) sent: u64,
    /// Those that were due and not sent in time.
    pub(super) unsent: u64,
    /// Datagrams of anybody that the origin's kernel had no room for.
    pub(super) dropped: u64,
}

impl Counts {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = vec![b'r'];
        out.extend_from_slice(&self.run.to_be_bytes());
        for number in [
            self.received,
            self.reordered,
            self.duplicates,
            self.sent,
            self.unsent,
            self.dropped,
        ] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out
    }

    pub(super) fn read(datagram: &[u8]) -> Option<Self> {
        let number = |index: usize| u64_at(datagram, 5 + index * 8);
        Some(Self {
            run: u32_at(datagram, 1)?,
            received: number(0)?,
            reordered: number(1)?,
            duplicates: number(2)?,
            sent: number(3)?,
            unsent: number(4)?,
            dropped: number(5)?,
        })
    }
}

/// Tells datagrams that come late or twice from others, by their numbers; what is older than the last thousand counts as late.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// One more than the highest number.
    next: u64,
    seen: [u64; Window::WORDS],
    pub(super) received: u64,
    pub(super) reordered: u64,
    pub(super) duplicates: u64,
    /// Dropped by the receiver, because nobody took them in time.
    pub(super) unread: u64,
}

impl Window {
    const WORDS: usize = 16;
    const SPAN: u64 = Self::WORDS as u64 * 64;

    fn bit(number: u64) -> (usize, u64) {
        let place = number % Self::SPAN;
        ((place / 64) as usize, 1 << (place % 64))
    }

    /// Counts a datagram.
    pub(super) fn count(&mut self, number: u64) {
        let (word, bit) = Self::bit(number);
        if number >= self.next {
            if number - self.next >= Self::SPAN {
                self.seen = [0; Self::WORDS];
            } else {
                for skipped in self.next..number {
                    let (word, bit) = Self::bit(skipped);
                    self.seen[word] &= !bit;
                }
            }
            self.next = number.saturating_add(1);
        } else if self.next - number <= Self::SPAN && self.seen[word] & bit != 0 {
            self.duplicates += 1;
            return;
        } else {
            self.reordered += 1;
        }
        self.seen[word] |= bit;
        self.received += 1;
    }
}

/// When datagrams are due.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    start: Instant,
    interval: f64,
    count: u64,
    next: u64,
    /// Given up, because they were not sent in time.
    pub(super) skipped: u64,
}

impl Pace {
    pub(super) fn new(start: Instant, rate: f64, count: u64) -> Self {
        Self {
            start,
            interval: 1.0 / rate,
            count,
            next: 0,
            skipped: 0,
        }
    }

    fn due(&self, number: u64) -> Instant {
        self.start + Duration::from_secs_f64(number as f64 * self.interval)
    }

    /// When a datagram leaves, if all goes well: at the first tick on which it is due. From the start.
    pub(super) fn leaves(&self, number: u64) -> Duration {
        let ticks = (number as f64 * self.interval / TICK.as_secs_f64()).ceil();
        TICK * ticks as u32
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }

    /// When the last one is due.
    pub(super) fn end(&self) -> Instant {
        self.due(self.count)
    }

    pub(super) fn is_over(&self) -> bool {
        self.next == self.count
    }

    /// Those that are to be sent now.
    pub(super) fn take(&mut self, now: Instant) -> Range<u64> {
        let passed = now.saturating_duration_since(self.start).as_secs_f64();
        let due = ((passed / self.interval) as u64 + 1).min(self.count);
        let due = if now < self.start { 0 } else { due }.max(self.next);
        let most = (BACKLOG.as_secs_f64() / self.interval).ceil() as u64;
        let late = (due - self.next).saturating_sub(most.max(1));
        self.skipped += late;
        let first = std::mem::replace(&mut self.next, due) + late;
        first..due
    }

    /// When to look again.
    pub(super) fn wake(&self, now: Instant) -> Instant {
        let passed = now.saturating_duration_since(self.start);
        let ticks = (passed.as_nanos() / TICK.as_nanos()) as u32 + 1;
        (self.start + TICK * ticks).max(self.due(self.next))
    }
}

/// A UDP socket that has the kernel join what arrives and split what leaves.
#[derive(Debug)]
pub(super) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    messages: RefCell<Vec<u8>>,
}

impl Socket {
    /// Binds it; must run inside a runtime.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            Domain::for_address(address),
            Type::DGRAM.nonblocking(),
            Some(Protocol::UDP),
        )?;
        socket.bind(&address.into())?;
        // As much as the system permits; a privileged user is permitted more.
        let _ = socket.set_recv_buffer_size(KERNEL_BUFFER);
        let _ = socket.set_send_buffer_size(KERNEL_BUFFER);
        let _ = nix::sys::socket::setsockopt(
            &socket,
            nix::sys::socket::sockopt::RcvBufForce,
            &KERNEL_BUFFER,
        );
        let _ = nix::sys::socket::setsockopt(
            &socket,
            nix::sys::socket::sockopt::SndBufForce,
            &KERNEL_BUFFER,
        );
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self {
            io: UdpSocket::from_std(socket.into())?,
            state,
            messages: RefCell::new(vec![0; BATCH * MESSAGE]),
        })
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        SockRef::from(&self.io)
            .local_addr()?
            .as_socket()
            .ok_or_else(|| ErrorKind::AddrNotAvailable.into())
    }

    /// Waits for datagrams and hands them to `each` as the kernel joined them, with their sender and the length of all but
    /// the last of them.
    pub(super) async fn receive(
        &self,
        mut each: impl FnMut(SocketAddr, &[u8], usize),
    ) -> io::Result<()> {
        loop {
            self.io.readable().await?;
            let mut messages = self.messages.borrow_mut();
            let mut meta = [RecvMeta::default(); BATCH];
            let received = {
                let mut slices = messages.chunks_exact_mut(MESSAGE);
                let mut slices: [IoSliceMut<'_>; BATCH] =
                    std::array::from_fn(|_| IoSliceMut::new(slices.next().unwrap_or_default()));
                self.io.try_io(Interest::READABLE, || {
                    self.state.recv((&self.io).into(), &mut slices, &mut meta)
                })
            };
            match received {
                Ok(count) => {
                    for (message, meta) in messages.chunks_exact(MESSAGE).zip(&meta[..count]) {
                        each(meta.addr, &message[..meta.len], meta.stride.max(1));
                    }
                    return Ok(());
                }
                // An error of an earlier datagram, such as nobody being there: of no use to whoever receives.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends what stands in `contents`, datagrams of `size` bytes each but for a shorter last one; how many bytes the kernel took.
    pub(super) fn send(&self, to: SocketAddr, contents: &[u8], size: usize) -> usize {
        let most = self.state.max_gso_segments().min(MOST_SEGMENTS);
        let most = most.min(MOST_BYTES / size).max(1) * size;
        let mut sent = 0;
        for contents in contents.chunks(most) {
            let transmit = Transmit {
                destination: to,
                ecn: None,
                contents,
                segment_size: (contents.len() > size).then_some(size),
                src_ip: None,
            };
            let result = self.io.try_io(Interest::WRITABLE, || {
                self.state.try_send((&self.io).into(), &transmit)
            });
            if result.is_err() {
                break;
            }
            sent += contents.len();
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_once() {
        let mut window = Window::default();
        for number in [0, 1, 3, 2, 2, 3, 5, 4, 2000, 1, 2000, 1999] {
            window.count(number);
        }
        let counted = (window.received, window.reordered, window.duplicates);
        // 1 is older than the window, which is all that is known of it.
        assert_eq!(counted, (9, 4, 3));
    }

    #[test]
    fn what_is_late_is_given_up() {
        let start = Instant::now();
        let mut pace = Pace::new(start, 1000.0, 100);
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(pace.take(at(0)), 0..1);
        assert_eq!(pace.wake(at(0)), at(1));
        assert_eq!(pace.take(at(3)), 1..4);
        assert_eq!((pace.take(at(63)), pace.skipped), (54..64, 50));
        assert!(!pace.is_over());
        assert_eq!(pace.take(at(500)), 90..100);
        assert!(pace.is_over());
        assert_eq!(pace.skipped, 76);
        let often = Pace::new(start, 2500.0, 10);
        let leave: Vec<_> = (0..6).map(|it| often.leaves(it).as_millis()).collect();
        assert_eq!(leave, [0, 1, 1, 2, 2, 2]);
        assert_eq!(pace.end(), at(100));
    }

    #[test]
    fn forms_are_read_back() {
        let header = Header {
            kind: b'k',
            run: 7,
            number: u64::MAX,
            due: 9,
        };
        let mut out = [0; Header::SIZE];
        header.put(&mut out);
        assert_eq!(Header::read(&out), Some(header));
        assert_eq!(Header::read(&out[..20]), None);
        let order = Order {
            run: 7,
            token: 8,
            rate: 0.5,
            size: 1200,
            count: 3,
        };
        assert_eq!(Order::read(&order.bytes()), Some(order));
        assert_eq!(Order::read(&Order { size: 20, ..order }.bytes()), None);
        for rate in [0.0, -1.0, 1e-300, 1e-4, 2e7, f64::INFINITY, f64::NAN] {
            assert_eq!(Order::read(&Order { rate, ..order }.bytes()), None);
        }
        let much = Order {
            rate: 1e7,
            size: 65_507,
            ..order
        };
        assert_eq!(Order::read(&much.bytes()), None);
        let counts = Counts {
            run: 7,
            received: 1,
            dropped: 5,
            ..Counts::default()
        };
        assert_eq!(Counts::read(&counts.bytes()), Some(counts));
    }
}
