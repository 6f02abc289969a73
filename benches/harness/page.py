"""The page of the results: static HTML with SVG plots, without scripts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from . import results, summary
from .cells import DIRECTIONS, TRANSPORTS
from .results import RELAY, Results

WIDTH, LEFT, BAR, GAP = 860, 210, 18, 6
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
body { color: #1c2330; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } h3 { font-size: 1rem; margin-bottom: .2rem }
svg { width: 100%; height: auto; display: block } svg text { font: 12px system-ui, sans-serif; fill: #1c2330 }
table { border-collapse: collapse }
td, th { padding: .15rem .7rem .15rem 0; text-align: left; vertical-align: top; font-weight: normal }
pre { font-size: 12px; overflow-x: auto } .muted { color: #667085 }
.own { fill: #2463eb } .peer { fill: #9aa6b8 } .axis { stroke: #d5dae2 } .spread { stroke: #1c2330 }
.floor { stroke: #d1440c; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
body { color: #e4e8ef; background: #12161d } svg text { fill: #e4e8ef } .muted { color: #93a0b4 }
.own { fill: #6b9bff } .peer { fill: #566177 } .axis { stroke: #333c4a } .spread { stroke: #e4e8ef }
.floor { stroke: #ff8a5c }
}
"""
LINES = ("#2463eb", "#d1440c", "#0f9d6a", "#a23ec9")


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart: its values, one a round."""

    name: str
    values: Sequence[float]
    own: bool

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def step(top: float) -> float:
    """A round distance between grid lines, some five of them up to `top`."""
    size = 10.0**-6
    while top / size > 6:
        for factor in (2, 2.5, 2):
            size *= factor
            if top / size <= 6:
                break
    return size


def bars(title: str, unit: str, found: Sequence[Bar], floor: float | None = None, cut: float | None = None) -> str:
    """Horizontal bars: the median, with a line from the lowest round to the highest. Beyond `cut` bars are cut off."""
    top = max([bar.median for bar in found] + [floor or 0])
    top = min(top, cut) if cut else top
    if top <= 0:
        return ""
    # Room for the figure behind the longest bar.
    scale = (WIDTH - LEFT - 90) / top
    height = len(found) * (BAR + GAP) + 26
    out = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    size, mark = step(top), 0.0
    while mark <= top * 1.001:
        x = LEFT + mark * scale
        out.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 22}"/>')
        out.append(f'<text x="{x:.1f}" y="{height - 7}" text-anchor="middle">{mark:g}</text>')
        mark += size
    out.append(f'<text x="{WIDTH}" y="{height - 7}" text-anchor="end">{escape(unit)}</text>')
    for row, bar in enumerate(found):
        y = row * (BAR + GAP)
        end = LEFT + min(bar.median, top) * scale
        out.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(bar.name)}</text>')
        kind = "own" if bar.own else "peer"
        out.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR}" rx="2"/>')
        low, high = (LEFT + min(value, top) * scale for value in (min(bar.values), max(bar.values)))
        y_mid = y + BAR / 2
        out.append(f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{y_mid}" y2="{y_mid}"/>')
        beyond = " →" if bar.median > top else ""
        out.append(f'<text x="{max(end, high) + 6:.1f}" y="{y + 13}">{bar.median:.2f}{beyond}</text>')
    if floor:
        x = LEFT + floor * scale
        line = f'<line class="floor" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 22}">'
        out.append(f"{line}<title>floor {floor:.2f}</title></line>")
    return "".join([*out, "</svg>"])


def chart(found: Results, transport: str, direction: str, what: str, unit: str, *, best_first: bool) -> str:
    rows = [
        Bar(f"{key[0]} {key[2]}", values, key[0] == RELAY)
        for key in found.keys
        if key[1] == transport and key[3] == direction and (values := found.values(key, what))
    ]
    if not rows:
        return ""
    rows.sort(key=lambda bar: bar.median, reverse=not best_first)
    floor = found.floor(transport, direction) if what == "proxy_cost" else None
    # One very slow peer must not squeeze all others into a corner.
    middle = statistics.median(bar.median for bar in rows)
    title = f"{TRANSPORTS[transport]}, {direction}: {unit}"
    return f"<h3>{escape(direction)}</h3>" + bars(title, unit, rows, floor, max(middle, floor or 0) * 4)


def trend(past: Sequence[Results], transport: str) -> str:
    """The relay's median cost, one point a result, a line a form and direction."""
    names = [(form, direction) for form in ("connect-tcp", "connect") for direction in DIRECTIONS]
    series = {
        name: [
            (at, value) for at, one in enumerate(past) if (value := one.median((RELAY, transport, *name))) is not None
        ]
        for name in names
    }
    top = max((value for points in series.values() for _, value in points), default=0)
    if len(past) < 2 or top <= 0:
        return ""
    height, wide = 180, (WIDTH - 260) / (len(past) - 1)
    out = [f'<svg viewBox="0 0 {WIDTH} {height + 24}" role="img" aria-label="{TRANSPORTS[transport]} over time">']
    size, mark = step(top), 0.0
    while mark <= top * 1.001:
        y = height - mark / top * (height - 12)
        out.append(f'<line class="axis" x1="40" x2="{WIDTH - 220}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="34" y="{y + 4:.1f}" text-anchor="end">{mark:g}</text>')
        mark += size
    for row, (name, points) in enumerate(series.items()):
        places = [(40 + at * wide, height - value / top * (height - 12)) for at, value in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline points="{path}" fill="none" stroke="{LINES[row]}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{LINES[row]}"/>' for x, y in places]
        out.append(f'<rect x="{WIDTH - 200}" y="{row * 22 + 10}" width="14" height="4" fill="{LINES[row]}"/>')
        out.append(f'<text x="{WIDTH - 180}" y="{row * 22 + 16}">{escape(" ".join(name))}</text>')
    out.append(f'<text x="40" y="{height + 18}">{escape(past[0].when[:10])} {escape(past[0].commit)}</text>')
    out.append(f'<text x="{WIDTH - 220}" y="{height + 18}" text-anchor="end">{escape(past[-1].commit)}</text>')
    return "".join([*out, "</svg>"])


def facts(found: Results) -> str:
    machine = found.machine
    rows = {
        "when": found.when,
        "commit": found.commit,
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "kernel": f"{machine['kernel']}, kernel TLS {'yes' if machine['kernel_tls'] else 'no'}",
        "runs": f"{found.options['rounds']} rounds of {found.options['bytes']:.0e} bytes, interleaved",
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
    }
    lines = [f"<tr><th class=muted>{escape(name)}</th><td>{escape(str(text))}</td></tr>" for name, text in rows.items()]
    lines += [
        f"<tr><th class=muted>empty</th><td>{escape(f'{name}: {why}')}</td></tr>" for name, why in found.absent.items()
    ]
    lines += [
        f"<tr><th class=muted>note</th><td>{escape(f'{name}: {why}')}</td></tr>" for name, why in found.notes.items()
    ]
    return f"<table>{''.join(lines)}</table>"


def render(past: Sequence[Results]) -> str:
    """The page of the newest result, with the older ones as history."""
    latest = past[-1]
    out = [f"<h1>Relay benchmark</h1>{facts(latest)}"]
    out.append(
        "<p>Bars are medians of the rounds, the thin line reaches from the lowest round to the highest, the dashed "
        "line is the floor: what the parts of relaying cost by themselves in the same run.</p>"
    )
    for transport, name in TRANSPORTS.items():
        cost = [chart(latest, transport, one, "proxy_cost", "CPU s/GB", best_first=True) for one in DIRECTIONS]
        rate = [chart(latest, transport, one, "gbit_s", "Gbit/s", best_first=False) for one in DIRECTIONS]
        if any(cost):
            out.append(f"<h2>{escape(name)}: CPU of the proxy, s/GB (less is better)</h2>{''.join(cost)}")
        if any(rate):
            out.append(f"<h2>{escape(name)}: throughput, Gbit/s (more is better)</h2>{''.join(rate)}")
    histories = [(name, trend(past, transport)) for transport, name in TRANSPORTS.items()]
    if any(plot for _, plot in histories):
        out.append("<h2>History: CPU of the relay, s/GB</h2>")
        out += [f"<h3>{escape(name)}</h3>{plot}" for name, plot in histories if plot]
    text = "\n".join([summary.table(latest), "", summary.floors(latest), "", *summary.marks(latest)])
    out.append(f"<h2>Table</h2><pre>{escape(text)}</pre>")
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width'><title>Relay benchmark</title>"
    body = "".join(out)
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n"


def write(directory: Path) -> Path | None:
    """Writes `index.html` next to the results there; nothing without results."""
    past = results.history(directory)
    if not past:
        return None
    path = directory / "index.html"
    path.write_text(render(past))
    return path
