"""The Python hook as clients feel it: every kind of answer, default deny, time-outs, the cache, and its speed."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hyperframe.frame import WindowUpdateFrame
from peers.h2 import H2Session
from peers.h2raw import RawH2
from peers.matrix import connect, success
from peers.model import TOKEN, Endpoint, tunnel_request
from peers.process import RelayProcess, StartRelay, merged, toml
from peers.target import Target, echo

from relay import Config, Decision, Relay, TunnelRequest

TCP = "connect-tcp-12"

HOOKS = """
import asyncio
import json
import time

from relay import Decision

asked = 0
failures = []


def answer(request):
    global asked
    asked += 1
    host = request.target_host
    if host == "show.test":
        fields = {
            "protocol": request.protocol, "http": request.http, "host": host, "port": request.target_port,
            "principal": request.principal, "client": list(request.client_address), "x": request.headers.get("x-extra"),
        }
        return Decision.deny(json.dumps(fields), status=418)
    if host == "count.test":
        return Decision.deny(f"asked {asked}", status=429)
    if host == "once.test":
        failures.append(host)
        if len(failures) == 1:
            raise RuntimeError("a passing fault")
        return Decision.deny("known now", status=418)
    if host == "raise.test":
        raise RuntimeError("a fault in the hook")
    if host == "nonsense.test":
        return "yes"
    if host == "none.test":
        return None
    if host in ("four.test", "127.0.0.1", "10.0.0.1"):
        return Decision.allow()
    return Decision.deny("not on the list")


async def at_once(request):
    return answer(request)


async def later(request):
    await asyncio.sleep(0.01)
    if request.target_host == "never.test":
        await asyncio.sleep(3600)
    return answer(request)


def plain(request):
    if request.target_host == "never.test":
        time.sleep(5)
    return answer(request)
"""


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the hooks in it."""
    folder = tmp_path_factory.mktemp("hooks")
    (folder / "decisions_for_tests.py").write_text(HOOKS)
    return folder


@pytest.fixture(scope="module", params=["at_once", "later", "plain"])
def asking(request: pytest.FixtureRequest, launch: StartRelay, hooks: Path) -> RelayProcess:
    """A relay that asks a hook of each kind."""
    return launch(
        {"PYTHONPATH": f"{hooks}:{inherited_path()}"},
        policy={"hook": f"decisions_for_tests:{request.param}", "hook_timeout": "600ms"},
    )


def inherited_path() -> str:
    return os.environ.get("PYTHONPATH", "")


CASES = [
    ("show.test", 418, None),
    ("elsewhere.test", 403, "not on the list"),
    ("raise.test", 503, None),
    ("nonsense.test", 503, None),
    ("none.test", 503, None),
    ("10.0.0.1", 403, None),
]


async def test_answers(asking: RelayProcess, transport: str, protocol: str) -> None:
    for host, status, reason in CASES:
        async with await connect(asking, transport) as session:
            answer = await session.ask(tunnel_request(protocol, host, 443).adding(("x-extra", "seen")))
            assert answer.status == status, (host, answer.body)
            if status in (403, 503):
                expected = "destination_ip_prohibited" if host == "10.0.0.1" else "http_request_denied"
                assert expected in answer.proxy_status
            if reason is not None:
                assert reason in json.dumps(answer.problem)
            assert b"Traceback" not in answer.body
            assert b"RuntimeError" not in answer.body
            if host == "show.test":
                shown = json.loads(answer.problem["detail"])
                assert shown["protocol"] == protocol.removesuffix("-12")
                assert shown["http"] == {"h1tls": "h1", "h2c": "h2"}.get(transport, transport)
                assert shown["port"] == 443
                assert shown["principal"] == "tester"
                assert shown["client"][0] == "127.0.0.1"
                assert shown["x"] == "seen"


async def test_allowed_tunnels(asking: RelayProcess, transport: str, protocol: str) -> None:
    async with Target(echo) as target, await connect(asking, transport) as session:
        answer = await session.ask(tunnel_request(protocol, target.host, target.port))
        assert answer.status == success(transport, protocol)


