//! UDP sockets towards targets: connected, so that nothing but the target's datagrams arrives, and the kernel tells when there is
//! nobody at the other end.

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::SocketAddr;

use nix::errno::Errno;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::tcp::Sources;

/// Messages taken by one call; each may be many datagrams that the kernel joined.
const BATCH: usize = 8;
/// Bytes of one message.
const MESSAGE: usize = 1 << 16;
/// Bytes of one send call: beyond it the kernel refuses, whatever the segments are.
const MOST_BYTES: usize = 65_507;
/// Segments that kernels take in one call.
const MOST_SEGMENTS: usize = 64;
/// Calls that one [`DatagramSocket::send`] makes at most, so that whoever asks for more can let others go first.
const CALLS: usize = 32;
/// What the kernel is asked to hold each way: some hundred datagrams, so that a burst is not lost while the worker does other things.
const KERNEL_BUFFER: usize = 1 << 20;

thread_local! {
    static MESSAGES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A connected socket.
#[derive(Debug)]
pub struct DatagramSocket {
    io: UdpSocket,
    state: UdpSocketState,
    peer: SocketAddr,
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

/// Makes a socket that talks to `target` alone. Nothing is sent.
//= rfc9298 §3.1 connected-socket
pub(super) fn connect(sources: &Sources, target: SocketAddr) -> io::Result<DatagramSocket> {
    let source = sources.pick(target.ip())?;
    let socket = Socket::new(
        Domain::for_address(target),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&target.into())?;
    // As much as the system permits.
    let _ = socket.set_recv_buffer_size(KERNEL_BUFFER);
    let _ = socket.set_send_buffer_size(KERNEL_BUFFER);
    // Sets DF, has the kernel join what arrives, and learns what it can split.
    //= rfc9298 §3.1 no-fragments
    let state = UdpSocketState::new((&socket).into())?;
    let io = UdpSocket::from_std(socket.into())?;
    if io.local_addr()? == target {
        return Err(Errno::ECONNREFUSED.into());
    }
    Ok(DatagramSocket {
        io,
        state,
        peer: target,
    })
}

/// Tries again after an error that belongs to an earlier datagram: what ICMP says about one that was too long for the path is told
/// to whichever call comes next, and that call does nothing else.
fn past_an_earlier_fault<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match call() {
        Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => call(),
        result => result,
    }
}

/// Whether an error says that the target is not there (ICMP), not that one datagram did not get through.
fn is_final(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ENETDOWN)
    )
}

impl DatagramSocket {
    /// Resolves when there may be something to receive.
    ///
    /// # Errors
    /// The target is not there any more.
    pub async fn readable(&self) -> io::Result<()> {
        let ready = self.io.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            match self.io.take_error()? {
                Some(error) if is_final(&error) => return Err(error),
                // One datagram did not get through.
                Some(_) | None => {
                    let _ = self.io.try_io(Interest::ERROR, || {
                        Err::<(), _>(ErrorKind::WouldBlock.into())
                    });
                }
            }
        }
        Ok(())
    }

    /// Resolves when there may be room to send.
    ///
    /// # Errors
    /// The runtime is ending.
    pub async fn writable(&self) -> io::Result<()> {
        self.io.writable().await
    }

    /// Hands every datagram of one batch to `each`. ECN marks are not passed on.
    ///
    /// # Errors
    /// `WouldBlock`: there is none. Others: the target is not there any more.
    //= rfc9298 §6.2 ecn
    pub fn receive(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
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
                    each(&[]);
                }
                message[..meta.len]
                    .chunks(meta.stride.max(1))
                    .for_each(&mut each);
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

    /// Sends datagrams, those of one size that follow each other in one call, and as many as some calls take.
    ///
    /// # Errors
    /// The target is not there any more.
    pub fn send(&self, datagrams: &[impl AsRef<[u8]>]) -> io::Result<Sent> {
        let mut sent = Sent::default();
        while sent.done < datagrams.len() && sent.calls < CALLS {
            sent.calls += 1;
            let rest = &datagrams[sent.done..];
            let count = run(rest, self.state.max_gso_segments().min(MOST_SEGMENTS));
            let result = if count == 1 {
                self.send_one(rest[0].as_ref(), None)
            } else {
                GATHERED.with_borrow_mut(|gathered| {
                    gathered.clear();
                    for datagram in &rest[..count] {
                        gathered.extend_from_slice(datagram.as_ref());
                    }
                    self.send_one(gathered, Some(rest[0].as_ref().len()))
                })
            };
            match result {
                Ok(()) => {
                    sent.done += count;
                    sent.bytes += rest[..count]
                        .iter()
                        .map(|one| one.as_ref().len())
                        .sum::<usize>();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(sent),
                Err(error) if is_final(&error) => return Err(error),
                // What the kernel would not split it takes one by one: the state knows that from now on.
                Err(_) if count > 1 && self.state.max_gso_segments() == 1 => {}
                // All but a shorter last one, which may get through by itself.
                //= rfc9298 §3.1 oversize-dropped
                Err(_) => {
                    let long =
                        |one: &&_| AsRef::<[u8]>::as_ref(*one).len() == rest[0].as_ref().len();
                    let count = rest[..count].iter().take_while(long).count();
                    sent.done += count;
                    sent.dropped += count;
                }
            }
        }
        Ok(sent)
    }

    fn send_one(&self, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.peer,
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

    /// The socket's own address.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        SockRef::from(&self.io)
            .local_addr()?
            .as_socket()
            .ok_or_else(|| ErrorKind::AddrNotAvailable.into())
    }
}

