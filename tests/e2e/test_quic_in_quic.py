"""An HTTP/3 download through connect-udp over HTTP/3: QUIC in QUIC, on a path that loses nothing and on one that loses a hundredth."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent
from peers import http3_origin
from peers.capsule import varint
from peers.h3 import H3Session
from peers.lossy_link import losing
from peers.pki import Authority
from peers.process import RelayProcess
from peers.udp import Datagrams, udp_request

SIZE = 3 << 20


@pytest.fixture(scope="module")
def origin(authority: Authority) -> Iterator[int]:
    with http3_origin.running(*authority.server("origin")) as port:
        yield port


class Tunnelled(asyncio.DatagramTransport):
    """What the inner connection takes for its socket."""

    def __init__(self, flow: Datagrams, to: tuple[str, int]) -> None:
        super().__init__()
        self.flow, self.to = flow, to
        session, tunnel = flow.quic()
        self.session, self.prefix = session, varint(tunnel.stream_id // 4) + varint(0)

    def sendto(self, data: Any, addr: object = None) -> None:
        self.session.protocol._quic.send_datagram_frame(self.prefix + data)
        self.session.protocol._transmit_soon()

    def close(self) -> None:
        """The tunnel is closed with its own connection."""

    async def deliver(self, to: QuicConnectionProtocol) -> None:
        """Hands over what comes out of the tunnel."""
        while True:
            frames, self.session.datagrams = self.session.datagrams, []
            for frame in frames:
                assert frame.startswith(self.prefix)
                to.datagram_received(frame[len(self.prefix) :], self.to)
            await self.session.progress()


class Download(QuicConnectionProtocol):
    """One GET; the body goes into a digest."""

    def __init__(self, quic: QuicConnection) -> None:
        super().__init__(quic)
        self.http = H3Connection(quic)
        self.digest, self.size = hashlib.sha256(), 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def get(self, authority: str, path: str) -> None:
        pseudo = {":method": "GET", ":scheme": "https", ":authority": authority, ":path": path}
        headers = [(name.encode(), value.encode()) for name, value in pseudo.items()]
        self.http.send_headers(self._quic.get_next_available_stream_id(), headers, end_stream=True)
        self.transmit()

    def quic_event_received(self, event: QuicEvent) -> None:
        for found in self.http.handle_event(event):
            if isinstance(found, HeadersReceived):
                assert dict(found.headers)[b":status"] == b"200"
            elif isinstance(found, DataReceived):
                self.digest.update(found.data)
                self.size += len(found.data)
                if found.stream_ended:
                    self.done.set_result(None)


@asynccontextmanager
async def inner(flow: Datagrams, port: int, authority: Path) -> Any:
    """A connection to the origin inside the tunnel."""
    configuration = QuicConfiguration(alpn_protocols=["h3"], server_name="localhost")
    configuration.load_verify_locations(str(authority))
    address = ("127.0.0.1", port)
    transport, client = Tunnelled(flow, address), Download(QuicConnection(configuration=configuration))
    client.connection_made(cast("asyncio.DatagramTransport", transport))
    client.connect(address)
    delivery = asyncio.create_task(transport.deliver(client))
    try:
        await client.wait_connected()
        yield client
    finally:
        client.close()
        delivery.cancel()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("loss", [0.0, 0.01], ids=["lossless", "1 % loss"])
async def test_a_download(relay: RelayProcess, origin: int, authority: Authority, loss: float) -> None:
    endpoint = relay.endpoint("h3")
    with losing(loss, endpoint.host, endpoint.port) as port:
        # Room for packets of 1,200 bytes within.
        options = {"max_datagram_size": 1400}
        async with await H3Session.connect(replace(endpoint, port=port), **options) as session:
            tunnel = await session.open(udp_request("127.0.0.1", origin))
            assert (await tunnel.answer()).status == 200
            async with inner(Datagrams(session, tunnel, "frame"), origin, authority.file) as client:
                start = time.perf_counter()
                client.get(f"localhost:{origin}", f"/{SIZE}")
                await client.done
                seconds = time.perf_counter() - start
            assert client.size == SIZE
            assert client.digest.hexdigest() == http3_origin.digest(SIZE)
            assert tunnel.received == 0
    print(f"\n  {loss:.0%} loss: {SIZE:,} bytes in {seconds:.2f} s, {SIZE * 8 / seconds / 1e6:.1f} Mbit/s of goodput")
