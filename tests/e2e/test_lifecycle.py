"""Start, reload, drain, stop: what running tunnels and new ones feel of it."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from peers.flow import Flow
from peers.h1 import H1Session
from peers.h2 import H2Session, H2Tunnel
from peers.h3 import H3Session, H3Tunnel
from peers.matrix import STREAMED, connect, success
from peers.model import CLEAN, TOKEN, Endpoint, Request, tunnel_request
from peers.pki import Authority
from peers.process import RelayProcess, StartRelay, merged, token_line, toml, until
from peers.target import Target, echo, unused_port
from peers.wire import TcpWire, TlsWire

TCP = "connect-tcp-12"


async def open_flow(relay: RelayProcess, transport: str, target: Target, protocol: str = TCP) -> tuple[Any, Flow]:
    session = await connect(relay, transport)
    tunnel = await session.open(tunnel_request(protocol, target.host, target.port))
    assert (await tunnel.answer()).status == success(transport, protocol)
    return session, Flow(tunnel, protocol)


async def exit_code(relay: RelayProcess, timeout: float = 15) -> int:
    assert await until(lambda: not relay.alive, timeout), "still running"
    return relay.wait()


async def refuses_connections(relay: RelayProcess, transport: str) -> bool:
    endpoint = relay.endpoint(transport)
    try:
        wire = await TcpWire.connect(endpoint.host, endpoint.port)
    except OSError:
        return True
    await wire.close()
    return False


async def test_drain_lets_tunnels_end_and_takes_no_new_ones(launch: StartRelay, transport: str, protocol: str) -> None:
    relay = launch(limits={"drain_timeout": "20s"})
    async with Target(echo) as target:
        session, flow = await open_flow(relay, transport, target, protocol)
        await flow.write(b"before")
        assert await flow.read_exactly(6) == b"before"
        relay.signal(signal.SIGTERM)
        if isinstance(session, (H2Session, H3Session)):
            async with asyncio.timeout(5):
                await session.goaway_seen.wait()
        for _ in range(200):
            if transport == "h3" or await refuses_connections(relay, transport):
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("still accepts connections")
        await flow.write(b"during")
        assert await flow.read_exactly(6) == b"during"
        assert relay.alive
        await flow.write_final(b"last")
        assert await flow.read_to_fin() == b"last"
        await flow.end()
        assert await flow.closed() == CLEAN
        assert await exit_code(relay) == 0
        await session.close()
    relay.kill()


async def test_drain_of_an_idle_relay_is_quick(launch: StartRelay, transport: str) -> None:
    relay = launch(limits={"drain_timeout": "20s"})
    session = await connect(relay, transport)
    assert (await session.ask(Request("GET", "/x"))).status == 404
    began = time.monotonic()
    relay.signal(signal.SIGTERM)
    assert await exit_code(relay, 8) == 0
    assert time.monotonic() - began < 8
    await session.close()


# What the target sent and ended cleanly is still on its way to a client that is slow to take it.
@pytest.mark.parametrize("transport", STREAMED)
async def test_drain_waits_for_the_last_bytes(launch: StartRelay, transport: str, protocol: str) -> None:
    relay = launch(limits={"drain_timeout": "20s"})
    size = 200_000
    async with Target() as target:
        if transport == "h3":
            session: Any = await H3Session.connect(relay.endpoint("h3"), answer_window=20_000)
        else:
            session = await H2Session.connect(relay.endpoint(transport), window=20_000)
        flow = Flow(await session.open(tunnel_request(protocol, target.host, target.port)), protocol)
        connection = await target.accept()
        if isinstance(flow.tunnel, H3Tunnel):
            flow.tunnel.stall()
        await flow.write_final(b"all?")
        await flow.end()
        assert await connection.read_to_end() == b"all?"
        await connection.send(b"w" * size)
        await connection.finish()
        relay.signal(signal.SIGTERM)
        assert await until(lambda: "draining" in relay.stderr())
        # Longer than a drain waits for connections on which nothing happens.
        await asyncio.sleep(2.5)
        assert relay.alive
        if isinstance(flow.tunnel, H3Tunnel):
            session.stalled.clear()
            session.protocol.transmit()
        elif isinstance(flow.tunnel, H2Tunnel):
            session.connection.increment_flow_control_window(size, flow.tunnel.stream_id)
            await session.flush()
        assert len(await flow.read_to_fin()) == size
        assert await flow.closed() == CLEAN
        assert await exit_code(relay) == 0
        await session.close()


@pytest.mark.parametrize("transport", ["h1", "h1tls"])
async def test_drain_answers_a_request_that_has_begun(launch: StartRelay, transport: str) -> None:
    relay = launch(limits={"drain_timeout": "20s"})
    session = await connect(relay, transport)
    assert isinstance(session, H1Session)
    assert (await session.ask(Request("GET", "/x"))).status == 404
    await session.wire.send(b"GET /x HT")
    tcp = session.wire.tcp if isinstance(session.wire, TlsWire) else session.wire
    assert isinstance(tcp, TcpWire)
    assert await until(lambda: tcp.unread == 0)
    relay.signal(signal.SIGTERM)
    assert await until(lambda: "draining" in relay.stderr())
    await session.wire.send(b"TP/1.1\r\nHost: a\r\n\r\n")
    received = bytearray()
    while data := await session.wire.recv():
        received += data
    assert received.startswith(b"HTTP/1.1 404 ")
    assert await exit_code(relay, 8) == 0
    await session.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_drain_ends_after_its_grace(launch: StartRelay, transport: str, number: signal.Signals) -> None:
    relay = launch(limits={"drain_timeout": "1s"})
    async with Target() as target:
        session, flow = await open_flow(relay, transport, target)
        connection = await target.accept()
        began = time.monotonic()
        relay.signal(number)
        assert await exit_code(relay) == 0
        assert 0.8 < time.monotonic() - began < 6
        # Cut tunnels are no clean ends: neither side may take what it has for everything.
        await connection.read_to_end()
        assert connection.end is not None
        assert connection.end.kind == "reset"
        assert await flow.closed() != CLEAN
        await session.close()


async def test_a_second_sigterm_closes_at_once(launch: StartRelay, transport: str) -> None:
    relay = launch(limits={"drain_timeout": "60s"})
    async with Target(echo) as target:
        session, flow = await open_flow(relay, transport, target)
        relay.signal(signal.SIGTERM)
        await flow.write(b"still")
        assert await flow.read_exactly(5) == b"still"
        # Two signals of a kind that wait together are one to the process.
        assert await until(lambda: "draining" in relay.stderr())
        began = time.monotonic()
        relay.signal(signal.SIGTERM)
        assert await exit_code(relay) == 0
        assert time.monotonic() - began < 4
        await session.close()


async def test_sighup_takes_a_new_configuration_for_new_connections(
    launch: StartRelay, configuration: dict[str, Any], transport: str
) -> None:
    relay = launch()
    async with Target(echo) as target:
        old, flow = await open_flow(relay, transport, target)
        await flow.write(b"before")
        assert await flow.read_exactly(6) == b"before"
        tokens = relay.folder / "tokens"
        tokens.write_text(token_line("other", "another-token"))
        relay.write(merged(configuration, {"auth": {"tokens_file": tokens}, "policy": {"deny_ports": [25, 9]}}))
        relay.signal(signal.SIGHUP)

        async def status(token: str, port: int) -> int:
            async with await connect(relay, transport) as session:
                return (await session.ask(tunnel_request(TCP, target.host, port, f"Bearer {token}"))).status

        for _ in range(200):
            if await status("another-token", target.port) == success(transport, TCP):
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("the new token is not known")
        assert await status(TOKEN, target.port) == 401
        assert await status("another-token", 9) == 403
        await flow.write(b"after")
        assert await flow.read_exactly(5) == b"after"
        await old.close()
    relay.stop()


async def test_sighup_takes_new_certificates(launch: StartRelay, configuration: dict[str, Any]) -> None:
    relay = launch()
    async with Target(echo) as target:
        sessions = {transport: await open_flow(relay, transport, target) for transport in ("h1tls", "h2", "h3")}
        fresh = Authority(relay.folder, "fresh")
        chain, key = fresh.server("fresh-server")
        listeners = [dict(listener) for listener in configuration["listeners"]]
        listeners[1].update(certificate=chain, private_key=key)
        relay.write({**configuration, "listeners": listeners})
        relay.signal(signal.SIGHUP)
        endpoint = relay.endpoint("h1tls")
        renewed = type(endpoint)(endpoint.host, endpoint.port, fresh.file)
        for _ in range(100):
            try:
                session = await H1Session.connect(renewed)
            except ssl.SSLError:
                await asyncio.sleep(0.05)
                continue
            await session.close()
            break
        else:
            raise AssertionError("the old certificate is still shown")
        for connector in (H2Session.connect, H3Session.connect):
            async with await connector(renewed) as found:
                assert (await found.ask(Request("GET", "/x"))).status == 404
        for session, flow in sessions.values():
            await flow.write(b"running on")
            assert await flow.read_exactly(10) == b"running on"
            await session.close()
    relay.stop()


@pytest.mark.parametrize("fault", ["not toml [", '[auth]\nrealmm = "x"\n', "missing certificate", "another listener"])
async def test_sighup_with_a_bad_file_keeps_the_old_one_and_says_why(
    launch: StartRelay, configuration: dict[str, Any], fault: str
) -> None:
    relay = launch()
    async with Target(echo) as target:
        session, flow = await open_flow(relay, "h2", target)
        said = len(relay.stderr())
        if fault == "missing certificate":
            listeners = [dict(listener) for listener in configuration["listeners"]]
            listeners[1].update(certificate=relay.folder / "none.pem")
            relay.write({**configuration, "listeners": listeners})
        elif fault == "another listener":
            relay.write(
                {
                    **configuration,
                    "listeners": [*configuration["listeners"], {"address": "127.0.0.1:0", "http": ["h1"]}],
                }
            )
        else:
            relay.file.write_text(fault)
        relay.signal(signal.SIGHUP)
        assert await until(lambda: len(relay.stderr()) > said)
        assert "Traceback" not in relay.stderr()
        if fault.startswith("[auth]"):
            assert await until(lambda: "realmm" in relay.stderr())
            assert ":2:" in relay.stderr()
        await flow.write(b"x")
        assert await flow.read_exactly(1) == b"x"
        await session.close()
        new, flow = await open_flow(relay, "h3", target)
        await new.close()
    relay.stop()


BLOCKS = """
import time
def decide(request):
    time.sleep(600)
