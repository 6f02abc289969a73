//! The `Capsule-Protocol` field (RFC 9297 §3.4).

use alloc::vec::Vec;

use sfv::{BareItem, Item, Parser};

use crate::fields::Fields;

/// Name of the field, in lower case.
pub const NAME: &str = "capsule-protocol";

/// The value that says yes.
pub const TRUE: &str = "?1";

/// Whether the field says that the data stream carries capsules: exactly one line, a Boolean Item, true.
/// Parameters are ignored; every other type, and a repeated line, counts as absent.
//= rfc9297 §3.4 field-is-boolean
#[must_use]
pub fn is_true(fields: &dyn Fields) -> bool {
    let mut lines = Vec::new();
    fields.get_all(NAME, &mut |value| lines.push(value));
    let [line] = lines[..] else { return false };
    matches!(
        Parser::new(line).parse::<Item>(),
        Ok(Item {
            bare_item: BareItem::Boolean(true),
            ..
        })
    )
}
