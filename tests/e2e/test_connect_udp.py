"""connect-udp (RFC 9298) over every HTTP version, with datagrams in capsules and in QUIC DATAGRAM frames."""

from __future__ import annotations

import random
import socket

import pytest
from peers.capsule import capsule, grease, varint
from peers.h3 import H3Session
from peers.matrix import MALFORMED, STREAMED, TRANSPORTS, connect
from peers.model import CLEAN, End, tunnel_request
from peers.packets import Packets
from peers.process import RelayProcess, StartRelay, until
from peers.target import Target, unused_port
from peers.udp import DATAGRAM, Datagrams, UdpTarget, udp_request
from peers.udp_matrix import UDP, is_free, opened


# = rfc9298 §5 context-0-payload
# = rfc9297 §2 datagrams-where-defined
@UDP
async def test_payloads_of_every_size_both_ways(relay: RelayProcess, transport: str, form: str) -> None:
    sizes = (0, 1, 63, 64, 1199, 1200) if form == "frame" else (0, 1, 63, 64, 1200, 1472, 9000, 16384, 65_507)
    async with UdpTarget(echo=True) as target, opened(relay, transport, form, target) as flow:
        for size in sizes:
            payload = random.Random(size).randbytes(size)
            await flow.send(payload)
            assert await flow.receive() == payload, size


@UDP
async def test_a_burst_keeps_its_boundaries(relay: RelayProcess, transport: str, form: str) -> None:
    async with UdpTarget() as target, opened(relay, transport, form, target) as flow:
        payloads = [random.Random(n).randbytes(n % 7 * 150) for n in range(60)]
        for payload in payloads:
            await flow.send(payload)
        arrived = [await target.receive() for _ in payloads]
        assert sorted(data for data, _ in arrived) == sorted(payloads)
        (source,) = {source for _, source in arrived}
        for payload in payloads:
            target.send(payload, source)
        assert sorted([await flow.receive() for _ in payloads]) == sorted(payloads)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_target_may_have_an_ipv6_address(relay: RelayProcess, transport: str) -> None:
    async with UdpTarget("::1", echo=True) as target, opened(relay, transport, "capsule", target) as flow:
        await flow.send(b"six")
        assert await flow.receive() == b"six"


# = rfc9298 §4 unknown-context
# = rfc9297 §3.2 skip-unknown
# = rfc9297 §5.4 skip-grease
@UDP
async def test_what_is_unknown_is_dropped(relay: RelayProcess, transport: str, form: str) -> None:
    async with UdpTarget(echo=True) as target, opened(relay, transport, form, target) as flow:
        await flow.send(b"even", context=2)
        await flow.send(b"odd", context=77)
        await flow.tunnel.send(capsule(grease(3), b"grease") + capsule(0x1234, b"x" * 3000))
        await flow.send(b"ours")
        assert await flow.receive() == b"ours"


# = rfc9298 §5 context-0-limit
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_payload_longer_than_udp_can_carry_ends_the_tunnel(relay: RelayProcess, transport: str) -> None:
    async with UdpTarget() as target, opened(relay, transport, "capsule", target) as flow:
        await flow.tunnel.send(varint(DATAGRAM) + varint(65_529) + b"\0" * 100)
        assert (await flow.tunnel.drained())[1] in MALFORMED[transport]


# = rfc9297 §3.3 malformed-capsule
# = rfc9297 §3.3 truncated-capsule
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("how", ["no context", "half a context", "truncated"])
async def test_malformed_capsules_end_the_tunnel(relay: RelayProcess, transport: str, how: str) -> None:
    async with UdpTarget() as target, opened(relay, transport, "capsule", target) as flow:
        if how == "truncated":
            await flow.tunnel.send(capsule(DATAGRAM, b"\0abc", length=9))
            await flow.tunnel.finish()
        else:
            await flow.send_raw(b"" if how == "no context" else b"\x40")
        assert (await flow.tunnel.drained())[1] in MALFORMED[transport]


# = rfc9298 §3.1 socket-lives-with-stream
# = rfc9297 §2.1 datagram-send-side-open
@UDP
async def test_the_end_of_the_data_stream_frees_the_port(relay: RelayProcess, transport: str, form: str) -> None:
    async with UdpTarget() as target, opened(relay, transport, form, target) as flow:
        await flow.send(b"where from?")
        _, source = await target.receive()
        await flow.tunnel.finish()
        assert (await flow.tunnel.drained())[1] == CLEAN
        assert await until(lambda: is_free(source), timeout=1)


# = rfc9298 §3.1 socket-gone-closes-stream
@UDP
async def test_a_target_that_is_not_there_closes_the_stream(relay: RelayProcess, transport: str, form: str) -> None:
    target = UdpTarget()
    target.port = unused_port()
    async with opened(relay, transport, form, target) as flow:
        await flow.send(b"anybody?")
        # On HTTP/2 the request's own direction is given up after it, without an error.
        assert (await flow.tunnel.drained())[1] in (CLEAN, End("reset", 0x0))


