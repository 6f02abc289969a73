"""masque-go as a client of connect-udp: quic-go's QUIC, HTTP/3 and datagrams."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from peers.model import TOKEN
from peers.process import RelayProcess
from peers.target import unused_port
from peers.udp import TEMPLATE, UdpTarget

SOURCE = Path(__file__).parent / "go" / "masque"
GO = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
SIZES = (0, 1, 1200, 1350)


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


async def reports(program: Path, relay: RelayProcess, *targets: str) -> list[dict[str, Any]]:
    """What the client says of each target."""
    endpoint = relay.endpoint("h3")
    process = await asyncio.create_subprocess_exec(
        program,
        "-template", f"https://{endpoint.authority}{TEMPLATE}",
        "-authority", str(endpoint.authority_file),
        "-token", TOKEN,
        "-sizes", ",".join(map(str, SIZES)),
        *targets,
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
