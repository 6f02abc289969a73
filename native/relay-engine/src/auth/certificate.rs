//! The principal in a TLS client certificate.

use std::net::IpAddr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

/// Who a verified client certificate speaks for: its first subject alternative name that is a DNS name, an e-mail
/// address, a URI or an IP address; without any, the subject's common name.
///
/// `None` if the certificate names nobody in a way that can be written in a log: empty, or with control characters.
#[must_use]
pub fn principal_of_certificate(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    // An unreadable extension is not passed over for a common name that it was meant to replace.
    let alternative = certificate.subject_alternative_name().ok()?;
    let named = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .find_map(readable);
    if named.is_some() {
        return named;
    }
    let common_name = certificate.subject().iter_common_name().next()?;
    sound(common_name.as_str().ok()?)
}

fn readable(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => {
            sound(text)
        }
        GeneralName::IPAddress(octets) => {
            let v4 = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

fn sound(text: &str) -> Option<String> {
    let sound = !text.trim().is_empty() && !text.chars().any(char::is_control);
    sound.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn principal(names: Vec<SanType>, common_name: Option<&str>) -> Option<String> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        principal_of_certificate(certificate.der())
    }

    #[test]
    fn the_first_alternative_name_is_the_principal() {
        let dns = || SanType::DnsName("client.example".try_into().unwrap());
        let mail = || SanType::Rfc822Name("alice@example.com".try_into().unwrap());
        assert_eq!(
            principal(vec![dns(), mail()], Some("cn")).as_deref(),
            Some("client.example")
        );
        assert_eq!(
            principal(vec![mail(), dns()], None).as_deref(),
            Some("alice@example.com")
        );
        let uri = SanType::URI("spiffe://example.com/relay".try_into().unwrap());
        assert_eq!(
            principal(vec![uri], None).as_deref(),
            Some("spiffe://example.com/relay")
        );
        let ip = SanType::IpAddress("2001:db8::7".parse().unwrap());
        assert_eq!(principal(vec![ip], None).as_deref(), Some("2001:db8::7"));
    }

    #[test]
    fn the_common_name_comes_last() {
        assert_eq!(principal(vec![], Some("alice")).as_deref(), Some("alice"));
        assert_eq!(principal(vec![], None), None);
        assert_eq!(principal(vec![], Some("")), None);
        assert_eq!(principal(vec![], Some("a\nb")), None);
    }

    #[test]
    fn what_is_no_certificate_names_nobody() {
        for der in [&b""[..], b"\x30", b"\x30\x03\x02\x01\x01", &[0xff; 64]] {
            assert_eq!(principal_of_certificate(der), None);
        }
    }
}
