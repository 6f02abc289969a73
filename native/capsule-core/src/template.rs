//! URI templates of tunnel resources: RFC 6570 as RFC 9298 §2 restricts it, with matching for servers.

mod matcher;

use alloc::borrow::ToOwned as _;
use alloc::string::{String, ToString as _};

use crate::target::{Target, TargetError};
use crate::uri_template::{Operator, Part, UriTemplate, percent_decode};
use matcher::Matcher;

/// The variable for the target's host.
pub const HOST: &str = "target_host";
/// The variable for the target's port.
pub const PORT: &str = "target_port";

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {position}: {what}")]
pub struct TemplateError {
    /// Byte offset of the fault in the template.
    pub position: usize,
    /// What is wrong there, with the remedy.
    pub what: &'static str,
}

const fn fault<T>(position: usize, what: &'static str) -> Result<T, TemplateError> {
    Err(TemplateError { position, what })
}

/// A compiled template with the variables `target_host` and `target_port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    uri: UriTemplate,
    origin: Option<Origin>,
    matcher: Option<Matcher>,
}

/// Where scheme and authority of an absolute template end, in bytes; the authority starts after `://`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Origin {
    scheme: usize,
    authority: usize,
}

/// The raw (still percent-encoded) values of a matched path. What was absent is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captures {
    /// Value of `target_host`.
    pub host: String,
    /// Value of `target_port`.
    pub port: String,
}

impl Captures {
    /// Whether both values are the star that stands for no target in particular, percent-encoded as it must be.
    //= connect-udp-bind §2 star-encoded
    #[must_use]
    pub fn is_any(&self) -> bool {
        let star = |value: &str| value.eq_ignore_ascii_case("%2A");
        star(&self.host) && star(&self.port)
    }

    /// Decodes and validates the values.
    ///
    /// # Errors
    /// Each way the values can be wrong; see [`TargetError`].
    //= rfc9298 §3 percent-encoding
    pub fn target(&self) -> Result<Target, TargetError> {
        let host = percent_decode(&self.host).ok_or(TargetError::BadEncoding)?;
        let port = percent_decode(&self.port).ok_or(TargetError::BadEncoding)?;
        Target::from_values(&host, &port)
    }
}

impl Template {
    /// Compiles a template for a server: an absolute URI, or a path (and query) that starts with `/`. Scheme and
    /// authority are not compared with requests.
    ///
    /// # Errors
    /// The first fault and its place: whatever RFC 9298 §2 forbids, and what makes matching ambiguous.
    //= connect-tcp §3 template-rules
    pub fn compile(template: &str) -> Result<Self, TemplateError> {
        let mut compiled = Self::parse(template)?;
        compiled.matcher = Some(Matcher::compile(&compiled.uri, compiled.path_start())?);
        Ok(compiled)
    }

    /// Compiles a template for a client: an absolute URI with scheme and authority. [`Template::matches`] finds nothing.
    ///
    /// # Errors
    /// The first fault and its place.
    //= rfc9298 §2 template-absolute
    //= rfc9298 §2 template-reject
    pub fn validate_client(template: &str) -> Result<Self, TemplateError> {
        let compiled = Self::parse(template)?;
        if compiled.origin.is_none() {
            return fault(0, "a client's template is an absolute URI: https://…");
        }
        Ok(compiled)
    }

    fn parse(template: &str) -> Result<Self, TemplateError> {
        //= rfc9298 §2 template-characters
        if let Some(position) = template
            .bytes()
            .position(|byte| !matches!(byte, 0x21..=0x7e))
        {
            return fault(
                position,
                "templates consist of the ASCII characters 0x21 to 0x7E: percent-encode others",
            );
        }
        let uri = UriTemplate::parse(template)?;
        let origin = origin(template)?;
        let compiled = Self {
            text: template.to_owned(),
            uri,
            origin,
            matcher: None,
        };
        check_parts(&compiled.uri, compiled.path_start())?;
        Ok(compiled)
    }

    fn path_start(&self) -> usize {
        self.origin.map_or(0, |origin| origin.authority)
    }

    /// The template as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Scheme of an absolute template, as written.
    #[must_use]
    pub fn scheme(&self) -> Option<&str> {
        Some(&self.text[..self.origin?.scheme])
    }

