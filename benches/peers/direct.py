"""No proxy at all: client and origin on one TCP connection."""

import platform

from harness.cells import Cell

from .base import Site, Started


def start(site: Site) -> Started:
    return Started(platform.release(), [Cell("direct", "tcp", "-")])
