"""connect-udp with the marks of packets (draft-ietf-masque-connect-udp-ecn-dscp), and those of HTTP/3's own packets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from peers.bind import Bound, bind_request
from peers.capsule import capsule, read_varint
from peers.h3 import H3Session, settings
from peers.marks import (
    ACK,
    ASSIGN,
    CE,
    ECT_0,
    ECT_1,
    NOT_ECT,
    Contexts,
    MarkedTarget,
    Path,
    assigned,
    field,
    registration,
)
from peers.matrix import MALFORMED, TRANSPORTS, connect, success
from peers.model import CLEAN, Answer
from peers.process import RelayProcess, StartRelay, until
from peers.udp import DATAGRAM, udp_request
from peers.udp_matrix import UDP, opened

EF = 46
CLIENT: Contexts = {EF: (8, 10, 12, 14), 0: (0, 2, 4, 6)}
LOOPBACK = ["127.0.0.1", "::1"]
FAMILIES = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])


@pytest.fixture(scope="module")
def marking(launch: StartRelay) -> RelayProcess:
    """A relay that carries marks, without capsules."""
    return launch(protocols={"connect-udp": {"ecn_dscp": True, "bind": True}}, egress={"source_addresses": LOOPBACK})


@pytest.fixture(scope="module")
def registering(launch: StartRelay) -> RelayProcess:
    """A relay that carries marks, and whose contexts may be registered later."""
    capsules = {"assign": ASSIGN, "ack": ACK}
    return launch(protocols={"connect-udp": {"ecn_dscp": True, "ecn_dscp_capsules": capsules}})


@asynccontextmanager
async def asked(
    relay: RelayProcess, transport: str, target: MarkedTarget, value: str | None, form: str = "capsule"
) -> AsyncIterator[tuple[Bound, Answer]]:
    """A tunnel that was asked for with this field, and the answer."""
    options: dict[str, Any] = {"max_datagram_size": 1400} if transport == "h3" else {}
    if transport == "h3" and form == "capsule":
        options["preface"] = settings({})
    async with await connect(relay, transport, **options) as session:
        request = udp_request(target.host, target.port)
        if value is not None:
            request = request.adding(("ecn-dscp-context-id", value))
        tunnel = await session.open(request)
        answer = await tunnel.answer()
        assert answer.status == success(transport, "connect-udp"), (answer.status, answer.body)
        yield Bound(session, tunnel, form, []), answer


async def meet(flow: Bound, target: MarkedTarget) -> None:
    """Lets the target learn where its answers go."""
    await flow.send(0, b"hello")
    assert await target.receive() == (b"hello", 0)


# = connect-udp-ecn-dscp §3.1.1 both-say-so
# = connect-udp-ecn-dscp §3.1.1 direction
# = connect-udp-ecn-dscp §4.1 marks-choose-context
# = connect-udp-ecn-dscp §4.1 context-sets-marks
# = connect-udp-ecn-dscp §2 all-ecn-values
# = connect-udp-ecn-dscp §2 context-parity
# = connect-udp-ecn-dscp §2 context-0
@UDP
@FAMILIES
async def test_marks_both_ways(marking: RelayProcess, transport: str, form: str, host: str) -> None:
    async with MarkedTarget(host) as target, asked(marking, transport, target, field(CLIENT), form) as (flow, answer):
        relays = assigned(answer)
        assert set(relays) == {0, EF}
        assert relays[0][NOT_ECT] == 0
        odd = [context for ids in relays.values() for context in ids if context]
        assert len(set(odd)) == 7
        assert all(context % 2 for context in odd)
        # The client's contexts and the relay's say what is sent,
        for contexts in (CLIENT, relays):
            for dscp, ids in contexts.items():
                for ecn, context in enumerate(ids):
                    payload = f"{dscp} {ecn}".encode()
                    await flow.send(context, payload)
                    assert await target.receive() == (payload, dscp << 2 | ecn)
        # and the relay's what arrived.
        for dscp, ids in relays.items():
            for ecn, context in enumerate(ids):
                for payload in (b"", b"x" * 1200):
                    target.send(payload, dscp << 2 | ecn)
                    assert await flow.receive() == (context, payload)


@UDP
async def test_bursts_keep_their_boundaries_and_marks(marking: RelayProcess, transport: str, form: str) -> None:
    async with MarkedTarget() as target, asked(marking, transport, target, field(CLIENT), form) as (flow, answer):
        given = [(number % 4, bytes([number]) * (number * 37 % 1200)) for number in range(60)]
        for ecn, payload in given:
            await flow.send(CLIENT[0][ecn], payload)
        assert sorted([await target.receive() for _ in given]) == sorted((data, ecn) for ecn, data in given)
        for ecn, payload in given:
            target.send(payload, ecn)
        expected = [(assigned(answer)[0][ecn], payload) for ecn, payload in given]
        assert sorted([await flow.receive() for _ in given]) == sorted(expected)


# = connect-udp-ecn-dscp §3.1.1 field-format
# = connect-udp-ecn-dscp §4.1 marks-choose-context
async def test_who_only_speaks_the_extension_gets_contexts(marking: RelayProcess, transport: str) -> None:
    async with MarkedTarget() as target, asked(marking, transport, target, "") as (flow, answer):
        relays = assigned(answer)
        assert set(relays) == {0}
        await meet(flow, target)
        await flow.send(relays[0][CE], b"up")
        assert await target.receive() == (b"up", CE)
        # A DSCP without contexts counts as 0, and ECN is kept.
        for ecn in (NOT_ECT, ECT_1, ECT_0, CE):
            target.send(b"down", 10 << 2 | ecn)
            assert await flow.receive() == (relays[0][ecn], b"down")


# = connect-udp-ecn-dscp §4.1 unknown-context
async def test_unknown_contexts_are_dropped(marking: RelayProcess, transport: str) -> None:
    async with MarkedTarget() as target, asked(marking, transport, target, field(CLIENT)) as (flow, _):
        await flow.send(16, b"even")
        await flow.send(99, b"odd")
        await flow.tunnel.send(registration(ASSIGN, {1: (16, 18, 20, 22)}))
        await flow.send(18, b"capsules are unknown here")
        await meet(flow, target)


# = connect-udp-ecn-dscp §3.1.1 field-malformed
# = connect-udp-ecn-dscp §3.1.1 both-say-so
@pytest.mark.parametrize("value", [None, "(46 8 10 12)", "(0 0 1 3 5)", "(64 2 4 6 8)", "(0,0,2,4,6)", "?1"])
async def test_without_a_good_field_there_is_a_plain_tunnel(
    marking: RelayProcess, transport: str, value: str | None
) -> None:
    async with MarkedTarget() as target, asked(marking, transport, target, value) as (flow, answer):
        await plain(flow, answer, target)


# = connect-udp-ecn-dscp §3.1.1 both-say-so
async def test_a_relay_that_carries_no_marks_says_nothing_of_it(relay: RelayProcess, transport: str) -> None:
    async with MarkedTarget() as target, asked(relay, transport, target, field(CLIENT)) as (flow, answer):
        await plain(flow, answer, target)


async def plain(flow: Bound, answer: Answer, target: MarkedTarget) -> None:
    """A tunnel as without the extension."""
    assert answer.get("ecn-dscp-context-id") is None
    for context in (2, 1):
        await flow.send(context, b"unknown")
    await meet(flow, target)
    target.send(b"marked", EF << 2 | CE)
    assert await flow.receive() == (0, b"marked")


async def test_a_bound_tunnel_has_no_marks(marking: RelayProcess, transport: str) -> None:
    async with MarkedTarget() as target, await connect(marking, transport) as session:
        request = bind_request(target.host, target.port).adding(("ecn-dscp-context-id", field(CLIENT)))
        tunnel = await session.open(request)
        answer = await tunnel.answer()
        assert answer.get("connect-udp-bind") == "?1"
        assert answer.get("ecn-dscp-context-id") is None
        await tunnel.send(capsule(DATAGRAM, b"\0hello"))
        assert await target.receive() == (b"hello", 0)


# = connect-udp-ecn-dscp §3.1.2 ack-what-came
# = connect-udp-ecn-dscp §3.1.2 assignment-format
@UDP
async def test_the_client_registers_contexts_later(registering: RelayProcess, transport: str, form: str) -> None:
    async with MarkedTarget() as target, asked(registering, transport, target, field(CLIENT), form) as (flow, _):
        later: Contexts = {10: (16, 18, 20, 22), 63: (24, 26, 28, 1 << 40)}
        await flow.tunnel.send(registration(ASSIGN, later))
        kind, value = await flow.answer()
        assert capsule(kind, value) == registration(ACK, later)
        for dscp, ids in later.items():
            for ecn, context in enumerate(ids):
                await flow.send(context, b"later")
                assert await target.receive() == (b"later", dscp << 2 | ecn)


# = connect-udp-ecn-dscp §4.1 register-dscp
@UDP
async def test_the_relay_registers_contexts_for_what_arrives(
    registering: RelayProcess, transport: str, form: str
) -> None:
    async with MarkedTarget() as target, asked(registering, transport, target, field(CLIENT), form) as (flow, answer):
        relays = assigned(answer)
        await meet(flow, target)
        target.send(b"new", 10 << 2 | ECT_1)
        # Until the client says that it knows them, those of DSCP 0 are used.
        assert await flow.receive() == (relays[0][ECT_1], b"new")
        kind, value = await flow.answer()
        ids = tuple(value[1:])
        assert (kind, value[0], len(ids)) == (ASSIGN, 10 << 2, 4)
        assert not {context for taken in relays.values() for context in taken} & set(ids)
        await flow.tunnel.send(registration(ACK, {10: ids}))
        # The datagram after it on the same stream shows that it was taken.
        await flow.tunnel.send(capsule(DATAGRAM, b"\x0aafter"))
        assert await target.receive() == (b"after", EF << 2 | ECT_1)
        for ecn, context in enumerate(ids):
            target.send(b"known", 10 << 2 | ecn)
            assert await flow.receive() == (context, b"known")


# = connect-udp-ecn-dscp §3.1.1 none-twice
# = connect-udp-ecn-dscp §3.1.2 ack-unknown-malformed
# = connect-udp-ecn-dscp §3.1.2 bound-assignments
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "bad",
    [
        registration(ACK, {1: (16, 18, 20, 22)}),
        registration(ACK, {10: (7, 9, 11, 13)}),
        registration(ASSIGN, {1: (14, 16, 18, 20)}),
        registration(ASSIGN, {EF: (16, 18, 20, 22)}),
        registration(ASSIGN, {1: (15, 17, 19, 21)}),
        capsule(ASSIGN, b"\x04\x10\x12"),
        capsule(ASSIGN, b"\0" * 100, length=5000),
    ],
    ids=["ack", "ack-ours", "id-twice", "dscp-twice", "parity", "cut", "long"],
)
async def test_registrations_that_break_a_rule_end_the_tunnel(
    registering: RelayProcess, transport: str, bad: bytes
) -> None:
    async with MarkedTarget() as target, asked(registering, transport, target, field(CLIENT)) as (flow, _):
        await flow.tunnel.send(bad)
        assert (await flow.tunnel.drained())[1] in MALFORMED[transport]


# = rfc9298 §3.1 no-fragments
async def test_packets_with_marks_are_not_fragmented(marking: RelayProcess) -> None:
    try:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(0x0800))
    except PermissionError:
        pytest.skip("reading packets takes privileges")
    with wire:
        wire.bind(("lo", 0))
        wire.settimeout(10)
        async with MarkedTarget() as target, asked(marking, "h2", target, field(CLIENT)) as (flow, _):
            await flow.send(CLIENT[EF][ECT_0], b"marked how?")
            assert await target.receive() == (b"marked how?", EF << 2 | ECT_0)
            while True:
                packet = wire.recv(65535)[14:]
                header = (packet[0] & 0xF) * 4
                to = int.from_bytes(packet[header + 2 : header + 4], "big")
                if packet[9] == socket.IPPROTO_UDP and to == target.port:
                    break
            assert (packet[6] & 0x40, packet[1]) == (0x40, EF << 2 | ECT_0)


# = rfc9298 §3.1 socket-gone-closes-stream
async def test_a_target_that_goes_closes_the_stream(marking: RelayProcess) -> None:
    async with MarkedTarget() as target:
        pass
    async with asked(marking, "h3", target, field(CLIENT)) as (flow, _):
        await flow.send(CLIENT[0][ECT_0], b"anybody?")
        assert (await flow.tunnel.drained())[1] == CLEAN


class Counts:
    """The ECN counts of the acknowledgements that a client gets: ECT(0), ECT(1), CE (RFC 9000 §19.3.2)."""

    def __init__(self, session: H3Session) -> None:
        self.last = (0, 0, 0)
        handlers = session.protocol._quic._QuicConnection__frame_handlers  # type: ignore[attr-defined]
        handle, epochs = handlers[0x03]

        def noted(context: Any, kind: int, buffer: Any) -> None:
            start = buffer.tell()
            handle(context, kind, buffer)
            data, at, numbers = buffer.data_slice(start, buffer.tell()), 0, []
            while at < len(data):
                number, at = read_varint(data, at) or (0, len(data))
                numbers.append(number)
            self.last = (numbers[-3], numbers[-2], numbers[-1])

        handlers[0x03] = (noted, epochs)


async def test_the_packets_of_http3_have_marks_of_their_own(relay: RelayProcess) -> None:
    endpoint = relay.endpoint("h3")
    async with MarkedTarget() as target, Path(endpoint, ECT_0) as path:
        near = replace(endpoint, port=path.port)
        async with await H3Session.connect(near, max_datagram_size=1400) as session:
            counts = Counts(session)
            tunnel = await session.open(udp_request(target.host, target.port))
            assert (await tunnel.answer()).status == 200
            flow = Bound(session, tunnel, "frame", [])
            # The relay's first packets are marked; whether later ones are depends on the client's counts.
            assert path.seen[0] == ECT_0
            assert set(path.seen) <= {ECT_0, NOT_ECT}
            await meet(flow, target)
            assert await until(lambda: counts.last[0] > 0 and counts.last[1:] == (0, 0))
            path.octet = CE
            for _ in range(5):
                await meet(flow, target)
            assert await until(lambda: counts.last[2] > 0)
            # What is outside is not what is inside.
            target.send(b"congested", CE)
            assert await flow.receive() == (0, b"congested")


async def test_a_plain_tunnel_beside_one_with_marks(marking: RelayProcess) -> None:
    async with (
        MarkedTarget() as target,
        asked(marking, "h2", target, field(CLIENT)) as (flow, _),
        opened(marking, "h2", "capsule", target) as other,  # type: ignore[arg-type]
    ):
        await flow.send(CLIENT[EF][CE], b"marked")
        assert await target.receive() == (b"marked", EF << 2 | CE)
        await other.send(b"plain")
        assert await target.receive() == (b"plain", 0)
        target.send(b"back", CE)
        assert await other.receive() == b"back"
