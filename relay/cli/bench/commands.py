"""The commands of ``relay bench``."""

import json
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from relay import __version__, _native
from relay.cli.bench import runner, table
from relay.cli.bench.route import DATAGRAM_MODES, MODES, SCHEMES, Options, Way, host_and_port, ways
from relay.errors import BenchError

_Command = Callable[..., None]
_Decorator = Callable[[_Command], _Command]
_COUNT = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0, min_open=True)
_FILE = click.Path(path_type=Path)

_WAY: list[_Decorator] = [
    click.option(
        "--proxy",
        "proxies",
        multiple=True,
        metavar="URL",
        help="The gateway, https://HOST:PORT and http://HOST:PORT as far as it has them. Default: "
        "a relay that is started for it.",
    ),
    click.option(
        "--http",
        "http",
        multiple=True,
        type=click.Choice(list(SCHEMES)),
        help="HTTP version; repeatable. h1 and h2c are cleartext. Default: h1 h1tls h2 h3, as far "
        "as there is a --proxy for it.",
    ),
    click.option(
        "--target",
        metavar="HOST:PORT",
        help="An origin on another host (relay bench origin), as the gateway is to hear it. Default: one on loopback.",
    ),
    click.option(
        "--pid",
        "pids",
        multiple=True,
        type=_COUNT,
        help="Process of the gateway, for its CPU time and memory; repeatable.",
    ),
    click.option("--ca", type=_FILE, metavar="FILE", help="Certificates to trust, PEM. Default: the system's."),
    click.option("--insecure", is_flag=True, help="Trust any certificate."),
    click.option("--resume", is_flag=True, help="Resume TLS sessions. Default: a full handshake each."),
    click.option("--token", envvar="RELAY_TOKEN", show_envvar=True, help="Bearer token."),
    click.option("--token-file", type=_FILE, metavar="FILE", help="File with the bearer token."),
    click.option("--user", metavar="NAME:PASSWORD", help="User and password."),
    click.option("--template", help="URI template, if it is not the default one."),
    click.option("--profile", help="Upgrade token, e.g. connect-tcp-07."),
]
_SHAPE: list[_Decorator] = [
    click.option(
        "--threads",
        type=_COUNT,
        default=1,
        show_default=True,
        help="Threads of the client; they share the connections.",
    ),
    click.option(
        "--timeout", type=_SECONDS, default=120, show_default=True, help="Seconds after which a run is given up."
    ),
    click.option("--json", "as_json", is_flag=True, help="Results as JSON instead of a table."),
]


def _options(*more: _Decorator, streams: int, modes: tuple[str, ...] = MODES) -> _Decorator:
    """The options of one kind of load, before those that all kinds have."""
    mode = click.option(
        "--mode",
        "modes",
        multiple=True,
        type=click.Choice(modes),
        default=modes[-1:],
        show_default=True,
        help="How the gateway is asked; repeatable. direct: no gateway.",
    )

    def decorate(command: _Command) -> _Command:
        shape: list[_Decorator] = [
            click.option(
                "-c", "--connections", type=_COUNT, default=1, show_default=True, help="Connections to the gateway."
            ),
            click.option(
                "-s",
                "--streams",
                type=_COUNT,
                default=streams,
                show_default=True,
                help="Tunnels at a time on each; over HTTP/1.1 each is a connection of its own.",
            ),
        ]
        options: list[_Decorator] = [*more, *shape, *_SHAPE, mode, *_WAY]
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_DIRECTION = click.option(
    "--direction",
    type=click.Choice(["down", "up", "both"]),
    default="both",
    show_default=True,
    help="From the origin or to it.",
)
_BYTES = click.option(
    "--bytes",
    "size",
    type=click.FloatRange(min=1, max=1e15),
    default=1e9,
    show_default=True,
    help="Payload of a run, all tunnels together.",
)
_VERIFY = click.option("--verify", is_flag=True, help="Check the payload by its hash; the client then costs more.")
_DURATION = click.option("--seconds", type=_SECONDS, default=5, show_default=True, help="How long a run lasts.")
_RATE = click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1000,
    show_default=True,
    help="Messages a second that are offered, all tunnels together.",
)
_SIZE = click.option(
    "--size", type=click.IntRange(1, 1 << 20), default=64, show_default=True, help="Bytes of a message."
)
_HOLD = click.option(
    "--hold",
    type=click.FloatRange(min=0),
    default=1,
    show_default=True,
    help="Seconds to wait before the memory is read.",
)


@click.group()
def bench() -> None:
    """Measure a gateway: throughput, tunnels a second, latency, memory, datagrams.

    Without --proxy and --target everything is started on loopback. For two hosts:
    `relay bench origin --address IP:PORT` on the far one, and --target with its address on this one.
    """


