//! Why there is no tunnel, for whoever asked: whose fault it is, and what was said.

use http::HeaderMap;
use sfv::{BareItem, List, ListEntry, Parser};

use super::{Error, Refused};

/// An [`Error`] that several may be told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// There is no connection to the proxy: name, network, TLS, or it went away.
    #[error("{0}")]
    Unreachable(String),
    /// The proxy answered, but not with a tunnel.
    #[error("the proxy refused with status {}", .0.status)]
    Refused(Box<Refused>),
    /// The proxy broke a rule of HTTP or of the capsule protocol, or does not know what it was asked for.
    #[error("{0}")]
    Misbehaved(String),
    /// It was asked for something that cannot be.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// Whether the connection failed, or did not take the request: another connection may do better.
    pub(super) fn is_of_connection(&self) -> bool {
        match self {
            Self::Io(_) | Self::Quic(_) => true,
            Self::H2(error) => {
                error.is_io()
                    || error.is_go_away()
                    || error.reason() == Some(::h2::Reason::REFUSED_STREAM)
            }
            Self::Refused(_) | Self::Protocol(_) | Self::Usage(_) => false,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let unreachable = error.is_of_connection();
        match error {
            Error::Refused(refused) => Self::Refused(refused),
            Error::Usage(what) => Self::Usage(what.to_owned()),
            error if unreachable => Self::Unreachable(error.to_string()),
            error => Self::Misbehaved(error.to_string()),
        }
    }
}

/// What a proxy says in `Proxy-Status` (RFC 9209).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reason {
    /// Error type, e.g. `connection_refused`.
    pub error: Option<String>,
    /// Free text.
    pub details: Option<String>,
}

impl Reason {
    /// The reason of the proxy nearest to the target that names an error, else what the nearest to us says.
    pub(super) fn of(fields: &HeaderMap) -> Self {
        let mut lines = fields.get_all(capsule_core::proxy_status::NAME).iter();
        let Some(first) = lines.next() else {
            return Self::default();
        };
        let mut field = first.as_bytes().to_vec();
        for line in lines {
            field.extend_from_slice(b", ");
            field.extend_from_slice(line.as_bytes());
        }
        let Ok(list) = Parser::new(&field).parse::<List>() else {
            return Self::default();
        };
        let mut members: Vec<_> = list.iter().map(Self::of_member).collect();
        let telling = members.iter().position(|member| member.error.is_some());
        let last = members.len().wrapping_sub(1);
        members
            .get_mut(telling.unwrap_or(last))
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn of_member(entry: &ListEntry) -> Self {
        let ListEntry::Item(item) = entry else {
            return Self::default();
        };
        let text = |key: &str| match item.params.get(key) {
            Some(BareItem::Token(token)) => Some(token.as_str().to_owned()),
            Some(BareItem::String(text)) => Some(text.as_str().to_owned()),
            _ => None,
        };
        Self {
            error: text("error"),
            details: text("details"),
        }
    }
}

impl Refused {
    /// What `Proxy-Status` says about it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        Reason::of(&self.fields)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn reason(lines: &[&str]) -> (Option<String>, Option<String>) {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(capsule_core::proxy_status::NAME, line.parse().unwrap());
        }
        let reason = Reason::of(&fields);
        (reason.error, reason.details)
    }

    #[test]
    fn the_first_error_counts_and_nonsense_does_not() {
        let some = |error: &str, details: Option<&str>| {
            (Some(error.to_owned()), details.map(str::to_owned))
        };
        assert_eq!(
            reason(&["relay; error=dns_error; details=\"no such name\""]),
            some("dns_error", Some("no such name"))
        );
        assert_eq!(
            reason(&["\"far\"; error=connection_refused, near"]),
            some("connection_refused", None)
        );
        assert_eq!(
            reason(&["far", "near; error=\"connection_timeout\"; details=7"]),
            some("connection_timeout", None)
        );
        assert_eq!(
            reason(&["near; details=\"well\""]),
            (None, Some("well".into()))
        );
        for nonsense in [&[][..], &[""], &["(a b)"], &["relay; error="], &["\u{e9}"]] {
            assert_eq!(reason(nonsense), (None, None), "{nonsense:?}");
        }
    }
}
