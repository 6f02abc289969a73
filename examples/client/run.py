"""A local port that leads through a proxy to a target: each connection gets a tunnel.

python run.py                                     a relay and a target of its own, on loopback
python run.py PROXY_URL HOST PORT [LOCAL_PORT]    through a proxy that runs; RELAY_TOKEN, RELAY_CA from the environment
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

from relay import Client, ClientError, Config, Relay


class Forwarder:
    """Accepts connections and forwards each through a tunnel of its own."""

    def __init__(self, client: Client, host: str, port: int) -> None:
        self.client, self.host, self.port = client, host, port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await self.client.open_tcp(self.host, self.port)
        except ClientError as error:
            print(error, file=sys.stderr)
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(copy(reader, far_writer))
                both.create_task(copy(far_reader, writer))
        except* OSError:
            # One side broke: so does the other.
            writer.transport.abort()
            far_writer.transport.abort()
        finally:
            writer.close()
            far_writer.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, its end included."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The target of the demonstration."""
    writer.write(b"hello, " + await reader.read())
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
    target = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = target.sockets[0].getsockname()[1]
    async with target, Relay(config) as relay, Client(relay.addresses[0].url) as client:
        forwarder = Forwarder(client, "127.0.0.1", port)
        local = await asyncio.start_server(forwarder.serve, "127.0.0.1", 0)
        async with local:
            reader, writer = await asyncio.open_connection(*local.sockets[0].getsockname())
            writer.write(b"world")
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            print(answer.decode(), "by", client.http)
            assert answer == b"hello, world"


async def forward(proxy: str, host: str, port: int, local_port: int) -> None:
    token, ca = os.environ.get("RELAY_TOKEN"), os.environ.get("RELAY_CA")
    async with Client(proxy, token=token, ca=ca) as client:
        local = await asyncio.start_server(Forwarder(client, host, port).serve, "127.0.0.1", local_port)
        print("listening on", local.sockets[0].getsockname())
        async with local:
            await local.serve_forever()


if len(sys.argv) > 3:
    asyncio.run(forward(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0))
else:
    asyncio.run(demonstrate())
