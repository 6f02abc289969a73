//! COMPRESSION_ASSIGN, COMPRESSION_ACK and COMPRESSION_CLOSE (draft-ietf-masque-connect-udp-listen §3), and the address that an
//! uncompressed datagram begins with, which is written in the same way.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::capsule::{self, MAX_HEADER, types};
use crate::tunnel::Malformed;
use crate::varint;

/// The longest form of an address with its port, in bytes.
pub const MAX_PEER: usize = 1 + 16 + 2;
/// The longest value of one of these capsules, in bytes.
pub const MAX_VALUE: usize = varint::MAX_LEN + MAX_PEER;

/// One of the three capsules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Registers a context: datagrams of it come from or go to `peer`, or say themselves whose they are (`None`, uncompressed).
    Assign {
        /// The context's ID.
        context: u64,
        /// The other end; its IPv6 address as it is, flow and scope 0.
        peer: Option<SocketAddr>,
    },
    /// Accepts a registration.
    Ack {
        /// The context's ID.
        context: u64,
    },
    /// Rejects or ends a registration.
    Close {
        /// The context's ID.
        context: u64,
    },
}

/// Whether a capsule type is one of these.
#[must_use]
pub const fn is_compression(kind: u64) -> bool {
    matches!(
        kind,
        types::COMPRESSION_ASSIGN | types::COMPRESSION_ACK | types::COMPRESSION_CLOSE
    )
}

impl Compression {
    /// Reads the value of a capsule of such a type, all of it.
    ///
    /// # Errors
    /// [`Malformed::Compression`]: context 0, a version that is none of 0, 4 and 6, or a length that does not fit.
    //= connect-udp-bind §3.1 assign-format
    //= connect-udp-bind §3.1 context-0-malformed
    //= connect-udp-bind §3.3 close-0-malformed
    pub fn decode(kind: u64, value: &[u8]) -> Result<Self, Malformed> {
        let (context, used) = varint::decode(value).ok_or(Malformed::Compression)?;
        let rest = &value[used..];
        if context == 0 {
            return Err(Malformed::Compression);
        }
        match (kind, rest) {
            (types::COMPRESSION_ACK, []) => Ok(Self::Ack { context }),
            (types::COMPRESSION_CLOSE, []) => Ok(Self::Close { context }),
            (types::COMPRESSION_ASSIGN, [0]) => Ok(Self::Assign {
                context,
                peer: None,
            }),
            (types::COMPRESSION_ASSIGN, rest) => match decode_peer(rest) {
                Some((peer, used)) if used == rest.len() => Ok(Self::Assign {
                    context,
                    peer: Some(peer),
                }),
                _ => Err(Malformed::Compression),
            },
            _ => Err(Malformed::Compression),
        }
    }

    /// Appends the whole capsule.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut value = [0; MAX_VALUE];
        let (kind, context) = match *self {
            Self::Assign { context, .. } => (types::COMPRESSION_ASSIGN, context),
            Self::Ack { context } => (types::COMPRESSION_ACK, context),
            Self::Close { context } => (types::COMPRESSION_CLOSE, context),
        };
        let mut length = varint::encode(context, &mut value);
        if let Self::Assign { peer, .. } = *self {
            length += match peer {
                Some(peer) => encode_peer(peer, &mut value[length..]),
                // Version 0, which is there already.
                None => 1,
            };
        }
        let mut header = [0; MAX_HEADER];
        let used = capsule::encode_header(kind, length as u64, &mut header);
        out.extend_from_slice(&header[..used]);
        out.extend_from_slice(&value[..length]);
    }
}

/// Reads version, address and port at the front of `data`, and how long they are; `None`: it is neither version, or too short.
//= connect-udp-bind §4 uncompressed-format
#[must_use]
pub fn decode_peer(data: &[u8]) -> Option<(SocketAddr, usize)> {
    let (&version, rest) = data.split_first()?;
    let (address, port): (IpAddr, _) = match version {
        4 => {
            let (address, rest) = rest.split_first_chunk::<4>()?;
            (Ipv4Addr::from(*address).into(), rest)
        }
        6 => {
            let (address, rest) = rest.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*address).into(), rest)
        }
        _ => return None,
    };
    let (port, rest) = port.split_first_chunk::<2>()?;
    let peer = SocketAddr::new(address, u16::from_be_bytes(*port));
    Some((peer, data.len() - rest.len()))
}

