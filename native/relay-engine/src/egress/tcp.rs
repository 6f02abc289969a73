//! One TCP connection attempt.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

/// Notices targets that are gone within about two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// The addresses that connections come from, used in turn.
#[derive(Debug, Default)]
pub(super) struct Sources {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    turn: Cell<usize>,
}

impl Sources {
    pub(super) fn new(addresses: &[IpAddr]) -> Self {
        let (v4, v6) = addresses.iter().partition(|address| address.is_ipv4());
        Self {
            v4,
            v6,
            turn: Cell::new(0),
        }
    }

    /// The address to send from towards a target; `None` = the system's choice.
    ///
    /// # Errors
    /// EAFNOSUPPORT if addresses are set and none is of the target's family.
    pub(super) fn pick(&self, target: IpAddr) -> io::Result<Option<IpAddr>> {
        if self.v4.is_empty() && self.v6.is_empty() {
            return Ok(None);
        }
        let family = if target.is_ipv4() { &self.v4 } else { &self.v6 };
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        match turn.checked_rem(family.len()) {
            Some(index) => Ok(family.get(index).copied()),
            None => Err(Errno::EAFNOSUPPORT.into()),
        }
    }
}

/// Connects, with TCP_NODELAY and keepalive on. Unless somebody turns that off, the close of the socket is a RST: what is given
/// up at any point must not look like a clean end to the target.
pub(super) async fn connect(sources: &Sources, target: SocketAddr) -> io::Result<TcpStream> {
    let source = sources.pick(target.ip())?;
    let socket = match target {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let options = SockRef::from(&socket);
    options.set_linger(Some(Duration::ZERO))?;
    options.set_tcp_nodelay(true)?;
    options.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    if let Some(source) = source {
        // The port is chosen at connect, per destination: without this, 28,000 connections use up an address.
        let _ = setsockopt(&socket, sockopt::IpBindAddressNoPort, &true);
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(target).await?;
    // A connection to a closed local port can meet itself (simultaneous open): nobody listens there.
    if stream.local_addr()? == target {
        return Err(Errno::ECONNREFUSED.into());
    }
    Ok(stream)
}
