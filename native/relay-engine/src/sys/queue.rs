//! What the kernel still holds of a connection.

use std::io;
use std::os::fd::AsRawFd;

/// `SIOCOUTQ`, the number of `TIOCOUTQ`.
const SIOCOUTQ: u64 = 0x5411;

/// Bytes of a TCP socket that its peer has not acknowledged, sent or not.
pub fn unacknowledged(socket: &impl AsRawFd) -> io::Result<usize> {
    unsafe extern "C" {
        fn ioctl(fd: i32, request: u64, value: *mut i32) -> i32;
    }
    let mut bytes = 0;
    // SAFETY: the descriptor is open for the length of the call, and SIOCOUTQ writes one int to where `bytes` lives.
    let result = unsafe { ioctl(socket.as_raw_fd(), SIOCOUTQ, &raw mut bytes) };
    if result == 0 {
        Ok(usize::try_from(bytes).unwrap_or(0))
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn counts_what_the_peer_has_no_room_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        assert_eq!(unacknowledged(&sender).unwrap(), 0);
        sender.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(bytes) = sender.write(&[0; 65536]) {
            sent += bytes;
        }
        assert!(unacknowledged(&sender).unwrap() > 0);
        let mut received = vec![0; sent];
        receiver.read_exact(&mut received).unwrap();
        while unacknowledged(&sender).unwrap() > 0 {
            std::thread::yield_now();
        }
    }
}
