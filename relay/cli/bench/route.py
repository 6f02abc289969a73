"""The way to the origin, from the options of the command line to the form of the load client."""

import base64
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import click

from relay.cli.bench import local
from relay.errors import BenchError

#: How a tunnel of bytes is asked for, and one of datagrams; the last one is what is usual.
MODES = ("direct", "connect", "connect-tcp")
DATAGRAM_MODES = ("direct", "connect-udp")
#: HTTP versions by the scheme of the proxy that serves them.
SCHEMES = {"h1": "http", "h2c": "http", "h1tls": "https", "h2": "https", "h3": "https"}
#: What is measured if nothing is asked for, as far as there is a proxy for it.
USUAL = ("h1", "h1tls", "h2", "h3")


@dataclass(frozen=True)
class Options:
    """What the command line said about the way."""

    modes: tuple[str, ...]
    http: tuple[str, ...]
    proxies: tuple[str, ...]
    ca: Path | None
    insecure: bool
    resume: bool
    token: str | None
    token_file: Path | None
    user: str | None
    template: str | None
    profile: str | None
    target: str | None
    pids: tuple[int, ...]


@dataclass(frozen=True)
class Way:
    """One way to measure: its mode and HTTP version, the client's form of it, and the processes of the gateway."""

    mode: str
    http: str | None
    plan: dict[str, Any]
    pids: tuple[int, ...]

    @property
    def name(self) -> str:
        """Mode and version."""
        return f"{self.mode} {self.http}" if self.http else self.mode


def host_and_port(text: str, option: str) -> tuple[str, int]:
    """Takes ``HOST:PORT`` apart, brackets around an IPv6 address removed."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 <= int(port) <= 65535:
        raise click.UsageError(f"{option}: expected HOST:PORT, not {text}")
    return host, int(port)


def _resolve(host: str, port: int) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BenchError(f"{host}: {error.strerror}") from None
    address = str(found[0][4][0])
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _proxy(url: str) -> tuple[str, dict[str, Any]]:
    """The scheme, and the address and authority of a proxy."""
    fault = click.UsageError(f"--proxy: expected http://HOST:PORT or https://HOST:PORT, not {url}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise fault from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.username:
        raise fault
    address = _resolve(parts.hostname, port or (443 if parts.scheme == "https" else 80))
    return parts.scheme, {"proxy": address, "authority": parts.netloc}


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise click.UsageError(f"{option}: {path}: {reason}") from None


def _roots(options: Options) -> str | None:
    if options.insecure:
        return None
    if options.ca is not None:
        return _read(options.ca, "--ca")
    file = ssl.get_default_verify_paths().cafile
    if file is None or not Path(file).exists():
        raise click.UsageError("--ca FILE says which certificates to trust: this system has no list of its own")
    return _read(Path(file), "--ca")


def _credentials(options: Options) -> str | None:
    if sum(given is not None for given in (options.token, options.token_file, options.user)) > 1:
        raise click.UsageError("expected only one of --token, --token-file and --user")
    if options.user is not None:
        return "Basic " + base64.b64encode(options.user.encode()).decode()
    token = _read(options.token_file, "--token-file").strip() if options.token_file else options.token
    return f"Bearer {token}" if token else None


def _wanted(options: Options, schemes: set[str]) -> Iterator[tuple[str, str | None]]:
    """Pairs of mode and HTTP version."""
    for version in options.http:
        if SCHEMES[version] not in schemes:
            raise click.UsageError(f"--http {version}: needs a --proxy {SCHEMES[version]}://…")
    versions = options.http or tuple(version for version in USUAL if SCHEMES[version] in schemes)
    for mode in dict.fromkeys(options.modes):
        if mode == "direct":
            yield mode, None
        else:
            yield from ((mode, version) for version in dict.fromkeys(versions))


@contextmanager
def ways(options: Options) -> Iterator[list[Way]]:
    """All ways that were asked for; an origin or a relay that was not given lives as long as the block."""
    through = any(mode != "direct" for mode in options.modes)
    if options.http and not through:
        raise click.UsageError("--http goes with a --mode other than direct")
    given = dict(map(_proxy, options.proxies))
    if len(given) < len(options.proxies):
        raise click.UsageError("--proxy: expected at most one http:// and one https:// address")
    common: dict[str, Any] = {"resume": options.resume, "template": options.template, "profile": options.profile}
    common["credentials"] = _credentials(options)
    # Everything that can be wrong with the options is said before anything is started.
    wanted = list(_wanted(options, set(given) if given else {"http", "https"}))
    secure = any(http is not None and SCHEMES[http] == "https" for _, http in wanted)
    target = host_and_port(options.target, "--target") if options.target else None
    roots = _roots(options) if given and secure else None
    pids = options.pids
    with ExitStack() as stack:
        if target is None:
            target = stack.enter_context(local.origin())
        if through and not given:
            if pids:
                raise click.UsageError("--pid goes with --proxy")
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="relay-bench-")))
            relay = stack.enter_context(local.relay(directory))
            # Its certificate is as old as itself: there is nothing to check, and the client costs less.
            pids = (relay.pid,)
            for scheme, (host, port) in relay.proxies.items():
                given[scheme] = {"proxy": f"{host}:{port}", "authority": f"localhost:{port}"}
        common |= {"target_host": target[0], "target_port": target[1]}
        yield [
            Way(
                mode=mode,
                http=http,
                plan={
                    **common,
                    **(given[SCHEMES[http]] if http else {"proxy": None}),
                    "roots": roots if http and SCHEMES[http] == "https" else None,
                    "mode": mode,
                    "http": http,
                },
                pids=pids if http else (),
            )
            for mode, http in wanted
        ]