/// Writes version, address and port to the front of `out` and returns their length.
///
/// # Panics
/// If `out` is too short; [`MAX_PEER`] bytes are always enough.
pub fn encode_peer(peer: SocketAddr, out: &mut [u8]) -> usize {
    let length = match peer.ip() {
        IpAddr::V4(address) => {
            out[0] = 4;
            out[1..5].copy_from_slice(&address.octets());
            5
        }
        IpAddr::V6(address) => {
            out[0] = 6;
            out[1..17].copy_from_slice(&address.octets());
            17
        }
    };
    out[length..length + 2].copy_from_slice(&peer.port().to_be_bytes());
    length + 2
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn decode(bytes: &[u8]) -> Result<Compression, Malformed> {
        let (kind, length, used) = capsule::decode_header(bytes).unwrap();
        assert_eq!(length, (bytes.len() - used) as u64);
        assert!(is_compression(kind));
        Compression::decode(kind, &bytes[used..])
    }

    //= connect-udp-bind §3.1 assign-format
    #[test]
    fn what_goes_over_the_wire() {
        let v4 = "192.0.2.7:4433".parse().unwrap();
        let v6 = "[2001:db8::1]:53".parse().unwrap();
        let cases: [(Compression, &[u8]); 5] = [
            (
                Compression::Assign {
                    context: 2,
                    peer: None,
                },
                &[0x11, 2, 2, 0],
            ),
            (
                Compression::Assign {
                    context: 4,
                    peer: Some(v4),
                },
                &[0x11, 8, 4, 4, 192, 0, 2, 7, 0x11, 0x51],
            ),
            (
                Compression::Assign {
                    context: 0x40,
                    peer: Some(v6),
                },
                &[
                    0x11, 21, 0x40, 0x40, 6, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                    0, 1, 0, 53,
                ],
            ),
            (Compression::Ack { context: 2 }, &[0x12, 1, 2]),
            (Compression::Close { context: 3 }, &[0x13, 1, 3]),
        ];
        for (compression, bytes) in cases {
            let mut out = Vec::new();
            compression.encode(&mut out);
            assert_eq!(out, bytes);
            assert_eq!(decode(bytes), Ok(compression));
        }
    }

    //= connect-udp-bind §3.1 assign-format
    //= connect-udp-bind §3.1 context-0-malformed
    //= connect-udp-bind §3.3 close-0-malformed
    #[test]
    fn what_is_malformed() {
        let cases: [&[u8]; 14] = [
            &[0x11, 0],
            &[0x11, 1, 2],
            &[0x11, 2, 0, 0],
            &[0x11, 3, 2, 0, 0],
            &[0x11, 2, 2, 1],
            &[0x11, 8, 2, 5, 192, 0, 2, 7, 0, 1],
            &[0x11, 7, 2, 4, 192, 0, 2, 7, 0],
            &[0x11, 9, 2, 4, 192, 0, 2, 7, 0, 1, 0],
            &[0x11, 8, 2, 6, 192, 0, 2, 7, 0, 1],
            &[0x12, 0],
            &[0x12, 1, 0],
            &[0x12, 2, 2, 0],
            &[0x13, 1, 0],
            &[0x13, 1, 0x40],
        ];
        for bytes in cases {
            assert_eq!(decode(bytes), Err(Malformed::Compression), "{bytes:?}");
        }
    }

    proptest! {
        //= connect-udp-bind §4 uncompressed-format
        #[test]
        fn peers_there_and_back(address: IpAddr, port: u16, after in prop::collection::vec(any::<u8>(), 0..3)) {
            let peer = SocketAddr::new(address, port);
            let mut out = [0; MAX_PEER];
            let length = encode_peer(peer, &mut out);
            let data = [&out[..length], &after[..]].concat();
            prop_assert_eq!(decode_peer(&data), Some((peer, length)));
            for cut in 0..length {
                prop_assert_eq!(decode_peer(&data[..cut]), None);
            }
        }
    }
}
