//! The table of tunnel protocols. A further protocol is one file here and one row in [`TABLE`].

pub mod connect;
pub mod tcp;
pub mod udp;
pub mod udp_bind;
pub mod udp_marked;

use alloc::borrow::Cow;

use crate::capsule::types;
use crate::tunnel::AnyStreamTunnel;

/// What a tunnel leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetKind {
    /// A byte stream (TCP).
    Stream,
    /// Datagrams (UDP).
    Datagram,
    /// IP packets or Ethernet frames.
    Packet,
}

/// An upgrade token and the capsule types that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// `Upgrade` protocol name and `:protocol` value.
    pub token: Cow<'static, str>,
    /// Capsule type of DATA; 0 where the protocol has none.
    pub data: u64,
    /// Capsule type of FINAL_DATA; 0 where the protocol has none.
    pub final_data: u64,
}

/// A row of [`TABLE`].
#[derive(Debug)]
pub struct Protocol {
    /// Name in configuration, metrics and logs.
    pub name: &'static str,
    /// What a tunnel leads to.
    pub target: TargetKind,
    /// Requested by an extended CONNECT or an Upgrade on a URI template; else by a plain CONNECT.
    pub templated: bool,
    /// Where it is served unless configured otherwise.
    pub default_template: Option<&'static str>,
    /// Tokens it is served under unless configured otherwise, in order of preference.
    pub profiles: &'static [Profile],
    /// The data stream carries capsules: responses say `Capsule-Protocol: ?1`.
    pub capsule_protocol: bool,
    /// Has a bind mode: one tunnel to and from any peer, for clients that ask for it.
    pub can_bind: bool,
    /// Can carry the ECN and DSCP marks of packets, for clients that ask for it.
    pub can_mark: bool,
    /// On unless configured otherwise.
    pub default_on: bool,
    /// Makes the machine of one tunnel, where the target is a byte stream.
    pub tunnel: Option<fn(Option<&Profile>) -> AnyStreamTunnel>,
}

impl PartialEq for Protocol {
    /// Rows are the same if their names are.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Protocol {}

/// The protocols there are.
pub static TABLE: &[Protocol] = &[
    Protocol {
        name: "connect",
        target: TargetKind::Stream,
        templated: false,
        default_template: None,
        profiles: &[],
        capsule_protocol: false,
        can_bind: false,
        can_mark: false,
        default_on: true,
        tunnel: Some(|_| AnyStreamTunnel::Raw(connect::Raw)),
    },
    Protocol {
        name: "connect-tcp",
        target: TargetKind::Stream,
        templated: true,
        default_template: Some("/.well-known/masque/tcp/{target_host}/{target_port}/"),
        profiles: TCP_PROFILES,
        capsule_protocol: true,
        can_bind: false,
        can_mark: false,
        default_on: true,
        tunnel: Some(|profile| {
            AnyStreamTunnel::ConnectTcp(tcp::ConnectTcp::with_profile(
                profile.unwrap_or(&TCP_PROFILES[0]),
            ))
        }),
    },
    Protocol {
        name: "connect-udp",
        target: TargetKind::Datagram,
        templated: true,
        default_template: Some("/.well-known/masque/udp/{target_host}/{target_port}/"),
        profiles: &[Profile {
            token: Cow::Borrowed("connect-udp"),
            data: 0,
            final_data: 0,
        }],
        capsule_protocol: true,
        can_bind: true,
        can_mark: true,
        default_on: true,
        tunnel: None,
    },
];

//= connect-tcp §8.1.1 interop-token
//= connect-tcp §8.3.1 interop-capsule-types
static TCP_PROFILES: &[Profile] = &[
    Profile {
        token: Cow::Borrowed("connect-tcp-12"),
        data: types::DATA_12,
        final_data: types::FINAL_DATA_12,
    },
    Profile {
        token: Cow::Borrowed("connect-tcp-07"),
        data: types::DATA_08,
        final_data: types::FINAL_DATA_08,
    },
];

/// The row of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Protocol> {
    TABLE.iter().find(|protocol| protocol.name == name)
}

/// The row of classic CONNECT.
#[must_use]
pub fn classic() -> &'static Protocol {
    &TABLE[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capsule::MAX_HEADER;
    use crate::template::Template;
    use crate::tunnel::{Finish, StreamTunnel as _};

    #[test]
    fn rows_are_consistent() {
        for protocol in TABLE {
            assert_eq!(by_name(protocol.name), Some(protocol));
            assert_eq!(protocol.templated, protocol.default_template.is_some());
            assert_eq!(protocol.templated, !protocol.profiles.is_empty());
            if let Some(template) = protocol.default_template {
                assert!(Template::compile(template).is_ok());
            }
        }
        assert_eq!(classic().name, "connect");
        assert_eq!(by_name("connect-tls"), None);
    }

    //= connect-tcp §8.1.1 interop-token
    //= connect-tcp §8.3.1 interop-capsule-types
    #[test]
    fn tokens_go_with_their_capsule_types() {
        let types = |token: &str| {
            let profile = TCP_PROFILES.iter().find(|p| p.token == token);
            profile.map(|profile| (profile.data, profile.final_data))
        };
        assert_eq!(types("connect-tcp-12"), Some((0x2028_d7f2, 0x2028_d7f3)));
        assert_eq!(types("connect-tcp-07"), Some((0x2028_d7f0, 0x2028_d7f1)));
    }

    #[test]
    fn the_constructor_takes_the_profile() {
        let mut out = [0; MAX_HEADER];
        for protocol in TABLE {
            let Some(make) = protocol.tunnel else {
                assert_ne!(protocol.target, TargetKind::Stream);
                continue;
            };
            for profile in protocol.profiles {
                let mut tunnel = make(Some(profile));
                assert_eq!(tunnel.outbound_finish(&mut out), Finish::Bytes(5));
                let header = crate::capsule::decode_header(&out);
                assert_eq!(header, Some((profile.final_data, 0, 5)));
            }
        }
    }
}
