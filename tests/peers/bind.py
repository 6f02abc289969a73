"""connect-udp's bind mode for the tests: registrations, and datagrams whose context says whom they come from."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from urllib.parse import quote

from .capsule import Decoder, capsule, read_varint, varint
from .h3 import H3Session, H3Tunnel
from .model import TOKEN, Answer, Request, Session, Tunnel
from .udp import DATAGRAM, TEMPLATE

ASSIGN, ACK, CLOSE = 0x11, 0x12, 0x13
#: A peer: address and port.
Peer = tuple[str, int]


def bind_request(
    host: str = "*", port: int | str = "*", *, bind: str | None = "?1", credentials: str = f"Bearer {TOKEN}"
) -> Request:
    """A request for a bound tunnel."""
    path = TEMPLATE.format(target_host=quote(host, safe=""), target_port=quote(str(port), safe=""))
    headers = [("authorization", credentials), ("capsule-protocol", "?1")]
    if bind is not None:
        headers.append(("connect-udp-bind", bind))
    return Request("GET", path, "connect-udp", headers=headers)


def public_addresses(answer: Answer) -> list[Peer]:
    """The tuples of Proxy-Public-Address."""
    field = answer.get("proxy-public-address")
    assert field, answer
    found = re.fullmatch(r'"[^"]+"(?:, *"[^"]+")*', field)
    assert found, field
    out = []
    for text in re.findall(r'"([^"]+)"', field):
        host, port = text.rsplit(":", 1)
        literal = re.fullmatch(r"\[([0-9a-f:]+)\]", host)
        address = ipaddress.ip_address(literal[1] if literal else host)
        assert (address.version == 6) == bool(literal), text
        out.append((str(address), int(port)))
    return out


def written(peer: Peer) -> bytes:
    """Version, address and port."""
    address = ipaddress.ip_address(peer[0])
    return bytes([address.version]) + address.packed + peer[1].to_bytes(2, "big")


def read(data: bytes) -> tuple[Peer, bytes]:
    """The peer at the front, and the rest."""
    size = {4: 4, 6: 16}[data[0]]
    address = ipaddress.ip_address(data[1 : 1 + size])
    return (str(address), int.from_bytes(data[1 + size : 3 + size], "big")), data[3 + size :]


def assign(context: int, peer: Peer | None = None) -> bytes:
    return capsule(ASSIGN, varint(context) + (written(peer) if peer else b"\0"))


def ack(context: int) -> bytes:
    return capsule(ACK, varint(context))


def close(context: int) -> bytes:
    return capsule(CLOSE, varint(context))


class Bound:
    """A bound tunnel: `form` is `capsule`, or `frame` for QUIC DATAGRAM frames."""

    def __init__(self, session: Session, tunnel: Tunnel, form: str, public: list[Peer]) -> None:
        self.session, self.tunnel, self.form, self.public = session, tunnel, form, public
        self.decoder = Decoder()
        self.partial = b""
        #: Capsules that were read and not asked for yet.
        self.waiting: list[tuple[int, bytes]] = []

    def reached_at(self, version: int) -> Peer:
        """The public address of a family."""
        (found,) = (peer for peer in self.public if ipaddress.ip_address(peer[0]).version == version)
        return found

    async def register(self, context: int, peer: Peer | None = None) -> None:
        """Registers a context and has it acknowledged."""
        await self.tunnel.send(assign(context, peer))
        assert await self.answer() == (ACK, varint(context))

    async def answer(self) -> tuple[int, bytes]:
        """The next capsule that is no datagram."""
        return await asyncio.wait_for(self._next(lambda kind: kind != DATAGRAM), 10)

    async def send(self, context: int, payload: bytes, peer: Peer | None = None) -> None:
        """A datagram; with `peer` on an uncompressed context."""
        datagram = varint(context) + (written(peer) if peer else b"") + payload
        if self.form == "capsule":
            await self.tunnel.send(capsule(DATAGRAM, datagram))
        else:
            session, tunnel = self.quic()
            session.datagram(varint(tunnel.stream_id // 4) + datagram)

    async def receive(self) -> tuple[int, bytes]:
        """The next datagram: context and what follows it."""
        datagram = await asyncio.wait_for(self._datagram(), 10)
        found = read_varint(datagram)
        assert found is not None
        return found[0], datagram[found[1] :]

    async def _datagram(self) -> bytes:
        if self.form == "capsule":
            return (await self._next(lambda kind: kind == DATAGRAM))[1]
        session, tunnel = self.quic()
        prefix = varint(tunnel.stream_id // 4)
        while True:
            for index, frame in enumerate(session.datagrams):
                if frame.startswith(prefix):
                    del session.datagrams[index]
                    return frame[len(prefix) :]
            await session.progress()

    async def _next(self, wanted: object) -> tuple[int, bytes]:
        assert callable(wanted)
        while True:
            for index, (kind, value) in enumerate(self.waiting):
                if wanted(kind):
                    del self.waiting[index]
                    return kind, value
            data = await self.tunnel.recv()
            assert data, f"ended: {self.tunnel.end}"
            for kind, piece, last in self.decoder.feed(data):
                self.partial += piece
                if last:
                    self.waiting.append((kind, self.partial))
                    self.partial = b""

    def quic(self) -> tuple[H3Session, H3Tunnel]:
        assert isinstance(self.session, H3Session)
        assert isinstance(self.tunnel, H3Tunnel)
        return self.session, self.tunnel
