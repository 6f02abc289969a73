"""curl as a client of classic CONNECT: every form of it that the installed curl has."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from peers.model import TOKEN
from peers.pki import Authority
from peers.process import RelayProcess
from peers.target import Connection, Target, unused_port
from peers.wire import TlsWire

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

PAGE = random.Random(11).randbytes(3 << 20)


async def serve_page(connection: Connection | TlsWire) -> None:
    """An HTTP/1.1 origin of one page; POST gives back the digest of what came."""
    head = bytearray()
    while b"\r\n\r\n" not in head:
        data = await connection.recv()
        if not data:
            return
        head += data
    text, _, body = bytes(head).partition(b"\r\n\r\n")
    answer = PAGE
    if text.startswith(b"POST"):
        found = re.search(rb"(?i)content-length: (\d+)", text)
        assert found is not None
        if b"100-continue" in text:
            await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        received = bytearray(body)
        while len(received) < int(found[1]):
            received += await connection.recv()
        answer = hashlib.sha256(received).hexdigest().encode()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(answer) + answer)
    await connection.finish()


@asynccontextmanager
async def origin(authority: Authority | None = None) -> AsyncIterator[str]:
    """The URL of an origin, over TLS when an authority is given."""
    if authority is None:
        async with Target(serve_page) as target:
            yield f"http://127.0.0.1:{target.port}/"
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.server("origin"))

    async def serve(connection: Connection) -> None:
        tls = TlsWire(connection, context, None, server_side=True)
        await tls.handshake()
        await serve_page(tls)

    async with Target(serve) as target:
        yield f"https://127.0.0.1:{target.port}/"


async def curl(*arguments: str | Path) -> tuple[int, bytes, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--max-time", "20", "--noproxy", "", *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out, errors.decode(errors="replace")


def proxy(relay: RelayProcess, transport: str, authority: Authority) -> list[str | Path]:
    endpoint = relay.endpoint(transport)
    scheme = "http" if transport == "h1" else "https"
    found: list[str | Path] = ["--proxy", f"{scheme}://{endpoint.authority}", "--proxy-user", f"tester:{TOKEN}", "-p"]
    if transport != "h1":
        found += ["--proxy-cacert", authority.file]
    if transport == "h2":
        found += ["--proxy-http2"]
    return found


async def speaks(transport: str) -> bool:
    if transport != "h2":
        return True
    _, out, _ = await curl("--help", "all")
    return b"--proxy-http2" in out


FORMS = ["h1", "h1tls", "h2"]


@pytest.mark.parametrize("transport", FORMS)
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
async def test_download(relay: RelayProcess, authority: Authority, transport: str, secure: bool) -> None:
    if not await speaks(transport):
        pytest.skip("this curl has no --proxy-http2")
    async with origin(authority if secure else None) as url:
        code, out, errors = await curl(*proxy(relay, transport, authority), "--cacert", authority.file, url)
        assert code == 0, errors
        assert out == PAGE


@pytest.mark.parametrize("transport", FORMS)
async def test_upload(relay: RelayProcess, authority: Authority, transport: str, tmp_path: Path) -> None:
    if not await speaks(transport):
        pytest.skip("this curl has no --proxy-http2")
    body = tmp_path / "body"
    body.write_bytes(PAGE)
    async with origin() as url:
        code, out, errors = await curl(*proxy(relay, transport, authority), "--data-binary", f"@{body}", url)
        assert code == 0, errors
        assert out.decode() == hashlib.sha256(PAGE).hexdigest()


async def test_refusals_as_curl_tells_them(relay: RelayProcess, authority: Authority) -> None:
    arguments = proxy(relay, "h1tls", authority)
    for target, status in (
        (f"http://127.0.0.1:{unused_port()}/", 502),
        ("http://10.0.0.1/", 403),
        ("http://127.0.0.1:25/", 403),
    ):
        code, _, errors = await curl(*arguments, target)
        assert code in (7, 56), errors
        assert str(status) in errors
    arguments[arguments.index(f"tester:{TOKEN}")] = "tester:wrong"
    code, _, errors = await curl(*arguments, "http://127.0.0.1:9/")
    assert code in (7, 56)
    assert "407" in errors


async def test_credentials_after_a_challenge(relay: RelayProcess, authority: Authority) -> None:
    # --proxy-anyauth asks without credentials first, and again on a new connection after the 407.
    async with origin() as url:
        code, out, errors = await curl(*proxy(relay, "h1tls", authority), "--proxy-anyauth", url)
        assert code == 0, errors
        assert out == PAGE
