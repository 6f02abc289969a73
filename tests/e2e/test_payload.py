"""Payload through every cell of the matrix arrives as it was sent."""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest
from peers.capsule import DATA_TYPES, capsule, grease
from peers.flow import Flow
from peers.matrix import TRANSPORTS, connect, established, success
from peers.model import CLEAN, tunnel_request
from peers.process import RelayProcess
from peers.target import Target, echo

SIZES = (0, 1, 63, 64, 1199, 16383, 16384, 65536, 1_000_003, 16 << 20)
TCP = "connect-tcp-12"


async def whole_exchange(relay: RelayProcess, transport: str, protocol: str, payload: bytes, piece: int | None) -> None:
    async with Target(echo) as target, await connect(relay, transport) as session:
        tunnel = await session.open(tunnel_request(protocol, target.host, target.port))
        assert (await tunnel.answer()).status == success(transport, protocol)
        flow = Flow(tunnel, protocol)

        async def upload() -> None:
            await flow.write(payload, piece)
            await flow.write_final()

        sender = asyncio.create_task(upload())
        received = await flow.read_to_fin()
        await sender
        assert len(received) == len(payload)
        assert hashlib.sha256(received).digest() == hashlib.sha256(payload).digest()
        await flow.end()
        assert await flow.closed() == CLEAN


@pytest.mark.parametrize("size", SIZES)
async def test_echo_of_random_payload(relay: RelayProcess, transport: str, protocol: str, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    await whole_exchange(relay, transport, protocol, payload, 100_000)


async def test_both_directions_at_once_are_independent(relay: RelayProcess, transport: str, protocol: str) -> None:
    up, down = random.Random(1).randbytes(3 << 20), random.Random(2).randbytes(5 << 20)
    async with established(relay, transport, protocol) as (flow, target):

        async def upload() -> None:
            await flow.write(up, 65536)
            await flow.write_final()

        async def serve() -> None:
            await target.send(down)
            await target.finish()

        _, _, received, delivered = await asyncio.gather(upload(), serve(), flow.read_to_fin(), target.read_to_end())
        assert received == down
        assert delivered == up
        assert target.end == CLEAN


# = connect-tcp §3 payload-is-stream
# = connect-tcp §3 forward-partial
# = rfc9297 §3.2 capsule-format
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_split_anywhere_changes_nothing(relay: RelayProcess, transport: str) -> None:
    data, final = DATA_TYPES[TCP]
    stream = (
        capsule(data, b"one")
        + capsule(grease(1), b"xyz")
        + capsule(data)
        + capsule(data, b"two" * 30)
        + capsule(final, b"end")
    )
    expected = b"one" + b"two" * 30 + b"end"
    async with Target() as target, await connect_many(relay, transport, len(stream)) as sessions:
        for cut, session in enumerate(sessions):
            tunnel = await session.open(tunnel_request(TCP, target.host, target.port))
            connection = await target.accept()
            assert (await tunnel.answer()).status == success(transport, TCP)
            await tunnel.send(stream[:cut])
            if cut >= 7:
                # The rest waits until the first payload has passed: the pieces cannot be read together.
                assert await connection.read_exactly(min(cut - 5, 3)) == b"one"[: cut - 5]
            await tunnel.send(stream[cut:])
            rest = await connection.read_to_end()
            assert rest == expected[min(cut - 5, 3) if cut >= 7 else 0 :]
            assert connection.end == CLEAN
            await connection.finish()
            await tunnel.finish()
            await connection.close()


class connect_many:
    """As many tunnels' worth of sessions as asked: one connection for all where the version can share it."""

    def __init__(self, relay: RelayProcess, transport: str, count: int) -> None:
        self.relay, self.transport, self.count = relay, transport, count

    def __await__(self):  # type: ignore[no-untyped-def]
        return self.start().__await__()

    async def start(self) -> connect_many:
        shared = self.transport not in ("h1", "h1tls")
        opened = [await connect(self.relay, self.transport) for _ in range(1 if shared else self.count)]
        self.opened = opened
        self.sessions = opened * self.count if shared else opened
        return self

    async def __aenter__(self):  # type: ignore[no-untyped-def]
        return self.sessions

    async def __aexit__(self, *_: object) -> None:
        for session in self.opened:
            await session.close()


# = rfc9297 §3.2 skip-unknown
# = rfc9297 §5.4 skip-grease
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_unknown_and_grease_capsules_are_skipped(relay: RelayProcess, transport: str) -> None:
    data, final = DATA_TYPES[TCP]
    other = DATA_TYPES["connect-tcp-07"][0]
    between = [
        capsule(grease(0)),
        capsule(grease(1000), b"g" * 70),
        capsule(other, b"the other profile's DATA is unknown here"),
        capsule(0x3FFFFFFFFFFFFFFF, b"largest type"),
        capsule(grease(5), b"z" * 200_000),
    ]
    async with established(relay, transport, TCP) as (flow, target):
        for number, extra in enumerate(between):
            await flow.tunnel.send(extra + capsule(data, b"%d" % number))
            assert await target.read_exactly(1) == b"%d" % number
        await flow.tunnel.send(capsule(final) + capsule(grease(3), b"after the FIN other capsules stay legal"))
        assert await target.read_to_end() == b""
        assert target.end == CLEAN
        await target.send(b"still open this way")
        assert await flow.read_exactly(19) == b"still open this way"


# = rfc9000 §16 varint
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [4, 8])
async def test_longer_varints_than_needed_are_accepted(relay: RelayProcess, transport: str, size: int) -> None:
    data, final = DATA_TYPES[TCP]
    async with established(relay, transport, TCP) as (flow, target):
        await flow.tunnel.send(capsule(data, b"abc", kind_size=size, length_size=size))
        assert await target.read_exactly(3) == b"abc"
        await flow.tunnel.send(capsule(grease(0), b"12", kind_size=size, length_size=size))
        await flow.tunnel.send(capsule(final, b"def", kind_size=8, length_size=2))
        assert await target.read_to_end() == b"def"
        assert target.end == CLEAN


