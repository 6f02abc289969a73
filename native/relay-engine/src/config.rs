//! The effective configuration, as the control plane hands it over: one JSON document at start and at each reload.
//!
//! Everything is resolved here: durations are seconds, sizes are bytes, credentials are already read from their files.
//! Validation with places and remedies belongs to the control plane; the engine refuses only what it cannot run.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
}

/// The whole configuration of an engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Worker threads; 0 = one per core.
    pub workers: usize,
    /// Where to listen.
    pub listeners: Vec<Listener>,
    /// Who may use the relay.
    pub auth: Auth,
    /// Which protocols are served, and at which templates.
    pub protocols: Protocols,
    /// How targets are reached.
    pub egress: Egress,
    /// Which targets may be reached.
    pub policy: Policy,
    /// QUIC towards clients.
    pub quic: Quic,
    /// What bounds everything.
    pub limits: Limits,
    /// Where the access log goes.
    pub log: Log,
}

/// An HTTP version that a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Http {
    /// HTTP/1.1
    H1,
    /// HTTP/2
    H2,
    /// HTTP/3
    H3,
}

impl Http {
    /// The short name used in logs, labels and the hook: `h1`, `h2`, `h3`.
    pub fn name(self) -> &'static str {
        match self {
            Http::H1 => "h1",
            Http::H2 => "h2",
            Http::H3 => "h3",
        }
    }
}

/// One listening address: TCP, and UDP on the same port when `h3` is listed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Address and port; port 0 = any free port.
    pub address: SocketAddr,
    /// HTTP versions offered.
    pub http: Vec<Http>,
    /// PEM chain; absent = cleartext.
    pub certificate: Option<PathBuf>,
    /// PEM key of the chain.
    pub private_key: Option<PathBuf>,
    /// PEM roots for TLS client certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether a client certificate must be shown (with `client_ca`).
    pub client_auth_required: bool,
}

/// Credentials and what is asked of clients.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Requests without a known principal are refused.
    pub required: bool,
    /// The realm of challenges.
    pub realm: String,
    /// (name, PHC string `$argon2id$…`).
    pub users: Vec<(String, String)>,
    /// (name, SHA-256 of the token in lower-case hex).
    pub tokens: Vec<(String, String)>,
}

/// The protocols that are on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocols {
    /// Classic CONNECT.
    pub connect: bool,
    /// Templated protocols.
    pub templated: Vec<Templated>,
}

/// One templated protocol of the protocol table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Templated {
    /// Name in the protocol table, e.g. `connect-tcp`.
    pub protocol: String,
    /// URI template; path (and query) only, or absolute.
    pub template: String,
    /// Upgrade tokens with their capsule types.
    pub profiles: Vec<Profile>,
    /// How tunnels are bound, for protocols that have such a mode; absent = not at all.
    #[serde(default)]
    pub bind: Option<Bind>,
    /// How the marks of packets are carried, for protocols that can; absent = not at all.
    #[serde(default)]
    pub ecn_dscp: Option<EcnDscp>,
}

/// How tunnels to any peer are bound (draft-ietf-masque-connect-udp-listen).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Addresses that the outside sees instead of the sockets' (NAT that keeps ports); empty = the sockets'.
    pub public_addresses: Vec<IpAddr>,
}

/// How the ECN and DSCP marks of packets are carried (draft-ietf-masque-connect-udp-ecn-dscp).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EcnDscp {
    /// Types of the capsules that register contexts on an open tunnel; absent = there are none.
    pub capsules: Option<EcnDscpCapsules>,
}

/// Capsule types that are not assigned yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EcnDscpCapsules {
    /// ECN_DSCP_CONTEXT_ASSIGN
    pub assign: u64,
    /// ECN_DSCP_CONTEXT_ACK
    pub ack: u64,
}

/// An upgrade token and the capsule types that go with it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Upgrade token / `:protocol` value.
    pub token: String,
    /// Capsule type of DATA.
    pub data: u64,
    /// Capsule type of FINAL_DATA.
    pub final_data: u64,
}

/// How targets are reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// Bound on resolving and connecting together.
    #[serde(deserialize_with = "seconds")]
    pub dial_timeout: Duration,
    /// Addresses to send from; empty = the system's choice.
    pub source_addresses: Vec<IpAddr>,
    /// Name servers (port 53 where none is given); empty = the system's resolver configuration.
    pub nameservers: Vec<SocketAddr>,
}

/// Which targets may be reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Added to public unicast.
    pub allow_networks: Vec<IpNet>,
    /// Wins over everything.
    pub deny_networks: Vec<IpNet>,
    /// Refused ports.
    pub deny_ports: Vec<u16>,
    /// First match wins; then public unicast is allowed.
    pub rules: Vec<Rule>,
    /// Ask the control plane for each tunnel.
    pub hook: bool,
    /// After this the answer is no.
    #[serde(deserialize_with = "seconds")]
    pub hook_timeout: Duration,
    /// Remember a decision per (principal, protocol, target) for so long; 0 = never.
    #[serde(deserialize_with = "seconds")]
    pub hook_cache: Duration,
}

/// One policy rule: conditions are ANDed, entries of one list ORed, an empty list always holds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Allow or deny.
    pub allow: bool,
    /// Principals by name.
    pub principals: Vec<String>,
    /// Host names; `*.example.com` matches every name below.
    pub hosts: Vec<String>,
    /// Networks that the dialled address must be in.
    pub networks: Vec<IpNet>,
    /// Inclusive port ranges.
    pub ports: Vec<(u16, u16)>,
    /// Protocol names.
    pub protocols: Vec<String>,
}

/// QUIC towards clients.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quic {
    /// How much is sent at a time.
    pub congestion_control: CongestionControl,
}

/// How a sender finds out what a path carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CongestionControl {
    /// CUBIC (RFC 9438): loss means that it was too much.
    #[default]
    Cubic,
    /// BBR: the rate of delivery and the round-trip time tell; loss alone slows nothing down.
    Bbr,
}

/// What bounds everything.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// TLS or QUIC handshake, and a request head, in total.
    #[serde(deserialize_with = "seconds")]
    pub header_timeout: Duration,
    /// A stream tunnel with no byte either way.
    #[serde(deserialize_with = "seconds")]
    pub idle_timeout: Duration,
    /// A datagram tunnel with no datagram either way.
    #[serde(deserialize_with = "seconds")]
    pub idle_timeout_datagram: Duration,
    /// Grace of a drain.
    #[serde(deserialize_with = "seconds")]
    pub drain_timeout: Duration,
    /// Open client connections.
    pub max_connections: usize,
    /// Open tunnels of one principal.
    pub max_tunnels_per_principal: usize,
    /// User space and pipes of one tunnel, both directions, in bytes.
    pub buffer_per_tunnel: usize,
    /// Budget for all tunnel buffers, in bytes; 0 = three quarters of the machine's (or cgroup's) memory.
    pub memory: u64,
}

/// Where the access log goes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// `-` = standard output, empty = off, else a file that is appended to.
    pub access: String,
}