async def test_time_outs_deny_and_hold_up_nobody(asking: RelayProcess, transport: str) -> None:
    async with (
        Target(echo) as target,
        await connect(asking, transport) as slow,
        await connect(asking, transport) as quick,
    ):
        began = time.monotonic()
        waiting = asyncio.create_task(slow.ask(tunnel_request(TCP, "never.test", 443)))
        await asyncio.sleep(0)
        answer = await quick.ask(tunnel_request(TCP, target.host, target.port))
        assert answer.status == success(transport, TCP)
        assert time.monotonic() - began < 0.55
        answer = await waiting
        if "at_once" in asking.file.read_text():
            assert answer.status == 403
            return
        assert answer.status == 503
        assert "http_request_denied" in answer.proxy_status
        assert 0.55 < time.monotonic() - began < 3


async def test_a_fault_of_the_hook_is_logged_once(asking: RelayProcess) -> None:
    async with await connect(asking, "h2") as session:
        for _ in range(20):
            assert (await session.ask(tunnel_request(TCP, "raise.test", 443))).status == 503
    assert 1 <= asking.stderr().count("a fault in the hook") <= 3


async def test_unauthenticated_requests_are_not_asked_about(asking: RelayProcess) -> None:
    async def asked() -> int:
        async with await connect(asking, "h2") as session:
            answer = await session.ask(tunnel_request(TCP, "count.test", 443))
            assert answer.status == 429
            return int(answer.problem["detail"].split()[-1])

    before = await asked()
    async with await connect(asking, "h2") as session:
        for _ in range(10):
            assert (await session.ask(tunnel_request(TCP, "four.test", 443, credentials=None))).status == 401
            assert (await session.ask(tunnel_request(TCP, "bad host", 443))).status == 400
            assert (await session.ask(tunnel_request(TCP, "four.test", 25))).status == 403
    assert await asked() == before + 1


async def test_decisions_are_remembered_when_asked_to(launch: StartRelay, hooks: Path) -> None:
    relay = launch(
        {"PYTHONPATH": f"{hooks}:{inherited_path()}"},
        workers=1,
        policy={"hook": "decisions_for_tests:at_once", "hook_cache": "1s"},
    )

    async def asked(port: int) -> str:
        async with await connect(relay, "h2") as session:
            answer = await session.ask(tunnel_request(TCP, "count.test", port))
            return str(answer.problem["detail"])

    first = await asked(443)
    assert await asked(443) == first
    assert await asked(444) != first
    # A failure of the hook is no decision: nothing to remember.
    async with await connect(relay, "h2") as session:
        assert (await session.ask(tunnel_request(TCP, "once.test", 443))).status == 503
        assert (await session.ask(tunnel_request(TCP, "once.test", 443))).status == 418
    for _ in range(60):
        if await asked(443) != first:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("remembered for too long")
    relay.stop()


