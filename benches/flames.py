"""Where the time goes: a flame graph of the relay and a table of shares for each transport, form and direction.

The engine runs as a plain Rust program (native/relay-engine/examples/serve) in the profile `perf`, with frame pointers,
next to the load client; perf samples it for one transfer a cell. Needs Linux perf and root, for the kernel's part.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import build_load
from harness import results, stacks
from harness.cells import DIRECTIONS, TRANSPORTS, Cell, Load, Run
from harness.process import BenchError, end, first_line, running
from peers import capsule_relay

import relay
from relay import _native
from relay.config import native

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "target" / "profiles"
TOOLS = ROOT / "target" / "tools"
FREQUENCY = 997
INFERNO = "0.12.8"
#: Functions that are listed a cell.
HEAVIEST = 12
BOUND = re.compile(r"^(\S+) \[.*\] tls=(true|false)$")


@dataclass(frozen=True)
class Profile:
    """One cell: what its transfer took, and the shares of what it was spent on."""

    cell: Cell
    run: Run
    samples: int
    shares: dict[str, float]
    heaviest: list[tuple[str, float]]

    @property
    def name(self) -> str:
        return f"{self.cell.transport}-{self.cell.form}-{self.run.direction}"


def perf() -> str:
    """The program; says what is missing."""
    found = shutil.which("perf")
    if found is None:
        raise BenchError("perf not found: Debian has it in linux-perf, other systems in linux-tools")
    level = Path("/proc/sys/kernel/perf_event_paranoid")
    if os.geteuid() != 0 and level.exists() and int(level.read_text()) > 1:
        raise BenchError("perf may not see the kernel: run this as root, or sysctl kernel.perf_event_paranoid=1")
    return found


def flame_graph() -> str:
    """inferno's drawing program, installed below target/ if it is nowhere."""
    name = "inferno-flamegraph"
    if found := shutil.which(name) or shutil.which(name, path=str(TOOLS / "bin")):
        return found
    command = ["cargo", "install", "inferno", "--version", INFERNO, "--locked", "--quiet", "--root", str(TOOLS)]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"no {name} and none to be had ({' '.join(command)}): {error}") from None
    return str(TOOLS / "bin" / name)


def build_serve() -> Path:
    """The engine with symbols and frame pointers, apart from other builds."""
    target = ROOT / "target" / "profiling"
    command = ["cargo", "build", "--profile", "perf", "--locked", "-p", "relay-engine", "--example", "serve"]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target), "RUSTFLAGS": "-C force-frame-pointers=yes"}
    try:
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"the engine is not built: {error}") from None
    return target / "perf" / "examples" / "serve"