"""
STUBBORN = """
import asyncio
async def decide(request):
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass
"""


@pytest.mark.parametrize("hook", [BLOCKS, STUBBORN])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_hook_that_does_not_end_holds_up_no_end(
    configuration: dict[str, Any], tmp_path: Path, hook: str, times: int
) -> None:
    (tmp_path / "endless.py").write_text(hook)
    changes = {"policy": {"hook": "endless:decide", "hook_timeout": "200ms"}, "limits": {"drain_timeout": "500ms"}}
    relay = RelayProcess(tmp_path, merged(configuration, changes)).ready()
    async with await connect(relay, "h1") as session:
        assert (await session.ask(tunnel_request("connect", "127.0.0.1", 9))).status == 503
    for _ in range(times):
        relay.signal(signal.SIGTERM)
        assert await until(lambda: "draining" in relay.stderr())
    assert await exit_code(relay, 12) == 0
    relay.kill()


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
async def test_closed_standard_files(configuration: dict[str, Any], tmp_path: Path, closed: tuple[int, ...]) -> None:
    file = tmp_path / "relay.toml"
    port = unused_port()
    listener = {"address": f"127.0.0.1:{port}", "http": ["h1"]}
    file.write_text(toml({**configuration, "listeners": [listener], "log": {"access": "-"}}))
    shell = " ".join(f"{number}<&-" for number in closed)
    command = ["sh", "-c", f'exec "$0" -m relay serve -c "$1" {shell}', sys.executable, str(file)]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        endpoint = Endpoint("127.0.0.1", port)

        async def answers() -> bool:
            try:
                async with await H1Session.connect(endpoint) as session:
                    return (await session.ask(tunnel_request("connect", "127.0.0.1", 25))).status == 403
            except OSError:
                return False

        for _ in range(200):
            if await answers():
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("does not serve")
        process.send_signal(signal.SIGTERM)
        assert await until(lambda: process.poll() is not None, 10)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def test_a_log_that_nobody_reads_is_told_with_the_other_faults(tmp_path: Path, configuration: dict[str, Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        listener = {"address": address, "http": ["h1"]}
        done = serve(tmp_path, toml({**configuration, "listeners": [listener], "log": {"access": "pipe"}}))
    assert done.returncode == 2
    assert "pipe: nobody reads" in done.stderr
    assert address in done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr


def test_a_full_disk_is_one_line(tmp_path: Path, configuration: dict[str, Any]) -> None:
    (tmp_path / "relay.toml").write_text(toml(configuration))
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "relay", "check", "-c", "relay.toml"]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr


def serve(folder: Path, text: str, *arguments: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    """`relay serve` that is expected to give up."""
    file = folder / "relay.toml"
    file.write_text(text)
    command = [sys.executable, "-m", "relay", "serve", "-c", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=timeout, check=False)


def test_a_busy_port_is_one_line_and_exit_code_2(tmp_path: Path, configuration: dict[str, Any]) -> None:
    for kind, http in ((socket.SOCK_STREAM, ["h1", "h2"]), (socket.SOCK_DGRAM, ["h3"])):
        with socket.socket(socket.AF_INET, kind) as busy:
            busy.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                busy.listen()
            port = busy.getsockname()[1]
            listener = {**configuration["listeners"][1], "address": f"127.0.0.1:{port}", "http": http}
            done = serve(tmp_path, toml({**configuration, "listeners": [listener]}))
            assert done.returncode == 2, done
            assert f"127.0.0.1:{port}" in done.stderr
            assert "in use" in done.stderr
            assert "Traceback" not in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
            assert "relay ready" not in done.stdout


def test_a_port_that_another_relay_serves_is_busy_too(
    launch: StartRelay, tmp_path: Path, configuration: dict[str, Any]
) -> None:
    relay = launch()
    for transport in ("h1", "h3"):
        listener = {**configuration["listeners"][1], "address": relay.endpoint(transport).authority}
        done = serve(tmp_path, toml({**configuration, "listeners": [listener]}))
        assert done.returncode == 2, done
        assert "in use" in done.stderr
    relay.stop()


def test_faults_of_files_are_one_line_each(tmp_path: Path, configuration: dict[str, Any], authority: Authority) -> None:
    other_chain, _ = authority.server("other")
    listener = configuration["listeners"][1]
    bad_users = tmp_path / "users"
    bad_users.write_text("alice:$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA\nnot a line\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"listeners": [{**listener, "certificate": tmp_path / "none.pem"}]}, "none.pem"),
        ({"listeners": [{**listener, "private_key": tmp_path / "none.key"}]}, "none.key"),
        ({"listeners": [{**listener, "certificate": other_chain}]}, "key"),
        ({"listeners": [{**listener, "certificate": listener["private_key"]}]}, "certificate"),
        ({"auth": {"users_file": tmp_path / "none"}}, "none"),
        ({"auth": {"users_file": bad_users}}, "users"),
        ({"auth": {"tokens_file": bad_users}}, "users"),
    ]
    for changes, word in cases:
        done = serve(tmp_path, toml(merged(configuration, changes)))
        assert done.returncode == 2, (changes, done)
        assert "Traceback" not in done.stderr
        assert word in done.stderr
        assert "relay.toml:" in done.stderr or "users:" in done.stderr, done.stderr


def test_starts_with_64_descriptors(tmp_path: Path, configuration: dict[str, Any]) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(toml(configuration))
    command = f"ulimit -n 64; exec {sys.executable} -m relay serve -c {file}"
    with subprocess.Popen(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith(b"relay ready:"), process.stderr.read() if process.stderr else b""
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


async def test_descriptors_run_out_and_come_back(launch: StartRelay) -> None:
    relay = launch()
    resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE, (64, 64))
    async with Target(echo) as target:
        async with await connect(relay, "h2") as session:
            tunnels = [await session.open(tunnel_request(TCP, target.host, target.port)) for _ in range(80)]
            answers = [await tunnel.answer() for tunnel in tunnels]
            statuses = {answer.status for answer in answers}
            assert statuses == {200, 503}
            for answer in answers:
                if answer.status == 503:
                    assert "connection_limit_reached" in answer.proxy_status
        assert await until(lambda: not target.connections)
        session, flow = await open_flow(relay, "h1tls", target)
        await flow.write(b"again")
        assert await flow.read_exactly(5) == b"again"
        await session.close()
    relay.stop()


async def test_one_log_line_a_tunnel(launch: StartRelay, transport: str, protocol: str) -> None:
    relay = launch()
    async with Target(echo) as target:
        session, flow = await open_flow(relay, transport, target, protocol)
        await flow.write(b"12345")
        assert await flow.read_exactly(5) == b"12345"
        await flow.write_final()
        assert await flow.read_to_fin() == b""
        await flow.end()
        await flow.closed()
        await session.close()
        assert await until(lambda: len(relay.log()) == 1)
        entry = json.dumps(relay.log()[0])
        assert str(target.port) in entry
        assert "tester" in entry
        assert protocol.removesuffix("-12") in entry
    relay.stop()
    assert len(relay.log()) == 1


@pytest.mark.parametrize("attempt", range(3))
async def test_the_log_has_every_tunnel_that_a_second_sigterm_ended(
    launch: StartRelay, transport: str, attempt: int
) -> None:
    tunnels = 8
    relay = launch(limits={"drain_timeout": "60s"})
    async with Target() as target:
        sessions = [(await open_flow(relay, transport, target))[0] for _ in range(tunnels)]
        relay.signal(signal.SIGTERM)
        assert await until(lambda: "draining" in relay.stderr())
        relay.signal(signal.SIGTERM)
        assert await exit_code(relay) == 0
        assert [record["end"] for record in relay.log()] == ["relay stopping"] * tunnels
        for session in sessions:
            await session.close()
