//! Serving a connection: requests one after another, answers, and the switch to a data stream.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::rc::Rc;

use bytes::Bytes;
use capsule_core::reject::Reject;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use super::head::{self, HeadError, Parsed};
use super::{Connection, Io};
use crate::session;
use crate::state::Phase;
use crate::transport::{Exchange, Gone, Peer, Refusal};
use crate::worker::Worker;

/// Serves requests until one becomes a tunnel, the client leaves, or the relay stops. The first request is to arrive before
/// `until`, each further one within the time-out of the configuration.
pub async fn serve<I: Io>(
    worker: Rc<Worker>,
    peer: Peer,
    mut connection: Connection<I>,
    until: Instant,
) {
    let (worker, peer) = (&worker, Rc::new(peer));
    let mut until = Some(until);
    loop {
        let limit = worker.shared.generation.load().limits.header_timeout;
        let until = until.take().unwrap_or_else(|| Instant::now() + limit);
        let parsed = loop {
            let idle = connection.buffer.is_empty();
            tokio::select! {
                biased;
                parsed = Box::pin(head::read(&mut connection.io, &mut connection.buffer, until)) => break parsed,
                () = worker.reached(Phase::Draining), if idle => {}
            }
            // A request that has begun is still answered.
            if connection.buffer.is_empty() {
                let _ = timeout(limit, Box::pin(close(connection))).await;
                return;
            }
        };
        let (parsed, connection_out) = match parsed {
            Ok(parsed) => (parsed, Rc::new(RefCell::new(None))),
            Err(error) => {
                // A client that does not take the answer in time does without.
                let _ = timeout(limit, Box::pin(answer_bad_head(connection, error))).await;
                return;
            }
        };
        let Parsed {
            head,
            has_body,
            close,
        } = parsed;
        let exchange = H1Exchange {
            connection,
            reusable: !has_body && !close && worker.phase() == Phase::Running,
            head_only: head.method == "HEAD",
            back: connection_out.clone(),
        };
        let opening = session::open(worker.clone(), peer.clone(), head, exchange);
        if let Some(opened) = Box::pin(opening).await {
            Box::pin(session::carry(worker, opened)).await;
        }
        let back = connection_out.borrow_mut().take();
        match back {
            Some(next) => connection = next,
            None => return,
        }
    }
}

async fn answer_bad_head<I: Io>(mut connection: Connection<I>, error: HeadError) {
    // A client that never began a request gets no answer, only the end.
    let silent = error == HeadError::TooSlow && connection.buffer.is_empty();
    if let Some(status) = error.status().filter(|_| !silent) {
        let title = StatusCode::from_u16(status)
            .ok()
            .and_then(|s| s.canonical_reason());
        let reject =
            Reject::new(status, title.unwrap_or("Bad Request"), error.to_string()).with_close();
        let answer = render(&session::refusal(&reject, None, &[]), true, false);
        if connection.io.write_all(&answer).await.is_err() {
            return;
        }
    }
    close(connection).await;
}

async fn close<I: Io>(mut connection: Connection<I>) {
    // close_notify where there is TLS, then FIN; unread input must not turn the answer into a RST.
    if connection.io.shutdown().await.is_ok() {
        connection.io.wire().linger().await;
    }
}

/// Writes an answer that opens no tunnel.
fn render(refusal: &Refusal, close: bool, head_only: bool) -> Vec<u8> {
    let mut head = status_line(refusal.status);
    write_fields(&mut head, &refusal.fields);
    let mut connection = Vec::new();
    if refusal
        .fields
        .iter()
        .any(|(name, _)| *name == http::header::UPGRADE)
    {
        connection.push("Upgrade");
    }
    if close {
        connection.push("close");
    }
    if !connection.is_empty() {
        let _ = write!(head, "connection: {}\r\n", connection.join(", "));
    }
    let _ = write!(head, "content-length: {}\r\n\r\n", refusal.body.len());
    let mut answer = head.into_bytes();
    if !head_only {
        answer.extend_from_slice(&refusal.body);
    }
    answer
}

fn status_line(status: u16) -> String {
    let reason = StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Status");
    format!("HTTP/1.1 {status} {reason}\r\n")
}

fn write_fields(head: &mut String, fields: &[(HeaderName, HeaderValue)]) {
    for (name, value) in fields {
        let _ = write!(
            head,
            "{name}: {}\r\n",
            String::from_utf8_lossy(value.as_bytes())
        );
    }
}

/// One request on a connection.
struct H1Exchange<I> {
    connection: Connection<I>,
    /// The connection may carry another request after this answer.
    reusable: bool,
    head_only: bool,
    /// Where the connection goes when it is to be used again.
    back: Rc<RefCell<Option<Connection<I>>>>,
}

impl<I: Io> Exchange for H1Exchange<I> {
    type Recv = I::Recv;
    type Send = I::Send;

    async fn proceed(&mut self) -> Result<(), Gone> {
        let io = &mut self.connection.io;
        io.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            .await
            .map_err(|_| Gone)?;
        io.flush().await.map_err(|_| Gone)
    }

    async fn refuse(mut self, refusal: Refusal) {
        let again = self.reusable && !refusal.close;
        let answer = render(&refusal, !again, self.head_only);
        let io = &mut self.connection.io;
        if io.write_all(&answer).await.is_err() || io.flush().await.is_err() {
            return;
        }
        //= rfc9931 §3 refused-upgrade-goes-on
        if again {
            *self.back.borrow_mut() = Some(self.connection);
        } else {
            close(self.connection).await;
        }
    }

    async fn accept(
        mut self,
        fields: Vec<(HeaderName, HeaderValue)>,
        upgrade: Option<&str>,
    ) -> Result<(I::Recv, I::Send), Gone> {
        //= connect-tcp §3.1 h1-success-101
        //= connect-tcp §3.1 h1-success-connection
        //= connect-tcp §3.1 h1-success-upgrade
        //= rfc9110 §9.3.6 connect-no-content-fields
        //= rfc9297 §3.2 no-content-fields
        let mut head = match upgrade {
            Some(token) => format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: {token}\r\n"
            ),
            None => "HTTP/1.1 200 Connection established\r\n".to_owned(),
        };
        write_fields(&mut head, &fields);
        head.push_str("\r\n");
        let io = &mut self.connection.io;
        io.write_all(head.as_bytes()).await.map_err(|_| Gone)?;
        io.flush().await.map_err(|_| Gone)?;
        // An empty buffer would be kept as long as the tunnel.
        let early = match self.connection.buffer.is_empty() {
            true => Bytes::new(),
            false => self.connection.buffer.freeze(),
        };
        Ok(self.connection.io.into_halves(early))
    }

    async fn gone(&mut self) -> Gone {
        self.connection.io.wire().failed().await
    }
}
