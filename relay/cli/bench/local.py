"""What a measurement on one host starts by itself: an origin, and a relay to look at."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from relay import _native
from relay.errors import BenchError

_PROXY = re.compile(r"(https?)://([\d.]+):(\d+)/")
_CONFIG = """
[[listeners]]
address = "127.0.0.1:0"
http = ["h1", "h2"]
[[listeners]]
address = "127.0.0.1:0"
http = ["h1", "h2", "h3"]
certificate = "relay.pem"
private_key = "relay.key"
[auth]
required = false
[policy]
allow_networks = ["127.0.0.0/8"]
[log]
access = ""
level = "warning"
"""


@dataclass(frozen=True)
class LocalRelay:
    """A relay on loopback: its process, and where it listens by scheme."""

    pid: int
    proxies: dict[str, tuple[str, int]]


@contextmanager
def _running(what: str, *arguments: str) -> Iterator[tuple[int, str]]:
    """A process of this program, ended with the block; its number and its first line."""
    inherited = {key: value for key, value in os.environ.items() if not re.match("RELAY_.*__", key)}
    # This very package, whatever directory it is started from.
    here = str(Path(__file__).parents[3])
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, (here, inherited.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "relay", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=inherited,
        # An interrupt from the keyboard is for the measurement, which ends this.
        start_new_session=True,
    )
    try:
        line = process.stdout.readline().strip() if process.stdout else ""
        if not line:
            raise BenchError(f"{what} did not start")
        yield process.pid, line
    finally:
        process.kill()
        process.communicate()


@contextmanager
def origin() -> Iterator[tuple[str, int]]:
    """An origin on loopback."""
    with _running("the origin", "bench", "origin") as (_, line):
        host, _, port = line.rpartition(" ")[2].rpartition(":")
        yield host, int(port)


@contextmanager
def relay(directory: Path) -> Iterator[LocalRelay]:
    """A relay of the default configuration on loopback, without credentials and access log."""
    certificate, key = _native.throwaway_certificate(["localhost", "127.0.0.1"])
    (directory / "relay.pem").write_text(certificate)
    (directory / "relay.key").write_text(key)
    config = directory / "relay.toml"
    config.write_text(_CONFIG)
    with _running("the relay", "serve", "-c", str(config)) as (pid, line):
        proxies = {scheme: (host, int(port)) for scheme, host, port in _PROXY.findall(line)}
        yield LocalRelay(pid, proxies)
