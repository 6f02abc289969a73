"""A relay inside a program of one's own: its event loop, and a function that decides about each tunnel."""

from __future__ import annotations

import asyncio

from relay import Config, Decision, Relay, TunnelRequest


async def decide(request: TunnelRequest) -> Decision:
    """Asked once per tunnel, before anything is dialled."""
    print(f"{request.protocol} over {request.http} to {request.target_host}:{request.target_port}")
    if request.target_port == 1:
        return Decision.deny("port 1 is not for you", status=403)
    return Decision.allow()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The target: says what it heard."""
    writer.write(b"hello, " + await reader.readline())
    await writer.drain()
    writer.close()


async def connect(proxy: tuple[str, int], target: str) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """Opens a classic CONNECT tunnel: the status line, and the streams."""
    reader, writer = await asyncio.open_connection(*proxy)
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], reader, writer


async def main() -> None:
    config = Config.from_dict(
        {
            "listeners": [{"address": "127.0.0.1:0"}],
            "auth": {"required": False},
            "policy": {"allow_networks": ["127.0.0.1/32"]},
            "log": {"access": ""},
        }
    )
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Relay(config, decide=decide) as relay:
        address = relay.addresses[0]
        print("serving on", address)

        status, reader, writer = await connect((address.host, address.port), f"127.0.0.1:{port}")
        assert status.split()[1] == b"200", status
        writer.write(b"world\n")
        answer = await reader.read()
        print(answer.decode().strip())
        assert answer == b"hello, world\n"
        writer.close()

        status, _, writer = await connect((address.host, address.port), "127.0.0.1:1")
        print(status.decode())
        assert status.split()[1] == b"403", status
        writer.close()

        await relay.drain(grace=5)


asyncio.run(main())
