//! What an address really is: which ones are public unicast, and which hide an IPv4 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Undoes IPv4-mapped IPv6: the kernel dials `::ffff:a.b.c.d` over IPv4, so it is judged and dialled as `a.b.c.d`.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Whether an address is public unicast: reachable on the Internet, and belonging to one host there.
///
/// Leaves out every special-purpose block of the IANA registries (RFC 6890 and its updates), whatever is not yet
/// allocated, and IPv6 spellings of an IPv4 address that is itself not public. Translated (NAT64, RFC 6052) and 6to4
/// addresses are public when the IPv4 address in them is.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match canonical(address) {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127, _, _)            // this network, private, loopback
            | (100, 64..=127, _)        // shared, carrier-grade NAT
            | (169, 254, _)             // link-local, and every cloud's metadata service
            | (172, 16..=31, _)         // private
            | (192, 0, 0)               // protocol assignments
            | (192, 0, 2)               // documentation
            | (192, 88, 99)             // 6to4 relays, withdrawn
            | (192, 168, _)             // private
            | (198, 18..=19, _)         // benchmarks
            | (198, 51, 100)            // documentation
            | (203, 0, 113)             // documentation
            | (224..=255, _, _) // multicast, reserved, broadcast
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // NAT64 with the well-known prefix: only a spelling of an IPv4 address.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => embedded(address).into_iter().flatten().all(is_public_v4),
        // Protocol assignments: Teredo, benchmarks, ORCHID, anycast services.
        [0x2001, 0..=0x1ff, ..] => false,
        // Documentation.
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // 6to4.
        [0x2002, ..] => embedded(address).into_iter().flatten().all(is_public_v4),
        // Global unicast as far as it is allocated. All else is unspecified, loopback, IPv4-compatible, local NAT64,
        // discard-only, SRv6, unique local, link-local, site-local or multicast.
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

/// The IPv4 addresses that an IPv6 address spells: mapped, compatible, translated, NAT64, 6to4, Teredo (its server and
/// its client), ISATAP.
pub(crate) fn embedded(address: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let segments = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // Mapped, translated (RFC 2765), compatible. Not `::` and `::1`, which spell themselves only.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => {
            [v4(high, low), None]
        }
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => [v4(high, low), None],
        // NAT64, well-known prefix.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => [v4(high, low), None],
        // NAT64, local prefix (RFC 8215): as /96, and as /48 with the gap of RFC 6052 §2.2.
        [0x64, 0xff9b, 1, high, middle, rest, last_high, last_low] => {
            let ([_, c], [d, _]) = (middle.to_be_bytes(), rest.to_be_bytes());
            [
                v4(last_high, last_low),
                v4(high, u16::from_be_bytes([c, d])),
            ]
        }
        // 6to4.
        [0x2002, high, low, ..] => [v4(high, low), None],
        // Teredo: the client's address is complemented (RFC 4380 §4).
        [0x2001, 0, high, low, _, _, client_high, client_low] => {
            [v4(high, low), v4(!client_high, !client_low)]
        }
        // ISATAP (RFC 5214 §6.1), under any prefix.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => [v4(high, low), None],
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn public_unicast_is_public() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.255.255",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
            "3ffe::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
        ] {
            assert!(is_public(ip(text)), "{text}");
        }
    }

    #[test]
    fn special_purpose_addresses_are_not() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.170",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::2",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(ip(text)), "{text}");
        }
    }

    #[test]
    fn odd_spellings_of_a_private_address_are_not_public() {
        for text in [
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::8.8.8.8",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::1",
            "2002:c0a8:101::",
            "2001:0:7f00:1::1",
            "2001:0:808:808:0:0:f5ff:fffe",
        ] {
            assert!(!is_public(ip(text)), "{text}");
        }
    }

    #[test]
    fn ipv4_is_found_in_every_spelling() {
        let ten = Ipv4Addr::new(10, 1, 2, 3);
        for text in [
            "::ffff:10.1.2.3",
            "::ffff:0:10.1.2.3",
            "::10.1.2.3",
            "64:ff9b::10.1.2.3",
            "64:ff9b:1::10.1.2.3",
            "64:ff9b:1:0a01:0002:0300::",
            "2002:a01:203::1",
            "2001:0:a01:203::1",
            "2001:0:808:808:0:0:f5fe:fdfc",
            "2001:db8::5efe:10.1.2.3",
            "2001:db8::200:5efe:10.1.2.3",
        ] {
            let IpAddr::V6(address) = ip(text) else {
                panic!("{text}")
            };
            assert!(embedded(address).contains(&Some(ten)), "{text}");
        }
        assert_eq!(embedded(Ipv6Addr::LOCALHOST), [None, None]);
        assert_eq!(embedded(Ipv6Addr::UNSPECIFIED), [None, None]);
    }
}
