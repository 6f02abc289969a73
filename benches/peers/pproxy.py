"""pproxy (PyPI): an asyncio proxy in Python; CONNECT over HTTP/1.1, in cleartext and over TLS."""

from __future__ import annotations

from harness.cells import Cell
from harness.process import free_address

from .base import Site, Started, from_pypi

NAME = "pproxy"
VERSION = "2.7.9"
SHARE = 0.2


def start(site: Site) -> Started:
    programs = from_pypi(site.cache, f"pproxy=={VERSION}")
    home = site.home("pproxy")
    clear, secure = free_address(), free_address()
    command = [str(programs / "pproxy"), "-l", f"http://{clear}", "-l", f"http+ssl://{secure}"]
    command += ["--ssl", f"{site.certificate},{site.key}"]
    pid = site.serve(command, [clear, secure], home)
    cells = [
        Cell(NAME, "h1", "connect", clear, pid, share=SHARE),
        Cell(NAME, "h1tls", "connect", secure, pid, share=SHARE),
    ]
    return Started(VERSION, cells)
