//! Names to addresses. One resolver a worker, each with its own cache; A and AAAA are asked separately so that the
//! race can begin with whichever comes first.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Hosts, TokioResolver};

use super::error::is_limit;
use super::happy_eyeballs::Family;

/// One exchange with a configured name server, with the retransmissions in it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);

/// Exchanges begun anew after the first one, each up to [`QUERY_TIMEOUT`].
const QUERY_RETRIES: usize = 1;

/// Responses kept by one worker.
const CACHE_SIZE: u64 = 4096;

/// The longest that an answer is believed, whatever its TTL.
const MAX_TTL: Duration = Duration::from_secs(3600);

/// The longest that "there is no such name" is believed.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(60);

/// Why there are no addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unresolved {
    /// The name exists, without addresses of this family.
    NoData,
    /// The name servers answered with this response code, e.g. `NXDOMAIN`.
    Rcode(Cow<'static, str>),
    /// No name server answered in time.
    Timeout,
    /// No name server is known or could be asked.
    Unavailable,
    /// The process has run out of descriptors.
    LimitReached,
}

/// Resolves names by the hosts file, then by name servers.
#[derive(Debug)]
pub struct Resolver {
    hosts: Hosts,
    /// None if the system names no server; literal addresses and the hosts file still work.
    servers: Option<TokioResolver>,
    /// Nothing it is made from was left out for want of descriptors or memory.
    complete: bool,
}

impl Resolver {
    /// A resolver that asks these servers, or, if there are none, those of the system's configuration. Search domains
    /// are never applied.
    #[must_use]
    pub fn new(nameservers: &[SocketAddr]) -> Self {
        // A hosts file that is missing or unreadable for good is an empty one.
        let (hosts, complete) = match Hosts::from_system() {
            Ok(hosts) => (hosts, true),
            Err(error) => (Hosts::default(), !is_limit(&error)),
        };
        let mut resolver = Self::with_hosts(nameservers, hosts);
        resolver.complete &= complete;
        resolver
    }

    /// Whether everything could be read that it is made from; else it had better be made anew for the next use.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    pub(crate) fn with_hosts(nameservers: &[SocketAddr], hosts: Hosts) -> Self {
        let mut complete = true;
        let configured = if nameservers.is_empty() {
            match read_system_conf() {
                Ok((config, options)) => {
                    let (_, _, servers) = config.into_parts();
                    Some((servers, options))
                }
                Err(error) => {
                    tracing::warn!(%error, "no name servers: the system's resolver configuration cannot be used");
                    complete = !matches!(error, NetError::Io(error) if is_limit(&error));
                    None
                }
            }
        } else {
            let mut options = ResolverOpts::default();
            options.timeout = QUERY_TIMEOUT;
            options.attempts = QUERY_RETRIES;
            Some((nameservers.iter().map(server).collect(), options))
        };
        let servers = configured.and_then(|(servers, mut options)| {
            // The hosts file is ours: a name in it is not asked for at all, in either family.
            options.use_hosts_file = ResolveHosts::Never;
            options.cache_size = CACHE_SIZE;
            options.positive_max_ttl = Some(MAX_TTL);
            options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
            options.max_active_requests = 1024;
            let config = ResolverConfig::from_name_servers(servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                .with_options(options)
                .build()
                .inspect_err(|error| tracing::warn!(%error, "no name servers"))
                .ok()
        });
        Self {
            hosts,
            servers,
            complete,
        }
    }

