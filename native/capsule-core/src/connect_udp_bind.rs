//! The `Connect-UDP-Bind` field (draft-ietf-masque-connect-udp-listen): both ends say with it that they want the bind mode.

use crate::fields::{self, Fields};

/// Name of the field, in lower case.
pub const NAME: &str = "connect-udp-bind";

/// The value that says yes.
pub const TRUE: &str = "?1";

/// Whether the field says yes: exactly one line, a Boolean Item, true. Parameters are ignored; every other type, and a repeated line,
/// counts as absent.
//= connect-udp-bind §6 field-is-boolean
//= connect-udp-bind §6 field-parameters
#[must_use]
pub fn is_true(fields: &dyn Fields) -> bool {
    fields::is_true(fields, NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    //= connect-udp-bind §6 field-is-boolean
    //= connect-udp-bind §6 field-parameters
    #[test]
    fn only_the_boolean_true_counts() {
        let value = |line: &'static [u8]| is_true(&[("Connect-UDP-Bind", line)]);
        assert!(value(b"?1"));
        assert!(value(b"?1;later=4"));
        for other in [&b"?0"[..], b"1", b"true", b"\"?1\"", b"?1, ?1", b""] {
            assert!(!value(other), "{other:?}");
        }
        let line = (NAME, &b"?1"[..]);
        assert!(!is_true(&[line, line]));
    }
}
