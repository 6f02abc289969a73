"""An HTTP capsule relay: templated connect-tcp, connect-udp and classic CONNECT over HTTP/1.1, HTTP/2 and HTTP/3."""

from relay._native import __version__
from relay.config import Config
from relay.errors import ConfigError, FramingError, RelayError, StartError
from relay.policy import Decision, TunnelRequest
from relay.server import Address, Relay

__all__ = [
    "Address",
    "Config",
    "ConfigError",
    "Decision",
    "FramingError",
    "Relay",
    "RelayError",
    "StartError",
    "TunnelRequest",
    "__version__",
]