# = rfc9298 §3.1 connected-socket
@UDP
async def test_strangers_are_not_heard(relay: RelayProcess, transport: str, form: str) -> None:
    async with UdpTarget() as target, UdpTarget() as stranger, opened(relay, transport, form, target) as flow:
        await flow.send(b"hello")
        _, source = await target.receive()
        stranger.send(b"boo", source)
        target.send(b"hi", source)
        assert await flow.receive() == b"hi"


# = rfc9298 §6.1 oversize-to-client-dropped
async def test_what_does_not_fit_a_quic_packet_is_dropped_and_never_a_capsule(relay: RelayProcess) -> None:
    async with UdpTarget() as target, opened(relay, "h3", "frame", target) as flow:
        await flow.send(b"hello")
        _, source = await target.receive()
        target.send(b"x" * 5000, source)
        target.send(b"y" * 1200, source)
        assert await flow.receive() == b"y" * 1200
        _, tunnel = flow.quic()
        assert tunnel.received == 0


# = rfc9297 §2.1.1 setting-before-frames
async def test_a_client_that_takes_no_frames_gets_capsules_and_may_send_both(relay: RelayProcess) -> None:
    async with UdpTarget(echo=True) as target, opened(relay, "h3", "capsule", target) as flow:
        session, tunnel = flow.quic()
        session.datagram(varint(tunnel.stream_id // 4) + b"\0by frame")
        assert await flow.receive() == b"by frame"
        await flow.send(b"by capsule")
        assert await flow.receive() == b"by capsule"
        assert session.datagrams == []


# = rfc9297 §2.1 datagram-unknown-stream
# = rfc9298 §5 optimistic-datagrams
async def test_datagrams_may_be_ahead_of_their_request(relay: RelayProcess) -> None:
    async with UdpTarget() as target, await H3Session.connect(relay.endpoint("h3")) as session:
        session.datagram(varint(0) + b"\0early")
        tunnel = await session.open(udp_request(target.host, target.port))
        flow = Datagrams(session, tunnel, "frame")
        await flow.send(b"optimistic")
        assert (await tunnel.answer()).status == 200
        assert {(await target.receive())[0], (await target.receive())[0]} == {b"early", b"optimistic"}


# = rfc9297 §2 datagram-without-meaning
async def test_a_datagram_for_a_tunnel_that_carries_none_ends_it(relay: RelayProcess) -> None:
    async with Target() as target, await H3Session.connect(relay.endpoint("h3")) as session:
        session.datagram(varint(0) + b"\0early")
        tunnel = await session.open(tunnel_request("connect-tcp-12", target.host, target.port))
        assert (await tunnel.drained())[1] == End("reset", 0x33)


# = rfc9298 §3.1 dns-before-answer
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("host", "port", "status", "error"),
    [
        ("169.254.1.1", 53, 403, "destination_ip_prohibited"),
        ("224.0.0.1", 53, 403, "destination_ip_prohibited"),
        ("nowhere.test", 53, 502, "dns_error"),
        ("127.0.0.1", 0, 400, None),
        ("127.0.0.1", "x", 400, None),
    ],
)
async def test_refusals(
    relay: RelayProcess, transport: str, host: str, port: int | str, status: int, error: str | None
) -> None:
    async with await connect(relay, transport) as session:
        answer = await session.ask(udp_request(host, port))
        assert answer.status == status, answer.body
        assert answer.get("capsule-protocol") is None
        if error is not None:
            assert f"error={error}" in answer.proxy_status


async def test_the_log_counts_datagrams(launch: StartRelay) -> None:
    relay = launch()
    async with UdpTarget(echo=True) as target, opened(relay, "h2", "capsule", target) as flow:
        for payload in (b"one", b"three", b""):
            await flow.send(payload)
            assert await flow.receive() == payload
        await flow.tunnel.finish()
        assert (await flow.tunnel.drained())[1] == CLEAN
    assert await until(lambda: bool(relay.log()))
    (record,) = relay.log()
    assert record["protocol"] == "connect-udp"
    assert (record["datagrams_up"], record["datagrams_down"]) == (3, 3)
    assert (record["bytes_up"], record["bytes_down"]) == (8, 8)
    assert record["end"] == "clean"


@pytest.mark.parametrize("transport", STREAMED)
async def test_a_reset_closes_the_tunnel(relay: RelayProcess, transport: str) -> None:
    async with UdpTarget() as target, opened(relay, transport, "capsule", target) as flow:
        await flow.send(b"x")
        _, source = await target.receive()
        await flow.tunnel.abort()
        assert await until(lambda: is_free(source), timeout=1)


# = rfc9298 §3.1 no-fragments
# = rfc9298 §6.2 ecn
async def test_packets_to_the_target_are_marked_as_they_must_be(relay: RelayProcess) -> None:
    async with UdpTarget() as target, opened(relay, "h2", "capsule", target) as flow:
        with Packets(target.port) as packets:
            await flow.send(b"marked how?")
            _, source = await target.receive()
            target.socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0b11)
            target.send(b"congested", source)
            assert await flow.receive() == b"congested"
            await flow.send(b"and now?")
            await target.receive()
            seen = [packets.next(), packets.next()]
        assert {(packet[6] & 0x40, packet[1] & 0b11) for packet in seen} == {(0x40, 0)}
