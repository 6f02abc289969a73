"""HTTP/2 client on the h2 package."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from .model import CLEAN, Answer, End, Endpoint, Headers, Request, Session, Tunnel
from .wire import TcpWire, TlsWire, Wire

WINDOW = 1 << 20
CANCEL = 0x8
GOAWAY = 0x7


def strings(headers: object) -> Headers:
    return [(_text(name), _text(value)) for name, value in headers]  # type: ignore[attr-defined]


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


class H2Tunnel(Tunnel):
    """One stream."""

    def __init__(self, session: H2Session, stream_id: int) -> None:
        self.session = session
        self.stream_id = stream_id
        self.interim = []
        self.head: asyncio.Future[Answer] = session.loop.create_future()
        self.chunks: deque[bytes] = deque()
        self.changed = asyncio.Event()
        self.writable = asyncio.Event()
        self.ended: End | None = None
        self.owed = 0
        self.received = 0

    async def answer(self) -> Answer:
        answer = await asyncio.shield(self.head)
        if not 200 <= answer.status < 300 and not answer.body:
            answer.body = (await self.drained())[0]
        return answer

    async def send(self, data: bytes) -> None:
        view, connection = memoryview(data), self.session.connection
        while view:
            if self.ended is not None and self.ended.kind != "clean":
                raise ConnectionResetError(f"stream {self.stream_id}: {self.ended}")
            room = min(
                connection.local_flow_control_window(self.stream_id), connection.max_outbound_frame_size, len(view)
            )
            if room <= 0:
                self.writable.clear()
                self.session.blocked.add(self)
                await self.writable.wait()
                continue
            connection.send_data(self.stream_id, view[:room].tobytes())
            view = view[room:]
            await self.session.flush()

    async def finish(self) -> None:
        self.session.connection.end_stream(self.stream_id)
        await self.session.flush()

    async def abort(self, code: int | None = None) -> None:
        self.session.connection.reset_stream(self.stream_id, CANCEL if code is None else code)
        await self.session.flush()

    async def recv(self) -> bytes:
        while not self.chunks:
            if self.ended is not None:
                return b""
            self.changed.clear()
            await self.changed.wait()
        data = b"".join(self.chunks)
        self.chunks.clear()
        await self.consumed(len(data))
        return data

    async def consumed(self, length: int) -> None:
        """The stream's window widens with what was read, and only with that."""
        self.owed += length
        if self.owed >= WINDOW // 4 and self.ended is None:
            self.session.connection.increment_flow_control_window(self.owed, self.stream_id)
            self.owed = 0
            await self.session.flush()

    @property
    def end(self) -> End | None:
        return None if self.chunks else self.ended

    def finished(self, end: End) -> None:
        self.ended = self.ended or end
        if not self.head.done():
            self.head.set_exception(ConnectionResetError(f"no answer: {end}"))
            self.head.exception()
        self.changed.set()
        self.writable.set()


