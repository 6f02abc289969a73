"""Clients that are slow on purpose, or gone without a word: each is given up in bounded time."""

from __future__ import annotations

import asyncio
import struct
import time

import pytest
from hyperframe.frame import PingFrame
from peers.flow import Flow
from peers.h2raw import RawH2, raw_frame
from peers.matrix import STREAMED, TRANSPORTS, connect, established
from peers.model import Request
from peers.process import RelayProcess, StartRelay, until
from peers.wire import TcpWire, TlsWire, Wire

MIB = 1 << 20
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def impatient(launch: StartRelay) -> RelayProcess:
    """A relay that waits a second for requests, and for its answers to be taken."""
    return launch(limits={"header_timeout": "1s"})


async def without_end(wire: Wire, data: bytes) -> None:
    """Sends for ever."""
    while True:
        await wire.send(data)


@pytest.mark.parametrize("transport", ["h1", "h1tls"])
@pytest.mark.parametrize(
    "asked", [GET, b"GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"], ids=["GET", "body"]
)
async def test_answers_that_nobody_reads_are_given_up(impatient: RelayProcess, transport: str, asked: bytes) -> None:
    descriptors = impatient.descriptors
    async with await connect(impatient, transport, receive_buffer=4096) as session:
        wire = session.wire  # type: ignore[attr-defined]
        # Requests go out as long as the relay takes them; the end comes as a reset, for some are unread.
        async with asyncio.timeout(10):
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                await without_end(wire, asked * 1000)
        async with await connect(impatient, transport) as other:
            assert (await other.ask(Request("GET", "/x"))).status == 404
    assert await impatient.settled_descriptors(descriptors) <= descriptors


async def stuck(flow: Flow) -> asyncio.Task[None]:
    """An upload that moves no more, for its target does not read."""
    sender = asyncio.create_task(flow.write(bytes(16 * MIB), 65536))
    await asyncio.wait([sender], timeout=0.4)
    return sender


# With HTTP/1.1 the stream is the connection; its FIN alone stays behind the upload, and unseen.
@pytest.mark.parametrize(
    ("transport", "how"),
    [(transport, "connection") for transport in TRANSPORTS] + [(transport, "stream") for transport in STREAMED],
)
async def test_a_client_that_vanishes_after_the_target_s_fin(
    relay: RelayProcess, transport: str, protocol: str, how: str
) -> None:
    async with established(relay, transport, protocol) as (flow, target):
        await target.send(b"bye")
        await target.finish()
        assert await flow.read_to_fin() == b"bye"
        sender = await stuck(flow)
        assert not target.broken
        session = flow.tunnel.session  # type: ignore[attr-defined]
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        if how == "stream":
            await flow.tunnel.abort()
            if transport == "h3":
                await flow.tunnel.stop()  # type: ignore[attr-defined]
        elif transport == "h3":
            session.protocol.close(0x100)
        elif isinstance(session.wire, TlsWire):
            await session.wire.reset()
        else:
            await session.wire.abort()
        assert await until(lambda: target.broken, 5), "the target's connection is still open"


PING = PingFrame(0, b"12345678").serialize()
# What comes at first, and what comes again and again (too seldom to count as a flood); nothing of the relay's is ever
# acknowledged.
SLOW_STARTS: dict[str, tuple[bytes, bytes]] = {
    "silence": (b"", b""),
    "PINGs": (PING, PING),
    "HEADERS without an end": (raw_frame(1, 0, 1, b"\x82"), b""),
    "CONTINUATION in drips": (raw_frame(1, 0, 1, b"\x82\x84\x87"), raw_frame(9, 0, 1, b"\x00\x01a\x01b")),
    "half a frame": (b"\x00\x40\x00\x01\x04", b""),
    "a frame in drips": (b"\x00\x40\x00\x01\x04\x00\x00\x00\x01", b"\x82"),
    "WINDOW_UPDATEs": (b"", raw_frame(8, 0, 0, struct.pack(">I", 1))),
}


async def lifetime(relay: RelayProcess, transport: str, first: bytes, again: bytes) -> float:
    """How long such a connection lives, in seconds."""
    async with await RawH2.connect(relay.endpoint(transport)) as session:
        began = time.monotonic()
        await session.send(first)

        async def drip() -> None:
            while again and await session.send(again):
                await asyncio.sleep(0.3)

        dripping = asyncio.create_task(drip())
        while await session.wire.recv():
            pass
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        return time.monotonic() - began


@pytest.mark.parametrize("transport", ["h2", "h2c"])
async def test_h2_connections_that_never_ask_end_in_time(impatient: RelayProcess, transport: str) -> None:
    async with asyncio.timeout(10):
        lives = await asyncio.gather(*(lifetime(impatient, transport, *start) for start in SLOW_STARTS.values()))
    found = dict(zip(SLOW_STARTS, lives, strict=True))
    assert all(0.7 < seconds < 5 for seconds in found.values()), found


async def test_h2_connections_in_the_middle_of_the_preface_end_in_time(impatient: RelayProcess) -> None:
    endpoint = impatient.endpoint("h2c")
    wire = await TcpWire.connect(endpoint.host, endpoint.port)
    await wire.send(b"PRI * HTTP/2.0\r\n\r\nSM")
    async with asyncio.timeout(5):
        while await wire.recv():
            pass
    await wire.close()
