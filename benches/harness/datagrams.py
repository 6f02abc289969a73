"""Probes of datagrams: what one costs at a steady rate, and how many are lost at a high one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cells import DIRECTIONS, TRANSPORTS, Cell
from .floors import Flows
from .probes import Mark, Probe, planned
from .process import BenchError, parts, tree
from .results import RELAY

SIZE = 1200
#: Datagrams a second: where costs are taken, and where losses are.
STEADY, HIGH = 25_000, 100_000
FLOWS = (1, 100)
#: What could not be offered in time, in per cent, beyond which a run says nothing of the proxy.
MOST_UNSENT = 1.0
#: CPU µs of one datagram, loss in per cent, and the ratio to masque-go.
COSTS = {"h2": 4.0, "h3": 3.0}
LOSS = 0.1
OTHER, RATIO = "masque-go", 0.3


@dataclass(frozen=True)
class Loads:
    """Runs the load client's plans of datagrams."""

    program: Path
    origin: str
    certificate: str
    seconds: float
    timeout: float = 60

    def run(self, cell: Cell, direction: str, rate: int, flows: int) -> dict[str, Any]:
        assert cell.address is not None
        assert cell.pid is not None
        host, port = parts(self.origin)
        plan = {
            "work": {"kind": "udp", "direction": direction, "seconds": self.seconds, "rate": rate, "size": SIZE},
            "route": {
                "mode": "connect-udp",
                "http": cell.transport,
                "proxy": cell.address,
                "authority": f"localhost:{parts(cell.address)[1]}",
                "target_host": host,
                "target_port": port,
                "roots": self.certificate,
                "template": cell.template,
            },
            "streams": flows,
            "timeout": self.timeout,
            "pids": list(tree(cell.pid)),
        }
        report = planned(self.program, plan, self.timeout)
        if report["received"] == 0:
            raise BenchError("no datagram arrived")
        if report["unsent_percent"] > MOST_UNSENT:
            raise BenchError(
                f"{report['unsent_percent']:.1f} % of {rate} datagrams a second could not be offered in time"
            )
        return report

    def cost(self, cell: Cell, direction: str, flows: int) -> float:
        """CPU microseconds of the proxy per datagram."""
        return float(self.run(cell, direction, STEADY, flows)["relay_us_per_datagram"])

    def loss(self, cell: Cell, direction: str) -> float:
        """Per cent of the datagrams that did not arrive."""
        return float(self.run(cell, direction, HIGH, 1)["loss_percent"])


def name_of(transport: str, direction: str, what: int | str, peer: str) -> str:
    flows = f"{what} flow{'s' * (what != 1)}" if isinstance(what, int) else what
    return f"{transport} {direction} {flows} {peer}"


def probes(loads: Loads, cells: Sequence[Cell]) -> Iterator[Probe]:
    for transport in COSTS:
        for direction in DIRECTIONS:
            mine = [cell for cell in cells if cell.transport == transport]
            for flows in FLOWS:
                for cell in mine:
                    yield Probe(
                        name_of(transport, direction, flows, cell.peer),
                        "µs",
                        lambda c=cell, d=direction, n=flows: loads.cost(c, d, n),
                    )
            for cell in mine:
                yield Probe(
                    name_of(transport, direction, "loss", cell.peer),
                    "%",
                    lambda c=cell, d=direction: loads.loss(c, d),
                )


def floors(seconds: float) -> Iterator[Probe]:
    """What the kernel alone takes of a datagram where each flow has a socket of its own."""
    for flows in FLOWS[1:]:
        one_by_one = Flows(flows, STEADY, SIZE, seconds)
        yield Probe(f"floor down {flows} flows (receive)", "µs", one_by_one.receive)
        yield Probe(f"floor up {flows} flows (send)", "µs", one_by_one.send)


def marks() -> Iterator[Mark]:
    """What the figures are to be held against."""
    for transport, limit in COSTS.items():
        for direction in DIRECTIONS:
            label = f"{TRANSPORTS[transport]} {direction}"
            for flows in FLOWS:
                figure = name_of(transport, direction, flows, RELAY)
                count = f"{flows} flow{'s' * (flows != 1)}"
                yield Mark(f"{label}, {count}", figure, "µs", limit)
                if transport == "h3":
                    base = name_of(transport, direction, flows, OTHER)
                    yield Mark(f"{label}, {count}, to {OTHER}", figure, "×", RATIO, base)
            figure = name_of(transport, direction, "loss", RELAY)
            yield Mark(f"{label}, lost of {HIGH:,} a second", figure, "%", LOSS)
