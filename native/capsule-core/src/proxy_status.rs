//! The `Proxy-Status` field (RFC 9209).

use alloc::string::String;

use sfv::{Integer, ItemSerializer, KeyRef, RefBareItem, StringRef, TokenRef};

/// Name of the field, in lower case.
pub const NAME: &str = "proxy-status";

macro_rules! errors {
    ($($(#[$doc:meta])* $variant:ident = $token:literal, $status:literal;)*) => {
        /// Error types of the registry (RFC 9209 §2.3, RFC 10036) with their recommended statuses.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ProxyError {
            $($(#[$doc])* $variant,)*
        }

        impl ProxyError {
            /// Every error type.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The token on the wire.
            #[must_use]
            pub const fn token(self) -> &'static str {
                match self { $(Self::$variant => $token),* }
            }

            /// The recommended status of the final answer.
            //= rfc9209 §2.1.1 error-status
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status),* }
            }
        }
    };
}

errors! {
    /// The name's resolution took too long.
    DnsTimeout = "dns_timeout", 504;
    /// The name's resolution failed; goes with `rcode`.
    DnsError = "dns_error", 502;
    /// There is no route to a next hop by configuration.
    DestinationNotFound = "destination_not_found", 500;
    /// The target is known to be down.
    DestinationUnavailable = "destination_unavailable", 503;
    /// The target's address is not allowed.
    DestinationIpProhibited = "destination_ip_prohibited", 502;
    /// The network has no route to the target's address.
    DestinationIpUnroutable = "destination_ip_unroutable", 502;
    /// The target refused the connection.
    ConnectionRefused = "connection_refused", 502;
    /// The target ended the connection too early.
    ConnectionTerminated = "connection_terminated", 502;
    /// The target did not answer in time.
    ConnectionTimeout = "connection_timeout", 504;
    /// The target sent nothing for too long.
    ConnectionReadTimeout = "connection_read_timeout", 504;
    /// The target took nothing for too long.
    ConnectionWriteTimeout = "connection_write_timeout", 504;
    /// The relay has as many connections as it may.
    ConnectionLimitReached = "connection_limit_reached", 503;
    /// TLS towards the next hop failed.
    TlsProtocolError = "tls_protocol_error", 502;
    /// The next hop's certificate was not accepted.
    TlsCertificateError = "tls_certificate_error", 502;
    /// The next hop sent a TLS alert.
    TlsAlertReceived = "tls_alert_received", 502;
    /// The request is at fault.
    HttpRequestError = "http_request_error", 400;
    /// The request is refused by policy.
    HttpRequestDenied = "http_request_denied", 403;
    /// The next hop's response ended too early.
    HttpResponseIncomplete = "http_response_incomplete", 502;
    /// The response's header section is too large.
    HttpResponseHeaderSectionSize = "http_response_header_section_size", 502;
    /// A field of the response is too large.
    HttpResponseHeaderSize = "http_response_header_size", 502;
    /// The response's body is too large.
    HttpResponseBodySize = "http_response_body_size", 502;
    /// The response's trailer section is too large.
    HttpResponseTrailerSectionSize = "http_response_trailer_section_size", 502;
    /// A trailer field of the response is too large.
    HttpResponseTrailerSize = "http_response_trailer_size", 502;
    /// The response's transfer coding failed.
    HttpResponseTransferCoding = "http_response_transfer_coding", 502;
    /// The response's content coding failed.
    HttpResponseContentCoding = "http_response_content_coding", 502;
    /// The next hop's response took too long.
    HttpResponseTimeout = "http_response_timeout", 504;
    /// The next hop did not switch protocols.
    HttpUpgradeFailed = "http_upgrade_failed", 502;
    /// The next hop broke the rules of HTTP.
    HttpProtocolError = "http_protocol_error", 502;
    /// The relay made the answer itself.
    ProxyInternalResponse = "proxy_internal_response", 500;
    /// A fault of the relay.
    ProxyInternalError = "proxy_internal_error", 500;
    /// A fault of the relay's configuration.
    ProxyConfigurationError = "proxy_configuration_error", 500;
    /// The request came back to the relay.
    ProxyLoopDetected = "proxy_loop_detected", 502;
    /// Incremental forwarding was asked for and refused.
    IncrementalRefused = "incremental_refused", 501;
}

/// One member of the list: what this relay has to say. Texts may hold anything; what a String cannot carry becomes `?`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProxyStatus<'a> {
    /// The relay's own name.
    pub name: &'a str,
    /// Why there is no tunnel.
    pub error: Option<ProxyError>,
    /// Address or name of the hop that was chosen.
    pub next_hop: Option<&'a str>,
    /// ALPN id spoken with the next hop.
    pub next_protocol: Option<&'a str>,
    /// CNAME chain, encoded as RFC 9532 §2 asks.
    pub next_hop_aliases: Option<&'a str>,
    /// DNS response code, e.g. `NXDOMAIN`; goes with [`ProxyError::DnsError`].
    pub rcode: Option<&'a str>,
    /// Extended DNS error code; goes with [`ProxyError::DnsError`].
    pub info_code: Option<u16>,
    /// Status received from the next hop.
    pub received_status: Option<u16>,
    /// Free text.
    pub details: Option<&'a str>,
}

