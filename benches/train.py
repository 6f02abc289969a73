"""A profile for the compiler: what the relay does most, measured on an instrumented build of its engine.

`make build-trained` builds the package with it. The engine runs as a plain Rust program in the profile that ships
(native/relay-engine/examples/serve), takes transfers, datagrams and openings of every transport, and writes its counts
at its end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench import build_load
from flames import scene
from harness import datagrams
from harness.cells import DIRECTIONS, Cell
from harness.probes import BULK, MULTIPLEXED, SECURE, Gateway, Loads
from harness.process import BenchError
from harness.results import RELAY

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "target" / "training"
#: Payload of one transfer, and seconds of one run of openings. Instrumented code is slow, and counts settle soon.
SIZE, SECONDS = 5e8, 2.0
SHAPES = (1, 100)


def rustc(*arguments: str) -> str:
    return subprocess.run(["rustc", *arguments], capture_output=True, text=True, check=True).stdout


def host() -> str:
    """The platform's name. Given as a target, it keeps the instruments out of build scripts."""
    return next(line.split()[1] for line in rustc("-vV").splitlines() if line.startswith("host:"))


def merger() -> str:
    """llvm-profdata of the toolchain, installed if rustup can."""
    name = Path(rustc("--print", "sysroot").strip()) / "lib" / "rustlib" / host() / "bin" / "llvm-profdata"
    if not name.exists() and shutil.which("rustup"):
        subprocess.run(["rustup", "component", "add", "llvm-tools"], check=False)
    if name.exists():
        return str(name)
    raise BenchError(f"no {name}: rustup component add llvm-tools")


def build(raw: Path) -> Path:
    """The instrumented engine, with the features that the package has."""
    command = ["cargo", "build", "--release", "--locked", "-p", "relay-engine", "-p", "relay-py"]
    command += ["--example", "serve", "--target", host()]
    flags = f"{os.environ.get('RUSTFLAGS', '')} -Cprofile-generate={raw}"
    environment = {**os.environ, "CARGO_TARGET_DIR": str(BUILD), "RUSTFLAGS": flags.strip()}
    try:
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"the instrumented engine is not built: {error}") from None
    return BUILD / host() / "release" / "examples" / "serve"


def train(program: Path, load: Path) -> None:
    """Runs the loads; the counts are written when the engine ends."""
    with contextlib.ExitStack() as stack:
        process, (clear, secure), origin, certificate = scene(stack, program, load)
        gateway = Gateway(process.pid, {"http": clear, "https": secure})
        loads = Loads(load, origin, certificate.read_text(), SIZE, SECONDS)
        for transport, direction in itertools.product(BULK, DIRECTIONS):
            for streams in SHAPES if transport in MULTIPLEXED else SHAPES[:1]:
                cost = loads.bulk(gateway, transport, direction, streams=streams)
                print(f"{transport:6} {direction:5} {streams:4} tunnels  {cost:6.2f} s/GB", flush=True)
        udp = datagrams.Loads(load, origin, certificate.read_text(), SECONDS)
        for transport, direction, flows in itertools.product(datagrams.COSTS, DIRECTIONS, datagrams.FLOWS):
            cell = Cell(RELAY, transport, "connect-udp", address=secure, pid=process.pid)
            report = udp.run(cell, direction, datagrams.STEADY, flows)
            cost = report["relay_us_per_datagram"]
            print(f"{transport:6} {direction:5} {flows:4} flows    {cost:6.2f} µs", flush=True)
        for transport in SECURE:
            print(f"{transport:6} opened and closed  {loads.rate(gateway, transport):6.1f} µs", flush=True)
        # It ends by itself, or nothing is written.
        if process.stdin is not None:
            process.stdin.close()
        process.wait(timeout=60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="where the profile goes")
    options = parser.parse_args()
    raw = BUILD / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    try:
        program = merger()
        train(build(raw), build_load().resolve())
        options.output.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([program, "merge", "-o", str(options.output), str(raw)], check=True)
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
