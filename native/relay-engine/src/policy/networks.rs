//! Sets of networks with longest-prefix lookup.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixSet;

use super::address::{canonical, embedded};

/// Networks of both families. A network of IPv4-mapped addresses counts as the IPv4 network it spells.
#[derive(Debug, Default, Clone)]
pub(crate) struct Networks {
    v4: PrefixSet<Ipv4Net>,
    v6: PrefixSet<Ipv6Net>,
}

impl Networks {
    pub(crate) fn new(networks: &[IpNet]) -> Self {
        let mut set = Self::default();
        for network in networks {
            match network.trunc() {
                IpNet::V4(network) => {
                    set.v4.insert(network);
                }
                IpNet::V6(network) => set.insert_v6(network),
            }
        }
        set
    }

    fn insert_v6(&mut self, network: Ipv6Net) {
        let mapped = network.network().to_ipv4_mapped();
        match (mapped, network.prefix_len().checked_sub(96)) {
            (Some(address), Some(length)) => {
                if let Ok(network) = Ipv4Net::new(address, length) {
                    self.v4.insert(network);
                }
            }
            _ => {
                self.v6.insert(network);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether the address, as it is dialled, lies in one of the networks.
    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        match canonical(address) {
            IpAddr::V4(address) => self.contain_v4(address),
            IpAddr::V6(address) => self.v6.is_covered(&Ipv6Net::from(address)),
        }
    }

    /// Whether the address or an IPv4 address hidden in it lies in one of the networks.
    pub(crate) fn touch(&self, address: IpAddr) -> bool {
        self.contain(address)
            || match address {
                IpAddr::V4(_) => false,
                IpAddr::V6(address) => embedded(address)
                    .into_iter()
                    .flatten()
                    .any(|inner| self.contain_v4(inner)),
            }
    }

    fn contain_v4(&self, address: Ipv4Addr) -> bool {
        self.v4.is_covered(&Ipv4Net::from(address))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn networks(texts: &[&str]) -> Networks {
        let parsed: Vec<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Networks::new(&parsed)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_ipv4_network_touches_its_ipv6_spellings_but_contains_only_mapped_ones() {
        let set = networks(&["10.0.0.0/8"]);
        assert!(set.contain(ip("10.9.8.7")));
        assert!(set.contain(ip("::ffff:10.9.8.7")));
        for text in ["64:ff9b::10.9.8.7", "2002:a09:807::1", "::10.9.8.7"] {
            assert!(set.touch(ip(text)), "{text}");
            assert!(!set.contain(ip(text)), "{text}");
        }
        assert!(!set.touch(ip("64:ff9b::11.9.8.7")));
    }

    #[test]
    fn a_mapped_network_is_the_ipv4_network() {
        let set = networks(&["::ffff:192.168.0.0/112"]);
        assert!(set.contain(ip("192.168.3.4")));
        assert!(set.contain(ip("::ffff:192.168.3.4")));
        assert!(!set.contain(ip("192.169.0.1")));
    }

    #[test]
    fn host_bits_and_single_addresses_are_fine() {
        let set = networks(&["10.1.2.3/8", "::1/128", "0.0.0.0/32"]);
        assert!(set.contain(ip("10.200.0.1")));
        assert!(set.contain(ip("::1")));
        assert!(!set.contain(ip("::")));
        assert!(set.contain(ip("0.0.0.0")));
        assert!(!networks(&[]).contain(ip("::1")));
        assert!(networks(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_a_scan(
            nets in prop::collection::vec((any::<u32>(), 0u8..=32), 0..8),
            address in any::<u32>(),
        ) {
            let nets: Vec<IpNet> = nets
                .into_iter()
                .map(|(bits, length)| IpNet::V4(Ipv4Net::new(Ipv4Addr::from(bits), length).unwrap()))
                .collect();
            let address = IpAddr::V4(Ipv4Addr::from(address));
            prop_assert_eq!(Networks::new(&nets).contain(address), nets.iter().any(|net| net.contains(&address)));
        }
    }
}