def _measure(works: Iterable[tuple[dict[str, Any], int]], given: dict[str, Any]) -> None:
    """Runs each kind of load (with its number of streams) on each way and prints the results."""
    options = Options(**{field.name: given[field.name] for field in fields(Options)})
    line = runner.Line()
    results = []

    def measure(work: dict[str, Any], streams: int, way: Way) -> None:
        plan = {
            "work": work,
            "route": way.plan,
            "connections": given["connections"],
            "streams": streams,
            "threads": given["threads"],
            "timeout": given["timeout"],
            "pids": way.pids,
        }
        name = " ".join(filter(None, (work["kind"], work.get("direction"), way.name)))
        results.append(runner.run(plan, name, line))

    # What was started for a measurement ends with it, however that ends.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    with ways(options) as found:
        for work, streams in works:
            for way in found:
                if work["kind"] == "idle" and way.http and not options.proxies:
                    # Memory that earlier tunnels used is not given back: a relay of its own for each.
                    with ways(replace(options, modes=(way.mode,), http=(way.http,))) as (fresh,):
                        measure(work, streams, fresh)
                else:
                    measure(work, streams, way)
    if given["as_json"]:
        click.echo(json.dumps({"relay": __version__, "build": _native.BUILD_PROFILE, "results": results}, indent=1))
    else:
        click.echo(table.render(results))


def _bulk(direction: str, size: float, verify: bool = False) -> list[dict[str, Any]]:
    directions = ("down", "up") if direction == "both" else (direction,)
    return [{"kind": "bulk", "direction": one, "bytes": int(size), "verify": verify} for one in directions]


@bench.command()
@_options(_DIRECTION, _BYTES, _VERIFY, streams=1)
def bulk(direction: str, size: float, verify: bool, **given: Any) -> None:
    """Move bytes as fast as they go."""
    _measure([(work, given["streams"]) for work in _bulk(direction, size, verify)], given)


@bench.command()
@_options(_DURATION, streams=16)
def rate(seconds: float, **given: Any) -> None:
    """Open a tunnel, make one round trip, close it; again and again."""
    _measure([({"kind": "rate", "seconds": seconds}, given["streams"])], given)


@bench.command()
@_options(_DURATION, _RATE, _SIZE, streams=16)
def latency(seconds: float, rate: float, size: int, **given: Any) -> None:
    """Time answers at an offered rate, which does not wait for them.

    Each message is timed from the moment it was due, so that a stall counts for all that fell into it.
    """
    work = {"kind": "latency", "seconds": seconds, "rate": rate, "size": size}
    _measure([(work, given["streams"])], given)


@bench.command()
@_options(_HOLD, streams=1000)
def idle(hold: float, **given: Any) -> None:
    """Open tunnels, leave them idle, and read the gateway's memory by --pid."""
    _measure([({"kind": "idle", "hold": hold}, given["streams"])], given)


@bench.command()
@_options(
    click.option(
        "--direction",
        type=click.Choice(["down", "up", "both", "echo"]),
        default="both",
        show_default=True,
        help="From the origin or to it, or there and back.",
    ),
    _DURATION,
    click.option(
        "--rate",
        type=click.FloatRange(min=0, max=1e7, min_open=True),
        default=25_000,
        show_default=True,
        help="Datagrams a second that are offered, all tunnels together.",
    ),
    click.option(
        "--size", type=click.IntRange(64, 65507), default=1200, show_default=True, help="Bytes of a datagram's payload."
    ),
    streams=1,
    modes=DATAGRAM_MODES,
)
def udp(direction: str, seconds: float, rate: float, size: int, **given: Any) -> None:
    """Send datagrams at an offered rate, and count those that arrive.

    They leave by a timetable, a millisecond's worth at a time; what could not leave within ten milliseconds is unsent.
    """
    directions = ("down", "up") if direction == "both" else (direction,)
    works = [{"kind": "udp", "direction": one, "seconds": seconds, "rate": rate, "size": size} for one in directions]
    _measure([(work, given["streams"]) for work in works], given)


@bench.command()
@_options(
    _BYTES,
    _DURATION,
    _RATE,
    click.option(
        "--idle", "tunnels", type=_COUNT, default=1000, show_default=True, help="Idle tunnels on each connection."
    ),
    streams=16,
)
def run(size: float, seconds: float, rate: float, tunnels: int, **given: Any) -> None:
    """Everything in turn: bulk both ways through one tunnel on each connection, rate, latency, idle."""
    streams = given["streams"]
    works: list[tuple[dict[str, Any], int]] = [(work, 1) for work in _bulk("both", size)]
    works.append(({"kind": "rate", "seconds": seconds}, streams))
    works.append(({"kind": "latency", "seconds": seconds, "rate": rate, "size": 64}, streams))
    works.append(({"kind": "idle", "hold": 1.0}, tunnels))
    _measure(works, given)


@bench.command()
@click.option(
    "--address",
    default="127.0.0.1:0",
    show_default=True,
    metavar="IP:PORT",
    help="Where to listen; port 0 = any free one.",
)
def origin(address: str) -> None:
    """Serve as the far end of the tunnels until told to end.

    It answers anybody who reaches it: open it to the gateway alone.
    """
    host, port = host_and_port(address, "--address")
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        host, port = _native.serve_origin(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except ValueError:
        raise click.UsageError(f"--address: expected IP:PORT, not {address}") from None
    except OSError as error:
        raise BenchError(f"{address}: {error}") from None
    click.echo(f"origin ready: {f'[{host}]' if ':' in host else host}:{port}")
    signal.sigwait(ends)
