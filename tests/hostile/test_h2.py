"""HTTP/2 that breaks the rules, or follows them at a rate that hurts."""

from __future__ import annotations

import asyncio
import time

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from peers.capsule import DATA_TYPES, capsule
from peers.flow import Flow
from peers.h2raw import RawH2, raw_frame
from peers.matrix import connect
from peers.model import TOKEN, End, Headers, Request, path_to, tunnel_request
from peers.process import RelayProcess, StartRelay, until
from peers.target import Target, echo

TCP = "connect-tcp-12"
TRANSPORTS = ("h2", "h2c")
PROTOCOL_ERROR, FLOW_CONTROL, STREAM_CLOSED, FRAME_SIZE, COMPRESSION, CALM = 0x1, 0x3, 0x5, 0x6, 0x9, 0xB

# What it cannot parse, the relay's HTTP/2 library reports as PROTOCOL_ERROR, the generic code, wherever the RFC has a
# closer one: hence that one beside FRAME_SIZE, FLOW_CONTROL and COMPRESSION.
CONNECTION_FAULTS: dict[str, tuple[bytes, set[int]]] = {
    "DATA on stream 0": (raw_frame(0, 0, 0, b"x"), {PROTOCOL_ERROR}),
    "HEADERS on stream 0": (raw_frame(1, 4, 0, b"\x82"), {PROTOCOL_ERROR}),
    "HEADERS on an even stream": (raw_frame(1, 4, 2, b"\x82"), {PROTOCOL_ERROR}),
    "DATA on an idle stream": (raw_frame(0, 0, 5, b"x"), {PROTOCOL_ERROR, STREAM_CLOSED}),
    "RST_STREAM on an idle stream": (RstStreamFrame(5, 8).serialize(), {PROTOCOL_ERROR}),
    "WINDOW_UPDATE on an idle stream": (WindowUpdateFrame(5, 8).serialize(), {PROTOCOL_ERROR}),
    "WINDOW_UPDATE of 0": (raw_frame(8, 0, 0, bytes(4)), {PROTOCOL_ERROR}),
    "window overflow": (raw_frame(8, 0, 0, b"\x7f\xff\xff\xff"), {FLOW_CONTROL}),
    "SETTINGS of 5 bytes": (raw_frame(4, 0, 0, b"12345"), {FRAME_SIZE, PROTOCOL_ERROR}),
    "SETTINGS on a stream": (raw_frame(4, 0, 1, bytes(6)), {PROTOCOL_ERROR}),
    "ENABLE_PUSH of 2": (raw_frame(4, 0, 0, b"\x00\x02\x00\x00\x00\x02"), {PROTOCOL_ERROR}),
    "INITIAL_WINDOW_SIZE too large": (raw_frame(4, 0, 0, b"\x00\x04\xff\xff\xff\xff"), {FLOW_CONTROL, PROTOCOL_ERROR}),
    "MAX_FRAME_SIZE too small": (raw_frame(4, 0, 0, b"\x00\x05\x00\x00\x00\x01"), {PROTOCOL_ERROR}),
    "PING of 7 bytes": (raw_frame(6, 0, 0, b"1234567"), {FRAME_SIZE, PROTOCOL_ERROR}),
    "PING on a stream": (raw_frame(6, 0, 1, b"12345678"), {PROTOCOL_ERROR}),
    "PUSH_PROMISE by a client": (raw_frame(5, 4, 1, b"\x00\x00\x00\x02\x82"), {PROTOCOL_ERROR}),
    "CONTINUATION without HEADERS": (raw_frame(9, 4, 1, b"\x82"), {PROTOCOL_ERROR}),
    "HEADERS not continued": (raw_frame(1, 0, 1, b"\x82") + raw_frame(6, 0, 0, b"12345678"), {PROTOCOL_ERROR}),
    "padding beyond the frame": (raw_frame(1, 0xC, 1, b"\xff\x82"), {PROTOCOL_ERROR}),
    "bad HPACK index": (raw_frame(1, 4, 1, b"\xff\xff\xff\x7f"), {COMPRESSION, PROTOCOL_ERROR}),
    "bad HPACK Huffman": (raw_frame(1, 4, 1, b"\x00\x84\xff\xff\xff\xff\x00"), {COMPRESSION, PROTOCOL_ERROR}),
    "a frame above the limit": (raw_frame(6, 0, 0, b"", length=(1 << 24) - 1), {FRAME_SIZE}),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("what", CONNECTION_FAULTS)
async def test_connection_faults_end_that_connection_only(relay: RelayProcess, transport: str, what: str) -> None:
    data, codes = CONNECTION_FAULTS[what]
    async with await connect(relay, transport) as neighbour, await RawH2.connect(relay.endpoint(transport)) as session:
        await session.send(data)
        assert await session.until_closed() in codes
        assert (await neighbour.ask(Request("GET", "/x"))).status == 404


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "preface", [b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", bytes(24), b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n"]
)
async def test_a_wrong_preface(relay: RelayProcess, transport: str, preface: bytes) -> None:
    async with await RawH2.connect(relay.endpoint(transport), preface) as session:
        # On cleartext it may be read as HTTP/1.1 and be refused in that version.
        async with asyncio.timeout(5):
            received = bytearray()
            while data := await session.wire.recv():
                received += data
        assert b" 200 " not in received
        assert b" 101 " not in received


