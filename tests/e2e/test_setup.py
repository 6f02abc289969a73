"""From the request to the answer: order of events, optimistic data, Expect, and what a good answer looks like."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time

import pytest
from peers.capsule import DATA_TYPES, capsule
from peers.flow import Flow
from peers.matrix import STREAMED, TRANSPORTS, connect, success
from peers.model import CLEAN, path_to, tunnel_request
from peers.process import RelayProcess
from peers.target import BlackHole, Connection, Target, echo, unused_port

TCP = "connect-tcp-12"


# = connect-tcp §3.1 h1-success-101
# = connect-tcp §3.1 h1-success-connection
# = connect-tcp §3.1 h1-success-upgrade
# = connect-tcp §3.1 h1-success-capsule-protocol
# = connect-tcp §3.2 capsule-protocol-field
# = connect-tcp §3.3.1 no-origin-scoped-fields
# = connect-tcp §4.2 proxy-status
# = rfc9297 §3.2 no-content-fields
# = rfc9297 §3.2 no-204-205-206
# = rfc9297 §3.4 field-sent
# = rfc9110 §9.3.6 connect-no-content-fields
# = rfc9110 §6.6.1 date
# = rfc9209 §2 member
# = rfc9209 §2.1.2 next-hop
async def test_a_good_answer(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with Target(echo) as target, await connect(relay, transport) as session:
        tunnel = await session.open(tunnel_request(protocol, target.host, target.port))
        answer = await tunnel.answer()
        assert answer.status == success(transport, protocol)
        assert 'next-hop="127.0.0.1"' in answer.proxy_status
        assert "error" not in answer.proxy_status
        for name in ("content-length", "transfer-encoding", "content-type"):
            assert answer.get(name) is None
        for name in ("alt-svc", "strict-transport-security", "accept-ch", "set-cookie", "clear-site-data"):
            assert answer.get(name) is None
        if answer.status == 200:
            moment = email.utils.parsedate_to_datetime(answer.get("date") or "")
            assert abs(moment.timestamp() - time.time()) < 60
        if protocol == "connect":
            assert answer.get("capsule-protocol") is None
        else:
            assert answer.get("capsule-protocol") == "?1"
        if answer.status == 101:
            assert answer.get("upgrade") == protocol
            assert (answer.get("connection") or "").lower() == "upgrade"
        else:
            assert answer.get("upgrade") is None
            if transport in STREAMED:
                assert answer.get("connection") is None


# = rfc9297 §3.4 field-is-boolean
# = rfc9297 §3.4 field-parameters
# = connect-tcp §3.1 h1-request-capsule-protocol
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("value", [None, "?0", "?1;extra=1", "1", "junk"])
async def test_the_capsule_protocol_field_switches_nothing(
    relay: RelayProcess, transport: str, value: str | None
) -> None:
    async with Target(echo) as target, await connect(relay, transport) as session:
        request = tunnel_request(TCP, target.host, target.port)
        request.headers[:] = [item for item in request.headers if item[0] != "capsule-protocol"]
        if value is not None:
            request.headers.append(("capsule-protocol", value))
        tunnel = await session.open(request)
        assert (await tunnel.answer()).status == success(transport, TCP)
        flow = Flow(tunnel, TCP)
        await flow.write(b"capsules all the same")
        assert await flow.read_exactly(21) == b"capsules all the same"


# = connect-tcp §3.1 attempt-before-status
async def test_no_status_before_the_tcp_attempt_ended(relay: RelayProcess, transport: str, protocol: str) -> None:
    # The listener hears nothing until the test lets it: the attempt hangs, and so must the answer.
    with BlackHole() as hole:
        async with await connect(relay, transport) as session:
            tunnel = await session.open(tunnel_request(protocol, "127.0.0.1", hole.port))
            pending = asyncio.create_task(tunnel.answer())
            done, _ = await asyncio.wait([pending], timeout=0.4)
            assert not done, "an answer before the attempt ended"
            assert tunnel.interim == []

            async def take(connection: Connection) -> None:
                await connection.recv()

            doorman = asyncio.create_task(hole.admit(take))
            assert (await pending).status == success(transport, protocol)
            doorman.cancel()
            await asyncio.gather(doorman, return_exceptions=True)


# = connect-tcp §4.2 expect-continue
# = rfc9110 §10.1.1 expect-continue
async def test_expect_is_answered_at_once_and_then_finally(relay: RelayProcess, transport: str, protocol: str) -> None:
    with BlackHole() as hole:
        async with await connect(relay, transport) as session:
            request = tunnel_request(protocol, "127.0.0.1", hole.port).adding(("expect", "100-continue"))
            tunnel = await session.open(request)
            pending = asyncio.create_task(tunnel.answer())
            async with asyncio.timeout(2):
                while not tunnel.interim:
                    await asyncio.wait([pending], timeout=0.02)
            assert [answer.status for answer in tunnel.interim] == [100]
            assert not pending.done()

            async def take(connection: Connection) -> None:
                await connection.recv()

            doorman = asyncio.create_task(hole.admit(take))
            assert (await pending).status == success(transport, protocol)
            doorman.cancel()
            await asyncio.gather(doorman, return_exceptions=True)
            assert [answer.status for answer in tunnel.interim] == [100]


async def test_expect_before_a_tunnel(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with Target(echo) as target, await connect(relay, transport) as session:
        tunnel = await session.open(
            tunnel_request(protocol, target.host, target.port).adding(("expect", "100-continue"))
        )
        assert (await tunnel.answer()).status == success(transport, protocol)
        assert [answer.status for answer in tunnel.interim] == [100]
        flow = Flow(tunnel, protocol)
        await flow.write(b"hello")
        assert await flow.read_exactly(5) == b"hello"


async def test_no_100_where_the_answer_is_at_hand(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with await connect(relay, transport) as session:
        request = tunnel_request(protocol, "127.0.0.1", 9, credentials=None).adding(("expect", "100-continue"))
        tunnel = await session.open(request)
        assert (await tunnel.answer()).status in (401, 407)
        assert tunnel.interim == []
    # Denied as a port, and as an address.
    for host, port in (("127.0.0.1", 25), ("10.0.0.1", 80)):
        async with await connect(relay, transport) as session:
            tunnel = await session.open(tunnel_request(protocol, host, port).adding(("expect", "100-continue")))
            assert (await tunnel.answer()).status == 403
            assert tunnel.interim == []


# = connect-tcp §4.1 buffer-optimistic
@pytest.mark.parametrize("transport", STREAMED)
@pytest.mark.parametrize("size", [1, 1000, 60_000])
async def test_optimistic_data_is_delivered(relay: RelayProcess, transport: str, protocol: str, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    async with Target(echo) as target, await connect(relay, transport) as session:
        request = tunnel_request(protocol, target.host, target.port)
        data = payload if protocol == "connect" else capsule(DATA_TYPES[TCP][0], payload)
        tunnel = await session.open(request, optimistic=data)
        flow = Flow(tunnel, protocol)
        assert await flow.read_exactly(size) == payload
        await flow.write_final(b"!")
        assert await flow.read_to_fin() == b"!"
        await flow.end()
        assert await flow.closed() == CLEAN


@pytest.mark.parametrize("transport", STREAMED)
async def test_optimistic_data_with_its_fin(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with Target() as target, await connect(relay, transport) as session:
        data = b"all of it" if protocol == "connect" else capsule(DATA_TYPES[TCP][1], b"all of it")
        tunnel = await session.open(tunnel_request(protocol, target.host, target.port), optimistic=data)
        if protocol == "connect":
            await tunnel.finish()
        connection = await target.accept()
        assert await connection.read_to_end() == b"all of it"
        assert connection.end == CLEAN
        await connection.send(b"answer")
        await connection.finish()
        flow = Flow(tunnel, protocol)
        assert await flow.read_to_fin() == b"answer"


@pytest.mark.parametrize("transport", STREAMED)
async def test_optimistic_data_waits_within_the_window_for_a_slow_target(
    relay: RelayProcess, transport: str, protocol: str
) -> None:
    payload = random.Random(8).randbytes(3 << 20)
    with BlackHole() as hole:
        async with await connect(relay, transport) as session:
            flow = Flow(await session.open(tunnel_request(protocol, "127.0.0.1", hole.port)), protocol)
            sender = asyncio.create_task(flow.write(payload))
            answer = asyncio.create_task(flow.tunnel.answer())
            await asyncio.wait([sender, answer], timeout=0.3)
            assert not answer.done()
            if transport != "h3":
                assert not sender.done(), "3 MiB were taken before there was anybody to give them to"
            arrived = asyncio.get_running_loop().create_future()

            async def take(connection: Connection) -> None:
                parts = bytearray()
                while data := await connection.recv():
                    parts += data
                    if len(parts) >= len(payload) and not arrived.done():
                        arrived.set_result(bytes(parts))

            doorman = asyncio.create_task(hole.admit(take))
            assert (await answer).status == 200
            assert await arrived == payload
            await sender
            doorman.cancel()
            await asyncio.gather(doorman, return_exceptions=True)


# = connect-tcp §4.1 discard-optimistic
@pytest.mark.parametrize("transport", STREAMED)
async def test_optimistic_data_is_dropped_on_failure(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with Target(echo) as target, await connect(relay, transport) as session:
        for _ in range(20):
            data = b"s" * 50_000 if protocol == "connect" else capsule(DATA_TYPES[TCP][0], b"s" * 50_000)
            tunnel = await session.open(tunnel_request(protocol, "127.0.0.1", unused_port()), optimistic=data)
            answer = await tunnel.answer()
            assert answer.status == 502
            assert "connection_refused" in answer.proxy_status
        # The connection's credit came back: a tunnel with as much data still works.
        flow = Flow(await session.open(tunnel_request(protocol, target.host, target.port)), protocol)
        await flow.write(b"s" * 50_000)
        assert await flow.read_exactly(50_000) == b"s" * 50_000


# = connect-tcp §4.1 race-addresses
# = connect-tcp §4.1 race-holds-payload
@pytest.mark.parametrize("transport", STREAMED)
async def test_optimistic_data_goes_to_the_winning_address_only(
    relay: RelayProcess, transport: str, protocol: str
) -> None:
    # both.test has two addresses; only the IPv4 one listens.
    async with Target() as target, await connect(relay, transport) as session:
        data = b"once" if protocol == "connect" else capsule(DATA_TYPES[TCP][1], b"once")
        tunnel = await session.open(tunnel_request(protocol, "both.test", target.port), optimistic=data)
        if protocol == "connect":
            await tunnel.finish()
        connection = await target.accept()
        assert (await tunnel.answer()).status == 200
        assert await connection.read_to_end() == b"once"


# = rfc9110 §7.8 upgrade-order
# = connect-tcp §3.1 h1-upgrade
@pytest.mark.parametrize("transport", ["h1", "h1tls"])
async def test_upgrade_tokens_compare_without_case_and_the_first_served_wins(
    relay: RelayProcess, transport: str
) -> None:
    async with Target(echo) as target:
        for written in ("CONNECT-TCP-12", "websocket, connect-tcp-12", "connect-tcp-12, connect-tcp-07"):
            async with await connect(relay, transport) as session:
                request = tunnel_request(TCP, target.host, target.port)
                tunnel = await session.open(type(request)("GET", request.path, written, headers=request.headers))
                answer = await tunnel.answer()
                assert answer.status == 101, (written, answer.body)
                assert (answer.get("upgrade") or "").lower() == TCP


# = connect-tcp §3.2 protocol-token
@pytest.mark.parametrize("transport", STREAMED)
async def test_protocol_tokens_compare_exactly(relay: RelayProcess, transport: str) -> None:
    async with await connect(relay, transport) as session:
        request = tunnel_request("CONNECT-TCP-12", "127.0.0.1", 9)
        assert (await session.ask(request)).status == 501


# = rfc9298 §3 percent-encoding
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_ipv6_target_percent_encoded(relay: RelayProcess, transport: str) -> None:
    assert "%3A%3A1" in path_to("::1", 1)
    async with Target(echo, "::1") as target, await connect(relay, transport) as session:
        tunnel = await session.open(tunnel_request(TCP, "::1", target.port))
        assert (await tunnel.answer()).status == success(transport, TCP)
