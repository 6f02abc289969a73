//! A client for other threads: one thread of its own does all there is to do, and the ends of tunnels are Unix sockets.
//!
//! Whoever gets an end reads and writes it as it likes; the kernel wakes it, and holds it back. A byte stream is a `SOCK_STREAM`
//! socket, whose half-closes are those of the tunnel. A tunnel of datagrams is a `SOCK_SEQPACKET` socket; each packet is a zero byte
//! and then a payload, so that an empty payload is told from the end. The close of a Unix socket cannot say that it is no clean end:
//! [`End::fault`] does, and does so before the socket is closed.

mod datagrams;
mod near;
mod stream;

pub use near::{End, Why};

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use super::{Failure, Form, Link, Settings};
use crate::config::Http;

/// How long connections get to say goodbye after the last tunnel.
const FAREWELL: Duration = Duration::from_millis(30);

/// An end of a tunnel that the proxy has opened.
#[derive(Debug)]
pub struct Opened {
    /// Non-blocking.
    pub socket: OwnedFd,
    /// How the tunnel fares.
    pub end: Arc<End>,
    /// The version that carries it.
    pub http: Http,
}

/// What is to be opened.
#[derive(Debug, Clone)]
pub struct Target {
    /// What carries it; whether it is a stream or datagrams follows from that.
    pub form: Form,
    /// A name, or an address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Where results go. Called in the client's thread, which must not wait.
pub trait Inbox: Send + Sync + 'static {
    /// What became of request `number`; each is told of once.
    fn put(&self, number: u64, result: Result<Opened, Failure>);
}

enum Command {
    Open(u64, Target),
    Cancel(u64),
    Close(Duration),
}

/// A running client. Dropping it cuts its tunnels off.
#[derive(Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    /// Starts the thread; nothing is connected yet.
    ///
    /// # Errors
    /// There is no thread to be had, or no event queue.
    pub fn start(settings: Settings, inbox: Arc<dyn Inbox>) -> io::Result<Self> {
        let (commands, orders) = mpsc::unbounded_channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("relay-client".into())
            .spawn(move || {
                LocalSet::new().block_on(&runtime, serve(settings, orders, inbox));
                // A name that is still being resolved keeps nobody.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            commands,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Has a tunnel opened. After [`close`](Self::close) nothing comes of it.
    pub fn open(&self, number: u64, target: Target) {
        let _ = self.commands.send(Command::Open(number, target));
    }

    /// Gives up a request whose result was not told yet.
    pub fn cancel(&self, number: u64) {
        let _ = self.commands.send(Command::Cancel(number));
    }

    /// Ends everything and waits for that. Tunnels whose end is closed already get so long to deliver what was written; the others are
    /// cut off. Idempotent.
    pub fn close(&self, linger: Duration) {
        let _ = self.commands.send(Command::Close(linger));
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

async fn serve(
    settings: Settings,
    mut orders: mpsc::UnboundedReceiver<Command>,
    inbox: Arc<dyn Inbox>,
) {
    let link = std::rc::Rc::new(Link::new(settings));
    let (closing, closed) = watch::channel(false);
    let mut tunnels = JoinSet::new();
    let mut cancels: HashMap<u64, oneshot::Sender<()>> = HashMap::new();
    let linger = loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            Some(ended) = tunnels.join_next(), if !tunnels.is_empty() => {
                if let Ok(number) = ended {
                    cancels.remove(&number);
                }
                continue;
            }
        };
        match order {
            Some(Command::Open(number, target)) => {
                let (cancel, cancelled) = oneshot::channel();
                cancels.insert(number, cancel);
                let (link, closed) = (link.clone(), closed.clone());
                let owed = Owed {
                    number,
                    inbox: inbox.clone(),
                    told: false,
                };
                tunnels.spawn_local(async move {
                    tunnel(owed, &link, target, cancelled, closed).await;
                    number
                });
            }
            Some(Command::Cancel(number)) => drop(cancels.remove(&number)),
            Some(Command::Close(linger)) => break linger,
            None => break Duration::ZERO,
        }
    };
    closing.send_replace(true);
    // Those that are cut off have something to say, too.
    let _ = timeout(linger.max(FAREWELL), async {
        while tunnels.join_next().await.is_some() {}
    })
    .await;
    tunnels.shutdown().await;
    drop(link);
    tokio::time::sleep(FAREWELL).await;
}

/// A request that somebody waits for: however it ends, they are told.
struct Owed {
    number: u64,
    inbox: Arc<dyn Inbox>,
    told: bool,
}

impl Owed {
    fn tell(mut self, result: Result<Opened, Failure>) {
        self.told = true;
        self.inbox.put(self.number, result);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if !self.told {
            let given_up = Failure::Usage("the request was given up".to_owned());
            self.inbox.put(self.number, Err(given_up));
        }
    }
}

/// Opens a tunnel, unless it is given up first, and moves its bytes to the end.
async fn tunnel(
    owed: Owed,
    link: &Link,
    target: Target,
    cancelled: oneshot::Receiver<()>,
    mut closed: watch::Receiver<bool>,
) {
    let Target { form, host, port } = &target;
    let opened = tokio::select! {
        biased;
        // Dropped or used: it is all the same.
        _ = cancelled => return,
        _ = closed.wait_for(|closed| *closed) => return,
        opened = open(link, form, host, *port) => opened,
    };
    match opened {
        Err(failure) => owed.tell(Err(failure)),
        Ok((way, opened)) => {
            owed.tell(Ok(opened));
            match way {
                Way::Stream(stream) => stream.run(closed).await,
                Way::Datagrams(datagrams) => datagrams.run(closed).await,
            }
        }
    }
}

enum Way {
    Stream(Box<stream::Pump>),
    Datagrams(Box<datagrams::Pump>),
}

async fn open(link: &Link, form: &Form, host: &str, port: u16) -> Result<(Way, Opened), Failure> {
    let no_socket = |error: io::Error| Failure::Usage(format!("no socket for the tunnel: {error}"));
    let end = Arc::new(End::default());
    let (way, socket, http) = if form.is_of_datagrams() {
        let (tunnel, http) = link.open_datagrams(form, host, port).await?;
        let (pump, socket) = datagrams::Pump::new(tunnel, end.clone()).map_err(no_socket)?;
        (Way::Datagrams(Box::new(pump)), socket, http)
    } else {
        let (tunnel, http) = link.open(form, host, port).await?;
        let (pump, socket) = stream::Pump::new(tunnel, end.clone()).map_err(no_socket)?;
        (Way::Stream(Box::new(pump)), socket, http)
    };
    Ok((way, Opened { socket, end, http }))
}
