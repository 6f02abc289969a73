"""Every way a tunnel ends, in both directions, with the exact signal of each version."""

from __future__ import annotations

import pytest
from peers.capsule import DATA_TYPES, capsule, grease, varint
from peers.flow import Flow
from peers.matrix import MALFORMED, STREAMED, TARGET_RESET, TRANSPORTS, established
from peers.model import CLEAN, End, tunnel_request
from peers.process import RelayProcess
from peers.target import Target, echo
from peers.wire import TlsWire

TCP = "connect-tcp-12"
RESET = End("reset")


# = connect-tcp §3.4 fin-sends-final-data
# = connect-tcp §3.4 final-data-sends-fin
# = connect-tcp §3 no-data-after-own-final
# = rfc9113 §8.5 connect-end-is-fin
# = rfc9114 §4.4 connect-end-is-fin
# = rfc8441 §5 stream-end
async def test_half_close_by_the_client_leaves_the_other_direction_open(
    relay: RelayProcess, transport: str, protocol: str
) -> None:
    async with established(relay, transport, protocol) as (flow, target):
        await flow.write(b"question")
        await flow.write_final()
        assert await target.read_to_end() == b"question"
        assert target.end == CLEAN
        await target.send(b"a long answer " * 5000)
        assert await flow.read_exactly(70_000) == b"a long answer " * 5000
        await target.finish()
        assert await flow.read_to_fin() == b""
        await flow.end()
        assert await flow.closed() == CLEAN


# = connect-tcp §3.4 closed-closes-stream
# = rfc9113 §8.5 connect-fin-is-end
# = rfc9114 §4.4 connect-fin-is-end
async def test_half_close_by_the_target_leaves_the_other_direction_open(
    relay: RelayProcess, transport: str, protocol: str
) -> None:
    async with established(relay, transport, protocol) as (flow, target):
        await target.send(b"banner")
        await target.finish()
        assert await flow.read_to_fin() == b"banner"
        if protocol != "connect":
            assert flow.tunnel.end is None, "the HTTP stream ends with the TCP connection, not with its FIN"
        await flow.write(b"still talking " * 5000)
        assert await target.read_exactly(70_000) == b"still talking " * 5000
        await flow.write_final(b"bye")
        assert await target.read_to_end() == b"bye"
        assert target.end == CLEAN
        await flow.end()
        assert await flow.closed() == CLEAN


# = connect-tcp §3.4 closed-closes-stream
# = connect-tcp §3.4 graceful-close
# = connect-tcp §4.2 no-trailers
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_both_fins_end_the_relay_s_direction_without_waiting_for_ours(
    relay: RelayProcess, transport: str
) -> None:
    # TCP is closed after both FINs; the relay's sending direction then ends even though ours has not.
    async with established(relay, transport, TCP) as (flow, target):
        await flow.write_final(b"x")
        assert await target.read_to_end() == b"x"
        await target.finish()
        assert await flow.read_to_fin() == b""
        assert await flow.closed() == CLEAN


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_final_data_may_carry_the_last_bytes(relay: RelayProcess, transport: str) -> None:
    async with established(relay, transport, TCP) as (flow, target):
        await flow.write_final(b"l" * 100_000)
        assert await target.read_to_end() == b"l" * 100_000
        assert target.end == CLEAN


