"""This project's relay, as installed in the environment that runs the benchmark."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.cells import Cell
from harness.process import BenchError, first_line, running

from .base import Site, Started

NAME = "capsule-relay"
FORMS = ("connect-tcp", "connect")
CLEAR = """
[[listeners]]
address = "127.0.0.1:0"
http = ["h1", "h2"]
"""
SECURE = """
[[listeners]]
address = "127.0.0.1:0"
http = ["h1", "h2", "h3"]
certificate = "{certificate}"
private_key = "{key}"
"""
REST = """
[auth]
required = false
[policy]
allow_networks = ["127.0.0.0/8"]
[log]
access = "access.log"
"""


def launch(
    stack: contextlib.ExitStack, home: Path, text: str, prefix: Sequence[str] = ()
) -> tuple[int, dict[str, str]]:
    """A relay with this configuration: its process number and its addresses by scheme."""
    config = home / "relay.toml"
    config.write_text(text)
    process = stack.enter_context(
        running([*prefix, sys.executable, "-P", "-m", "relay", "serve", "-c", str(config)], cwd=home)
    )
    line = first_line(process, "the relay")
    addresses = dict(re.findall(r"(https?)://([\d.]+:\d+)/", line))
    if not addresses:
        raise BenchError(f"the relay's ready line is not understood: {line}")
    return process.pid, addresses


def version() -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "relay", "--version"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def start(site: Site) -> Started:
    secure = SECURE.format(certificate=site.certificate, key=site.key)
    pid, addresses = launch(site.stack, site.home(NAME), CLEAR + secure + REST)
    cells = [
        Cell(NAME, transport, form, addresses["http" if transport == "h1" else "https"], pid)
        for transport in ("h1", "h1tls", "h2", "h3")
        for form in FORMS
    ]
    datagrams = [Cell(NAME, transport, "connect-udp", addresses["https"], pid) for transport in ("h2", "h3")]
    return Started(version(), cells, datagrams=datagrams)
