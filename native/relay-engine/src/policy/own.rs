//! Which addresses are this machine's own. What listens there may be meant for the machine alone, and a relay that reaches
//! itself is a loop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use crate::egress::is_limit;

/// Whether the machine has the address: then it is also where the kernel would send from. Nothing is sent.
pub(super) fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Any port will do: a datagram socket connects without a packet.
    const PORT: u16 = 9;
    match UdpSocket::bind((any, 0)) {
        // An address to which there is no way is nobody's here.
        Ok(socket) => socket
            .connect((address, PORT))
            .and_then(|()| socket.local_addr())
            .is_ok_and(|local| local.ip() == address || local.ip().is_loopback()),
        // Without a descriptor nothing is known, and then nothing is permitted.
        Err(error) => is_limit(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_own_and_strangers_are_not() {
        for own in ["127.0.0.1", "127.1.2.3", "::1"] {
            assert!(own.parse().is_ok_and(is_own), "{own}");
        }
        for stranger in ["192.0.2.1", "8.8.8.8", "2001:db8::1", "2606:4700::1111"] {
            assert!(!stranger.parse().is_ok_and(is_own), "{stranger}");
        }
    }
}