# = connect-tcp §3.4 abrupt-close-h3
# = connect-tcp §3.4 abrupt-close-h2
# = connect-tcp §3.4 abrupt-close-h1-tls
# = connect-tcp §3.4 abrupt-close-h1
# = rfc9113 §8.5 connect-error
# = rfc9114 §4.4 connect-error
async def test_target_reset(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with established(relay, transport, protocol) as (flow, target):
        await flow.write(b"hello")
        assert await target.read_exactly(5) == b"hello"
        await target.abort()
        assert await flow.closed() == TARGET_RESET[transport]


async def test_target_reset_after_its_payload(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with established(relay, transport, protocol) as (flow, target):
        await target.send(b"some payload")
        assert await flow.read_exactly(12) == b"some payload"
        await target.abort()
        assert await flow.closed() == TARGET_RESET[transport]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_target_reset_after_the_client_s_fin(relay: RelayProcess, transport: str) -> None:
    async with established(relay, transport, TCP) as (flow, target):
        await flow.write_final(b"x")
        assert await target.read_to_end() == b"x"
        await target.abort()
        assert await flow.closed() == TARGET_RESET[transport]


# = connect-tcp §3.4 abrupt-end-sends-rst
# = rfc9113 §8.5 connect-reset
# = rfc9114 §4.4 connect-reset
# = rfc9112 §9.8 tls-truncation
async def test_client_abort_resets_the_target(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with established(relay, transport, protocol) as (flow, target):
        await flow.write(b"hello")
        assert await target.read_exactly(5) == b"hello"
        await flow.tunnel.abort()
        await target.read_to_end()
        assert target.end == RESET


async def test_client_abort_after_the_target_s_fin(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with established(relay, transport, protocol) as (flow, target):
        await target.send(b"bye")
        await target.finish()
        assert await flow.read_to_fin() == b"bye"
        await flow.tunnel.abort()
        await target.read_to_end()
        assert target.end == RESET


async def test_client_abort_in_the_middle_of_a_capsule(relay: RelayProcess, transport: str) -> None:
    async with established(relay, transport, TCP) as (flow, target):
        await flow.tunnel.send(capsule(DATA_TYPES[TCP][0], b"abc", length=10))
        assert await target.read_exactly(3) == b"abc"
        await flow.tunnel.abort()
        await target.read_to_end()
        assert target.end == RESET


async def test_the_connection_s_loss_resets_the_target(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with established(relay, transport, protocol) as (flow, target):
        await flow.write(b"hello")
        assert await target.read_exactly(5) == b"hello"
        session = flow.tunnel.session  # type: ignore[attr-defined]
        if transport == "h3":
            session.protocol.close(0x100)
        elif isinstance(session.wire, TlsWire):
            await session.wire.reset()
        else:
            await session.wire.abort()
        await target.read_to_end()
        assert target.end == RESET


# = connect-tcp §3.4 end-without-final-sends-rst
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_clean_end_without_final_data_resets_the_target(relay: RelayProcess, transport: str) -> None:
    async with established(relay, transport, TCP) as (flow, target):
        await flow.write(b"hello")
        assert await target.read_exactly(5) == b"hello"
        await flow.tunnel.finish()
        await target.read_to_end()
        assert target.end == RESET
        await flow.closed()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_clean_end_before_anything_resets_the_target(relay: RelayProcess, transport: str) -> None:
    async with established(relay, transport, TCP) as (flow, target):
        await flow.tunnel.finish()
        await target.read_to_end()
        assert target.end == RESET


TRUNCATED = {
    "in the type": varint(DATA_TYPES[TCP][0])[:2],
    "in the length": varint(DATA_TYPES[TCP][0]) + varint(70_000)[:2],
    "before the value": capsule(DATA_TYPES[TCP][0], length=5),
    "in the value": capsule(DATA_TYPES[TCP][0], b"abc", length=5),
    "in FINAL_DATA": capsule(DATA_TYPES[TCP][1], b"abc", length=5),
    "in an unknown capsule": capsule(grease(4), b"abc", length=5),
}


# = rfc9297 §3.3 truncated-capsule
# = rfc9297 §3.3 malformed-capsule
# = rfc9112 §8 incomplete-close
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("where", TRUNCATED)
async def test_a_truncated_capsule_is_malformed(relay: RelayProcess, transport: str, where: str) -> None:
    async with established(relay, transport, TCP) as (flow, target):
        await flow.write(b"ok")
        assert await target.read_exactly(2) == b"ok"
        await flow.tunnel.send(TRUNCATED[where])
        await flow.tunnel.finish()
        assert await flow.closed() in MALFORMED[transport]
        await target.read_to_end()
        assert target.end == RESET


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("where", ["in the type", "in an unknown capsule"])
async def test_a_truncated_capsule_after_the_fin_is_malformed_too(
    relay: RelayProcess, transport: str, where: str
) -> None:
    async with established(relay, transport, TCP) as (flow, _target):
        await flow.tunnel.send(capsule(DATA_TYPES[TCP][1], b"fin") + TRUNCATED[where])
        await flow.tunnel.finish()
        assert await flow.closed() in MALFORMED[transport]


# = connect-tcp §3 data-after-final
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("final", [False, True], ids=["DATA", "FINAL_DATA"])
@pytest.mark.parametrize("payload", [b"", b"late"], ids=["empty", "payload"])
async def test_data_after_final_data_is_malformed(
    relay: RelayProcess, transport: str, final: bool, payload: bytes
) -> None:
    async with established(relay, transport, TCP) as (flow, target):
        await flow.write_final(b"all")
        assert await target.read_to_end() == b"all"
        await flow.tunnel.send(capsule(DATA_TYPES[TCP][final], payload))
        assert await flow.closed() in MALFORMED[transport]


@pytest.mark.parametrize("transport", STREAMED)
async def test_one_stream_s_fault_leaves_its_neighbours_alone(relay: RelayProcess, transport: str) -> None:
    async with established(relay, transport, TCP) as (flow, _target), Target(echo) as other:
        session = flow.tunnel.session  # type: ignore[attr-defined]
        neighbour = Flow(await session.open(tunnel_request(TCP, other.host, other.port)), TCP)
        await neighbour.write(b"one")
        assert await neighbour.read_exactly(3) == b"one"
        await flow.write_final()
        await flow.write(b"late")
        assert await flow.closed() in MALFORMED[transport]
        await neighbour.write(b"two")
        assert await neighbour.read_exactly(3) == b"two"
        assert not session.over.is_set()


async def test_stop_sending_counts_as_an_abrupt_end(relay: RelayProcess, protocol: str) -> None:
    async with established(relay, "h3", protocol) as (flow, target):
        await flow.write(b"hello")
        assert await target.read_exactly(5) == b"hello"
        await flow.tunnel.stop()  # type: ignore[attr-defined]
        await target.read_to_end()
        assert target.end == RESET


# = rfc9110 §9.3.6 connect-deliver-then-close
async def test_everything_sent_before_a_target_s_fin_arrives(
    relay: RelayProcess, transport: str, protocol: str
) -> None:
    # The target closes at once after a large answer: nothing of it may be lost.
    async with established(relay, transport, protocol) as (flow, target):
        await target.send(b"q" * (2 << 20))
        await target.finish()
        assert len(await flow.read_to_fin()) == 2 << 20
        await flow.write_final()
        assert await target.read_to_end() == b""
        assert target.end == CLEAN
        await flow.end()
        assert await flow.closed() == CLEAN
