"""Fixtures of the whole test tree: certificates, a running relay, name server, and the matrix of transports and protocols."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
from collections.abc import Awaitable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers.matrix import PROTOCOLS, TRANSPORTS
from peers.nameserver import NameServer
from peers.pki import Authority
from peers.process import RelayProcess, StartRelay, merged, token_line


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout(seconds): the bound of one asynchronous test")
    config.addinivalue_line("markers", "gigabyte: moves gigabytes; only with -m gigabyte")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "gigabyte" in (config.getoption("-m") or ""):
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gigabyte")])
    items[:] = [item for item in items if not item.get_closest_marker("gigabyte")]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs `async def` tests in a loop of their own, with a bound."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    marker = pyfuncitem.get_closest_marker("timeout")
    seconds = marker.args[0] if marker else 45
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(bounded(pyfuncitem.obj(**arguments), seconds))
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps the collector out of the way of a failure's report: CPython 3.11 may not run it while it builds syntax trees."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


async def bounded(test: Awaitable[None], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await test


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The certification authority of this run."""
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def server_certificate(authority: Authority) -> tuple[Path, Path]:
    """(chain, key) for loopback."""
    return authority.server()


@pytest.fixture(scope="session")
def nameserver() -> Iterator[NameServer]:
    """Answers for `*.test`."""
    server = NameServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def configuration(
    tmp_path_factory: pytest.TempPathFactory, server_certificate: tuple[Path, Path], nameserver: NameServer
) -> dict[str, Any]:
    """A relay with a cleartext and a TLS listener that reaches loopback targets."""
    tokens = tmp_path_factory.mktemp("auth") / "tokens"
    tokens.write_text(token_line())
    chain, key = server_certificate
    return {
        "listeners": [
            {"address": "127.0.0.1:0", "http": ["h1", "h2"]},
            {"address": "127.0.0.1:0", "http": ["h1", "h2", "h3"], "certificate": chain, "private_key": key},
        ],
        "auth": {"tokens_file": tokens},
        "egress": {"dial_timeout": "2s", "nameservers": [nameserver.address]},
        "policy": {"allow_networks": ["127.0.0.0/8", "::1/128"]},
    }


@pytest.fixture(scope="session")
def launch(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, configuration: dict[str, Any]
) -> Iterator[StartRelay]:
    """Starts relays that live until the end of the run; keyword arguments change the configuration table by table."""
    started: list[RelayProcess] = []
    numbers = itertools.count()

    def start(environment: dict[str, str] | None = None, **changes: Any) -> RelayProcess:
        folder = tmp_path_factory.mktemp(f"relay{next(numbers)}")
        process = RelayProcess(folder, merged(configuration, changes), authority.file, **(environment or {}))
        started.append(process)
        return process.ready()

    yield start
    for process in started:
        if process.alive:
            process.stop()
        else:
            process.kill()


@pytest.fixture(scope="session")
def relay(launch: StartRelay) -> RelayProcess:
    """The relay that most tests share: none of them may hurt it."""
    return launch()


@pytest.fixture(scope="session")
def templated_only(launch: StartRelay) -> RelayProcess:
    """A relay without classic CONNECT."""
    return launch(protocols={"connect": {"enabled": False}})


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test with the shared relay: it still runs and nothing panicked."""
    process = request.getfixturevalue("relay") if "relay" in request.fixturenames else None
    said = len(process.stderr()) if process else 0
    yield
    if process is not None:
        new = process.stderr()[said:]
        assert process.alive, new[-4000:]
        assert "panicked" not in new, new[:4000]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Every transport in turn."""
    return str(request.param)


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    """Every protocol in turn."""
    return str(request.param)
