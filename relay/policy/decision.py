"""What a hook is asked, and what it answers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias


@dataclass(frozen=True, slots=True)
class TunnelRequest:
    """A request for a tunnel, after authentication and before anything is resolved or dialled."""

    protocol: str
    """Name in the protocol table: ``connect``, ``connect-tcp``."""
    http: str
    """HTTP version: ``h1``, ``h2``, ``h3``."""
    target_host: str
    """Host name or address (no brackets) as the client asked for it, decoded."""
    target_port: int
    principal: str | None
    """Who asks; None when nobody had to say."""
    client_address: tuple[str, int]
    """Address and port that the client connects from."""
    headers: Mapping[str, str]
    """Header fields by lower-case name, repeated ones joined by ``, ``; bytes beyond ASCII as Latin-1."""


def check_refusal(status: object, reason: object) -> None:
    """ValueError for a status or a reason that cannot be sent to a client."""
    if not isinstance(status, int) or isinstance(status, bool) or not 400 <= status <= 599:
        raise ValueError(f"status must be a whole number from 400 to 599, not {status!r}")
    if not isinstance(reason, str):
        raise ValueError(f"reason must be text, not {type(reason).__name__}")
    reason.encode("utf-8")


@dataclass(frozen=True, slots=True)
class Decision:
    """A hook's answer. An allowed tunnel still has to pass the rules."""

    allowed: bool
    reason: str = ""
    status: int = 403

    def __post_init__(self) -> None:
        # What comes out of a hook must be sendable: a fault shows here, in the hook, and nowhere later.
        if not self.allowed:
            check_refusal(self.status, self.reason)

    @classmethod
    def allow(cls) -> Self:
        """Go on."""
        return cls(True)

    @classmethod
    def deny(cls, reason: str = "refused by policy", status: int = 403) -> Self:
        """Refuse with an HTTP status from 400 to 599; the client is shown the reason."""
        return cls(False, reason, status)


Decide: TypeAlias = Callable[[TunnelRequest], Awaitable[Decision] | Decision]
"""A hook: a coroutine function, run in the loop of the relay, or a plain one, run in a thread."""