def malformed(base: Headers) -> dict[str, Headers]:
    """Requests that are wrong, each in one way."""

    def without(name: str) -> Headers:
        return [item for item in base if item[0] != name]

    def with_(*extra: tuple[str, str]) -> Headers:
        return [*base, *extra]

    def instead(name: str, value: str) -> Headers:
        return [(key, value if key == name else item) for key, item in base]

    return {
        "no :scheme": without(":scheme"),
        "no :path": without(":path"),
        "no :authority": without(":authority"),
        "no :method": without(":method"),
        "empty :path": instead(":path", ""),
        ":path without a slash": instead(":path", "x"),
        "two :path": [(":path", "/x"), *base],
        "two :protocol": [(":protocol", TCP), *base],
        "unknown pseudo field": [(":unknown", "x"), *base],
        "response pseudo field": [(":status", "200"), *base],
        "pseudo field after a field": [("x", "y"), *base],
        "upper-case name": with_(("X-Upper", "y")),
        "empty name": with_(("", "y")),
        "space in a name": with_(("a b", "y")),
        "connection": with_(("connection", "upgrade")),
        "upgrade": with_(("upgrade", TCP)),
        "keep-alive": with_(("keep-alive", "1")),
        "proxy-connection": with_(("proxy-connection", "keep-alive")),
        "transfer-encoding": with_(("transfer-encoding", "chunked")),
        "te": with_(("te", "gzip")),
        "NUL in a value": with_(("x", "a\x00b")),
        "space before a value": with_(("x", " a")),
        "tab behind a value": with_(("x", "a\t")),
        "line feed in a value": with_(("x", "a\nb")),
        "carriage return in a value": with_(("x", "a\rb")),
        ":protocol with GET": instead(":method", "GET"),
        "CONNECT with :path": without(":protocol"),
        "host differs": with_(("host", "other.test")),
        "userinfo": instead(":authority", "user@relay.test"),
        "content-length": with_(("content-length", "5")),
        "content-type": with_(("content-type", "text/plain")),
        "two different content-length": with_(("content-length", "5"), ("content-length", "6")),
    }


# The field sections that the HTTP/2 library cannot decode as fields: it ends the connection (RFC 9113 §5.4.1 allows that).
UNDECODABLE = (
    "unknown pseudo field",
    "upper-case name",
    "empty name",
    "space in a name",
    "NUL in a value",
    "line feed in a value",
    "carriage return in a value",
)
MALFORMED = [name for name in malformed([(":method", "CONNECT"), (":protocol", TCP)]) if name not in UNDECODABLE]


# = rfc9113 §8.2.1 value-whitespace
# = rfc9113 §8.1.1 malformed-request
# = rfc9113 §8.3.1 authority-and-host
# = rfc9113 §8.5 connect-pseudo-fields
# = rfc8441 §4 pseudo-fields
# = rfc9297 §3.2 content-fields-malformed
# = connect-tcp §3.2 nonconforming-is-client-error
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_requests_are_stream_errors_or_400(relay: RelayProcess, transport: str, what: str) -> None:
    async with Target() as target, await RawH2.connect(relay.endpoint(transport)) as session:
        await session.send(session.headers(1, malformed(session.tunnel(target.port))[what]))
        kind, code = await session.outcome(1)
        assert (kind, code) in {("status", 400), ("reset", PROTOCOL_ERROR)}
        await session.still_serves(3)


