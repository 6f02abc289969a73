"""What can go wrong, as exceptions that carry finished sentences."""

from collections.abc import Sequence


class RelayError(Exception):
    """The base of every error that this package raises on purpose."""


class ConfigError(RelayError):
    """A configuration that cannot be used.

    ``errors`` holds every fault found, one line each: ``relay.toml:LINE: key: what was expected``, or
    ``key: what was expected`` for a configuration made in code.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors: tuple[str, ...] = tuple(errors)
        super().__init__("\n".join(self.errors))


class StartError(RelayError):
    """The relay could not start or reload: a busy port, a certificate that vanished, too few descriptors.

    ``errors`` holds one line for each fault, with its place and remedy.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors: tuple[str, ...] = tuple(errors)
        super().__init__("\n".join(self.errors))


class FramingError(RelayError, ValueError):
    """Bytes that break the rules of the capsule protocol, of connect-tcp or of connect-udp."""


class BenchError(RelayError):
    """A measurement that could not be made, in one line."""


class ClientError(RelayError, ConnectionError):
    """A tunnel of ``Client`` that could not be had, or is over; an OSError, as a failed connection is."""


class ProxyUnreachable(ClientError):
    """There is no connection to the proxy: its name, the network, TLS, or it went away."""


class ProxyMisbehaved(ClientError):
    """The proxy broke a rule of HTTP, or does not know what it was asked for."""


class TunnelRefused(ClientError):
    """The proxy answered, but not with a tunnel.

    ``status`` is the HTTP status; ``error`` and ``details`` are what its ``Proxy-Status`` says (RFC 9209), such as
    ``connection_refused``, or None; ``headers`` are the fields of the answer, names in lower case.
    """

    def __init__(
        self, message: str, status: int, error: str | None, details: str | None, headers: Sequence[tuple[str, str]]
    ) -> None:
        self.status = status
        self.error = error
        self.details = details
        self.headers: tuple[tuple[str, str], ...] = tuple(headers)
        said = ": ".join(part for part in (error, details) if part)
        super().__init__(f"{message} ({said})" if said else message)


class TunnelEnded(ClientError):
    """A tunnel of datagrams is over."""
