"""Side by side: what a gigabyte costs this relay, its peers and the bare machine, by HTTP version, form and direction.

Everything runs in one interleaved run: the cells of a round one after another, the floors with them, and the rounds
repeated, so that a slow moment of the machine does not fall on one of them alone. Every run is one transfer of the
load client (native/relay-engine/src/bin/relay-load) through one tunnel; the CPU of a proxy is that of its whole process
tree. `--verify` checks the bytes by their hash instead of timing them, in the relay's own cells.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import floors, page, results, summary
from harness.cells import DIRECTIONS, Cell, Load, Run
from harness.process import BenchError, first_line, running
from peers import ADAPTERS, capsule_relay
from peers.base import Site, cache_directory

from relay import _native

ROOT = Path(__file__).resolve().parent.parent
QUICK_BYTES, QUICK_ROUNDS = 3e8, 2


def build_load() -> Path:
    """Builds the load client in the shipped profile; most of it is there from the relay's own build."""
    command = ["cargo", "build", "--release", "--locked", "-p", "relay-engine", "--bin", "relay-load"]
    try:
        subprocess.run(command, cwd=ROOT, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"the load client is not built: {error}") from None
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "relay-load"


def site(stack: contextlib.ExitStack, load: Path) -> Site:
    """The origin, the certificate, and the proxy behind those that only end TLS."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
    certificate, key = _native.throwaway_certificate(["localhost"])
    (directory / "cert.pem").write_text(certificate)
    (directory / "key.pem").write_text(key)
    (directory / "key.pem").chmod(0o600)
    origin = first_line(stack.enter_context(running([str(load), "origin"])), "the origin")
    (directory / "behind").mkdir()
    text = capsule_relay.CLEAR + capsule_relay.REST
    _, addresses = capsule_relay.launch(stack, directory / "behind", text)
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    return Site(
        stack=stack,
        directory=directory,
        cache=cache,
        certificate=directory / "cert.pem",
        key=directory / "key.pem",
        origin=origin,
        behind=addresses["http"],
    )


def start(here: Site, wanted: list[str], found: results.Results) -> list[Cell]:
    """Starts the peers; one that cannot be had leaves its cells empty and says why."""
    cells: list[Cell] = []
    for name in wanted:
        try:
            started = ADAPTERS[name](here)
        except (BenchError, OSError) as error:
            if name == "capsule-relay":
                raise
            found.absent[name] = str(error)
            print(f"{name}: left out: {error}", file=sys.stderr, flush=True)
            continue
        found.versions[name] = started.version
        if started.note:
            found.notes[name] = started.note
        cells += started.cells
    return cells


def show(run: Run) -> None:
    cost = "" if run.proxy_cost is None else f"proxy {run.proxy_cost:.2f} s/GB, "
    print(
        f"round {run.round}  {run.peer:13} {run.transport:6} {run.form:12} {run.direction:5} {cost}"
        f"client {run.client_cost:.2f} s/GB, {run.gbit_s:.2f} Gbit/s",
        flush=True,
    )


def rounds(cells: list[Cell], load: Load, options: argparse.Namespace, found: results.Results) -> None:
    """All cells, round after round. A peer's cell that fails is left out from then on; the relay's own ends it all."""
    broken: set[tuple[Cell, str]] = set()
    for number in range(1, options.rounds + 1):
        if not options.verify:
            measured, faults = floors.measure(int(options.bytes))
            for floor in measured:
                found.floors.setdefault(floor.name, []).append(floor.cost)
            found.absent.update((fault.split(":", 1)[0], fault.split(": ", 1)[1]) for fault in faults)
        for cell in cells:
            for direction in DIRECTIONS:
                if (cell, direction) in broken:
                    continue
                try:
                    run = load.measure(cell, direction, number, options.bytes, verify=options.verify)
                except BenchError as error:
                    name = f"{cell.name} {direction}"
                    if cell.peer == results.RELAY or options.verify:
                        raise BenchError(f"{name}: {error}") from None
                    broken.add((cell, direction))
                    found.absent[name] = str(error)
                    print(f"{name}: left out: {error}", file=sys.stderr, flush=True)
                    continue
                found.runs.append(run)
                show(run)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=float, help="payload of one run (default 1e9; very slow peers move a part)")
    parser.add_argument("--rounds", type=int, help="how often every cell runs (default 5)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_BYTES:.0e} bytes and {QUICK_ROUNDS} rounds")
    parser.add_argument(
        "--only", default="", help="cells whose name contains one of these, e.g. 'h3 connect-tcp,Envoy'"
    )
    parser.add_argument("--peers", default="", help=f"which to start, of {','.join(ADAPTERS)} (default: all)")
    parser.add_argument("--verify", action="store_true", help="check hashes of every byte, one round, no table")
    parser.add_argument("--load", type=Path, help="a relay-load that is built already")
    parser.add_argument("--results", type=Path, default=results.DIRECTORY, help="directory of the results and the page")
    parser.add_argument("--cache", type=Path, help="directory that keeps installed peers")
    options = parser.parse_args()
    options.bytes = options.bytes or (QUICK_BYTES if options.quick else 1e9)
    options.rounds = 1 if options.verify else options.rounds or (QUICK_ROUNDS if options.quick else 5)
    options.peers = options.peers.split(",") if options.peers else list(ADAPTERS)
    if unknown := [name for name in options.peers if name not in ADAPTERS]:
        parser.error(f"--peers: {', '.join(unknown)} is none of {', '.join(ADAPTERS)}")
    if options.bytes < 1 or options.rounds < 1:
        parser.error("--bytes and --rounds must be at least 1")
    if options.cache:
        os.environ["BENCH_CACHE"] = str(options.cache.resolve())
    return options


def main() -> int:
    options = arguments()
    wanted = [results.RELAY] if options.verify else options.peers
    record = {"bytes": options.bytes, "rounds": options.rounds, "only": options.only, "peers": wanted}
    found = results.begin(record)
    try:
        load = (options.load or build_load()).resolve()
        with contextlib.ExitStack() as stack:
            here = site(stack, load)
            parts = [part.strip() for part in options.only.split(",")]
            cells = [cell for cell in start(here, wanted, found) if any(part in cell.name for part in parts)]
            if not cells:
                raise BenchError(f"--only {options.only!r}: no cell has this in its name")
            rounds(cells, Load(load, here.origin, here.certificate), options, found)
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; nothing is recorded", file=sys.stderr)
        return 130
    report(found, options)
    return 0


def report(found: results.Results, options: argparse.Namespace) -> None:
    print()
    if options.verify:
        print(f"{len(found.runs)} transfers of {options.bytes:.0f} bytes arrived with equal hashes")
        print(summary.memory(found))
        return
    print("CPU seconds per 10^9 payload bytes: median of the rounds (best in brackets), next to best peer and floor\n")
    print(summary.table(found))
    print("\n" + summary.floors(found))
    print("\n".join(["", *summary.marks(found)]))
    if memory := summary.memory(found):
        print("\n" + memory)
    for name, reason in found.absent.items():
        print(f"empty: {name}: {reason}")
    for name, note in found.notes.items():
        print(f"note: {name}: {note}")
    path = results.save(found, options.results)
    print(f"results: {path}\npage: {page.write(options.results)}")


if __name__ == "__main__":
    sys.exit(main())
