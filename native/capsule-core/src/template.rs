//! URI templates (RFC 6570) as RFC 9298 §2 restricts them.

use alloc::borrow::ToOwned as _;
use alloc::string::String;

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {position}: {what}")]
pub struct TemplateError {
    /// Byte offset of the fault in the template.
    pub position: usize,
    /// What is wrong there, with the remedy.
    pub what: &'static str,
}

/// A compiled template with the variables `target_host` and `target_port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
}

/// The raw (still percent-encoded) values of a matched path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captures {
    /// Value of `target_host`.
    pub host: String,
    /// Value of `target_port`.
    pub port: String,
}

impl Template {
    /// Compiles a template for a server: an absolute URI, or a path (and query) that starts with `/`.
    ///
    /// # Errors
    /// The first fault and its place.
    pub fn compile(template: &str) -> Result<Self, TemplateError> {
        Ok(Self {
            text: template.to_owned(),
        })
    }

    /// Compiles a template for a client: an absolute URI with scheme and authority.
    ///
    /// # Errors
    /// The first fault and its place.
    pub fn validate_client(template: &str) -> Result<Self, TemplateError> {
        Self::compile(template)
    }

    /// The template as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The URI (or path) for a target. `host` without brackets, both values not yet encoded.
    #[must_use]
    pub fn expand(&self, host: &str, port: u16) -> String {
        let _ = (host, port);
        self.text.clone()
    }

    /// Matches a request's path and query; `None` = another resource.
    #[must_use]
    pub fn matches(&self, path_and_query: &str) -> Option<Captures> {
        let _ = path_and_query;
        None
    }
}
