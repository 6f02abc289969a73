//! Ways of datagrams to the origin: a tunnel, or UDP as it is.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::datagrams::Socket;
use super::{Failure, failed};
use crate::client::{DatagramReceiver, DatagramSender, DatagramTunnel, Sent};

/// How long a gateway may take to end a tunnel.
const PATIENCE: Duration = Duration::from_millis(500);

/// Two directions towards the origin.
pub(super) struct DatagramPath {
    pub(super) sender: DatagramPathSender,
    pub(super) receiver: DatagramPathReceiver,
}

/// To the origin.
pub(super) enum DatagramPathSender {
    Tunnel(Box<DatagramSender>),
    Udp(Rc<Socket>, SocketAddr, Vec<u8>),
}

/// From the origin.
pub(super) enum DatagramPathReceiver {
    Tunnel(Box<DatagramReceiver>, Vec<Bytes>),
    Udp(Rc<Socket>, SocketAddr),
}

impl DatagramPath {
    pub(super) fn through(tunnel: DatagramTunnel) -> Self {
        Self {
            sender: DatagramPathSender::Tunnel(Box::new(tunnel.sender)),
            receiver: DatagramPathReceiver::Tunnel(Box::new(tunnel.receiver), Vec::new()),
        }
    }

    pub(super) fn direct(origin: SocketAddr) -> Result<Self, Failure> {
        let any: SocketAddr = if origin.is_ipv4() {
            ([0; 4], 0).into()
        } else {
            ([0; 16], 0).into()
        };
        let socket = Rc::new(Socket::bind(any)?);
        Ok(Self {
            sender: DatagramPathSender::Udp(socket.clone(), origin, Vec::new()),
            receiver: DatagramPathReceiver::Udp(socket, origin),
        })
    }

    /// Ends the tunnel. How a gateway does it is none of this load's business.
    pub(super) async fn end(mut self) {
        if let DatagramPathSender::Tunnel(sender) = &mut self.sender
            && sender.finish().await.is_ok()
        {
            let drain = async { while self.receiver.receive(|_| {}).await.is_ok() {} };
            let _ = timeout(PATIENCE, drain).await;
        }
    }
}

impl DatagramPathSender {
    /// Sends datagrams of one size.
    pub(super) async fn send(&mut self, datagrams: &[impl AsRef<[u8]>]) -> Result<Sent, Failure> {
        match self {
            Self::Tunnel(sender) => Ok(sender.send(datagrams).await?),
            Self::Udp(socket, origin, contents) => {
                contents.clear();
                for datagram in datagrams {
                    contents.extend_from_slice(datagram.as_ref());
                }
                let size = contents.len() / datagrams.len().max(1);
                Ok(Sent {
                    sent: socket.send(*origin, contents, size) / size.max(1),
                    ..Sent::default()
                })
            }
        }
    }

    /// The longest datagram that fits.
    pub(super) fn longest(&self) -> usize {
        match self {
            Self::Tunnel(sender) => sender.longest(),
            Self::Udp(..) => usize::MAX,
        }
    }
}

impl DatagramPathReceiver {
    /// Datagrams that came and were dropped, because nobody took them in time.
    pub(super) fn dropped(&self) -> u64 {
        match self {
            Self::Tunnel(receiver, _) => receiver.dropped(),
            Self::Udp(..) => 0,
        }
    }

    /// Waits for datagrams and hands each of them to `take`. Safe to drop and call again.
    pub(super) async fn receive(&mut self, mut take: impl FnMut(&[u8])) -> Result<(), Failure> {
        match self {
            Self::Tunnel(receiver, came) => {
                if !receiver.recv(came).await? {
                    return Err(failed("the gateway ended a tunnel"));
                }
                came.drain(..).for_each(|datagram| take(&datagram));
            }
            Self::Udp(socket, origin) => {
                let receive = socket.receive(|from, message, stride| {
                    if from == *origin {
                        message.chunks(stride).for_each(&mut take);
                    }
                });
                receive.await?;
            }
        }
        Ok(())
    }
}
