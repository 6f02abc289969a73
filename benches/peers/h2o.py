"""h2o, where H2O names a program: CONNECT over every HTTP version. It has no release on a registry to install from."""

from __future__ import annotations

import os
from pathlib import Path

from harness.cells import Cell
from harness.process import BenchError, free_address

from .base import Site, Started, version_of

NAME = "h2o"
CONFIG = """
num-threads: {threads}
pid-file: {home}/h2o.pid
listen:
  - host: 127.0.0.1
    port: {clear}
  - host: 127.0.0.1
    port: {secure}
    ssl: &ssl
      certificate-file: {certificate}
      key-file: {key}
      minimum-version: TLSv1.3
  - type: quic
    host: 127.0.0.1
    port: {secure}
    ssl: *ssl
hosts:
  default:
    paths:
      "/.well-known/masque/udp":
        proxy.connect-udp:
          - "+127.0.0.0/8:*"
      "/":
        proxy.connect:
          - "+127.0.0.0/8:*"
        proxy.timeout.io: 60000
"""


def start(site: Site) -> Started:
    program = os.environ.get("H2O")
    if not program:
        raise BenchError("not installed: set H2O=/path/to/h2o")
    if not os.access(program, os.X_OK):
        raise BenchError(f"H2O={program} is no program")
    home = site.home("h2o")
    clear, secure = free_address(), free_address()
    config = home / "h2o.yaml"
    config.write_text(
        CONFIG.format(
            threads=os.cpu_count() or 1,
            home=home,
            clear=clear.rsplit(":", 1)[1],
            secure=secure.rsplit(":", 1)[1],
            certificate=site.certificate,
            key=site.key,
        )
    )
    pid = site.serve([str(Path(program).resolve()), "-c", str(config)], [clear, secure], home)
    cells = [Cell(NAME, "h1", "connect", clear, pid)]
    cells += [Cell(NAME, transport, "connect", secure, pid) for transport in ("h1tls", "h2", "h3")]
    datagrams = [Cell(NAME, transport, "connect-udp", secure, pid) for transport in ("h2", "h3")]
    return Started(version_of([program, "-v"], r"version ([\w.-]+)"), cells, datagrams=datagrams)