    /// The addresses of one family, in the order of the answer; never an empty list.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn lookup(&self, name: &str, family: Family) -> Result<Vec<IpAddr>, Unresolved> {
        let Ok(mut name) = Name::from_ascii(name) else {
            return Err(Unresolved::Rcode("NXDOMAIN".into()));
        };
        // Fully qualified: nothing is ever appended.
        name.set_fqdn(true);
        let record_type = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        if let Some(answer) = self.in_hosts_file(&name, record_type) {
            return answer;
        }
        let servers = self.servers.as_ref().ok_or(Unresolved::Unavailable)?;
        let lookup = servers
            .lookup(name, record_type)
            .await
            .map_err(unresolved)?;
        let found = addresses(lookup.answers());
        if found.is_empty() {
            return Err(rcode(lookup.message().response_code));
        }
        Ok(found)
    }

    /// A name that the file has for one family only has no addresses of the other.
    fn in_hosts_file(
        &self,
        name: &Name,
        wanted: RecordType,
    ) -> Option<Result<Vec<IpAddr>, Unresolved>> {
        let of = |record_type| {
            self.hosts
                .lookup_static_host(&Query::query(name.clone(), record_type))
                .map(|lookup| addresses(lookup.answers()))
        };
        let (v4, v6) = (of(RecordType::A), of(RecordType::AAAA));
        if v4.is_none() && v6.is_none() {
            return None;
        }
        let found = if wanted == RecordType::A { v4 } else { v6 };
        Some(found.ok_or(Unresolved::NoData))
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let on_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    NameServerConfig::new(
        address.ip(),
        true,
        vec![
            on_port(ConnectionConfig::udp()),
            on_port(ConnectionConfig::tcp()),
        ],
    )
}

fn addresses(records: &[Record]) -> Vec<IpAddr> {
    records
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        })
        .collect()
}

fn unresolved(error: NetError) -> Unresolved {
    match error {
        NetError::Timeout => Unresolved::Timeout,
        NetError::Dns(DnsError::NoRecordsFound(none)) => rcode(none.response_code),
        NetError::Dns(DnsError::ResponseCode(code)) => rcode(code),
        NetError::Io(error) if is_limit(&error) => Unresolved::LimitReached,
        // The library tells no reason; a socket of our own does.
        NetError::NoConnections
            if UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).is_err_and(|error| is_limit(&error)) =>
        {
            Unresolved::LimitReached
        }
        other => {
            tracing::debug!(error = %other, "name servers could not be asked");
            Unresolved::Unavailable
        }
    }
}

fn rcode(code: ResponseCode) -> Unresolved {
    let name = match code {
        ResponseCode::NoError => return Unresolved::NoData,
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::YXDomain => "YXDOMAIN",
        ResponseCode::YXRRSet => "YXRRSET",
        ResponseCode::NXRRSet => "NXRRSET",
        ResponseCode::NotAuth => "NOTAUTH",
        ResponseCode::NotZone => "NOTZONE",
        other => return Unresolved::Rcode(format!("RCODE{}", u16::from(other)).into()),
    };
    Unresolved::Rcode(name.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// As on a system without resolv.conf.
    fn without_servers() -> Resolver {
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(&b"::1 origin.test\n"[..]).unwrap();
        Resolver {
            hosts,
            servers: None,
            complete: true,
        }
    }

    #[tokio::test]
    async fn without_name_servers_the_hosts_file_still_works() {
        let resolver = without_servers();
        let found = resolver.lookup("origin.test", Family::V6).await;
        assert_eq!(found, Ok(vec!["::1".parse().unwrap()]));
        let found = resolver.lookup("origin.test", Family::V4).await;
        assert_eq!(found, Err(Unresolved::NoData));
        let found = resolver.lookup("example.com", Family::V4).await;
        assert_eq!(found, Err(Unresolved::Unavailable));
    }

    #[tokio::test]
    async fn what_is_no_name_does_not_exist() {
        let long = "a".repeat(64);
        for name in [&long, "a..b", &[long.as_str(); 5].join(".")] {
            let found = without_servers().lookup(name, Family::V4).await;
            assert_eq!(found, Err(Unresolved::Rcode("NXDOMAIN".into())), "{name}");
        }
    }

    #[test]
    fn response_codes_have_their_registered_names() {
        assert_eq!(rcode(ResponseCode::NoError), Unresolved::NoData);
        assert_eq!(
            rcode(ResponseCode::ServFail),
            Unresolved::Rcode("SERVFAIL".into())
        );
        assert_eq!(
            rcode(ResponseCode::Unknown(3841)),
            Unresolved::Rcode("RCODE3841".into())
        );
    }
}
