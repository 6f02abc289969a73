"""TCP and TLS without comfort: every kind of end stays visible."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from pathlib import Path

from .model import CLEAN, End, Endpoint

CHUNK = 256 * 1024


class Wire(ABC):
    """A byte stream whose ends can be told apart."""

    end: End | None = None

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Writes everything."""

    @abstractmethod
    async def recv(self) -> bytes:
        """Some bytes; empty once `end` is known."""

    @abstractmethod
    async def finish(self) -> None:
        """A clean end of the sending direction."""

    @abstractmethod
    async def abort(self) -> None:
        """TCP: RST. TLS: FIN without close_notify."""

    @abstractmethod
    async def close(self) -> None:
        """Gives the socket back."""


class TcpWire(Wire):
    """A plain TCP connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, host: str, port: int, receive_buffer: int | None = None) -> TcpWire:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.sock, data)

    async def recv(self) -> bytes:
        if self.end is not None:
            return b""
        try:
            data = await self.loop.sock_recv(self.sock, CHUNK)
        except (ConnectionResetError, BrokenPipeError):
            self.end = End("reset")
            return b""
        if not data:
            self.end = CLEAN
        return data

    @property
    def unread(self) -> int:
        """Bytes that wait in the kernel until the other end, a relay on this machine, reads them."""
        ours, theirs = (
            f"{int.from_bytes(bytes(map(int, host.split('.'))), 'little'):08X}:{port:04X}"
            for host, port in (self.sock.getsockname(), self.sock.getpeername())
        )
        for line in Path("/proc/net/tcp").read_text().splitlines():
            fields = line.split()
            if fields[1:3] == [theirs, ours]:
                return int(fields[4].partition(":")[2], 16)
        raise LookupError(f"{theirs} -> {ours}")

    async def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    async def abort(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.end = self.end or End("lost")

    async def close(self) -> None:
        self.sock.close()


class TlsWire(Wire):
    """TLS over a `TcpWire` through memory BIOs, so that nothing hides a missing close_notify."""

    def __init__(
        self, tcp: TcpWire, context: ssl.SSLContext, server_name: str | None, server_side: bool = False
    ) -> None:
        self.tcp = tcp
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=server_side, server_hostname=server_name)
        self.ready: list[bytes] = []

    @classmethod
    async def connect(
        cls,
        endpoint: Endpoint,
        alpn: list[str],
        receive_buffer: int | None = None,
        maximum: ssl.TLSVersion | None = None,
    ) -> TlsWire:
        wire = cls(
            await TcpWire.connect(endpoint.host, endpoint.port, receive_buffer),
            client_context(endpoint.authority_file, alpn, endpoint.client_certificate, maximum),
            "localhost" if endpoint.host in ("127.0.0.1", "::1") else endpoint.host,
        )
        try:
            await wire.handshake()
        except BaseException:
            await wire.close()
            raise
        return wire

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                data = await self.tcp.recv()
                if not data:
                    raise ConnectionError(f"the peer left during the handshake: {self.tcp.end}") from None
                self.incoming.write(data)
            except ssl.SSLError:
                await self.flush()
                raise
            else:
                await self.flush()
                return

    async def flush(self) -> None:
        if data := self.outgoing.read():
            await self.tcp.send(data)

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            self.tls.write(view[start : start + CHUNK])
            await self.flush()

    def decrypt(self) -> bytes | None:
        """Decrypted bytes at hand; None while there are none, empty at the end."""
        parts = []
        while True:
            try:
                data = self.tls.read(CHUNK)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLEOFError:
                self.end = self.tcp.end if self.tcp.end and self.tcp.end.kind == "reset" else End("truncated")
                break
            if not data:
                self.end = CLEAN
                break
            parts.append(data)
        return b"".join(parts) if parts or self.end else None

    async def recv(self) -> bytes:
        if self.ready:
            return self.ready.pop(0)
        while self.end is None:
            if (data := self.decrypt()) is not None:
                return data
            await self.flush()
            if received := await self.tcp.recv():
                self.incoming.write(received)
            else:
                self.incoming.write_eof()
        return b""

    async def finish(self) -> None:
        # OpenSSL refuses a shutdown with application data in hand: read that first.
        if data := self.decrypt():
            self.ready.append(data)
        if self.end is None:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.unwrap()
        else:
            with contextlib.suppress(ssl.SSLError):
                self.tls.unwrap()
        await self.flush()

    async def abort(self) -> None:
        await self.tcp.finish()

    async def reset(self) -> None:
        """A TCP RST beneath TLS."""
        await self.tcp.abort()

    async def close(self) -> None:
        await self.tcp.close()


def client_context(
    authority: Path | None,
    alpn: list[str],
    certificate: tuple[Path, Path] | None = None,
    maximum: ssl.TLSVersion | None = None,
) -> ssl.SSLContext:
    """TLS towards the relay: its certificate is verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority is not None:
        context.load_verify_locations(authority)
    if alpn:
        context.set_alpn_protocols(alpn)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    if maximum is not None:
        context.maximum_version = maximum
    return context