/// How many of the datagrams at the front may leave in one call: of one size, but for a shorter last one.
fn run(datagrams: &[impl AsRef<[u8]>], most: usize) -> usize {
    let size = datagrams[0].as_ref().len();
    if size == 0 {
        return 1;
    }
    let mut count = 1;
    for datagram in &datagrams[1..] {
        let length = datagram.as_ref().len();
        if count >= most || length == 0 || length > size || count * size + length > MOST_BYTES {
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
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn target() -> std::net::UdpSocket {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        socket
    }

    #[test]
    fn runs_end_where_sizes_change() {
        let of = |sizes: &[usize]| {
            let datagrams: Vec<_> = sizes.iter().map(|size| vec![0; *size]).collect();
            run(&datagrams, 64)
        };
        assert_eq!(of(&[5]), 1);
        assert_eq!(of(&[5, 5, 5]), 3);
        assert_eq!(of(&[5, 5, 3, 3]), 3);
        assert_eq!(of(&[5, 6]), 1);
        assert_eq!(of(&[0, 0]), 1);
        assert_eq!(of(&[5, 0]), 1);
        assert_eq!(of(&[1200; 80]), 54);
        assert_eq!(of(&[10; 80]), 64);
    }

    //= rfc9298 §3.1 oversize-dropped
    #[tokio::test]
    async fn datagrams_arrive_as_they_were() {
        let target = target();
        let socket = connect(&Sources::default(), target.local_addr().unwrap()).unwrap();
        let sizes = [1200, 1200, 1200, 7, 7, 0, 0, 1472, 60_000, 1];
        let datagrams: Vec<Vec<u8>> = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| vec![number as u8; *size])
            .collect();
        socket.writable().await.unwrap();
        let sent = socket.send(&datagrams).unwrap();
        assert_eq!((sent.done, sent.dropped), (sizes.len(), 0));
        let mut buffer = vec![0; MESSAGE];
        for expected in &datagrams {
            let (length, from) = target.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], &expected[..]);
            target.send_to(&buffer[..length], from).unwrap();
        }
        let mut arrived = Vec::new();
        while arrived.len() < datagrams.len() {
            socket.readable().await.unwrap();
            let _ = socket.receive(|datagram| arrived.push(datagram.to_vec()));
        }
        assert_eq!(arrived, datagrams);
        // One that is longer than UDP can carry is dropped, and the next one is not.
        let sent = socket.send(&[vec![0; 65_520], vec![9]]).unwrap();
        assert_eq!((sent.done, sent.dropped, sent.bytes), (2, 1, 1));
        assert_eq!(target.recv(&mut buffer).unwrap(), 1);
    }

    //= rfc9298 §3.1 oversize-dropped
    #[tokio::test]
    async fn what_was_too_long_takes_no_other_datagram_with_it() {
        let target = target();
        let socket = connect(&Sources::default(), target.local_addr().unwrap()).unwrap();
        socket.writable().await.unwrap();
        // As long as the link's packets, and a byte longer than those of IPv4: ICMP tells the socket.
        let long = vec![0; 65_508];
        let sent = socket.send(&[&long[..], &[7], &long, &[8, 8]]).unwrap();
        assert_eq!((sent.done, sent.dropped, sent.bytes), (4, 2, 3));
        let mut buffer = vec![0; MESSAGE];
        assert_eq!(target.recv(&mut buffer).unwrap(), 1);
        let (length, own) = target.recv_from(&mut buffer).unwrap();
        assert_eq!(length, 2);
        target.send_to(&[9], own).unwrap();
        socket.readable().await.unwrap();
        SockRef::from(&socket.io).send(&long).unwrap_err();
        let mut arrived = Vec::new();
        socket
            .receive(|datagram| arrived.push(datagram.to_vec()))
            .unwrap();
        assert_eq!(arrived, [[9]]);
    }

    #[tokio::test]
    async fn strangers_are_not_heard_and_an_absent_target_is_noticed() {
        let gone = target();
        let socket = connect(&Sources::default(), gone.local_addr().unwrap()).unwrap();
        let stranger = target();
        let own = socket.local_addr().unwrap();
        stranger.send_to(b"boo", own).unwrap();
        gone.send_to(b"hello", own).unwrap();
        let mut arrived = Vec::new();
        while arrived.is_empty() {
            socket.readable().await.unwrap();
            let _ = socket.receive(|datagram| arrived.push(datagram.to_vec()));
        }
        assert_eq!(arrived, [b"hello"]);
        drop(gone);
        socket.writable().await.unwrap();
        assert_eq!(socket.send(&[b"anybody?"]).unwrap().done, 1);
        let error = loop {
            if let Err(error) = socket.readable().await {
                break error;
            }
            let _ = socket.receive(|_| {});
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}
