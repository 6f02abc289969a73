"""masque-go (Go module, pinned in `go/masque/go.mod`): it relays UDP over HTTP/3 and nothing else.

There is no cell for that yet: the load client moves streams. The adapter builds and starts the proxy, so that its
version is on record, and leaves every cell of this table empty.
"""

from __future__ import annotations

import socket
from pathlib import Path

from harness.process import free_address

from .base import Site, Started, from_go

PACKAGE = "github.com/quic-go/masque-go/cmd/proxy"


def start(site: Site) -> Started:
    source = Path(__file__).parent / "go" / "masque"
    program = str(from_go(site.cache, source, "masque-relay", PACKAGE))
    address = free_address(socket.SOCK_DGRAM)
    template = f"https://localhost:{address.rsplit(':', 1)[1]}/masque?h={{target_host}}&p={{target_port}}"
    command = [program, "-t", template, "-b", address, "-c", str(site.certificate), "-k", str(site.key)]
    site.serve(command, [], site.home("masque-go"))
    return Started("v0.5.0", [], note="connect-udp over h3 only: no cell of this table")
