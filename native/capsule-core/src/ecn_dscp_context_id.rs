//! The `ECN-DSCP-Context-ID` field (draft-ietf-masque-connect-udp-ecn-dscp §3.1.1): an end speaks the extension, and which contexts it
//! assigns to which marks from the beginning.

use alloc::string::String;
use alloc::vec::Vec;

use sfv::{BareItem, Integer, List, ListEntry, ListSerializer, Parser};

use crate::ecn_dscp::{Assignment, ECN_VALUES, MAX_ASSIGNMENTS, MAX_DSCP};
use crate::fields::{self, Fields};
use crate::protocols::udp_bind::Role;
use crate::protocols::udp_marked::Registered;

/// Name of the field, in lower case.
pub const NAME: &str = "ecn-dscp-context-id";

/// The field's value. Contexts that a structured field cannot hold (above 999,999,999,999,999) have no place in it: their assignment is
/// left out.
//= connect-udp-ecn-dscp §3.1.1 field-format
#[must_use]
pub fn to_field(assignments: &[Assignment]) -> String {
    let mut list = ListSerializer::new();
    for assignment in assignments {
        let ids = assignment.contexts.map(Integer::try_from);
        let [Ok(a), Ok(b), Ok(c), Ok(d)] = ids else {
            continue;
        };
        let mut inner = list.inner_list();
        let _ = inner.bare_item(Integer::from(assignment.dscp));
        for id in [a, b, c, d] {
            let _ = inner.bare_item(id);
        }
        let _ = inner.finish();
    }
    // An empty list has no form of its own; a field without a value is one to who parses it.
    list.finish().unwrap_or_default()
}

/// What `role`, whose field it is, assigns with it; empty: it only speaks the extension. `None`: the field is absent, or breaks a rule,
/// which is the same. Parameters are ignored.
//= connect-udp-ecn-dscp §3.1.1 field-format
//= connect-udp-ecn-dscp §3.1.1 field-malformed
#[must_use]
pub fn from_fields(fields: &dyn Fields, role: Role) -> Option<Vec<Assignment>> {
    if fields::count(fields, NAME) == 0 {
        return None;
    }
    let mut whole = Vec::new();
    fields.get_all(NAME, &mut |line| {
        if !whole.is_empty() && !line.trim_ascii().is_empty() {
            whole.extend_from_slice(b", ");
        }
        whole.extend_from_slice(line.trim_ascii());
    });
    let list = Parser::new(&whole).parse::<List>().ok()?;
    //= connect-udp-ecn-dscp §3.1.2 bound-assignments
    if list.len() > MAX_ASSIGNMENTS {
        return None;
    }
    let mut known = Registered::new(role);
    let mut assignments = Vec::with_capacity(list.len());
    for entry in &list {
        let assignment = assignment(entry)?;
        known.register(&assignment).ok()?;
        assignments.push(assignment);
    }
    Some(assignments)
}

fn assignment(entry: &ListEntry) -> Option<Assignment> {
    let ListEntry::InnerList(inner) = entry else {
        return None;
    };
    let number = |item: &sfv::Item| match item.bare_item {
        BareItem::Integer(number) => u64::try_from(i64::from(number)).ok(),
        _ => None,
    };
    let numbers: Vec<u64> = inner.items.iter().map(number).collect::<Option<_>>()?;
    let (&dscp, contexts) = numbers.split_first()?;
    let dscp = u8::try_from(dscp).ok().filter(|dscp| *dscp <= MAX_DSCP)?;
    let contexts = <[u64; ECN_VALUES]>::try_from(contexts).ok()?;
    Some(Assignment { dscp, contexts })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use alloc::format;
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn read(value: &str) -> Option<Vec<Assignment>> {
        from_fields(&[(NAME, value.as_bytes())], Role::Client)
    }

    fn example() -> Vec<Assignment> {
        let set = |dscp, contexts| Assignment { dscp, contexts };
        vec![set(46, [8, 10, 12, 14]), set(0, [0, 2, 4, 6])]
    }

    //= connect-udp-ecn-dscp §3.1.1 field-format
    #[test]
    fn the_example_of_the_draft() {
        let text = "(46 8 10 12 14), (0 0 2 4 6)";
        assert_eq!(read(text), Some(example()));
        assert_eq!(to_field(&example()), text);
        let lines: [(&str, &[u8]); 3] = [
            ("ECN-DSCP-Context-ID", b" (46 8 10 12;a 14);b=2 "),
            (NAME, b""),
            (NAME, b"(0 0 2 4 6)"),
        ];
        assert_eq!(from_fields(&lines, Role::Client), Some(example()));
        // Nothing assigned is not the same as nothing said.
        assert_eq!(read(""), Some(vec![]));
        assert_eq!(from_fields(&[("other", &b""[..])], Role::Client), None);
    }

    //= connect-udp-ecn-dscp §3.1.1 field-malformed
    //= connect-udp-ecn-dscp §3.1.1 none-twice
    #[test]
    fn what_breaks_a_rule_is_as_if_it_were_absent() {
        for bad in [
            "(46,8,10,12,14)",
            "46",
            "?1",
            "(0 0 2 4)",
            "(0 0 2 4 6 8)",
            "()",
            "(64 2 4 6 8)",
            "(-1 2 4 6 8)",
            "(0 0 2 4 -6)",
            "(0 0 2 4 6.0)",
            "(0 0 2 4 \"6\")",
            "(0 0 2 4 1000000000000000)",
            // Somebody else's, one that means two things, and one that means something already.
            "(0 0 1 3 5)",
            "(0 2 2 4 6)",
            "(0 2 0 4 6)",
            "(46 0 2 4 6)",
            "(0 0 2 4 6), (46 6 8 10 12)",
            "(0 0 2 4 6), (0 8 10 12 14)",
            "(0 0 2 4 6),",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    //= connect-udp-ecn-dscp §3.1.2 bound-assignments
    #[test]
    fn one_set_for_each_dscp_and_no_more() {
        let set = |dscp: u64| {
            let first = 8 * dscp + 2;
            format!("({dscp} {first} {} {} {})", first + 2, first + 4, first + 6)
        };
        let all: Vec<String> = (0..64).map(set).collect();
        assert_eq!(read(&all.join(",")).map(|sets| sets.len()), Some(64));
        assert_eq!(read(&[&all.join(","), ",", &set(64)].concat()), None);
    }

    proptest! {
        #[test]
        fn any_bytes(line: Vec<u8>, text in "[ (),;0-9-]{0,40}") {
            let _ = from_fields(&[(NAME, &line[..])], Role::Client);
            if let Some(read) = read(&text) {
                prop_assert_eq!(super::from_fields(&[(NAME, to_field(&read).as_bytes())], Role::Client), Some(read));
            }
        }
    }
}
