"""What one big transfer does not show: opening tunnels, idle ones, a thousand of them, two workers, small frames.

As in bench.py every round goes through all probes, one after another, and each figure is the median of the rounds. Each
is printed with the mark it is held against.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import build_load
from harness import figures, probes, results
from harness.figures import Figures
from harness.probes import Gateway, Loads, Probe
from harness.process import BenchError, first_line, running
from peers import capsule_relay

from relay import _native

HOOK = """
from relay import Decision, TunnelRequest


async def decide(request: TunnelRequest) -> Decision:
    return Decision.allow()
"""
QUICK = (2e8, 1.0, 2)
FULL = (1e9, 2.0, 5)


@dataclass(frozen=True)
class Site:
    """Where relays are started."""

    directory: Path
    certificate: Path
    key: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def relay(self, stack: contextlib.ExitStack, workers: int, hook: bool = False) -> Gateway:
        home = self.directory / f"relay-{next(self.numbers)}"
        home.mkdir()
        text = capsule_relay.CLEAR + capsule_relay.SECURE.format(certificate=self.certificate, key=self.key)
        text = f"workers = {workers}\n{text}{capsule_relay.REST}"
        if hook:
            (home / "rules.py").write_text(HOOK)
            text = text.replace("[policy]", '[policy]\nhook = "rules:decide"')
        return Gateway(*capsule_relay.launch(stack, home, text))

    def fresh(self, use: Callable[[Gateway], float]) -> float:
        """A measurement on a relay of its own."""
        with contextlib.ExitStack() as stack:
            return use(self.relay(stack, 1))


def prepare(stack: contextlib.ExitStack, program: Path, size: float, seconds: float) -> list[Probe]:
    """Starts the origin and the relays that all rounds share; the probes in their order."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-scale-")))
    certificate, key = _native.throwaway_certificate(["localhost"])
    site = Site(directory, directory / "cert.pem", directory / "key.pem")
    site.certificate.write_text(certificate)
    site.key.touch(0o600)
    site.key.write_text(key)
    origin = first_line(stack.enter_context(running([str(program), "origin"])), "the origin")
    loads = Loads(program, origin, certificate, size, seconds)
    one, two = site.relay(stack, 1), site.relay(stack, 2)
    return [
        *probes.opening(loads, one, site.relay(stack, 1, hook=True)),
        *probes.idling(loads, site.fresh),
        *probes.workers(loads, one, two),
        *probes.spread(loads, one),
        *probes.frames(loads, one),
    ]


def rounds(wanted: list[Probe], count: int, found: Figures) -> None:
    """All probes, round after round; one that fails is left out from then on."""
    for number in range(1, count + 1):
        for probe in wanted:
            if probe.name in found.absent:
                continue
            try:
                value = probe.take()
            except BenchError as error:
                found.absent[probe.name] = str(error)
                print(f"{probe.name}: left out: {error}", file=sys.stderr, flush=True)
                continue
            found.add(probe, value)
            print(f"round {number}  {probe.name:34} {value:8.2f} {probe.unit}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=float, help="payload of one transfer (default 1e9)")
    parser.add_argument("--seconds", type=float, help="how long tunnels are opened and closed (default 2)")
    parser.add_argument("--rounds", type=int, help="how often every probe runs (default 5)")
    parser.add_argument("--quick", action="store_true", help="a fifth of the bytes, two rounds: a first look")
    parser.add_argument("--only", default="", help="probes whose name contains one of these, e.g. 'open,tunnels h2'")
    parser.add_argument("--load", type=Path, help="a relay-load that is built already")
    parser.add_argument("--results", type=Path, default=results.DIRECTORY, help="directory of the results")
    options = parser.parse_args()
    size, seconds, count = QUICK if options.quick else FULL
    options.bytes, options.seconds = options.bytes or size, options.seconds or seconds
    options.rounds = options.rounds or count
    if options.bytes < 1 or options.seconds <= 0 or options.rounds < 1:
        parser.error("--bytes, --seconds and --rounds must be positive")
    return options


def carry_out(
    options: argparse.Namespace, found: Figures, prepare: Callable[[contextlib.ExitStack, Path], Iterable[Probe]]
) -> int:
    """Runs the probes that are wanted, all of them in each round; an exit code, and why if it is not 0."""
    try:
        load = (options.load or build_load()).resolve()
        with contextlib.ExitStack() as stack:
            only = [part.strip() for part in options.only.split(",")]
            wanted = [probe for probe in prepare(stack, load) if any(part in probe.name for part in only)]
            if not wanted:
                raise BenchError(f"--only {options.only!r}: no probe has this in its name")
            rounds(wanted, options.rounds, found)
    except (BenchError, OSError) as error:
        print(f"{found.kind}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{found.kind}: interrupted; nothing is recorded", file=sys.stderr)
        return 130
    return 0


def main() -> int:
    options = arguments()
    found = Figures(
        when=results.now(),
        commit=results.commit(),
        machine=results.machine(),
        options={name: getattr(options, name) for name in ("bytes", "seconds", "rounds", "only")},
        relay=capsule_relay.version(),
    )
    if status := carry_out(options, found, lambda stack, load: prepare(stack, load, options.bytes, options.seconds)):
        return status
    print(f"\n{figures.table(found)}\n\n" + "\n".join(figures.verdicts(found)))
    print(f"\nresults: {figures.save(found, options.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
