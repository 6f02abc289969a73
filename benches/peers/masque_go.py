"""masque-go (Go module, pinned in `go/masque/go.mod`): it relays UDP over HTTP/3 and nothing else.

Its cells are those of datagrams (`udp.py`); it leaves every one of the streams' table empty.
"""

from __future__ import annotations

import socket
from pathlib import Path

from harness.cells import Cell
from harness.process import free_address

from .base import Site, Started, from_go

NAME = "masque-go"
PACKAGE = "github.com/quic-go/masque-go/cmd/proxy"


def start(site: Site) -> Started:
    source = Path(__file__).parent / "go" / "masque"
    program = str(from_go(site.cache, source, "masque-relay", PACKAGE))
    address = free_address(socket.SOCK_DGRAM)
    path = "/masque?h={target_host}&p={target_port}"
    resource = f"https://localhost:{address.rsplit(':', 1)[1]}{path}"
    command = [program, "-t", resource, "-b", address, "-c", str(site.certificate), "-k", str(site.key)]
    pid = site.serve(command, [], site.home(NAME))
    cell = Cell(NAME, "h3", "connect-udp", address, pid, template=path)
    return Started("v0.5.0", [], note="connect-udp over h3 only", datagrams=[cell])
