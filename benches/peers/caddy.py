"""Caddy with its forward proxy (Go modules, pinned in `go/caddy/go.mod`): CONNECT over every HTTP version."""

from __future__ import annotations

from pathlib import Path

from harness.cells import Cell
from harness.process import free_address

from .base import Site, Started, from_go, version_of

NAME = "Caddy"
CONFIG = """
{{
    admin off
    auto_https off
    persist_config off
    order forward_proxy before file_server
    log {{
        level ERROR
    }}
}}
(relay) {{
    forward_proxy {{
        acl {{
            allow 127.0.0.1
        }}
    }}
}}
http://:{clear} {{
    bind 127.0.0.1
    import relay
}}
https://:{secure} {{
    bind 127.0.0.1
    tls {certificate} {key}
    import relay
}}
"""


def start(site: Site) -> Started:
    program = str(from_go(site.cache, Path(__file__).parent / "go" / "caddy", "caddy"))
    home = site.home("caddy")
    clear, secure = free_address(), free_address()
    ports = {"clear": clear.rsplit(":", 1)[1], "secure": secure.rsplit(":", 1)[1]}
    config = home / "Caddyfile"
    config.write_text(CONFIG.format(certificate=site.certificate, key=site.key, **ports))
    environment = {"XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    command = [program, "run", "--config", str(config), "--adapter", "caddyfile"]
    pid = site.serve(command, [clear, secure], home, environment)
    cells = [Cell(NAME, "h1", "connect", clear, pid)]
    cells += [Cell(NAME, transport, "connect", secure, pid) for transport in ("h1tls", "h2", "h3")]
    return Started(version_of([program, "version"], r"(v[\d.]+)", environment), cells)
