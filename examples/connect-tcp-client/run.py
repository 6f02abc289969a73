"""A client for templated connect-tcp over HTTP/1.1, on `relay.framing`.

python run.py                                     a relay and a target of its own, on loopback
python run.py PROXY_HOST PROXY_PORT HOST PORT     through a cleartext relay that runs; stdin → tunnel → stdout
"""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import quote

from relay import Config, Relay
from relay.framing import ConnectTcp

TOKEN = "connect-tcp-12"


class Tunnel:
    """One tunnel: the TCP byte stream on one side, capsules on the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.machine = reader, writer, ConnectTcp(TOKEN)

    async def send(self, data: bytes) -> None:
        self.writer.write(self.machine.send(data))
        await self.writer.drain()

    async def finish(self) -> None:
        """The FIN of this direction; the other one goes on."""
        self.writer.write(self.machine.send_final())
        await self.writer.drain()

    async def receive(self) -> bytes:
        """Some bytes; none at all once the target has sent everything."""
        while not self.machine.receive_finished:
            data = await self.reader.read(65536)
            if not data:
                self.machine.receive_end()
                raise ConnectionResetError("the tunnel ended without the target's FIN")
            if payload := self.machine.receive(data):
                return payload
        return b""


async def open_tunnel(proxy: tuple[str, int], host: str, port: int) -> Tunnel:
    """Asks for a tunnel at the default template. Nothing may be sent before the 101."""
    reader, writer = await asyncio.open_connection(*proxy)
    request = (
        f"GET /.well-known/masque/tcp/{quote(host, safe='')}/{port}/ HTTP/1.1",
        f"Host: {proxy[0]}:{proxy[1]}",
        "Connection: Upgrade",
        f"Upgrade: {TOKEN}",
        "Capsule-Protocol: ?1",
    )
    writer.write("\r\n".join((*request, "", "")).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if head.split(maxsplit=2)[1] != b"101":
        raise ConnectionError(head.decode().strip())
    return Tunnel(reader, writer)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The target of the demonstration: everything back, then FIN."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def demonstrate() -> None:
    config = Config.from_dict(
        {
            "listeners": [{"address": "127.0.0.1:0"}],
            "auth": {"required": False},
            "policy": {"allow_networks": ["127.0.0.1/32"]},
            "log": {"access": ""},
        }
    )
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Relay(config) as relay:
        address = relay.addresses[0]
        tunnel = await open_tunnel((address.host, address.port), "127.0.0.1", port)
        sent = bytes(range(256)) * 1000
        received = b""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send_all(tunnel, sent))
            while data := await tunnel.receive():
                received += data
        assert received == sent
        print(f"{len(received)} bytes there and back, closed by FINAL_DATA both ways")
        tunnel.writer.close()
        await relay.drain(grace=5)


async def send_all(tunnel: Tunnel, data: bytes) -> None:
    for at in range(0, len(data), 10_000):
        await tunnel.send(data[at : at + 10_000])
    await tunnel.finish()


async def pipe(arguments: list[str]) -> None:
    proxy_host, proxy_port, host, port = arguments
    tunnel = await open_tunnel((proxy_host, int(proxy_port)), host, int(port))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send_all(tunnel, await asyncio.to_thread(sys.stdin.buffer.read)))
        while data := await tunnel.receive():
            sys.stdout.buffer.write(data)


asyncio.run(pipe(sys.argv[1:]) if len(sys.argv) == 5 else demonstrate())
