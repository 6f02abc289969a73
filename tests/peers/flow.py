"""A TCP byte stream through a tunnel, in the form of either protocol."""

from __future__ import annotations

from .capsule import DATA_TYPES, Decoder, capsule
from .model import CLEAN, End, Tunnel


class Flow:
    """Payload in, payload out, over classic CONNECT (raw) or connect-tcp (capsules)."""

    def __init__(self, tunnel: Tunnel, protocol: str) -> None:
        self.tunnel = tunnel
        self.types = DATA_TYPES.get(protocol)
        self.decoder = Decoder()
        self.ready = bytearray()
        self.fin = False
        self.unknown: list[int] = []

    def encode(self, payload: bytes, final: bool = False) -> bytes:
        """The payload as the data stream carries it."""
        if self.types is None:
            assert not final
            return payload
        return capsule(self.types[final], payload)

    async def write(self, payload: bytes, piece: int | None = None) -> None:
        """Sends payload, in capsules of `piece` bytes where it is given."""
        if self.types is None or piece is None:
            await self.tunnel.send(self.encode(payload))
            return
        for start in range(0, len(payload), piece):
            await self.tunnel.send(self.encode(payload[start : start + piece]))

    async def write_final(self, payload: bytes = b"") -> None:
        """The last payload and the FIN."""
        if self.types is None:
            if payload:
                await self.tunnel.send(payload)
            await self.tunnel.finish()
        else:
            await self.tunnel.send(self.encode(payload, final=True))

    async def read(self) -> bytes:
        """Some payload; empty at the target's FIN or at the end (`tunnel.end`)."""
        while not self.ready and not self.fin:
            data = await self.tunnel.recv()
            if not data:
                self.fin = self.types is None and self.tunnel.end == CLEAN
                break
            self.take(data)
        out = bytes(self.ready)
        self.ready.clear()
        return out

    def take(self, data: bytes) -> None:
        if self.types is None:
            self.ready += data
            return
        for kind, piece, last in self.decoder.feed(data):
            if kind in self.types:
                assert not self.fin, "DATA after FINAL_DATA"
                self.ready += piece
                if kind == self.types[1] and last:
                    self.fin = True
            elif last:
                self.unknown.append(kind)

    async def read_exactly(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            data = await self.read()
            assert data, f"ended after {len(parts)} of {length} bytes: fin={self.fin}, {self.tunnel.end}"
            parts += data
        self.ready += parts[length:]
        return bytes(parts[:length])

    async def read_to_fin(self) -> bytes:
        """Everything up to the target's FIN, which must be a proper one."""
        parts = bytearray()
        while data := await self.read():
            parts += data
        assert self.fin, f"no FIN after {len(parts)} bytes: {self.tunnel.end}"
        return bytes(parts)

    async def closed(self) -> End:
        """How the HTTP stream ends, once nothing but that is to come."""
        while data := await self.tunnel.recv():
            self.take(data)
            assert not self.ready, f"payload instead of the end: {bytes(self.ready[:40])!r}"
        assert self.tunnel.end is not None
        if self.tunnel.end == CLEAN and self.types is not None:
            assert self.decoder.complete, "a clean end inside a capsule"
        return self.tunnel.end

    async def end(self) -> None:
        """Ends the sending direction of the HTTP stream after the FIN (nothing is left to do for raw tunnels)."""
        if self.types is not None:
            await self.tunnel.finish()
