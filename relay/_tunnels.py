"""Open tunnels of a ``Client``: what asyncio makes of an end, and the end of a tunnel of datagrams.

An end is a Unix socket (see ``native/relay-engine/src/client/local``). Its close cannot say that it is no clean end, so
whoever reads one asks the native side before it believes it.
"""

import asyncio
import contextlib
import errno
import socket
import weakref
from types import TracebackType
from typing import Self

from relay import _native
from relay.errors import TunnelEnded

#: What stands before each payload in a packet, so that an empty payload is told from the end.
_MARK = b"\0"
_MOST = len(_MARK) + _native.MAX_UDP_PAYLOAD
#: Datagrams that are received without giving the loop a turn.
_TURN = 64


def _reset(why: str) -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, why)


class StreamProtocol(asyncio.StreamReaderProtocol):
    """asyncio's own, but that a tunnel which was cut off is no end of file."""

    def __init__(self, reader: asyncio.StreamReader, end: _native.ClientEnd, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._end = end
        # Weak, as the base has it: who drops the reader has no use for the rest.
        self._own_reader = weakref.ref(reader)
        self._own_transport: asyncio.BaseTransport | None = None
        self._own_writer: weakref.ref[asyncio.StreamWriter] | None = None
        #: Done once the transport is gone.
        self.lost: asyncio.Future[None] = loop.create_future()

    def writer(self, transport: asyncio.WriteTransport, reader: asyncio.StreamReader) -> asyncio.StreamWriter:
        """The writer that goes with the reader."""
        writer = asyncio.StreamWriter(transport, self, reader, self.lost.get_loop())
        self._own_writer = weakref.ref(writer)
        return writer

    def is_closing(self) -> bool:
        """The program closed it, and it is not gone yet."""
        # TLS inside the tunnel (`start_tls`) has a transport above this one, which has something to say first.
        writer = self._own_writer() if self._own_writer is not None else None
        transports = (self._own_transport, writer.transport if writer is not None else None)
        return not self.lost.done() and any(it is not None and it.is_closing() for it in transports)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._own_transport = transport
        super().connection_made(transport)

    def eof_received(self) -> bool | None:
        fault = self._end.fault()
        if fault is None:
            return super().eof_received()
        if (reader := self._own_reader()) is not None:
            reader.set_exception(_reset(fault))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        fault = self._end.fault() or (exc and self._end.cut())
        super().connection_lost(_reset(fault) if fault else exc)
        self._own_transport = None
        if not self.lost.done():
            self.lost.set_result(None)


class UdpTunnel:
    """A tunnel of datagrams (RFC 9298). Made by ``Client.open_udp``; may be used with ``async with``.

    As with UDP, datagrams may be lost, on either side of the proxy; ``dropped`` counts those lost at this end. At most
    some hundred KiB wait here each way: the kernel's socket buffer.
    """

    def __init__(self, end: _native.ClientEnd, loop: asyncio.AbstractEventLoop) -> None:
        self._end = end
        self._loop = loop
        self._sock = socket.socket(fileno=end.detach())
        # The descriptor is so already; a loop in debug mode asks the object.
        self._sock.setblocking(False)
        self._sending, self._receiving = asyncio.Lock(), asyncio.Lock()
        self._waiting = 0
        self._closed = False
        self._streak = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def dropped(self) -> tuple[int, int]:
        """Datagrams dropped at this end: (to the target, from the target).

        To the target: those that fit no QUIC datagram of the path, or for which it had no room. From the target: those
        that nobody received in time.
        """
        return self._end.dropped()

    async def send(self, payload: bytes | bytearray | memoryview) -> None:
        """Sends a payload of 0 to 65527 bytes; waits while too many are on their way.

        Raises ValueError for a longer one, TunnelEnded once the tunnel is over. Over HTTP/3 what is longer than the
        path allows (about 1200 bytes and more) is dropped and counted, as UDP does.
        """
        if memoryview(payload).nbytes > _native.MAX_UDP_PAYLOAD:
            raise ValueError(f"a UDP payload has at most {_native.MAX_UDP_PAYLOAD} bytes")
        if not self._closed and not self._sending.locked():
            try:
                self._sock.sendmsg((_MARK, payload))
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._ended() from error
            else:
                return
        self._waiting += 1
        try:
            async with self._sending:
                if self._closed:
                    raise self._ended()
                await self._loop.sock_sendall(self._sock, _MARK + bytes(payload))
        except OSError as error:
            raise (error if isinstance(error, TunnelEnded) else self._ended()) from None
        finally:
            self._release()

    async def receive(self) -> bytes:
        """The next payload, perhaps empty. Raises TunnelEnded once the tunnel is over and all that came is received."""
        self._waiting += 1
        try:
            async with self._receiving:
                if self._closed:
                    raise self._ended()
                packet = await self._packet()
        finally:
            self._release()
        if not packet:
            raise self._ended()
        return packet[len(_MARK) :]

    def close(self) -> None:
        """Ends the tunnel, after what was sent. Whoever waits gets TunnelEnded. May be called again."""
        if not self._closed:
            self._closed = True
            # Wakes who waits; the descriptor stays theirs until they are gone.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            if not self._waiting:
                self._sock.close()

    async def _packet(self) -> bytes:
        try:
            packet = self._sock.recv(_MOST)
        except BlockingIOError:
            self._streak = 0
            try:
                return await self._loop.sock_recv(self._sock, _MOST)
            except OSError:
                return b""
        except OSError:
            return b""
        self._streak += 1
        if self._streak >= _TURN:
            # A socket that is always ready would keep the loop for itself.
            self._streak = 0
            await asyncio.sleep(0)
        return packet

    def _release(self) -> None:
        self._waiting -= 1
        if self._closed and not self._waiting:
            self._sock.close()

    def _ended(self) -> TunnelEnded:
        if self._closed:
            return TunnelEnded("the tunnel is closed")
        return TunnelEnded(self._end.fault() or "the proxy ended the tunnel")
