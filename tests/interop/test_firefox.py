"""Firefox loads an HTTP/3 page through connect-udp over HTTP/3, told to by an extension as its users would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peers import http3_origin
from peers.firefox import PROGRAM, firefox
from peers.model import TOKEN
from peers.pki import Authority
from peers.process import StartRelay
from peers.udp import TEMPLATE

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Firefox is not installed")

NAME = "four.test"
SIZE = 1 << 20
FETCH = """
return fetch(arguments[0])
    .then(answer => answer.arrayBuffer())
    .then(body => crypto.subtle.digest("SHA-256", body))
    .then(digest => Array.from(new Uint8Array(digest), byte => byte.toString(16).padStart(2, "0")).join(""));
"""
MANIFEST: dict[str, object] = {
    "manifest_version": 2,
    "name": "Through the relay",
    "version": "1",
    "permissions": ["proxy", "<all_urls>"],
    "background": {"scripts": ["background.js"]},
    "browser_specific_settings": {"gecko": {"id": "relay@example.test"}},
}


@pytest.mark.timeout(120)
async def test_a_page_over_http3(launch: StartRelay, authority: Authority, tmp_path: Path) -> None:
    relay = launch()
    endpoint = relay.endpoint("h3")
    proxy = {
        "type": "masque",
        "host": "localhost",
        "port": endpoint.port,
        "masqueTemplate": TEMPLATE,
        "proxyAuthorizationHeader": f"Bearer {TOKEN}",
    }
    chain, key = authority.issue("page", names=(NAME,))
    with http3_origin.running(chain, key) as port:
        preferences: dict[str, object] = {
            # The page is nowhere but at this port over HTTP/3; an authority of one's own would turn HTTP/3 off.
            "network__http__http3__alt-svc-mapping-for-testing": f"{NAME};h3=:{port}",
            "network__http__http3__force-use-alt-svc-mapping-for-testing": True,
            "network__http__http3__disable_when_third_party_roots_found": False,
        }
        async with firefox(tmp_path, **preferences) as browser:
            await browser.trust(authority.file)
            await browser.install(
                MANIFEST,
                f"""browser.proxy.onRequest.addListener(() => ({json.dumps(proxy)}), {{urls: ["https://{NAME}/*"]}});""",
            )
            await browser.open(f"https://{NAME}:{port}/hello")
            assert await browser.run("return document.title;") == "hello over HTTP/3"
            protocol = await browser.run("return performance.getEntriesByType('navigation')[0].nextHopProtocol;")
            assert protocol == "h3"
            assert await browser.run(FETCH, f"/{SIZE}") == http3_origin.digest(SIZE)
    # Firefox leaves its connections without a word.
    relay.stop()
    records = [record for record in relay.log() if record["status"] == 200]
    assert records, relay.log()
    for record in records:
        assert (record["protocol"], record["http"]) == ("connect-udp", "h3")
        assert record["target"] == f"{NAME}:{port}"
    # The page came through the tunnel, and not past it.
    assert sum(record["bytes_down"] for record in records) > SIZE
