//! Credentials as requests carry them: `Authorization` and `Proxy-Authorization`, `Basic` (RFC 7617) and `Bearer`
//! (RFC 6750).

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use capsule_core::fields::Fields;

/// Longer values are no credentials of ours.
const MAX_LENGTH: usize = 4096;

/// The longest `name:password` (RFC 7617 §2: user-pass), in bytes, whose Basic credentials are looked at.
pub const MAX_USER_PASS: usize = (MAX_LENGTH - "Basic ".len()) / 4 * 3;

/// Credentials looked at in one request.
const MAX_PRESENTED: usize = 4;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One set of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Presented {
    /// User name and password as they came: octets, of no particular charset.
    Basic { user: Vec<u8>, password: Vec<u8> },
    /// A token.
    Bearer(Vec<u8>),
}

/// All credentials of a request, `Proxy-Authorization` first. What cannot be read counts as absent, like the
/// credentials of schemes that are not served.
pub(crate) fn presented(fields: &dyn Fields) -> Vec<Presented> {
    let mut found = Vec::new();
    for name in ["proxy-authorization", "authorization"] {
        fields.get_all(name, &mut |value| {
            if found.len() < MAX_PRESENTED
                && let Some(credentials) = parse(value)
                && !found.contains(&credentials)
            {
                found.push(credentials);
            }
        });
    }
    found
}

fn parse(value: &[u8]) -> Option<Presented> {
    let value = value.trim_ascii();
    if value.len() > MAX_LENGTH {
        return None;
    }
    let space = value.iter().position(|&byte| byte == b' ')?;
    let (scheme, rest) = value.split_at(space);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"basic") {
        let mut user = BASE64.decode(rest).ok()?;
        let colon = user.iter().position(|&byte| byte == b':')?;
        let password = user.split_off(colon + 1);
        user.pop();
        Some(Presented::Basic { user, password })
    } else if scheme.eq_ignore_ascii_case(b"bearer") {
        let sound = !rest.is_empty() && rest.iter().all(|&byte| byte.is_ascii_graphic());
        sound.then(|| Presented::Bearer(rest.to_vec()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn basic(user: &str, password: &str) -> Presented {
        Presented::Basic {
            user: user.into(),
            password: password.into(),
        }
    }

    #[test]
    fn schemes_ignore_case() {
        assert_eq!(
            parse(b"bAsIc YWxpY2U6cGFzcw=="),
            Some(basic("alice", "pass"))
        );
        assert_eq!(
            parse(b"BEARER abc.def"),
            Some(Presented::Bearer(b"abc.def".to_vec()))
        );
    }

    #[test]
    fn padding_and_white_space_are_no_matter() {
        assert_eq!(
            parse(b"  Basic   YWxpY2U6cGFzcw \t"),
            Some(basic("alice", "pass"))
        );
    }

    #[test]
    fn the_first_colon_ends_the_name() {
        assert_eq!(parse(b"Basic YTpiOmM="), Some(basic("a", "b:c")));
        assert_eq!(parse(b"Basic Og=="), Some(basic("", "")));
    }

    #[test]
    fn what_cannot_be_read_is_absent() {
        let long = [b"Bearer ".to_vec(), vec![b'a'; MAX_LENGTH]].concat();
        for value in [
            &b""[..],
            b"Basic",
            b"Basic ",
            b"Basic !!!!",
            b"Basic YWxpY2U=",
            b"Bearer ",
            b"Bearer a b",
            b"Bearer \xff\xfe",
            b"Digest username=\"a\"",
            b"BasicYWxpY2U6cGFzcw==",
            &long,
        ] {
            assert_eq!(parse(value), None, "{value:?}");
        }
    }

    #[test]
    fn the_longest_name_and_password() {
        let value = |length| {
            let user_pass = format!("alice:{}", "x".repeat(length - "alice:".len()));
            format!("Basic {}", BASE64.encode(user_pass))
        };
        assert!(parse(value(MAX_USER_PASS).as_bytes()).is_some());
        assert_eq!(parse(value(MAX_USER_PASS + 1).as_bytes()), None);
    }

    #[test]
    fn several_lines_are_read_and_repeats_left_out() {
        let fields: [(&str, &[u8]); 5] = [
            ("Authorization", b"Bearer one"),
            ("proxy-authorization", b"Basic YWxpY2U6cGFzcw=="),
            ("Proxy-Authorization", b"Negotiate xyz"),
            ("authorization", b"bearer one"),
            ("authorization", b"bearer two"),
        ];
        let expected = [
            basic("alice", "pass"),
            Presented::Bearer(b"one".to_vec()),
            Presented::Bearer(b"two".to_vec()),
        ];
        assert_eq!(presented(&fields), expected);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(value in prop::collection::vec(any::<u8>(), 0..64), scheme in 0..3usize) {
            let value = [[&b"Basic "[..], b"Bearer ", b""][scheme], &value].concat();
            let _ = parse(&value);
        }

        #[test]
        fn basic_round_trips(user in "[^:]{0,12}", password in ".{0,12}") {
            let value = format!("Basic {}", BASE64.encode(format!("{user}:{password}")));
            prop_assert_eq!(parse(value.as_bytes()), Some(basic(&user, &password)));
        }
    }
}
