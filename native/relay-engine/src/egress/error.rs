//! Why a target could not be reached, and what the client is told.

use std::borrow::Cow;
use std::io;

use capsule_core::proxy_status::ProxyError;
use capsule_core::reject::Reject;
use nix::errno::Errno;

use super::dns::Unresolved;
use crate::policy::Refusal;

/// Why a dial ended without a connection.
///
/// Ordered by how much it tells: where attempts of one race fail in different ways, the greatest is reported.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum DialError {
    /// The name has no addresses; carries the response code, `NOERROR` if the name exists.
    #[error("the target's name does not resolve")]
    Dns(Cow<'static, str>),
    /// No name server could be asked.
    #[error("no name server could be asked for the target's name")]
    DnsUnavailable,
    /// No name server answered in time.
    #[error("no name server answered in time")]
    DnsTimeout,
    /// Policy refuses every address of the target.
    #[error("{0}")]
    Prohibited(Refusal),
    /// Failed in a way that has no name here; carries the error number.
    #[error("the connection to the target failed")]
    Failed(i32),
    /// The network has no way to the target.
    #[error("the target's address cannot be reached from here")]
    Unroutable,
    /// Descriptors, ports or buffers have run out.
    #[error("the relay has no room for another connection")]
    LimitReached,
    /// The target did not answer in time.
    #[error("the target did not answer in time")]
    TimedOut,
    /// The target broke the connection off while it was set up.
    #[error("the target broke the connection off")]
    Terminated,
    /// The target refused the connection.
    #[error("the target refused the connection")]
    Refused,
}

impl DialError {
    /// Error type for `Proxy-Status`.
    //= rfc9209 §2.1.1 error-most-specific
    #[must_use]
    pub fn error(&self) -> ProxyError {
        match self {
            Self::Dns(_) | Self::DnsUnavailable => ProxyError::DnsError,
            Self::DnsTimeout => ProxyError::DnsTimeout,
            Self::Prohibited(refusal) => refusal.error(),
            Self::Failed(_) => ProxyError::DestinationUnavailable,
            Self::Unroutable => ProxyError::DestinationIpUnroutable,
            Self::LimitReached => ProxyError::ConnectionLimitReached,
            Self::TimedOut => ProxyError::ConnectionTimeout,
            Self::Terminated => ProxyError::ConnectionTerminated,
            Self::Refused => ProxyError::ConnectionRefused,
        }
    }

    /// HTTP status of the answer.
    //= rfc9209 §2.1.1 error-status
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Prohibited(refusal) => refusal.status(),
            other => other.error().status(),
        }
    }

    /// DNS response code for `Proxy-Status`, e.g. `NXDOMAIN`.
    #[must_use]
    pub fn rcode(&self) -> Option<&str> {
        match self {
            Self::Dns(rcode) => Some(rcode),
            _ => None,
        }
    }

    /// The whole answer, but for [`DialError::rcode`].
    #[must_use]
    pub fn reject(&self) -> Reject {
        match self {
            Self::Prohibited(refusal) => refusal.reject(),
            other => Reject::new(other.status(), "Target not reached", other.to_string())
                .with_error(other.error()),
        }
    }

    /// Both families gave no address.
    pub(super) fn unresolved(v4: Unresolved, v6: Unresolved) -> Self {
        match (v4, v6) {
            (Unresolved::LimitReached, _) | (_, Unresolved::LimitReached) => Self::LimitReached,
            (Unresolved::Rcode(code), _) | (_, Unresolved::Rcode(code)) => Self::Dns(code),
            (Unresolved::Timeout, _) | (_, Unresolved::Timeout) => Self::DnsTimeout,
            (Unresolved::Unavailable, _) | (_, Unresolved::Unavailable) => Self::DnsUnavailable,
            (Unresolved::NoData, Unresolved::NoData) => Self::Dns("NOERROR".into()),
        }
    }
}

