"""Results as tables, one for each kind of load."""

from collections.abc import Callable, Sequence
from typing import Any

Result = dict[str, Any]
_Column = tuple[str, Callable[[Result], object]]


def _number(value: object, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "-"


def _field(name: str, digits: int) -> Callable[[Result], str]:
    return lambda result: _number(result.get(name), digits)


def _time(name: str, key: str) -> Callable[[Result], str]:
    """Microseconds as milliseconds."""
    return lambda result: _number(result[name][key] / 1000 if name in result else None, 2)


def _kib(name: str) -> Callable[[Result], str]:
    return lambda result: _number(None if result[name] is None else result[name] / 1024, 1)


_WAY: list[_Column] = [("mode", lambda result: result["mode"]), ("http", lambda result: result["http"] or "-")]
_TIMES: list[_Column] = [
    (f"{key.replace('_', '.')} ms", _time("latency_us", key)) for key in ("p50", "p90", "p99", "p99_9", "max")
]
_COLUMNS: dict[str, list[_Column]] = {
    "bulk": [
        ("", lambda result: result["direction"]),
        ("Gbit/s", _field("gbit_s", 2)),
        ("relay s/GB", _field("relay_s_per_gb", 3)),
        ("client s/GB", _field("client_s_per_gb", 3)),
    ],
    "rate": [
        ("tunnels/s", _field("tunnels_s", 0)),
        ("relay µs", _field("relay_us_per_tunnel", 0)),
        ("client µs", _field("client_us_per_tunnel", 0)),
        *_TIMES,
    ],
    "latency": [
        ("offered/s", _field("offered_s", 0)),
        ("answered/s", _field("answered_s", 0)),
        ("relay µs", _field("relay_us_per_message", 1)),
        ("client µs", _field("client_us_per_message", 1)),
        *_TIMES,
        ("late ms", _time("client_late_us", "p99")),
    ],
    "idle": [
        ("tunnels", _field("opened", 0)),
        ("KiB/tunnel", _kib("pss_per_tunnel")),
        ("KiB/connection", _kib("pss_per_connection")),
        ("relay KiB", _kib("relay_pss_end")),
    ],
    "udp": [
        ("", lambda result: result["direction"]),
        ("offered/s", _field("offered_s", 0)),
        ("arrived/s", _field("received_s", 0)),
        ("unsent %", _field("unsent_percent", 2)),
        ("lost %", _field("loss_percent", 3)),
        ("relay µs", _field("relay_us_per_datagram", 2)),
        ("client µs", _field("client_us_per_datagram", 2)),
        ("Gbit/s", _field("gbit_s", 2)),
        ("p50 ms", _time("latency_us", "p50")),
        ("p99 ms", _time("latency_us", "p99")),
        ("late ms", _time("client_late_us", "p99")),
    ],
}
_TITLES = {
    "bulk": "bulk: CPU seconds (user and system) per 10⁹ payload bytes",
    "rate": "rate: open, one round trip, close; CPU time per tunnel",
    "latency": "latency: from when a message was due until it was answered; CPU time per message",
    "idle": "idle: proportional set size of the relay",
    "udp": "udp: datagrams at an offered rate; CPU time per datagram and direction",
}


def _shape(result: Result) -> str:
    connections, streams = result["connections"], result["streams"]
    return f"{connections} connection{'s' * (connections != 1)} × {streams} tunnel{'s' * (streams != 1)}"


def _lines(kind: str, results: Sequence[Result]) -> list[str]:
    columns = _WAY + _COLUMNS[kind]
    rows = [[title for title, _ in columns]]
    rows += [[str(show(result)) for _, show in columns] for result in results]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    # Names to the left, numbers to the right.
    names = 3 if kind in ("bulk", "udp") else 2
    return [
        "  ".join(
            cell.ljust(width) if index < names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def dearer(result: Result) -> bool:
    """Whether the client cost more CPU than the relay, so that it may have been the bottleneck."""
    if result["kind"] not in ("bulk", "rate", "udp") or result["mode"] == "direct" or result["relay_cpu_s"] is None:
        return False
    return bool(result["client_cpu_s"] > result["relay_cpu_s"])


def render(results: Sequence[Result]) -> str:
    """All results, with what has to be known about them."""
    parts = []
    for kind, title in _TITLES.items():
        mine = [result for result in results if result["kind"] == kind]
        if not mine:
            continue
        head, *rows = _lines(kind, mine)
        rows = [f"{row} *" if dearer(result) else row for row, result in zip(rows, mine, strict=True)]
        parts.append("\n".join([f"{title} ({_shape(mine[0])})", head, *rows]))
    if any(dearer(result) for result in results):
        parts.append("* the client cost more CPU than the relay")
    if all(result["relay_cpu_s"] is None for result in results):
        parts.append("the relay's CPU time and memory are unknown: --pid names its process")
    lost = sum(result.get("unanswered", 0) for result in results)
    if lost:
        parts.append(f"{lost} messages were never answered; they count as they stood at the end")
    dropped = sum(result.get("client_dropped", 0) for result in results)
    if dropped:
        parts.append(f"{dropped} of the lost datagrams were dropped by the client, which had no room for them")
    dropped = sum(result.get("origin_dropped", 0) for result in results)
    if dropped:
        parts.append(f"{dropped} of the lost datagrams reached the origin's host, which had no room for them")
    return "\n\n".join(parts)
