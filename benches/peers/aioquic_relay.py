"""The relay of `aioquic_server.py`: what HTTP/3 costs with the usual Python stack (aioquic on PyPI)."""

from __future__ import annotations

import socket
from pathlib import Path

from harness.cells import Cell
from harness.process import first_line, free_address, parts, running

from .base import Site, Started, from_pypi

NAME = "aioquic"
VERSION = "1.7.2"
SHARE = 0.02


def start(site: Site) -> Started:
    python = from_pypi(site.cache, f"aioquic=={VERSION}") / "python"
    address = free_address(socket.SOCK_DGRAM)
    server = Path(__file__).with_name("aioquic_server.py")
    command = [str(python), str(server), str(site.certificate), str(site.key), *map(str, parts(address))]
    process = site.stack.enter_context(running(command, cwd=site.home("aioquic")))
    first_line(process, "the aioquic relay")
    cells = [Cell(NAME, "h3", form, address, process.pid, share=SHARE) for form in ("connect-tcp", "connect")]
    return Started(VERSION, cells)
