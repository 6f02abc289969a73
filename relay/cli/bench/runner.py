"""Runs of the load client, with a line of progress while they last."""

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import click

from relay import _native
from relay.cli.bench.table import Result
from relay.errors import BenchError

#: Seconds between two looks at a run.
_LOOK = 0.2


@dataclass
class _Outcome:
    result: Result | None = None
    error: BaseException | None = None
    finished: threading.Event = field(default_factory=threading.Event)


def _amount(kind: str, done: int, seconds: float) -> str:
    """What was done so far, and how fast."""
    if kind == "bulk":
        return f"{done / 1e9:.2f} GB, {done * 8e-9 / seconds:.2f} Gbit/s"
    what = {"latency": "messages", "udp": "datagrams"}.get(kind, "tunnels")
    return f"{done} {what}, {done / seconds:.0f}/s"


class Line:
    """One line on a terminal that is written over; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._on:
            click.echo(f"\r\x1b[2K{text}", nl=False, err=True)

    def clear(self) -> None:
        self.show("")


def run(plan: dict[str, Any], name: str, line: Line) -> Result:
    """One run; BenchError or click.UsageError in one line."""
    kind = plan["work"]["kind"]
    try:
        load = _native.Load(json.dumps(plan))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    outcome = _Outcome()

    def work() -> None:
        try:
            outcome.result = json.loads(load.run())
        except BaseException as error:
            outcome.error = error
        finally:
            outcome.finished.set()

    thread = threading.Thread(target=work, name="bench")
    thread.start()
    begun = None
    try:
        while not outcome.finished.wait(_LOOK):
            running, done = load.progress()
            if not running:
                line.show(f"{name}: connecting")
                continue
            begun = begun or time.monotonic()
            seconds = time.monotonic() - begun + _LOOK
            line.show(f"{name}: {_amount(kind, done, seconds)} after {seconds:.0f} s")
    finally:
        load.stop()
        thread.join()
        line.clear()
    if isinstance(outcome.error, ValueError):
        raise click.UsageError(str(outcome.error))
    if isinstance(outcome.error, BenchError):
        raise BenchError(f"{name}: {outcome.error}")
    if outcome.result is None:
        raise outcome.error or BenchError(f"{name}: no result")
    return outcome.result
