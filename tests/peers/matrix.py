"""The matrix: transports, protocols, and what each cell does at the ends of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from .flow import Flow
from .h1 import H1Session
from .h2 import H2Session
from .h3 import H3Session
from .model import End, Session, tunnel_request
from .process import RelayProcess
from .target import Connection, Target

TRANSPORTS = ("h1", "h1tls", "h2", "h2c", "h3")
STREAMED = ("h2", "h2c", "h3")
PROTOCOLS = ("connect", "connect-tcp-12")

# connect-tcp §closing: how the client hears that the target's TCP connection was reset.
TARGET_RESET = {
    "h1": End("reset"),
    "h1tls": End("truncated"),
    "h2": End("reset", 0xA),
    "h2c": End("reset", 0xA),
    "h3": End("reset", 0x10F),
}
# RFC 9297 §3.3: how the client hears that it sent a malformed capsule stream.
MALFORMED = {
    "h1": (End("reset"),),
    "h1tls": (End("truncated"), End("reset")),
    "h2": (End("reset", 0x1),),
    "h2c": (End("reset", 0x1),),
    "h3": (End("reset", 0x10E),),
}


async def connect(process: RelayProcess, transport: str, **options: Any) -> Session:
    """A client connection over one of `TRANSPORTS`."""
    endpoint = process.endpoint(transport)
    if transport in ("h1", "h1tls"):
        return await H1Session.connect(endpoint, **options)
    if transport in ("h2", "h2c"):
        return await H2Session.connect(endpoint, **options)
    return await H3Session.connect(endpoint, **options)


@asynccontextmanager
async def established(
    process: RelayProcess, transport: str, protocol: str, **options: Any
) -> AsyncIterator[tuple[Flow, Connection]]:
    """A tunnel to a target that the test plays itself: (client's flow, target's connection)."""
    async with Target() as target, await connect(process, transport, **options) as session:
        tunnel = await session.open(tunnel_request(protocol, target.host, target.port))
        connection = await target.accept()
        answer = await tunnel.answer()
        assert answer.status == success(transport, protocol), (answer.status, answer.body)
        yield Flow(tunnel, protocol), connection


def success(transport: str, protocol: str) -> int:
    """The status of an accepted tunnel."""
    return 101 if transport in ("h1", "h1tls") and protocol != "connect" else 200
