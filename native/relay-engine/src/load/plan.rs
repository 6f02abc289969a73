//! What a run is to do.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::{Failure, usage};
use crate::config::{CongestionControl, Http};

/// One run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What is done in the tunnels.
    pub work: Work,
    /// The way to the origin.
    pub route: Route,
    /// Connections to the gateway.
    #[serde(default = "one")]
    pub connections: usize,
    /// Tunnels at a time on each connection. Over HTTP/1.1 and without a gateway each is a connection of its own.
    #[serde(default = "one")]
    pub streams: usize,
    /// Threads of the client; connections are spread over them.
    #[serde(default = "one")]
    pub threads: usize,
    /// Seconds after which the run is given up.
    pub timeout: f64,
    /// The gateway's processes, for their CPU time and memory.
    #[serde(default)]
    pub pids: Vec<i32>,
}

fn one() -> usize {
    1
}

/// What is done in the tunnels.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Work {
    /// Moves bytes.
    Bulk {
        /// Which way.
        direction: Direction,
        /// Payload of all tunnels together.
        bytes: u64,
        /// Checks the payload by its hash, which costs more than moving it.
        #[serde(default)]
        verify: bool,
    },
    /// Opens a tunnel, makes one round trip, closes it; again and again.
    Rate {
        /// How long.
        seconds: f64,
    },
    /// Sends messages at a rate that does not wait for the answers.
    Latency {
        /// How long.
        seconds: f64,
        /// Messages a second, in all tunnels together.
        rate: f64,
        /// Bytes of a message.
        size: usize,
    },
    /// Opens tunnels and lets them be.
    Idle {
        /// How long, from the last one's opening.
        hold: f64,
    },
    /// Sends datagrams at a rate.
    Udp {
        /// Which way.
        direction: Course,
        /// How long.
        seconds: f64,
        /// Datagrams a second, in all tunnels together.
        rate: f64,
        /// Bytes of a payload.
        size: usize,
    },
}

impl Work {
    /// The name of the kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bulk { .. } => "bulk",
            Self::Rate { .. } => "rate",
            Self::Latency { .. } => "latency",
            Self::Idle { .. } => "idle",
            Self::Udp { .. } => "udp",
        }
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the origin.
    Down,
    /// To the origin.
    Up,
}

/// Which way datagrams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Course {
    /// From the origin.
    Down,
    /// To the origin.
    Up,
    /// To the origin and back.
    Echo,
}

/// How the gateway is asked for a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Not at all: TCP to the target, or UDP.
    Direct,
    /// Classic CONNECT.
    Connect,
    /// Templated connect-tcp.
    ConnectTcp,
    /// Templated connect-udp.
    ConnectUdp,
}

/// An HTTP version and what it runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// HTTP/1.1 in the clear.
    H1,
    /// HTTP/1.1 over TLS.
    H1tls,
    /// HTTP/2 over TLS.
    H2,
    /// HTTP/2 in the clear, with prior knowledge.
    H2c,
    /// HTTP/3.
    H3,
}

impl Transport {
    /// The HTTP version.
    pub fn http(self) -> Http {
        match self {
            Self::H1 | Self::H1tls => Http::H1,
            Self::H2 | Self::H2c => Http::H2,
            Self::H3 => Http::H3,
        }
    }

    /// Whether it runs over TLS.
    pub fn secure(self) -> bool {
        !matches!(self, Self::H1 | Self::H2c)
    }
}

/// The way to the origin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// How the gateway is asked.
    pub mode: Mode,
    /// How it is spoken to; nothing without a gateway.
    pub http: Option<Transport>,
    /// The gateway; nothing without one.
    pub proxy: Option<SocketAddr>,
    /// Its host, and port unless it is the scheme's; its address if that is missing.
    #[serde(default)]
    pub authority: Option<String>,
    /// Host of the origin, as the gateway is to hear it.
    pub target_host: String,
    /// Port of the origin.
    pub target_port: u16,
    /// Certificates to trust, PEM; without them none is checked.
    #[serde(default)]
    pub roots: Option<String>,
    /// Lets TLS sessions be resumed, which makes opening cheaper.
    #[serde(default)]
    pub resume: bool,
    /// `Authorization`, e.g. `Bearer …`.
    #[serde(default)]
    pub credentials: Option<String>,
    /// URI template of connect-tcp or connect-udp, if it is not the default one.
    #[serde(default)]
    pub template: Option<String>,
    /// Upgrade token of connect-tcp, if it is not the preferred one.
    #[serde(default)]
    pub profile: Option<String>,
    /// Largest HTTP/2 frame, either way, as another client might have it: what it offers, and the most it sends in one
    /// piece. Without it, frames are as large as our own client and the gateway want them.
    #[serde(default)]
    pub max_frame: Option<u32>,
    /// HTTP/3: of what the client sends.
    #[serde(default)]
    pub congestion_control: CongestionControl,
}

/// What RFC 9113 §6.5.2 lets SETTINGS_MAX_FRAME_SIZE be.
const FRAMES: RangeInclusive<u32> = 16_384..=16_777_215;

/// Bytes of a datagram: what is said in one, and what UDP over IPv4 holds.
const DATAGRAMS: RangeInclusive<usize> = 64..=65_507;

impl Plan {
    /// Tunnels at a time.
    pub fn tunnels(&self) -> usize {
        self.connections * self.streams
    }

    pub(super) fn check(&self) -> Result<(), Failure> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let counts = [self.connections, self.streams, self.threads];
        if counts.contains(&0) {
            return Err(usage("connections, streams and threads are at least 1"));
        }
        if self.connections.saturating_mul(self.streams) > 1 << 20 {
            return Err(usage("connections × streams is at most 1048576"));
        }
        if !positive(self.timeout) || self.timeout > 1e6 {
            return Err(usage("the time-out is not a number of seconds"));
        }
        if self.route.max_frame.is_some_and(|it| !FRAMES.contains(&it)) {
            return Err(usage("the largest frame is 16384 to 16777215 bytes"));
        }
        let datagrams = matches!(self.work, Work::Udp { .. });
        match self.route.mode {
            Mode::Connect | Mode::ConnectTcp if datagrams => {
                return Err(usage("datagrams go by connect-udp, or direct"));
            }
            Mode::ConnectUdp if !datagrams => {
                return Err(usage("connect-udp carries datagrams only"));
            }
            _ => {}
        }
        match self.work {
            Work::Bulk { bytes: 0, .. } => Err(usage("there are no bytes to move")),
            Work::Rate { seconds } | Work::Latency { seconds, .. } | Work::Udp { seconds, .. }
                if !positive(seconds) =>
            {
                Err(usage("the duration is not a number of seconds"))
            }
            Work::Latency { rate, .. } if !positive(rate) => {
                Err(usage("the rate is not a number of messages a second"))
            }
            Work::Udp { rate, .. } if !positive(rate) || rate > 1e7 => Err(usage(
                "the rate is not a number of datagrams a second, up to 10000000",
            )),
            Work::Udp { size, .. } if !DATAGRAMS.contains(&size) => {
                Err(usage("the size of a datagram is 64 to 65507 bytes"))
            }
            Work::Latency { size, .. } if !(1..=1 << 20).contains(&size) => {
                Err(usage("the size of a message is 1 to 1048576 bytes"))
            }
            Work::Idle { hold } if !(hold.is_finite() && hold >= 0.0) => {
                Err(usage("the duration is not a number of seconds"))
            }
            _ => Ok(()),
        }
    }
}
