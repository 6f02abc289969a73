"""What a benchmark leaves behind: one JSON file a run, with all that is needed to judge it later."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cells import Run
from .floors import FLOORS
from .process import BenchError

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / "benches" / "results"
FORMAT = 2
RELAY = "capsule-relay"
Key = tuple[str, str, str, str]


@dataclass
class Results:
    """One interleaved run of everything."""

    when: str
    commit: str
    machine: dict[str, Any]
    options: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    #: What is missing, and why.
    absent: dict[str, str] = field(default_factory=dict)
    #: Part → s/GB, one value a round.
    floors: dict[str, list[float]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    path: Path | None = None

    @property
    def keys(self) -> list[Key]:
        """Every cell and direction, in the order in which they ran."""
        return list(dict.fromkeys(run.key for run in self.runs))

    def values(self, key: Key, what: str) -> list[float]:
        """One figure of one cell, a value a round; empty where it cannot be had."""
        found = [getattr(run, what) for run in self.runs if run.key == key]
        return [value for value in found if value is not None]

    def median(self, key: Key, what: str = "proxy_cost") -> float | None:
        values = self.values(key, what)
        return statistics.median(values) if values else None

    def floor(self, transport: str, direction: str) -> float | None:
        """The sum of the parts that a relay needs, each in its best round: noise only adds."""
        names = FLOORS.get(transport, {}).get(direction, ())
        if not names or any(not self.floors.get(name) for name in names):
            return None
        return sum(min(self.floors[name]) for name in names)

    def best_peer(self, transport: str, direction: str) -> tuple[str, float] | None:
        """The peer, not this relay, with the lowest median."""
        medians = [
            (cost, key[0])
            for key in self.keys
            if key[0] != RELAY and key[1] == transport and key[3] == direction and (cost := self.median(key))
        ]
        return (min(medians)[1], min(medians)[0]) if medians else None


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def begin(options: dict[str, Any]) -> Results:
    return Results(when=now(), commit=commit(), machine=machine(), options=options)


def commit() -> str:
    """The commit, with a plus sign where the tree differs from it."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    # Not above: old results are compared without a relay.
    from relay.ops import kernel_tls

    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory.group(1)) / (1 << 20), 1) if memory else None,
        "kernel": platform.release(),
        "kernel_tls": kernel_tls() == "yes",
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def save(results: Results, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{results.when.replace(':', '')}-{results.commit.replace('+', '-changed')}.json"
    document = {"format": FORMAT, **asdict(results)}
    document.pop("path")
    results.path = directory / name
    results.path.write_text(json.dumps(document, indent=1) + "\n")
    return results.path


def load(path: Path) -> Results:
    try:
        document = json.loads(path.read_text())
        if document.pop("format", None) != FORMAT:
            raise BenchError(f"{path}: not a result of this benchmark")
        document["runs"] = [Run(**run) for run in document["runs"]]
        return Results(**document, path=path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BenchError(f"{path}: {error}") from None


def history(directory: Path) -> list[Results]:
    """All results there, oldest first; what is no result is left out."""
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            found.append(load(path))
        except BenchError:
            continue
    return sorted(found, key=lambda results: results.when)


def find(name: str, directory: Path) -> Path:
    """A result by path, or by a part of its name that only one has. Those of probes begin with what they are."""
    if Path(name).is_file():
        return Path(name)
    kind = re.match(r"[a-z]+-", name)
    pattern = f"{kind[0]}*.json" if kind else "[0-9]*.json"
    matching: Iterable[Path] = [path for path in sorted(directory.glob(pattern)) if name in path.name]
    paths = list(matching)
    if len(paths) != 1:
        raise BenchError(f"{name}: {len(paths)} results in {directory} have this in their name")
    return paths[0]
