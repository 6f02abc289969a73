"""What the tests of `Relay` share: a configuration, a target, a client."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from relay import Config, Decision, Relay, TunnelRequest
from relay.config import Auth, Egress, Limits, Listener, Log, Policy


def make_config(**policy: Any) -> Config:
    return Config(
        workers=1,
        listeners=[Listener(address="127.0.0.1:0", http=["h1"])],
        auth=Auth(required=False),
        policy=Policy(allow_networks=["127.0.0.0/8"], **policy),
        egress=Egress(dial_timeout="5s"),
        limits=Limits(drain_timeout="5s"),
        log=Log(access=""),
    )


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A target that sends back what it gets; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def connect(
    relay: Relay, port: int, host: str = "127.0.0.1", fields: str = ""
) -> tuple[int, dict[str, str], asyncio.StreamReader, asyncio.StreamWriter]:
    """A classic CONNECT over HTTP/1.1: status, header fields, streams."""
    at = relay.addresses[0]
    reader, writer = await asyncio.open_connection(at.host, at.port)
    writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{fields}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, reader, writer


async def status(relay: Relay, port: int, fields: str = "") -> int:
    code, _, _, writer = await connect(relay, port, fields=fields)
    writer.close()
    return code


def run(main: Callable[[], Awaitable[None]], seconds: float = 30) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await main()

    asyncio.run(bounded())


def deny_all(_: TunnelRequest) -> Decision:
    return Decision.deny("closed on Sundays", status=451)


async def deny_all_slowly(request: TunnelRequest) -> Decision:
    await asyncio.sleep(0)
    return deny_all(request)
