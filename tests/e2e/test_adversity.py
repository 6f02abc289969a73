"""Slow, stuck, vanished and half-dead peers: what was promised still arrives, and what is over ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import time

import pytest
from peers.capsule import DATA_TYPES, capsule
from peers.flow import Flow
from peers.h1 import H1Session
from peers.h2 import H2Session
from peers.h3 import H3Session
from peers.matrix import STREAMED, TARGET_RESET, TRANSPORTS, connect, established, success
from peers.model import CLEAN, End, Request, Session, tunnel_request
from peers.process import RelayProcess, StartRelay, until
from peers.target import BlackHole, Connection, Target, echo
from peers.wire import TcpWire, TlsWire

TCP = "connect-tcp-12"
MIB = 1 << 20


# = connect-tcp §3 forward-partial
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_first_bytes_of_a_long_capsule_do_not_wait(relay: RelayProcess, transport: str) -> None:
    data = DATA_TYPES[TCP][0]
    async with established(relay, transport, TCP) as (flow, target):
        times = []
        for number in range(5):
            began = time.perf_counter()
            head = capsule(data, length=1 << 40) if number == 0 else b""
            await flow.tunnel.send(head + b"hello")
            assert await target.read_exactly(5) == b"hello"
            times.append(time.perf_counter() - began)
        assert times[0] < 0.1
        assert sorted(times)[2] < 0.05


@pytest.mark.parametrize("transport", ["h2", "h2c"])
@pytest.mark.parametrize("window", [65_535, MIB])
@pytest.mark.parametrize("size", [1, 1000])
async def test_a_quiet_tunnel_keeps_no_credit_from_its_neighbours(
    relay: RelayProcess, transport: str, protocol: str, window: int, size: int
) -> None:
    # The connection's window is the default one: whoever reserves it and does not use it stops all others.
    endpoint = relay.endpoint(transport)
    async with (
        Target() as quiet,
        Target(echo) as busy,
        await H2Session.connect(endpoint, window=window, credit=65_535) as session,
    ):
        first = Flow(await session.open(tunnel_request(protocol, quiet.host, quiet.port)), protocol)
        connection = await quiet.accept()
        await connection.send(b"q" * size)
        assert await first.read_exactly(size) == b"q" * size
        second = Flow(await session.open(tunnel_request(protocol, busy.host, busy.port)), protocol)
        for length in (5, 3000, 30_000):
            await second.write(b"b" * length)
            async with asyncio.timeout(5):
                assert await second.read_exactly(length) == b"b" * length


@pytest.mark.parametrize("transport", ["h2c", "h3"])
async def test_small_pieces_pin_no_large_buffers(launch: StartRelay, transport: str) -> None:
    # The client takes nothing from its socket any more while the target writes byte after byte.
    relay = launch()
    async with Target() as target, await connect(relay, transport, window=16 * MIB) as session:
        await session.open(tunnel_request(TCP, target.host, target.port))
        connection = await target.accept()
        await connection.send(b"x")
        tunnel = next(iter(session.streams.values()))  # type: ignore[attr-defined]
        await tunnel.recv()
        before = relay.resident
        loop = asyncio.get_running_loop()
        if isinstance(session, H3Session):
            loop._remove_reader(session.protocol._transport._sock_fd)  # type: ignore[attr-defined]
        else:
            assert isinstance(session, H2Session)
            assert session.reader is not None
            session.reader.cancel()
        for number in range(12_000):
            await connection.send(b"y")
            if number % 20 == 0:
                await asyncio.sleep(0)
        assert relay.resident - before < 16 * MIB
    relay.stop()


@pytest.mark.parametrize("transport", ["h1tls", *STREAMED])
async def test_an_early_answer_survives_the_reset_behind_it(relay: RelayProcess, transport: str, protocol: str) -> None:
    # A server that answers at once and closes with the upload unread: its kernel sends RST after the answer.
    answer = random.Random(4).randbytes(20_026)
    async with established(relay, transport, protocol) as (flow, target):

        async def upload() -> None:
            with contextlib.suppress(OSError):
                await flow.write(bytes(2_000_000), 65536)

        sender = asyncio.create_task(upload())
        await target.read_exactly(10)
        await target.send(answer)
        await target.close()
        received = bytearray()
        while data := await flow.read():
            received += data
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        assert bytes(received) == answer
        assert not flow.fin, "an aborted answer must not look whole"
        assert flow.tunnel.end == TARGET_RESET[transport]


async def test_an_aborted_answer_never_looks_whole(relay: RelayProcess, protocol: str) -> None:
    # Over cleartext HTTP/1.1 a RST may overtake bytes in the client's own kernel; it still is a RST.
    for _ in range(5):
        async with established(relay, "h1", protocol) as (flow, target):

            async def upload(flow: Flow = flow) -> None:
                with contextlib.suppress(OSError):
                    await flow.write(bytes(2_000_000), 65536)

            sender = asyncio.create_task(upload())
            await target.read_exactly(10)
            await target.send(bytes(20_000))
            await target.close()
            while await flow.read():
                pass
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            assert not flow.fin
            assert flow.tunnel.end == TARGET_RESET["h1"]


async def test_urgent_data_stops_nothing(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with established(relay, transport, protocol) as (flow, target):
        await target.send(b"abc")
        target.sock.send(b"!", socket.MSG_OOB)
        await target.send(b"def")
        async with asyncio.timeout(3):
            assert await flow.read_exactly(6) == b"abcdef"
        await target.send(b"ghi")
        async with asyncio.timeout(3):
            assert await flow.read_exactly(3) == b"ghi"


@pytest.mark.parametrize("fin", [False, True], ids=["open", "after its FIN"])
async def test_a_client_that_vanishes_while_the_target_does_not_read(
    relay: RelayProcess, transport: str, protocol: str, fin: bool
) -> None:
    async with established(relay, transport, protocol) as (flow, target):
        if fin:
            await target.finish()
            assert await flow.read_to_fin() == b""
        sender = asyncio.create_task(flow.write(bytes(12 * MIB), 65536))
        await asyncio.wait([sender], timeout=0.5)
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        assert not target.broken
        session = flow.tunnel.session  # type: ignore[attr-defined]
        if isinstance(session, H1Session) and isinstance(session.wire, TlsWire):
            # An end without close_notify would wait behind the bytes that nobody takes.
            await session.wire.reset()
        else:
            await flow.tunnel.abort()
        assert await until(lambda: target.broken, 5), "the target's connection is still open"


@pytest.mark.timeout(60)
async def test_a_clean_end_waits_for_a_slow_reader(relay: RelayProcess) -> None:
    size = 3_000_000

    async def one(transport: str, protocol: str) -> None:
        options = {"receive_buffer": 65536} if transport.startswith("h1") else {}
        async with established(relay, transport, protocol, **options) as (flow, target):
            await flow.write_final(b"request")
            assert await target.read_to_end() == b"request"
            await target.send(bytes(size))
            await target.finish()
            # Nothing tells when the relay's patience would have ended: only time does.
            await asyncio.sleep(7)
            assert len(await flow.read_to_fin()) == size
            assert await flow.closed() == CLEAN

    await asyncio.gather(*(one(transport, TCP) for transport in ("h1", "h1tls", "h2")), one("h1", "connect"))


@pytest.fixture(scope="module")
def impatient(launch: StartRelay) -> RelayProcess:
    return launch(limits={"header_timeout": "1s", "idle_timeout": "1s"})


async def test_an_h3_client_without_credit_is_given_up(impatient: RelayProcess) -> None:
    descriptors = impatient.descriptors
    endpoint = impatient.endpoint("h3")
    async with Target() as target, await H3Session.connect(endpoint, answer_window=0) as session:
        for _ in range(5):
            tunnel = await session.open(tunnel_request("connect", target.host, target.port))
            tunnel.stall()
        connections = [await target.accept() for _ in range(5)]
        assert await until(lambda: over(connections), 8)
    assert await impatient.settled_descriptors(descriptors) <= descriptors


async def test_an_h3_client_that_takes_no_control_stream_is_given_up(impatient: RelayProcess) -> None:
    async with await H3Session.connect(impatient.endpoint("h3"), window=0, wait=False) as session:
        async with asyncio.timeout(5):
            await session.over.wait()


def over(connections: list[Connection]) -> bool:
    """Whether the peers have closed or ended their direction (CLOSE, CLOSE_WAIT)."""
    return all(wire.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in (7, 8) for wire in connections)


@pytest.mark.parametrize("transport", ["h1", "h1tls"])
async def test_a_client_that_never_reads_its_answers_is_given_up(impatient: RelayProcess, transport: str) -> None:
    descriptors = impatient.descriptors
    session = await connect(impatient, transport, receive_buffer=4096)
    assert isinstance(session, H1Session)

    async def write() -> None:
        with contextlib.suppress(OSError):
            await session.wire.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" * 150_000)

    writer = asyncio.create_task(write())
    assert await until(lambda: impatient.descriptors > descriptors, 3)
    assert await impatient.settled_descriptors(descriptors, timeout=10) <= descriptors
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    await session.close()


async def test_an_idle_tunnel_ends_in_time(impatient: RelayProcess, transport: str, protocol: str) -> None:
    async with established(impatient, transport, protocol) as (flow, target):
        await flow.write(b"x")
        assert await target.read_exactly(1) == b"x"
        async with asyncio.timeout(8):
            await target.read_to_end()
            await flow.closed()


# Long payloads are moved inside the kernel, which may be told that more follows: where nothing does, nothing waits for it.
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("behind", [b"", capsule(0x17, b"g" * 100), capsule(0x17, b"g" * 100)[:-60], b"\xa0\x28"])
async def test_the_last_of_long_payloads_does_not_wait(relay: RelayProcess, transport: str, behind: bytes) -> None:
    payload = random.Random(6).randbytes(80_000)
    async with established(relay, transport, TCP) as (flow, target):
        await flow.write(b"first")
        assert await target.read_exactly(5) == b"first"
        times = []
        for size in (80_000, 40_000, 33_000, 79_999, 60_000):
            data = b"".join(capsule(DATA_TYPES[TCP][0], payload[:size]) for _ in range(4))
            began = time.perf_counter()
            await flow.tunnel.send(data + capsule(0x17, b"g" * 50))
            assert await target.read_exactly(4 * size) == payload[:size] * 4
            times.append(time.perf_counter() - began)
        await flow.tunnel.send(b"".join(capsule(DATA_TYPES[TCP][0], payload) for _ in range(4)) + behind)
        assert await target.read_exactly(4 * 80_000) == payload * 4
        assert sorted(times)[2] < 0.15, "held back for the length of a timer"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_no_payload_keeps_a_tunnel_alive(impatient: RelayProcess, transport: str) -> None:
    async with established(impatient, transport, TCP) as (flow, target):
        until_then = time.monotonic() + 2.5
        while time.monotonic() < until_then:
            await flow.tunnel.send(capsule(0x17, b"grease"))
            await asyncio.sleep(0.1)
        await flow.write(b"still here")
        assert await target.read_exactly(10) == b"still here"


@pytest.mark.parametrize("transport", ["h1", "h1tls"])
async def test_a_client_that_resets_before_the_answer_resets_the_target(
    relay: RelayProcess, transport: str, protocol: str
) -> None:
    # Not every try meets the moment between the connection and the answer; a clean end is wrong at any of them.
    async with Target() as target:
        for _ in range(20):
            session = await connect(relay, transport)
            assert isinstance(session, H1Session)
            await session.open(tunnel_request(protocol, target.host, target.port))
            tcp = session.wire.tcp if isinstance(session.wire, TlsWire) else session.wire
            assert isinstance(tcp, TcpWire)
            await tcp.abort()
            with contextlib.suppress(TimeoutError):
                connection = await target.accept(0.3)
                await connection.read_to_end()
                assert connection.end == End("reset")
            await session.close()


@pytest.mark.parametrize("transport", ["h2", "h3"])
async def test_a_refusal_that_is_not_taken_is_given_up(impatient: RelayProcess, transport: str) -> None:
    session: Session
    if transport == "h2":
        session = await H2Session.connect(impatient.endpoint("h2"), window=0)
    else:
        session = await H3Session.connect(impatient.endpoint("h3"), answer_window=0)
    async with session:
        tunnels = [await session.open(Request("GET", "/x")) for _ in range(5)]
        async with asyncio.timeout(6):
            for tunnel in tunnels:
                _, end = await tunnel.drained()
                assert end.kind == "reset"


async def test_an_h3_client_that_takes_no_100_is_given_up(impatient: RelayProcess) -> None:
    async with await H3Session.connect(impatient.endpoint("h3"), answer_window=0) as session:
        request = tunnel_request(TCP, "127.0.0.1", 9).adding(("expect", "100-continue"))
        tunnel = await session.open(request)
        async with asyncio.timeout(6):
            _, end = await tunnel.drained()
        assert end.kind == "reset"


async def test_reloads_cost_nothing_that_stays(launch: StartRelay) -> None:
    relay = launch()
    rounds = 12
    async with Target(echo) as target:
        sessions = []
        threads, descriptors = relay.threads, relay.descriptors
        for number in range(rounds):
            session = await connect(relay, "h2c")
            sessions.append(session)
            tunnel = await session.open(tunnel_request(TCP, target.host, target.port))
            assert (await tunnel.answer()).status == 200
            relay.signal(signal.SIGHUP)
            assert await until(lambda number=number: relay.stderr().count("reloaded") > number)  # type: ignore[misc]
        # A tunnel has two descriptors; a log of before may still be on its way out.
        assert await relay.settled_descriptors(descriptors + 2 * rounds + 2) <= descriptors + 2 * rounds + 2
        assert await until(lambda: relay.threads <= threads + 3)
        for session in sessions:
            await session.close()
    relay.stop()


def two_families() -> tuple[BlackHole, Target]:
    """An IPv6 listener that gives no answer and an IPv4 echo, at the same port."""
    while True:
        hole = BlackHole("::1")
        try:
            return hole, Target(echo, port=hole.port)
        except OSError:
            hole.close()


# = rfc8305 §5 attempt-delay
async def test_a_silent_address_costs_a_quarter_of_a_second(relay: RelayProcess, transport: str, protocol: str) -> None:
    # both.test: IPv6 comes first, and gives no answer at all.
    hole, listening = two_families()
    with hole:
        async with listening as target, await connect(relay, transport) as session:
            began = time.perf_counter()
            tunnel = await session.open(tunnel_request(protocol, "both.test", target.port))
            answer = await tunnel.answer()
            assert answer.status == success(transport, protocol), answer.body
            assert 0.2 < time.perf_counter() - began < 0.9
            assert 'next-hop="127.0.0.1"' in answer.proxy_status
