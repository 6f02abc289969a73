"""Datagrams side by side: what one costs this relay and its peers by connect-udp, and how many are lost at a high rate.

As in bench.py every round goes through all probes, one after another, and each figure is the median of the rounds. A
run offers datagrams of 1200 bytes by a timetable, one way, through one tunnel or a hundred of one connection; what the
load client could not offer in time is no figure of the proxy, and leaves the cell empty.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from bench import site
from harness import datagrams, figures, results
from harness.cells import Cell
from harness.datagrams import Loads
from harness.figures import Figures
from harness.probes import Probe
from harness.process import BenchError
from peers import ADAPTERS, capsule_relay
from peers.base import Site
from scale import carry_out

#: Those that relay datagrams.
PEERS = (results.RELAY, "masque-go", "envoy", "h2o")
QUICK, FULL = (1.0, 2), (3.0, 5)


def start(here: Site, wanted: list[str], found: Figures) -> list[Cell]:
    """Starts the peers; one that cannot be had leaves its cells empty and says why."""
    cells: list[Cell] = []
    for name in wanted:
        try:
            started = ADAPTERS[name](here)
        except (BenchError, OSError) as error:
            if name == results.RELAY:
                raise
            found.absent[name] = str(error)
            print(f"{name}: left out: {error}", file=sys.stderr, flush=True)
            continue
        found.versions[name] = started.version
        cells += started.datagrams
    return cells


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="how long one run lasts (default 3)")
    parser.add_argument("--rounds", type=int, help="how often every probe runs (default 5)")
    parser.add_argument("--quick", action="store_true", help="a second a run, two rounds: a first look")
    parser.add_argument("--only", default="", help="probes whose name contains one of these, e.g. 'h3 down,loss'")
    parser.add_argument("--peers", default="", help=f"which to start, of {','.join(PEERS)} (default: all)")
    parser.add_argument("--load", type=Path, help="a relay-load that is built already")
    parser.add_argument("--results", type=Path, default=results.DIRECTORY, help="directory of the results")
    parser.add_argument("--cache", type=Path, help="directory that keeps installed peers")
    options = parser.parse_args()
    seconds, count = QUICK if options.quick else FULL
    options.seconds, options.rounds = options.seconds or seconds, options.rounds or count
    options.peers = options.peers.split(",") if options.peers else list(PEERS)
    if unknown := [name for name in options.peers if name not in PEERS]:
        parser.error(f"--peers: {', '.join(unknown)} is none of {', '.join(PEERS)}")
    if options.seconds <= 0 or options.rounds < 1:
        parser.error("--seconds and --rounds must be positive")
    if options.cache:
        os.environ["BENCH_CACHE"] = str(options.cache.resolve())
    return options


def main() -> int:
    options = arguments()
    found = Figures(
        when=results.now(),
        commit=results.commit(),
        machine=results.machine(),
        options={name: getattr(options, name) for name in ("seconds", "rounds", "only", "peers")},
        relay=capsule_relay.version(),
        kind="udp",
        marks=list(datagrams.marks()),
    )

    def prepare(stack: contextlib.ExitStack, load: Path) -> list[Probe]:
        here = site(stack, load)
        cells = start(here, options.peers, found)
        loads = Loads(load, here.origin, here.certificate.read_text(), options.seconds)
        return [*datagrams.probes(loads, cells), *datagrams.floors(options.seconds)]

    if status := carry_out(options, found, prepare):
        return status
    print(f"\nCPU µs per {datagrams.SIZE}-byte datagram at {datagrams.STEADY} a second; loss at {datagrams.HIGH}\n")
    print(f"{figures.table(found)}\n\n" + "\n".join(figures.verdicts(found)))
    for name, reason in found.absent.items():
        print(f"empty: {name}: {reason}")
    print(f"\nresults: {figures.save(found, options.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
