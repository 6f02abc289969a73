//! A proxy by its name: which address and which HTTP version, the connection that tunnels share, another one once it is gone.

use std::cell::RefCell;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, FutureExt as _, LocalBoxFuture, WeakShared, select};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::HeaderValue;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::{Client, DatagramTunnel, Error, Failure, Form, Proxy, Tunnel};
use crate::config::{CongestionControl, Http};
use crate::egress::happy_eyeballs::{Family, Race, Step};

/// What HTTP/3 gets before TCP is tried beside it, where any version will do.
const HEAD_START: Duration = Duration::from_millis(250);

/// Which proxy, and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port, and UDP port for h3.
    pub port: u16,
    /// Host, and port unless it is the scheme's.
    pub authority: String,
    /// As for [`Proxy`].
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// As for [`Proxy`].
    pub credentials: Option<HeaderValue>,
    /// The version to use. `None`: HTTP/3 if the proxy answers to that first, else what it takes by ALPN; HTTP/1.1 in the clear.
    pub http: Option<Http>,
    /// How long reaching the proxy may take, name and handshakes included.
    pub patience: Duration,
}

type Connecting = LocalBoxFuture<'static, Result<Rc<Client>, Failure>>;

/// A proxy, connected when there is something to open.
pub struct Link {
    settings: Rc<Settings>,
    current: Rc<RefCell<Option<Rc<Client>>>>,
    /// One attempt for all that wait for a connection; it is given up with the last of them.
    connecting: RefCell<Option<WeakShared<Connecting>>>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("authority", &self.settings.authority)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Connects nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings: Rc::new(settings),
            current: Rc::default(),
            connecting: RefCell::default(),
        }
    }

    /// Opens a byte stream to a target; tells the version that carries it, too.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn open(
        &self,
        form: &Form,
        host: &str,
        port: u16,
    ) -> Result<(Tunnel, Http), Failure> {
        self.open_by(async |client| client.open(form, host, port).await)
            .await
    }

    /// Opens a tunnel of datagrams to a target; tells the version that carries it, too.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn open_datagrams(
        &self,
        form: &Form,
        host: &str,
        port: u16,
    ) -> Result<(DatagramTunnel, Http), Failure> {
        self.open_by(async |client| client.open_datagrams(form, host, port).await)
            .await
    }

    /// Asks by `open`, and once more over another connection if the one that was there before turns out to be gone.
    async fn open_by<T>(
        &self,
        open: impl AsyncFn(&Client) -> Result<T, Error>,
    ) -> Result<(T, Http), Failure> {
        loop {
            let (client, used) = self.client().await?;
            let error = match open(&client).await {
                Ok(opened) => return Ok((opened, client.http())),
                Err(error) => error,
            };
            let gone = error.is_of_connection() || !client.is_usable();
            if gone {
                self.forget(&client);
            }
            // Nothing of a tunnel was sent: asking again does no harm. Once: a fresh connection that fails is no old one.
            if !(gone && used) {
                return Err(error.into());
            }
        }
    }

    /// The connection to use, and whether it was there before.
    async fn client(&self) -> Result<(Rc<Client>, bool), Failure> {
        if let Some(client) = &*self.current.borrow()
            && client.is_usable()
        {
            return Ok((client.clone(), true));
        }
        let under_way = self
            .connecting
            .borrow()
            .as_ref()
            .and_then(WeakShared::upgrade);
        let connecting = under_way.unwrap_or_else(|| {
            let (settings, current) = (self.settings.clone(), self.current.clone());
            let connecting = async move {
                let client = connect(&settings).await?;
                *current.borrow_mut() = Some(client.clone());
                Ok(client)
            };
            let connecting = connecting.boxed_local().shared();
            *self.connecting.borrow_mut() = connecting.downgrade();
            connecting
        });
        Ok((connecting.await?, false))
    }

    fn forget(&self, client: &Rc<Client>) {
        let mut current = self.current.borrow_mut();
        if current
            .as_ref()
            .is_some_and(|other| Rc::ptr_eq(other, client))
        {
            *current = None;
        }
    }
}

