"""Over a wire, not loopback: two network namespaces, a veth pair at MTU 1500, offloads on and off, delay and loss.

The client is in one namespace, relay and origin are in the other. Offloads (GSO, GRO, TSO) off means a packet of at
most 1,500 bytes each time, as with a plain network card; netem adds half the delay and all the loss on either side.
Where the kernel has no netem, a process between two TUN devices does the same. TCP is CUBIC in both namespaces, QUIC
too unless the cell says BBR. Needs root, iproute2 and ethtool; what is missing is said and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import build_load
from harness import results, userlink
from harness.cells import DIRECTIONS, Cell, Load, Run
from harness.process import BenchError, first_line, running
from peers import capsule_relay
from peers.base import Unpacked, cache_directory, from_debian

from relay import _native

NEAR, FAR = "10.211.0.1", "10.211.0.2"
#: Of the link in user space.
USER_NEAR, USER_FAR = "10.211.0.5", "10.211.0.6"
MTU = 1500
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
#: What a sender that does not slow down moves more of, to be as long at it.
BBR_SHARE = 4.0
LISTENER = """
[[listeners]]
address = "{address}:0"
http = ["h1", "h2", "h3"]
certificate = "{certificate}"
private_key = "{key}"
"""


#: Goodput over delay with loss: of what, against what, at least how many times as much.
MARKS = (
    ("h3", "h2", 1.0),
    ("h3 bbr", "h2", 5.0),
)
BBR = """
[quic]
congestion_control = "bbr"
"""

#: Nobody else is in the namespace.
OPEN = capsule_relay.REST.replace("required = false", "required = false\nopen = true")


class Missing(Exception):
    """This machine cannot run it, and why."""


@dataclass(frozen=True)
class Wire:
    """One kind of wire. `share` keeps transfers over slow ones short."""

    offload: bool
    delay_ms: int
    loss_percent: float
    share: float

    @property
    def impaired(self) -> bool:
        return bool(self.delay_ms or self.loss_percent)

    @property
    def name(self) -> str:
        return f"{'GSO/GRO' if self.offload else 'no GSO':7} {self.delay_ms:3} ms {self.loss_percent:g} %"


WIRES = [
    Wire(offload, delay, loss, share)
    for offload in (True, False)
    for delay, loss, share in ((0, 0, 1.0), (0, 1, 0.2), (40, 0, 0.2), (40, 1, 0.01))
]


def quiet(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


@dataclass
class Link:
    """Two namespaces and what joins them, named after this process."""

    client: str
    relay: str
    ethtool: str
    environment: dict[str, str]
    #: Forwards over the link in user space, where that stands in for netem.
    user: subprocess.Popen[str] | None = None

    def ends(self) -> list[tuple[str, str]]:
        return [(self.client, "near"), (self.relay, "far")]

    def address(self, wire: Wire) -> str:
        """Where the far side is."""
        return USER_FAR if self.user is not None and wire.impaired else FAR

    def become(self, wire: Wire) -> None:
        if self.user is not None and wire.impaired:
            userlink.become(self.user, wire.delay_ms, wire.loss_percent)
            return
        state = "on" if wire.offload else "off"
        for space, device in self.ends():
            inside = within(space)
            command = [*inside, self.ethtool, "-K", device]
            for feature in ("gso", "gro", "tso", "tx-udp-segmentation"):
                command += [feature, state]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env={**os.environ, **self.environment}
            )
            if done.returncode != 0:
                raise Missing(f"ethtool: {done.stderr.strip()}")
            subprocess.run([*inside, "tc", "qdisc", "del", "dev", device, "root"], capture_output=True, check=False)
            if wire.impaired:
                netem = ["delay", f"{wire.delay_ms / 2}ms", "loss", f"{wire.loss_percent}%", "limit", "200000"]
                quiet(*inside, "tc", "qdisc", "add", "dev", device, "root", "netem", *netem)


def within(space: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", space)


@contextlib.contextmanager
def cubic() -> Iterator[None]:
    """TCP here is CUBIC for now: a namespace begins with what is set then, and some kernels allow no change in it."""
    before = CONGESTION_CONTROL.read_text().strip()
    try:
        CONGESTION_CONTROL.write_text("cubic")
        yield
    except OSError as error:
        raise Missing(f"TCP cannot be CUBIC: {error}") from None
    finally:
        CONGESTION_CONTROL.write_text(before)


def link(stack: contextlib.ExitStack) -> Link:
    if os.geteuid() != 0:
        raise Missing("needs root")
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise Missing(f"needs {program} (Debian: iproute2)")
    found, package = shutil.which("ethtool"), Unpacked(Path())
    if found is None:
        try:
            package = from_debian(cache_directory(), "ethtool", "ethtool")
            found = package.program("ethtool")
        except BenchError as error:
            raise Missing(f"needs ethtool: {error}") from None
    made = Link(f"bench-client-{os.getpid()}", f"bench-relay-{os.getpid()}", found, package.environment)
    for space, _ in made.ends():
        with cubic():
            quiet("ip", "netns", "add", space)
        stack.callback(subprocess.run, ["ip", "netns", "del", space], capture_output=True, check=False)
        quiet(*within(space), "ip", "link", "set", "lo", "up")
    quiet(*within(made.client), "ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", made.relay)
    for (space, device), address in zip(made.ends(), (NEAR, FAR), strict=True):
        quiet(*within(space), "ip", "addr", "add", f"{address}/30", "dev", device)
        quiet(*within(space), "ip", "link", "set", device, "mtu", str(MTU), "up")
    return made


def in_user_space(stack: contextlib.ExitStack, made: Link) -> None:
    """Joins the namespaces a second time, by a process that can delay and drop."""
    descriptors = []
    try:
        for (space, _), address in zip(made.ends(), (USER_NEAR, USER_FAR), strict=True):
            name = f"user{os.getpid()}"
            descriptor = userlink.device(name)
            stack.callback(os.close, descriptor)
            descriptors.append(descriptor)
            quiet("ip", "link", "set", name, "netns", space)
            quiet(*within(space), "ip", "addr", "add", f"{address}/30", "dev", name)
            quiet(*within(space), "ip", "link", "set", name, "mtu", str(MTU), "up")
    except OSError as error:
        raise Missing(f"/dev/net/tun: {error}") from None
    made.user = stack.enter_context(userlink.forwarding(*descriptors))


def possible(stack: contextlib.ExitStack, made: Link, wires: list[Wire]) -> list[Wire]:
    """Those that this machine can be; says which it cannot."""
    impaired = [wire for wire in wires if wire.impaired]
    if not impaired:
        return wires
    try:
        made.become(impaired[0])
        return wires
    except Missing as reason:
        print(f"wire: delay and loss in user space, without offloads: {reason}")
    try:
        in_user_space(stack, made)
    except Missing as reason:
        print(f"wire: skipped: {len(impaired)} wires with delay or loss: {reason}")
        return [wire for wire in wires if not wire.impaired]
    return [wire for wire in wires if not (wire.impaired and wire.offload)]


def start(
    stack: contextlib.ExitStack, made: Link, program: Path, addresses: Sequence[str]
) -> tuple[Load, dict[str, list[Cell]]]:
    """Relays and origins in the far namespace, at each of its addresses; the load client will run in the near one."""
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-wire-")))
    certificate, key = _native.throwaway_certificate(["localhost"])
    (home / "cert.pem").write_text(certificate)
    (home / "key.pem").write_text(key)

    def origin(address: str) -> str:
        command = [*within(made.relay), str(program), "origin", "--address", f"{address}:0"]
        return first_line(stack.enter_context(running(command)), "the origin")

    def relay(address: str, more: str) -> tuple[str, int]:
        directory = Path(tempfile.mkdtemp(dir=home))
        text = LISTENER.format(address=address, certificate=home / "cert.pem", key=home / "key.pem") + OPEN + more
        pid, listening = capsule_relay.launch(stack, directory, text, within(made.relay))
        return listening["https"], pid

    cells = {}
    for address in addresses:
        cubic, bbr = relay(address, ""), relay(address, BBR)
        cells[address] = [
            Cell("direct", "tcp", "-", origin(address)),
            *(Cell(results.RELAY, transport, "connect-tcp", *cubic) for transport in ("h1tls", "h2", "h3")),
            Cell(
                f"{results.RELAY} bbr",
                "h3",
                "connect-tcp",
                *bbr,
                share=BBR_SHARE,
                arguments=("--congestion-control", "bbr"),
            ),
        ]
    load = Load(program, origin("127.0.0.1"), home / "cert.pem", timeout=120, prefix=within(made.client))
    return load, cells


def marks(measured: Sequence[tuple[Wire, Run]]) -> list[str]:
    """What QUIC is to be worth where delay and loss come together, a line a mark."""
    lines = []
    for wire in dict.fromkeys(wire for wire, _ in measured if wire.delay_ms and wire.loss_percent):
        for name, other, factor in MARKS:
            for direction in DIRECTIONS:
                mine, base = (
                    [
                        run.gbit_s
                        for at, run in measured
                        if at == wire
                        and run.direction == direction
                        and f"{run.transport}{run.peer.removeprefix(results.RELAY)}" == wanted
                    ]
                    for wanted in (name, other)
                )
                if mine and base:
                    found = statistics.median(mine) / statistics.median(base)
                    verdict = "met" if found >= factor else "MISSED"
                    lines.append(
                        f"{wire.name}  {name} {direction:4} {found:6.2f} × {other} (mark {factor:g}) {verdict}"
                    )
    return lines


def table(measured: Sequence[tuple[Wire, Run]]) -> str:
    lines = [f"{'wire':20} {'cell':32}" + "".join(f" │ {way:>4}: s/GB {'Gbit/s':>8}" for way in DIRECTIONS)]
    for wire in dict.fromkeys(wire for wire, _ in measured):
        runs = [run for at, run in measured if at == wire]
        for cell in dict.fromkeys(run.key[:3] for run in runs):
            line = f"{wire.name:20} {' '.join(cell):32}"
            for direction in DIRECTIONS:
                mine = [run for run in runs if run.key == (*cell, direction)]
                costs = sorted(run.proxy_cost for run in mine if run.proxy_cost is not None)
                rates = sorted(run.gbit_s for run in mine)
                cost = f"{costs[len(costs) // 2]:.2f}" if costs else "-"
                line += f" │ {cost:>10} {rates[len(rates) // 2] if rates else float('nan'):8.3f}"
            lines.append(line)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=float, default=5e8, help="payload of one run over the fastest wire")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="wires whose name contains this, e.g. '40 ms'")
    parser.add_argument("--load", type=Path, help="a relay-load that is built already")
    parser.add_argument("--results", type=Path, default=results.DIRECTORY)
    options = parser.parse_args()
    measured: list[tuple[Wire, Run]] = []
    try:
        program = (options.load or build_load()).resolve()
        with contextlib.ExitStack() as stack:
            made = link(stack)
            wires = possible(stack, made, [wire for wire in WIRES if options.only in wire.name])
            addresses = list(dict.fromkeys(made.address(wire) for wire in wires))
            load, cells = start(stack, made, program, addresses)
            for number in range(1, options.rounds + 1):
                for wire in wires:
                    made.become(wire)
                    for cell in cells[made.address(wire)]:
                        for direction in DIRECTIONS:
                            try:
                                run = load.measure(cell, direction, number, options.bytes * wire.share)
                            except BenchError as error:
                                print(f"{wire.name}  {cell.name} {direction}: {error}", file=sys.stderr, flush=True)
                                continue
                            measured.append((wire, run))
                            what = f"{cell.name:32} {direction:5} {run.gbit_s:.3f} Gbit/s"
                            print(f"round {number}  {wire.name}  {what}", flush=True)
    except Missing as reason:
        print(f"wire: skipped: {reason}")
        return 0
    except (BenchError, OSError) as error:
        print(f"wire: {error}", file=sys.stderr)
        return 1
    print(f"\nMTU {MTU}, median of {options.rounds} rounds; s/GB is the relay's CPU\n\n{table(measured)}\n")
    print("\n".join(marks(measured)))
    found = results.begin({"bytes": options.bytes, "rounds": options.rounds, "only": options.only})
    document = {
        "format": "wire",
        "when": found.when,
        "commit": found.commit,
        "machine": found.machine,
        "runs": [{"wire": asdict(wire), **asdict(run)} for wire, run in measured],
    }
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"wire-{found.when.replace(':', '')}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"results: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
