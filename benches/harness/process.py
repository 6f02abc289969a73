"""Processes under measurement: start, account for, end. Only what was started here is ever ended, by its number."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PROC = Path("/proc")


class BenchError(Exception):
    """Something the benchmark needs is missing or broke."""


def free_address(kind: socket.SocketKind = socket.SOCK_STREAM) -> str:
    """A loopback address that is free now, as host:port."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def parts(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host, int(port)


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path | None = None,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, ended with the block. Standard output is a pipe, or goes to `log`."""
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("a")) if log else subprocess.PIPE
        process = subprocess.Popen(
            list(command),
            text=True,
            stdout=output,
            stderr=subprocess.STDOUT if log else None,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[str], patience: float = 5) -> None:
    """SIGTERM to the process; SIGKILL, by number, to what is left of its tree after `patience` seconds."""
    family = tree(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    for pid, started in family.items():
        if start_time(pid) == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def first_line(process: subprocess.Popen[str], what: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise BenchError(f"{what} did not start")
    return line


def wait_listening(process: subprocess.Popen[str], address: str, log: Path | None = None, seconds: float = 15) -> None:
    """Until a TCP connection to `address` is accepted."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(parts(address), 1):
            return
        time.sleep(0.05)
    lines = log.read_text(errors="replace").strip().splitlines() if log and log.exists() else []
    raise BenchError("did not start" + (f": {lines[-1][:300]}" if lines else ""))


def fields(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on (proc(5): field 3 is index 0)."""
    try:
        return (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_time(pid: int) -> int | None:
    stat = fields(pid)
    return int(stat[19]) if stat else None


def tree(root: int) -> dict[int, int]:
    """`root` and all its descendants, with their start times."""
    parents: dict[int, tuple[int, int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (stat := fields(int(entry.name))):
            parents[int(entry.name)] = (int(stat[1]), int(stat[19]))
    family = {root: parents[root][1]} if root in parents else {}
    grown = True
    while grown:
        more = {pid: born for pid, (parent, born) in parents.items() if parent in family and pid not in family}
        family.update(more)
        grown = bool(more)
    return family


def cpu_seconds(root: int) -> float:
    """User and system time of the whole process tree; ended children count with the parent that waited for them."""
    ticks = 0
    for pid in tree(root):
        if stat := fields(pid):
            ticks += sum(int(value) for value in stat[11:15])
    return ticks / TICK


def resident(root: int) -> int:
    """Resident bytes of the whole process tree (shared pages count once a process)."""
    return sum(int(stat[21]) * PAGE for pid in tree(root) if (stat := fields(pid)))
