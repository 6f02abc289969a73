"""HTTP/2 frame by frame, for clients that do not play by the rules."""

from __future__ import annotations

import asyncio

import hpack
from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame

from .model import TOKEN, Endpoint, Headers, path_to
from .wire import TcpWire, TlsWire, Wire

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TCP = "connect-tcp-12"


def raw_frame(kind: int, flags: int, stream_id: int, payload: bytes, length: int | None = None) -> bytes:
    """A frame with any contents; `length` lies about it."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


class RawH2:
    """One connection; the test writes frames and reads frames."""

    def __init__(self, wire: Wire, endpoint: Endpoint) -> None:
        self.wire, self.endpoint = wire, endpoint
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.buffer = bytearray()
        self.frames: list[Frame] = []
        self.statuses: dict[int, int] = {}
        self.resets: dict[int, int] = {}
        self.goaway: int | None = None
        self.closed = False

    @classmethod
    async def connect(cls, endpoint: Endpoint, preface: bytes = PREFACE, settings: bytes | None = None) -> RawH2:
        wire: Wire
        if endpoint.authority_file is None:
            wire = await TcpWire.connect(endpoint.host, endpoint.port)
        else:
            wire = await TlsWire.connect(endpoint, ["h2"])
        session = cls(wire, endpoint)
        first = SettingsFrame(0).serialize() if settings is None else settings
        await session.send(preface + first)
        return session

    async def __aenter__(self) -> RawH2:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.wire.close()

    async def send(self, data: bytes) -> bool:
        """Writes; False when the relay has gone."""
        try:
            await self.wire.send(data)
        except OSError:
            return False
        return True

    def headers(self, stream_id: int, headers: Headers, *, end: bool = False) -> bytes:
        """A HEADERS frame with everything in it."""
        frame = HeadersFrame(stream_id, self.encoder.encode(headers, huffman=False))
        frame.flags.add("END_HEADERS")
        if end:
            frame.flags.add("END_STREAM")
        return frame.serialize()

    def tunnel(self, port: int, host: str = "127.0.0.1") -> Headers:
        """The header list of a good tunnel request."""
        return [
            (":method", "CONNECT"),
            (":protocol", TCP),
            (":scheme", "http" if self.endpoint.authority_file is None else "https"),
            (":authority", self.endpoint.authority),
            (":path", path_to(host, port)),
            ("authorization", f"Bearer {TOKEN}"),
        ]

    def get(self, path: str = "/x") -> Headers:
        """The header list of a plain request (404)."""
        return [(":method", "GET"), (":scheme", "https"), (":authority", self.endpoint.authority), (":path", path)]

    async def read(self) -> bool:
        """Some more frames; False at the end."""
        data = await self.wire.recv()
        if not data:
            self.closed = True
            return False
        self.buffer += data
        while len(self.buffer) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(bytes(self.buffer[:9])))
            if len(self.buffer) < 9 + length:
                break
            frame.parse_body(memoryview(bytes(self.buffer[9 : 9 + length])))
            del self.buffer[: 9 + length]
            await self.take(frame)
        return True

    async def take(self, frame: Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, GoAwayFrame):
            self.goaway = frame.error_code
        elif isinstance(frame, RstStreamFrame):
            self.resets[frame.stream_id] = frame.error_code
        elif isinstance(frame, HeadersFrame):
            found = dict(self.decoder.decode(frame.data))
            self.statuses[frame.stream_id] = int(found[":status"])
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            await self.send(SettingsFrame(0, flags=["ACK"]).serialize())

    async def until_closed(self, timeout: float = 5) -> int | None:
        """Reads to the end of the connection; the GOAWAY's code."""
        async with asyncio.timeout(timeout):
            while await self.read():
                pass
        return self.goaway

    async def outcome(self, stream_id: int, timeout: float = 5) -> tuple[str, int | None]:
        """`status`, `reset` or `closed`, whichever the stream gets first, with its number."""
        async with asyncio.timeout(timeout):
            while True:
                if stream_id in self.statuses:
                    return "status", self.statuses[stream_id]
                if stream_id in self.resets:
                    return "reset", self.resets[stream_id]
                if not await self.read():
                    return "closed", self.goaway

    async def still_serves(self, stream_id: int) -> None:
        """The connection outlived what was done to it."""
        assert await self.send(self.headers(stream_id, self.get(), end=True))
        assert await self.outcome(stream_id) == ("status", 404)
