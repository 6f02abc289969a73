//! URI templates of levels 1 to 3 (RFC 6570): parsing and expansion with string values.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec::Vec;

use crate::template::TemplateError;

/// How an expression joins and encodes its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `{a,b}`
    Simple,
    /// `{+a,b}`
    Reserved,
    /// `{#a,b}`
    Fragment,
    /// `{.a,b}`
    Label,
    /// `{/a,b}`
    PathSegment,
    /// `{;a,b}`
    PathParameter,
    /// `{?a,b}`
    Query,
    /// `{&a,b}`
    QueryContinuation,
}

/// The row of RFC 6570 appendix A's table.
struct Behaviour {
    first: &'static str,
    separator: char,
    named: bool,
    equals_if_empty: bool,
    keep_reserved: bool,
}

impl Operator {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            b'+' => Self::Reserved,
            b'#' => Self::Fragment,
            b'.' => Self::Label,
            b'/' => Self::PathSegment,
            b';' => Self::PathParameter,
            b'?' => Self::Query,
            b'&' => Self::QueryContinuation,
            _ => return None,
        })
    }

    const fn behaviour(self) -> Behaviour {
        let (first, separator) = match self {
            Self::Simple | Self::Reserved => ("", ','),
            Self::Fragment => ("#", ','),
            Self::Label => (".", '.'),
            Self::PathSegment => ("/", '/'),
            Self::PathParameter => (";", ';'),
            Self::Query => ("?", '&'),
            Self::QueryContinuation => ("&", '&'),
        };
        Behaviour {
            first,
            separator,
            named: matches!(
                self,
                Self::PathParameter | Self::Query | Self::QueryContinuation
            ),
            equals_if_empty: matches!(self, Self::Query | Self::QueryContinuation),
            keep_reserved: matches!(self, Self::Reserved | Self::Fragment),
        }
    }
}

/// A piece of a template; `position` is its byte offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text, already encoded for a URI.
    Literal {
        /// Byte offset in the template.
        position: usize,
        /// The text.
        text: String,
    },
    /// `{…}`
    Expression {
        /// Byte offset in the template.
        position: usize,
        /// How values are joined.
        operator: Operator,
        /// Names of the variables, at least one.
        names: Vec<String>,
    },
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UriTemplate {
    parts: Vec<Part>,
}

impl UriTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// Whatever breaks the grammar of RFC 6570 §2, and the modifiers of level 4.
    //= rfc9298 §2 template-level
    pub fn parse(template: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut position = 0;
        let mut rest = template;
        while !rest.is_empty() {
            let (part, used) = if let Some(inside) = rest.strip_prefix('{') {
                let end = inside.find('}').ok_or(TemplateError {
                    position,
                    what: "the expression is not closed: a } is missing",
                })?;
                (expression(&inside[..end], position)?, end + 2)
            } else {
                let end = rest.find('{').unwrap_or(rest.len());
                let text = literal(&rest[..end], position)?;
                (Part::Literal { position, text }, end)
            };
            parts.push(part);
            position += used;
            rest = &rest[used..];
        }
        Ok(Self { parts })
    }

    /// The pieces in order.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The URI reference with values put in; `None` = the variable is undefined.
    #[must_use]
    pub fn expand<'v>(&self, value: &dyn Fn(&str) -> Option<&'v str>) -> String {
        let mut uri = String::new();
        for part in &self.parts {
            match part {
                Part::Literal { text, .. } => uri.push_str(text),
                Part::Expression {
                    operator, names, ..
                } => expand_expression(*operator, names, value, &mut uri),
            }
        }
        uri
    }
}

fn expand_expression<'v>(
    operator: Operator,
    names: &[String],
    value: &dyn Fn(&str) -> Option<&'v str>,
    uri: &mut String,
) {
    let behaviour = operator.behaviour();
    let mut first = true;
    for name in names {
        let Some(value) = value(name) else { continue };
        if first {
            uri.push_str(behaviour.first);
            first = false;
        } else {
            uri.push(behaviour.separator);
        }
        if behaviour.named {
            uri.push_str(name);
            if !value.is_empty() || behaviour.equals_if_empty {
                uri.push('=');
            }
        }
        encode(value, behaviour.keep_reserved, uri);
    }
}

