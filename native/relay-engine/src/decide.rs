//! The border to the control plane: one question per tunnel, one answer, never more.

use std::net::SocketAddr;

use tokio::sync::oneshot;

/// What the control plane is asked about a tunnel before anything is dialled.
#[derive(Debug)]
pub struct Question {
    /// Protocol name, e.g. `connect-tcp`.
    pub protocol: &'static str,
    /// HTTP version: `h1`, `h2` or `h3`.
    pub http: &'static str,
    /// Target host as the client wrote it (decoded): a name or an address without brackets.
    pub host: String,
    /// Target port.
    pub port: u16,
    /// Who asks, if known.
    pub principal: Option<String>,
    /// Where the client connects from.
    pub client: SocketAddr,
    /// The request's header fields, in order, names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// The control plane's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on to the rules.
    Allow,
    /// No decision could be had: refuse with 503 this time, and ask again the next.
    Failed {
        /// Shown to the client in the problem document.
        reason: String,
    },
    /// Refuse with this status (4xx or 5xx) and reason.
    Deny {
        /// HTTP status.
        status: u16,
        /// Shown to the client in the problem document.
        reason: String,
    },
}

/// The way back for one answer. Dropping it denies.
#[derive(Debug)]
pub struct Reply(pub(crate) oneshot::Sender<Decision>);

impl Reply {
    /// Answers; late answers are ignored.
    pub fn send(self, decision: Decision) {
        let _ = self.0.send(decision);
    }
}

/// Asked once per tunnel when a hook is configured. Must not block: queue the question and return.
pub trait Decider: Send + Sync + 'static {
    /// Takes a question; an answer is expected through `reply` within the hook's time-out.
    fn ask(&self, question: Question, reply: Reply);
}
