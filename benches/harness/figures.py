"""The figures of the probes: gathered, held against their marks, kept."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .probes import Mark, Probe, marks
from .process import BenchError

FORMAT = 1


@dataclass
class Figures:
    """One interleaved run of all probes."""

    when: str
    commit: str
    machine: dict[str, Any]
    options: dict[str, Any]
    relay: str
    #: What the probes are of, and what they are held against.
    kind: str = "scale"
    marks: list[Mark] = field(default_factory=lambda: list(marks()))
    versions: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    #: Probe → one value a round.
    values: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, probe: Probe, value: float) -> None:
        self.units[probe.name] = probe.unit
        self.values.setdefault(probe.name, []).append(value)


def verdicts(figures: Figures) -> list[str]:
    """Each mark with what was found, a line a mark; none where a figure is missing."""
    lines = []
    for mark in figures.marks:
        found = mark.value(figures.values)
        if found is not None:
            verdict = "met" if found <= mark.limit else "MISSED"
            lines.append(f"{mark.label:40} {found:8.2f} {mark.unit:3} (mark {bound(mark)}) {verdict}")
    return lines


def bound(mark: Mark) -> str:
    return f"{'+' if mark.base and mark.unit != '×' else ''}{mark.limit:g} {mark.unit}"


def table(figures: Figures) -> str:
    """Every figure: median, least and most of the rounds."""
    lines = [f"{'':34} {'median':>8} {'least':>8} {'most':>8}"]
    for name, values in figures.values.items():
        lines.append(
            f"{name:34} {statistics.median(values):8.2f} {min(values):8.2f} {max(values):8.2f} {figures.units[name]}"
        )
    return "\n".join(lines)


def save(figures: Figures, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{figures.kind}-{figures.when.replace(':', '')}-{figures.commit.replace('+', '-changed')}.json"
    held = [{**asdict(mark), "found": mark.value(figures.values)} for mark in figures.marks]
    document = {figures.kind: FORMAT, **asdict(figures), "marks": held}
    document.pop("kind")
    path = directory / name
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path


def load(path: Path) -> Figures:
    try:
        document = json.loads(path.read_text())
        kind = path.name.split("-", 1)[0]
        if document.pop(kind, None) != FORMAT:
            raise BenchError(f"{path}: not figures of this benchmark")
        held = document.pop("marks")
        found = [Mark(**{name: mark[name] for name in mark if name != "found"}) for mark in held]
        return Figures(**document, kind=kind, marks=found)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BenchError(f"{path}: {error}") from None
