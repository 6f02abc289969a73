"""TCP targets: scripted by a test, or serving in the background."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
from collections.abc import Awaitable, Callable

from .wire import TcpWire

TCP_CLOSE = 7  # of the kernel's tcp_states.h
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # of asm-generic/socket.h
BPF_RETURN = 0x06  # BPF_RET | BPF_K of linux/bpf_common.h: how many bytes of a packet to keep

Serve = Callable[["Connection"], Awaitable[None]]


class Connection(TcpWire):
    """A connection as the target sees it."""

    async def read_exactly(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            data = await self.loop.sock_recv(self.sock, min(length - len(parts), 1 << 18))
            assert data, f"FIN after {len(parts)} of {length} bytes"
            parts += data
        return bytes(parts)

    @property
    def broken(self) -> bool:
        """Whether the connection is closed as the kernel sees it, whatever is still to be read."""
        return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE

    async def read_to_end(self) -> bytes:
        """Everything up to FIN or RST; `end` tells which."""
        parts = bytearray()
        while data := await self.recv():
            parts += data
        return bytes(parts)


class Target:
    """A listening socket on loopback."""

    def __init__(
        self,
        serve: Serve | None = None,
        host: str = "127.0.0.1",
        backlog: int = 4096,
        receive_buffer: int | None = None,
        port: int = 0,
    ) -> None:
        self.serve = serve
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.setblocking(False)
        self.sock.bind((host, port))
        self.sock.listen(backlog)
        self.host, self.port = self.sock.getsockname()[:2]
        self.accepted = 0
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.acceptor: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Target:
        if self.serve is not None:
            self.acceptor = asyncio.create_task(self.accept_all())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self.tasks, *([self.acceptor] if self.acceptor else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self.connections:
            await connection.close()
        self.sock.close()

    async def accept(self, timeout: float | None = 10) -> Connection:
        """The next connection, for a test that plays the target itself."""
        async with asyncio.timeout(timeout):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        self.accepted += 1
        connection = Connection(sock)
        self.connections.add(connection)
        return connection

    async def accept_all(self) -> None:
        assert self.serve is not None
        while True:
            connection = await self.accept(None)
            task = asyncio.create_task(self.run(connection))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def run(self, connection: Connection) -> None:
        assert self.serve is not None
        try:
            await self.serve(connection)
        except OSError:
            pass
        finally:
            self.connections.discard(connection)
            await connection.close()


async def echo(connection: Connection) -> None:
    """Sends back what comes, and the FIN."""
    while data := await connection.recv():
        await connection.send(data)
    if connection.end is not None and connection.end.kind == "clean":
        await connection.finish()


def unused_port(host: str = "127.0.0.1") -> int:
    """A port where nobody listens."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        port = sock.getsockname()[1]
        assert isinstance(port, int)
        return port


class BlackHole:
    """A listener that no packet reaches: connection attempts get no answer at all, until `admit`.

    A full accept queue would do the same, but not as surely: where several attempts come at once the kernel answers with SYN cookies
    and resets what it can't keep.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        drop_all = (ctypes.c_char * 8).from_buffer_copy(struct.pack("=HBBI", BPF_RETURN, 0, 0, 0))
        program = struct.pack("HP", 1, ctypes.addressof(drop_all))
        self.listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        self.listener.bind((host, 0))
        self.listener.listen(64)
        self.port = self.listener.getsockname()[1]
        self.admitted: list[Connection] = []

    async def admit(self, handle: Callable[[Connection], Awaitable[None]]) -> None:
        """Takes whoever comes from now on, until cancelled. A waiting client asks again within a second or two."""
        self.listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        self.listener.setblocking(False)
        async with asyncio.TaskGroup() as group:
            while True:
                sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
                connection = Connection(sock)
                self.admitted.append(connection)
                group.create_task(self.run(handle, connection))

    @staticmethod
    async def run(handle: Callable[[Connection], Awaitable[None]], connection: Connection) -> None:
        with contextlib.suppress(OSError):
            await handle(connection)

    def __enter__(self) -> BlackHole:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the sockets back."""
        for connection in self.admitted:
            connection.sock.close()
        self.listener.close()
