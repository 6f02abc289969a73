"""`relay.Client` with proxies that share nothing with this relay: aioquic's HTTP/3, the h2 package, and CONNECT in a few lines.

Each is its own target: what comes through a tunnel goes back through it.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from aioquic.asyncio import serve as serve_quic
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DatagramReceived, DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent
from peers.capsule import DATA_TYPES, Decoder, capsule, read_varint
from peers.pki import Authority

from relay import Client

TCP = "connect-tcp-12"
DATA, FINAL_DATA = DATA_TYPES[TCP]
DATAGRAM = 0x00
Head = dict[str, str]


class Echo:
    """What a proxy makes of the data stream of one request: the bytes that go back."""

    def __init__(self, head: Head) -> None:
        self.token = head.get(":protocol")
        assert head[":method"] == "CONNECT"
        assert head["authorization" if self.token else "proxy-authorization"] == "Bearer secret"
        if self.token:
            kind = "udp" if self.token == "connect-udp" else "tcp"
            assert head[":scheme"] == "https"
            assert head["capsule-protocol"] == "?1"
            assert head[":path"] == f"/.well-known/masque/{kind}/target.example/7/"
        else:
            assert head[":authority"] == "target.example:7"
            assert ":path" not in head
        self.decoder = Decoder()
        self.over = False

    def feed(self, data: bytes, ended: bool) -> bytes:
        """The bytes to send back; `over` once the stream is to end."""
        if not self.token:
            self.over = ended
            return data
        back = b""
        for kind, piece, last in self.decoder.feed(data):
            if kind == DATAGRAM:
                assert self.token == "connect-udp"
                assert last, "the test's datagrams come whole"
                back += capsule(DATAGRAM, piece)
            else:
                assert self.token == TCP
                final = kind == FINAL_DATA and last
                back += capsule(FINAL_DATA if final else DATA, piece)
                self.over |= final
        self.over |= ended
        return back


class H3Proxy(QuicConnectionProtocol):
    """aioquic's own HTTP/3."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # This flag of aioquic's is what sends SETTINGS_H3_DATAGRAM.
        self.http = H3Connection(self._quic, enable_webtransport=True)
        self.echoes: dict[int, Echo] = {}

    def quic_event_received(self, event: QuicEvent) -> None:
        for found in self.http.handle_event(event):
            match found:
                case HeadersReceived():
                    head = {name.decode(): value.decode() for name, value in found.headers}
                    self.echoes[found.stream_id] = Echo(head)
                    fields = [(b":status", b"200"), (b"capsule-protocol", b"?1")]
                    self.http.send_headers(found.stream_id, fields)
                case DataReceived():
                    echo = self.echoes[found.stream_id]
                    if not echo.over:
                        back = echo.feed(found.data, found.stream_ended)
                        self.http.send_data(found.stream_id, back, end_stream=echo.over)
                case DatagramReceived():
                    assert read_varint(found.data) == (0, 1)
                    self.http.send_datagram(found.stream_id, found.data)
        self.transmit()


class H2Proxy(asyncio.Protocol):
    """The h2 package."""

    def __init__(self) -> None:
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.echoes: dict[int, Echo] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.http.initiate_connection()
        self.http.update_settings({h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1})
        transport.write(self.http.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.http.receive_data(data):
            match event:
                case h2.events.RequestReceived(stream_id=stream, headers=headers):
                    self.echoes[stream] = Echo(dict(headers))  # type: ignore[arg-type]
                    self.http.send_headers(stream, [(":status", "200"), ("capsule-protocol", "?1")])
                case h2.events.DataReceived(stream_id=stream, data=piece, flow_controlled_length=length):
                    self.http.acknowledge_received_data(length, stream)
                    self.back(stream, piece, False)
                case h2.events.StreamEnded(stream_id=stream):
                    self.back(stream, b"", True)
        self.transport.write(self.http.data_to_send())

    def back(self, stream: int, data: bytes, ended: bool) -> None:
        echo = self.echoes[stream]
        if not echo.over:
            # What the test sends fits every window.
            self.http.send_data(stream, echo.feed(data, ended), end_stream=echo.over)


async def connect_in_the_clear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A proxy that knows CONNECT over HTTP/1.1, as there are many."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    assert head[0] == "CONNECT target.example:7 HTTP/1.1"
    assert "proxy-authorization: Bearer secret" in [line.replace("Proxy-A", "proxy-a") for line in head]
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def exchange(proxy: Client) -> None:
    """Bytes there and back, twice, with both ends."""
    for _ in range(2):
        reader, writer = await proxy.open_tcp("target.example", 7)
        payload = bytes(range(256)) * 100
        writer.write(payload)
        assert await reader.readexactly(len(payload)) == payload
        writer.write(b"bye")
        writer.write_eof()
        assert await reader.read() == b"bye"
        writer.close()
        await writer.wait_closed()


async def datagrams(proxy: Client, *sizes: int) -> None:
    async with await proxy.open_udp("target.example", 7) as udp:
        for size in sizes:
            await udp.send(bytes(size))
            assert await udp.receive() == bytes(size)
        assert udp.dropped == (0, 0)


async def test_aioquic_s_http3(authority: Authority, server_certificate: tuple[Path, Path]) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"], max_datagram_frame_size=65536)
    configuration.max_datagram_size = 1400
    configuration.load_cert_chain(*map(str, server_certificate))
    server = await serve_quic("127.0.0.1", 0, configuration=configuration, create_protocol=H3Proxy)
    port = server._transport.get_extra_info("sockname")[1]  # type: ignore[attr-defined]
    try:
        for tcp in (TCP, "connect"):
            url = f"https://127.0.0.1:{port}"
            async with Client(url, token="secret", ca=authority.file, tcp=tcp) as proxy:  # type: ignore[arg-type]
                await exchange(proxy)
                assert proxy.http == "h3"
                await datagrams(proxy, 0, 1, 1150)
    finally:
        server.close()


async def test_the_h2_package(authority: Authority, server_certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*map(str, server_certificate))
    context.set_alpn_protocols(["h2"])
    server = await asyncio.get_running_loop().create_server(H2Proxy, "127.0.0.1", 0, ssl=context)
    async with server:
        for tcp in (TCP, "connect"):
            url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
            async with Client(url, token="secret", ca=authority.file, tcp=tcp) as proxy:  # type: ignore[arg-type]
                await exchange(proxy)
                assert proxy.http == "h2"
                await datagrams(proxy, 0, 1, 1400, 9000)


async def test_connect_in_a_few_lines() -> None:
    server = await asyncio.start_server(connect_in_the_clear, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Client(url, token="secret", tcp="connect") as proxy:
            await exchange(proxy)
            assert proxy.http == "h1"