# = rfc9113 §8.1.1 malformed-request
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("what", UNDECODABLE)
async def test_undecodable_fields_end_no_other_connection(relay: RelayProcess, transport: str, what: str) -> None:
    async with Target() as target, await connect(relay, transport) as neighbour:
        async with await RawH2.connect(relay.endpoint(transport)) as session:
            await session.send(session.headers(1, malformed(session.tunnel(target.port))[what]))
            assert await session.outcome(1) == ("closed", PROTOCOL_ERROR)
        assert (await neighbour.ask(Request("GET", "/x"))).status == 404


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_oversize_header_lists(relay: RelayProcess, transport: str) -> None:
    async with await RawH2.connect(relay.endpoint(transport)) as session:
        # 60 KB of fields, in frames of legal size.
        block = session.encoder.encode([*session.get(), *[(f"x-{n}", "v" * 1000) for n in range(60)]], huffman=False)
        pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        data = HeadersFrame(1, pieces[0], flags=["END_STREAM"]).serialize()
        for number, piece in enumerate(pieces[1:], 2):
            data += ContinuationFrame(1, piece, flags=["END_HEADERS"] if number == len(pieces) else []).serialize()
        await session.send(data)
        kind, code = await session.outcome(1)
        assert (kind, code) == ("status", 431) or kind in ("reset", "closed"), (kind, code)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_hpack_bomb(relay: RelayProcess, transport: str) -> None:
    # One large entry of the dynamic table, referred to thousands of times: 60 MB of fields in 16 KB.
    async with await RawH2.connect(relay.endpoint(transport)) as session:
        before = relay.resident
        base = session.encoder.encode(session.get(), huffman=False)
        entry = b"\x40\x01x\x7f" + bytes([0xA1, 0x1E]) + b"v" * 4000
        block = base + entry + bytes([0xBE]) * (16_000 - len(base) - len(entry))
        await session.send(raw_frame(1, 5, 1, block))
        kind, code = await session.outcome(1)
        assert (kind, code) == ("status", 431) or kind in ("reset", "closed"), (kind, code)
        assert relay.resident - before < 16 << 20


async def serves_others(relay: RelayProcess, transport: str) -> None:
    """A new connection gets an answer, and soon."""
    began = time.monotonic()
    async with await connect(relay, transport) as session:
        assert (await session.ask(Request("GET", "/x"))).status == 404
    assert time.monotonic() - began < 3


@pytest.fixture(scope="module")
def flooded(launch: StartRelay) -> RelayProcess:
    """A relay of one worker, for floods: the worker that is flooded is the one that must go on."""
    return launch(workers=1)


