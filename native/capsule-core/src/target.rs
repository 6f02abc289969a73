//! Where a tunnel leads: a host and a port, validated before anything is resolved.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A host: an address, or a name that can be a DNS name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A name, in the case it was written in; at most 254 bytes of ASCII letters, digits, `-`, `_` and dots.
    Name(String),
    /// No host in particular: a bound tunnel leads to any (draft-ietf-masque-connect-udp-listen). Its port is 0.
    Any,
}

impl fmt::Display for Host {
    /// IPv6 addresses without brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
            Self::Any => f.write_str("*"),
        }
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port, 1–65535; 0 with [`Host::Any`].
    pub port: u16,
}

impl fmt::Display for Target {
    /// `host:port`, IPv6 addresses in brackets; `*:*` for any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Any => f.write_str("*:*"),
            Host::Ip(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// What is wrong with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The host is empty.
    #[error("the target host is empty")]
    EmptyHost,
    /// The host is neither an address nor a name that DNS can hold.
    #[error("the target host is neither an IP address nor a host name")]
    BadHost,
    /// A numeric host that is no dotted-decimal IPv4 address.
    #[error("the target host ends in a number but is no IPv4 address in dotted decimal form")]
    NumericHost,
    /// An IPv6 address with a zone.
    #[error("the target host must not carry an IPv6 zone")]
    Zone,
    /// The port is not a decimal number from 1 to 65535.
    #[error("the target port must be a decimal number from 1 to 65535")]
    BadPort,
    /// The authority is not `host:port`.
    #[error("the target must be written host:port, an IPv6 address in brackets")]
    BadAuthority,
    /// A value is not validly percent-encoded UTF-8.
    #[error("the target is not validly percent-encoded")]
    BadEncoding,
}

impl Target {
    /// What a bound tunnel leads to whose request names no target.
    pub const ANY: Self = Self {
        host: Host::Any,
        port: 0,
    };

    /// Validates decoded template values: IPv6 without brackets.
    ///
    /// # Errors
    /// Each way the values can be wrong; see [`TargetError`].
    pub fn from_values(host: &str, port: &str) -> Result<Self, TargetError> {
        Ok(Self {
            host: parse_host(host)?,
            port: parse_port(port)?,
        })
    }

    /// Parses the authority-form of classic CONNECT (RFC 9110 §7.2, RFC 9112 §3.2.3): the port is required, userinfo
    /// is a fault, IPv6 stands in brackets.
    ///
    /// # Errors
    /// Each way the authority can be wrong; see [`TargetError`].
    //= rfc9110 §9.3.6 connect-authority-form
    pub fn from_authority(authority: &str) -> Result<Self, TargetError> {
        let (host, port) = authority
            .rsplit_once(':')
            .ok_or(TargetError::BadAuthority)?;
        let host = if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(TargetError::BadAuthority)?;
            if inner.contains('%') {
                return Err(TargetError::Zone);
            }
            let address: Ipv6Addr = inner.parse().map_err(|_| TargetError::BadHost)?;
            Host::Ip(IpAddr::V6(address))
        } else if host.contains(':') {
            return Err(TargetError::BadAuthority);
        } else {
            parse_host(host)?
        };
        Ok(Self {
            host,
            port: parse_port(port)?,
        })
    }
}

//= rfc9298 §3 target-host
/// Validates a decoded host: an IPv6 address without brackets, an IPv4 address in dotted decimal form, or a name.
fn parse_host(host: &str) -> Result<Host, TargetError> {
    if host.is_empty() {
        return Err(TargetError::EmptyHost);
    }
    if host.contains(':') {
        if host.contains('%') {
            return Err(TargetError::Zone);
        }
        let address: Ipv6Addr = host.parse().map_err(|_| TargetError::BadHost)?;
        return Ok(Host::Ip(IpAddr::V6(address)));
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(IpAddr::V4(address)));
    }
    parse_name(host)
}

/// A name that DNS can hold: labels of 1–63 letters, digits, `-` and `_`, 253 bytes in all, one dot may end it.
/// Narrower than reg-name: nothing else resolves, and odd bytes only ever reach logs and resolvers by mistake.
fn parse_name(host: &str) -> Result<Host, TargetError> {
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() || name.len() > 253 {
        return Err(TargetError::BadHost);
    }
    let mut last = "";
    for label in name.split('.') {
        let sound = !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if !sound {
            return Err(TargetError::BadHost);
        }
        last = label;
    }
    // Some resolvers read "127.1", "0x7f.1" or "2130706433" as addresses; nobody owns a numeric top-level domain.
    if ends_in_number(last) {
        return Err(TargetError::NumericHost);
    }
    Ok(Host::Name(host.to_owned()))
}

