"""Throughput of one tunnel: what a gigabyte costs the relay and its client, by HTTP version, form and direction.

Every cell is a run of `relay-load` (native/relay-engine/src/bin/relay-load) against a relay of its own process, next to
direct TCP and HAProxy in TCP mode with splicing. The cells of a round run one after another and rounds are repeated,
so that a slow moment of the machine does not fall on one cell alone. The table shows medians; `--verify` checks the
bytes by their hash instead of timing them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relay import _native

ROOT = Path(__file__).resolve().parent.parent
FORMS = ("connect-tcp", "connect")
DIRECTIONS = ("down", "up")
#: Mode of relay-load, name in the table, relay CPU seconds per GB that the median should stay below.
TRANSPORTS = (("h1", "h1 clear", 0.35), ("h1tls", "h1 TLS", 1.4), ("h2", "h2", 1.6), ("h3", "h3", 2.6))
MIB = 1 << 20


@dataclass(frozen=True)
class Cell:
    """One line of the table: a way from the client to the origin."""

    name: str
    form: str
    arguments: tuple[str, ...]
    mark: float | None = None


@dataclass(frozen=True)
class Run:
    """What relay-load measured."""

    cell: Cell
    direction: str
    report: dict[str, float | None]

    def per_gigabyte(self, key: str) -> float | None:
        value, size = self.report[key], self.report["bytes"]
        return None if value is None or not size else value / (size / 1e9)


class BenchError(Exception):
    """Something the benchmark needs is missing or broke."""


def build_load() -> Path:
    """Builds the load client in the shipped profile; most of it is there from the relay's own build."""
    command = ["cargo", "build", "--release", "--locked", "-p", "relay-engine", "--bin", "relay-load"]
    subprocess.run(command, cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release" / "relay-load"


@contextlib.contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def first_line(process: subprocess.Popen[str], what: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise BenchError(f"{what} did not start")
    return line


@contextlib.contextmanager
def origin(load: Path) -> Iterator[str]:
    with running([str(load), "origin"]) as process:
        yield first_line(process, "the origin")


@contextlib.contextmanager
def relay(directory: Path) -> Iterator[tuple[int, str, str, Path]]:
    """A relay with a cleartext and a TLS listener: its process number, both addresses and the certificate."""
    certificate, key = _native.throwaway_certificate(["localhost"])
    (directory / "cert.pem").write_text(certificate)
    (directory / "key.pem").write_text(key)
    config = directory / "relay.toml"
    config.write_text(
        """
        [[listeners]]
        address = "127.0.0.1:0"
        http = ["h1", "h2"]
        [[listeners]]
        address = "127.0.0.1:0"
        http = ["h1", "h2", "h3"]
        certificate = "cert.pem"
        private_key = "key.pem"
        [auth]
        required = false
        [policy]
        allow_networks = ["127.0.0.0/8"]
        [log]
        access = "access.log"
        """
    )
    with running([sys.executable, "-m", "relay", "serve", "-c", str(config)]) as process:
        line = first_line(process, "the relay")
        addresses = dict(re.findall(r"(https?)://([\d.]+:\d+)/", line))
        if set(addresses) != {"http", "https"}:
            raise BenchError(f"the relay's ready line is not understood: {line}")
        yield process.pid, addresses["http"], addresses["https"], directory / "cert.pem"


@contextlib.contextmanager
def haproxy(directory: Path, origin_address: str) -> Iterator[tuple[int, str] | None]:
    """HAProxy as a splicing TCP proxy in front of the origin, installed if that is possible; else nothing."""
    if shutil.which("haproxy") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "haproxy"]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        print("haproxy is not installed (Debian: apt-get install haproxy); its line is left out", file=sys.stderr)
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = directory / "haproxy.cfg"
    text = textwrap.dedent(
        f"""
        global
            maxconn 100
        defaults
            mode tcp
            option splice-auto
            timeout connect 10s
            timeout client 60s
            timeout server 60s
        listen tcp
            bind {address}
            server origin {origin_address}
        """
    )
    config.write_text(text)
    with running([program, "-db", "-f", str(config)], stderr=subprocess.DEVNULL) as process:
        host, port = address.split(":")
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                break
            time.sleep(0.05)
        else:
            raise BenchError("haproxy did not start")
        yield process.pid, address


def measure(load: Path, cell: Cell, direction: str, size: str, verify: bool) -> Run:
    command = [str(load), "bulk", "--json", "--direction", direction, "--bytes", size, *cell.arguments]
    if verify:
        command.append("--verify")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{cell.name} {cell.form} {direction}: {done.stderr.strip()}")
    return Run(cell, direction, json.loads(done.stdout))


def cells(stack: contextlib.ExitStack, load: Path, directory: Path) -> list[Cell]:
    """Starts everything that is measured and says how to reach it."""
    origin_address = stack.enter_context(origin(load))
    found = [Cell("direct TCP", "-", ("--mode", "tcp", "--origin", origin_address))]
    proxy = stack.enter_context(haproxy(directory, origin_address))
    if proxy is not None:
        pid, address = proxy
        arguments = ("--mode", "tcp", "--proxy", address, "--origin", origin_address, "--pid", str(pid))
        found.append(Cell("HAProxy TCP", "-", arguments))
    pid, clear, secure, certificate = stack.enter_context(relay(directory))
    for mode, name, mark in TRANSPORTS:
        address = clear if mode == "h1" else secure
        common = ("--mode", mode, "--proxy", address, "--origin", origin_address, "--pid", str(pid))
        trust = ("--ca", str(certificate), "--authority", f"localhost:{address.rsplit(':')[-1]}")
        found += [Cell(name, form, (*common, *trust, "--form", form), mark) for form in FORMS]
    return found


def median(runs: list[Run], key: str, *, rate: bool = False) -> str:
    values = [run.report[key] if rate else run.per_gigabyte(key) for run in runs]
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.median(known):.2f}"


