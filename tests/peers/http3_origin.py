"""An HTTP/3 origin for what goes through a tunnel: aioquic in a process of its own, so that its CPU is nobody's."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent


def page(size: int) -> bytes:
    """What `/SIZE` is."""
    return random.Random(size).randbytes(size)


def digest(size: int) -> str:
    """Its SHA-256."""
    return hashlib.sha256(page(size)).hexdigest()


class Server(QuicConnectionProtocol):
    """Answers GET of `/SIZE` with so many bytes, and of anything else with a short page."""

    http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        if self.http is not None:
            for found in self.http.handle_event(event):
                self.answer(self.http, found)

    def answer(self, http: H3Connection, event: H3Event) -> None:
        if not isinstance(event, HeadersReceived):
            return
        name = dict(event.headers)[b":path"].decode().removeprefix("/")
        body = page(int(name)) if name.isdecimal() else f"<title>{name} over HTTP/3</title>".encode()
        kind = b"application/octet-stream" if name.isdecimal() else b"text/html"
        head = [(b":status", b"200"), (b"content-type", kind), (b"content-length", str(len(body)).encode())]
        http.send_headers(event.stream_id, head)
        http.send_data(event.stream_id, body, end_stream=True)
        self.transmit()


async def main(chain: str, key: str) -> None:
    configuration = QuicConfiguration(alpn_protocols=["h3"], is_client=False)
    configuration.load_cert_chain(chain, key)
    server = await serve("127.0.0.1", 0, configuration=configuration, create_protocol=Server)
    print(server._transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


@contextmanager
def running(chain: Path, key: Path) -> Iterator[int]:
    """Its UDP port on 127.0.0.1, for as long as the block runs."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), str(chain), str(key)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "the origin did not start"
        yield int(line)
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
