"""HTTP/1.1 requests that try to be understood in two ways, or not to end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

import pytest
from peers.capsule import DATA_TYPES, capsule
from peers.matrix import connect
from peers.model import TOKEN, Request, path_to
from peers.process import RelayProcess, StartRelay
from peers.target import Target, unused_port
from peers.wire import TcpWire, TlsWire, Wire, client_context

TCP = "connect-tcp-12"
AUTH = f"Authorization: Bearer {TOKEN}\r\n"
UPGRADE = f"Connection: Upgrade\r\nUpgrade: {TCP}\r\n"
PATH = path_to("127.0.0.1", 9)
TRANSPORTS = ("h1", "h1tls")


async def wire_to(relay: RelayProcess, transport: str) -> Wire:
    endpoint = relay.endpoint(transport)
    if transport == "h1":
        return await TcpWire.connect(endpoint.host, endpoint.port)
    return await TlsWire.connect(endpoint, ["http/1.1"])


def statuses(received: bytes | bytearray) -> list[int]:
    """The statuses of the answers so far."""
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", bytes(received))]


async def exchange(relay: RelayProcess, transport: str, data: bytes, enough: int = 100) -> tuple[list[int], bool]:
    """The statuses of all answers (or of `enough`), and whether the relay closed by itself (within a second)."""
    wire = await wire_to(relay, transport)
    try:
        await wire.send(data)
        received, closed = bytearray(), False
        try:
            async with asyncio.timeout(1.2):
                while len(statuses(received)) < enough and (piece := await wire.recv()):
                    received += piece
                closed = len(statuses(received)) < enough
        except TimeoutError:
            pass
        return statuses(received), closed
    finally:
        await wire.close()


def upgrade(*lines: str, path: str = PATH) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: relay.test\r\n{AUTH}{UPGRADE}{''.join(line + chr(13) + chr(10) for line in lines)}\r\n".encode(
        "latin-1"
    )


def plain(*lines: str, method: str = "POST", body: str = "") -> bytes:
    return f"{method} /x HTTP/1.1\r\nHost: relay.test\r\n{''.join(line + chr(13) + chr(10) for line in lines)}\r\n{body}".encode(
        "latin-1"
    )


SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: relay.test\r\n\r\n"

REFUSED = {
    "CL and TE": plain("Content-Length: 5", "Transfer-Encoding: chunked", body="0\r\n\r\n" + SMUGGLED),
    "TE and CL": plain("Transfer-Encoding: chunked", "Content-Length: 5", body="0\r\n\r\n" + SMUGGLED),
    "two CL that differ": plain("Content-Length: 5", "Content-Length: 6", body="hello" + SMUGGLED),
    "two CL in one field": plain("Content-Length: 5, 6", body="hello" + SMUGGLED),
    "CL with a sign": plain("Content-Length: +5", body="hello" + SMUGGLED),
    "negative CL": plain("Content-Length: -5", body="hello" + SMUGGLED),
    "hexadecimal CL": plain("Content-Length: 0x5", body="hello" + SMUGGLED),
    "empty CL": plain("Content-Length:", body=SMUGGLED),
    "CL beyond 64 bit": plain("Content-Length: 99999999999999999999999", body=SMUGGLED),
    "unknown TE": plain("Transfer-Encoding: xchunked", body=SMUGGLED),
    "TE not last": plain("Transfer-Encoding: chunked, gzip", body="0\r\n\r\n" + SMUGGLED),
    "TE twice": plain("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body="0\r\n\r\n" + SMUGGLED),
    "TE in HTTP/1.0": b"POST /x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED.encode(),
    "obs-fold": plain("X-Folded: one", " two", method="GET"),
    "obs-fold of the first field": b"GET /x HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n",
    "space before the colon": plain("Content-Length : 5", body="hello" + SMUGGLED),
    "space in a name": plain("Content Length: 5", method="GET"),
    "empty name": plain(": x", method="GET"),
    "control in a value": plain("X: a\x01b", method="GET"),
    "NUL in a value": plain("X: a\x00b", method="GET"),
    "bare CR in a value": plain("X: a\rb", method="GET"),
    "bare LF between fields": b"GET /x HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare LF at the end": b"GET /x HTTP/1.1\r\nHost: a\r\n\n",
    "bare LF after the request line": b"GET /x HTTP/1.1\nHost: a\r\n\r\n",
    "no Host": b"GET /x HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "bad Host": b"GET /x HTTP/1.1\r\nHost: a b\r\n\r\n",
    "Host with a path": b"GET /x HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "Host with userinfo": b"GET /x HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "two spaces": b"GET  /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab": b"GET\t/x\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"GET /x\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"GET /x HTTP/2.0\r\nHost: a\r\n\r\n",
    "lower-case version": b"GET /x http/1.1\r\nHost: a\r\n\r\n",
    "bad method": b"G@T /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "high bytes in the target": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "control in the target": b"GET /\x07 HTTP/1.1\r\nHost: a\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS on cleartext": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    "zeros": bytes(512) + b"\r\n\r\n",
}


# = rfc9112 §2.2 bare-lf
# = rfc9112 §5.1 space-before-colon
# = rfc9112 §5.2 obs-fold
# = rfc9112 §3.2 one-host
# = rfc9112 §6.3 length-conflict
# = connect-tcp §3.1 h1-host
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("what", REFUSED)
async def test_ambiguous_requests_are_refused_and_nothing_follows(
    relay: RelayProcess, transport: str, what: str
) -> None:
    found, closed = await exchange(relay, transport, REFUSED[what] + SMUGGLED.encode())
    assert len(found) <= 1, found
    assert all(400 <= status < 600 and status != 404 for status in found), found
    assert closed


VERSIONS = {
    "HTTP/1.2": (b"GET /x HTTP/1.2\r\nHost: a\r\nConnection: close\r\n\r\n", 404),
    "HTTP/1.9": (b"GET /x HTTP/1.9\r\nHost: a\r\nConnection: close\r\n\r\n", 404),
    "HTTP/2.0": (b"GET /x HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "HTTP/0.9": (b"GET /x HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    "lower case": (b"GET /x http/1.1\r\nHost: a\r\n\r\n", 400),
    "two digits": (b"GET /x HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    "two spaces": (b"GET /x  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
}


# = rfc9110 §2.5 higher-minor
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("what", VERSIONS)
async def test_versions(relay: RelayProcess, transport: str, what: str) -> None:
    data, status = VERSIONS[what]
    assert await exchange(relay, transport, data) == ([status], True)


BODIES = {
    "CL of 0 on an Upgrade": upgrade("Content-Length: 0"),
    "Content-Type on an Upgrade": upgrade("Content-Type: text/plain"),
    "CL on an Upgrade": upgrade("Content-Length: 5") + b"hello",
    "chunked on an Upgrade": upgrade("Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "CL and TE on an Upgrade": upgrade("Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "two Hosts on an Upgrade": upgrade("Host: other"),
    "obs-fold on an Upgrade": upgrade("X: a", " b"),
}


# = rfc9297 §3.2 content-fields-malformed
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("what", BODIES)
async def test_an_upgrade_with_a_body_is_400_and_closes(relay: RelayProcess, transport: str, what: str) -> None:
    found, closed = await exchange(relay, transport, BODIES[what] + SMUGGLED.encode())
    assert found == [400]
    assert closed


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_connect_with_a_body_is_refused(relay: RelayProcess, transport: str) -> None:
    async with Target() as target:
        for line in ("Content-Length: 5", "Transfer-Encoding: chunked"):
            head = f"CONNECT 127.0.0.1:{target.port} HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\n{AUTH}{line}\r\n\r\n"
            found, closed = await exchange(relay, transport, head.encode() + b"hello")
            assert found == [400]
            assert closed


# = rfc9110 §7.8 upgrade-needs-connection
# = rfc9110 §7.6.1 connection-options
# = connect-tcp §3.1 h1-connection
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_upgrade_needs_the_connection_option(relay: RelayProcess, transport: str) -> None:
    async with Target() as target:
        path = path_to("127.0.0.1", target.port)
        start = f"GET {path} HTTP/1.1\r\nHost: a\r\n{AUTH}"
        forms = {
            f"Upgrade: {TCP}\r\n": 426,
            f"Connection: keep-alive\r\nUpgrade: {TCP}\r\n": 426,
            f"Connection: keep-alive, UPGRADE\r\nUpgrade: {TCP}\r\n": 101,
            f"Connection: close\r\nConnection: upgrade\r\nUpgrade: {TCP}\r\n": 101,
            "Connection: Upgrade\r\n": 426,
        }
        for fields, status in forms.items():
            found, _ = await exchange(relay, transport, f"{start}{fields}\r\n".encode(), 1)
            assert found == [status], fields
        found, _ = await exchange(
            relay, transport, f"GET {path} HTTP/1.0\r\nHost: a\r\n{AUTH}{UPGRADE}\r\n".encode(), 1
        )
        assert found == [426]


# = rfc9112 §3.2.2 absolute-form
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_absolute_form(relay: RelayProcess, transport: str) -> None:
    async with Target() as target:
        path = path_to("127.0.0.1", target.port)
        scheme = "http" if transport == "h1" else "https"
        request = f"GET {scheme}://relay.test{path} HTTP/1.1\r\nHost: relay.test\r\n{AUTH}{UPGRADE}\r\n"
        found, _ = await exchange(relay, transport, request.encode(), 1)
        assert found == [101]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_capsules_before_a_101_are_never_a_request(relay: RelayProcess, transport: str) -> None:
    # A client that breaks the rule and sends capsules early: whatever happens, they are not parsed as HTTP.
    smuggled = capsule(DATA_TYPES[TCP][0], f"\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n{AUTH}\r\n".encode())
    found, closed = await exchange(relay, transport, upgrade(path=path_to("127.0.0.1", unused_port())) + smuggled)
    assert found[0] == 502
    assert 404 not in found
    assert closed


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_pipelined_refusals_are_answered_in_order(relay: RelayProcess, transport: str) -> None:
    data = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n" * 5 + b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert await exchange(relay, transport, data) == ([404] * 6, True)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_request_body_is_skipped_or_the_connection_closed(relay: RelayProcess, transport: str) -> None:
    found, closed = await exchange(relay, transport, plain("Content-Length: 5", body="hello") + SMUGGLED.encode())
    assert found == ([404] if closed else [404, 404])
    found, closed = await exchange(
        relay, transport, plain("Transfer-Encoding: chunked", body="5\r\nhello\r\n0\r\n\r\n") + SMUGGLED.encode()
    )
    assert found == ([404] if closed else [404, 404])


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("what", ["one field", "many fields", "request line", "endless"])
async def test_oversize_heads(relay: RelayProcess, transport: str, what: str) -> None:
    data = {
        "one field": plain("X: " + "a" * 200_000, method="GET"),
        "many fields": plain(*[f"X-{n}: {n}" for n in range(20_000)], method="GET"),
        "request line": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        "endless": b"GET /x HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 2_000_000,
    }[what]
    wire = await wire_to(relay, transport)
    received = bytearray()

    async def write() -> None:
        with contextlib.suppress(OSError):
            await wire.send(data)

    writer = asyncio.create_task(write())
    while piece := await wire.recv():
        received += piece
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    await wire.close()
    # A reset may overtake the answer; another answer than a refusal may not come.
    assert statuses(received) in ([], [431], [414], [400])


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_head_in_single_bytes(relay: RelayProcess, transport: str) -> None:
    wire = await wire_to(relay, transport)
    for byte in b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":
        await wire.send(bytes([byte]))
    received = bytearray()
    while piece := await wire.recv():
        received += piece
    await wire.close()
    assert received.startswith(b"HTTP/1.1 404 ")


@pytest.fixture(scope="module")
def impatient(launch: StartRelay) -> RelayProcess:
    return launch(limits={"header_timeout": "1s"})


CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
STARTS = [
    ("h1", b""),
    ("h1", b"GET /x HTT"),
    ("h1", b"GET /x HTTP/1.1\r\nHost: a\r\n"),
    ("h1", b"PRI * HTTP/2.0\r\n"),
    ("h1tls", b""),
    ("h1tls", CLIENT_HELLO[:3]),
    ("h1tls", CLIENT_HELLO),
]


@pytest.mark.parametrize(("transport", "start"), STARTS)
async def test_slowloris(impatient: RelayProcess, transport: str, start: bytes) -> None:
    # Dripping bytes gains no time: the limit is one on the whole head, or the whole TLS handshake.
    endpoint = impatient.endpoint(transport)
    wire = await TcpWire.connect(endpoint.host, endpoint.port)
    began = time.monotonic()
    await wire.send(start)

    async def drip() -> None:
        while True:
            await asyncio.sleep(0.2)
            try:
                await wire.send((b"\x02" if transport == "h1tls" else b"X") if start else b"")
            except OSError:
                return

    dripping = asyncio.create_task(drip())
    while await wire.recv():
        pass
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)
    await wire.close()
    assert 0.7 < time.monotonic() - began < 4


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_limit_on_the_first_head_begins_with_the_connection(impatient: RelayProcess, transport: str) -> None:
    # Neither the handshake nor the first bytes, which tell the version, begin it anew.
    endpoint = impatient.endpoint(transport)
    tcp = await TcpWire.connect(endpoint.host, endpoint.port)
    began = time.monotonic()
    await asyncio.sleep(0.6)
    wire: Wire = tcp
    if transport == "h1tls":
        wire = TlsWire(tcp, client_context(endpoint.authority_file, ["http/1.1"]), "localhost")
        await wire.handshake()
    await wire.send(b"PRI /x HTT" if transport == "h1" else b"GET /x HTT")
    received = bytearray()
    while piece := await wire.recv():
        received += piece
    await wire.close()
    assert 0.8 < time.monotonic() - began < 1.5
    assert statuses(received) == [408]


async def test_a_stalled_preface_is_told(impatient: RelayProcess) -> None:
    assert await exchange(impatient, "h1", b"PRI * HT", 1) == ([408], False)


async def test_slowloris_inside_tls(impatient: RelayProcess) -> None:
    wire = await wire_to(impatient, "h1tls")
    began = time.monotonic()
    await wire.send(b"GET /x HTTP/1.1\r\n")
    while await wire.recv():
        pass
    await wire.close()
    assert 0.5 < time.monotonic() - began < 4


async def test_a_thousand_silent_connections_disturb_nobody(impatient: RelayProcess) -> None:
    before = impatient.descriptors
    endpoint = impatient.endpoint("h1")
    wires = [await TcpWire.connect(endpoint.host, endpoint.port) for _ in range(500)]
    async with await connect(impatient, "h2c") as session:
        assert (await session.ask(Request("GET", "/x"))).status == 404
    for wire in wires:
        while await wire.recv():
            pass
        await wire.close()
    assert await impatient.settled_descriptors(before) <= before