FLOODS = {
    "CONTINUATION": (raw_frame(1, 0, 1, b"\x82"), raw_frame(9, 0, 1, b"\x00\x01x\x01y" * 3000), 2000),
    "empty CONTINUATION": (raw_frame(1, 0, 1, b"\x82"), raw_frame(9, 0, 1, b""), 200_000),
    "PING": (b"", PingFrame(0, b"12345678").serialize(), 400_000),
    "SETTINGS": (b"", SettingsFrame(0, {4: 70_000}).serialize(), 400_000),
    "empty SETTINGS": (b"", SettingsFrame(0).serialize(), 400_000),
    "PRIORITY": (b"", PriorityFrame(1, depends_on=3, stream_weight=1).serialize(), 400_000),
    "WINDOW_UPDATE": (b"", WindowUpdateFrame(0, 1).serialize(), 400_000),
    "unknown frames": (b"", raw_frame(0xEE, 0, 0, b"u" * 100), 100_000),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("what", FLOODS)
async def test_floods_are_bounded_and_disturb_nobody(flooded: RelayProcess, transport: str, what: str) -> None:
    # The attacker reads nothing: whatever the relay owes it must not pile up.
    first, unit, count = FLOODS[what]
    before, descriptors = flooded.resident, flooded.descriptors
    async with await RawH2.connect(flooded.endpoint(transport)) as session:
        await session.send(first)

        async def attack() -> None:
            chunk = unit * max(1, 65_536 // len(unit))
            for _ in range(count * len(unit) // len(chunk)):
                if not await session.send(chunk):
                    return

        attacker = asyncio.create_task(attack())
        for _ in range(3):
            await serves_others(flooded, transport)
        await asyncio.wait([attacker], timeout=3)
        assert flooded.resident - before < 32 << 20
        attacker.cancel()
        await asyncio.gather(attacker, return_exceptions=True)
    await serves_others(flooded, transport)
    assert await flooded.settled_descriptors(descriptors) <= descriptors


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_rapid_reset(flooded: RelayProcess, transport: str) -> None:
    before, descriptors = flooded.resident, flooded.descriptors
    async with Target(echo) as target, await RawH2.connect(flooded.endpoint(transport)) as session:

        async def attack() -> None:
            for batch in range(200):
                data = b""
                for number in range(100):
                    stream_id = 2 * (batch * 100 + number) + 1
                    data += session.headers(stream_id, session.tunnel(target.port))
                    data += RstStreamFrame(stream_id, 8).serialize()
                if not await session.send(data):
                    return
                await asyncio.sleep(0)

        async def read() -> None:
            while await session.read():
                pass

        attacker, reader = asyncio.create_task(attack()), asyncio.create_task(read())
        for _ in range(3):
            await serves_others(flooded, transport)
        await asyncio.wait([attacker], timeout=20)
        assert attacker.done()
        # Either it was cut off, or what it cost was cheap; requests reset before an answer need not all be dialled.
        assert session.goaway in (None, CALM, PROTOCOL_ERROR)
        assert flooded.resident - before < 32 << 20
        reader.cancel()
        await asyncio.gather(reader, attacker, return_exceptions=True)
    await serves_others(flooded, transport)
    assert await flooded.settled_descriptors(descriptors) <= descriptors


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.timeout(60)
async def test_tunnels_that_opened_may_be_reset_without_end(relay: RelayProcess, transport: str) -> None:
    # Resetting a tunnel is how a client says RST: thousands on one connection are normal life.
    async with Target(echo) as target, await connect(relay, transport) as session:
        for _ in range(11):
            tunnels = [await session.open(tunnel_request(TCP, target.host, target.port)) for _ in range(100)]
            for tunnel in tunnels:
                assert (await tunnel.answer()).status == 200
            for tunnel in tunnels:
                await tunnel.abort()
        flow = Flow(await session.open(tunnel_request(TCP, target.host, target.port)), TCP)
        await flow.write(b"still here")
        assert await flow.read_exactly(10) == b"still here"
        await until(lambda: not target.connections, 5)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_more_than_the_window_is_a_flow_control_error(relay: RelayProcess, transport: str) -> None:
    async with Target() as target, await RawH2.connect(relay.endpoint(transport)) as session:
        await session.send(session.headers(1, session.tunnel(target.port)))
        connection = await target.accept()
        assert await session.outcome(1) == ("status", 200)
        data = capsule(DATA_TYPES[TCP][0], length=1 << 40)
        await session.send(DataFrame(1, data).serialize())
        chunk = DataFrame(1, b"f" * 16_384).serialize()

        async def attack() -> None:
            # The target reads nothing and the relay's windows are finite: one of them is overrun at last.
            for _ in range(8192):
                if not await session.send(chunk):
                    return
                await asyncio.sleep(0)

        attacker = asyncio.create_task(attack())
        async with asyncio.timeout(10):
            while 1 not in session.resets and session.goaway is None and await session.read():
                pass
        attacker.cancel()
        await asyncio.gather(attacker, return_exceptions=True)
        assert session.resets.get(1) == FLOW_CONTROL or session.goaway in (FLOW_CONTROL, CALM)
        await connection.read_to_end()
        assert connection.end == End("reset")


# = connect-tcp §4.2 no-trailers
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_trailers_on_a_tunnel_are_malformed(relay: RelayProcess, transport: str) -> None:
    async with Target() as target, await RawH2.connect(relay.endpoint(transport)) as session:
        await session.send(session.headers(1, session.tunnel(target.port)))
        connection = await target.accept()
        assert await session.outcome(1) == ("status", 200)
        await session.send(session.headers(1, [("trailer", "x")], end=True))
        await connection.read_to_end()
        assert connection.end == End("reset")
        await session.still_serves(3)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_many_tiny_data_frames_are_no_attack(relay: RelayProcess, transport: str) -> None:
    async with Target() as target, await RawH2.connect(relay.endpoint(transport)) as session:
        await session.send(session.headers(1, session.tunnel(target.port)))
        connection = await target.accept()
        assert await session.outcome(1) == ("status", 200)
        stream = capsule(DATA_TYPES[TCP][0], length=20_000) + bytes(20_000)
        reader = asyncio.create_task(connection.read_exactly(20_000))
        for at in range(0, len(stream), 1000):
            data = b"".join(DataFrame(1, bytes([byte])).serialize() for byte in stream[at : at + 1000])
            assert await session.send(data)
        async with asyncio.timeout(10):
            assert await reader == bytes(20_000)
        await session.still_serves(3)


async def test_prior_knowledge_and_upgrade_h2c(relay: RelayProcess) -> None:
    # The old Upgrade: h2c is not served: it is an upgrade to something unknown.
    endpoint = relay.endpoint("h1")
    async with await RawH2.connect(endpoint, b"", settings=b"") as session:
        await session.wire.send(
            f"GET {path_to('127.0.0.1', 9)} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n".encode()
        )
        assert not (await session.wire.recv()).startswith(b"HTTP/1.1 101")


@pytest.fixture(scope="module")
def impatient(launch: StartRelay) -> RelayProcess:
    return launch(limits={"header_timeout": "1s"})


STALLS = {
    "silence": b"",
    "half a frame": b"\x00\x01\x00\x01",
    "HEADERS without an end": raw_frame(1, 0, 1, b"\x82"),
    "a PING": PingFrame(0, b"12345678").serialize(),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("what", STALLS)
async def test_a_client_that_never_asks_is_let_go(impatient: RelayProcess, transport: str, what: str) -> None:
    async with await RawH2.connect(impatient.endpoint(transport)) as session:
        await session.send(STALLS[what])
        began = time.monotonic()
        async with asyncio.timeout(8):
            # Neither SETTINGS nor PINGs are acknowledged: the end may not depend on the client.
            while await session.wire.recv():
                pass
        assert time.monotonic() - began > 0.5
