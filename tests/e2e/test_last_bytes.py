"""The first and the last bytes of a tunnel: none is held back, none is lost, and a reset never looks like an end."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from peers.capsule import DATA_TYPES, capsule
from peers.matrix import STREAMED, TARGET_RESET, TRANSPORTS, established
from peers.model import CLEAN, End
from peers.process import RelayProcess, until

TCP = "connect-tcp-12"


def stopped(relay: RelayProcess) -> bool:
    """Whether every thread of the relay stands still."""
    threads = Path(f"/proc/{relay.process.pid}/task").iterdir()
    return all((thread / "stat").read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


@asynccontextmanager
async def standing_still(relay: RelayProcess) -> AsyncIterator[None]:
    """What the peers do meanwhile reaches the relay all at once: it cannot act between two of their steps."""
    relay.signal(signal.SIGSTOP)
    try:
        assert await until(lambda: stopped(relay))
        yield
    finally:
        relay.signal(signal.SIGCONT)


# The kernel would keep what was promised more of for 200 ms, every time: the best of a few tries tells.
# = connect-tcp §3 forward-partial
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_start_of_an_endless_capsule_leaves_at_once(relay: RelayProcess, transport: str) -> None:
    times = []
    for _ in range(3):
        async with established(relay, transport, TCP) as (flow, target):
            began = time.perf_counter()
            await flow.tunnel.send(capsule(DATA_TYPES[TCP][0], b"hello", length=1 << 40))
            assert await target.read_exactly(5) == b"hello"
            times.append(time.perf_counter() - began)
            await flow.tunnel.send(b"more")
            assert await target.read_exactly(4) == b"more"
    assert min(times) < 0.1, times


# = connect-tcp §3 forward-partial
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_start_of_every_long_capsule_leaves_at_once(relay: RelayProcess, transport: str) -> None:
    times = []
    async with established(relay, transport, TCP) as (flow, target):
        for _ in range(4):
            began = time.perf_counter()
            await flow.tunnel.send(capsule(DATA_TYPES[TCP][0], b"h" * 100, length=40_000))
            assert await target.read_exactly(100) == b"h" * 100
            times.append(time.perf_counter() - began)
            await flow.tunnel.send(b"t" * 39_900)
            assert await target.read_exactly(39_900) == b"t" * 39_900
    assert min(times) < 0.1, times


# A server that answers early and closes with the upload unread: its kernel sends RST behind the answer.
# = connect-tcp §3.4 abrupt-close-h3
# = connect-tcp §3.4 abrupt-close-h2
# = connect-tcp §3.4 abrupt-close-h1-tls
# = connect-tcp §3.4 abrupt-close-h1
@pytest.mark.parametrize("upload", [0, 1000, 256 * 1024], ids=["quiet", "short upload", "long upload"])
async def test_an_answer_before_a_reset_arrives_and_the_reset_shows(
    relay: RelayProcess, transport: str, protocol: str, upload: int
) -> None:
    answer = random.Random(upload).randbytes(20_026)
    async with established(relay, transport, protocol) as (flow, target):
        ends: list[End] = []
        if transport in STREAMED:
            # An END_STREAM ahead of the RST_STREAM would be forgotten by then.
            finished = flow.tunnel.finished  # type: ignore[attr-defined]

            def note(end: End) -> None:
                ends.append(end)
                finished(end)

            flow.tunnel.finished = note  # type: ignore[attr-defined]
        await flow.write(b"ready")
        assert await target.read_exactly(5) == b"ready"
        async with standing_still(relay):
            # The relay then finds all of it together: upload to pass on, an answer, and a connection that is broken.
            async with asyncio.timeout(5):
                await flow.write(bytes(upload), 65536)
                await target.send(answer)
            await target.abort()
        received = bytearray()
        while data := await flow.read():
            received += data
        assert not flow.fin, "an answer that was cut off must not look whole"
        assert flow.tunnel.end == TARGET_RESET[transport]
        assert ends in ([], [TARGET_RESET[transport]])
        assert bytes(received) == answer


# recv(2) stops at the urgent mark with more behind it, splice(2) never passes it.
async def test_urgent_data_of_the_target_holds_nothing_up(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with established(relay, transport, protocol) as (flow, target):
        await target.send(b"abc")
        assert await flow.read_exactly(3) == b"abc"
        target.sock.send(b"!", socket.MSG_OOB)
        await target.send(b"def")
        async with asyncio.timeout(5):
            assert await flow.read_exactly(3) == b"def"
        async with standing_still(relay):
            await target.send(b"ghi")
            target.sock.send(b"!", socket.MSG_OOB)
            await target.send(b"jkl")
        async with asyncio.timeout(5):
            assert await flow.read_exactly(6) == b"ghijkl"
        await target.send(b"mno" * 50_000)
        async with asyncio.timeout(5):
            assert await flow.read_exactly(150_000) == b"mno" * 50_000


async def test_urgent_data_of_the_client_holds_nothing_up(relay: RelayProcess, protocol: str) -> None:
    async with established(relay, "h1", protocol) as (flow, target):
        client: socket.socket = flow.tunnel.session.wire.sock  # type: ignore[attr-defined]
        await flow.write(b"abc")
        assert await target.read_exactly(3) == b"abc"
        # Inside a capsule just as between two of them.
        whole = flow.encode(b"defghi")
        await flow.tunnel.send(whole[:-3])
        client.send(b"!", socket.MSG_OOB)
        await flow.tunnel.send(whole[-3:])
        async with asyncio.timeout(5):
            assert await target.read_exactly(6) == b"defghi"
        async with standing_still(relay):
            await flow.write(b"jkl")
            client.send(b"!", socket.MSG_OOB)
            await flow.write(b"mno")
        async with asyncio.timeout(5):
            assert await target.read_exactly(6) == b"jklmno"
        await flow.write(b"pqr" * 50_000)
        async with asyncio.timeout(5):
            assert await target.read_exactly(150_000) == b"pqr" * 50_000


# = connect-tcp §3.4 graceful-close
async def test_a_clean_end_reaches_a_reader_that_pauses(relay: RelayProcess) -> None:
    size = 3_000_000

    async def read_late(protocol: str) -> None:
        async with established(relay, "h1", protocol, receive_buffer=65536) as (flow, target):
            await flow.write_final(b"request")
            assert await target.read_to_end() == b"request"
            await target.send(bytes(size))
            await target.finish()
            # Longer than a relay may be tempted to wait. Nothing announces that, so there is only the clock.
            await asyncio.sleep(6)
            assert await flow.read_to_fin() == bytes(size)
            assert await flow.closed() == CLEAN

    await asyncio.gather(read_late(TCP), read_late("connect"))
