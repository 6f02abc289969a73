"""What every client of the tests has in common: requests, answers, tunnels and how they end."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

TOKEN = "a-token-for-tests"
TEMPLATE = "/.well-known/masque/tcp/{target_host}/{target_port}/"

Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class End:
    """How a direction of a stream ended, as the receiver saw it.

    `clean`: END_STREAM, QUIC FIN, TLS close_notify, TCP FIN. `truncated`: TCP FIN without TLS close_notify.
    `reset`: RST_STREAM or RESET_STREAM with its code, TCP RST (no code). `lost`: the whole connection ended, with its code.
    """

    kind: str
    code: int | None = None


CLEAN = End("clean")


@dataclass
class Answer:
    """A final or an interim response head, with the body where it is no tunnel."""

    status: int
    headers: Headers
    body: bytes = b""

    def get(self, name: str) -> str | None:
        """The only value of a field; two lines of it are a fault of the test's subject."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, f"{name} repeated: {found}"
        return found[0] if found else None

    @property
    def proxy_status(self) -> str:
        """The Proxy-Status field, which every final answer carries."""
        value = self.get("proxy-status")
        assert value is not None, f"no Proxy-Status on {self.status}: {self.headers}"
        return value

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document of a refusal."""
        assert self.get("content-type") == "application/problem+json", self.headers
        document = json.loads(self.body)
        assert isinstance(document, dict)
        return document


@dataclass(frozen=True)
class Request:
    """A request in the terms of no version: each client turns it into its own form."""

    method: str
    path: str | None = None
    token: str | None = None
    authority: str | None = None
    headers: Headers = field(default_factory=list)

    def adding(self, *headers: tuple[str, str]) -> Request:
        """The same request with more header fields."""
        return Request(self.method, self.path, self.token, self.authority, [*self.headers, *headers])


def path_to(host: str, port: int | str) -> str:
    """The default template, expanded."""
    return TEMPLATE.format(target_host=quote(host, safe=""), target_port=port)


def tunnel_request(protocol: str, host: str, port: int | str, credentials: str | None = f"Bearer {TOKEN}") -> Request:
    """A good request for a tunnel: `connect`, or the upgrade token of a templated protocol."""
    if protocol == "connect":
        headers = [("proxy-authorization", credentials)] if credentials else []
        host = f"[{host}]" if ":" in host else host
        return Request("CONNECT", authority=f"{host}:{port}", headers=headers)
    headers = [("authorization", credentials)] if credentials else []
    return Request("GET", path_to(host, port), protocol, headers=[*headers, ("capsule-protocol", "?1")])


@dataclass(frozen=True)
class Endpoint:
    """Where a relay listens."""

    host: str
    port: int
    authority_file: Path | None = None
    client_certificate: tuple[Path, Path] | None = None

    @property
    def authority(self) -> str:
        """Host and port as a Host field has them."""
        return f"{self.host}:{self.port}"


class Tunnel(ABC):
    """One request and, when it was accepted, the data stream behind it."""

    interim: list[Answer]

    @abstractmethod
    async def answer(self) -> Answer:
        """The final response; the body of a refusal is read too."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Writes to the data stream, as far as flow control lets it."""

    @abstractmethod
    async def finish(self) -> None:
        """Ends the sending direction cleanly."""

    @abstractmethod
    async def abort(self, code: int | None = None) -> None:
        """Ends the sending direction abruptly (H1: the connection; TLS: without close_notify)."""

    @abstractmethod
    async def recv(self) -> bytes:
        """The next bytes of the data stream; empty once `end` is known."""

    @property
    @abstractmethod
    def end(self) -> End | None:
        """How the receiving direction ended."""

    async def recv_exactly(self, length: int) -> bytes:
        """So many bytes, or a failure that says how the stream ended."""
        parts = bytearray()
        while len(parts) < length:
            data = await self.recv()
            if not data:
                raise AssertionError(f"ended after {len(parts)} of {length} bytes: {self.end}")
            parts += data
        assert len(parts) == length, "more than asked for"
        return bytes(parts)

    async def drained(self) -> tuple[bytes, End]:
        """Everything up to the end, and the end."""
        parts = bytearray()
        while data := await self.recv():
            parts += data
        assert self.end is not None
        return bytes(parts), self.end


class Session(ABC):
    """A connection to the relay."""

    @abstractmethod
    async def open(self, request: Request, optimistic: bytes = b"") -> Tunnel:
        """Sends a request and waits for nothing; `optimistic` bytes follow at once (H2 and H3)."""

    @abstractmethod
    async def close(self) -> None:
        """Leaves."""

    async def ask(self, request: Request) -> Answer:
        """A request of which only the answer matters."""
        return await (await self.open(request)).answer()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
