"""Who may use the relay: users file, tokens, TLS client certificates; and how a fault in them is answered."""

from __future__ import annotations

import asyncio
import base64
import ssl
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from peers.flow import Flow
from peers.h1 import H1Session
from peers.h2 import H2Session
from peers.h3 import H3Session
from peers.matrix import connect, success
from peers.model import Answer, Endpoint, tunnel_request
from peers.pki import Authority
from peers.process import RelayProcess, StartRelay, until
from peers.target import Target, echo

TCP = "connect-tcp-12"


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A users file, written by the relay's own command."""
    file = tmp_path_factory.mktemp("users") / "users"
    for name, password in (("alice", "correct horse"), ("bob", "pass:with:colons"), ("carol", "pässwörd")):
        command = [sys.executable, "-m", "relay", "auth", "user", str(file), name]
        done = subprocess.run(
            command, input=f"{password}\n".encode(), capture_output=True, cwd=file.parent, check=False
        )
        assert done.returncode == 0, done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    return file


@pytest.fixture(scope="module")
def guarded(launch: StartRelay, users: Path) -> RelayProcess:
    """A relay with users and tokens, where only some principals may reach loopback."""
    return launch(
        auth={"users_file": users, "realm": "the realm"},
        policy={
            "allow_networks": [],
            "rules": [
                {"action": "allow", "principals": ["alice", "tester"], "networks": ["127.0.0.0/8"]},
                {"action": "deny", "principals": ["bob"]},
            ],
        },
    )


async def try_tunnel(relay: RelayProcess, transport: str, protocol: str, credentials: str | None) -> Answer:
    async with Target(echo) as target, await connect(relay, transport) as session:
        return await session.ask(tunnel_request(protocol, target.host, target.port, credentials))


async def test_users(guarded: RelayProcess, transport: str, protocol: str) -> None:
    challenge = 407 if protocol == "connect" else 401
    cases = [
        (basic("alice", "correct horse"), success(transport, protocol)),
        (basic("alice", "correct horsE"), challenge),
        (basic("alice", ""), challenge),
        (basic("nobody", "correct horse"), challenge),
        (basic("bob", "pass:with:colons"), 403),
        (basic("carol", "pässwörd"), 403),
        (None, challenge),
    ]
    for credentials, status in cases:
        answer = await try_tunnel(guarded, transport, protocol, credentials)
        assert answer.status == status, credentials
        if status == challenge:
            found = " ".join(value for name, value in answer.headers if name.endswith("-authenticate"))
            assert 'realm="the realm"' in found


def new_token(file: Path) -> str:
    """`relay auth token`: the token is the last line of its output, and only its digest is kept."""
    command = [sys.executable, "-m", "relay", "auth", "token", str(file), "ci"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=file.parent, check=False)
    assert done.returncode == 0, done.stderr
    token = done.stdout.splitlines()[-1]
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    return token