fn expression(inside: &str, position: usize) -> Result<Part, TemplateError> {
    let (operator, list) = match inside.bytes().next().and_then(Operator::of) {
        Some(operator) => (operator, &inside[1..]),
        None => (Operator::Simple, inside),
    };
    let mut at = position + 1 + (inside.len() - list.len());
    let mut names = Vec::new();
    for name in list.split(',') {
        check_name(name, at)?;
        names.push(name.to_owned());
        at += name.len() + 1;
    }
    Ok(Part::Expression {
        position,
        operator,
        names,
    })
}

fn check_name(name: &str, position: usize) -> Result<(), TemplateError> {
    let fault = |offset, what| {
        Err(TemplateError {
            position: position + offset,
            what,
        })
    };
    if name.is_empty() {
        return fault(0, "a variable name is missing");
    }
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => at += 1,
            b'.' if at > 0 && at + 1 < bytes.len() && bytes[at - 1] != b'.' => at += 1,
            b'%' if is_triplet(&bytes[at..]) => at += 3,
            b':' | b'*' => {
                return fault(
                    at,
                    "modifiers of level 4 (:length and *) cannot be used: remove it",
                );
            }
            _ => {
                return fault(
                    at,
                    "variable names consist of letters, digits, _ and single dots",
                );
            }
        }
    }
    Ok(())
}

fn literal(text: &str, position: usize) -> Result<String, TemplateError> {
    let mut encoded = String::with_capacity(text.len());
    for (offset, c) in text.char_indices() {
        let sound = match c {
            '%' => is_triplet(&text.as_bytes()[offset..]),
            '\0'..=' ' | '\u{7f}' | '"' | '<' | '>' | '\\' | '^' | '`' | '|' | '}' => false,
            _ => true,
        };
        if !sound {
            return Err(TemplateError {
                position: position + offset,
                what: match c {
                    '}' => "there is a } without a {",
                    '%' => "a % must be followed by two hexadecimal digits",
                    _ => "this character cannot stand in a URI: percent-encode it",
                },
            });
        }
        if c.is_ascii() {
            encoded.push(c);
        } else {
            percent_encode(c, &mut encoded);
        }
    }
    Ok(encoded)
}

/// Whether the bytes begin with a percent-encoded triplet.
fn is_triplet(bytes: &[u8]) -> bool {
    matches!(bytes, [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

/// Whether RFC 3986 §2.3 calls the byte unreserved: a value stays itself in an expansion.
pub(crate) const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

const fn is_reserved(c: char) -> bool {
    matches!(
        c,
        ':' | '/'
            | '?'
            | '#'
            | '['
            | ']'
            | '@'
            | '!'
            | '$'
            | '&'
            | '\''
            | '('
            | ')'
            | '*'
            | '+'
            | ','
            | ';'
            | '='
    )
}

fn encode(value: &str, keep_reserved: bool, uri: &mut String) {
    for (offset, c) in value.char_indices() {
        let kept = (c.is_ascii() && is_unreserved(c as u8))
            || (keep_reserved
                && (is_reserved(c) || (c == '%' && is_triplet(&value.as_bytes()[offset..]))));
        if kept {
            uri.push(c);
        } else {
            percent_encode(c, uri);
        }
    }
}

fn percent_encode(c: char, uri: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
        uri.push('%');
        uri.push(char::from(HEX[usize::from(byte >> 4)]));
        uri.push(char::from(HEX[usize::from(byte & 15)]));
    }
}

/// Undoes percent-encoding. `None` = a broken triplet, or not UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            let digit = |index: usize| char::from(*bytes.get(index)?).to_digit(16);
            let value = digit(at + 1)? * 16 + digit(at + 2)?;
            decoded.push(u8::try_from(value).ok()?);
            at += 3;
        } else {
            decoded.push(byte);
            at += 1;
        }
    }
    String::from_utf8(decoded).ok()
}
