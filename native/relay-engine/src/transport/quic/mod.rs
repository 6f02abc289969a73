//! QUIC: quinn-proto's state machines, on sockets and in tasks of our own; one endpoint per worker, with connection IDs that carry
//! the worker.
//!
//! What the rest of the relay knows of the QUIC stack is here and in `h3`.

mod connection;
mod endpoint;
mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod turns;

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use quinn_proto::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use quinn_proto::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, TransportConfig,
};
use rustls::crypto::SecureRandom;

pub use connection::{Connecting, Connection};
pub use endpoint::{Endpoint, Incoming};
pub use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
pub use quinn_proto::{ClientConfig, ConnectionError, ServerConfig, VarInt};
pub use stream::{ReadError, RecvStream, SendStream, WriteError};

use super::tls::ListenerTls;
use crate::config::{CongestionControl, Quic};

/// Connection IDs: the worker's index, then seven random bytes.
const CONNECTION_ID: usize = 8;
/// What a client may send on one stream before the target takes it.
pub const STREAM_WINDOW: u32 = 512 << 10;
/// Request streams a client may have open: what RFC 9114 §6.1 asks for at least, because the stack makes room for each.
pub const STREAMS: u32 = 100;
/// Unidirectional streams that the peer may have open: HTTP/3 knows three, others are for extensions and reserved types.
const UNI_STREAMS: u32 = 8;
/// The most that [`STREAMS`] rises to while a client uses them.
pub const STREAMS_MOST: u32 = 4096;
/// Bytes that wait to be sent on one connection, on top of its congestion window: enough that there is always something to send, few
/// enough that they stay in the cache and nobody waits behind them for long.
const UNSENT: u64 = 256 << 10;
/// Unacknowledged and unsent bytes of one connection at most.
const SEND_WINDOW: u64 = 8 << 20;
const IDLE: Duration = Duration::from_secs(60);
/// Connections and bytes that wait for their handshake to be looked at.
const INCOMING: usize = 4096;
const INCOMING_BYTES: u64 = 4 << 20;

/// Makes connection IDs whose first byte is the worker, for the kernel to steer by.
#[derive(Debug)]
struct WorkerConnectionIds {
    worker: u8,
}

impl ConnectionIdGenerator for WorkerConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID];
        // The provider's generator does not fail on this platform; a constant ID would only make the handshake fail.
        let _ = random().fill(&mut id[1..]);
        id[0] = self.worker;
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn random() -> &'static dyn SecureRandom {
    rustls::crypto::ring::default_provider().secure_random
}

/// Transport parameters for both sides.
pub fn transport_config(
    stream_window: u32,
    congestion_control: CongestionControl,
) -> TransportConfig {
    let controller: Arc<dyn ControllerFactory + Send + Sync> = match congestion_control {
        CongestionControl::Cubic => Arc::new(CubicConfig::default()),
        CongestionControl::Bbr => Arc::new(BbrConfig::default()),
    };
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
        .stream_receive_window(VarInt::from_u32(stream_window))
        // The sum of the streams' windows is the bound; the connection's own must never freeze the neighbours of a stalled tunnel.
        .receive_window(VarInt::MAX)
        .send_window(SEND_WINDOW)
        .initial_mtu(1280)
        .max_idle_timeout(IdleTimeout::try_from(IDLE).ok())
        .keep_alive_interval(Some(IDLE / 4))
        .congestion_controller_factory(controller)
        .datagram_receive_buffer_size(Some(1 << 20));
    transport
}

/// The server side of a listener with `tls`.
pub fn server_config(tls: &ListenerTls, quic: &Quic) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(tls.quic.clone());
    config
        .transport_config(Arc::new(transport_config(
            STREAM_WINDOW,
            quic.congestion_control,
        )))
        .max_incoming(INCOMING)
        .incoming_buffer_size_total(INCOMING_BYTES)
        .migration(true);
    config
}

/// Makes the endpoint of `worker` on its socket; must run inside the worker's `LocalSet`.
pub fn endpoint(socket: UdpSocket, worker: usize, server: ServerConfig) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::default();
    let worker = worker as u8;
    config.cid_generator(move || Box::new(WorkerConnectionIds { worker }));
    Endpoint::new(socket, config, Some(server))
}
