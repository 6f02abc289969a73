"""aioquic's own HTTP/3 layer, which shares nothing with the tests' client above QUIC."""

from __future__ import annotations

import asyncio
from typing import Any

from aioquic.asyncio.client import connect as quic_connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection, Setting
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent
from peers.capsule import DATA_TYPES, Decoder, capsule
from peers.model import TOKEN, path_to
from peers.process import RelayProcess
from peers.target import Target, echo

TCP = "connect-tcp-12"


class Client(QuicConnectionProtocol):
    """Collects what aioquic makes of the relay's bytes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.events: asyncio.Queue[H3Event] = asyncio.Queue()

    def quic_event_received(self, event: QuicEvent) -> None:
        for found in self.http.handle_event(event):
            self.events.put_nowait(found)


async def test_a_tunnel_through_aioquic_s_h3(relay: RelayProcess) -> None:
    endpoint = relay.endpoint("h3")
    configuration = QuicConfiguration(alpn_protocols=["h3"], server_name="localhost", max_datagram_frame_size=65536)
    configuration.load_verify_locations(str(endpoint.authority_file))
    payload = bytes(range(256)) * 1000
    async with (
        Target(echo) as target,
        quic_connect(endpoint.host, endpoint.port, configuration=configuration, create_protocol=Client) as client,
    ):
        assert isinstance(client, Client)
        stream_id = client._quic.get_next_available_stream_id()
        client.http.send_headers(
            stream_id,
            [
                (b":method", b"CONNECT"),
                (b":scheme", b"https"),
                (b":authority", endpoint.authority.encode()),
                (b":path", path_to(target.host, target.port).encode()),
                (b":protocol", TCP.encode()),
                (b"authorization", f"Bearer {TOKEN}".encode()),
                (b"capsule-protocol", b"?1"),
            ],
        )
        client.transmit()
        head = await client.events.get()
        assert isinstance(head, HeadersReceived)
        assert dict(head.headers)[b":status"] == b"200"
        settings = client.http.received_settings
        assert settings is not None
        assert settings[Setting.ENABLE_CONNECT_PROTOCOL] == 1
        assert settings[Setting.H3_DATAGRAM] == 1
        client.http.send_data(stream_id, capsule(DATA_TYPES[TCP][1], payload), end_stream=False)
        client.transmit()
        # The relay ends its direction by itself once the target's connection has closed.
        decoder, received, finished, ended = Decoder(), bytearray(), False, False
        while not ended:
            event = await client.events.get()
            assert isinstance(event, DataReceived)
            for kind, piece, last in decoder.feed(event.data):
                received += piece
                finished = finished or (kind == DATA_TYPES[TCP][1] and last)
            ended = event.stream_ended
        assert finished
        assert bytes(received) == payload
        client.http.send_data(stream_id, b"", end_stream=True)
        client.transmit()
