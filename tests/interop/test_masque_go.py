"""masque-go as a client of connect-udp: quic-go's QUIC, HTTP/3 and datagrams, and HTTP/3 inside it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from peers.lossy_link import losing
from peers.model import TOKEN
from peers.pki import Authority
from peers.process import RelayProcess
from peers.target import unused_port
from peers.udp import TEMPLATE, UdpTarget

SOURCE = Path(__file__).parent / "go" / "masque"
GO = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
SIZES = (0, 1, 1200, 1350)
SIZE = 20 << 20


def go(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert GO is not None
    command = [GO, *arguments]
    return subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def client() -> Path:
    """The program, built in the user's cache where Go keeps what it compiled anyway."""
    if GO is None:
        pytest.skip("go is not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "capsule-relay-test"
    cache.mkdir(parents=True, exist_ok=True)
    fetched = go("mod", "download")
    if fetched.returncode != 0:
        pytest.skip(f"the modules cannot be had: {fetched.stderr.strip()[-300:]}")
    program = cache / "masque-client"
    built = go("build", "-trimpath", "-o", str(program), ".")
    assert built.returncode == 0, built.stderr
    return program


async def reports(program: Path, relay: RelayProcess, *arguments: str) -> list[dict[str, Any]]:
    """What the client says of each target."""
    endpoint = relay.endpoint("h3")
    process = await asyncio.create_subprocess_exec(
        program,
        "-template", f"https://{endpoint.authority}{TEMPLATE}",
        "-authority", str(endpoint.authority_file),
        "-token", TOKEN,
        "-sizes", ",".join(map(str, SIZES)),
        *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return [json.loads(line) for line in out.splitlines()]


async def test_payloads_come_back_through_tunnels_of_one_connection(relay: RelayProcess, client: Path) -> None:
    async with UdpTarget(echo=True) as first, UdpTarget("::1", echo=True) as second:
        targets = [f"127.0.0.1:{first.port}", f"[::1]:{second.port}"]
        for target, report in zip(targets, await reports(client, relay, *targets), strict=True):
            assert (report["target"], report["status"], report["error"]) == (target, 200, "")
            assert tuple(report["echoed"]) == SIZES
            assert "next-hop=" in report["proxy_status"]


async def test_a_refusal_arrives_and_harms_no_neighbour(relay: RelayProcess, client: Path) -> None:
    async with UdpTarget(echo=True) as target:
        refused, accepted = await reports(client, relay, f"169.254.1.1:{unused_port()}", f"127.0.0.1:{target.port}")
        assert refused["status"] == 403
        assert "destination_ip_prohibited" in refused["proxy_status"]
        assert tuple(accepted["echoed"]) == SIZES


@contextmanager
def origin(program: Path, directory: Path, authority: Authority) -> Iterator[str]:
    """Host and port of quic-go's server."""
    chain, key = authority.server("origin")
    process = subprocess.Popen(
        [program, "-serve", directory, "-certificate", chain, "-key", key],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(timeout=5)
        process.stdout.close()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("loss", [0.0, 0.01], ids=["lossless", "1 % loss"])
async def test_a_download_over_http3_inside(
    relay: RelayProcess, client: Path, authority: Authority, tmp_path: Path, loss: float
) -> None:
    page = random.Random(5).randbytes(SIZE)
    (tmp_path / "page").write_bytes(page)
    endpoint = relay.endpoint("h3")
    with origin(client, tmp_path, authority) as target, losing(loss, endpoint.host, endpoint.port) as port:
        (report,) = await reports(client, relay, "-fetch", "/page", "-dial", f"127.0.0.1:{port}", target)
    assert report["bytes"] == SIZE
    assert report["digest"] == hashlib.sha256(page).hexdigest()
    rate = SIZE * 8 / report["seconds"] / 1e6
    print(f"\n  {loss:.0%} loss: {SIZE:,} bytes in {report['seconds']:.2f} s, {rate:.1f} Mbit/s of goodput")
