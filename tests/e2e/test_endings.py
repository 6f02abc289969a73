"""The end of a process whose hook does not end: threads, coroutines and a loop that somebody keeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from peers.matrix import connect
from peers.model import tunnel_request
from peers.process import RelayProcess, StartRelay, until

TCP = "connect-tcp-12"

HOOKS = """
import asyncio
import pathlib
import time

from relay import Decision


def begun(request):
    pathlib.Path(request.target_host).touch()


def in_a_thread(request):
    begun(request)
    time.sleep(3600)


async def in_the_pool_of_the_loop(request):
    begun(request)
    await asyncio.to_thread(time.sleep, 3600)


async def deaf(request):
    begun(request)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass


async def keeps_the_loop(request):
    begun(request)
    time.sleep(3600)


async def turns_in_the_loop(request):
    begun(request)
    while True:
        pass
"""


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the hooks in it."""
    folder = tmp_path_factory.mktemp("endless")
    (folder / "hooks_without_end.py").write_text(HOOKS)
    return folder


def search_path(hooks: Path) -> str:
    return f"{hooks}:{os.environ.get('PYTHONPATH', '')}"


async def hung(launch: StartRelay, hooks: Path, hook: str) -> RelayProcess:
    """A relay whose hook has begun and will never return."""
    relay = launch(
        {"PYTHONPATH": search_path(hooks)},
        workers=1,
        policy={"hook": f"hooks_without_end:{hook}", "hook_timeout": "200ms"},
        limits={"drain_timeout": "1s"},
    )
    async with await connect(relay, "h2") as session:
        assert (await session.ask(tunnel_request(TCP, "begun.test", 443))).status == 503
    assert (relay.folder / "begun.test").exists()
    return relay


async def exit_code(relay: RelayProcess) -> int:
    assert await until(lambda: not relay.alive, 15), relay.stderr()[-2000:]
    return relay.wait()


@pytest.mark.parametrize("hook", ["in_a_thread", "in_the_pool_of_the_loop", "deaf"])
async def test_one_signal_is_enough(launch: StartRelay, hooks: Path, hook: str) -> None:
    relay = await hung(launch, hooks, hook)
    relay.signal(signal.SIGTERM)
    assert await exit_code(relay) == 0
    assert "draining" in relay.stderr()
    assert ("left behind" in relay.stderr()) == (hook != "in_the_pool_of_the_loop")
    assert "Traceback" not in relay.stderr()


@pytest.mark.parametrize("hook", ["keeps_the_loop", "turns_in_the_loop"])
async def test_a_second_signal_ends_a_process_whose_loop_stands_still(
    launch: StartRelay, hooks: Path, hook: str
) -> None:
    relay = await hung(launch, hooks, hook)
    # Two signals of one kind that wait together are one to the process; two kinds are two.
    relay.signal(signal.SIGTERM)
    relay.signal(signal.SIGINT)
    assert await exit_code(relay) == 0
    assert "Traceback" not in relay.stderr()


def blocked(status: str) -> int:
    return int(status.partition("SigBlk:")[2].split()[0], 16)


def test_threads_of_the_engine_leave_signals_to_the_main_thread(launch: StartRelay, hooks: Path) -> None:
    # CPython does not tell a main thread that computes about a signal that another thread got.
    relay = launch({"PYTHONPATH": search_path(hooks)}, policy={"hook": "hooks_without_end:deaf"})
    tasks = Path(f"/proc/{relay.process.pid}/task")
    native = [task for task in tasks.iterdir() if (task / "comm").read_text().startswith("relay-")]
    assert len(native) >= 3
    for task in native:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            assert blocked((task / "status").read_text()) >> (number - 1) & 1, (task / "comm").read_text()
    assert blocked((tasks / str(relay.process.pid) / "status").read_text()) == 0
    relay.stop()


EMBEDDED = """
import asyncio, sys, time
from relay import Config, Relay

def hook(request):
    time.sleep(3600)

async def main():
    config = Config.from_dict({
        "listeners": [{"address": "127.0.0.1:0"}], "auth": {"required": False},
        "log": {"access": ""}, "policy": {"hook_timeout": "100ms"},
    })
    async with Relay(config, decide=hook) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.addresses[0].port)
        writer.write(b"CONNECT 192.0.2.1:443 HTTP/1.1\\r\\nHost: 192.0.2.1:443\\r\\n\\r\\n")
        print((await reader.readline()).decode().split()[1])

asyncio.run(main())
"""


def test_a_program_with_a_relay_ends_while_a_hook_still_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EMBEDDED], capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "503\n"), done.stderr