class H2Session(Session):
    """One connection."""

    def __init__(self, wire: Wire, endpoint: Endpoint, validate: bool = True) -> None:
        self.wire, self.endpoint = wire, endpoint
        self.loop = asyncio.get_running_loop()
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=validate,
            normalize_outbound_headers=validate,
        )
        self.connection = h2.connection.H2Connection(config)
        self.streams: dict[int, H2Tunnel] = {}
        self.blocked: set[H2Tunnel] = set()
        self.settled = asyncio.Event()
        self.over = asyncio.Event()
        self.goaway: int | None = None
        self.incoming = bytearray()
        self.goaway_seen = asyncio.Event()
        self.failure: Exception | None = None
        self.owed = 0
        self.credit = 1 << 30
        self.pings = 0
        self.reader: asyncio.Task[None] | None = None
        self.lock = asyncio.Lock()

    @classmethod
    async def connect(
        cls, endpoint: Endpoint, window: int = WINDOW, validate: bool = True, credit: int = 1 << 30
    ) -> H2Session:
        wire: Wire
        if endpoint.authority_file is None:
            wire = await TcpWire.connect(endpoint.host, endpoint.port)
        else:
            tls = await TlsWire.connect(endpoint, ["h2"])
            assert tls.tls.selected_alpn_protocol() == "h2"
            wire = tls
        session = cls(wire, endpoint, validate)
        codes = h2.settings.SettingCodes
        values = {codes.ENABLE_PUSH: 0, codes.INITIAL_WINDOW_SIZE: window, codes.MAX_HEADER_LIST_SIZE: 65536}
        session.connection.local_settings = h2.settings.Settings(client=True, initial_values=values)
        session.connection.initiate_connection()
        session.credit = credit
        if credit > 65535:
            session.connection.increment_flow_control_window(credit - 65535)
        await session.flush()
        session.reader = asyncio.create_task(session.read())
        await asyncio.wait_for(session.settled.wait(), 10)
        assert session.connection.remote_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL) == 1
        return session

    async def flush(self) -> None:
        async with self.lock:
            if data := self.connection.data_to_send():
                with contextlib.suppress(ConnectionError, OSError):
                    await self.wire.send(data)

    async def read(self) -> None:
        try:
            while data := await self.wire.recv():
                for event in self.connection.receive_data(self.without_goaway(data)):
                    self.handle(event)
                await self.flush()
        except h2.exceptions.ProtocolError as error:
            self.failure = error
            await self.flush()
        finally:
            for stream in self.streams.values():
                stream.finished(End("lost", self.goaway))
            self.settled.set()
            self.over.set()

    def without_goaway(self, data: bytes) -> bytes:
        """The whole frames so far, GOAWAY apart: the h2 package would stop at the first of a graceful shutdown."""
        self.incoming += data
        out, at = bytearray(), 0
        while len(self.incoming) - at >= 9:
            end = at + 9 + int.from_bytes(self.incoming[at : at + 3], "big")
            if end > len(self.incoming):
                break
            if self.incoming[at + 3] == GOAWAY:
                self.goaway = int.from_bytes(self.incoming[at + 13 : at + 17], "big")
                self.goaway_seen.set()
            else:
                out += self.incoming[at:end]
            at = end
        del self.incoming[:at]
        return bytes(out)

    def handle(self, event: h2.events.Event) -> None:
        stream = self.streams.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, h2.events.RemoteSettingsChanged):
            self.settled.set()
            self.unblock()
        elif isinstance(event, h2.events.WindowUpdated):
            self.unblock()
        elif isinstance(event, h2.events.PingAckReceived):
            self.pings += 1
        elif stream is None:
            return
        elif isinstance(event, h2.events.InformationalResponseReceived):
            stream.interim.append(self.head(event.headers))
        elif isinstance(event, h2.events.ResponseReceived):
            stream.head.set_result(self.head(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            self.owed += event.flow_controlled_length
            if self.owed >= self.credit >> 6:
                self.connection.increment_flow_control_window(self.owed)
                self.owed = 0
            if event.data:
                stream.received += len(event.data)
                stream.chunks.append(event.data)
                stream.changed.set()
        elif isinstance(event, h2.events.StreamEnded):
            stream.finished(CLEAN)
        elif isinstance(event, h2.events.StreamReset):
            stream.ended = None if stream.ended == CLEAN else stream.ended
            stream.finished(End("reset", int(event.error_code)))

    @staticmethod
    def head(headers: object) -> Answer:
        found = strings(headers)
        return Answer(int(dict(found)[":status"]), [(name, value) for name, value in found if name != ":status"])

    def unblock(self) -> None:
        for stream in self.blocked:
            stream.writable.set()
        self.blocked.clear()

    def pseudo(self, request: Request) -> Headers:
        scheme = "http" if self.endpoint.authority_file is None else "https"
        if request.method == "CONNECT" and request.token is None:
            assert request.authority is not None
            return [(":method", "CONNECT"), (":authority", request.authority)]
        assert request.path is not None
        head = [
            (":method", request.method),
            (":scheme", scheme),
            (":path", request.path),
            (":authority", request.authority or self.endpoint.authority),
        ]
        if request.token is not None:
            head[0] = (":method", "CONNECT")
            head.append((":protocol", request.token))
        return head

    async def open(self, request: Request, optimistic: bytes = b"") -> H2Tunnel:
        plain = request.method != "CONNECT" and request.token is None
        return await self.open_raw([*self.pseudo(request), *request.headers], optimistic, end=plain)

    async def open_raw(self, headers: Headers, optimistic: bytes = b"", end: bool = False) -> H2Tunnel:
        stream_id = self.connection.get_next_available_stream_id()
        stream = self.streams[stream_id] = H2Tunnel(self, stream_id)
        self.connection.send_headers(stream_id, headers, end_stream=end)
        if optimistic:
            await stream.send(optimistic)
        await self.flush()
        return stream

    async def close(self) -> None:
        if self.failure is None and self.wire.end is None:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self.connection.close_connection()
            await self.flush()
        if self.reader is not None:
            self.reader.cancel()
            await asyncio.gather(self.reader, return_exceptions=True)
        await self.wire.close()
        assert self.failure is None, f"the relay broke HTTP/2: {self.failure!r}"
