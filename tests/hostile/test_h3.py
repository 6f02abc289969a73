"""HTTP/3 and QPACK that break the rules: each fault has its own code, and ends no more than it must."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time

import pytest
from peers.capsule import DATA_TYPES, capsule, varint
from peers.flow import Flow
from peers.h3 import DATA, H3_DATAGRAM, HEADERS, SETTINGS, H3Session, H3Tunnel, frame, settings
from peers.matrix import connect, established
from peers.model import CLEAN, End, Headers, Request, tunnel_request
from peers.process import RelayProcess, StartRelay, until
from peers.target import Target, echo

TCP = "connect-tcp-12"
STREAM_CREATION, CLOSED_CRITICAL, FRAME_UNEXPECTED, FRAME_ERROR = 0x103, 0x104, 0x105, 0x106
EXCESSIVE_LOAD, ID_ERROR, SETTINGS_ERROR, MISSING_SETTINGS = 0x107, 0x108, 0x109, 0x10A
REQUEST_INCOMPLETE, MESSAGE_ERROR, DATAGRAM_ERROR = 0x10D, 0x10E, 0x33
DECOMPRESSION, ENCODER_STREAM, DECODER_STREAM = 0x200, 0x201, 0x202


async def raw(relay: RelayProcess, preface: bytes | None = None, **options: object) -> H3Session:
    """A connection without waiting for anything."""
    return await H3Session.connect(relay.endpoint("h3"), preface, wait=False, **options)  # type: ignore[arg-type]


async def ends_with(session: H3Session, codes: set[int]) -> None:
    """The relay closes the connection with one of these codes."""
    async with asyncio.timeout(10):
        await session.over.wait()
    assert session.terminated is not None
    assert session.terminated.error_code in codes, hex(session.terminated.error_code)


CONTROL_FAULTS: dict[str, tuple[bytes, set[int]]] = {
    "no SETTINGS": (frame(0x07, varint(0)), {MISSING_SETTINGS}),
    "grease before SETTINGS": (frame(0x21, b"x") + settings({}), {MISSING_SETTINGS}),
    "DATA before SETTINGS": (frame(DATA, b"x"), {MISSING_SETTINGS, FRAME_UNEXPECTED}),
    "SETTINGS twice": (settings({}) + settings({}), {FRAME_UNEXPECTED}),
    "one setting twice": (frame(SETTINGS, varint(0x21) + varint(0) + varint(0x21) + varint(0)), {SETTINGS_ERROR}),
    "H2 setting 0x02": (settings({0x2: 0}), {SETTINGS_ERROR}),
    "H2 setting 0x03": (settings({0x3: 100}), {SETTINGS_ERROR}),
    "H2 setting 0x04": (settings({0x4: 65535}), {SETTINGS_ERROR}),
    "H2 setting 0x05": (settings({0x5: 16384}), {SETTINGS_ERROR}),
    "H3_DATAGRAM of 2": (settings({H3_DATAGRAM: 2}), {SETTINGS_ERROR}),
    "SETTINGS cut short": (frame(SETTINGS, b"\x21"), {SETTINGS_ERROR, FRAME_ERROR}),
    "DATA": (settings({}) + frame(DATA, b"x"), {FRAME_UNEXPECTED}),
    "HEADERS": (settings({}) + frame(HEADERS, b"x"), {FRAME_UNEXPECTED}),
    "PUSH_PROMISE": (settings({}) + frame(0x05, b"\x00x"), {FRAME_UNEXPECTED}),
    "H2 frame 0x02": (settings({}) + frame(0x02, b"12345"), {FRAME_UNEXPECTED}),
    "H2 frame 0x06": (settings({}) + frame(0x06, b"12345678"), {FRAME_UNEXPECTED}),
    "H2 frame 0x08": (settings({}) + frame(0x08, b"1234"), {FRAME_UNEXPECTED}),
    "H2 frame 0x09": (settings({}) + frame(0x09, b""), {FRAME_UNEXPECTED}),
    "GOAWAY too long": (settings({}) + frame(0x07, varint(0) + b"x"), {FRAME_ERROR}),
    "GOAWAY that grows": (settings({}) + frame(0x07, varint(4)) + frame(0x07, varint(8)), {ID_ERROR}),
    "MAX_PUSH_ID that shrinks": (settings({}) + frame(0x0D, varint(4)) + frame(0x0D, varint(2)), {ID_ERROR}),
    "CANCEL_PUSH of nothing": (settings({}) + frame(0x03, varint(4)), {ID_ERROR}),
    "endless SETTINGS": (
        varint(SETTINGS) + varint(1 << 40) + bytes(100_000),
        {EXCESSIVE_LOAD, FRAME_ERROR, SETTINGS_ERROR},
    ),
}


# = rfc9114 §6.2.1 settings-first
# = rfc9114 §7.2.4.1 reserved-h2-settings
# = rfc9114 §7.2.8 reserved-h2-frames
# = rfc9297 §2.1.1 setting-values
@pytest.mark.parametrize("what", CONTROL_FAULTS)
async def test_control_stream_faults(relay: RelayProcess, what: str) -> None:
    data, codes = CONTROL_FAULTS[what]
    async with await raw(relay, data) as session:
        await ends_with(session, codes)


# = rfc9114 §6.2.1 control-stream-stays
async def test_a_closed_control_stream(relay: RelayProcess) -> None:
    async with await raw(relay, control=False) as session:
        stream_id = session.open_uni(0x00, settings({}))
        session.send_uni(stream_id, b"", end=True)
        await ends_with(session, {CLOSED_CRITICAL})


async def test_a_reset_control_stream(relay: RelayProcess) -> None:
    async with await H3Session.connect(relay.endpoint("h3"), control=False) as session:
        stream_id = session.open_uni(0x00, settings({}))
        assert (await session.ask(Request("GET", "/x"))).status == 404
        session.protocol._quic.reset_stream(stream_id, 0x100)
        session.protocol.transmit()
        await ends_with(session, {CLOSED_CRITICAL})


@pytest.mark.parametrize("kind", [0x00, 0x02, 0x03])
async def test_a_second_critical_stream(relay: RelayProcess, kind: int) -> None:
    async with await raw(relay) as session:
        session.open_uni(kind, settings({}) if kind == 0 else b"")
        if kind:
            session.open_uni(kind)
        await ends_with(session, {STREAM_CREATION})


async def test_a_push_stream_from_a_client(relay: RelayProcess) -> None:
    async with await raw(relay) as session:
        session.open_uni(0x01, varint(0))
        await ends_with(session, {STREAM_CREATION})


@pytest.mark.parametrize("kind", [0x02, 0x03])
async def test_closed_qpack_streams(relay: RelayProcess, kind: int) -> None:
    async with await raw(relay) as session:
        session.send_uni(session.open_uni(kind), b"", end=True)
        await ends_with(session, {CLOSED_CRITICAL})


QPACK_FAULTS: dict[str, tuple[int, bytes, int]] = {
    "capacity above ours": (0x02, b"\x3f\xe1\x1f", ENCODER_STREAM),
    "insert without capacity": (0x02, b"\xc1\x01x", ENCODER_STREAM),
    "duplicate of nothing": (0x02, b"\x00", ENCODER_STREAM),
    "section acknowledgement": (0x03, b"\x80", DECODER_STREAM),
    "insert count increment": (0x03, b"\x01", DECODER_STREAM),
    "insert count increment of 0": (0x03, b"\x00", DECODER_STREAM),
}


@pytest.mark.parametrize("what", QPACK_FAULTS)
async def test_qpack_stream_faults(relay: RelayProcess, what: str) -> None:
    kind, data, code = QPACK_FAULTS[what]
    async with await raw(relay) as session:
        session.open_uni(kind, data)
        await ends_with(session, {code})


async def test_legal_qpack_instructions(relay: RelayProcess) -> None:
    async with await H3Session.connect(relay.endpoint("h3")) as session:
        session.open_uni(0x02, b"\x20")  # Set Dynamic Table Capacity 0
        session.open_uni(0x03, b"\x40")  # Stream Cancellation of stream 0
        assert (await session.ask(Request("GET", "/x"))).status == 404


# = rfc9114 §9 unknown-frames
async def test_grease_is_ignored_everywhere(relay: RelayProcess) -> None:
    preface = (
        settings({0x1F * 7 + 0x21: 5, 0x3F3F3F3F: 1 << 40, H3_DATAGRAM: 1})
        + frame(0x21, b"g" * 100)
        + frame(0x1F * 1000 + 0x21)
    )
    async with await H3Session.connect(relay.endpoint("h3"), preface) as session, Target() as target:
        session.open_uni(0x21, b"a stream of no type")
        session.open_uni(0x1F * 100 + 0x21, b"g" * 50_000)
        stream = session.stream()
        request = tunnel_request(TCP, target.host, target.port)
        data = frame(0x21, b"before") + frame(
            HEADERS, session.block(stream.stream_id, [*session.pseudo(request), *request.headers])
        )
        data += frame(0x1F * 3 + 0x21, b"between" * 5000) + frame(DATA, capsule(DATA_TYPES[TCP][0], b"payload")[:6])
        data += frame(0x1F * 4 + 0x21) + frame(DATA) + frame(DATA, capsule(DATA_TYPES[TCP][0], b"payload")[6:])
        await stream.send_raw(data)
        connection = await target.accept()
        assert await connection.read_exactly(7) == b"payload"
        assert (await stream.answer()).status == 200


async def request_with(relay: RelayProcess, data: bytes, end: bool = False) -> tuple[H3Session, H3Tunnel]:
    session = await raw(relay)
    stream = session.stream()
    await stream.send_raw(data, end)
    return session, stream


REQUEST_FRAME_FAULTS: dict[str, tuple[bytes, set[int]]] = {
    "DATA before HEADERS": (frame(DATA, b"x"), {FRAME_UNEXPECTED}),
    "SETTINGS": (settings({}), {FRAME_UNEXPECTED}),
    "GOAWAY": (frame(0x07, varint(0)), {FRAME_UNEXPECTED}),
    "MAX_PUSH_ID": (frame(0x0D, varint(0)), {FRAME_UNEXPECTED}),
    "CANCEL_PUSH": (frame(0x03, varint(0)), {FRAME_UNEXPECTED}),
    "PUSH_PROMISE": (frame(0x05, b"\x00\x00\x00"), {FRAME_UNEXPECTED}),
    "H2 frame 0x02": (frame(0x02, b"12345"), {FRAME_UNEXPECTED}),
    "H2 frame 0x06": (frame(0x06, b"12345678"), {FRAME_UNEXPECTED}),
    "H2 frame 0x08": (frame(0x08, b"1234"), {FRAME_UNEXPECTED}),
    "H2 frame 0x09": (frame(0x09, b""), {FRAME_UNEXPECTED}),
    "empty field section": (frame(HEADERS), {DECOMPRESSION}),
    "needs a dynamic table": (frame(HEADERS, b"\x02\x00\x80"), {DECOMPRESSION}),
    "static index 99": (frame(HEADERS, b"\x00\x00\xff\x24"), {DECOMPRESSION}),
    "integer overflow": (frame(HEADERS, b"\x00\x00\xff" + b"\xff" * 12), {DECOMPRESSION}),
    "bad Huffman": (frame(HEADERS, b"\x00\x00\x5f\x00\x84\xff\xff\xff\xff"), {DECOMPRESSION}),
    "a string beyond the block": (frame(HEADERS, b"\x00\x00\x51\x7f\x00ab"), {DECOMPRESSION}),
}


@pytest.mark.parametrize("what", REQUEST_FRAME_FAULTS)
async def test_request_stream_faults_that_end_the_connection(relay: RelayProcess, what: str) -> None:
    data, codes = REQUEST_FRAME_FAULTS[what]
    session, _ = await request_with(relay, data)
    async with session:
        await ends_with(session, codes)


def leftovers() -> dict[str, tuple[list[bytes | Headers], int, bool]]:
    """What may not follow the head of a request that gets no tunnel: frames or field sections, code, connection."""
    trailers: Headers = [("x", "y")]
    data = frame(DATA, b"abc")
    return {
        "H2 frame 0x02": ([frame(0x02, b"12345")], FRAME_UNEXPECTED, True),
        "SETTINGS": ([settings({})], FRAME_UNEXPECTED, True),
        "GOAWAY": ([frame(0x07, varint(0))], FRAME_UNEXPECTED, True),
        "MAX_PUSH_ID": ([frame(0x0D, varint(0))], FRAME_UNEXPECTED, True),
        "CANCEL_PUSH": ([frame(0x03, varint(0))], FRAME_UNEXPECTED, True),
        "PUSH_PROMISE": ([frame(0x05, b"\x00\x00\x00")], FRAME_UNEXPECTED, True),
        "trailers twice": ([data, trailers, trailers], FRAME_UNEXPECTED, True),
        "DATA after trailers": ([trailers, data], FRAME_UNEXPECTED, True),
        "DATA cut short": ([data[:-1]], FRAME_ERROR, True),
        "trailers that cannot be decoded": ([frame(HEADERS, b"\x02\x00\x80")], DECOMPRESSION, True),
        "pseudo field in trailers": ([data, [(":path", "/")]], MESSAGE_ERROR, False),
        "upper-case name in trailers": ([data, [("X", "y")]], MESSAGE_ERROR, False),
    }


LENGTHS: dict[str, list[bytes]] = {"10": [frame(DATA, b"abc")], "2": [frame(DATA, b"ab"), frame(DATA, b"c")], "5": []}


# = rfc9114 §4.1.2 content-length
@pytest.mark.parametrize("length", LENGTHS)
async def test_content_of_another_length_than_announced(relay: RelayProcess, length: str) -> None:
    async with await H3Session.connect(relay.endpoint("h3")) as session:
        stream = session.stream()
        request = [*session.pseudo(Request("POST", "/x")), ("content-length", length)]
        data = frame(HEADERS, session.block(stream.stream_id, request)) + b"".join(LENGTHS[length])
        await stream.send_raw(data, end=True)
        _, end = await stream.drained()
        assert end == End("reset", MESSAGE_ERROR)
        assert (await session.ask(Request("GET", "/x"))).status == 404


# = rfc9114 §4.1.2 malformed-request
@pytest.mark.parametrize("what", leftovers())
@pytest.mark.parametrize("apart", [False, True])
async def test_what_follows_the_head_of_a_refused_request(relay: RelayProcess, what: str, apart: bool) -> None:
    parts, code, ends_connection = leftovers()[what]
    async with await H3Session.connect(relay.endpoint("h3")) as session:
        stream = session.stream()
        request = session.pseudo(Request("POST", "/x"))
        sections = [
            part if isinstance(part, bytes) else frame(HEADERS, session.block(stream.stream_id, part)) for part in parts
        ]
        head, rest = frame(HEADERS, session.block(stream.stream_id, request)), b"".join(sections)
        if apart:
            # The answer comes before the rest does.
            await stream.send_raw(head)
            assert (await stream.answer()).status == 404
            await stream.send_raw(rest, end=True)
        else:
            await stream.send_raw(head + rest, end=True)
        if ends_connection:
            await ends_with(session, {code})
        elif apart:
            async with asyncio.timeout(5):
                await stream.stopped_seen.wait()
            assert stream.stopped == code
        else:
            _, end = await stream.drained()
            assert end == End("reset", code)
        if not ends_connection:
            assert (await session.ask(Request("GET", "/x"))).status == 404


async def test_content_and_trailers_of_a_refused_request(relay: RelayProcess) -> None:
    async with await H3Session.connect(relay.endpoint("h3")) as session:
        stream = session.stream()
        head = [*session.pseudo(Request("POST", "/x")), ("content-length", "3")]
        data = frame(HEADERS, session.block(stream.stream_id, head)) + frame(0x21, b"grease") + frame(DATA, b"ab")
        data += frame(DATA, b"c") + frame(HEADERS, session.block(stream.stream_id, [("x", "y")])) + frame(0x21)
        await stream.send_raw(data, end=True)
        assert (await stream.answer()).status == 404
        _, end = await stream.drained()
        assert end == CLEAN


# = rfc9114 §6.2.1 control-stream-stays
async def test_the_relay_s_control_stream_may_not_be_stopped(relay: RelayProcess) -> None:
    async with await H3Session.connect(relay.endpoint("h3")) as session:
        control = next(stream_id for stream_id, kind in session.uni_kind.items() if kind == 0)
        session.protocol._quic.stop_stream(control, 0x100)
        session.protocol.transmit()
        await ends_with(session, {CLOSED_CRITICAL})


# = rfc9297 §2 datagram-without-meaning
async def test_a_datagram_for_a_tunnel_whose_target_is_stalled(relay: RelayProcess) -> None:
    async with established(relay, "h3", "connect") as (flow, _):
        stream = flow.tunnel
        assert isinstance(stream, H3Tunnel)
        sender = asyncio.create_task(flow.write(bytes(32 << 20)))
        # Every buffer on the way is full once nothing is acknowledged any more.
        seen, taken = -1, 0
        while taken != seen:
            await asyncio.sleep(0.7)
            seen, taken = taken, stream.session.protocol._quic._streams[stream.stream_id].sender._buffer_start
        stream.session.datagram(varint(stream.stream_id // 4) + b"what is this")
        async with asyncio.timeout(8):
            await stream.stopped_seen.wait()
        assert stream.stopped == DATAGRAM_ERROR
        await asyncio.gather(sender, return_exceptions=True)


async def test_a_frame_cut_short_by_the_end(relay: RelayProcess) -> None:
    for data in (varint(HEADERS) + varint(100) + b"\x00\x00", varint(HEADERS), b"\x40"):
        session, _ = await request_with(relay, data, end=True)
        async with session:
            await ends_with(session, {FRAME_ERROR, REQUEST_INCOMPLETE})


async def test_a_stream_without_a_request(relay: RelayProcess) -> None:
    async with await H3Session.connect(relay.endpoint("h3")) as session:
        stream = session.stream()
        await stream.send_raw(b"", end=True)
        _, end = await stream.drained()
        assert end == End("reset", REQUEST_INCOMPLETE)
        assert (await session.ask(Request("GET", "/x"))).status == 404


async def test_a_data_frame_cut_short_by_the_end_of_a_tunnel(relay: RelayProcess) -> None:
    async with established(relay, "h3", TCP) as (flow, target):
        stream = flow.tunnel
        assert isinstance(stream, H3Tunnel)
        await stream.send_raw(varint(DATA) + varint(100) + capsule(DATA_TYPES[TCP][0], b"abc"))
        assert await target.read_exactly(3) == b"abc"
        await stream.send_raw(b"", end=True)
        await target.read_to_end()
        assert target.end == End("reset")
        _, end = await stream.drained()
        assert end.code in (FRAME_ERROR, MESSAGE_ERROR)


# = rfc9114 §4.4 connect-frames
# = connect-tcp §4.2 no-trailers
async def test_headers_on_a_tunnel(relay: RelayProcess) -> None:
    async with established(relay, "h3", TCP) as (flow, target):
        stream = flow.tunnel
        assert isinstance(stream, H3Tunnel)
        await stream.send_raw(frame(HEADERS, stream.session.block(stream.stream_id, [("trailer", "x")])))
        await target.read_to_end()
        assert target.end == End("reset")
        _, end = await stream.drained()
        assert end.code == FRAME_UNEXPECTED


def malformed(base: Headers) -> dict[str, Headers]:
    """Requests that are wrong, each in one way."""

    def without(name: str) -> Headers:
        return [item for item in base if item[0] != name]

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
        "upper-case name": [*base, ("X-Upper", "y")],
        "space in a name": [*base, ("a b", "y")],
        "connection": [*base, ("connection", "upgrade")],
        "upgrade": [*base, ("upgrade", TCP)],
        "keep-alive": [*base, ("keep-alive", "1")],
        "proxy-connection": [*base, ("proxy-connection", "keep-alive")],
        "transfer-encoding": [*base, ("transfer-encoding", "chunked")],
        "te": [*base, ("te", "gzip")],
        "NUL in a value": [*base, ("x", "a\x00b")],
        "line feed in a value": [*base, ("x", "a\nb")],
        "carriage return in a value": [*base, ("x", "a\rb")],
        ":protocol with GET": instead(":method", "GET"),
        "CONNECT with :path": without(":protocol"),
        "host differs": [*base, ("host", "other.test")],
        "userinfo": instead(":authority", "user@relay.test"),
        "content-length": [*base, ("content-length", "5")],
        "content-type": [*base, ("content-type", "text/plain")],
        "two different content-length": [*base, ("content-length", "5"), ("content-length", "6")],
    }


MALFORMED = list(malformed([(":method", "CONNECT"), (":protocol", TCP)]))


# = rfc9114 §4.1.2 malformed-request
# = rfc9114 §4.3.1 authority-and-host
# = rfc9114 §4.4 connect-pseudo-fields
# = rfc9297 §3.2 content-fields-malformed
# = connect-tcp §3.2 nonconforming-is-client-error
@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_requests_are_stream_errors_or_400(relay: RelayProcess, what: str) -> None:
    async with Target() as target, await H3Session.connect(relay.endpoint("h3")) as session:
        request = tunnel_request(TCP, target.host, target.port)
        base = [*session.pseudo(request), *request.headers]
        stream = await session.open_raw(malformed(base)[what])
        try:
            assert (await stream.answer()).status == 400
        except ConnectionResetError:
            assert stream.end == End("reset", MESSAGE_ERROR)
        assert (await session.ask(Request("GET", "/x"))).status == 404


async def test_oversize_field_sections(relay: RelayProcess) -> None:
    async with await H3Session.connect(relay.endpoint("h3")) as session:
        base = session.pseudo(Request("GET", "/x"))
        stream = await session.open_raw([*base, *[(f"x-{n}", "v" * 1000) for n in range(100)]], end=True)
        try:
            assert (await stream.answer()).status == 431
        except ConnectionResetError:
            assert stream.end is not None
            assert stream.end.kind == "reset"
            assert stream.end.code in (EXCESSIVE_LOAD, MESSAGE_ERROR, 0x10B)
        assert (await session.ask(Request("GET", "/x"))).status == 404


async def test_an_endless_field_section(relay: RelayProcess) -> None:
    async with await H3Session.connect(relay.endpoint("h3")) as session:
        before = relay.resident
        stream = session.stream()
        with contextlib.suppress(ConnectionError, AssertionError, KeyError):
            await stream.send_raw(varint(HEADERS) + varint(1 << 40) + bytes(4 << 20))
        assert await until(lambda: stream.stopped is not None or stream.ended is not None, 5)
        assert relay.resident - before < 16 << 20


# = rfc9297 §2.1 quarter-stream-id-range
# = rfc9297 §2.1 datagram-too-short
@pytest.mark.parametrize(
    "data",
    [b"", b"\x40", b"\xc0\x00", varint(1 << 60), varint((1 << 62) - 1) + b"x"],
    ids=["empty", "short2", "short8", "2^60", "2^62-1"],
)
async def test_a_bad_quarter_stream_id(relay: RelayProcess, data: bytes) -> None:
    async with await H3Session.connect(relay.endpoint("h3")) as session:
        session.datagram(data)
        await ends_with(session, {DATAGRAM_ERROR})


# = rfc9297 §2 datagram-without-meaning
async def test_a_datagram_for_a_tcp_tunnel(relay: RelayProcess, protocol: str) -> None:
    async with established(relay, "h3", protocol) as (flow, target):
        stream = flow.tunnel
        assert isinstance(stream, H3Tunnel)
        stream.session.datagram(varint(stream.stream_id // 4) + b"what is this")
        await target.read_to_end()
        assert target.end == End("reset")
        _, end = await stream.drained()
        assert end == End("reset", DATAGRAM_ERROR)
        assert (await stream.session.ask(Request("GET", "/x"))).status == 404


# = rfc9297 §3.5 datagram-capsule-like-frame
@pytest.mark.parametrize("transport", ["h1", "h1tls", "h2", "h3"])
async def test_a_datagram_capsule_for_a_tcp_tunnel(relay: RelayProcess, transport: str) -> None:
    expected = {
        "h1": {End("reset")},
        "h1tls": {End("truncated"), End("reset")},
        "h2": {End("reset", 0x1)},
        "h3": {End("reset", DATAGRAM_ERROR)},
    }
    async with established(relay, transport, TCP) as (flow, target):
        await flow.tunnel.send(capsule(0x00, b"what is this"))
        await target.read_to_end()
        assert target.end == End("reset")
        assert await flow.closed() in expected[transport]


# = rfc9297 §2.1 datagram-unknown-stream
# = rfc9297 §2.1 datagram-after-close
async def test_datagrams_for_streams_that_are_not_there(relay: RelayProcess) -> None:
    async with await H3Session.connect(relay.endpoint("h3")) as session:
        for number in range(200):
            session.datagram(varint(number % 50) + b"x" * 500)
        assert (await session.ask(Request("GET", "/x"))).status == 404
        session.datagram(varint(0) + b"too late")
        assert (await session.ask(Request("GET", "/x"))).status == 404


# = rfc9220 §3 setting
# = rfc9297 §2.1.1 setting-always-sent
# = connect-tcp §3.2 enable-connect-protocol
async def test_the_relay_s_own_settings(relay: RelayProcess) -> None:
    async with await H3Session.connect(relay.endpoint("h3")) as session:
        assert session.settings is not None
        assert session.settings[0x08] == 1
        assert session.settings[0x33] == 1
        assert session.settings[0x06] >= 16_384
        assert session.settings.get(0x01, 0) == 0
        assert session.settings.get(0x07, 0) == 0
        assert any((key - 0x21) % 0x1F == 0 for key in session.settings), "no grease"
        assert not {0x2, 0x3, 0x4, 0x5} & set(session.settings)
        assert session.protocol._quic._remote_max_datagram_frame_size


async def test_requests_reset_before_an_answer(launch: StartRelay) -> None:
    relay = launch(workers=1)
    before, descriptors = relay.resident, relay.descriptors
    async with Target(echo) as target, await H3Session.connect(relay.endpoint("h3")) as session:
        for _ in range(60):
            for _ in range(50):
                if session.terminated is None:
                    stream = await session.open(tunnel_request(TCP, target.host, target.port))
                    await stream.abort()
            await asyncio.sleep(0)
        began = time.monotonic()
        async with await connect(relay, "h3") as other:
            assert (await other.ask(Request("GET", "/x"))).status == 404
        assert time.monotonic() - began < 3
        assert relay.resident - before < 32 << 20
    assert await relay.settled_descriptors(descriptors) <= descriptors
    relay.stop()


@pytest.mark.timeout(60)
async def test_tunnels_that_opened_may_be_reset_without_end(relay: RelayProcess) -> None:
    async with Target(echo) as target, await H3Session.connect(relay.endpoint("h3")) as session:
        for _ in range(15):
            tunnels = [await session.open(tunnel_request(TCP, target.host, target.port)) for _ in range(60)]
            for tunnel in tunnels:
                assert (await tunnel.answer()).status == 200
            for tunnel in tunnels:
                await tunnel.abort()
                await tunnel.stop()
        flow = Flow(await session.open(tunnel_request(TCP, target.host, target.port)), TCP)
        await flow.write(b"still here")
        assert await flow.read_exactly(10) == b"still here"


async def test_garbage_on_the_udp_port(relay: RelayProcess) -> None:
    generator = random.Random(1)
    endpoint = relay.endpoint("h3")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(3000):
            sock.sendto(generator.randbytes(generator.randrange(1, 1400)), (endpoint.host, endpoint.port))
    async with await H3Session.connect(endpoint) as session:
        assert (await session.ask(Request("GET", "/x"))).status == 404
