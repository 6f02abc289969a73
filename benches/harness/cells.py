"""One cell of the benchmark: a way from the client to the origin, and a run over it."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .process import BenchError, cpu_seconds, resident

DIRECTIONS = ("down", "up")
#: Columns of the comparison: mode of relay-load and what people call it.
TRANSPORTS = {"tcp": "TCP", "h1": "h1 clear", "h1tls": "h1 TLS", "h2": "h2", "h3": "h3"}
#: How long a proxy may take to settle its accounts after the last byte.
SETTLE = 0.03


@dataclass(frozen=True)
class Cell:
    """A peer's way to serve one transport in one form.

    `transport` is the column it is compared in; `mode` what the load client speaks, which differs where a plain TCP
    proxy stands in the column. `share` is the part of the bytes that a slow peer moves: figures are per byte.
    """

    peer: str
    transport: str
    form: str
    address: str | None = None
    pid: int | None = None
    mode: str | None = None
    share: float = 1.0
    #: Of a templated form, if it is not the default one.
    template: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.peer} {TRANSPORTS[self.transport]} {self.form}"


@dataclass(frozen=True)
class Run:
    """What one transfer took. CPU in seconds, sizes in bytes."""

    peer: str
    transport: str
    form: str
    direction: str
    round: int
    bytes: int
    seconds: float
    gbit_s: float
    open_seconds: float
    client_cpu_s: float
    proxy_cpu_s: float | None
    proxy_rss: int | None

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.peer, self.transport, self.form, self.direction

    @property
    def proxy_cost(self) -> float | None:
        """CPU seconds of the proxy per 10^9 bytes."""
        return None if self.proxy_cpu_s is None else self.proxy_cpu_s / (self.bytes / 1e9)

    @property
    def client_cost(self) -> float:
        return self.client_cpu_s / (self.bytes / 1e9)


@dataclass(frozen=True)
class Load:
    """The load client, the origin it reaches and the certificate it trusts."""

    program: Path
    origin: str
    certificate: Path
    timeout: float = 120
    #: Stands before the command, e.g. to run it in another network namespace.
    prefix: tuple[str, ...] = ()

    def measure(self, cell: Cell, direction: str, number: int, size: float, *, verify: bool = False) -> Run:
        command = [
            *(*self.prefix, str(self.program), "bulk", "--json", "--direction", direction),
            *("--bytes", str(max(int(size * cell.share), 1)), "--origin", self.origin),
            *("--mode", cell.mode or cell.transport, "--timeout", str(self.timeout), *cell.arguments),
        ]
        if cell.address is not None:
            command += ["--proxy", cell.address]
        if (cell.mode or cell.transport) != "tcp":
            port = (cell.address or "").rsplit(":", 1)[-1]
            command += ["--form", cell.form, "--ca", str(self.certificate), "--authority", f"localhost:{port}"]
        if verify:
            command.append("--verify")
        before = None if cell.pid is None else cpu_seconds(cell.pid)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=self.timeout + 15)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"no end after {error.timeout:.0f} s") from None
        if done.returncode != 0:
            raise BenchError((done.stderr.strip().splitlines() or ["the load client failed"])[-1])
        report = json.loads(done.stdout)
        time.sleep(SETTLE)
        return Run(
            peer=cell.peer,
            transport=cell.transport,
            form=cell.form,
            direction=direction,
            round=number,
            bytes=report["bytes"],
            seconds=report["seconds"],
            gbit_s=report["gbit_s"],
            open_seconds=report["open_seconds"],
            client_cpu_s=report["client_cpu_s"],
            proxy_cpu_s=None if cell.pid is None or before is None else cpu_seconds(cell.pid) - before,
            proxy_rss=None if cell.pid is None else resident(cell.pid),
        )
