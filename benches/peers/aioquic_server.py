"""A relay in Python over aioquic: classic CONNECT and connect-tcp over HTTP/3, as short as it can be.

It shows what the usual Python stack costs. It trusts its client and checks nothing.
    python aioquic_server.py CERTIFICATE KEY HOST PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

from aioquic._buffer import Buffer
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.connection import Setting as H3Setting
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent, StreamReset

BLOCK = 64 << 10
#: How much may wait in aioquic, which has no back-pressure of its own.
BACKLOG = 4 * BLOCK
#: token → (DATA, FINAL_DATA)
PROFILES = {b"connect-tcp-12": (0x2028D7F2, 0x2028D7F3), b"connect-tcp-07": (0x2028D7F0, 0x2028D7F1)}


class Connection(H3Connection):
    """HTTP/3 with extended CONNECT."""

    def _get_local_settings(self) -> dict[int, int]:
        settings: dict[int, int] = super()._get_local_settings()
        settings[H3Setting.ENABLE_CONNECT_PROTOCOL] = 1
        return settings


class Tunnel:
    """One stream and its TCP connection."""

    def __init__(self, relay: Relay, stream: int, types: tuple[int, int] | None) -> None:
        self.relay, self.stream, self.types = relay, stream, types
        self.inbox: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()
        self.rest = bytearray()
        self.payload_left = 0
        self.final = False

    async def run(self, host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        self.relay.respond(self.stream)
        await asyncio.gather(self.down(reader), self.up(writer))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def down(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(BLOCK):
            head = b"" if self.types is None else encode_uint_var(self.types[0]) + encode_uint_var(len(data))
            self.relay.send(self.stream, head + data)
            await self.relay.drained(self.stream)
        tail = b"" if self.types is None else encode_uint_var(self.types[1]) + b"\0"
        self.relay.send(self.stream, tail, end=True)

    async def up(self, writer: asyncio.StreamWriter) -> None:
        ended = False
        while not ended:
            data, ended = await self.inbox.get()
            if self.types is None:
                writer.write(data)
            else:
                self.decode(data, writer)
            await writer.drain()
            if self.final:
                break
        with contextlib.suppress(OSError):
            writer.write_eof()

    def decode(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        """Payload goes on before its capsule is complete."""
        assert self.types is not None
        self.rest += data
        while self.rest:
            if self.payload_left == 0:
                buffer = Buffer(data=bytes(self.rest[:16]))
                try:
                    kind, self.payload_left = buffer.pull_uint_var(), buffer.pull_uint_var()
                except ValueError:
                    return
                if kind not in self.types:
                    raise ValueError("unknown capsule")
                self.final = kind == self.types[1]
                del self.rest[: buffer.tell()]
            piece = bytes(self.rest[: self.payload_left])
            del self.rest[: len(piece)]
            self.payload_left -= len(piece)
            writer.write(piece)


class Relay(QuicConnectionProtocol):
    """One connection."""

    http: H3Connection | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.tunnels: dict[int, Tunnel] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.http = Connection(self._quic)
        if isinstance(event, StreamReset) and (reset := self.tunnels.get(event.stream_id)):
            reset.inbox.put_nowait((b"", True))
        if self.http is not None:
            for item in self.http.handle_event(event):
                self.handle(item)

    def handle(self, item: H3Event) -> None:
        if isinstance(item, HeadersReceived):
            fields = dict(item.headers)
            protocol = fields.get(b":protocol")
            if protocol is None:
                host, port = fields[b":authority"].decode().rsplit(":", 1)
                types = None
            else:
                host, port = fields[b":path"].decode().strip("/").split("/")[-2:]
                types = PROFILES[protocol]
            opened = self.tunnels[item.stream_id] = Tunnel(self, item.stream_id, types)
            task = asyncio.ensure_future(opened.run(host, int(port)))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            if item.stream_ended:
                opened.inbox.put_nowait((b"", True))
        elif isinstance(item, DataReceived) and (tunnel := self.tunnels.get(item.stream_id)):
            tunnel.inbox.put_nowait((item.data, item.stream_ended))

    def respond(self, stream: int) -> None:
        assert self.http is not None
        self.http.send_headers(stream, [(b":status", b"200"), (b"capsule-protocol", b"?1")])
        self.transmit()

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        assert self.http is not None
        self.http.send_data(stream, data, end)
        self.transmit()

    async def drained(self, stream: int) -> None:
        """Waits until little is unsent on the stream."""
        while True:
            sender = self._quic._streams[stream].sender
            if sender._buffer_stop - sender._buffer_start < BACKLOG:
                return
            await asyncio.sleep(0.001)


async def main(certificate: str, key: str, host: str, port: str) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(certificate, key)
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    await serve(host, int(port), configuration=configuration, create_protocol=Relay)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
