"""A gigabyte each way through every cell: equal digests, flat memory. Only with `-m gigabyte`."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Iterator

import pytest
from peers.flow import Flow
from peers.matrix import connect, success
from peers.model import CLEAN, tunnel_request
from peers.process import RelayProcess, StartRelay
from peers.target import Target

MIB = 1 << 20
TOTAL = int(os.environ.get("GIGABYTE", 1_000_000_000))
BLOCK = random.Random(2026).randbytes(MIB)

pytestmark = pytest.mark.gigabyte


@pytest.fixture(scope="module")
def measured(launch: StartRelay) -> RelayProcess:
    """A relay of which only these tests make use."""
    return launch()


def blocks() -> Iterator[bytes]:
    """The payload in blocks that differ."""
    for number in range(0, TOTAL, MIB):
        yield number.to_bytes(8, "big") + BLOCK[8 : min(MIB, TOTAL - number)]


@pytest.fixture(scope="module")
def expected() -> str:
    """The payload's digest."""
    digest = hashlib.sha256()
    for block in blocks():
        digest.update(block)
    return digest.hexdigest()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("direction", ["down", "up"])
async def test_a_gigabyte(
    measured: RelayProcess,
    transport: str,
    protocol: str,
    direction: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with Target() as target, await connect(measured, transport) as session:
        tunnel = await session.open(tunnel_request(protocol, target.host, target.port))
        connection = await target.accept()
        assert (await tunnel.answer()).status == success(transport, protocol)
        flow, digest, received = Flow(tunnel, protocol), hashlib.sha256(), 0
        measured.reset_peak()
        before, began = measured.resident, asyncio.get_running_loop().time()

        async def serve() -> None:
            for part in blocks():
                await connection.send(part)
            await connection.finish()

        async def upload() -> None:
            for part in blocks():
                await flow.write(part, 65536)
            await flow.write_final()

        if direction == "down":
            sender = asyncio.create_task(serve())
            while data := await flow.read():
                digest.update(data)
                received += len(data)
            assert flow.fin
        else:
            sender = asyncio.create_task(upload())
            while data := await connection.recv():
                digest.update(data)
                received += len(data)
            assert connection.end == CLEAN
        await sender
        seconds = asyncio.get_running_loop().time() - began
        grown = measured.peak - before
        with capsys.disabled():
            print(
                f"\n  {transport} {protocol} {direction}: {received:,} bytes in {seconds:.1f} s, memory +{grown / MIB:.1f} MiB at most"
            )
        assert received == TOTAL
        assert digest.hexdigest() == expected
        assert grown <= 64 * MIB