impl ProxyStatus<'_> {
    /// The field's value.
    //= rfc9209 §2 member
    #[must_use]
    pub fn to_field(&self) -> String {
        let printable_name = printable(self.name);
        let name: RefBareItem<'_> = match TokenRef::from_str(self.name) {
            Ok(token) => token.into(),
            Err(_) => string(&printable_name).into(),
        };
        let mut member = ItemSerializer::new().bare_item(name);
        if let Some(error) = self.error
            && let Ok(token) = TokenRef::from_str(error.token())
        {
            member = member.parameter(KeyRef::constant("error"), token);
        }
        for (key, text) in [
            (KeyRef::constant("rcode"), self.rcode),
            (KeyRef::constant("next-hop"), self.next_hop),
            (KeyRef::constant("next-hop-aliases"), self.next_hop_aliases),
            (KeyRef::constant("details"), self.details),
        ] {
            if let Some(text) = text {
                member = member.parameter(key, string(&printable(text)));
            }
        }
        if let Some(protocol) = self.next_protocol {
            let key = KeyRef::constant("next-protocol");
            member = match TokenRef::from_str(protocol) {
                Ok(token) => member.parameter(key, token),
                Err(_) => member.parameter(key, protocol.as_bytes()),
            };
        }
        for (key, number) in [
            (KeyRef::constant("info-code"), self.info_code),
            (KeyRef::constant("received-status"), self.received_status),
        ] {
            if let Some(number) = number {
                member = member.parameter(key, Integer::from(number));
            }
        }
        member.finish()
    }
}

/// The text with everything that a String (RFC 9651 §3.3.3) cannot hold replaced.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if matches!(c, ' '..='~') { c } else { '?' })
        .collect()
}

fn string(printable: &str) -> &StringRef {
    StringRef::from_str(printable).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use alloc::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;
    use sfv::{BareItem, List, ListEntry, Parser};

    //= rfc9209 §2 member
    #[test]
    fn success_names_the_next_hop() {
        let status = ProxyStatus {
            name: "relay.example",
            next_hop: Some("192.0.2.1"),
            ..ProxyStatus::default()
        };
        assert_eq!(status.to_field(), "relay.example;next-hop=\"192.0.2.1\"");
    }

    //= rfc9209 §2 member
    #[test]
    fn failure_tells_everything_it_was_given() {
        let status = ProxyStatus {
            name: "relay",
            error: Some(ProxyError::DnsError),
            next_hop: Some("2001:db8::1"),
            next_protocol: Some("h2"),
            next_hop_aliases: Some("cdn.example.net"),
            rcode: Some("NXDOMAIN"),
            info_code: Some(22),
            received_status: Some(503),
            details: Some("no such \"name\""),
        };
        assert_eq!(
            status.to_field(),
            "relay;error=dns_error;rcode=\"NXDOMAIN\";next-hop=\"2001:db8::1\";\
             next-hop-aliases=\"cdn.example.net\";details=\"no such \\\"name\\\"\";\
             next-protocol=h2;info-code=22;received-status=503"
        );
    }

    #[test]
    fn odd_texts_still_make_a_field() {
        let status = ProxyStatus {
            name: "my relay\u{e9}",
            next_protocol: Some("http/1.1 \r\n"),
            details: Some("line\r\nbreak"),
            ..ProxyStatus::default()
        };
        let field = status.to_field();
        assert!(field.starts_with("\"my relay?\";details=\"line??break\""));
        assert!(field.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    }

    //= rfc9209 §2.1.1 error-status
    #[test]
    fn statuses_are_the_recommended_ones() {
        use ProxyError as E;
        for (error, token, status) in [
            (E::DnsTimeout, "dns_timeout", 504),
            (E::DnsError, "dns_error", 502),
            (E::DestinationUnavailable, "destination_unavailable", 503),
            (E::DestinationIpProhibited, "destination_ip_prohibited", 502),
            (E::DestinationIpUnroutable, "destination_ip_unroutable", 502),
            (E::ConnectionRefused, "connection_refused", 502),
            (E::ConnectionTimeout, "connection_timeout", 504),
            (E::ConnectionLimitReached, "connection_limit_reached", 503),
            (E::HttpRequestError, "http_request_error", 400),
            (E::HttpRequestDenied, "http_request_denied", 403),
            (E::ProxyInternalError, "proxy_internal_error", 500),
            (E::ProxyLoopDetected, "proxy_loop_detected", 502),
        ] {
            assert_eq!((error.token(), error.status()), (token, status));
        }
        let tokens: BTreeSet<_> = E::ALL.iter().map(|error| error.token()).collect();
        assert_eq!(tokens.len(), E::ALL.len());
        assert!(E::ALL.iter().all(|e| (400..600).contains(&e.status())));
    }

    proptest! {
        #[test]
        fn every_field_parses_as_a_list_of_one(
            name in any::<String>(),
            details in prop::option::of(any::<String>()),
            hop in prop::option::of(any::<String>()),
            protocol in prop::option::of(any::<String>()),
            error in prop::option::of(prop::sample::select(ProxyError::ALL)),
        ) {
            let field = ProxyStatus {
                name: &name,
                error,
                next_hop: hop.as_deref(),
                next_protocol: protocol.as_deref(),
                details: details.as_deref(),
                ..ProxyStatus::default()
            }
            .to_field();
            let list: List = Parser::new(&field).parse().unwrap();
            prop_assert_eq!(list.len(), 1);
            let ListEntry::Item(item) = &list[0] else { panic!("an inner list") };
            prop_assert!(matches!(item.bare_item, BareItem::Token(_) | BareItem::String(_)));
            prop_assert_eq!(item.params.contains_key("error"), error.is_some());
            prop_assert_eq!(item.params.contains_key("details"), details.is_some());
        }
    }
}
