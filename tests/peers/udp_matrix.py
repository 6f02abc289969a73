"""The matrix for connect-udp: transports, each with datagrams in capsules, and HTTP/3 with QUIC DATAGRAM frames too."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from .h3 import settings
from .matrix import TRANSPORTS, connect, success
from .process import RelayProcess
from .udp import Datagrams, UdpTarget, udp_request

#: Transport and form of a cell.
CELLS = [*((transport, "capsule") for transport in TRANSPORTS), ("h3", "frame")]
UDP = pytest.mark.parametrize(("transport", "form"), CELLS)


def is_free(address: tuple[str, int]) -> bool:
    """Whether nobody has this UDP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(address)
        except OSError:
            return False
        return True


@asynccontextmanager
async def opened(
    relay: RelayProcess, transport: str, form: str, target: UdpTarget, **options: object
) -> AsyncIterator[Datagrams]:
    """A tunnel to `target`. Whoever wants capsules on HTTP/3 does not announce that it takes frames."""
    if transport == "h3" and form == "capsule":
        options.setdefault("preface", settings({}))
    if transport == "h3":
        # What aioquic would send of its own accord has no room for 1,200 bytes of payload.
        options.setdefault("max_datagram_size", 1400)
    async with await connect(relay, transport, **options) as session:
        tunnel = await session.open(udp_request(target.host, target.port))
        answer = await tunnel.answer()
        assert answer.status == success(transport, "connect-udp"), (answer.status, answer.body)
        assert answer.get("capsule-protocol") == "?1"
        yield Datagrams(session, tunnel, form)
