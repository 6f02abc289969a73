"""What changed between two results beyond noise: `compare.py BEFORE AFTER`, paths or parts of names in benches/results;
`scale-…` and `udp-…` for those of probes.

For each cell that both have, the ratio of the medians and its 95 % interval (bootstrap over the rounds). A change is
told as one only where the interval leaves out 1, the ranges from best round to median do not overlap, and the ratio is
larger than the drift of the machine itself, which the floors of both runs show.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import figures, results
from harness.cells import TRANSPORTS
from harness.figures import Figures
from harness.process import BenchError
from harness.results import Results

DRAWS = 2000
#: Smaller changes are never told: a clock tick is 10 ms.
LEAST = 0.03
MEASURES = {"proxy_cost": ("CPU s/GB", True), "gbit_s": ("Gbit/s", False)}


@dataclass(frozen=True)
class Change:
    """One figure of one cell, before and after."""

    name: str
    before: float
    after: float
    low: float
    high: float
    verdict: str

    @property
    def ratio(self) -> float:
        return self.after / self.before


def interval(before: Sequence[float], after: Sequence[float], chance: random.Random) -> tuple[float, float]:
    """The 95 % interval of median(after) / median(before)."""
    ratios = sorted(
        statistics.median(chance.choices(after, k=len(after)))
        / statistics.median(chance.choices(before, k=len(before)))
        for _ in range(DRAWS)
    )
    return ratios[int(DRAWS * 0.025)], ratios[int(DRAWS * 0.975)]


def overlap(before: Sequence[float], after: Sequence[float], *, less_is_better: bool) -> bool:
    """Whether the ranges from the best round to the median meet."""
    best = min if less_is_better else max
    first = sorted((best(before), statistics.median(before)))
    second = sorted((best(after), statistics.median(after)))
    return first[0] <= second[1] and second[0] <= first[1]


def drift(before: Results, after: Results) -> float:
    """How much the machine itself differs: the median over the parts of the ratio of their best rounds."""
    shared = [name for name in before.floors if before.floors[name] and after.floors.get(name)]
    ratios = [min(after.floors[name]) / min(before.floors[name]) for name in shared if min(before.floors[name])]
    return statistics.median(ratios) if ratios else 1.0


def compare(before: Results, after: Results, what: str) -> list[Change]:
    """Every cell that both runs have."""
    less = MEASURES[what][1]
    moved = abs(drift(before, after) - 1)
    values = {
        f"{TRANSPORTS[key[1]]:9} {key[0]:13} {key[2]:11} {key[3]:4}": (
            before.values(key, what),
            after.values(key, what),
        )
        for key in before.keys
    }
    return judge(values, moved, less_is_better=less)


def compare_figures(before: Figures, after: Figures) -> list[Change]:
    """Every probe that both runs have; less is better in all of them. The machine's drift is not known."""
    values = {f"{name:40}": (found, after.values.get(name, [])) for name, found in before.values.items()}
    return judge(values, 0.0, less_is_better=True)


def judge(
    values: Mapping[str, tuple[Sequence[float], Sequence[float]]], moved: float, *, less_is_better: bool
) -> list[Change]:
    """Each pair of rounds before and after that can be held against each other; `moved` is the machine's own change."""
    chance = random.Random(0)
    changes = []
    for name, (old, new) in values.items():
        if not old or not new or min(old) <= 0 or min(new) <= 0:
            continue
        low, high = interval(old, new, chance)
        ratio = statistics.median(new) / statistics.median(old)
        certain = (low > 1 or high < 1) and not overlap(old, new, less_is_better=less_is_better)
        if min(len(old), len(new)) < 3:
            verdict = "too few rounds"
        elif not certain or abs(ratio - 1) <= max(LEAST, moved):
            verdict = ""
        else:
            verdict = "better" if (ratio < 1) == less_is_better else "WORSE"
        changes.append(Change(name, statistics.median(old), statistics.median(new), low, high, verdict))
    return changes


def show(unit: str, changes: list[Change], *, everything: bool) -> None:
    shown = [change for change in changes if change.verdict in ("better", "WORSE") or everything]
    told = sum(change.verdict in ("better", "WORSE") for change in changes)
    print(f"{unit}: {len(changes)} figures, {told} changed")
    if few := sum(change.verdict == "too few rounds" for change in changes):
        print(f"  {few} of them have fewer than three rounds on one side: nothing is told of those")
    for change in shown:
        span = f"[{change.low:.2f}, {change.high:.2f}]"
        moved = f"{change.before:6.2f} → {change.after:6.2f}  × {change.ratio:.2f}"
        print(f"  {change.name}  {moved} {span}  {change.verdict}")


def loaded(path: Path) -> Results | Figures:
    return figures.load(path) if path.name[:1].isalpha() else results.load(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", help="default: the last result but one")
    parser.add_argument("after", nargs="?", help="default: the last result")
    parser.add_argument("--results", type=Path, default=results.DIRECTORY)
    parser.add_argument("--all", action="store_true", help="also what did not change")
    options = parser.parse_args()
    if options.before and not options.after:
        parser.error("give both results, or none for the last two")
    try:
        if options.before and options.after:
            before, after = (loaded(results.find(name, options.results)) for name in (options.before, options.after))
        else:
            past = results.history(options.results)
            if len(past) < 2:
                raise BenchError(f"{options.results} has {len(past)} results, two are needed")
            before, after = past[-2:]
        if type(before) is not type(after):
            raise BenchError("these are results of different kinds")
    except BenchError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    print(f"before {before.when} {before.commit}   after {after.when} {after.commit}")
    if [before.machine.get(name) for name in ("cpu", "kernel")] != [
        after.machine.get(name) for name in ("cpu", "kernel")
    ]:
        print("these are different machines or kernels: only the ratios to peers and floors compare")
    if isinstance(before, Figures) and isinstance(after, Figures):
        show("figures", compare_figures(before, after), everything=options.all)
    elif isinstance(before, Results) and isinstance(after, Results):
        print(f"the machine itself: floors × {drift(before, after):.2f}\n")
        for what, (unit, _) in MEASURES.items():
            show(unit, compare(before, after, what), everything=options.all)
    return 0


if __name__ == "__main__":
    sys.exit(main())