@pytest.mark.parametrize(
    "hook", ["missing_module:f", "decisions_for_tests:missing", "decisions_for_tests:asked", "nocolon"]
)
def test_a_hook_that_cannot_be_had(configuration: dict[str, Any], hooks: Path, tmp_path: Path, hook: str) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(toml(merged(configuration, {"policy": {"hook": hook}})))
    done = subprocess.run(
        [sys.executable, "-m", "relay", "serve", "-c", str(file)],
        capture_output=True,
        text=True,
        cwd=hooks,
        timeout=20,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{hooks}:{inherited_path()}"},
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "policy.hook" in done.stderr


class Blaster:
    """Requests at a rate that shows the relay's speed and not the client's: one field section, sent over and over."""

    def __init__(self, endpoint: Endpoint, host: str) -> None:
        self.endpoint, self.host = endpoint, host

    async def run(self, total: int, batch: int) -> None:
        async with await RawH2.connect(self.endpoint) as session:
            headers = session.tunnel(443, self.host)
            assert dict(headers)["authorization"] == f"Bearer {TOKEN}"
            session.encoder.header_table_size = 0
            template = session.headers(1, headers, end=True)
            await session.send(WindowUpdateFrame(0, 1 << 30).serialize())
            stream_id, buffer = 1, bytearray()
            for _ in range(total // batch):
                data = bytearray()
                for _ in range(batch):
                    data += template[:5] + stream_id.to_bytes(4, "big") + template[9:]
                    stream_id += 2
                await session.send(bytes(data))
                answered = 0
                while answered < batch:
                    piece = await session.wire.recv()
                    assert piece, "the connection ended"
                    buffer += piece
                    at, size = 0, len(buffer)
                    while size - at >= 9:
                        end = at + 9 + int.from_bytes(buffer[at : at + 3], "big")
                        if end > size:
                            break
                        kind, flags = buffer[at + 3], buffer[at + 4]
                        answered += kind in (0, 1) and flags & 1
                        assert kind not in (3, 7), bytes(buffer[at:end])
                        at = end
                    del buffer[:at]


async def rate(endpoint: Endpoint, host: str, total: int) -> float:
    """Answers a second, over two connections."""
    began = time.perf_counter()
    await asyncio.gather(*(Blaster(endpoint, host).run(total // 2, 100) for _ in range(2)))
    return total / (time.perf_counter() - began)


async def latency(session: H2Session, host: str, count: int = 300) -> float:
    """The median time of an answer, one request at a time, in seconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await session.ask(tunnel_request(TCP, host, 443))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def test_five_thousand_decisions_a_second(
    launch: StartRelay, hooks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = launch({"PYTHONPATH": f"{hooks}:{inherited_path()}"}, policy={"hook": "decisions_for_tests:at_once"})
    # Without a hook the same request is refused by a rule.
    unasked = launch(policy={"rules": [{"action": "deny", "hosts": ["elsewhere.test"]}]})
    best, runs = 0.0, 0
    while best < 5000 and runs < 5:
        best = max(best, await rate(asked.endpoint("h2c"), "elsewhere.test", 10_000))
        runs += 1
    async with await connect(asked, "h2c") as session:
        # Every one of these answers was the hook's own.
        answer = await session.ask(tunnel_request(TCP, "count.test", 443))
        assert answer.problem["detail"] == f"asked {runs * 10_000 + 1}"
    async with await connect(asked, "h2c") as with_hook, await connect(unasked, "h2c") as without:
        assert isinstance(with_hook, H2Session)
        assert isinstance(without, H2Session)
        pairs = [
            (await latency(with_hook, "elsewhere.test"), await latency(without, "elsewhere.test")) for _ in range(3)
        ]
    added = min(hooked - bare for hooked, bare in pairs)
    with capsys.disabled():
        print(f"\n  hook: {best:,.0f} decisions/s, added latency {added * 1e6:,.0f} µs (median of single requests)")
    assert best >= 5000
    asked.stop()
    unasked.stop()


async def test_a_relay_in_a_running_loop(configuration: dict[str, Any], tmp_path: Path) -> None:
    # No process of its own: the application's loop decides and talks through the tunnel at once.
    file = tmp_path / "relay.toml"
    file.write_text(toml(merged(configuration, {"log": {"access": "access.log"}})))
    seen: list[TunnelRequest] = []

    async def decide(request: TunnelRequest) -> Decision:
        seen.append(request)
        await asyncio.sleep(0)
        return Decision.allow() if request.target_port != 1 else Decision.deny("one is none", status=451)

    authority = configuration["listeners"][1]["certificate"].parent / "ca.pem"
    async with Relay(Config.load(file), decide=decide) as relay, Target(echo) as target:
        secure = next(address for address in relay.addresses if address.tls)
        endpoint = Endpoint(secure.host, secure.port, authority)
        async with await H2Session.connect(endpoint) as session:
            tunnel = await session.open(tunnel_request("connect", target.host, target.port))
            assert (await tunnel.answer()).status == 200
            await tunnel.send(b"hello")
            assert await tunnel.recv_exactly(5) == b"hello"
            assert (await session.ask(tunnel_request("connect", target.host, 1))).status == 451
        assert [request.target_port for request in seen] == [target.port, 1]
        assert isinstance(relay.stats(), dict)
        await relay.drain(1)