fn ends_in_number(label: &str) -> bool {
    label.bytes().all(|byte| byte.is_ascii_digit())
        || label
            .strip_prefix("0x")
            .or_else(|| label.strip_prefix("0X"))
            .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

//= rfc9298 §3 target-port
/// Digits only, 1–65535; leading zeros as far as five digits.
fn parse_port(port: &str) -> Result<u16, TargetError> {
    if port.is_empty() || port.len() > 5 || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(TargetError::BadPort);
    }
    match port.parse() {
        Ok(0) | Err(_) => Err(TargetError::BadPort),
        Ok(port) => Ok(port),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use alloc::string::ToString as _;

    use super::*;

    fn host(host: &str) -> Result<Host, TargetError> {
        Target::from_values(host, "443").map(|target| target.host)
    }

    //= rfc9298 §3 target-host
    #[test]
    fn addresses_and_names() {
        assert_eq!(
            host("192.0.2.1"),
            Ok(Host::Ip("192.0.2.1".parse().unwrap()))
        );
        assert_eq!(
            host("2001:DB8::1"),
            Ok(Host::Ip("2001:db8::1".parse().unwrap()))
        );
        assert_eq!(
            host("::ffff:127.0.0.1"),
            Ok(Host::Ip("::ffff:127.0.0.1".parse().unwrap()))
        );
        for name in [
            "example.com",
            "Example.COM.",
            "localhost",
            "a-b_c.xn--nxasmq6b",
            "3com.com",
            "0x7f.example",
        ] {
            assert_eq!(host(name), Ok(Host::Name(name.to_string())));
        }
    }

    //= rfc9298 §3 target-host
    #[test]
    fn what_is_neither_is_refused() {
        assert_eq!(host(""), Err(TargetError::EmptyHost));
        for zone in ["fe80::1%eth0", "fe80::1%25eth0"] {
            assert_eq!(host(zone), Err(TargetError::Zone));
        }
        for numeric in [
            "127.1",
            "0x7f.1",
            "2130706433",
            "0x7f000001",
            "1.2.3.4.5",
            "256.1.1.1",
            "0177.0.0.1",
            "a.0x",
            "127.0.0.1.",
            "example.1",
        ] {
            assert_eq!(host(numeric), Err(TargetError::NumericHost), "{numeric}");
        }
        for bad in [
            ".",
            "a..b",
            ".a",
            "a,b",
            "192.0.2.1,192.0.2.2",
            "a b",
            "a/b",
            "a?b",
            "a#b",
            "user@host",
            "a\0b",
            "a%00b",
            "bücher.example",
            "[::1]",
            "::g",
            "1:2:3",
            "a\r\nb",
            "*",
        ] {
            assert_eq!(host(bad), Err(TargetError::BadHost), "{bad:?}");
        }
        let label = "a".repeat(63);
        assert!(host(&label).is_ok());
        assert_eq!(host(&(label.clone() + "a")), Err(TargetError::BadHost));
        let long = [&label[..]; 4].join(".");
        assert_eq!(long.len(), 255);
        assert_eq!(host(&long), Err(TargetError::BadHost));
        assert!(host(&long[2..]).is_ok());
    }

    //= rfc9298 §3 target-port
    #[test]
    fn ports_are_digits_from_1_to_65535() {
        for (text, port) in [("1", 1), ("443", 443), ("65535", 65535), ("00080", 80)] {
            let target = Target::from_values("a", text);
            assert_eq!(target.map(|target| target.port), Ok(port));
        }
        for bad in [
            "", "0", "00000", "65536", "99999", "+80", "-1", " 80", "80 ", "8o", "0x50", "1e3",
            "000080", "٨٠",
        ] {
            let target = Target::from_values("a", bad);
            assert_eq!(target, Err(TargetError::BadPort), "{bad:?}");
        }
    }

    //= rfc9110 §9.3.6 connect-authority-form
    #[test]
    fn authorities() {
        for (authority, host, port) in [
            ("example.com:443", "example.com", 443),
            ("192.0.2.1:80", "192.0.2.1", 80),
            ("[2001:db8::1]:8080", "2001:db8::1", 8080),
        ] {
            let target = Target::from_authority(authority).unwrap();
            assert_eq!(target.host.to_string(), host);
            assert_eq!(target.port, port);
            assert_eq!(target.to_string(), authority);
        }
        for (bad, fault) in [
            ("", TargetError::BadAuthority),
            ("example.com", TargetError::BadAuthority),
            ("2001:db8::1:443", TargetError::BadAuthority),
            ("[2001:db8::1:443", TargetError::BadAuthority),
            ("[::1]x:443", TargetError::BadAuthority),
            ("[::1]", TargetError::BadAuthority),
            ("[192.0.2.1]:80", TargetError::BadHost),
            ("[fe80::1%25eth0]:80", TargetError::Zone),
            ("user@example.com:80", TargetError::BadHost),
            ("user:pass@example.com:80", TargetError::BadAuthority),
            (":80", TargetError::EmptyHost),
            ("example.com:", TargetError::BadPort),
            ("example.com:0", TargetError::BadPort),
            ("example.com:+80", TargetError::BadPort),
            ("http://example.com:80", TargetError::BadAuthority),
            ("example.com:80/", TargetError::BadPort),
        ] {
            assert_eq!(Target::from_authority(bad), Err(fault), "{bad:?}");
        }
    }
}
