"""What ``relay serve --dev`` needs: a throw-away certificate, a token, and a page to fetch."""

import asyncio
import secrets
import shlex
from pathlib import Path

from relay import _native
from relay.auth import files
from relay.config import Auth, Config, Listener, Policy, Rule

_NAME = "dev"
_PAGE = b"""<!doctype html>
<title>capsule-relay</title>
<p>It works: this page came through the relay.</p>
"""


class DemoPage:
    """A small HTTP/1.1 server on a loopback port of its own that has one page."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> "DemoPage":
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0, limit=16 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
                method = head.partition(b" ")[0]
                status = b"200 OK" if method in (b"GET", b"HEAD") else b"405 Method Not Allowed"
                page = _PAGE if method == b"GET" else b""
                writer.write(
                    b"HTTP/1.1 %s\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n"
                    b"Connection: close\r\n\r\n%s" % (status, len(_PAGE) if method == b"HEAD" else len(page), page)
                )
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()


def prepare(directory: Path, port: int, page_port: int) -> tuple[Config, str]:
    """Writes certificate, key and tokens file; returns a configuration on loopback and the token."""
    certificate, key = directory / "relay.pem", directory / "relay.key"
    chain, private = _native.throwaway_certificate(["localhost", "127.0.0.1", "::1"])
    certificate.write_text(chain)
    key.touch(mode=0o600)
    key.write_text(private)
    token = secrets.token_urlsafe(18)
    files.write_entry(directory / "tokens", _NAME, _native.hash_token(token))
    config = Config(
        listeners=[Listener(address=f"127.0.0.1:{port}", certificate=certificate, private_key=key)],
        auth=Auth(tokens_file=directory / "tokens"),
        policy=Policy(rules=[Rule(action="allow", networks=["127.0.0.1/32"], ports=[str(page_port)])]),
    )
    return config, token


def curl_lines(proxy: str, directory: Path, token: str, page_port: int) -> list[str]:
    """Commands to paste: the page, and the page with the relay's own answer before it."""
    arguments = [
        *("--proxy", proxy.removesuffix("/")),
        *("--proxy-cacert", str(directory / "relay.pem")),
        *("--proxy-user", f"{_NAME}:{token}"),
        *("--noproxy", ""),
        *("-p", f"http://127.0.0.1:{page_port}/"),
    ]
    return [shlex.join(["curl", *arguments]), shlex.join(["curl", "--include", *arguments])]
