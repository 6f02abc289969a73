"""libcurl as a client of connect-udp: HTTP/3 pages by way of an HTTP/1.1 and an HTTP/2 proxy."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
from peers import http3_origin
from peers.model import TOKEN
from peers.pki import Authority
from peers.process import RelayProcess, StartRelay, until

pycurl: Any = pytest.importorskip("pycurl", reason="pycurl is not installed")
VERSION = re.search(r"libcurl/(\d+)\.(\d+)", pycurl.version)
if VERSION is None or (int(VERSION[1]), int(VERSION[2])) < (8, 21) or "nghttp3" not in pycurl.version:
    pytest.skip(f"this libcurl has no CONNECT-UDP: {pycurl.version}", allow_module_level=True)

SIZE = 3 << 20
# Of libcurl's constants the module does not name this one.
HTTPS2 = 3
FORMS = ["h1", "h1tls", "h2"]


@pytest.fixture(scope="module")
def origin(authority: Authority) -> Iterator[str]:
    with http3_origin.running(*authority.server("origin")) as port:
        yield f"https://127.0.0.1:{port}"


def fetch(relay: RelayProcess, transport: str, url: str, token: str = TOKEN) -> tuple[int, bytes]:
    """The HTTP version of the answer, in libcurl's numbers, and its body."""
    endpoint = relay.endpoint(transport)
    curl, body = pycurl.Curl(), io.BytesIO()
    try:
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_3ONLY)
        curl.setopt(pycurl.PROXY, f"{'http' if transport == 'h1' else 'https'}://{endpoint.authority}")
        curl.setopt(pycurl.HTTPPROXYTUNNEL, 1)
        if transport == "h2":
            curl.setopt(pycurl.PROXYTYPE, HTTPS2)
            # Credentials of its own libcurl puts before `:protocol`, which makes the request malformed.
            curl.setopt(pycurl.PROXYHEADER, [f"Proxy-Authorization: Bearer {token}"])
        else:
            curl.setopt(pycurl.PROXYUSERPWD, f"tester:{token}")
        curl.setopt(pycurl.NOPROXY, "")
        if endpoint.authority_file is not None:
            curl.setopt(pycurl.PROXY_CAINFO, str(endpoint.authority_file))
        curl.setopt(pycurl.CAINFO, str(relay.authority))
        curl.setopt(pycurl.WRITEDATA, body)
        curl.setopt(pycurl.TIMEOUT, 30)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.perform()
        assert curl.getinfo(pycurl.RESPONSE_CODE) == 200
        return curl.getinfo(pycurl.INFO_HTTP_VERSION), body.getvalue()
    finally:
        curl.close()


@pytest.mark.parametrize("transport", FORMS)
async def test_a_page_over_http3(launch: StartRelay, origin: str, transport: str) -> None:
    relay = launch()
    version, body = await asyncio.to_thread(fetch, relay, transport, f"{origin}/{SIZE}")
    assert version == pycurl.CURL_HTTP_VERSION_3
    assert hashlib.sha256(body).hexdigest() == http3_origin.digest(SIZE)
    assert await until(lambda: bool(relay.log()))
    (record,) = relay.log()
    assert (record["protocol"], record["http"]) == ("connect-udp", transport.removesuffix("tls"))
    assert record["bytes_down"] > SIZE
    assert record["datagrams_up"] > 0


@pytest.mark.parametrize("transport", FORMS)
async def test_wrong_credentials(relay: RelayProcess, origin: str, transport: str) -> None:
    with pytest.raises(pycurl.error) as failed:
        await asyncio.to_thread(fetch, relay, transport, f"{origin}/1", "wrong")
    assert "401" in str(failed.value), failed.value
