"""HAProxy (Debian) as a TCP proxy: spliced in cleartext, and as the end of TLS.

It does not act as a CONNECT proxy by itself. In the TLS cell it ends TLS in TCP mode, and a cleartext CONNECT proxy
behind it, whose CPU is not counted, answers the CONNECT: HAProxy moves the same bytes and does the same cryptography.
"""

from __future__ import annotations

import shutil

from harness.cells import Cell
from harness.process import free_address

from .base import Site, Started, from_debian, version_of

NAME = "HAProxy"
CONFIG = """
global
    maxconn 100
    ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
    mode tcp
    option splice-auto
    timeout connect 10s
    timeout client 60s
    timeout server 60s
listen clear
    bind {clear}
    server origin {origin}
listen secure
    bind {secure} ssl crt {pem} alpn http/1.1
    server behind {behind}
"""


def start(site: Site) -> Started:
    environment: dict[str, str] = {}
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        package = from_debian(site.cache, "haproxy", "haproxy")
        program, environment = package.program("haproxy"), package.environment
    home = site.home("haproxy")
    clear, secure = free_address(), free_address()
    pem = home / "both.pem"
    pem.write_text(site.certificate.read_text() + site.key.read_text())
    config = home / "haproxy.cfg"
    config.write_text(CONFIG.format(clear=clear, secure=secure, origin=site.origin, behind=site.behind, pem=pem))
    pid = site.serve([program, "-db", "-f", str(config)], [clear, secure], home, environment)
    cells = [
        Cell(NAME, "h1", "TCP mode", clear, pid, mode="tcp"),
        Cell(NAME, "h1tls", "connect", secure, pid),
    ]
    return Started(version_of([program, "-v"], r"version ([\w.-]+)", environment), cells, note="TLS-TCP mode in h1 TLS")
