"""What a transfer through one tunnel does not show: opening, idling, many tunnels, many workers, small frames.

A probe is one run of the load client that ends in one number. A mark is what a figure, or two of them held against each
other, may come to.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cells import DIRECTIONS, TRANSPORTS
from .process import BenchError, parts

KB = 1000.0
BULK = ("h1", "h1tls", "h2", "h3")
SECURE = BULK[1:]
MULTIPLEXED = ("h2", "h3")
#: Tunnels that are opened at a time, in all.
OPENING = 16
TUNNELS = 1000
#: Connections that lie idle: the first one also pays for what is set up once.
CONNECTIONS = 200
#: Connections in parallel, so that each of two workers gets some.
PARALLEL = 16
#: The largest frame of a client that does not care (RFC 9113 §6.5.2).
SMALL_FRAME = 16_384


@dataclass(frozen=True)
class Gateway:
    """A relay that is running: its process, and its addresses by scheme."""

    pid: int
    addresses: Mapping[str, str]


@dataclass(frozen=True)
class Probe:
    """One run: its name, the unit of its number, and how it is had."""

    name: str
    unit: str
    take: Callable[[], float]


@dataclass(frozen=True)
class Mark:
    """A bound of a figure, of its excess over another one, or of its ratio to it."""

    label: str
    figure: str
    unit: str
    limit: float
    base: str | None = None

    def value(self, figures: Mapping[str, Sequence[float]]) -> float | None:
        """What is held against the limit, from the medians; nothing if a figure was not taken."""
        own, base = figures.get(self.figure), figures.get(self.base or self.figure)
        if not own or not base:
            return None
        found = statistics.median(own)
        if self.base is None:
            return found
        other = statistics.median(base)
        return found / other if self.unit == "×" else found - other


def planned(program: Path, plan: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """One run of the load client; what it found."""
    try:
        done = subprocess.run(
            [str(program), "plan"],
            input=json.dumps(plan),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout + 30,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"no end after {error.timeout:.0f} s") from None
    if done.returncode != 0:
        raise BenchError((done.stderr.strip().splitlines() or ["the load client failed"])[-1])
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@dataclass(frozen=True)
class Loads:
    """Runs plans on the load client."""

    program: Path
    origin: str
    certificate: str
    size: float
    seconds: float
    timeout: float = 180

    def run(self, gateway: Gateway, transport: str, work: Mapping[str, Any], **shape: Any) -> dict[str, Any]:
        address = gateway.addresses["http" if transport == "h1" else "https"]
        host, port = parts(self.origin)
        plan = {
            "work": work,
            "route": {
                "mode": "connect-tcp",
                "http": transport,
                "proxy": address,
                "authority": f"localhost:{parts(address)[1]}",
                "target_host": host,
                "target_port": port,
                "roots": self.certificate,
                "max_frame": shape.pop("max_frame", None),
            },
            "timeout": self.timeout,
            "pids": [gateway.pid],
            **shape,
        }
        return planned(self.program, plan, self.timeout)

    def bulk(self, gateway: Gateway, transport: str, direction: str, **shape: Any) -> float:
        """CPU seconds of the relay per 10^9 bytes."""
        work = {"kind": "bulk", "direction": direction, "bytes": int(self.size)}
        return float(self.run(gateway, transport, work, **shape)["relay_s_per_gb"])

    def rate(self, gateway: Gateway, transport: str) -> float:
        """CPU microseconds of the relay per tunnel: opened, one round trip, closed."""
        work = {"kind": "rate", "seconds": self.seconds}
        return float(self.run(gateway, transport, work, streams=OPENING)["relay_us_per_tunnel"])

    def idle(self, gateway: Gateway, transport: str, what: str, **shape: Any) -> float:
        """Proportional set size of what lies idle, in units of 1000 bytes."""
        return float(self.run(gateway, transport, {"kind": "idle", "hold": 1.0}, **shape)[what]) / KB


def opening(loads: Loads, plain: Gateway, hooked: Gateway) -> Iterator[Probe]:
    for transport in SECURE:
        for name, gateway in (("rules", plain), ("hook", hooked)):
            yield Probe(f"open {transport} {name}", "µs", lambda t=transport, g=gateway: loads.rate(g, t))


def idling(loads: Loads, fresh: Callable[[Callable[[Gateway], float]], float]) -> Iterator[Probe]:
    """`fresh` starts a relay for one measurement: memory that earlier tunnels used is not all given back."""
    for transport in SECURE:
        yield Probe(
            f"idle {transport} tunnel",
            "KB",
            lambda t=transport: fresh(lambda it: loads.idle(it, t, "pss_per_tunnel", streams=TUNNELS)),
        )
    for transport in MULTIPLEXED:
        yield Probe(
            f"idle {transport} connection",
            "KB",
            lambda t=transport: fresh(
                lambda it: loads.idle(it, t, "pss_per_connection", connections=CONNECTIONS),
            ),
        )


def workers(loads: Loads, one: Gateway, two: Gateway) -> Iterator[Probe]:
    for transport in BULK:
        for direction in DIRECTIONS:
            for count, gateway in ((1, one), (2, two)):
                yield Probe(
                    f"workers {transport} {direction} {count}",
                    "s/GB",
                    lambda t=transport, d=direction, g=gateway: loads.bulk(g, t, d, connections=PARALLEL),
                )


def spread(loads: Loads, gateway: Gateway) -> Iterator[Probe]:
    """The same bytes through one tunnel and through many of one connection."""
    for transport in MULTIPLEXED:
        for direction in DIRECTIONS:
            for count in (1, TUNNELS):
                yield Probe(
                    f"tunnels {transport} {direction} {count}",
                    "s/GB",
                    lambda t=transport, d=direction, n=count: loads.bulk(gateway, t, d, streams=n),
                )


def frames(loads: Loads, gateway: Gateway) -> Iterator[Probe]:
    for direction in DIRECTIONS:
        for name, size in (("large", None), ("small", SMALL_FRAME)):
            yield Probe(
                f"frames {direction} {name}",
                "s/GB",
                lambda d=direction, s=size: loads.bulk(gateway, "h2", d, max_frame=s),
            )


def marks() -> Iterator[Mark]:
    """What the figures are to be held against."""
    for transport, limit in (("h1tls", 760.0), ("h2", 140.0), ("h3", 160.0)):
        yield Mark(f"{TRANSPORTS[transport]} tunnel opened and closed", f"open {transport} rules", "µs", limit)
    for transport in SECURE:
        yield Mark(
            f"{TRANSPORTS[transport]} the same, what a hook adds",
            f"open {transport} hook",
            "µs",
            80.0,
            f"open {transport} rules",
        )
    for transport, limit in (("h1tls", 10.0), ("h2", 6.0), ("h3", 6.0)):
        yield Mark(f"{TRANSPORTS[transport]} idle tunnel of {TUNNELS}", f"idle {transport} tunnel", "KB", limit)
    yield Mark("h3 idle connection", "idle h3 connection", "KB", 32.0)
    for transport in BULK:
        for direction in DIRECTIONS:
            name = f"workers {transport} {direction}"
            yield Mark(f"{TRANSPORTS[transport]} {direction}, two workers to one", f"{name} 2", "×", 1.1, f"{name} 1")
    for transport in MULTIPLEXED:
        for direction in DIRECTIONS:
            name = f"tunnels {transport} {direction}"
            label = f"{TRANSPORTS[transport]} {direction}, {TUNNELS} tunnels to one"
            yield Mark(label, f"{name} {TUNNELS}", "×", 1.3, f"{name} 1")
    for direction in DIRECTIONS:
        yield Mark(
            f"h2 {direction}, our frames to 16 KiB", f"frames {direction} large", "×", 0.8, f"frames {direction} small"
        )
