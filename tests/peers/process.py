"""The relay as users run it: a process of its own, watched from outside."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .model import TOKEN, Endpoint

READY = re.compile(r"(https?)://(\[[0-9a-f:]+\]|[0-9.]+):(\d+)/ \(([a-z0-9 ]+)\)")


def toml(document: dict[str, Any]) -> str:
    """Enough TOML for a configuration: tables, arrays of tables, JSON-like values."""
    lines = [f"{key} = {value(item)}" for key, item in document.items() if not is_table(item)]

    def table(name: str, body: dict[str, Any], array: bool = False) -> None:
        lines.append(f"[[{name}]]" if array else f"[{name}]")
        lines.extend(f"{key} = {value(item)}" for key, item in body.items() if not is_table(item))
        nested(body, name + ".")

    def nested(body: dict[str, Any], prefix: str) -> None:
        for key, item in body.items():
            if isinstance(item, dict):
                table(prefix + key, item)
            elif is_table(item):
                for entry in item:
                    table(prefix + key, entry, array=True)

    nested(document, "")
    return "\n".join(lines) + "\n"


def is_table(item: object) -> bool:
    return isinstance(item, dict) or (isinstance(item, list) and bool(item) and isinstance(item[0], dict))


def value(item: object) -> str:
    return json.dumps(str(item) if isinstance(item, Path) else item, default=str)


def token_line(name: str = "tester", token: str = TOKEN) -> str:
    """A line of a tokens file."""
    return f"{name}:{hashlib.sha256(token.encode()).hexdigest()}\n"


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` laid over `base`, table by table."""
    out = dict(base)
    for key, item in changes.items():
        known = out.get(key)
        out[key] = merged(known, item) if isinstance(item, dict) and isinstance(known, dict) else item
    return out


class RelayProcess:
    """`python -m relay serve -c …`."""

    def __init__(
        self, folder: Path, configuration: dict[str, Any], authority: Path | None = None, **environment: str
    ) -> None:
        self.folder = folder
        self.authority = authority
        self.file = folder / "relay.toml"
        self.access_log = folder / "access.log"
        self.write(configuration)
        inherited = {key: item for key, item in os.environ.items() if not key.startswith("RELAY_")}
        self.errors = (folder / "stderr.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "relay", "serve", "-c", str(self.file)],
            cwd=folder,
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self.endpoints: list[tuple[set[str], Endpoint]] = []

    def write(self, configuration: dict[str, Any]) -> None:
        """A (new) configuration file."""
        self.file.write_text(toml(merged({"log": {"access": "access.log"}}, configuration)))

    def ready(self, timeout: float = 20) -> RelayProcess:
        """Waits for the ready line and learns the addresses from it."""
        lines: list[bytes] = []

        def read() -> None:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                lines.append(line)
                if line.startswith(b"relay ready:"):
                    return

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(timeout)
        if not lines or not lines[-1].startswith(b"relay ready:"):
            self.kill()
            raise AssertionError(f"no ready line: {lines}\n{self.stderr()}")
        for scheme, host, port, versions in READY.findall(lines[-1].decode()):
            authority = self.authority if scheme == "https" else None
            self.endpoints.append((set(versions.split()), Endpoint(host.strip("[]"), int(port), authority)))
        assert self.endpoints, lines[-1]
        return self

    def endpoint(self, transport: str) -> Endpoint:
        """The address for `h1`, `h2c` (cleartext), `h1tls`, `h2`, `h3` (TLS)."""
        clear = transport in ("h1", "h2c")
        version = {"h1tls": "h1", "h2c": "h2"}.get(transport, transport)
        for versions, endpoint in self.endpoints:
            if version in versions and clear == (endpoint.authority_file is None):
                return endpoint
        raise LookupError(transport)

    def stderr(self) -> str:
        """What the relay said so far."""
        return (self.folder / "stderr.log").read_text(errors="replace")

    def log(self) -> list[dict[str, Any]]:
        """The access log so far."""
        if not self.access_log.exists():
            return []
        return [json.loads(line) for line in self.access_log.read_text().splitlines() if line]

    @property
    def descriptors(self) -> int:
        """Open file descriptors."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    async def settled_descriptors(self, expected: int, timeout: float = 10) -> int:
        """The number of descriptors once it is down to `expected`, or after the time-out."""
        await until(lambda: self.descriptors <= expected, timeout)
        return self.descriptors

    @property
    def resident(self) -> int:
        """Resident memory in bytes."""
        return self.status("VmRSS")

    @property
    def threads(self) -> int:
        """Running threads."""
        return self.status("Threads") // 1024

    @property
    def peak(self) -> int:
        """The highest resident memory since the start or `reset_peak`, in bytes."""
        return self.status("VmHWM")

    def reset_peak(self) -> None:
        """Starts a new peak."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def status(self, key: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        raise LookupError(key)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 20) -> int:
        """The exit code."""
        return self.process.wait(timeout)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """Ends it at once."""
        if self.alive:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.errors.close()

    def stop(self) -> None:
        """Ends it by SIGTERM twice (drain, then at once) and expects exit code 0."""
        if not self.alive:
            self.kill()
            raise AssertionError(f"the relay died with {self.process.returncode}:\n{self.stderr()[-4000:]}")
        self.signal(signal.SIGTERM)
        time.sleep(0.05)
        self.signal(signal.SIGTERM)
        try:
            code = self.wait(10)
        finally:
            self.kill()
        assert code == 0, f"exit code {code}:\n{self.stderr()[-4000:]}"
        assert "panicked" not in self.stderr(), self.stderr()[-4000:]


async def until(condition: Callable[[], bool], timeout: float = 10, interval: float = 0.02) -> bool:
    """Waits for something outside this process that gives no notice; whether it came."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(interval)
    return True


StartRelay = Callable[..., RelayProcess]