    /// Authority of an absolute template.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        let Origin { scheme, authority } = self.origin?;
        Some(&self.text[scheme + 3..authority])
    }

    /// The URI (or path) for a target. `host` without brackets, not yet encoded.
    //= connect-tcp §3 expand-into-uri
    //= rfc9298 §3 percent-encoding
    #[must_use]
    pub fn expand(&self, host: &str, port: u16) -> String {
        let port = port.to_string();
        self.uri.expand(&|name| match name {
            HOST => Some(host),
            PORT => Some(port.as_str()),
            _ => None,
        })
    }

    /// Path and query for a target: `:path`, or the request target of HTTP/1.1.
    #[must_use]
    pub fn expand_path(&self, host: &str, port: u16) -> String {
        self.expand(host, port).split_off(self.path_start())
    }

    /// Matches a request's path and query; `None` = another resource. Values are split off before anything is decoded;
    /// a path that matches with bad values is a match.
    //= connect-tcp §3.1 h1-target
    //= connect-tcp §3.2 path-and-scheme
    #[must_use]
    pub fn matches(&self, path_and_query: &str) -> Option<Captures> {
        self.matcher.as_ref()?.matches(path_and_query)
    }
}

/// Finds scheme and authority; a template that starts with `/` has none.
fn origin(template: &str) -> Result<Option<Origin>, TemplateError> {
    if template.starts_with('/') {
        if template.starts_with("//") {
            return fault(0, "a path starts with one /, an absolute URI with a scheme");
        }
        return Ok(None);
    }
    let form = "a template is a path that starts with /, or an absolute URI (https://…)";
    let Some(scheme) = template.find("://") else {
        return fault(0, form);
    };
    let scheme_text = &template.as_bytes()[..scheme];
    let sound = scheme_text.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme_text
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
    if !sound {
        return fault(0, form);
    }
    let start = scheme + 3;
    let length = template[start..]
        .find(['/', '?', '#', '{'])
        .unwrap_or(template.len() - start);
    let end = start + length;
    if length == 0 {
        return fault(start, "the authority is empty: a host is missing");
    }
    //= rfc9298 §2 template-variable-place
    //= rfc9298 §2 template-path
    match template.as_bytes().get(end) {
        Some(b'/') => Ok(Some(Origin {
            scheme,
            authority: end,
        })),
        Some(b'{') => fault(end, "variables may stand only in path and query"),
        _ => fault(end, "the path is empty: a / is missing"),
    }
}

/// Operators, places and the presence of both variables.
fn check_parts(uri: &UriTemplate, path_start: usize) -> Result<(), TemplateError> {
    let mut in_query = false;
    let (mut host, mut port) = (false, false);
    for part in uri.parts() {
        match part {
            Part::Literal { position, text } => {
                if let Some(at) = text.find('#') {
                    return fault(position + at, "a template has no fragment: remove the #");
                }
                let skip = path_start.saturating_sub(*position).min(text.len());
                in_query |= text[skip..].contains('?');
            }
            Part::Expression {
                position,
                operator,
                names,
            } => {
                //= rfc9298 §2 template-operators
                match (operator, in_query) {
                    (Operator::Simple, _)
                    | (Operator::Query, false)
                    | (Operator::QueryContinuation, true) => {}
                    (Operator::Query, true) => {
                        return fault(*position, "the query has begun: use {&…}");
                    }
                    (Operator::QueryContinuation, false) => {
                        return fault(*position, "the query has not begun: use {?…}");
                    }
                    _ => {
                        return fault(
                            *position,
                            "the operators + # . / ; cannot be used: use {…}, {?…} or {&…}",
                        );
                    }
                }
                in_query |= *operator == Operator::Query;
                for name in names {
                    let seen = match name.as_str() {
                        HOST => &mut host,
                        PORT => &mut port,
                        _ => continue,
                    };
                    if core::mem::replace(seen, true) {
                        return fault(*position, "a variable stands there a second time");
                    }
                }
            }
        }
    }
    //= rfc9298 §2 template-variables
    if !host {
        return fault(0, "the variable {target_host} is missing");
    }
    if !port {
        return fault(0, "the variable {target_port} is missing");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
