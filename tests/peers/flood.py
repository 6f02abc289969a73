"""A flood of empty datagrams through one connect-udp tunnel, as a program: its CPU is not that of whoever looks on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from peers.capsule import capsule, varint
from peers.h1 import H1Session
from peers.h2 import H2Session
from peers.h3 import H3Session, settings
from peers.model import Endpoint, Tunnel
from peers.udp import DATAGRAM, Datagrams, udp_request

#: An HTTP datagram with context ID 0 and no payload.
EMPTY = capsule(DATAGRAM, varint(0))
#: QUIC DATAGRAM frames that wait before they are sent off together.
TOGETHER = 1000


async def pour(flow: Datagrams, count: int) -> None:
    """Sends so many empty datagrams, as fast as flow control lets it."""
    if flow.form == "capsule":
        for start in range(0, count, 100_000):
            await flow.tunnel.send(EMPTY * min(100_000, count - start))
        return
    session, tunnel = flow.quic()
    quic, frame = session.protocol._quic, varint(tunnel.stream_id // 4) + varint(0)
    for start in range(0, count, TOGETHER):
        for _ in range(min(TOGETHER, count - start)):
            quic.send_datagram_frame(frame)
        session.protocol.transmit()
        while quic._datagrams_pending:
            await session.progress()


async def main(transport: str, form: str, host: str, port: str, authority: str, target: str, count: str) -> None:
    endpoint = Endpoint(host, int(port), Path(authority) if authority else None)
    session: H1Session | H2Session | H3Session
    if transport.startswith("h1"):
        session = await H1Session.connect(endpoint)
    elif transport.startswith("h2"):
        session = await H2Session.connect(endpoint)
    else:
        session = await H3Session.connect(endpoint, settings({}) if form == "capsule" else None)
    async with session:
        tunnel: Tunnel = await session.open(udp_request("127.0.0.1", target))
        assert (await tunnel.answer()).status in (101, 200)
        print("open", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        await pour(Datagrams(session, tunnel, form), int(count))
        await tunnel.finish()
        await tunnel.drained()


@asynccontextmanager
async def flooding(
    endpoint: Endpoint, transport: str, form: str, target: int, count: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program with its tunnel open: it begins at a line on its standard input, and ends when all was taken."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).resolve()), transport, form,
        endpoint.host, str(endpoint.port), str(endpoint.authority_file or ""), str(target), str(count),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
