//! The far end of tunnels of datagrams: counts, sends back, or sends at a rate; [`datagrams`](super::datagrams) has the forms.

use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::datagrams::{Counts, Header, Order, Pace, Socket, Window};
use super::report::nanoseconds;
use crate::sys::timer::Timer;

/// Senders that are remembered.
const SENDERS: usize = 1 << 16;
/// Streams of datagrams at a time.
const STREAMS: usize = 4096;

/// Serves until the socket fails.
pub(super) async fn serve(socket: Socket) -> io::Result<()> {
    let timer = Timer::new()?;
    let mut origin = Origin {
        port: socket.address()?.port(),
        secret: RandomState::new(),
        senders: HashMap::new(),
        streams: Vec::new(),
        contents: Vec::new(),
    };
    loop {
        let now = Instant::now();
        let wake = origin.streams.iter().map(|it| it.pace.wake(now)).min();
        let due = async {
            match wake {
                Some(wake) => timer.until(wake).await,
                None => std::future::pending().await,
            }
        };
        let received =
            socket.receive(|from, message, stride| origin.take(&socket, from, message, stride));
        tokio::select! {
            due = due => due?,
            received = received => received?,
        }
        origin.send_due(&socket);
    }
}

/// What a sender did, and what it was sent.
#[derive(Debug, Default)]
struct Sender {
    run: u32,
    window: Window,
    sent: u64,
    unsent: u64,
}

/// A stream of datagrams on its way.
struct Stream {
    to: SocketAddr,
    order: Order,
    pace: Pace,
    number: u64,
}

struct Origin {
    port: u16,
    secret: RandomState,
    senders: HashMap<SocketAddr, Sender>,
    streams: Vec<Stream>,
    contents: Vec<u8>,
}

impl Origin {
    /// What `from` did in this run.
    fn sender(&mut self, from: SocketAddr, run: u32) -> &mut Sender {
        if self.senders.len() >= SENDERS {
            self.senders.clear();
        }
        let sender = self.senders.entry(from).or_default();
        if sender.run != run {
            *sender = Sender {
                run,
                ..Sender::default()
            };
        }
        sender
    }

    /// Datagrams that the kernel joined.
    fn take(&mut self, socket: &Socket, from: SocketAddr, message: &[u8], stride: usize) {
        // Those that go back and follow each other go back in one call.
        let mut back = 0..0;
        let mut at = 0;
        for datagram in message.chunks(stride) {
            let end = at + datagram.len();
            match datagram.first() {
                Some(b'k' | b'e') => {
                    if let Some(header) = Header::read(datagram) {
                        self.sender(from, header.run).window.count(header.number);
                    }
                    if datagram[0] == b'e' {
                        back = if back.end == at { back.start } else { at }..end;
                    }
                }
                _ => self.answer(socket, from, datagram),
            }
            at = end;
        }
        if !back.is_empty() {
            socket.send(from, &message[back], stride);
        }
    }

    fn answer(&mut self, socket: &Socket, from: SocketAddr, question: &[u8]) {
        let answer = match question.first() {
            Some(b'h') => {
                let token = self.secret.hash_one(from).to_be_bytes();
                [&b"h"[..], &token].concat()
            }
            Some(b's') => {
                let Some(order) = Order::read(question) else {
                    return;
                };
                if order.token != self.secret.hash_one(from) || self.streams.len() >= STREAMS {
                    return;
                }
                let under_way = |it: &Stream| it.to == from && it.order.run == order.run;
                let sender = self.sender(from, order.run);
                if sender.sent + sender.unsent == 0 && !self.streams.iter().any(under_way) {
                    self.streams.push(Stream {
                        to: from,
                        order,
                        pace: Pace::new(Instant::now(), order.rate, order.count),
                        number: 0,
                    });
                }
                [&b"a"[..], &order.run.to_be_bytes()].concat()
            }
            Some(b'q') => {
                let Some(asked) = Counts::read(question) else {
                    return;
                };
                let dropped = dropped(self.port);
                let sender = self.sender(from, asked.run);
                Counts {
                    run: asked.run,
                    received: sender.window.received,
                    reordered: sender.window.reordered,
                    duplicates: sender.window.duplicates,
                    sent: sender.sent,
                    unsent: sender.unsent,
                    dropped,
                }
                .bytes()
            }
            _ => return,
        };
        if answer.len() <= question.len() {
            socket.send(from, &answer, answer.len());
        }
    }

    fn send_due(&mut self, socket: &Socket) {
        let now = Instant::now();
        let mut streams = std::mem::take(&mut self.streams);
        for stream in &mut streams {
            let due = stream.pace.take(now);
            let count = due.end - due.start;
            let size = stream.order.size as usize;
            self.contents.resize(size * count as usize, b'.');
            let mut header = Header {
                kind: b'd',
                run: stream.order.run,
                number: stream.number,
                due: nanoseconds(stream.pace.leaves(due.start)),
            };
            for datagram in self.contents.chunks_mut(size) {
                header.put(datagram);
                header.number += 1;
            }
            let sent = (socket.send(stream.to, &self.contents, size) / size) as u64;
            stream.number += sent;
            let skipped = std::mem::take(&mut stream.pace.skipped);
            let sender = self.sender(stream.to, stream.order.run);
            sender.sent += sent;
            sender.unsent += count - sent + skipped;
        }
        streams.retain(|stream| !stream.pace.is_over());
        self.streams = streams;
    }
}

/// Datagrams that the kernel had no room for at sockets of this port.
fn dropped(port: u16) -> u64 {
    let suffix = format!(":{port:04X}");
    ["/proc/net/udp", "/proc/net/udp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|table| {
            table
                .lines()
                .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
                .filter(|fields| fields.get(1).is_some_and(|it| it.ends_with(&suffix)))
                .filter_map(|fields| fields.last()?.parse::<u64>().ok())
                .sum::<u64>()
        })
        .sum()
}