# = rfc9297 §3.2 never-accumulate
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("length", [(1 << 62) - 1, 1 << 40])
async def test_a_capsule_of_huge_length_streams_through(relay: RelayProcess, transport: str, length: int) -> None:
    data, _ = DATA_TYPES[TCP]
    payload = random.Random(7).randbytes(4 << 20)
    async with established(relay, transport, TCP) as (flow, target):
        sender = asyncio.create_task(flow.tunnel.send(capsule(data, payload, length=length)))
        assert await target.read_exactly(len(payload)) == payload
        await sender
        await target.send(b"answer")
        assert await flow.read_exactly(6) == b"answer"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_unknown_capsule_of_huge_length_is_dropped_as_it_comes(relay: RelayProcess, transport: str) -> None:
    async with established(relay, transport, TCP) as (flow, target):
        await flow.write(b"before")
        assert await target.read_exactly(6) == b"before"
        await flow.tunnel.send(capsule(grease(9), b"u" * (4 << 20), length=(1 << 62) - 1))
        await target.send(b"fine")
        assert await flow.read_exactly(4) == b"fine"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_many_small_capsules(relay: RelayProcess, transport: str) -> None:
    data, final = DATA_TYPES[TCP]
    payload = random.Random(3).randbytes(60_000)
    generator = random.Random(4)
    parts, at = [], 0
    while at < len(payload):
        step = generator.choice((0, 1, 1, 2, 3, 17))
        parts.append(capsule(data, payload[at : at + step]))
        at += step
    parts.append(capsule(final))
    stream = b"".join(parts)
    async with established(relay, transport, TCP) as (flow, target):

        async def upload() -> None:
            at = 0
            while at < len(stream):
                step = generator.choice((1, 2, 500, 9000))
                await flow.tunnel.send(stream[at : at + step])
                at += step

        sender = asyncio.create_task(upload())
        assert await target.read_to_end() == payload
        assert target.end == CLEAN
        await sender


# = connect-tcp §8.1.1 interop-token
# = connect-tcp §8.3.1 interop-capsule-types
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_older_interop_profile(relay: RelayProcess, transport: str) -> None:
    await whole_exchange(relay, transport, "connect-tcp-07", random.Random(5).randbytes(300_000), 7_000)


@pytest.mark.parametrize("name", ["four.test", "six.test", "both.test", "localhost"])
async def test_targets_by_name_and_by_family(relay: RelayProcess, transport: str, protocol: str, name: str) -> None:
    async with (
        Target(echo, "::1" if name == "six.test" else "127.0.0.1") as target,
        await connect(relay, transport) as session,
    ):
        tunnel = await session.open(tunnel_request(protocol, name, target.port))
        answer = await tunnel.answer()
        assert answer.status == success(transport, protocol), answer.body
        assert (
            f'next-hop="{target.host}"' in answer.proxy_status or f'next-hop="[{target.host}]"' in answer.proxy_status
        )
        flow = Flow(tunnel, protocol)
        await flow.write(b"hello")
        assert await flow.read_exactly(5) == b"hello"


async def test_an_ipv6_literal(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with Target(echo, "::1") as target, await connect(relay, transport) as session:
        tunnel = await session.open(tunnel_request(protocol, "::1", target.port))
        answer = await tunnel.answer()
        assert answer.status == success(transport, protocol), answer.body
        flow = Flow(tunnel, protocol)
        await flow.write(b"hello")
        assert await flow.read_exactly(5) == b"hello"
