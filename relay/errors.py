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
