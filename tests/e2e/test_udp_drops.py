"""Datagrams that a connect-udp tunnel cannot carry: dropped, counted, and the tunnel lives on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from peers.capsule import varint
from peers.matrix import MALFORMED, TRANSPORTS
from peers.model import CLEAN, Endpoint
from peers.pki import Authority
from peers.process import merged, until
from peers.udp import UdpTarget
from peers.udp_matrix import UDP, opened

from relay import Config, Relay

#: RFC 9298 §5: the longest payload that a datagram may have.
LONGEST = 65_527
#: What loopback carries of it in one packet: an IPv4 packet ends at 65,535 bytes, the link at 65,536.
CARRIED = {"127.0.0.1": 65_507, "::1": 65_488}


class Counted:
    """A relay in this process, whose counters can be read."""

    def __init__(self, relay: Relay, authority: Path) -> None:
        self.relay, self.authority = relay, authority

    def endpoint(self, transport: str) -> Endpoint:
        clear = transport in ("h1", "h2c")
        (at,) = (address for address in self.relay.addresses if address.tls != clear)
        return Endpoint(at.host, at.port, None if clear else self.authority)

    def dropped(self, why: str) -> int:
        return int(self.relay.stats()[f"datagrams_dropped_{why}"])


@asynccontextmanager
async def counted(authority: Authority, configuration: dict[str, Any]) -> AsyncIterator[Counted]:
    config = Config.model_validate(merged(configuration, {"workers": 1, "log": {"access": ""}}))
    async with Relay(config) as relay:
        yield Counted(relay, authority.file)


# = rfc9298 §5 context-0-payload
# = rfc9298 §3.1 oversize-dropped
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("host", CARRIED)
async def test_the_longest_payload_is_taken_and_what_the_path_cannot_carry_is_dropped(
    authority: Authority, configuration: dict[str, Any], transport: str, host: str
) -> None:
    async with (
        counted(authority, configuration) as relay,
        UdpTarget(host, echo=True) as target,
        opened(relay, transport, "capsule", target) as flow,
    ):
        await flow.send(b"l" * LONGEST)
        # The context ID's length is none of the payload's.
        await flow.send_raw(varint(0, 8) + b"p" * LONGEST)
        await flow.send(b"t" * (CARRIED[host] + 1))
        await flow.send(b"f" * CARRIED[host])
        assert await flow.receive() == b"f" * CARRIED[host]
        assert relay.dropped("oversize") == 3
        # A datagram counts once it was handed over, so that the client may have it a moment earlier.
        assert await until(lambda: relay.relay.stats()["datagrams_down"] == 1)
        stats = relay.relay.stats()
        assert stats["datagrams_up"] == 1
        assert (stats["bytes_up"], stats["bytes_down"]) == (CARRIED[host], CARRIED[host])


# = rfc9298 §5 context-0-limit
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_one_byte_more_aborts_the_stream(
    authority: Authority, configuration: dict[str, Any], transport: str
) -> None:
    async with (
        counted(authority, configuration) as relay,
        UdpTarget() as target,
        opened(relay, transport, "capsule", target) as flow,
    ):
        await flow.send(b"before")
        assert (await target.receive())[0] == b"before"
        # What is left of the capsule may meet a closed connection.
        with suppress(OSError):
            await flow.send(b"x" * (LONGEST + 1))
        assert (await flow.tunnel.drained())[1] in MALFORMED[transport]
        assert relay.dropped("oversize") == 0
        assert relay.relay.stats()["datagrams_up"] == 1


# = rfc9298 §6.1 oversize-to-client-dropped
async def test_what_does_not_fit_a_quic_packet_is_counted_and_never_a_capsule(
    authority: Authority, configuration: dict[str, Any]
) -> None:
    async with (
        counted(authority, configuration) as relay,
        UdpTarget() as target,
        opened(relay, "h3", "frame", target) as flow,
    ):
        await flow.send(b"hello")
        _, source = await target.receive()
        for size in (1500, 9000, 65_507):
            target.send(b"x" * size, source)
        target.send(b"y" * 1200, source)
        assert await flow.receive() == b"y" * 1200
        assert relay.dropped("oversize") == 3
        assert await until(lambda: relay.relay.stats()["bytes_down"] == 1200)
        assert relay.relay.stats()["datagrams_down"] == 1
        _, tunnel = flow.quic()
        assert tunnel.received == 0


# = rfc9298 §4 unknown-context
@UDP
async def test_unknown_contexts_are_counted(
    authority: Authority, configuration: dict[str, Any], transport: str, form: str
) -> None:
    async with (
        counted(authority, configuration) as relay,
        UdpTarget(echo=True) as target,
        opened(relay, transport, form, target) as flow,
    ):
        for context in (2, 77, 1 << 40):
            await flow.send(b"unknown", context=context)
        await flow.send(b"known")
        assert await flow.receive() == b"known"
        await flow.tunnel.finish()
        assert (await flow.tunnel.drained())[1] == CLEAN
        assert await until(lambda: relay.dropped("context") == 3)
