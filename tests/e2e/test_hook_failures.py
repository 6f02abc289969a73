"""A hook that fails: it denies, once; nothing of it is remembered, and whatever it raises ends no relay."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers.flow import Flow
from peers.h2 import H2Session
from peers.matrix import connect
from peers.model import Endpoint, tunnel_request
from peers.process import RelayProcess, StartRelay, merged, toml, until
from peers.target import Target, echo

from relay import Config, Decision, Relay, TunnelRequest

TCP = "connect-tcp-12"

HOOKS = """
import asyncio
import sys
import time

from relay import Decision

asked = {}


def fault(kind):
    if kind == "exception":
        raise RuntimeError("the database is away")
    if kind == "exit":
        sys.exit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "cancelled":
        raise asyncio.CancelledError
    if kind == "generator":
        raise GeneratorExit
    if kind == "base":
        raise BaseException("none of the usual kinds")
    return "no decision"


def begins(request):
    kind = request.target_host.split(".")[0]
    asked[kind] = asked.get(kind, 0) + 1
    return kind, asked[kind] == 1


def verdict(kind):
    if kind == "127":
        return Decision.allow()
    return Decision.deny(f"asked {asked[kind]} times", status=418)


async def at_once(request):
    kind, first = begins(request)
    if first and kind == "late":
        await asyncio.sleep(3600)
    return fault(kind) if first and kind != "127" else verdict(kind)


async def later(request):
    await asyncio.sleep(0.001)
    return await at_once(request)


def plain(request):
    kind, first = begins(request)
    if first and kind == "late":
        time.sleep(1)
    return fault(kind) if first and kind != "127" else verdict(kind)
"""

FAULTS = ["exception", "exit", "interrupt", "cancelled", "generator", "base", "nonsense", "late"]


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the hooks in it."""
    folder = tmp_path_factory.mktemp("failing")
    (folder / "hooks_that_fail.py").write_text(HOOKS)
    return folder


@pytest.fixture(scope="module", params=["at_once", "later", "plain"])
def failing(request: pytest.FixtureRequest, launch: StartRelay, hooks: Path) -> Iterator[RelayProcess]:
    """A relay that remembers decisions for a minute, with a hook of each kind; one process for all failures."""
    relay = launch(
        {"PYTHONPATH": f"{hooks}:{os.environ.get('PYTHONPATH', '')}"},
        workers=1,
        policy={"hook": f"hooks_that_fail:{request.param}", "hook_timeout": "300ms", "hook_cache": "1m"},
    )
    yield relay
    relay.stop()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failure_denies_once_and_is_not_remembered(failing: RelayProcess, fault: str) -> None:
    async with (
        Target(echo) as target,
        await connect(failing, "h2c") as session,
        await connect(failing, "h2c") as other,
    ):
        before = Flow(await other.open(tunnel_request(TCP, target.host, target.port)), TCP)
        await before.write(b"before")
        assert await before.read_exactly(6) == b"before"
        request = tunnel_request(TCP, f"{fault}.test", 443)
        answer = await session.ask(request)
        assert answer.status == 503, answer.body
        assert "http_request_denied" in answer.proxy_status
        # The next one asks again and gets the decision; that one is kept.
        for _ in range(3):
            answer = await session.ask(request)
            assert (answer.status, answer.problem["detail"]) == (418, "asked 2 times")
        await before.write(b"after")
        assert await before.read_exactly(5) == b"after"
        assert failing.alive


async def raises(_: TunnelRequest) -> Decision:
    raise SystemExit(3)


async def raises_later(_: TunnelRequest) -> Decision:
    await asyncio.sleep(0)
    raise KeyboardInterrupt


def raises_in_a_thread(_: TunnelRequest) -> Decision:
    raise GeneratorExit


@pytest.mark.parametrize("hook", [raises, raises_later, raises_in_a_thread])
async def test_failures_leave_no_open_question(configuration: dict[str, Any], tmp_path: Path, hook: Any) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(toml(merged(configuration, {"log": {"access": "access.log"}})))
    authority = configuration["listeners"][1]["certificate"].parent / "ca.pem"
    total = 100
    async with Relay(Config.load(file), decide=hook) as relay:
        secure = next(address for address in relay.addresses if address.tls)
        endpoint = Endpoint(secure.host, secure.port, authority)
        async with await H2Session.connect(endpoint) as session:
            requests = (tunnel_request(TCP, f"n{number}.test", 443) for number in range(total))
            answers = await asyncio.gather(*(session.ask(request) for request in requests))
        assert [answer.status for answer in answers] == [503] * total
        assert await until(lambda: relay.stats()["hook_pending"] == 0), relay.stats()
