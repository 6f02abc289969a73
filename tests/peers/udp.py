"""connect-udp for the tests: a UDP target, and a tunnel's datagrams whatever form they come in."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import quote

from .capsule import Decoder, capsule, read_varint, varint
from .h3 import H3Session, H3Tunnel
from .model import TOKEN, Request, Session, Tunnel

TEMPLATE = "/.well-known/masque/udp/{target_host}/{target_port}/"
DATAGRAM = 0x00


def udp_request(host: str, port: int | str, credentials: str | None = f"Bearer {TOKEN}") -> Request:
    """A good request for a connect-udp tunnel."""
    headers = [("authorization", credentials)] if credentials else []
    path = TEMPLATE.format(target_host=quote(host, safe=""), target_port=port)
    return Request("GET", path, "connect-udp", headers=[*headers, ("capsule-protocol", "?1")])


class UdpTarget(asyncio.DatagramProtocol):
    """A UDP server that the test plays itself, or an echo."""

    def __init__(self, host: str = "127.0.0.1", *, echo: bool = False) -> None:
        self.host, self.echo = host, echo
        self.received: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

    async def __aenter__(self) -> UdpTarget:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.bind((self.host, 0))
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=self.socket)
        self.port = self.socket.getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.echo:
            self.socket.sendto(data, addr)
        else:
            self.received.put_nowait((data, addr))

    async def receive(self) -> tuple[bytes, tuple[str, int]]:
        """The next datagram and where it came from."""
        return await asyncio.wait_for(self.received.get(), 10)

    def send(self, data: bytes, to: tuple[str, int]) -> None:
        """Sends past asyncio, which sends no empty datagrams."""
        self.socket.sendto(data, to)


class Datagrams:
    """The datagrams of a tunnel: `form` is `capsule`, or `frame` for QUIC DATAGRAM frames."""

    def __init__(self, session: Session, tunnel: Tunnel, form: str = "capsule") -> None:
        self.session, self.tunnel, self.form = session, tunnel, form
        self.decoder = Decoder()
        self.partial = b""
        self.capsules: list[bytes] = []

    async def send(self, payload: bytes, context: int = 0) -> None:
        await self.send_raw(varint(context) + payload)

    async def send_raw(self, datagram: bytes) -> None:
        """An HTTP datagram as it is."""
        if self.form == "capsule":
            await self.tunnel.send(capsule(DATAGRAM, datagram))
        else:
            session, tunnel = self.quic()
            session.datagram(varint(tunnel.stream_id // 4) + datagram)

    async def receive(self) -> bytes:
        """The next UDP payload, from whichever way it comes."""
        return await asyncio.wait_for(self._receive(), 10)

    async def _receive(self) -> bytes:
        if self.form == "capsule":
            while not self.capsules:
                data = await self.tunnel.recv()
                assert data, f"ended: {self.tunnel.end}"
                for kind, piece, last in self.decoder.feed(data):
                    assert kind == DATAGRAM, kind
                    self.partial += piece
                    if last:
                        self.capsules.append(self.partial)
                        self.partial = b""
            return self.payload(self.capsules.pop(0))
        session, tunnel = self.quic()
        prefix = varint(tunnel.stream_id // 4)
        while True:
            for index, frame in enumerate(session.datagrams):
                if frame.startswith(prefix):
                    del session.datagrams[index]
                    return self.payload(frame[len(prefix) :])
            await session.progress()

    @staticmethod
    def payload(datagram: bytes) -> bytes:
        found = read_varint(datagram)
        assert found is not None
        context, start = found
        assert context == 0, datagram[:16]
        return datagram[start:]

    def quic(self) -> tuple[H3Session, H3Tunnel]:
        assert isinstance(self.session, H3Session)
        assert isinstance(self.tunnel, H3Tunnel)
        return self.session, self.tunnel