impl From<&io::Error> for DialError {
    fn from(error: &io::Error) -> Self {
        if is_limit(error) {
            return Self::LimitReached;
        }
        let number = error.raw_os_error().unwrap_or(0);
        match Errno::from_raw(number) {
            Errno::ECONNREFUSED => Self::Refused,
            Errno::ETIMEDOUT => Self::TimedOut,
            Errno::ECONNRESET | Errno::ECONNABORTED | Errno::EPIPE => Self::Terminated,
            // A local firewall's reject rules surface as EACCES and EPERM; EINVAL is a link-local address.
            Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETDOWN
            | Errno::EAFNOSUPPORT
            | Errno::EACCES
            | Errno::EPERM
            | Errno::EINVAL => Self::Unroutable,
            _ => Self::Failed(number),
        }
    }
}

/// Whether an error means that something of the process or the machine has run out.
pub(crate) fn is_limit(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::EMFILE
                | Errno::ENFILE
                | Errno::EADDRNOTAVAIL
                | Errno::EADDRINUSE
                | Errno::EAGAIN
                | Errno::ENOBUFS
                | Errno::ENOMEM
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(errno: Errno) -> DialError {
        DialError::from(&io::Error::from_raw_os_error(errno as i32))
    }

    #[test]
    //= rfc9209 §2.1.1 error-most-specific
    //= rfc9209 §2.1.1 error-status
    fn error_numbers_become_proxy_errors() {
        let table = [
            (Errno::ECONNREFUSED, 502, "connection_refused"),
            (Errno::ECONNRESET, 502, "connection_terminated"),
            (Errno::ETIMEDOUT, 504, "connection_timeout"),
            (Errno::EHOSTUNREACH, 502, "destination_ip_unroutable"),
            (Errno::ENETUNREACH, 502, "destination_ip_unroutable"),
            (Errno::EMFILE, 503, "connection_limit_reached"),
            (Errno::ENFILE, 503, "connection_limit_reached"),
            (Errno::EADDRNOTAVAIL, 503, "connection_limit_reached"),
            (Errno::EPROTO, 503, "destination_unavailable"),
        ];
        for (errno, status, token) in table {
            let error = of(errno);
            assert_eq!(
                (error.status(), error.error().token()),
                (status, token),
                "{errno}"
            );
            assert_eq!(error.reject().status, status);
        }
    }

    #[test]
    fn resolution_failures_become_proxy_errors() {
        use Unresolved::{LimitReached, NoData, Rcode, Timeout, Unavailable};
        let nxdomain = || Rcode("NXDOMAIN".into());
        let table = [
            (NoData, NoData, 502, "dns_error", Some("NOERROR")),
            (nxdomain(), nxdomain(), 502, "dns_error", Some("NXDOMAIN")),
            (
                NoData,
                Rcode("SERVFAIL".into()),
                502,
                "dns_error",
                Some("SERVFAIL"),
            ),
            (Timeout, NoData, 504, "dns_timeout", None),
            (Timeout, Timeout, 504, "dns_timeout", None),
            (Unavailable, Unavailable, 502, "dns_error", None),
            (LimitReached, NoData, 503, "connection_limit_reached", None),
        ];
        for (v4, v6, status, token, rcode) in table {
            let error = DialError::unresolved(v4, v6);
            assert_eq!(
                (error.status(), error.error().token(), error.rcode()),
                (status, token, rcode)
            );
        }
    }

    #[test]
    fn policy_is_answered_with_403() {
        let error = DialError::Prohibited(Refusal::Address);
        assert_eq!(
            (error.status(), error.error().token()),
            (403, "destination_ip_prohibited")
        );
    }

    #[test]
    fn the_most_telling_error_is_the_greatest() {
        assert!(of(Errno::ECONNREFUSED) > of(Errno::ETIMEDOUT));
        assert!(of(Errno::ETIMEDOUT) > of(Errno::ENETUNREACH));
        assert!(of(Errno::ENETUNREACH) > DialError::Prohibited(Refusal::Address));
        assert!(DialError::Prohibited(Refusal::Address) > DialError::Dns("NXDOMAIN".into()));
    }
}
