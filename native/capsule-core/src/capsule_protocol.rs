//! The `Capsule-Protocol` field (RFC 9297 §3.4).

use crate::fields::{self, Fields};

/// Name of the field, in lower case.
pub const NAME: &str = "capsule-protocol";

/// The value that says yes.
pub const TRUE: &str = "?1";

/// Whether the field says that the data stream carries capsules: exactly one line, a Boolean Item, true.
/// Parameters are ignored; every other type, and a repeated line, counts as absent.
//= rfc9297 §3.4 field-is-boolean
//= rfc9297 §3.4 field-parameters
#[must_use]
pub fn is_true(fields: &dyn Fields) -> bool {
    fields::is_true(fields, NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(line: &[u8]) -> bool {
        is_true(&[("Capsule-Protocol", line)])
    }

    //= rfc9297 §3.4 field-is-boolean
    #[test]
    fn only_the_boolean_true_counts() {
        assert!(value(b"?1"));
        assert!(value(b"  ?1 "));
        let others: [&[u8]; 10] = [
            b"?0", b"", b"1", b"true", b"\"?1\"", b":MQ==:", b"?1, ?1", b"?2", b"1.0", b"\xff",
        ];
        for other in others {
            assert!(!value(other), "{other:?}");
        }
        assert!(!is_true(&[("other", &b"?1"[..])]));
    }

    //= rfc9297 §3.4 field-is-boolean
    #[test]
    fn a_repeated_line_counts_as_absent() {
        let line = (NAME, &b"?1"[..]);
        assert!(is_true(&[line]));
        assert!(!is_true(&[line, line]));
    }

    //= rfc9297 §3.4 field-parameters
    #[test]
    fn parameters_are_ignored() {
        assert!(value(b"?1;a=1;b"));
        assert!(!value(b"?1;A"));
    }
}
