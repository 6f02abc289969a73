//! Ways to the origin: a tunnel, or TCP as it is.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use capsule_core::capsule::MAX_HEADER;
use capsule_core::template::Template;
use futures_util::future::Either;
use http::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::datagram_path::DatagramPath;
use super::plan::{Mode, Route};
use super::{Failure, failed, tls, usage};
use crate::client::{Client, Error, Form, Proxy, Receiver, Sender};
use crate::config::Http;
use crate::pool::{Buffer, PAYLOAD};

/// How long a connection or a tunnel may take to open.
const PATIENCE: Duration = Duration::from_secs(15);

/// How the origin is reached.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    host: String,
    port: u16,
    proxy: Option<(Proxy, Http, Form)>,
    /// Most that is sent in one piece.
    piece: usize,
}

impl Gate {
    pub(super) fn new(route: &Route) -> Result<Self, Failure> {
        Ok(Self {
            host: route.target_host.clone(),
            port: route.target_port,
            piece: route
                .max_frame
                .map_or(PAYLOAD, |frame| (frame as usize - MAX_HEADER).min(PAYLOAD)),
            proxy: match route.mode {
                Mode::Direct => None,
                Mode::Connect => Some((route, Form::Connect)),
                Mode::ConnectTcp => Some((route, templated(route, Form::connect_tcp()?)?)),
                Mode::ConnectUdp => Some((route, templated(route, Form::connect_udp()?)?)),
            }
            .map(|(route, form)| through(route, form))
            .transpose()?,
        })
    }

    /// Connects to the gateway, if that is apart from opening a tunnel.
    pub(super) async fn connect(&self) -> Result<Link, Failure> {
        let client = match &self.proxy {
            None => None,
            Some((proxy, http, form)) => {
                let connecting = timeout(PATIENCE, Client::connect(proxy.clone(), *http));
                let client = connecting
                    .await
                    .map_err(|_| failed("the gateway does not answer"))?
                    .map_err(explain)?;
                Some((Rc::new(client), form.clone()))
            }
        };
        Ok(Link {
            host: self.host.clone(),
            port: self.port,
            piece: self.piece,
            client,
        })
    }
}

/// The form with what the route says about it.
fn templated(route: &Route, form: Form) -> Result<Form, Failure> {
    let Form::Templated {
        protocol,
        mut template,
        mut profile,
    } = form
    else {
        return Ok(form);
    };
    if let Some(text) = &route.template {
        template =
            Template::compile(text).map_err(|fault| usage(format_args!("{text}: {fault}")))?;
    }
    if let Some(token) = &route.profile {
        profile = protocol
            .profiles
            .iter()
            .find(|profile| profile.token == token.as_str())
            .ok_or_else(|| usage(format_args!("{token}: no profile of {}", protocol.name)))?
            .clone();
    }
    Ok(Form::Templated {
        protocol,
        template,
        profile,
    })
}

fn through(route: &Route, form: Form) -> Result<(Proxy, Http, Form), Failure> {
    let http = route
        .http
        .ok_or_else(|| usage("the HTTP version is missing"))?;
    let address = route.proxy.ok_or_else(|| usage("the gateway is missing"))?;
    let credentials = route.credentials.as_deref().map(HeaderValue::from_str);
    let proxy = Proxy {
        address,
        authority: route
            .authority
            .clone()
            .unwrap_or_else(|| address.to_string()),
        tls: http
            .secure()
            .then(|| tls::config(route.roots.as_deref(), route.resume))
            .transpose()?,
        credentials: credentials
            .transpose()
            .map_err(|_| usage("the credentials cannot stand in a header field"))?,
        max_frame: route.max_frame,
        congestion_control: route.congestion_control,
    };
    Ok((proxy, http.http(), form))
}

/// A refusal with what the gateway said about it.
fn explain(error: Error) -> Failure {
    if let Error::Refused(refused) = &error
        && let Some(status) = refused.fields.get("proxy-status")
    {
        let status = String::from_utf8_lossy(status.as_bytes());
        return failed(format_args!("{error} ({status})"));
    }
    failed(error)
}

/// A connection to the gateway, shared by its tunnels where the version allows it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    host: String,
    port: u16,
    piece: usize,
    client: Option<(Rc<Client>, Form)>,
}

impl Link {
    pub(super) async fn open(&self) -> Result<Path, Failure> {
        in_time(match &self.client {
            None => Either::Left(self.direct()),
            Some((client, form)) => Either::Right(self.tunnel(client, form)),
        })
        .await
    }

    pub(super) async fn open_datagrams(&self) -> Result<DatagramPath, Failure> {
        in_time(async {
            match &self.client {
                None => DatagramPath::direct(self.resolve().await?),
                Some((client, form)) => {
                    let opening = client.open_datagrams(form, &self.host, self.port);
                    Ok(DatagramPath::through(opening.await.map_err(explain)?))
                }
            }
        })
        .await
    }

