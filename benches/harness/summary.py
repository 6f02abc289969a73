"""A benchmark's results for the terminal: the table, the marks and the memory."""

from __future__ import annotations

import statistics
from itertools import groupby

from .cells import DIRECTIONS, TRANSPORTS
from .results import RELAY, Results

MIB = 1 << 20
#: Transport, what the relay is compared with, and how much of it it may cost.
MARKS = (
    ("h1", "HAProxy", 1.1),
    ("h1", "Caddy", 1.2),
    ("h1tls", "best peer", 0.85),
    ("h2", "Envoy", 1.0),
    ("h2", "Caddy", 0.65),
    ("h3", "Caddy", 0.4),
    ("h3", "Envoy", 0.35),
    ("h3", "floor", 2.5),
)


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def ratio(value: float | None, base: float | None) -> str:
    return "-" if value is None or not base else f"{value / base:.2f}"


def table(results: Results) -> str:
    """CPU s/GB of the proxy (median and best), its ratio to best peer and floor, s/GB of the client, Gbit/s."""
    titles = f"{'s/GB':>5} {'(min)':>7} {'×peer':>6} {'×floor':>6} {'client':>6} {'Gbit/s':>6}"
    lines = [f"{'':35}" + "".join(f" │ {direction:<{len(titles)}}" for direction in DIRECTIONS)]
    lines.append(f"{'':35}" + f" │ {titles}" * len(DIRECTIONS))
    rows = list(dict.fromkeys(key[:3] for key in results.keys))
    order = list(TRANSPORTS)
    rows.sort(key=lambda row: order.index(row[1]))
    for transport, group in groupby(rows, key=lambda row: row[1]):
        for row in group:
            line = f"{TRANSPORTS[transport]:9} {row[0]:13} {row[2]:11}"
            for direction in DIRECTIONS:
                line += " │ " + figures(results, (*row, direction))
            lines.append(line)
        floors = [results.floor(transport, direction) for direction in DIRECTIONS]
        if any(floors):
            cells = "".join(f" │ {number(floor):>5} {'':35}" for floor in floors)
            lines.append(f"{TRANSPORTS[transport]:9} {'(floor)':25}{cells}".rstrip())
    return "\n".join(lines)


def figures(results: Results, key: tuple[str, str, str, str]) -> str:
    costs = results.values(key, "proxy_cost")
    median = statistics.median(costs) if costs else None
    best = f"({min(costs):.2f})" if costs else ""
    peer = results.best_peer(key[1], key[3])
    return (
        f"{number(median):>5} {best:>7} {ratio(median, peer[1] if peer else None):>6} "
        f"{ratio(median, results.floor(key[1], key[3])):>6} {number(results.median(key, 'client_cost')):>6} "
        f"{number(results.median(key, 'gbit_s')):>6}"
    )


def floors(results: Results) -> str:
    parts = [f"{name} {min(values):.2f}" for name, values in results.floors.items()]
    return "floors, best round, s/GB: " + ", ".join(parts)


def against(results: Results, transport: str, other: str, direction: str) -> float | None:
    if other == "floor":
        return results.floor(transport, direction)
    if other == "best peer":
        best = results.best_peer(transport, direction)
        return best[1] if best else None
    medians = [
        results.median(key) for key in results.keys if key[0] == other and key[1] == transport and key[3] == direction
    ]
    return min((median for median in medians if median is not None), default=None)


def marks(results: Results) -> list[str]:
    """Each mark with the relay's dearest form, a line a mark; none where the other side was not measured."""
    lines = []
    for transport, other, factor in MARKS:
        for direction in DIRECTIONS:
            base = against(results, transport, other, direction)
            mine = [results.median((RELAY, transport, form, direction)) for form in ("connect-tcp", "connect")]
            known = [cost for cost in mine if cost is not None]
            if base and known:
                found = max(known) / base
                verdict = "met" if found <= factor else "MISSED"
                name = f"{TRANSPORTS[transport]} {direction}"
                lines.append(f"{name:14} {found:5.2f} × {other:10} (mark {factor:.2f}) {verdict}")
    for transport in TRANSPORTS:
        for direction in DIRECTIONS:
            tcp = results.median((RELAY, transport, "connect-tcp", direction))
            classic = results.median((RELAY, transport, "connect", direction))
            if tcp is not None and classic:
                verdict = "met" if tcp / classic <= 1.1 else "MISSED"
                name = f"{TRANSPORTS[transport]} {direction}"
                lines.append(f"{name:14} {tcp / classic:5.2f} × {'CONNECT':10} (mark 1.10) {verdict}")
    return lines


def memory(results: Results) -> str:
    """Resident memory of the relay after its runs."""
    sizes = [run.proxy_rss for run in results.runs if run.peer == RELAY and run.proxy_rss]
    if not sizes:
        return ""
    first, most, last = (size / MIB for size in (sizes[0], max(sizes), sizes[-1]))
    return f"relay memory: {first:.1f} MiB after the first run, {most:.1f} at most, {last:.1f} at the end"