async def test_a_token_made_by_the_command(launch: StartRelay, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token = new_token(file)
    relay = launch(auth={"tokens_file": file})
    for credentials in (f"Bearer {token}", basic("ci", token)):
        assert (await try_tunnel(relay, "h2", TCP, credentials)).status == 200
    assert (await try_tunnel(relay, "h2", TCP, f"Bearer {token}x")).status == 401
    relay.stop()


async def test_password_checks_hold_nobody_up(guarded: RelayProcess) -> None:
    # argon2id takes tens of milliseconds of a core each; tunnels of others must not feel it.
    async with (
        Target(echo) as target,
        await connect(guarded, "h2") as session,
        await connect(guarded, "h2") as attacker,
    ):
        flow = Flow(await session.open(tunnel_request(TCP, target.host, target.port)), TCP)
        await flow.write(b"x")
        await flow.read_exactly(1)
        guesses = [
            asyncio.create_task(
                attacker.ask(tunnel_request(TCP, target.host, target.port, basic("alice", f"guess {n}")))
            )
            for n in range(40)
        ]
        times = []
        while not all(task.done() for task in guesses):
            began = time.perf_counter()
            await flow.write(b"x")
            await flow.read_exactly(1)
            times.append(time.perf_counter() - began)
        statuses = {(await task).status for task in guesses}
        assert statuses <= {401, 503}
        times.sort()
        # Two checks at once share the cores with the relay and with this test: a wait for the
        # scheduler is possible, a wait for a queue of forty checks is not.
        assert times[int(len(times) * 0.9)] < 0.1


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of client certificates."""
    return Authority(tmp_path_factory.mktemp("clients"), "clients")


@pytest.fixture(scope="module")
def certified(launch: StartRelay, clients: Authority, server_certificate: tuple[Path, Path]) -> RelayProcess:
    """A relay that asks for client certificates."""
    chain, key = server_certificate
    return launch(
        listeners=[
            {
                "address": "127.0.0.1:0",
                "http": ["h1", "h2", "h3"],
                "certificate": chain,
                "private_key": key,
                "client_ca": clients.file,
                "client_auth": "optional",
            }
        ],
        policy={
            "allow_networks": [],
            "rules": [{"action": "allow", "principals": ["dave.test", "erin", "tester"], "networks": ["127.0.0.0/8"]}],
        },
    )


async def session_at(endpoint: Endpoint, transport: str) -> H1Session | H2Session | H3Session:
    if transport == "h1tls":
        return await H1Session.connect(endpoint)
    if transport == "h2":
        return await H2Session.connect(endpoint)
    return await H3Session.connect(endpoint)


@pytest.mark.parametrize("transport", ["h1tls", "h2", "h3"])
async def test_client_certificates_name_the_principal(
    certified: RelayProcess, clients: Authority, transport: str, protocol: str
) -> None:
    challenge = 407 if protocol == "connect" else 401
    cases: list[tuple[tuple[Path, Path] | None, int]] = [
        (
            clients.issue("dave", names=("dave.test", "other.test"), common_name="not this", client=True),
            success(transport, protocol),
        ),
        (clients.issue("erin", common_name="erin", client=True), success(transport, protocol)),
        (clients.issue("mallory", names=("mallory.test",), common_name="erin", client=True), 403),
        (None, challenge),
    ]
    async with Target(echo) as target:
        for certificate, status in cases:
            endpoint = replace(certified.endpoint(transport), client_certificate=certificate)
            async with await session_at(endpoint, transport) as session:
                answer = await session.ask(tunnel_request(protocol, target.host, target.port, credentials=None))
                assert answer.status == status, certificate


TURNED_AWAY = (ssl.SSLError, ConnectionError, AssertionError, TimeoutError)


async def status_at(endpoint: Endpoint, transport: str) -> int:
    """The answer to a request with no other credentials than the certificate, if any."""
    async with asyncio.timeout(5), await session_at(endpoint, transport) as session:
        return (await session.ask(tunnel_request(TCP, "127.0.0.1", 9, credentials=None))).status


@pytest.mark.parametrize("transport", ["h1tls", "h2", "h3"])
async def test_foreign_client_certificates_get_nowhere(certified: RelayProcess, tmp_path: Path, transport: str) -> None:
    foreign = Authority(tmp_path, "foreign").issue("dave", names=("dave.test",), client=True)
    endpoint = replace(certified.endpoint(transport), client_certificate=foreign)
    with pytest.raises(TURNED_AWAY):
        await status_at(endpoint, transport)


@pytest.mark.parametrize("transport", ["h1tls", "h2", "h3"])
async def test_a_required_client_certificate(
    launch: StartRelay, clients: Authority, server_certificate: tuple[Path, Path], transport: str
) -> None:
    chain, key = server_certificate
    listener = {
        "address": "127.0.0.1:0",
        "http": ["h1", "h2", "h3"],
        "certificate": chain,
        "private_key": key,
        "client_ca": clients.file,
        "client_auth": "required",
    }
    relay = launch(listeners=[listener])
    with pytest.raises(TURNED_AWAY):
        await status_at(relay.endpoint(transport), transport)
    certificate = clients.issue("frank", names=("frank.test",), client=True)
    endpoint = replace(relay.endpoint(transport), client_certificate=certificate)
    async with Target(echo) as target, await session_at(endpoint, transport) as session:
        answer = await session.ask(tunnel_request(TCP, target.host, target.port, credentials=None))
        assert answer.status == success(transport, TCP)
    relay.stop()


async def test_the_access_log_names_the_principal(guarded: RelayProcess) -> None:
    async with Target(echo) as target:
        port = target.port
        async with await connect(guarded, "h2") as session:
            tunnel = await session.open(tunnel_request(TCP, target.host, port, basic("alice", "correct horse")))
            assert (await tunnel.answer()).status == 200
            await tunnel.abort()
    assert await until(lambda: any(str(port) in str(entry) and "alice" in str(entry) for entry in guarded.log()))
    for entry in guarded.log():
        assert "correct horse" not in str(entry)


async def test_tunnels_per_principal_are_bounded(launch: StartRelay) -> None:
    relay = launch(limits={"max_tunnels_per_principal": 5})
    async with Target(echo) as target, await connect(relay, "h2") as session, await connect(relay, "h3") as other:
        tunnels = [await session.open(tunnel_request(TCP, target.host, target.port)) for _ in range(5)]
        for tunnel in tunnels:
            assert (await tunnel.answer()).status == 200
        for full in (session, other):
            answer = await full.ask(tunnel_request(TCP, target.host, target.port))
            assert answer.status in (429, 503)
            assert "connection_limit_reached" in answer.proxy_status
        await tunnels[0].abort()

        async def freed() -> bool:
            return (await other.ask(tunnel_request(TCP, target.host, target.port))).status == 200

        for _ in range(100):
            if await freed():
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("the place of an ended tunnel stays taken")
    relay.stop()
