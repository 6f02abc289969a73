"""An HTTP capsule relay and a client: connect-tcp, connect-udp and classic CONNECT over HTTP/1.1, HTTP/2 and HTTP/3."""

from relay._native import __version__
from relay._tunnels import UdpTunnel
from relay.client import Client
from relay.config import Config
from relay.errors import (
    ClientError,
    ConfigError,
    FramingError,
    ProxyMisbehaved,
    ProxyUnreachable,
    RelayError,
    StartError,
    TunnelEnded,
    TunnelRefused,
)
from relay.policy import Decision, TunnelRequest
from relay.server import Address, Relay

__all__ = [
    "Address",
    "Client",
    "ClientError",
    "Config",
    "ConfigError",
    "Decision",
    "FramingError",
    "ProxyMisbehaved",
    "ProxyUnreachable",
    "Relay",
    "RelayError",
    "StartError",
    "TunnelEnded",
    "TunnelRefused",
    "TunnelRequest",
    "UdpTunnel",
    "__version__",
]
