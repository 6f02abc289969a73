//! Host patterns of rules.

use std::collections::HashSet;

/// Patterns of one rule: exact names, `*.example.com` for every name below, `*` elsewhere for any characters.
/// Letter case and a final dot make no difference.
#[derive(Debug, Default)]
pub(crate) struct HostPatterns {
    exact: HashSet<Box<str>>,
    below: HashSet<Box<str>>,
    globs: Vec<Box<str>>,
}

/// The spelling in which hosts are compared: lower case, without the final dot.
pub(crate) fn normalised(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

impl HostPatterns {
    pub(crate) fn new(patterns: &[String]) -> Self {
        let mut compiled = Self::default();
        for pattern in patterns {
            // An address may be written as in a URI; the comparison knows one spelling.
            let bare = pattern
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
                .unwrap_or(pattern);
            let pattern = match bare.parse::<std::net::IpAddr>() {
                Ok(address) => address.to_canonical().to_string(),
                Err(_) => normalised(pattern),
            };
            match pattern.strip_prefix("*.") {
                Some(suffix) if !suffix.contains('*') => {
                    compiled.below.insert(suffix.into());
                }
                _ if pattern.contains('*') => compiled.globs.push(pattern.into()),
                _ => {
                    compiled.exact.insert(pattern.into());
                }
            }
        }
        compiled
    }

    /// Whether the list is empty, which stands for every host.
    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty() && self.globs.is_empty()
    }

    /// `host` is [`normalised`].
    pub(crate) fn match_host(&self, host: &str) -> bool {
        self.exact.contains(host)
            || (!self.below.is_empty() && parents(host).any(|parent| self.below.contains(parent)))
            || self
                .globs
                .iter()
                .any(|glob| glob_match(glob.as_bytes(), host.as_bytes()))
    }
}

fn parents(host: &str) -> impl Iterator<Item = &str> {
    host.match_indices('.')
        .filter(|&(dot, _)| dot > 0)
        .map(|(dot, _)| &host[dot + 1..])
}

/// `*` stands for any bytes, also none; time is at most the product of the lengths.
fn glob_match(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on if the last star has to take one byte more.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p) == text.get(t) {
            p += 1;
            t += 1;
        } else if let Some((after, taken)) = star {
            star = Some((after, taken + 1));
            p = after;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn matches(patterns: &[&str], host: &str) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|&text| text.to_owned()).collect();
        HostPatterns::new(&patterns).match_host(&normalised(host))
    }

    #[test]
    fn exact_names_ignore_case_and_the_final_dot() {
        assert!(matches(&["Example.COM"], "example.com."));
        assert!(matches(&["example.com."], "EXAMPLE.com"));
        assert!(!matches(&["example.com"], "www.example.com"));
        assert!(!matches(&["example.com"], "badexample.com"));
    }

    #[test]
    fn a_leading_star_takes_every_name_below_and_not_the_name_itself() {
        assert!(matches(&["*.example.com"], "www.example.com"));
        assert!(matches(&["*.example.com"], "a.b.Example.Com."));
        assert!(!matches(&["*.example.com"], "example.com"));
        assert!(!matches(&["*.example.com"], "wwwexample.com"));
        assert!(!matches(&["*.example.com"], "www.example.com.evil.net"));
    }

    #[test]
    fn stars_elsewhere_are_globs() {
        assert!(matches(&["*"], "anything.at.all"));
        assert!(matches(&["api-*.example.com"], "api-7.example.com"));
        assert!(!matches(&["api-*.example.com"], "app-7.example.com"));
        assert!(matches(&["*a*b"], "xaxxab"));
    }

    #[test]
    fn addresses_have_one_spelling() {
        assert!(matches(&["[2001:0DB8::1]"], "2001:db8::1"));
        assert!(matches(&["::ffff:192.0.2.1"], "192.0.2.1"));
    }

    proptest! {
        #[test]
        fn globs_agree_with_the_definition(pattern in "[ab*]{0,8}", text in "[ab]{0,8}") {
            fn naive(pattern: &[u8], text: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|n| naive(rest, &text[n..])),
                    Some((byte, rest)) => text.first() == Some(byte) && naive(rest, &text[1..]),
                }
            }
            prop_assert_eq!(glob_match(pattern.as_bytes(), text.as_bytes()), naive(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