def serve(
    stack: contextlib.ExitStack, program: Path, home: Path, certificate: Path, key: Path
) -> tuple[subprocess.Popen[str], list[str]]:
    """The engine, as the benchmark configures it, on one worker: its process, and where it is in the clear and not."""
    (home / "relay.toml").write_text(
        f"workers = 1\n{capsule_relay.CLEAR}{capsule_relay.SECURE.format(certificate=certificate, key=key)}"
        f"{capsule_relay.REST}"
    )
    (home / "relay.json").write_text(native.dumps(relay.Config.load(home / "relay.toml", {}), hook=False))
    process = subprocess.Popen(
        [str(program), str(home / "relay.json")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=home
    )
    stack.callback(end, process)
    addresses = {}
    for _ in range(2):
        found = BOUND.match(first_line(process, "the engine"))
        if found is None:
            raise BenchError("the engine's addresses are not understood")
        addresses[found[2]] = found[1]
    return process, [addresses["false"], addresses["true"]]


def scene(stack: contextlib.ExitStack, engine: Path, load: Path) -> tuple[subprocess.Popen[str], list[str], str, Path]:
    """The engine and an origin: as from `serve`, then the origin's address and the file of the certificate."""
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-engine-")))
    certificate, key = _native.throwaway_certificate(["localhost"])
    (home / "cert.pem").write_text(certificate)
    (home / "key.pem").touch(0o600)
    (home / "key.pem").write_text(key)
    origin = first_line(stack.enter_context(running([str(load), "origin"])), "the origin")
    process, addresses = serve(stack, engine, home, home / "cert.pem", home / "key.pem")
    return process, addresses, origin, home / "cert.pem"


def sample(program: str, cell: Cell, load: Load, direction: str, size: float) -> tuple[Run, list[stacks.Stack]]:
    """One transfer under perf."""
    with tempfile.TemporaryDirectory(prefix="relay-perf-") as directory:
        data = Path(directory) / "perf.data"
        record = [program, "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "--call-graph", "fp"]
        with running([*record, "-p", str(cell.pid), "-o", str(data)], log=Path(directory) / "log") as recorder:
            # Until perf has opened its events, which shows in the file.
            while not data.exists() or data.stat().st_size == 0:
                if recorder.poll() is not None:
                    raise BenchError(f"perf: {(Path(directory) / 'log').read_text().strip()[:300]}")
            run = load.measure(cell, direction, 1, size)
        done = subprocess.run(
            [program, "script", "-i", str(data), "--no-inline", "-F", "comm,ip,sym,dso"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BenchError(f"perf script: {done.stderr.strip()[:300]}")
        return run, list(stacks.parse(done.stdout.splitlines()))


def draw(program: str, found: list[stacks.Stack], profile: Profile, output: Path) -> None:
    cost = "" if profile.run.proxy_cost is None else f", {profile.run.proxy_cost:.2f} s/GB"
    title = f"{TRANSPORTS[profile.cell.transport]} {profile.cell.form} {profile.run.direction}{cost}"
    done = subprocess.run(
        [program, "--title", title, "--hash"], input=stacks.folded(found), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{program}: {done.stderr.strip()[:300]}")
    (output / f"{profile.name}.svg").write_text(done.stdout)


def table(profiles: list[Profile]) -> str:
    """Markdown: a line a cell, percent of its samples a column; columns that are nowhere 1 % are left out."""
    columns = [name for name in stacks.CATEGORIES if any(profile.shares[name] >= 0.005 for profile in profiles)]
    lines = [
        f"| cell | s/GB | {' | '.join(columns)} |",
        f"|---|{'---:|' * (len(columns) + 1)}",
    ]
    for profile in profiles:
        cell = f"{TRANSPORTS[profile.cell.transport]} {profile.cell.form} {profile.run.direction}"
        cost = "-" if profile.run.proxy_cost is None else f"{profile.run.proxy_cost:.2f}"
        numbers = (f"{profile.shares[name] * 100:.0f}" if profile.shares[name] >= 0.005 else "" for name in columns)
        lines.append(f"| {cell} | {cost} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def document(profiles: list[Profile], size: float) -> dict[str, Any]:
    return {
        "when": results.now(),
        "commit": results.commit(),
        "machine": results.machine(),
        "bytes": size,
        "cells": [
            {
                "cell": profile.name,
                "s_per_gb": profile.run.proxy_cost,
                "samples": profile.samples,
                "shares": profile.shares,
                "heaviest": profile.heaviest,
            }
            for profile in profiles
        ],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=float, default=3e9, help="payload of one cell's transfer (default 3e9)")
    parser.add_argument(
        "--only", default="", help="cells whose name contains one of these, e.g. 'h3-connect-tcp,h1tls'"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="directory of the flame graphs and tables")
    return parser.parse_args()


def profiles(stack: contextlib.ExitStack, options: argparse.Namespace) -> list[Profile]:
    program, painter = perf(), flame_graph()
    load, engine = build_load().resolve(), build_serve()
    process, (clear, secure), origin, certificate = scene(stack, engine, load)
    client = Load(load, origin, certificate)
    options.output.mkdir(parents=True, exist_ok=True)
    found = []
    for transport in ("h1", "h1tls", "h2", "h3"):
        for form in capsule_relay.FORMS:
            cell = Cell(results.RELAY, transport, form, clear if transport == "h1" else secure, process.pid)
            for direction in DIRECTIONS:
                name = f"{transport}-{form}-{direction}"
                if not any(part.strip() in name for part in options.only.split(",")):
                    continue
                run, samples = sample(program, cell, client, direction, options.bytes)
                one = Profile(cell, run, len(samples), stacks.shares(samples), stacks.heaviest(samples, HEAVIEST))
                draw(painter, samples, one, options.output)
                print(f"{name}: {one.samples} samples, {run.proxy_cost:.2f} s/GB", flush=True)
                found.append(one)
    return found


def main() -> int:
    options = arguments()
    try:
        with contextlib.ExitStack() as stack:
            found = profiles(stack, options)
    except (BenchError, OSError) as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if not found:
        print(f"profile: --only {options.only!r}: no cell has this in its name", file=sys.stderr)
        return 1
    text = table(found)
    (options.output / "shares.md").write_text(text + "\n")
    (options.output / "shares.json").write_text(json.dumps(document(found, options.bytes), indent=1) + "\n")
    print(f"\npercent of the samples\n\n{text}\n\nflame graphs, shares.md and shares.json: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
