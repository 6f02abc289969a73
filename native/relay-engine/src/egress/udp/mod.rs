//! UDP sockets towards targets. Both kinds move batches: what the kernel joined is taken apart, and what follows each other in one size
//! to one place leaves in one call.

mod bound;
mod connected;
mod marked;

pub(super) use bound::bind;
pub use bound::{Addressed, BoundSockets};
pub use connected::DatagramSocket;
pub(super) use connected::connect;
pub use marked::{MarkedPayload, MarkedSocket};

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::SocketAddr;

use nix::errno::Errno;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Messages taken by one call; each may be many datagrams that the kernel joined.
const BATCH: usize = 8;
/// Bytes of one message.
const MESSAGE: usize = 1 << 16;
/// Bytes of one send call: beyond it the kernel refuses, whatever the segments are.
const MOST_BYTES: usize = 65_507;
/// Segments that kernels take in one call.
const MOST_SEGMENTS: usize = 64;
/// Calls that one send makes at most, so that whoever asks for more can let others go first.
const CALLS: usize = 32;
/// What the kernel is asked to hold each way: some hundred datagrams, so that a burst is not lost while the worker does other things.
const KERNEL_BUFFER: usize = 1 << 20;

thread_local! {
    static MESSAGES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What became of datagrams to send.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// How many of them are dealt with; the others wait until the socket is writable.
    pub done: usize,
    /// Calls of the system that it took.
    pub calls: usize,
    /// Those of them that could not be sent: too long for the path, or refused by the system.
    pub dropped: usize,
    /// Bytes of those that were sent.
    pub bytes: usize,
}

/// Tries again after an error that belongs to an earlier datagram: what ICMP says about one that was too long for the path is told
/// to whichever call comes next, and that call does nothing else.
fn past_an_earlier_fault<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match call() {
        Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => call(),
        result => result,
    }
}