    async fn resolve(&self) -> Result<SocketAddr, Failure> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let named = |what: &dyn std::fmt::Display| {
            failed(format_args!("{}:{}: {what}", self.host, self.port))
        };
        found
            .map_err(|error| named(&error))?
            .next()
            .ok_or_else(|| named(&"has no address"))
    }

    async fn direct(&self) -> Result<Path, Failure> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| failed(format_args!("{}:{}: {error}", self.host, self.port)))?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Ok(Path {
            sender: PathSender::Tcp(write, Vec::new()),
            receiver: PathReceiver::Tcp(read, Vec::new()),
        })
    }

    async fn tunnel(&self, client: &Client, form: &Form) -> Result<Path, Failure> {
        let opening = client.open(form, &self.host, self.port);
        let tunnel = opening.await.map_err(explain)?;
        Ok(Path {
            sender: PathSender::Tunnel(Box::new(tunnel.sender), self.piece),
            receiver: PathReceiver::Tunnel(Box::new(tunnel.receiver)),
        })
    }
}

async fn in_time<T>(opening: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(PATIENCE, opening).await.unwrap_or_else(|_| {
        Err(failed(format_args!(
            "a tunnel did not open within {} s; gateways limit the tunnels of a connection, and more connections may help",
            PATIENCE.as_secs()
        )))
    })
}

/// Two directions towards the origin.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) sender: PathSender,
    pub(super) receiver: PathReceiver,
}

/// To the origin.
#[derive(Debug)]
pub(super) enum PathSender {
    /// The most that is sent in one piece comes with it.
    Tunnel(Box<Sender>, usize),
    Tcp(OwnedWriteHalf, Vec<u8>),
}

/// From the origin.
#[derive(Debug)]
pub(super) enum PathReceiver {
    Tunnel(Box<Receiver>),
    Tcp(OwnedReadHalf, Vec<u8>),
}

impl PathSender {
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Tunnel(sender, _) => sender.send(bytes).await?,
            Self::Tcp(write, _) => write.write_all(bytes).await?,
        }
        Ok(())
    }

    /// Sends up to `rest` bytes, filled by `fill`; returns how many.
    pub(super) async fn send_some(
        &mut self,
        rest: u64,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<u64, Failure> {
        let rest = usize::try_from(rest).unwrap_or(usize::MAX);
        let size = match self {
            Self::Tunnel(sender, piece) => {
                let rest = if *piece < PAYLOAD {
                    rest.min(*piece)
                } else {
                    rest
                };
                let size = sender.room(rest).await?;
                let mut buffer = Buffer::take();
                fill(buffer.payload_mut(size));
                sender.send_buffer(buffer, size, rest).await?;
                size
            }
            Self::Tcp(write, block) => {
                block.resize(PAYLOAD, 0);
                let size = block.len().min(rest);
                fill(&mut block[..size]);
                write.write_all(&block[..size]).await?;
                size
            }
        };
        Ok(size as u64)
    }

    pub(super) async fn finish(&mut self) -> Result<(), Failure> {
        match self {
            Self::Tunnel(sender, _) => sender.finish().await?,
            Self::Tcp(write, _) => write.shutdown().await?,
        }
        Ok(())
    }
}

impl PathReceiver {
    /// The next bytes; how many, after `take` saw them. 0 = FIN.
    pub(super) async fn recv(&mut self, take: impl FnOnce(&[u8])) -> Result<usize, Failure> {
        Ok(match self {
            Self::Tunnel(receiver) => match receiver.recv().await? {
                Some(bytes) => {
                    take(&bytes);
                    bytes.len()
                }
                None => 0,
            },
            Self::Tcp(read, block) => {
                block.resize(PAYLOAD, 0);
                let size = read.read(block).await?;
                take(&block[..size]);
                size
            }
        })
    }

    /// Takes exactly `size` bytes.
    pub(super) async fn take(&mut self, size: usize) -> Result<(), Failure> {
        let mut got = 0;
        while got < size {
            match self.recv(|_| {}).await? {
                0 => return Err(failed("the origin ended a tunnel before its answer")),
                more => got += more,
            }
        }
        Ok(())
    }
}

impl Path {
    /// Ends both directions in good order; what still comes is not looked at.
    pub(super) async fn end(mut self) -> Result<(), Failure> {
        self.sender.finish().await?;
        while self.receiver.recv(|_| {}).await? > 0 {}
        self.close().await
    }

    /// The rest of the end, once both directions are finished.
    pub(super) async fn close(mut self) -> Result<(), Failure> {
        if let (PathSender::Tunnel(sender, _), PathReceiver::Tunnel(receiver)) =
            (&mut self.sender, &mut self.receiver)
        {
            sender.close().await?;
            receiver.end().await?;
        }
        Ok(())
    }
}
