"""Squid (Debian): CONNECT over HTTP/1.1, in cleartext and over TLS."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness.cells import Cell
from harness.process import free_address

from .base import Site, Started, from_debian, version_of

NAME = "Squid"
#: User and group of that name in Debian.
NOBODY = (65534, 65534)
CONFIG = """
http_port {clear}
https_port {secure} tls-cert={home}/cert.pem tls-key={home}/key.pem
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
mime_table {home}/mime.conf
icon_directory {home}
error_directory {home}/errors
unlinkd_program {home}/unlinkd
pinger_enable off
netdb_filename none
visible_hostname localhost
shutdown_lifetime 1 seconds
{user}
"""


def readable(site: Site, root: Path) -> Path:
    """A home that Squid can read: started by root it becomes `nobody`, who sees neither the cache nor our files."""
    home = site.home("squid")
    share = root / "usr/share"
    shutil.copy(share / "squid/mime.conf", home)
    shutil.copy(site.certificate, home / "cert.pem")
    shutil.copy(site.key, home / "key.pem")
    shutil.copytree(next((share / "squid-langpack").glob("en")), home / "errors", symlinks=False)
    shutil.copy(root / "usr/lib/squid/unlinkd", home)
    if os.geteuid() == 0:
        site.directory.chmod(0o711)
        for path in [home, *home.rglob("*")]:
            os.chown(path, *NOBODY)
    return home


def start(site: Site) -> Started:
    package = from_debian(site.cache, "squid", "squid-openssl")
    program = package.program("squid")
    home = readable(site, package.root)
    clear, secure = free_address(), free_address()
    config = home / "squid.conf"
    config.write_text(
        CONFIG.format(
            clear=clear,
            secure=secure,
            home=home,
            user="cache_effective_user nobody\ncache_effective_group nogroup" if os.geteuid() == 0 else "",
        )
    )
    # One process that stays in the foreground.
    # Its shared memory is called by the service's name: one of our own.
    command = [program, "-N", "-n", f"relaybench{os.getpid()}", "-f", str(config)]
    pid = site.serve(command, [clear, secure], home, package.environment)
    cells = [Cell(NAME, "h1", "connect", clear, pid), Cell(NAME, "h1tls", "connect", secure, pid)]
    return Started(version_of([program, "-v"], r"Version ([\w.]+)", package.environment), cells)
