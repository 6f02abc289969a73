"""The UDP port of a connect-udp tunnel is free within a second, whichever way the tunnel ends; until then only the target has it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable

import pytest
from peers.capsule import Decoder, capsule, varint
from peers.h3 import H3Tunnel
from peers.process import RelayProcess, StartRelay, until
from peers.udp import DATAGRAM, Datagrams, UdpTarget, udp_request
from peers.udp_matrix import CELLS, UDP, is_free, opened


async def source(flow: Datagrams, target: UdpTarget) -> tuple[str, int]:
    """Where the tunnel's datagrams come from."""
    await flow.send(b"where from?")
    _, found = await target.receive()
    assert not is_free(found)
    return found


async def abort(flow: Datagrams) -> None:
    await flow.tunnel.abort()


async def close(flow: Datagrams) -> None:
    await flow.session.close()


async def stop(flow: Datagrams) -> None:
    assert isinstance(flow.tunnel, H3Tunnel)
    await flow.tunnel.stop()


async def malformed(flow: Datagrams) -> None:
    await flow.tunnel.send(varint(DATAGRAM) + varint(0))


# = rfc9298 §3.1 socket-lives-with-stream
@pytest.mark.parametrize(
    ("transport", "form", "way"),
    [
        *((*cell, way) for cell in CELLS for way in (abort, close, malformed)),
        *((*cell, stop) for cell in CELLS if cell[0] == "h3"),
    ],
)
async def test_whatever_the_client_does(
    relay: RelayProcess, transport: str, form: str, way: Callable[[Datagrams], Awaitable[None]]
) -> None:
    async with UdpTarget() as target, opened(relay, transport, form, target) as flow:
        own = await source(flow, target)
        await way(flow)
        assert await until(lambda: is_free(own), timeout=1)


# = rfc9298 §3.1 socket-gone-closes-stream
@UDP
async def test_when_the_target_leaves(relay: RelayProcess, transport: str, form: str) -> None:
    async with UdpTarget() as target, opened(relay, transport, form, target) as flow:
        own = await source(flow, target)
        target.transport.abort()
        assert await until(lambda: is_free((target.host, target.port)))
        await flow.send(b"still there?")
        await flow.tunnel.drained()
        assert await until(lambda: is_free(own), timeout=1)


@UDP
async def test_when_the_relay_drains(launch: StartRelay, transport: str, form: str) -> None:
    relay = launch(limits={"drain_timeout": "500ms"})
    async with UdpTarget(echo=True) as target, opened(relay, transport, form, target) as flow:
        await flow.send(b"before")
        assert await flow.receive() == b"before"
        relay.signal(signal.SIGTERM)
        assert await until(lambda: "draining" in relay.stderr())
        # Until its time is over the tunnel goes on.
        await flow.send(b"meanwhile")
        assert await flow.receive() == b"meanwhile"
        target.echo = False
        await flow.send(b"where from?")
        _, own = await target.receive()
        await flow.tunnel.drained()
        assert await until(lambda: is_free(own), timeout=1)
        assert await until(lambda: not relay.alive)


# = rfc9297 §3.3 truncated-capsule
async def test_the_last_capsule_is_whole(relay: RelayProcess) -> None:
    endpoint = relay.endpoint("h1")
    async with UdpTarget() as target:
        with socket.socket() as sock:
            # A client that reads nothing while there is more than its window.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (endpoint.host, endpoint.port))
            reader, writer = await asyncio.open_connection(sock=sock)
            request = udp_request(target.host, target.port)
            fields = {
                "host": endpoint.authority,
                "connection": "upgrade",
                "upgrade": "connect-udp",
                **dict(request.headers),
            }
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            writer.write(f"GET {request.path} HTTP/1.1\r\n{head}\r\n".encode() + capsule(DATAGRAM, b"\0where from?"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            _, own = await target.receive()
            writer.transport.pause_reading()
            for _ in range(4000):
                target.send(bytes(1200), own)
                await asyncio.sleep(0)
            writer.write_eof()
            writer.transport.resume_reading()
            data = await asyncio.wait_for(reader.read(), 10)
            writer.close()
    decoder = Decoder()
    capsules = decoder.feed(data)
    assert capsules
    assert capsules[-1][2]
    assert decoder.complete


# = rfc9298 §3.1 connected-socket
@UDP
async def test_the_target_s_port_at_another_address_is_a_stranger(
    relay: RelayProcess, transport: str, form: str
) -> None:
    async with UdpTarget() as target, opened(relay, transport, form, target) as flow:
        own = await source(flow, target)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.2", target.port))
            stranger.sendto(b"boo", own)
        target.send(b"hi", own)
        assert await flow.receive() == b"hi"
