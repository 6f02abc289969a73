"""HTTP/3 client: frames, SETTINGS and field sections of our own over aioquic's QUIC and pylsqpack."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AsyncExitStack
from typing import Any

import pylsqpack
from aioquic.asyncio.client import connect as quic_connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration

from .capsule import read_varint, varint
from .model import CLEAN, Answer, End, Endpoint, Headers, Request, Session, Tunnel

DATA, HEADERS, SETTINGS, GOAWAY = 0x0, 0x1, 0x4, 0x7
ENABLE_CONNECT_PROTOCOL, H3_DATAGRAM = 0x08, 0x33
REQUEST_CANCELLED = 0x10C
SEND_AHEAD = 1 << 20


def frame(kind: int, payload: bytes = b"") -> bytes:
    """One HTTP/3 frame."""
    return varint(kind) + varint(len(payload)) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, b"".join(varint(key) + varint(value) for key, value in values.items()))


class FrameReader:
    """Cuts a stream into frames; DATA is given in pieces as it arrives."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.data_left = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        self.buffer += data
        out = []
        while self.buffer:
            if self.data_left:
                piece = bytes(self.buffer[: self.data_left])
                del self.buffer[: len(piece)]
                self.data_left -= len(piece)
                out.append((DATA, piece))
                continue
            kind = read_varint(bytes(self.buffer[:16]))
            length = read_varint(bytes(self.buffer[:16]), kind[1]) if kind else None
            if kind is None or length is None:
                break
            if kind[0] == DATA:
                self.data_left = length[0]
                del self.buffer[: length[1]]
            elif len(self.buffer) >= length[1] + length[0]:
                out.append((kind[0], bytes(self.buffer[length[1] : length[1] + length[0]])))
                del self.buffer[: length[1] + length[0]]
            else:
                break
        return out


class H3Tunnel(Tunnel):
    """One request stream."""

    def __init__(self, session: H3Session, stream_id: int) -> None:
        self.session = session
        self.stream_id = stream_id
        self.interim = []
        self.head: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.frames = FrameReader()
        self.chunks: deque[bytes] = deque()
        self.changed = asyncio.Event()
        self.ended: End | None = None
        self.stopped: int | None = None
        self.stopped_seen = asyncio.Event()
        self.received = 0

    async def answer(self) -> Answer:
        answer = await asyncio.shield(self.head)
        if not 200 <= answer.status < 300 and not answer.body:
            answer.body = (await self.drained())[0]
        return answer

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            piece, view = view[:65536], view[65536:]
            await self.send_raw(varint(DATA) + varint(len(piece)) + piece.tobytes())

    async def send_raw(self, data: bytes, end: bool = False) -> None:
        """Stream bytes without a frame around them."""
        if self.stopped is not None:
            raise ConnectionResetError(f"stream {self.stream_id}: stopped with {self.stopped:#x}")
        quic = self.session.protocol._quic
        quic.send_stream_data(self.stream_id, data, end)
        self.session.protocol._transmit_soon()
        while len(quic._streams[self.stream_id].sender._buffer) > SEND_AHEAD:
            await self.session.progress()
            if self.stream_id not in quic._streams or self.stopped is not None:
                raise ConnectionResetError(f"stream {self.stream_id}: {self.stopped}")

    async def finish(self) -> None:
        await self.send_raw(b"", end=True)
        self.session.protocol.transmit()

    async def abort(self, code: int | None = None) -> None:
        self.session.protocol._quic.reset_stream(self.stream_id, REQUEST_CANCELLED if code is None else code)
        self.session.protocol.transmit()

    async def stop(self, code: int = REQUEST_CANCELLED) -> None:
        """STOP_SENDING: the receiving direction is wanted no more."""
        self.session.protocol._quic.stop_stream(self.stream_id, code)
        self.session.protocol.transmit()

    async def recv(self) -> bytes:
        while not self.chunks:
            if self.ended is not None:
                return b""
            self.changed.clear()
            await self.changed.wait()
        data = b"".join(self.chunks)
        self.chunks.clear()
        return data

    @property
    def end(self) -> End | None:
        return None if self.chunks else self.ended

    def stall(self) -> None:
        """The relay gets no more stream credit than it has."""
        self.session.stalled.add(self.stream_id)

    def feed(self, data: bytes, end: bool) -> None:
        for kind, payload in self.frames.feed(data):
            if kind == HEADERS:
                self.fields(payload)
            elif kind == DATA:
                assert self.head.done(), "DATA before HEADERS"
                self.received += len(payload)
                self.chunks.append(payload)
        if end:
            inside = bool(self.frames.buffer) or self.frames.data_left > 0
            assert not inside, "the stream ended inside a frame"
            self.finished(CLEAN)
        self.changed.set()

    def fields(self, block: bytes) -> None:
        _, found = self.session.decoder.feed_header(self.stream_id, block)
        headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in found]
        assert headers[0][0] == ":status", headers
        answer = Answer(int(headers[0][1]), headers[1:])
        if answer.status < 200:
            self.interim.append(answer)
        else:
            assert not self.head.done(), "trailers"
            self.head.set_result(answer)

    def finished(self, end: End) -> None:
        self.ended = self.ended or end
        if not self.head.done():
            self.head.set_exception(ConnectionResetError(f"no answer: {end}"))
            self.head.exception()
        self.changed.set()


