"""``Client``: tunnels through a proxy, inside any running event loop."""

import asyncio
import base64
import contextlib
import itertools
import os
import socket
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from relay import _native
from relay._threads import in_thread
from relay._tunnels import StreamProtocol, UdpTunnel
from relay.errors import ClientError, ProxyMisbehaved, ProxyUnreachable, RelayError, TunnelRefused

_File = str | os.PathLike[str]

_PORTS = {"https": 443, "http": 80}
#: How long tunnels that the program has closed may take to deliver what was written to them, in seconds.
_LINGER = 5.0


class Client:
    """Tunnels through one proxy: TCP as asyncio streams, UDP as datagrams. Starts with ``async with`` or :meth:`start`.

    ``proxy`` is the proxy's origin, ``https://proxy.example/`` or ``http://127.0.0.1:8080``.

    Credentials: ``token`` (Bearer), or ``user`` and ``password`` (Basic). ``ca`` names a PEM file, or several, whose
    certificates are trusted instead of the system's (``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` count as the system's).

    ``http`` is ``"h1"``, ``"h2"`` or ``"h3"``. Without it, an ``https`` proxy is tried over HTTP/3 first and over TCP
    beside it when no answer came within 250 ms, where ALPN chooses between HTTP/2 and HTTP/1.1; an ``http`` proxy is
    spoken to in HTTP/1.1.

    ``tcp`` says how TCP is asked for: by a token of connect-tcp, or ``"connect"`` for classic CONNECT.
    ``tcp_template`` and ``udp_template`` are paths with ``{target_host}`` and ``{target_port}``, where the proxy does
    not serve the default ones. ``connect_timeout`` bounds, in seconds, how long reaching the proxy may take; how long
    the proxy takes to answer is yours to bound, with ``asyncio.timeout``.

    Nothing is connected before the first tunnel. Over HTTP/2 and HTTP/3 all tunnels share a connection; one that ended,
    or that the proxy is about to end, is replaced at the next opening. Bytes move in a thread of its own.

    Raises ValueError for arguments that cannot be.
    """

    def __init__(
        self,
        proxy: str,
        *,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        ca: _File | Sequence[_File] | None = None,
        http: Literal["h1", "h2", "h3"] | None = None,
        tcp: Literal["connect-tcp-12", "connect-tcp-07", "connect"] = "connect-tcp-12",
        tcp_template: str | None = None,
        udp_template: str | None = None,
        connect_timeout: float = 10.0,
    ) -> None:
        self._secure, self._host, self._port, self._authority = _origin(proxy)
        if http == "h3" and not self._secure:
            raise ValueError("HTTP/3 needs an https proxy")
        # The other way round, not a number would pass.
        if not connect_timeout > 0:
            raise ValueError("connect_timeout must be more than nothing")
        self._credentials = _credentials(token, user, password)
        self._ca = [Path(ca)] if isinstance(ca, str | os.PathLike) else [Path(file) for file in ca or ()]
        self._version = http
        self._tcp, self._tcp_template, self._udp_template = tcp, tcp_template, udp_template
        self._patience = connect_timeout
        self._native: _native.Client | None = None
        self._begun = False
        self._process = 0
        self._closing: asyncio.Future[None] | None = None
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[_native.ClientEnd]] = {}
        self._streams: set[StreamProtocol] = set()
        self._used: str | None = None
        self._finalizer: weakref.finalize[[_native.Client, int], Client] | None = None

    def __repr__(self) -> str:
        return f"<Client {self._url}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def http(self) -> str | None:
        """The HTTP version of the tunnel that was opened last: ``h1``, ``h2`` or ``h3``."""
        return self._used

    async def start(self) -> None:
        """Starts the thread; connects nothing. OSError for a file that cannot be read, ValueError for what is in it."""
        if self._begun:
            raise RelayError("this client was started before: make a new one")
        self._begun = True
        self._loop = asyncio.get_running_loop()
        try:
            # Started too late for whoever was cancelled, its thread ends with the object.
            native = await in_thread(self._make)
        except BaseException:
            self._begun = False
            raise
        self._native, self._process = native, os.getpid()
        # Without this, tunnels of a client that is open when the interpreter ends could look as if they ended well.
        self._finalizer = weakref.finalize(self, _close_native, native, self._process)
        self._loop.add_reader(native.fileno(), self._take)

    async def open_tcp(
        self, host: str, port: int, *, limit: int = 2**16
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Opens a tunnel to a TCP target; returns once the target's connection stands.

        ``host`` is a name, which the proxy resolves, or an address without brackets. The streams are asyncio's own,
        with half-close both ways (``write_eof``). A tunnel that is reset, or cut off with its connection, raises
        ConnectionResetError on reading and never looks like an end of file. For TLS with the target, call
        ``writer.start_tls``. ``limit`` is that of ``asyncio.open_connection``.

        Raises ClientError: ProxyUnreachable, TunnelRefused, ProxyMisbehaved; ValueError for a target that cannot be.
        Cancelling gives the request up.
        """
        end = await self._open(False, host, port)
        sock = socket.socket(fileno=end.detach())
        try:
            reader = asyncio.StreamReader(limit, self._loop)
            protocol = StreamProtocol(reader, end, self._loop)
            transport, _ = await self._loop.create_unix_connection(lambda: protocol, sock=sock)
        except BaseException:
            sock.close()
            raise
        self._streams.add(protocol)
        protocol.lost.add_done_callback(lambda _: self._streams.discard(protocol))
        return reader, protocol.writer(transport, reader)

    async def open_udp(self, host: str, port: int) -> UdpTunnel:
        """Opens a tunnel to a UDP target (RFC 9298); returns once the proxy has a socket for it.

        Raises as :meth:`open_tcp`.
        """
        return UdpTunnel(await self._open(True, host, port), self._loop)

    async def aclose(self) -> None:
        """Ends all tunnels and the thread. May be called again.

        Tunnels that the program has closed get a few seconds to deliver what was written to them. All others are cut
        off: the targets see a reset, their readers here ConnectionResetError.
        """
        if self._native is None:
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(self._native))
        await asyncio.shield(self._closing)

    async def _close(self, native: _native.Client) -> None:
        if leaving := [protocol.lost for protocol in self._streams if protocol.is_closing()]:
            await asyncio.wait(leaving, timeout=_LINGER)
        await in_thread(native.close, _LINGER)
        self._loop.remove_reader(native.fileno())
        if self._finalizer is not None:
            self._finalizer.detach()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ClientError("the client was closed"))

    @property
    def _url(self) -> str:
        return f"http{'s' if self._secure else ''}://{self._authority}/"

    def _make(self) -> _native.Client:
        return _native.Client(
            self._host,
            self._port,
            self._authority,
            tls=self._secure,
            ca=b"\n".join(file.read_bytes() for file in self._ca) if self._ca else None,
            credentials=self._credentials,
            http=self._version,
            tcp=self._tcp,
            tcp_template=self._tcp_template,
            udp_template=self._udp_template,
            patience=min(self._patience, 86400.0),
        )

    def _running(self) -> _native.Client:
        if self._native is None:
            raise RelayError("the client is not started")
        if self._closing is not None:
            raise RelayError("the client is closed")
        if self._process != os.getpid():
            raise RelayError("the client was started in another process, and a fork takes no threads along")
        return self._native

    async def _open(self, datagrams: bool, host: str, port: int) -> _native.ClientEnd:
        native = self._running()
        if not 0 < port < 65536:
            raise ValueError("the target port must be from 1 to 65535")
        number = next(self._numbers)
        future: asyncio.Future[_native.ClientEnd] = self._loop.create_future()
        native.open(number, datagrams, host, port)
        self._waiting[number] = future
        try:
            end = await future
        except asyncio.CancelledError:
            native.cancel(number)
            raise
        finally:
            del self._waiting[number]
        self._used = end.http
        return end

    def _take(self) -> None:
        assert self._native is not None
        for number, end, failure in self._native.take():
            future = self._waiting.get(number)
            # An end that nobody waits for any more is closed with its object.
            if future is None or future.done():
                continue
            if end is not None:
                future.set_result(end)
            elif failure is not None:
                future.set_exception(self._error(*failure))

    def _error(
        self,
        kind: str,
        message: str,
        status: int,
        error: str | None,
        details: str | None,
        headers: list[tuple[str, str]],
    ) -> Exception:
        message = f"{self._url}: {message}"
        match kind:
            case "refused":
                return TunnelRefused(message, status, error, details, headers)
            case "unreachable":
                return ProxyUnreachable(message)
            case "misbehaved":
                return ProxyMisbehaved(message)
        return ClientError(message)


def _origin(proxy: str) -> tuple[bool, str, int, str]:
    """Whether TLS is spoken, host, port, authority."""
    parts = urlsplit(proxy)
    expected = f"{proxy!r}: a proxy is https://HOST[:PORT]/ or http://HOST[:PORT]/"
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(expected)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{expected}, without a path")
    if "@" in parts.netloc:
        raise ValueError("credentials do not belong into the proxy's URL: give token, or user and password")
    try:
        port = parts.port
        host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    except ValueError as error:
        raise ValueError(f"{expected}: {error}") from None
    authority = f"[{host}]" if ":" in host else host
    usual = _PORTS[parts.scheme]
    if port is None or port == usual:
        return parts.scheme == "https", host, usual, authority
    if not port:
        raise ValueError(f"{expected}: port 0")
    return parts.scheme == "https", host, port, f"{authority}:{port}"


def _credentials(token: str | None, user: str | None, password: str | None) -> str | None:
    if token is not None:
        if user is not None or password is not None:
            raise ValueError("give a token, or user and password, not both")
        if not token or not all("!" <= character <= "~" for character in token):
            raise ValueError("the token must be visible ASCII")
        return f"Bearer {token}"
    if user is None and password is None:
        return None
    if user is None or password is None:
        raise ValueError("user and password go together")
    if ":" in user:
        raise ValueError("a user's name holds no colon")
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _close_native(native: _native.Client, process: int) -> None:
    # A fork takes no threads along: there is nothing to wait for.
    if process == os.getpid():
        with contextlib.suppress(ValueError):
            native.close(0)
