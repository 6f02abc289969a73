"""Windows that are never opened, or opened wide and never read: neighbours, memory and targets are not hurt."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aioquic.quic.connection import QuicConnection
from peers.flow import Flow
from peers.h2 import H2Session
from peers.h3 import H3Session, H3Tunnel
from peers.matrix import PROTOCOLS, connect
from peers.model import tunnel_request
from peers.process import RelayProcess, StartRelay, until
from peers.target import Connection, Target, echo

MIB = 1 << 20
DEFAULT_WINDOW = 65_535


@pytest.fixture(scope="module")
def impatient(launch: StartRelay) -> RelayProcess:
    """A relay with short time-outs."""
    return launch(limits={"header_timeout": "1s", "idle_timeout": "2s"})


# Whoever reserves room in the connection's window and does not use it stops all others.
@pytest.mark.parametrize("transport", ["h2", "h2c"])
@pytest.mark.parametrize("window", [DEFAULT_WINDOW, MIB])
async def test_quiet_tunnels_keep_no_credit_from_their_neighbours(
    relay: RelayProcess, transport: str, protocol: str, window: int
) -> None:
    endpoint = relay.endpoint(transport)
    async with (
        Target() as quiet,
        Target(echo) as lively,
        await H2Session.connect(endpoint, window=window, credit=DEFAULT_WINDOW) as session,
    ):
        for size in (0, 1, 10, 1000):
            for half_closed in (False, True):
                flow = Flow(await session.open(tunnel_request(protocol, quiet.host, quiet.port)), protocol)
                connection = await quiet.accept()
                await connection.send(b"q" * size)
                assert await flow.read_exactly(size) == b"q" * size
                if half_closed:
                    await connection.finish()
                    assert await flow.read_to_fin() == b""
        neighbour = Flow(await session.open(tunnel_request(protocol, lively.host, lively.port)), protocol)
        for length in (5, 3000, 30_000):
            await neighbour.write(b"n" * length)
            async with asyncio.timeout(5):
                assert await neighbour.read_exactly(length) == b"n" * length


def wakeups(relay: RelayProcess) -> int:
    """How often the relay's threads were woken so far."""
    total = 0
    for thread in Path(f"/proc/{relay.process.pid}/task").iterdir():
        status = (thread / "status").read_text()
        total += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return total


async def dribble(relay: RelayProcess, connections: list[Connection], limit: int) -> bool:
    """Byte after byte, until the relay takes no more of any or has got too large; whether it takes no more."""
    for _ in range(20):
        for _ in range(1000):
            for connection in connections:
                await connection.send(b"b")
            # Time for the relay to take each byte by itself.
            await asyncio.sleep(0)
        # What is unread for so long will stay so.
        if not await until(lambda: any(connection.unread == 0 for connection in connections), 0.3):
            return True
        if relay.resident > limit:
            return False
    return False


@pytest.mark.timeout(60)
async def test_small_pieces_for_a_deaf_client_cost_next_to_nothing(launch: StartRelay, protocol: str) -> None:
    # Until they are acknowledged, the relay has to keep all pieces: in no more room than they need, and at rest.
    relay = launch(workers=1)
    async with Target() as target, await connect(relay, "h3", window=16 * MIB) as session:
        assert isinstance(session, H3Session)
        connections = []
        for _ in range(4):
            tunnel = await session.open(tunnel_request(protocol, target.host, target.port))
            connections.append(await target.accept())
            assert (await tunnel.answer()).status == 200
        before = relay.resident
        transport: Any = session.protocol._transport
        loop: Any = asyncio.get_running_loop()
        loop._remove_reader(transport._sock_fd)
        held_back = await dribble(relay, connections, before + 64 * MIB)
        assert relay.resident - before < 8 * MIB, f"{(relay.resident - before) / MIB:.1f} MiB"
        assert held_back, "the targets are not held back"
        # A pause to measure in: nothing moves, so hardly anything may wake the relay.
        woken = wakeups(relay)
        await asyncio.sleep(1)
        assert wakeups(relay) - woken < 300
    relay.stop()


def patient(monkeypatch: pytest.MonkeyPatch, attribute: str, value: int) -> None:
    """Clients start with this value for a transport parameter of theirs."""
    original = QuicConnection.__init__

    def init(self: Any, **options: Any) -> None:
        original(self, **options)
        limit = getattr(self, attribute)
        if isinstance(limit, int):
            setattr(self, attribute, value)
        else:
            limit.value = value

    monkeypatch.setattr(QuicConnection, "__init__", init)


async def test_answers_without_credit_are_given_up(
    impatient: RelayProcess, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors = impatient.descriptors
    patient(monkeypatch, "_local_max_stream_data_bidi_local", 0)
    async with Target() as target, await connect(impatient, "h3") as session:
        tunnels = [await session.open(tunnel_request(protocol, target.host, target.port)) for _ in range(10)]
        connections = [await target.accept() for _ in tunnels]
        async with asyncio.timeout(5):
            for connection in connections:
                await connection.read_to_end()
            for tunnel in tunnels:
                assert (await tunnel.drained())[1].kind == "reset"
    assert await impatient.settled_descriptors(descriptors) <= descriptors


async def test_refusals_without_credit_are_given_up(impatient: RelayProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch, "_local_max_stream_data_bidi_local", 0)
    async with await connect(impatient, "h3") as session:
        tunnels = [await session.open(tunnel_request("connect", "10.0.0.1", 443)) for _ in range(10)]
        async with asyncio.timeout(5):
            for tunnel in tunnels:
                assert (await tunnel.drained())[1].kind == "reset"


async def test_a_connection_that_takes_no_control_stream_is_closed(
    impatient: RelayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(monkeypatch, "_local_max_streams_uni", 0)
    async with await H3Session.connect(impatient.endpoint("h3"), wait=False) as session:
        async with asyncio.timeout(5):
            await session.over.wait()
        assert session.terminated is not None
        assert session.settings is None


async def test_a_control_stream_without_credit_is_given_up(
    impatient: RelayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(monkeypatch, "_local_max_stream_data_uni", 0)
    async with await H3Session.connect(impatient.endpoint("h3"), wait=False) as session:
        async with asyncio.timeout(5):
            await session.over.wait()
        assert session.settings is None


@pytest.mark.parametrize("transport", ["h2", "h2c", "h3"])
async def test_tunnels_without_credit_end_in_time(impatient: RelayProcess, transport: str) -> None:
    # The answer gets through, no byte behind it does.
    window = 1024 if transport == "h3" else 0
    async with Target() as target, await connect(impatient, transport, window=window) as session:
        connections = []
        for protocol in PROTOCOLS:
            tunnel = await session.open(tunnel_request(protocol, target.host, target.port))
            connections.append(await target.accept())
            assert (await tunnel.answer()).status == 200
            if isinstance(tunnel, H3Tunnel):
                tunnel.stall()
            await connections[-1].send(bytes(100_000))
        async with asyncio.timeout(6):
            for connection in connections:
                await connection.read_to_end()
