//! The `Proxy-Public-Address` field (draft-ietf-masque-connect-udp-listen): where a bound tunnel is reached from outside.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::SocketAddr;

use sfv::{BareItem, List, ListEntry, ListSerializer, Parser, StringRef};

use crate::fields::Fields;

/// Name of the field, in lower case.
pub const NAME: &str = "proxy-public-address";

/// The field's value: a list of strings `address:port`, IPv6 addresses in brackets. Empty for no address, which no answer may have.
//= connect-udp-bind §7 public-address
#[must_use]
pub fn to_field(addresses: &[SocketAddr]) -> String {
    let mut list = ListSerializer::new();
    for address in addresses {
        // Addresses are ASCII, so that nothing is ever left out.
        if let Ok(text) = StringRef::from_str(&address.to_string()) {
            let _ = list.bare_item(text);
        }
    }
    list.finish().unwrap_or_default()
}

/// Reads the field; `None` if it is absent, malformed, or holds anything but addresses with ports.
#[must_use]
pub fn from_fields(fields: &dyn Fields) -> Option<Vec<SocketAddr>> {
    let mut whole = Vec::new();
    fields.get_all(NAME, &mut |line| {
        if !whole.is_empty() {
            whole.extend_from_slice(b", ");
        }
        whole.extend_from_slice(line);
    });
    let list = Parser::new(&whole).parse::<List>().ok()?;
    let address = |entry: &ListEntry| match entry {
        ListEntry::Item(item) => match &item.bare_item {
            BareItem::String(text) => text.as_str().parse().ok(),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    };
    let addresses: Vec<SocketAddr> = list.iter().map(address).collect::<Option<_>>()?;
    (!addresses.is_empty()).then_some(addresses)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use alloc::vec;

    use super::*;

    //= connect-udp-bind §7 public-address
    #[test]
    fn addresses_there_and_back() {
        let addresses = vec![
            "192.0.2.45:54321".parse().unwrap(),
            "[2001:db8::1234]:54321".parse().unwrap(),
        ];
        let text = to_field(&addresses);
        assert_eq!(text, "\"192.0.2.45:54321\", \"[2001:db8::1234]:54321\"");
        assert_eq!(
            from_fields(&[(NAME, text.as_bytes())]),
            Some(addresses.clone())
        );
        let lines: [(&str, &[u8]); 2] = [
            (NAME, b"\"192.0.2.45:54321\""),
            (NAME, b"\"[2001:db8::1234]:54321\";a=1"),
        ];
        assert_eq!(from_fields(&lines), Some(addresses));
    }

    #[test]
    fn what_is_no_list_of_addresses_is_nothing() {
        for bad in [
            &b""[..],
            b"192.0.2.45:54321",
            b"\"192.0.2.45\"",
            b"\"2001:db8::1:5\"",
            b"\"example.com:5\"",
            b"(\"192.0.2.45:54321\")",
            b"\"192.0.2.45:54321\", 7",
            b"\"192.0.2.45:54321",
        ] {
            assert_eq!(from_fields(&[(NAME, bad)]), None, "{bad:?}");
        }
        assert_eq!(from_fields(&[("other", &b"\"192.0.2.45:1\""[..])]), None);
    }
}
