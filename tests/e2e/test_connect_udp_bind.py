"""The bind mode of connect-udp (draft-ietf-masque-connect-udp-listen): a server behind the relay, reached by peers outside."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from peers.bind import ACK, ASSIGN, CLOSE, Bound, ack, assign, bind_request, close, public_addresses, read, written
from peers.capsule import capsule, varint
from peers.h3 import settings
from peers.matrix import MALFORMED, TRANSPORTS, connect, success
from peers.process import RelayProcess, StartRelay, until
from peers.udp import DATAGRAM, UdpTarget

LOOPBACK = {"source_addresses": ["127.0.0.1", "::1"]}
#: Transport and form of a cell.
CELLS = [*((transport, "capsule") for transport in TRANSPORTS), ("h3", "frame")]
BIND = pytest.mark.parametrize(("transport", "form"), CELLS)


@pytest.fixture(scope="module")
def binding(launch: StartRelay) -> RelayProcess:
    """A relay that binds, at loopback addresses of both families."""
    return launch(egress=LOOPBACK, protocols={"connect-udp": {"bind": True}})


@asynccontextmanager
async def bound(
    relay: RelayProcess,
    transport: str,
    form: str = "capsule",
    host: str = "*",
    port: int | str = "*",
    **options: object,
) -> AsyncIterator[Bound]:
    """A bound tunnel."""
    if transport == "h3" and form == "capsule":
        options.setdefault("preface", settings({}))
    if transport == "h3":
        options.setdefault("max_datagram_size", 1400)
    async with await connect(relay, transport, **options) as session:
        tunnel = await session.open(bind_request(host, port))
        answer = await tunnel.answer()
        assert answer.status == success(transport, "connect-udp"), (answer.status, answer.body)
        assert answer.get("connect-udp-bind") == "?1"
        assert answer.get("capsule-protocol") == "?1"
        yield Bound(session, tunnel, form, public_addresses(answer))


@asynccontextmanager
async def outside() -> AsyncIterator[list[UdpTarget]]:
    """Three peers, one of them with an IPv6 address."""
    async with UdpTarget() as one, UdpTarget() as two, UdpTarget("::1") as six:
        yield [one, two, six]


def address(peer: UdpTarget) -> tuple[str, int]:
    return (peer.host, peer.port)


# = connect-udp-bind §7 public-address
# = connect-udp-bind §7 same-address
# = connect-udp-bind §8 forward-by-context
# = connect-udp-bind §4 uncompressed-format
@BIND
async def test_a_server_is_reached_by_peers_it_did_not_know(binding: RelayProcess, transport: str, form: str) -> None:
    async with outside() as peers, bound(binding, transport, form) as tunnel:
        assert sorted(host for host, _ in tunnel.public) == ["127.0.0.1", "::1"]
        await tunnel.register(2)
        for number, peer in enumerate(peers):
            at = tunnel.reached_at(6 if peer.host == "::1" else 4)
            for size in (0, 1, 1150, 64 * number):
                question = random.Random(size).randbytes(size)
                peer.send(question, at)
                context, rest = await tunnel.receive()
                assert (context, read(rest)) == (2, (address(peer), question))
                await tunnel.send(2, question[::-1], address(peer))
                data, source = await peer.receive()
                assert (data, source[:2]) == (question[::-1], at)


# = connect-udp-bind §3.1 answer-assign
# = connect-udp-bind §8 forward-by-context
@BIND
async def test_compressed_contexts_stand_for_their_peers(binding: RelayProcess, transport: str, form: str) -> None:
    async with outside() as peers, bound(binding, transport, form) as tunnel:
        await tunnel.register(2)
        for number, peer in enumerate(peers):
            context = 4 + 2 * number
            await tunnel.register(context, address(peer))
            for payload in (b"", b"x", b"y" * 1200):
                await tunnel.send(context, payload)
                data, source = await peer.receive()
                assert (data, source[:2]) == (payload, tunnel.reached_at(6 if peer.host == "::1" else 4))
                peer.send(payload, source[:2])
                assert await tunnel.receive() == (context, payload)
        # The uncompressed one still works, and whoever has a context of his own is answered on that.
        await tunnel.send(2, b"both ways", address(peers[0]))
        data, source = await peers[0].receive()
        peers[0].send(data, source[:2])
        assert await tunnel.receive() == (4, b"both ways")


# = connect-udp-bind §3.1 firewall
# = connect-udp-bind §8.1 no-context-no-datagram
@BIND
async def test_without_the_uncompressed_context_strangers_are_shut_out(
    binding: RelayProcess, transport: str, form: str
) -> None:
    async with outside() as (friend, stranger, _), bound(binding, transport, form) as tunnel:
        at = tunnel.reached_at(4)
        # From the beginning,
        await tunnel.register(2, address(friend))
        stranger.send(b"boo", at)
        friend.send(b"hello", at)
        assert await tunnel.receive() == (2, b"hello")
        # not while it is open,
        await tunnel.register(4)
        stranger.send(b"hello too", at)
        context, rest = await tunnel.receive()
        assert (context, read(rest)) == (4, (address(stranger), b"hello too"))
        # and again when it is closed, which whatever comes over the data stream after it shows.
        await tunnel.tunnel.send(close(4))
        await tunnel.register(6, ("127.0.0.1", 9))
        stranger.send(b"boo", at)
        friend.send(b"still here", at)
        assert await tunnel.receive() == (2, b"still here")


# = connect-udp-bind §3.3 none-after-close
# = connect-udp-bind §3.3 close-any
async def test_closed_contexts_carry_nothing(binding: RelayProcess, transport: str) -> None:
    async with UdpTarget() as peer, bound(binding, transport) as tunnel:
        await tunnel.register(2, address(peer))
        await tunnel.tunnel.send(close(2))
        await tunnel.send(2, b"late")
        await tunnel.register(4, address(peer))
        await tunnel.send(4, b"in time")
        data, source = await peer.receive()
        assert data == b"in time"
        peer.send(b"back", source[:2])
        assert await tunnel.receive() == (4, b"back")


# = connect-udp-bind §3 context-0-target
@BIND
async def test_a_target_of_the_requests_own_has_context_0(binding: RelayProcess, transport: str, form: str) -> None:
    async with outside() as (target, peer, _), bound(binding, transport, form, *address(target)) as tunnel:
        await tunnel.send(0, b"question")
        data, source = await target.receive()
        assert (data, source[:2]) == (b"question", tunnel.reached_at(4))
        peer.send(b"boo", source[:2])
        target.send(b"answer", source[:2])
        assert await tunnel.receive() == (0, b"answer")
        await tunnel.register(2)
        peer.send(b"hello", source[:2])
        context, rest = await tunnel.receive()
        assert (context, read(rest)) == (2, (address(peer), b"hello"))


# = connect-udp-bind §6 both-say-so
@pytest.mark.parametrize("bind", [None, "?0", "1", "?1, ?1", "true"])
async def test_without_asking_for_it_there_is_a_plain_tunnel(
    binding: RelayProcess, transport: str, bind: str | None
) -> None:
    async with UdpTarget(echo=True) as target, await connect(binding, transport) as session:
        tunnel = await session.open(bind_request(*address(target), bind=bind))
        answer = await tunnel.answer()
        assert answer.status == success(transport, "connect-udp")
        assert answer.get("connect-udp-bind") is None
        assert answer.get("proxy-public-address") is None
        await tunnel.send(capsule(DATAGRAM, b"\0plain"))
        flow = Bound(session, tunnel, "frame" if transport == "h3" else "capsule", [])
        assert await flow.receive() == (0, b"plain")
    async with await connect(binding, transport) as session:
        refused = await session.open(bind_request(bind=bind))
        assert (await refused.answer()).status == 400


# = connect-udp-bind §6 both-say-so
async def test_a_relay_that_does_not_bind_says_nothing_of_it(relay: RelayProcess, transport: str) -> None:
    async with UdpTarget() as target, await connect(relay, transport) as session:
        tunnel = await session.open(bind_request(*address(target)))
        answer = await tunnel.answer()
        assert answer.status == success(transport, "connect-udp")
        assert answer.get("connect-udp-bind") is None
    async with await connect(relay, transport) as session:
        tunnel = await session.open(bind_request())
        assert (await tunnel.answer()).status == 400


# = connect-udp-bind §2 star-both
# = connect-udp-bind §2 star-encoded
@pytest.mark.parametrize("path", ["%2A/443", "192.0.2.1/%2A", "*/*", "%2A/*", "*/%2a", "%2A%2A/%2A", "%2A/0"])
async def test_stars_that_are_malformed(binding: RelayProcess, transport: str, path: str) -> None:
    async with await connect(binding, transport) as session:
        request = replace(bind_request(), path=f"/.well-known/masque/udp/{path}/")
        tunnel = await session.open(request)
        assert (await tunnel.answer()).status == 400


PEER = ("127.0.0.1", 9)
# Every course breaks a rule with the last of its capsules.
COURSES = {
    "context 0 in a datagram": [capsule(DATAGRAM, b"\0x")],
    "context 0 assigned": [capsule(ASSIGN, b"\0\0")],
    "context 0 acknowledged": [ack(0)],
    "context 0 closed": [close(0)],
    "an odd context": [assign(1)],
    "a version there is not": [capsule(ASSIGN, b"\2\5" + bytes(6))],
    "an address cut short": [capsule(ASSIGN, b"\2" + written(PEER)[:-1])],
    "bytes too many": [capsule(ASSIGN, b"\2" + written(PEER) + b"\0")],
    "bytes after version 0": [capsule(ASSIGN, b"\2\0\0")],
    "an endless assign": [capsule(ASSIGN, bytes(60))],
    "an empty assign": [capsule(ASSIGN)],
    "an empty ack": [capsule(ACK)],
    "a long close": [capsule(CLOSE, b"\2\2")],
    "a second uncompressed context": [assign(2), assign(4)],
    "an ID twice": [assign(2), assign(2, PEER)],
    "an ID that was closed": [assign(2, PEER), close(2), assign(2, PEER)],
    "a peer twice": [assign(2, PEER), assign(4, PEER)],
    "an ack of nothing": [ack(2)],
    "an ack of nothing odd": [ack(1)],
    "a datagram without a peer": [assign(2), capsule(DATAGRAM, b"\2")],
    "a datagram with half a peer": [assign(2), capsule(DATAGRAM, b"\2" + written(PEER)[:-1])],
    "a datagram of version 5": [assign(2), capsule(DATAGRAM, b"\2\5" + bytes(30))],
    "a datagram without a context": [capsule(DATAGRAM)],
    "a payload too long": [assign(2, PEER), varint(DATAGRAM) + varint(65_529) + b"\2" + bytes(65_528)],
}


# = connect-udp-bind §3 context-0-aborts
# = connect-udp-bind §3 parity
# = connect-udp-bind §3.1 assign-format
# = connect-udp-bind §3.1 context-0-malformed
# = connect-udp-bind §3.1 repeated-id-malformed
# = connect-udp-bind §3.1 same-tuple-malformed
# = connect-udp-bind §3.2 ack-unknown-malformed
# = connect-udp-bind §3.3 close-0-malformed
# = connect-udp-bind §4 one-uncompressed
# = rfc9297 §3.3 malformed-capsule
@pytest.mark.parametrize("course", COURSES)
async def test_malformed_registrations_end_the_tunnel(binding: RelayProcess, transport: str, course: str) -> None:
    async with bound(binding, transport) as tunnel:
        with contextlib.suppress(ConnectionError):
            for part in COURSES[course]:
                await tunnel.tunnel.send(part)
        assert (await tunnel.tunnel.drained())[1] in MALFORMED[transport]


async def test_context_0_ends_the_tunnel_in_a_frame_too(binding: RelayProcess) -> None:
    async with bound(binding, "h3", "frame") as tunnel:
        await tunnel.send(0, b"x")
        assert (await tunnel.tunnel.drained())[1] in MALFORMED["h3"]


# = connect-udp-bind §9 bound-contexts
# = connect-udp-bind §9 bound-answers
async def test_registrations_are_bounded(binding: RelayProcess, transport: str) -> None:
    async with bound(binding, transport) as tunnel:
        many = range(1, 1026)
        for first in range(1, 1026, 200):
            batch = [n for n in many if first <= n < first + 200]
            await tunnel.tunnel.send(b"".join(assign(2 * n, ("127.0.0.1", 1000 + n)) for n in batch))
            for n in batch:
                kind = ACK if n <= 1024 else CLOSE
                assert await tunnel.answer() == (kind, varint(2 * n)), n
        await tunnel.tunnel.send(close(2))
        await tunnel.register(4000, ("127.0.0.1", 999))


@pytest.fixture(scope="module")
def narrow(launch: StartRelay) -> RelayProcess:
    """A relay that binds an IPv4 address alone, behind a NAT, and has rules."""
    deny = {"action": "deny", "networks": ["127.0.0.2/32"], "ports": ["7000-7999"]}
    nobody = {"action": "deny", "principals": ["tester"], "protocols": ["connect-udp"], "ports": ["1-1023"]}
    return launch(
        egress=LOOPBACK,
        protocols={"connect-udp": {"bind": True, "public_addresses": ["203.0.113.7"]}},
        policy={"rules": [deny, nobody]},
    )


# = connect-udp-bind §9 check-each-target
# = connect-udp-bind §7 other-family-rejected
@BIND
async def test_the_policy_judges_every_peer(narrow: RelayProcess, transport: str, form: str) -> None:
    refused = {
        "a network": ("192.168.3.4", 8000),
        "a port": ("127.0.0.1", 25),
        "a rule": ("127.0.0.2", 7777),
        "no port": ("127.0.0.1", 0),
        "a mapped address": ("::ffff:127.0.0.1", 8000),
        "a family": ("::1", 8000),
    }
    async with UdpTarget() as peer, bound(narrow, transport, form) as tunnel:
        (public,) = tunnel.public
        assert public[0] == "203.0.113.7"
        for number, (why, to) in enumerate(refused.items()):
            context = 2 + 2 * number
            await tunnel.tunnel.send(assign(context, to))
            assert await tunnel.answer() == (CLOSE, varint(context)), why
        await tunnel.register(100)
        for to in refused.values():
            await tunnel.send(100, b"no", to)
        await tunnel.send(100, b"yes", address(peer))
        data, source = await peer.receive()
        assert (data, source) == (b"yes", ("127.0.0.1", public[1]))


async def test_who_may_bind_is_a_matter_of_rules_and_of_the_hook(launch: StartRelay, tmp_path: Path) -> None:
    (tmp_path / "bindhook.py").write_text(HOOK)
    relay = launch(
        environment={"PYTHONPATH": str(tmp_path)},
        egress=LOOPBACK,
        protocols={"connect-udp": {"bind": True}},
        policy={"hook": "bindhook:decide"},
    )
    rules = [{"action": "deny", "protocols": ["connect-udp"]}]
    closed = launch(egress=LOOPBACK, protocols={"connect-udp": {"bind": True}}, policy={"rules": rules})
    async with UdpTarget() as peer:
        for request in (bind_request(), bind_request(*address(peer))):
            for process, reason in ((relay, b"not to any"), (closed, b"a rule of this relay")):
                async with await connect(process, "h2") as session:
                    answer = await (await session.open(request)).answer()
                    assert (answer.status, reason in answer.body) == (403, True), answer.body
        async with await connect(relay, "h2") as session:
            answer = await (await session.open(bind_request(*address(peer), bind=None))).answer()
            assert answer.status == 200


HOOK = """
from relay import Decision

def decide(request):
    anybody = (request.target_host, request.target_port) == ("*", 0)
    return Decision.deny("not to any") if anybody else Decision.allow()
"""


@BIND
async def test_the_ports_are_free_when_the_tunnel_is_over(binding: RelayProcess, transport: str, form: str) -> None:
    async with bound(binding, transport, form) as tunnel:
        public = tunnel.public
        assert not any(is_free(at) for at in public)
        await tunnel.tunnel.finish()
        assert await until(lambda: all(is_free(at) for at in public), 1)
    assert await until(lambda: any(record["target"] == "*:*" for record in binding.log()))


def is_free(at: tuple[str, int]) -> bool:
    family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(at)
        except OSError:
            return False
        return True
