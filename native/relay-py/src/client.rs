//! The client for Python: requests go to its thread by call, results come back in batches, one wake-up each.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use capsule_core::target::Target as Checked;
use capsule_core::template::Template;
use http::HeaderValue;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use relay_engine::client::local::{self, End, Handle, Opened, Target, Why};
use relay_engine::client::{Failure, Form, Settings, trusting, trusting_the_system};
use relay_engine::config::Http;

/// Results that Python has not taken yet.
struct Results {
    waiting: Mutex<Vec<(u64, Result<Opened, Failure>)>>,
    /// Where the client's thread writes and the event loop reads; neither ever waits.
    wake: UnixStream,
    woken: UnixStream,
}

impl Results {
    fn lock(&self) -> MutexGuard<'_, Vec<(u64, Result<Opened, Failure>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl local::Inbox for Results {
    fn put(&self, number: u64, result: Result<Opened, Failure>) {
        let mut waiting = self.lock();
        let wake = waiting.is_empty();
        waiting.push((number, result));
        drop(waiting);
        if wake {
            // A socket without room has bytes in it that wake as well.
            let _ = (&self.wake).write(&[1]);
        }
    }
}

/// Tunnels through one proxy, which a thread of its own opens and moves.
#[pyclass(frozen, module = "relay._native")]
pub(crate) struct Client {
    handle: Handle,
    results: Arc<Results>,
    tcp: Form,
    udp: Form,
}

/// (what kind, what to say, status, `Proxy-Status` error, its details, fields of the answer)
type Told = (
    &'static str,
    String,
    u16,
    Option<String>,
    Option<String>,
    Vec<(String, String)>,
);

#[pymethods]
impl Client {
    /// Starts the thread and connects nothing. Without `ca`, PEM, the system's certificates are trusted. ValueError, OSError.
    #[new]
    #[pyo3(signature = (host, port, authority, *, tls, ca = None, credentials = None, http = None, tcp, tcp_template = None,
                        udp_template = None, patience))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        host: String,
        port: u16,
        authority: String,
        tls: bool,
        ca: Option<&[u8]>,
        credentials: Option<&str>,
        http: Option<&str>,
        tcp: &str,
        tcp_template: Option<&str>,
        udp_template: Option<&str>,
        patience: f64,
    ) -> PyResult<Self> {
        let credentials = credentials.map(HeaderValue::from_str).transpose();
        let mut credentials = credentials
            .map_err(|_| PyValueError::new_err("the credentials cannot stand in a header field"))?;
        if let Some(credentials) = &mut credentials {
            credentials.set_sensitive(true);
        }
        let http = http.map(version).transpose()?;
        let patience = Duration::try_from_secs_f64(patience)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let tcp = form(tcp, tcp_template)?;
        let udp = form("connect-udp", udp_template)?;
        py.detach(|| {
            let tls = match ca {
                _ if !tls => None,
                Some(pem) => Some(trusting(pem).map_err(|fault| format!("ca: {fault}"))),
                None => Some(trusting_the_system()),
            };
            let settings = Settings {
                host,
                port,
                authority,
                tls: tls.transpose().map_err(PyValueError::new_err)?,
                credentials,
                http,
                patience,
            };
            let (wake, woken) = UnixStream::pair()?;
            wake.set_nonblocking(true)?;
            woken.set_nonblocking(true)?;
            let results = Arc::new(Results {
                waiting: Mutex::default(),
                wake,
                woken,
            });
            let handle = Handle::start(settings, results.clone())
                .map_err(|error| PyOSError::new_err(error.to_string()))?;
            Ok(Self {
                handle,
                results,
                tcp,
                udp,
            })
        })
    }

    /// A descriptor that is readable once for each batch of results, until `take`.
    fn fileno(&self) -> i32 {
        self.results.woken.as_raw_fd()
    }

    /// Asks for a tunnel by TCP or, `datagrams`, UDP. ValueError for a target that cannot be.
    fn open(&self, number: u64, datagrams: bool, host: String, port: u16) -> PyResult<()> {
        Checked::from_values(&host, &port.to_string())
            .map_err(|fault| PyValueError::new_err(fault.to_string()))?;
        let form = if datagrams { &self.udp } else { &self.tcp };
        let form = form.clone();
        self.handle.open(number, Target { form, host, port });
        Ok(())
    }

    /// Gives up a request. Its result may be on its way already.
    fn cancel(&self, number: u64) {
        self.handle.cancel(number);
    }

    /// Results since the last call: (number, end, failure), one of the two None.
    fn take(&self) -> Vec<(u64, Option<ClientEnd>, Option<Told>)> {
        // Before the results: a byte that is written from now on is for one that may still have to be taken.
        while matches!((&self.results.woken).read(&mut [0; 64]), Ok(1..)) {}
        std::mem::take(&mut *self.results.lock())
            .into_iter()
            .map(|(number, result)| match result {
                Ok(opened) => (number, Some(ClientEnd::new(opened)), None),
                Err(failure) => (number, None, Some(told(&failure))),
            })
            .collect()
    }

    /// Ends everything; what was written to ends that are closed gets so many seconds to be delivered. Idempotent.
    fn close(&self, py: Python<'_>, linger: f64) -> PyResult<()> {
        let linger = Duration::try_from_secs_f64(linger)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        py.detach(|| self.handle.close(linger));
        Ok(())
    }
}

