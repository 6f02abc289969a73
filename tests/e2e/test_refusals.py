"""Every refusal: its status, Proxy-Status, challenge and problem document, and what it does to the connection."""

from __future__ import annotations

import base64

import pytest
from peers.h1 import H1Session
from peers.matrix import STREAMED, TRANSPORTS, connect, success
from peers.model import TOKEN, Answer, Request, path_to, tunnel_request
from peers.process import RelayProcess, StartRelay
from peers.target import BlackHole, Target, echo, unused_port

TCP = "connect-tcp-12"
GOOD = ("authorization", f"Bearer {TOKEN}")


# = connect-tcp §4.2 proxy-status
# = rfc9297 §3.4 field-statuses
# = rfc9297 §3.2 only-after-success
def shows(answer: Answer, status: int, error: str | None = None) -> None:
    """The shape that all refusals share."""
    assert answer.status == status, (answer.status, answer.headers, answer.body)
    if error is not None:
        assert f"error={error}" in answer.proxy_status.replace(" ", ""), answer.proxy_status
    problem = answer.problem
    assert problem["status"] == status
    assert problem["title"]
    assert answer.get("capsule-protocol") is None
    assert answer.get("proxy-status") is not None


# = connect-tcp §3.3.2 challenge-401
# = rfc9110 §15.5.2 challenge-401
# = rfc9110 §15.5.8 challenge-407
async def test_without_credentials(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with await connect(relay, transport) as session:
        answer = await session.ask(tunnel_request(protocol, "127.0.0.1", 9, credentials=None))
        if protocol == "connect":
            shows(answer, 407)
            challenge, other = answer.headers, answer.get("www-authenticate")
            assert any(name == "proxy-authenticate" for name, _ in challenge)
        else:
            shows(answer, 401)
            challenge, other = answer.headers, answer.get("proxy-authenticate")
            assert any(name == "www-authenticate" for name, _ in challenge)
        assert other is None
        schemes = " ".join(value for name, value in challenge if name.endswith("-authenticate")).lower()
        assert 'realm="relay"' in schemes


BAD_CREDENTIALS = [
    "Bearer wrong",
    "Bearer",
    f"Token {TOKEN}",
    "Basic !!!!",
    "Basic " + base64.b64encode(b"no colon").decode(),
    "Basic " + base64.b64encode(b"tester:wrong").decode(),
    "Basic " + base64.b64encode(b"nobody:" + TOKEN.encode()[:-1]).decode(),
    "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
    "",
    "x" * 4000,
]


@pytest.mark.parametrize("credentials", BAD_CREDENTIALS)
async def test_bad_credentials(relay: RelayProcess, transport: str, protocol: str, credentials: str) -> None:
    async with await connect(relay, transport) as session:
        answer = await session.ask(
            tunnel_request(protocol, "127.0.0.1", 9, credentials=None).adding(("authorization", credentials))
        )
        shows(answer, 407 if protocol == "connect" else 401)


@pytest.mark.parametrize("field", ["authorization", "proxy-authorization"])
@pytest.mark.parametrize(
    "credentials",
    [f"Bearer {TOKEN}", f"bearer {TOKEN}", "Basic " + base64.b64encode(f"tester:{TOKEN}".encode()).decode()],
)
async def test_good_credentials_in_either_field(
    relay: RelayProcess, transport: str, protocol: str, field: str, credentials: str
) -> None:
    async with Target(echo) as target, await connect(relay, transport) as session:
        request = tunnel_request(protocol, target.host, target.port, credentials=None).adding((field, credentials))
        assert (await (await session.open(request)).answer()).status == success(transport, protocol)


async def test_credentials_come_before_the_target_s_faults(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with await connect(relay, transport) as session:
        if protocol == "connect":
            request = Request("CONNECT", authority="127.0.0.1:0")
        else:
            request = Request("GET", path_to("a b", "0"), TCP)
        answer = await session.ask(request)
        assert answer.status == (407 if protocol == "connect" else 401)


async def test_an_unmatched_path_is_404_to_everybody(relay: RelayProcess, transport: str) -> None:
    for headers in ([], [GOOD]):
        for path in (
            "/",
            "/index.html",
            "/.well-known/masque/tcp/",
            "/.well-known/masque/tcp/a/1",
            "/.well-known/masque/tcp/a/1/x",
        ):
            async with await connect(relay, transport) as session:
                shows(await session.ask(Request("GET", path, headers=list(headers))), 404)
                shows(await session.ask(Request("GET", path, TCP, headers=list(headers))), 404)


FAULTY = [
    ("127.0.0.1", "0"),
    ("127.0.0.1", "65536"),
    ("127.0.0.1", "99999999999999999999"),
    ("127.0.0.1", "+80"),
    ("127.0.0.1", "-1"),
    ("127.0.0.1", "80a"),
    ("127.0.0.1", "%2080"),
    ("a b", "80"),
    ("a/b", "80"),
    ("a?b", "80"),
    ("a#b", "80"),
    ("user@host", "80"),
    ("a,b", "80"),
    ("a\x00b", "80"),
    ("a\r\nX: y", "80"),
    ("[::1]", "80"),
    ("fe80::1%eth0", "80"),
    (":::1", "80"),
    ("x" * 256, "80"),
    ("x" * 64 + ".test", "80"),
    ("a..b", "80"),
    ("0x7f.1", "80"),
    ("127.1", "80"),
    ("2130706433", "80"),
    ("é.test", "80"),
    ("*", "*"),
]


# = connect-tcp §3.1 refuse-with-4xx
# = connect-tcp §3.2 nonconforming-is-client-error
# = rfc9298 §3 target-host
# = rfc9298 §3 target-port
# = rfc9298 §3.1 bad-request
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("host", "port"), FAULTY)
async def test_faulty_targets_in_a_template(relay: RelayProcess, transport: str, host: str, port: str) -> None:
    async with await connect(relay, transport) as session:
        shows(await session.ask(Request("GET", path_to(host, port), TCP, headers=[GOOD])), 400)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("path", ["/.well-known/masque/tcp//80/", "/.well-known/masque/tcp/host//"])
async def test_empty_variables(relay: RelayProcess, transport: str, path: str) -> None:
    async with await connect(relay, transport) as session:
        answer = await session.ask(Request("GET", path, TCP, headers=[GOOD]))
        shows(answer, answer.status)
        assert answer.status in (400, 404)


# = rfc9298 §3 percent-encoding
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("host", ["%", "%2", "%zz", "%C3%28", "%00"])
async def test_bad_percent_encoding(relay: RelayProcess, transport: str, host: str) -> None:
    async with await connect(relay, transport) as session:
        shows(await session.ask(Request("GET", f"/.well-known/masque/tcp/{host}/80/", TCP, headers=[GOOD])), 400)


FAULTY_AUTHORITIES = [
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:0",
    "127.0.0.1:65536",
    "127.0.0.1:+80",
    ":80",
    "user@127.0.0.1:80",
    "::1:80",
    "[::1:80",
    "[::1%25eth0]:80",
    "127.1:80",
]


# = rfc9110 §9.3.6 connect-authority-form
# = rfc9112 §3.2.3 authority-form
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("written", FAULTY_AUTHORITIES)
async def test_faulty_targets_of_connect(relay: RelayProcess, transport: str, written: str) -> None:
    async with await connect(relay, transport) as session:
        request = Request("CONNECT", authority=written, headers=[("proxy-authorization", f"Bearer {TOKEN}")])
        tunnel = await session.open(request)
        try:
            answer = await tunnel.answer()
        except ConnectionResetError:
            # A pseudo-header that is no authority at all may also be a malformed request: a stream error.
            assert transport in STREAMED
            assert tunnel.end is not None
            assert tunnel.end.kind == "reset"
            assert tunnel.end.code in (0x1, 0x10E)
            return
        assert answer.status == 400
        if answer.body:
            shows(answer, 400)


async def test_private_targets_are_forbidden(relay: RelayProcess, transport: str, protocol: str) -> None:
    hosts = [
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "fe80::1",
        "fc00::1",
        "::",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::1",
        "ff02::1",
        "private.test",
    ]
    for host in hosts:
        async with await connect(relay, transport) as session:
            shows(await session.ask(tunnel_request(protocol, host, 80)), 403, "destination_ip_prohibited")


async def test_refused_addresses_leave_the_race(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with Target(echo) as target, await connect(relay, transport) as session:
        answer = await (await session.open(tunnel_request(protocol, "mixed.test", target.port))).answer()
        assert answer.status == success(transport, protocol)
        assert 'next-hop="127.0.0.1"' in answer.proxy_status


# = rfc9110 §9.3.6 connect-restrict
async def test_forbidden_ports(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with await connect(relay, transport) as session:
        shows(await session.ask(tunnel_request(protocol, "127.0.0.1", 25)), 403, "http_request_denied")


# = connect-tcp §3.1 no-switch-without-connection
# = rfc9209 §2.1.1 error-most-specific
# = rfc9209 §2.1.1 error-status
async def test_connection_refused(relay: RelayProcess, transport: str, protocol: str) -> None:
    async with await connect(relay, transport) as session:
        shows(await session.ask(tunnel_request(protocol, "127.0.0.1", unused_port())), 502, "connection_refused")


@pytest.fixture(scope="module")
def hasty(launch: StartRelay) -> RelayProcess:
    """A relay that gives a target half a second."""
    return launch(egress={"dial_timeout": "500ms"})


async def test_connection_timeout(hasty: RelayProcess, transport: str, protocol: str) -> None:
    with BlackHole() as hole:
        async with await connect(hasty, transport) as session:
            shows(await session.ask(tunnel_request(protocol, "127.0.0.1", hole.port)), 504, "connection_timeout")


NAMES = [
    ("unknown.test", 502, "dns_error", "NXDOMAIN"),
    ("servfail.test", 502, "dns_error", "SERVFAIL"),
    ("refused.test", 502, "dns_error", "REFUSED"),
    ("nothing.test", 502, "dns_error", None),
    ("silent.test", 504, "dns_timeout", None),
]


@pytest.mark.parametrize(("name", "status", "error", "rcode"), NAMES)
async def test_names_that_do_not_resolve(
    hasty: RelayProcess, transport: str, protocol: str, name: str, status: int, error: str, rcode: str | None
) -> None:
    async with await connect(hasty, transport) as session:
        answer = await session.ask(tunnel_request(protocol, name, 80))
        shows(answer, status, error)
        if rcode is not None:
            assert f'rcode="{rcode}"' in answer.proxy_status.replace(" ", "")


# = rfc9110 §15.5.22 upgrade-required
@pytest.mark.parametrize("transport", ["h1", "h1tls"])
async def test_a_template_without_upgrade_is_426(relay: RelayProcess, transport: str) -> None:
    async with await connect(relay, transport) as session:
        answer = await session.ask(Request("GET", path_to("127.0.0.1", 80), headers=[GOOD]))
        shows(answer, 426)
        assert "connect-tcp-12" in (answer.get("upgrade") or "")
        assert "upgrade" in (answer.get("connection") or "").lower()


# = rfc9110 §15.5.6 method-not-allowed
# = connect-tcp §3.1 h1-method
# = connect-tcp §3.2 method-connect
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_other_methods_on_a_template_are_405(relay: RelayProcess, transport: str, method: str) -> None:
    async with await connect(relay, transport) as session:
        answer = await session.ask(Request(method, path_to("127.0.0.1", 80), headers=[GOOD]))
        assert answer.status == 405
        assert answer.get("allow")
        assert answer.proxy_status
        if method == "HEAD":
            assert answer.body == b""
        else:
            assert answer.problem["status"] == 405


# = rfc9110 §9.1 unknown-method
async def test_unknown_methods_are_501(relay: RelayProcess, transport: str) -> None:
    async with await connect(relay, transport) as session:
        shows(await session.ask(Request("FROBNICATE", path_to("127.0.0.1", 80), headers=[GOOD])), 501)


# = rfc9220 §3 unknown-protocol
@pytest.mark.parametrize("transport", STREAMED)
async def test_unknown_protocols_are_501(relay: RelayProcess, transport: str) -> None:
    async with await connect(relay, transport) as session:
        for token in ("websocket", "connect-ip", "x"):
            shows(await session.ask(Request("GET", path_to("127.0.0.1", 80), token, headers=[GOOD])), 501)


@pytest.mark.parametrize("transport", ["h1", "h1tls"])
async def test_an_unknown_upgrade_token_on_h1(relay: RelayProcess, transport: str) -> None:
    async with await connect(relay, transport) as session:
        answer = await session.ask(Request("GET", path_to("127.0.0.1", 80), "websocket", headers=[GOOD]))
        shows(answer, answer.status)
        assert answer.status in (426, 501)


# = connect-tcp §5.2 templated-only-answers
async def test_a_templated_only_relay_says_so(templated_only: RelayProcess, transport: str) -> None:
    async with await connect(templated_only, transport) as session:
        answer = await session.ask(tunnel_request("connect", "127.0.0.1", 80))
        if transport in STREAMED:
            shows(answer, 501)
        else:
            shows(answer, 426)
            assert "connect-tcp-12" in (answer.get("upgrade") or "")


# = connect-tcp §3.1 no-switch-without-connection
# = rfc9931 §3 refused-upgrade-goes-on
@pytest.mark.parametrize("transport", ["h1", "h1tls"])
async def test_h1_stays_usable_after_a_refused_upgrade(relay: RelayProcess, transport: str) -> None:
    async with Target(echo) as target, await connect(relay, transport) as session:
        for request, status in [
            (tunnel_request(TCP, "127.0.0.1", 80, credentials=None), 401),
            (tunnel_request(TCP, "127.0.0.1", unused_port()), 502),
            (tunnel_request(TCP, "10.0.0.1", 80), 403),
            (Request("GET", "/nowhere"), 404),
            (Request("GET", path_to("127.0.0.1", 80), headers=[GOOD]), 426),
            (Request("GET", path_to("127.0.0.1", "0"), TCP, headers=[GOOD]), 400),
            (tunnel_request(TCP, "unknown.test", 80), 502),
            (tunnel_request(TCP, target.host, target.port), 101),
        ]:
            assert (await session.ask(request)).status == status


# = rfc9931 §8 close-after-refused-connect
@pytest.mark.parametrize("transport", ["h1", "h1tls"])
async def test_h1_closes_after_a_refused_connect(relay: RelayProcess, transport: str) -> None:
    refused = [
        tunnel_request("connect", "127.0.0.1", 80, credentials=None),
        tunnel_request("connect", "127.0.0.1", unused_port()),
        tunnel_request("connect", "10.0.0.1", 80),
        Request("CONNECT", authority="127.0.0.1:0", headers=[("proxy-authorization", f"Bearer {TOKEN}")]),
    ]
    for request in refused:
        session = await connect(relay, transport)
        assert isinstance(session, H1Session)
        async with session:
            tunnel = await session.open(request)
            answer = await tunnel.answer()
            assert answer.status >= 400
            assert "close" in (answer.get("connection") or "").lower()
            assert await session.wire.recv() == b""


# = rfc9931 §8 close-after-refused-connect
@pytest.mark.parametrize("transport", ["h1", "h1tls"])
async def test_nothing_after_a_refused_connect_is_taken_for_a_request(relay: RelayProcess, transport: str) -> None:
    # RFC 9931: what follows a refused CONNECT was meant for the target, perhaps chosen by an attacker.
    async with Target() as target:
        session = await connect(relay, transport)
        assert isinstance(session, H1Session)
        async with session:
            smuggled = (
                f"CONNECT 127.0.0.1:{target.port} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer {TOKEN}\r\n\r\n"
            )
            tunnel = await session.open(tunnel_request("connect", "10.0.0.1", 80), optimistic=smuggled.encode())
            answer = await tunnel.answer()
            assert answer.status == 403
            rest = tunnel.rest
            while data := await session.wire.recv():
                rest += data
            assert rest == b"", "a second answer"
        with pytest.raises(TimeoutError):
            await target.accept(timeout=0.2)


async def test_other_requests_get_404(relay: RelayProcess, transport: str) -> None:
    async with await connect(relay, transport) as session:
        for method in ("GET", "POST", "HEAD", "DELETE"):
            answer = await session.ask(Request(method, "/anything?x=1"))
            assert answer.status == 404
            if method != "HEAD":
                assert answer.problem["status"] == 404
