//! The answer to a request that gets no tunnel.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use crate::proxy_status::ProxyError;

/// A final answer other than 2xx and 101, complete but for the fields that every answer of the relay carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// HTTP status, 4xx or 5xx.
    pub status: u16,
    /// Error of `Proxy-Status`, if one fits.
    pub error: Option<ProxyError>,
    /// The problem type's title: the same for each answer of this kind.
    pub title: &'static str,
    /// What was wrong this time; safe to show to the client.
    pub detail: String,
    /// Further header fields, e.g. `allow`, `upgrade`; names in lower case.
    pub fields: Vec<(&'static str, String)>,
    /// HTTP/1.x: close the connection after this answer, whatever else came on it.
    pub close: bool,
}

impl Reject {
    /// An answer without error, further fields and close.
    #[must_use]
    pub fn new(status: u16, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            error: None,
            title,
            detail: detail.into(),
            fields: Vec::new(),
            close: false,
        }
    }

    /// With an error for `Proxy-Status`.
    #[must_use]
    pub fn with_error(mut self, error: ProxyError) -> Self {
        self.error = Some(error);
        self
    }

    /// With a further header field; `name` in lower case.
    #[must_use]
    pub fn with_field(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Closing an HTTP/1.x connection.
    #[must_use]
    pub fn with_close(mut self) -> Self {
        self.close = true;
        self
    }

    /// The body: a problem document (RFC 9457) for `application/problem+json`.
    #[must_use]
    pub fn problem(&self) -> String {
        let mut json = String::from("{\"type\":\"about:blank\",\"title\":");
        quote(self.title, &mut json);
        // Writing to a String cannot fail.
        let _ = write!(json, ",\"status\":{}", self.status);
        if !self.detail.is_empty() {
            json.push_str(",\"detail\":");
            quote(&self.detail, &mut json);
        }
        json.push('}');
        json
    }
}

fn quote(text: &str, json: &mut String) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            c if c < ' ' => {
                let _ = write!(json, "\\u{:04x}", u32::from(c));
            }
            c => json.push(c),
        }
    }
    json.push('"');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn problem_documents_are_json() {
        let reject = Reject::new(403, "Forbidden", "port 25 is \"denied\"\n");
        let json: serde_json::Value = serde_json::from_str(&reject.problem()).unwrap();
        assert_eq!(json["type"], "about:blank");
        assert_eq!(json["title"], "Forbidden");
        assert_eq!(json["status"], 403);
        assert_eq!(json["detail"], "port 25 is \"denied\"\n");
        assert!(
            !Reject::new(404, "Not Found", "")
                .problem()
                .contains("detail")
        );
    }

    #[test]
    fn builders_add_up() {
        let reject = Reject::new(405, "Method Not Allowed", "")
            .with_error(ProxyError::HttpRequestError)
            .with_field("allow", "GET")
            .with_close();
        assert_eq!(reject.error, Some(ProxyError::HttpRequestError));
        assert_eq!(reject.fields, [("allow", String::from("GET"))]);
        assert!(reject.close);
    }

    proptest! {
        #[test]
        fn any_detail_survives(detail in any::<String>()) {
            let problem = Reject::new(500, "x", detail.clone()).problem();
            let json: serde_json::Value = serde_json::from_str(&problem).unwrap();
            prop_assert_eq!(json["detail"].as_str().unwrap_or(""), detail);
        }
    }
}