/// Within the time that the settings allow.
async fn connect(settings: &Settings) -> Result<Rc<Client>, Failure> {
    let patience = settings.patience;
    match timeout(patience, connect_now(settings)).await {
        Ok(Ok(client)) => Ok(Rc::new(client.patient(patience))),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Failure::Unreachable(format!(
            "no connection within {} s",
            patience.as_secs_f64()
        ))),
    }
}

async fn connect_now(settings: &Settings) -> Result<Client, Error> {
    let addresses: Vec<SocketAddr> = lookup_host((settings.host.as_str(), settings.port))
        .await?
        .collect();
    let over = async |http| {
        race(&addresses, |address| {
            Client::connect(settings.at(address), http)
        })
        .await
    };
    match settings.http {
        Some(Http::H1) => settings.over_h1(&addresses).await,
        Some(http) => over(http).await,
        None if settings.tls.is_none() => settings.over_h1(&addresses).await,
        None => {
            let tcp = race(&addresses, |address| {
                Client::negotiate(settings.at(address))
            });
            first(over(Http::H3), tcp).await
        }
    }
}

impl Settings {
    fn at(&self, address: SocketAddr) -> Proxy {
        Proxy {
            address,
            authority: self.authority.clone(),
            tls: self.tls.clone(),
            credentials: self.credentials.clone(),
            max_frame: None,
            congestion_control: CongestionControl::default(),
        }
    }

    /// HTTP/1.1 connects for each tunnel: what is to be found out is the address.
    async fn over_h1(&self, addresses: &[SocketAddr]) -> Result<Client, Error> {
        let address = match addresses {
            [only] => *only,
            _ => {
                race(addresses, async |address| {
                    self.at(address).dial().await.map(|_| address)
                })
                .await?
            }
        };
        Client::connect(self.at(address), Http::H1).await
    }
}

/// HTTP/3, or TCP if that is there first; the reason of TCP if neither is to be had.
async fn first<T>(
    quic: impl Future<Output = Result<T, Error>>,
    tcp: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut quic = pin!(quic);
    match timeout(HEAD_START, quic.as_mut()).await {
        Ok(Ok(client)) => return Ok(client),
        Ok(Err(_)) => return tcp.await,
        Err(_) => {}
    }
    match select(quic, pin!(tcp)).await {
        Either::Left((Ok(client), _)) | Either::Right((Ok(client), _)) => Ok(client),
        Either::Left((Err(_), tcp)) => tcp.await,
        Either::Right((Err(error), quic)) => quic.await.map_err(|_| error),
    }
}

/// Tries the addresses as RFC 8305 has it; the last error if there is none to be reached.
async fn race<T, F: Future<Output = Result<T, Error>>>(
    addresses: &[SocketAddr],
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<T, Error> {
    let mut race = Race::new();
    for family in [Family::V6, Family::V4] {
        let of_family = addresses.iter().map(SocketAddr::ip);
        let of_family = of_family.filter(|address| Family::of(*address) == family);
        race.resolved(family, of_family, Instant::now());
    }
    let at = |ip: IpAddr| addresses.iter().find(|address| address.ip() == ip).copied();
    let mut attempts = FuturesUnordered::new();
    let mut failure = None;
    loop {
        let until = match race.poll(Instant::now()) {
            Step::Start(ip) => {
                match at(ip) {
                    None => race.failed(ip),
                    Some(address) => {
                        attempts.push(attempt(address).map(move |result| (ip, result)))
                    }
                }
                continue;
            }
            Step::Failed => {
                return Err(failure.unwrap_or(Error::Usage("the proxy's name has no address")));
            }
            Step::Wait(until) => until,
        };
        let delay = async {
            match until {
                None => std::future::pending().await,
                Some(until) => tokio::time::sleep_until(until.into()).await,
            }
        };
        tokio::select! {
            Some((ip, result)) = attempts.next() => match result {
                Ok(found) => return Ok(found),
                Err(error) => {
                    race.failed(ip);
                    failure = Some(error);
                }
            },
            () = delay => {}
        }
    }
}
