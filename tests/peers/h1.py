"""HTTP/1.1 client on h11."""

from __future__ import annotations

import h11

from .model import Answer, End, Endpoint, Headers, Request, Session, Tunnel
from .wire import TcpWire, TlsWire, Wire


def fields(raw: object) -> Headers:
    return [(bytes(name).decode("ascii").lower(), bytes(value).decode("latin-1")) for name, value in raw]  # type: ignore[attr-defined]


class H1Tunnel(Tunnel):
    """The connection after one request."""

    def __init__(self, session: H1Session) -> None:
        self.session = session
        self.interim = []
        self.final: Answer | None = None
        self.rest = b""

    async def answer(self) -> Answer:
        if self.final is not None:
            return self.final
        connection, wire = self.session.connection, self.session.wire
        body = bytearray()
        head: Answer | None = None
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await wire.recv()
                if not data and wire.end is not None and wire.end.kind != "clean":
                    raise ConnectionError(f"no answer: {wire.end}")
                connection.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                found = Answer(event.status_code, fields(event.headers))
                if event.status_code == 101:
                    head = found
                    break
                self.interim.append(found)
            elif isinstance(event, h11.Response):
                head = Answer(event.status_code, fields(event.headers))
                if connection.our_state is h11.SWITCHED_PROTOCOL:
                    break
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionError("closed without an answer")
            else:
                raise AssertionError(event)
        assert head is not None
        head.body = bytes(body)
        self.rest = connection.trailing_data[0]
        self.final = head
        return head

    async def send(self, data: bytes) -> None:
        await self.session.wire.send(data)

    async def finish(self) -> None:
        await self.session.wire.finish()

    async def abort(self, code: int | None = None) -> None:
        await self.session.wire.abort()

    async def recv(self) -> bytes:
        if self.rest:
            data, self.rest = self.rest, b""
            return data
        return await self.session.wire.recv()

    @property
    def end(self) -> End | None:
        return None if self.rest else self.session.wire.end


class H1Session(Session):
    """One connection; requests follow one another until one becomes a tunnel."""

    def __init__(self, wire: Wire, endpoint: Endpoint) -> None:
        self.wire = wire
        self.endpoint = endpoint
        self.connection = h11.Connection(h11.CLIENT)

    @classmethod
    async def connect(cls, endpoint: Endpoint, receive_buffer: int | None = None) -> H1Session:
        if endpoint.authority_file is None:
            return cls(await TcpWire.connect(endpoint.host, endpoint.port, receive_buffer), endpoint)
        return cls(await TlsWire.connect(endpoint, ["http/1.1"], receive_buffer), endpoint)

    async def open(self, request: Request, optimistic: bytes = b"") -> H1Tunnel:
        if self.connection.our_state is h11.DONE:
            self.connection.start_next_cycle()
        headers = list(request.headers)
        if not any(name == "host" for name, _ in headers):
            headers.insert(0, ("host", request.authority or self.endpoint.authority))
        if request.token is not None:
            headers += [("connection", "Upgrade"), ("upgrade", request.token)]
        target = request.authority if request.method == "CONNECT" else request.path
        assert target is not None
        out = self.connection.send(h11.Request(method=request.method, target=target, headers=headers))
        out = (out or b"") + (self.connection.send(h11.EndOfMessage()) or b"")
        await self.wire.send(out + optimistic)
        return H1Tunnel(self)

    async def close(self) -> None:
        await self.wire.close()
