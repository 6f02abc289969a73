//! Read access to the header fields of a request, whatever holds them.

use alloc::vec::Vec;

use sfv::{BareItem, Item, Parser};

/// Header fields: names compare without case, a name may occur on several lines.
pub trait Fields {
    /// Calls `each` with the value of every line named `name`, in order.
    fn get_all<'s>(&'s self, name: &str, each: &mut dyn FnMut(&'s [u8]));
}

impl Fields for [(&str, &[u8])] {
    fn get_all<'s>(&'s self, name: &str, each: &mut dyn FnMut(&'s [u8])) {
        for (field, value) in self {
            if field.eq_ignore_ascii_case(name) {
                each(value);
            }
        }
    }
}

impl Fields for &[(&str, &[u8])] {
    fn get_all<'s>(&'s self, name: &str, each: &mut dyn FnMut(&'s [u8])) {
        (**self).get_all(name, each);
    }
}

impl<const N: usize> Fields for [(&str, &[u8]); N] {
    fn get_all<'s>(&'s self, name: &str, each: &mut dyn FnMut(&'s [u8])) {
        self.as_slice().get_all(name, each);
    }
}

impl Fields for Vec<(&str, &[u8])> {
    fn get_all<'s>(&'s self, name: &str, each: &mut dyn FnMut(&'s [u8])) {
        self.as_slice().get_all(name, each);
    }
}

/// How many lines are named `name`.
pub(crate) fn count(fields: &dyn Fields, name: &str) -> usize {
    let mut lines = 0;
    fields.get_all(name, &mut |_| lines += 1);
    lines
}

/// The value of the first line named `name`.
pub(crate) fn first<'f>(fields: &'f dyn Fields, name: &str) -> Option<&'f [u8]> {
    let mut found = None;
    fields.get_all(name, &mut |value| {
        if found.is_none() {
            found = Some(value);
        }
    });
    found
}

/// The elements of a comma-separated list over all lines named `name`, without empty ones, white space trimmed.
pub(crate) fn list<'f>(fields: &'f dyn Fields, name: &str) -> Vec<&'f [u8]> {
    let mut elements = Vec::new();
    fields.get_all(name, &mut |value| {
        elements.extend(
            value
                .split(|&byte| byte == b',')
                .map(<[u8]>::trim_ascii)
                .filter(|element| !element.is_empty()),
        );
    });
    elements
}

/// Whether a field is the Boolean Item true (RFC 9651 §3.3.6): exactly one line of it. Parameters are ignored; every other type, and
/// a repeated line, counts as absent.
pub(crate) fn is_true(fields: &dyn Fields, name: &str) -> bool {
    let mut lines = Vec::new();
    fields.get_all(name, &mut |value| lines.push(value));
    let [line] = lines[..] else { return false };
    matches!(
        Parser::new(line).parse::<Item>(),
        Ok(Item {
            bare_item: BareItem::Boolean(true),
            ..
        })
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_compare_without_case_and_lines_add_up() {
        let fields: [(&str, &[u8]); 4] = [
            ("Upgrade", b"a, b"),
            ("upgrade", b" ,, c "),
            ("upgrades", b"d"),
            ("UPGRADE", b""),
        ];
        assert_eq!(count(&fields, "upgrade"), 3);
        assert_eq!(first(&fields, "upgrade"), Some(&b"a, b"[..]));
        assert_eq!(list(&fields, "upgrade"), [&b"a"[..], b"b", b"c"]);
        assert_eq!(first(&fields, "host"), None);
    }
}