/// An end of a tunnel.
#[pyclass(frozen, module = "relay._native")]
pub(crate) struct ClientEnd {
    socket: Mutex<Option<OwnedFd>>,
    end: Arc<End>,
    http: Http,
}

impl ClientEnd {
    fn new(opened: Opened) -> Self {
        Self {
            socket: Mutex::new(Some(opened.socket)),
            end: opened.end,
            http: opened.http,
        }
    }
}

#[pymethods]
impl ClientEnd {
    /// The descriptor of the socket, for the caller to close. Once; ValueError then.
    fn detach(&self) -> PyResult<i32> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = socket
            .take()
            .ok_or_else(|| PyValueError::new_err("the socket was handed over before"))?;
        Ok(socket.into_raw_fd())
    }

    /// Why reading ended, unless it was a clean end.
    fn fault(&self) -> Option<String> {
        self.end.fault().map(Why::to_string)
    }

    /// Why the tunnel ended, however cleanly reading did.
    fn cut(&self) -> Option<String> {
        self.end.cut().map(Why::to_string)
    }

    /// Datagrams that were dropped: (to the target, from the target).
    fn dropped(&self) -> (u64, u64) {
        self.end.dropped()
    }

    /// The HTTP version that carries it.
    #[getter]
    fn http(&self) -> &'static str {
        self.http.name()
    }
}

fn version(name: &str) -> PyResult<Http> {
    [Http::H1, Http::H2, Http::H3]
        .into_iter()
        .find(|http| http.name() == name)
        .ok_or_else(|| PyValueError::new_err("http must be h1, h2 or h3"))
}

/// A protocol by its token, at the template, if it has one and it is not the default.
fn form(token: &str, template: Option<&str>) -> PyResult<Form> {
    let form = Form::by_token(token)
        .ok_or_else(|| PyValueError::new_err(format!("unknown protocol {token:?}")))?;
    match (form, template) {
        (form, None) => Ok(form),
        (Form::Connect, Some(_)) => Err(PyValueError::new_err("connect has no template")),
        (
            Form::Templated {
                protocol, profile, ..
            },
            Some(text),
        ) => Ok(Form::Templated {
            protocol,
            template: Template::compile(text)
                .map_err(|fault| PyValueError::new_err(format!("{text}: {fault}")))?,
            profile,
        }),
    }
}

fn told(failure: &Failure) -> Told {
    let kind = match failure {
        Failure::Unreachable(_) => "unreachable",
        Failure::Misbehaved(_) => "misbehaved",
        Failure::Usage(_) => "usage",
        Failure::Refused(refused) => {
            let text = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect();
            let fields = refused.fields.iter();
            let fields =
                fields.map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())));
            let reason = refused.reason();
            return (
                "refused",
                failure.to_string(),
                refused.status,
                reason.error,
                reason.details,
                fields.collect(),
            );
        }
    };
    (kind, failure.to_string(), 0, None, None, Vec::new())
}