class Protocol(QuicConnectionProtocol):
    """Hands aioquic's events to the session."""

    session: H3Session

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        super().datagram_received(data, addr)
        self.session.moved.set()

    def quic_event_received(self, event: events.QuicEvent) -> None:
        self.session.handle(event)


class H3Session(Session):
    """One connection. `preface` are the bytes of the control stream; None opens none."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.stack = AsyncExitStack()
        self.protocol: Protocol
        self.encoder, self.decoder = pylsqpack.Encoder(), pylsqpack.Decoder(0, 0)
        self.streams: dict[int, H3Tunnel] = {}
        self.uni: dict[int, bytearray] = {}
        self.uni_kind: dict[int, int] = {}
        self.control = FrameReader()
        self.settings: dict[int, int] | None = None
        self.settled = asyncio.Event()
        self.over = asyncio.Event()
        self.terminated: events.ConnectionTerminated | None = None
        self.goaway: int | None = None
        self.goaway_seen = asyncio.Event()
        self.moved = asyncio.Event()
        self.stalled: set[int] = set()
        self.datagrams: list[bytes] = []

    @classmethod
    async def connect(
        cls,
        endpoint: Endpoint,
        preface: bytes | None = None,
        *,
        window: int = 1 << 20,
        answer_window: int | None = None,
        control: bool = True,
        wait: bool = True,
        **options: Any,
    ) -> H3Session:
        session = cls(endpoint)
        configuration = QuicConfiguration(
            alpn_protocols=["h3"],
            max_datagram_frame_size=65536,
            max_stream_data=window,
            max_data=1 << 30,
            server_name="localhost" if endpoint.host in ("127.0.0.1", "::1") else endpoint.host,
            idle_timeout=120.0,
            **options,
        )
        if endpoint.authority_file is not None:
            configuration.load_verify_locations(str(endpoint.authority_file))
        if endpoint.client_certificate is not None:
            configuration.load_cert_chain(*endpoint.client_certificate)

        def create(quic: Any, **kwargs: Any) -> Protocol:
            limits = quic._write_stream_limits

            def write_stream_limits(builder: Any, space: Any, stream: Any) -> None:
                if stream.stream_id not in session.stalled:
                    limits(builder=builder, space=space, stream=stream)

            quic._write_stream_limits = write_stream_limits
            if answer_window is not None:
                # The credit for what the relay sends on request streams, apart from its own streams.
                quic._local_max_stream_data_bidi_local = answer_window
            protocol = Protocol(quic, **kwargs)
            protocol.session = session
            return protocol

        found = await session.stack.enter_async_context(
            quic_connect(endpoint.host, endpoint.port, configuration=configuration, create_protocol=create)
        )
        assert isinstance(found, Protocol)
        session.protocol = found
        if control:
            session.open_uni(0x00, settings({H3_DATAGRAM: 1}) if preface is None else preface)
        if wait:
            await asyncio.wait_for(session.settled.wait(), 10)
            assert session.settings is not None, session.terminated
            assert session.settings.get(ENABLE_CONNECT_PROTOCOL) == 1
        return session

    def open_uni(self, kind: int, data: bytes = b"") -> int:
        """A unidirectional stream of this type."""
        quic = self.protocol._quic
        stream_id = quic.get_next_available_stream_id(is_unidirectional=True)
        quic.send_stream_data(stream_id, varint(kind) + data)
        self.protocol.transmit()
        return stream_id

    def send_uni(self, stream_id: int, data: bytes, end: bool = False) -> None:
        self.protocol._quic.send_stream_data(stream_id, data, end)
        self.protocol.transmit()

    def datagram(self, data: bytes) -> None:
        """A QUIC DATAGRAM frame."""
        self.protocol._quic.send_datagram_frame(data)
        self.protocol.transmit()

    async def progress(self) -> None:
        self.moved.clear()
        await self.moved.wait()

    def handle(self, event: events.QuicEvent) -> None:
        self.moved.set()
        if isinstance(event, events.ConnectionTerminated):
            self.terminated = event
            for stream in self.streams.values():
                stream.finished(End("lost", event.error_code))
            self.settled.set()
            self.over.set()
        elif isinstance(event, events.DatagramFrameReceived):
            self.datagrams.append(event.data)
        elif isinstance(event, events.StreamDataReceived):
            if event.stream_id % 4 == 0:
                if request := self.streams.get(event.stream_id):
                    request.feed(event.data, event.end_stream)
            else:
                self.feed_uni(event.stream_id, event.data)
        elif isinstance(event, events.StreamReset):
            if request := self.streams.get(event.stream_id):
                request.finished(End("reset", event.error_code))
        elif isinstance(event, events.StopSendingReceived) and (request := self.streams.get(event.stream_id)):
            request.stopped = event.error_code
            request.stopped_seen.set()

    def feed_uni(self, stream_id: int, data: bytes) -> None:
        if stream_id not in self.uni_kind:
            buffer = self.uni.setdefault(stream_id, bytearray())
            buffer += data
            if (kind := read_varint(bytes(buffer))) is None:
                return
            self.uni_kind[stream_id] = kind[0]
            data = bytes(buffer[kind[1] :])
        if self.uni_kind[stream_id] != 0x00:
            return
        for kind_, payload in self.control.feed(data):
            if kind_ == SETTINGS:
                assert self.settings is None, "SETTINGS twice"
                self.settings, at = {}, 0
                while at < len(payload):
                    key, at = read_varint(payload, at) or (0, len(payload))
                    value, at = read_varint(payload, at) or (0, len(payload))
                    assert key not in self.settings
                    self.settings[key] = value
                self.settled.set()
            elif kind_ == GOAWAY:
                found = read_varint(payload)
                assert found is not None
                self.goaway = found[0]
                self.goaway_seen.set()

    def pseudo(self, request: Request) -> Headers:
        if request.method == "CONNECT" and request.token is None:
            assert request.authority is not None
            return [(":method", "CONNECT"), (":authority", request.authority)]
        assert request.path is not None
        head = [
            (":method", request.method),
            (":scheme", "https"),
            (":authority", request.authority or self.endpoint.authority),
            (":path", request.path),
        ]
        if request.token is not None:
            head[0] = (":method", "CONNECT")
            head.append((":protocol", request.token))
        return head

    def block(self, stream_id: int, headers: Headers) -> bytes:
        """A field section."""
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        _, block = self.encoder.encode(stream_id, encoded)
        return block

    def stream(self) -> H3Tunnel:
        """A new request stream with nothing on it."""
        quic = self.protocol._quic
        stream_id = quic.get_next_available_stream_id()
        quic.send_stream_data(stream_id, b"")
        stream = self.streams[stream_id] = H3Tunnel(self, stream_id)
        return stream

    async def open(self, request: Request, optimistic: bytes = b"") -> H3Tunnel:
        plain = request.method != "CONNECT" and request.token is None
        return await self.open_raw([*self.pseudo(request), *request.headers], optimistic, end=plain)

    async def open_raw(self, headers: Headers, optimistic: bytes = b"", end: bool = False) -> H3Tunnel:
        stream = self.stream()
        data = frame(HEADERS, self.block(stream.stream_id, headers))
        self.protocol._quic.send_stream_data(stream.stream_id, data, end)
        if optimistic:
            await stream.send(optimistic)
        self.protocol._transmit_soon()
        return stream

    async def close(self) -> None:
        if self.terminated is None:
            self.protocol.close(0x100)
        # aioquic would wait for three time-outs of the path before it gives its socket back.
        self.protocol._closed.set()
        await self.stack.aclose()
