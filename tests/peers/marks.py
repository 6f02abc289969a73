"""The marks of IP packets for the tests: a UDP target that reads and sets them, and a path that does."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable
from typing import Any

from .capsule import capsule, varint
from .model import Answer, Endpoint

NOT_ECT, ECT_1, ECT_0, CE = range(4)
#: Capsule types; those of the draft are not assigned.
ASSIGN, ACK = 0x3B, 0x3C
#: DSCP → contexts for Not-ECT, ECT(1), ECT(0) and CE.
Contexts = dict[int, tuple[int, ...]]


def field(contexts: Contexts) -> str:
    """ECN-DSCP-Context-ID."""
    return ", ".join(f"({dscp} {' '.join(map(str, ids))})" for dscp, ids in contexts.items())


def assigned(answer: Answer) -> Contexts:
    """What the relay's field assigns."""
    text = answer.get("ecn-dscp-context-id")
    assert text is not None
    assert re.fullmatch(r"\(\d+( \d+){4}\)(, ?\(\d+( \d+){4}\))*", text), text
    sets = [tuple(map(int, found.split())) for found in re.findall(r"\(([^)]*)\)", text)]
    contexts = {dscp: tuple(ids) for dscp, *ids in sets}
    assert len(contexts) == len(sets)
    return contexts


def registration(kind: int, contexts: Contexts) -> bytes:
    """ECN_DSCP_CONTEXT_ASSIGN or _ACK."""
    value = b"".join(bytes([dscp << 2]) + b"".join(map(varint, ids)) for dscp, ids in contexts.items())
    return capsule(kind, value)


def option(family: int, *, receive: bool = False) -> tuple[int, int]:
    """Level and name of a socket option or control message."""
    if family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS if receive else socket.IPV6_TCLASS
    return socket.IPPROTO_IP, socket.IP_RECVTOS if receive else socket.IP_TOS


class Marked:
    """A UDP socket; every datagram has the octet of its packet that holds DSCP and ECN."""

    def __init__(self, host: str, hear: Callable[[bytes, int, Any], None]) -> None:
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.hear = hear
        self.socket = socket.socket(self.family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(*option(self.family, receive=True), 1)
        self.socket.bind((host, 0))
        self.host, self.port = self.socket.getsockname()[:2]
        asyncio.get_running_loop().add_reader(self.socket, self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.socket)
        self.socket.close()

    def _read(self) -> None:
        while True:
            try:
                data, control, _, source = self.socket.recvmsg(65536, 64)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                continue
            (octet,) = [value[0] for level, kind, value in control if (level, kind) == option(self.family)]
            self.hear(data, octet, source)

    def send(self, data: bytes, octet: int, to: Any) -> None:
        control = [(*option(self.family), struct.pack("i", octet))]
        self.socket.sendmsg([data], control, 0, to)


class MarkedTarget:
    """A target that the test plays itself."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.received: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue()
        self.source: Any = None

    async def __aenter__(self) -> MarkedTarget:
        self.marked = Marked(self.host, self._hear)
        self.port = self.marked.port
        return self

    async def __aexit__(self, *_: object) -> None:
        self.marked.close()

    def _hear(self, data: bytes, octet: int, source: Any) -> None:
        self.source = source
        self.received.put_nowait((data, octet))

    async def receive(self) -> tuple[bytes, int]:
        """The next datagram and its octet."""
        return await asyncio.wait_for(self.received.get(), 10)

    def send(self, data: bytes, octet: int) -> None:
        """To whoever sent last."""
        self.marked.send(data, octet, self.source)


class Path:
    """A way to `to` on which what goes there is marked, and the marks of what comes back are noted."""

    def __init__(self, to: Endpoint, octet: int) -> None:
        self.to, self.octet = to, octet
        self.seen: list[int] = []
        self.client: Any = None

    async def __aenter__(self) -> Path:
        self.near = Marked(self.to.host, self._up)
        self.far = Marked(self.to.host, self._down)
        self.port = self.near.port
        return self

    async def __aexit__(self, *_: object) -> None:
        self.near.close()
        self.far.close()

    def _up(self, data: bytes, _: int, source: Any) -> None:
        self.client = source
        self.far.send(data, self.octet, (self.to.host, self.to.port))

    def _down(self, data: bytes, octet: int, _: Any) -> None:
        self.seen.append(octet)
        self.near.send(data, 0, self.client)