def best(runs: list[Run], key: str) -> str:
    known = [value for run in runs if (value := run.per_gigabyte(key)) is not None]
    return f" ({min(known):.2f})" if known else ""


def table(found: list[Cell], runs: list[Run]) -> str:
    """CPU seconds per 10^9 payload bytes and Gbit/s: median, and for the relay the best run in brackets."""
    head = [f" │ {f'{direction}: proxy s/GB':>17} {'client':>7} {'Gbit/s':>7}" for direction in DIRECTIONS]
    lines = [f"{'':25}" + "".join(head)]
    for cell in found:
        line = f"{cell.name:12} {cell.form:12}"
        for direction in DIRECTIONS:
            mine = [run for run in runs if run.cell == cell and run.direction == direction]
            proxy = median(mine, "relay_cpu_s") + best(mine, "relay_cpu_s")
            client = median(mine, "client_cpu_s")
            line += f" │ {proxy:>17} {client:>7} {median(mine, 'gbit_s', rate=True):>7}"
        lines.append(line)
    return "\n".join(lines)


def marks(runs: list[Run]) -> str:
    """The dearest median of each transport next to its mark."""
    parts = []
    for _, name, mark in TRANSPORTS:
        groups: dict[tuple[str, str], list[float]] = {}
        for run in runs:
            cost = run.per_gigabyte("relay_cpu_s")
            if run.cell.name == name and cost is not None:
                groups.setdefault((run.cell.form, run.direction), []).append(cost)
        if groups:
            worst = max(statistics.median(costs) for costs in groups.values())
            parts.append(f"{name} {worst:.2f} {'≤' if worst <= mark else '>'} {mark}")
    return "marks (dearest median, relay CPU s/GB): " + ", ".join(parts)


def memory(runs: list[Run]) -> str:
    """Resident memory of the relay over all its runs."""
    relayed = [run.report for run in runs if run.cell.mark is not None]
    start = relayed[0]["relay_rss_start"] or 0
    peak = max(report["relay_rss_peak"] or 0 for report in relayed)
    end = relayed[-1]["relay_rss_end"] or 0
    return (
        f"relay memory: {start / MIB:.1f} MiB before the first run, {peak / MIB:.1f} MiB at most "
        f"(+{(peak - start) / MIB:.1f}), {end / MIB:.1f} MiB at the end"
    )


def machine() -> dict[str, object]:
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "relay": _native.__version__ if hasattr(_native, "__version__") else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", default="1e9", help="payload of one run (default 1e9)")
    parser.add_argument("--rounds", type=int, default=3, help="how often every cell runs (default 3)")
    parser.add_argument("--only", default="", help="cells whose name and form contain this, e.g. 'h3 connect-tcp'")
    parser.add_argument("--verify", action="store_true", help="check hashes of every byte, one round, no table")
    parser.add_argument("--load", type=Path, help="a relay-load that is built already")
    parser.add_argument("--results", type=Path, default=ROOT / "benches" / "results" / "throughput.json")
    options = parser.parse_args()
    try:
        load = (options.load or build_load()).resolve()
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
            found = [cell for cell in cells(stack, load, directory) if options.only in f"{cell.name} {cell.form}"]
            runs: list[Run] = []
            for number in range(1 if options.verify else options.rounds):
                for cell in found:
                    for direction in DIRECTIONS:
                        run = measure(load, cell, direction, options.bytes, options.verify)
                        runs.append(run)
                        show(run, number + 1)
    except (BenchError, subprocess.CalledProcessError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print()
    if options.verify:
        print(f"{len(runs)} transfers of {float(options.bytes):.0f} bytes arrived with equal hashes")
    else:
        print("CPU seconds per 10^9 payload bytes, median of the rounds (best in brackets)\n")
        print(table(found, runs))
        print()
        print(marks(runs))
        record(options.results, runs)
    if any(run.cell.mark is not None for run in runs):
        print(memory(runs))
    return 0


def show(run: Run, number: int) -> None:
    cost = run.per_gigabyte("relay_cpu_s")
    proxy = "" if cost is None else f"proxy {cost:.2f} s/GB, "
    print(
        f"round {number}  {run.cell.name:12} {run.cell.form:12} {run.direction:5} {proxy}"
        f"client {run.per_gigabyte('client_cpu_s'):.2f} s/GB, {run.report['gbit_s']:.2f} Gbit/s",
        flush=True,
    )


def record(path: Path, runs: list[Run]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "runs": [{"cell": run.cell.name, "form": run.cell.form, **run.report} for run in runs],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"results: {path}")


if __name__ == "__main__":
    sys.exit(main())