/// A socket that is not bound yet.
fn unbound(family: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(family);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// A socket whose calls move many datagrams.
#[derive(Debug)]
struct Batched {
    io: UdpSocket,
    state: UdpSocketState,
}

impl Batched {
    fn new(socket: Socket) -> io::Result<Self> {
        // As much as the system permits.
        let _ = socket.set_recv_buffer_size(KERNEL_BUFFER);
        let _ = socket.set_send_buffer_size(KERNEL_BUFFER);
        // Sets DF, has the kernel join what arrives, and learns what it can split.
        //= rfc9298 §3.1 no-fragments
        let state = UdpSocketState::new((&socket).into())?;
        let io = UdpSocket::from_std(socket.into())?;
        Ok(Self { io, state })
    }

    /// Hands every datagram of one batch to `each`, with where it came from. ECN marks are not passed on.
    ///
    /// # Errors
    /// `WouldBlock`: there is none. Others: the system's.
    //= rfc9298 §6.2 ecn
    fn receive(&self, mut each: impl FnMut(SocketAddr, &[u8])) -> io::Result<()> {
        MESSAGES.with_borrow_mut(|messages| {
            messages.resize(BATCH * MESSAGE, 0);
            let mut meta = [RecvMeta::default(); BATCH];
            let count = {
                let mut slices = messages.chunks_exact_mut(MESSAGE);
                let mut slices: [IoSliceMut<'_>; BATCH] =
                    std::array::from_fn(|_| IoSliceMut::new(slices.next().unwrap_or_default()));
                past_an_earlier_fault(|| {
                    self.io.try_io(Interest::READABLE, || {
                        self.state.recv((&self.io).into(), &mut slices, &mut meta)
                    })
                })?
            };
            for (message, meta) in messages.chunks_exact(MESSAGE).zip(&meta[..count]) {
                if meta.len == 0 {
                    each(meta.addr, &[]);
                }
                for datagram in message[..meta.len].chunks(meta.stride.max(1)) {
                    each(meta.addr, datagram);
                }
            }
            if count < BATCH {
                // The queue was empty: the next datagram is an event of its own, so there is no need to ask again.
                let _ = self.io.try_io(Interest::READABLE, || {
                    Err::<(), _>(ErrorKind::WouldBlock.into())
                });
            }
            Ok(())
        })
    }

    /// Sends datagrams to where `to` says, those of one size to one place that follow each other in one call, and as many as some calls
    /// take.
    ///
    /// # Errors
    /// Those that `is_final`; a datagram that meets any other is dropped.
    fn send<D: AsRef<[u8]>>(
        &self,
        datagrams: &[D],
        to: impl Fn(&D) -> SocketAddr,
        is_final: impl Fn(&io::Error) -> bool,
    ) -> io::Result<Sent> {
        let mut sent = Sent::default();
        while sent.done < datagrams.len() && sent.calls < CALLS {
            sent.calls += 1;
            let rest = &datagrams[sent.done..];
            let destination = to(&rest[0]);
            let most = self.state.max_gso_segments().min(MOST_SEGMENTS);
            let count = run(rest, most, |datagram| to(datagram) == destination);
            let result = if count == 1 {
                self.send_one(destination, rest[0].as_ref(), None)
            } else {
                GATHERED.with_borrow_mut(|gathered| {
                    gathered.clear();
                    for datagram in &rest[..count] {
                        gathered.extend_from_slice(datagram.as_ref());
                    }
                    self.send_one(destination, gathered, Some(rest[0].as_ref().len()))
                })
            };
            match result {
                Ok(()) => {
                    let sizes = rest[..count].iter().map(|one| one.as_ref().len());
                    sent.bytes += sizes.sum::<usize>();
                    sent.done += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(sent),
                Err(error) if is_final(&error) => return Err(error),
                // What the kernel would not split it takes one by one: the state knows that from now on.
                Err(_) if count > 1 && self.state.max_gso_segments() == 1 => {}
                // All but a shorter last one, which may get through by itself.
                //= rfc9298 §3.1 oversize-dropped
                Err(_) => {
                    let size = rest[0].as_ref().len();
                    let long = |one: &&D| (*one).as_ref().len() == size;
                    let count = rest[..count].iter().take_while(long).count();
                    sent.done += count;
                    sent.dropped += count;
                }
            }
        }
        Ok(sent)
    }

    fn send_one(
        &self,
        destination: SocketAddr,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination,
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        };
        past_an_earlier_fault(|| {
            self.io.try_io(Interest::WRITABLE, || {
                self.state.try_send((&self.io).into(), &transmit)
            })
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        SockRef::from(&self.io)
            .local_addr()?
            .as_socket()
            .ok_or_else(|| ErrorKind::AddrNotAvailable.into())
    }
}

/// How many of the datagrams at the front may leave in one call: of one size, but for a shorter last one, and to `same` place.
fn run<D: AsRef<[u8]>>(datagrams: &[D], most: usize, same: impl Fn(&D) -> bool) -> usize {
    let size = datagrams[0].as_ref().len();
    if size == 0 {
        return 1;
    }
    let mut count = 1;
    for datagram in &datagrams[1..] {
        let length = datagram.as_ref().len();
        let fits = length > 0 && length <= size && count * size + length <= MOST_BYTES;
        if count >= most || !fits || !same(datagram) {
            break;
        }
        count += 1;
        if length < size {
            break;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_sizes_change() {
        let of = |sizes: &[usize]| {
            let datagrams: Vec<_> = sizes.iter().map(|size| vec![0; *size]).collect();
            run(&datagrams, 64, |_| true)
        };
        assert_eq!(of(&[5]), 1);
        assert_eq!(of(&[5, 5, 5]), 3);
        assert_eq!(of(&[5, 5, 3, 3]), 3);
        assert_eq!(of(&[5, 6]), 1);
        assert_eq!(of(&[0, 0]), 1);
        assert_eq!(of(&[5, 0]), 1);
        assert_eq!(of(&[1200; 80]), 54);
        assert_eq!(of(&[10; 80]), 64);
        let elsewhere = |datagram: &Vec<u8>| datagram[0] == 1;
        assert_eq!(run(&[vec![1], vec![1], vec![2]], 64, elsewhere), 2);
    }
}
