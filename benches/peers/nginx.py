"""nginx (Debian) with its stream module: TCP in cleartext, and as the end of TLS, like HAProxy in `haproxy.py`."""

from __future__ import annotations

from harness.cells import Cell
from harness.process import free_address

from .base import Site, Started, from_debian, version_of

NAME = "nginx"
CONFIG = """
load_module {root}/usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
worker_processes auto;
pid {home}/nginx.pid;
error_log stderr error;
events {{ worker_connections 256; }}
stream {{
    proxy_buffer_size 64k;
    proxy_half_close on;
    server {{
        listen {clear};
        proxy_pass {origin};
    }}
    server {{
        listen {secure} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        proxy_pass {behind};
    }}
}}
"""


def start(site: Site) -> Started:
    package = from_debian(site.cache, "nginx", "nginx", "libnginx-mod-stream")
    program = package.program("nginx")
    home = site.home("nginx")
    clear, secure = free_address(), free_address()
    config = home / "nginx.conf"
    config.write_text(
        CONFIG.format(
            root=package.root,
            home=home,
            clear=clear,
            secure=secure,
            origin=site.origin,
            behind=site.behind,
            certificate=site.certificate,
            key=site.key,
        )
    )
    command = [program, "-p", str(home), "-e", "stderr", "-c", str(config)]
    pid = site.serve(command, [clear, secure], home, package.environment)
    cells = [
        Cell(NAME, "h1", "TCP mode", clear, pid, mode="tcp"),
        Cell(NAME, "h1tls", "connect", secure, pid),
    ]
    version = version_of([program, "-v"], r"nginx/([\d.]+)", package.environment)
    return Started(version, cells, note="TLS-TCP mode in h1 TLS")
