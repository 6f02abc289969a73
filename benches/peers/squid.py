"""Squid (Debian): CONNECT over HTTP/1.1, in cleartext and over TLS."""

from __future__ import annotations

import os

from harness.cells import Cell
from harness.process import free_address

from .base import Site, Started, from_debian, version_of

NAME = "Squid"
CONFIG = """
http_port {clear}
https_port {secure} tls-cert={certificate} tls-key={key}
acl CONNECT method CONNECT
http_access allow CONNECT
http_access deny all
cache deny all
cache_mem 8 MB
memory_pools on
access_log none
cache_log {home}/cache.log
cache_store_log none
pid_filename none
coredump_dir {home}
mime_table {root}/usr/share/squid/mime.conf
icon_directory {root}/usr/share/squid/icons
error_directory {errors}
unlinkd_program {root}/usr/lib/squid/unlinkd
pinger_enable off
netdb_filename none
visible_hostname localhost
shutdown_lifetime 1 seconds
{user}
"""


def start(site: Site) -> Started:
    package = from_debian(site.cache, "squid", "squid-openssl")
    program = package.program("squid")
    home = site.home("squid")
    clear, secure = free_address(), free_address()
    texts = package.root / "usr/share/squid/errors/templates"
    config = home / "squid.conf"
    config.write_text(
        CONFIG.format(
            clear=clear,
            secure=secure,
            certificate=site.certificate,
            key=site.key,
            home=home,
            root=package.root,
            errors=texts,
            # Started by root it would become `proxy`, which may not exist and may not read what we wrote.
            user="cache_effective_user root" if os.geteuid() == 0 else "",
        )
    )
    # One process that stays in the foreground.
    pid = site.serve([program, "-N", "-f", str(config)], [clear, secure], home, package.environment)
    cells = [Cell(NAME, "h1", "connect", clear, pid), Cell(NAME, "h1tls", "connect", secure, pid)]
    return Started(version_of([program, "-v"], r"Version ([\w.]+)", package.environment), cells)
