"""`relay.Client`: TCP and UDP through a relay over every HTTP version, as asyncio streams and datagrams."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import socket
import ssl
import struct
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from peers.model import TOKEN
from peers.pki import Authority
from peers.process import RelayProcess, StartRelay, until
from peers.target import BlackHole, Target, echo, unused_port
from peers.udp import UdpTarget

from relay import Client, ClientError, ProxyUnreachable, RelayError, TunnelEnded, TunnelRefused

#: What stands for a transport in the client's arguments.
HTTP = {"h1": "h1", "h1tls": "h1", "h2": "h2", "h2c": "h2", "h3": "h3"}
TCP = pytest.mark.parametrize("tcp", ["connect-tcp-12", "connect-tcp-07", "connect"])


def client(relay: RelayProcess, transport: str, **options: Any) -> Client:
    endpoint = relay.endpoint(transport)
    scheme = "https" if endpoint.authority_file else "http"
    options = {"token": TOKEN, "ca": endpoint.authority_file, "http": HTTP[transport], **options}
    return Client(f"{scheme}://{endpoint.authority}/", **options)


def end(relay: RelayProcess, transport: str) -> None:
    """The end of the relay's process, such that the kernel or the relay itself tells of it."""
    if transport == "h3":
        relay.stop()
    else:
        relay.kill()


# Byte streams.


@TCP
async def test_bytes_and_half_closes(relay: RelayProcess, transport: str, tcp: str) -> None:
    async with Target(echo) as target, client(relay, transport, tcp=tcp) as proxy:
        reader, writer = await proxy.open_tcp(target.host, target.port)
        assert proxy.http == HTTP[transport]
        assert isinstance(reader, asyncio.StreamReader)
        writer.write(b"hello")
        await writer.drain()
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"bye")
        writer.write_eof()
        assert await reader.read() == b"bye"
        assert reader.at_eof()
        writer.close()
        await writer.wait_closed()


async def test_the_target_may_end_first(relay: RelayProcess, transport: str) -> None:
    async with Target() as target, client(relay, transport) as proxy:
        reader, writer = await proxy.open_tcp("localhost", target.port)
        connection = await target.accept()
        await connection.send(b"only this")
        await connection.finish()
        assert await reader.read() == b"only this"
        for piece in (b"and", b"still", b"on"):
            writer.write(piece)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert await connection.read_to_end() == b"andstillon"
        assert connection.end is not None
        assert connection.end.kind == "clean"


async def test_a_close_leaves_nothing_behind_unsent(relay: RelayProcess, transport: str) -> None:
    payload = random.Random(1).randbytes(2_000_000)
    async with Target() as target:
        async with client(relay, transport) as proxy:
            _, writer = await proxy.open_tcp(target.host, target.port)
            connection = await target.accept()
            writer.write(payload)
            writer.close()
            reading = asyncio.ensure_future(connection.read_to_end())
        # The client is gone before the target has ended its direction.
        assert await reading == payload


@TCP
async def test_a_reset_is_no_end_of_file(relay: RelayProcess, transport: str, tcp: str) -> None:
    async with Target() as target, client(relay, transport, tcp=tcp) as proxy:
        reader, writer = await proxy.open_tcp(target.host, target.port)
        connection = await target.accept()
        await connection.send(b"before")
        assert await reader.readexactly(6) == b"before"
        await connection.abort()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        with pytest.raises(OSError):  # noqa: PT011, PT012
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        writer.close()


async def test_what_is_left_unread_resets_the_target(relay: RelayProcess, transport: str) -> None:
    async with Target() as target, client(relay, transport) as proxy:
        reader, writer = await proxy.open_tcp(target.host, target.port, limit=1)
        connection = await target.accept()
        sending = asyncio.ensure_future(connection.send(bytes(30_000_000)))
        await reader.readexactly(1)
        writer.close()
        with pytest.raises(OSError):  # noqa: PT011
            await sending


async def test_the_proxy_s_end_is_no_end_of_file(launch: StartRelay, transport: str) -> None:
    relay = launch()
    async with Target() as target, client(relay, transport, connect_timeout=1.5) as proxy:
        reader, writer = await proxy.open_tcp(target.host, target.port)
        await target.accept()
        end(relay, transport)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with pytest.raises(ProxyUnreachable):
            await proxy.open_tcp(target.host, target.port)


async def test_a_closed_client_cuts_its_tunnels_off(relay: RelayProcess, transport: str) -> None:
    async with Target() as target, UdpTarget() as datagrams:
        async with client(relay, transport) as proxy:
            reader, writer = await proxy.open_tcp(target.host, target.port)
            udp = await proxy.open_udp(datagrams.host, datagrams.port)
            connection = await target.accept()
        with pytest.raises(ConnectionResetError, match="client was closed"):
            await reader.read()
        with pytest.raises(TunnelEnded, match="client was closed"):
            await udp.receive()
        writer.close()
        udp.close()
        await connection.read_to_end()
        assert connection.end is not None
        assert connection.end.kind == "reset"
        with pytest.raises(RelayError, match="closed"):
            await proxy.open_tcp(target.host, target.port)
        await proxy.aclose()


async def test_tls_inside_a_tunnel(
    relay: RelayProcess, transport: str, authority: Authority, server_certificate: tuple[Path, Path]
) -> None:
    heard = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(5))
        heard.set_result(await reader.read())
        writer.close()

    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(*server_certificate)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ours)
    payload = random.Random(3).randbytes(1_000_000)
    async with server:
        async with client(relay, transport) as proxy:
            reader, writer = await proxy.open_tcp("127.0.0.1", server.sockets[0].getsockname()[1])
            await writer.start_tls(ssl.create_default_context(cafile=authority.file), server_hostname="localhost")
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.write(payload)
            writer.close()
        assert await heard == payload


async def test_a_reset_under_tls(
    relay: RelayProcess, authority: Authority, server_certificate: tuple[Path, Path]
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(5))
        await writer.drain()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(*server_certificate)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ours)
    async with server, client(relay, "h2") as proxy:
        reader, writer = await proxy.open_tcp("127.0.0.1", server.sockets[0].getsockname()[1])
        await writer.start_tls(ssl.create_default_context(cafile=authority.file), server_hostname="localhost")
        writer.write(b"hello")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


@pytest.mark.timeout(90)
async def test_much_both_ways(relay: RelayProcess, transport: str) -> None:
    size = 48_000_000
    async with Target(echo) as target, client(relay, transport) as proxy:
        reader, writer = await proxy.open_tcp(target.host, target.port)
        sent, received = hashlib.sha256(), hashlib.sha256()

        async def send() -> None:
            numbers = random.Random(7)
            for _ in range(size // 1_000_000):
                piece = numbers.randbytes(1_000_000)
                sent.update(piece)
                writer.write(piece)
                await writer.drain()
            writer.write_eof()

        sending = asyncio.ensure_future(send())
        length = 0
        while data := await reader.read(1 << 18):
            received.update(data)
            length += len(data)
        await sending
        assert (length, received.digest()) == (size, sent.digest())
        writer.close()


async def test_a_slow_reader_holds_the_target_back(relay: RelayProcess, transport: str) -> None:
    async with Target() as target, client(relay, transport) as proxy:
        _, writer = await proxy.open_tcp(target.host, target.port)
        connection = await target.accept()
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await connection.send(bytes(65536))
                sent += 65536

        flooding = asyncio.ensure_future(flood())
        before = -1
        # Until nothing has moved for a while.
        while before != sent:
            before = sent
            await asyncio.sleep(0.5)
        assert sent < 40_000_000
        flooding.cancel()
        writer.transport.abort()


@pytest.mark.timeout(90)
async def test_many_tunnels_at_once(relay: RelayProcess, transport: str) -> None:
    async def one(number: int) -> None:
        reader, writer = await proxy.open_tcp(target.host, target.port)
        payload = random.Random(number).randbytes(20_000)
        writer.write(payload)
        writer.write_eof()
        assert await reader.read() == payload
        writer.close()
        await writer.wait_closed()

    async with Target(echo) as target, client(relay, transport) as proxy:
        await asyncio.gather(*(one(number) for number in range(200)))
        assert target.accepted == 200


# Refusals and other failures.


async def test_a_refusal_says_why(relay: RelayProcess, transport: str) -> None:
    async with client(relay, transport) as proxy:
        with pytest.raises(TunnelRefused) as caught:
            await proxy.open_tcp("127.0.0.1", unused_port())
        assert (caught.value.status, caught.value.error) == (502, "connection_refused")
        assert "proxy-status" in dict(caught.value.headers)
        assert "502" in str(caught.value)
        assert "connection_refused" in str(caught.value)
        with pytest.raises(TunnelRefused) as caught:
            await proxy.open_udp("10.0.0.1", 53)
        assert (caught.value.status, caught.value.error) == (403, "destination_ip_prohibited")
        with pytest.raises(TunnelRefused) as caught:
            await proxy.open_tcp("nowhere.test", 80)
        assert caught.value.error == "dns_error"
        assert isinstance(caught.value, OSError)
        # The connection is none the worse for it.
        async with Target(echo) as target:
            _, writer = await proxy.open_tcp(target.host, target.port)
            writer.close()


@TCP
async def test_credentials(relay: RelayProcess, transport: str, tcp: str) -> None:
    for options in ({"token": None}, {"token": "wrong"}, {"token": None, "user": "me", "password": "wrong"}):
        async with client(relay, transport, tcp=tcp, **options) as proxy:
            with pytest.raises(TunnelRefused) as caught:
                await proxy.open_tcp("127.0.0.1", 1)
            assert caught.value.status == (407 if tcp == "connect" else 401)


async def test_a_user_with_a_password(launch: StartRelay, tmp_path: Path) -> None:
    users = tmp_path / "users"
    command = [sys.executable, "-m", "relay", "auth", "user", str(users), "ana"]
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
    await process.communicate("pä:ss".encode())
    assert process.returncode == 0
    relay = launch(auth={"users_file": users})
    async with Target(echo) as target, client(relay, "h2", token=None, user="ana", password="pä:ss") as proxy:
        _, writer = await proxy.open_tcp(target.host, target.port)
        writer.close()


@pytest.mark.parametrize("http", [None, "h1", "h2", "h3"])
async def test_a_proxy_that_is_not_there(http: str | None) -> None:
    url = f"https://127.0.0.1:{unused_port()}"
    async with Client(url, http=http, connect_timeout=1.5) as proxy:  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            results = await asyncio.gather(
                *(proxy.open_tcp("example.com", 443) for _ in range(20)), return_exceptions=True
            )
        assert {type(result) for result in results} == {ProxyUnreachable}
        assert url in str(results[0])


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_does_not_answer(scheme: str) -> None:
    with BlackHole() as hole:
        async with Client(f"{scheme}://127.0.0.1:{hole.port}", http="h1", connect_timeout=0.3) as proxy:
            async with asyncio.timeout(10):
                with pytest.raises(ProxyUnreachable):
                    await proxy.open_tcp("example.com", 443)


async def test_a_proxy_that_speaks_no_tls() -> None:
    async with Target() as silent:
        url = f"https://{silent.host}:{silent.port}"
        async with Client(url, http="h1", connect_timeout=0.3) as proxy, asyncio.timeout(10):
            with pytest.raises(ProxyUnreachable):
                await proxy.open_tcp("example.com", 443)


async def test_a_proxy_without_a_name() -> None:
    async with Client("https://nowhere.invalid") as proxy:
        with pytest.raises(ProxyUnreachable, match=r"nowhere\.invalid"):
            await proxy.open_tcp("example.com", 443)


@pytest.mark.parametrize("transport", ["h1tls", "h2", "h3"])
async def test_a_certificate_that_nobody_vouches_for(relay: RelayProcess, transport: str) -> None:
    for http in (HTTP[transport], None):
        async with client(relay, transport, ca=None, http=http) as proxy:
            with pytest.raises(ProxyUnreachable, match=r"(?i)certificate|UnknownIssuer|unknown CA"):
                await proxy.open_tcp("127.0.0.1", 1)


async def test_the_system_s_certificates(relay: RelayProcess, authority: Authority) -> None:
    endpoint = relay.endpoint("h2")
    program = (
        "import asyncio\nfrom relay import Client, TunnelRefused\n"
        "async def main():\n"
        f"    async with Client('https://{endpoint.authority}', http='h2') as client:\n"
        "        try:\n            await client.open_tcp('localhost', 1)\n"
        "        except TunnelRefused as refused:\n            print(refused.status)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "SSL_CERT_FILE": str(authority.file)}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=environment, stdout=pipe)
    assert (await process.communicate())[0] == b"401\n"


async def test_a_cancelled_request_is_abandoned(relay: RelayProcess, transport: str) -> None:
    with BlackHole() as hole:
        target = f"127.0.0.1:{hole.port}"

        def records() -> list[dict[str, Any]]:
            return [record for record in relay.log() if record["target"] == target]

        async with client(relay, transport) as proxy:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await proxy.open_tcp("127.0.0.1", hole.port)
            assert await until(lambda: len(records()) > 0)
            assert records()[0]["end"] == "client gone before the answer"


async def test_targets_that_cannot_be(relay: RelayProcess) -> None:
    async with client(relay, "h2") as proxy:
        for host, port in (("", 1), ("a b", 1), ("[::1]", 1), ("fe80::1%eth0", 1), ("host", 0), ("host", 65536)):
            with pytest.raises(ValueError, match="target"):
                await proxy.open_tcp(host, port)


# Connections.


@pytest.mark.parametrize("transport", ["h2", "h2c", "h3"])
async def test_tunnels_share_a_connection_that_is_replaced_when_it_ends(launch: StartRelay, transport: str) -> None:
    relay = launch()
    endpoint = relay.endpoint(transport)
    async with Target(echo) as target, client(relay, transport) as proxy:
        # At once: an attempt to connect is shared, too.
        opened = await asyncio.gather(*(proxy.open_tcp(target.host, target.port) for _ in range(3)))
        writers = [writer for _, writer in opened]
        for writer in writers:
            writer.close()
            await writer.wait_closed()
        relay.stop()
        records = relay.log()
        assert len(records) == 3
        assert len({record["client"] for record in records}) == 1
        again = launch(listeners=[{**listener, "address": address} for listener, address in listeners_of(relay)])
        assert again.endpoint(transport).port == endpoint.port
        reader, writer = await proxy.open_tcp(target.host, target.port)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


def listeners_of(relay: RelayProcess) -> list[tuple[dict[str, Any], str]]:
    """The listeners of a relay with the ports they had."""
    listeners = tomllib.loads(relay.file.read_text())["listeners"]
    return [(listener, endpoint.authority) for listener, (_, endpoint) in zip(listeners, relay.endpoints, strict=True)]


@pytest.mark.parametrize("transport", ["h2", "h3"])
async def test_a_connection_that_drains_is_asked_no_more(launch: StartRelay, transport: str) -> None:
    relay = launch()
    async with Target(echo) as target, client(relay, transport, connect_timeout=2) as proxy:
        reader, writer = await proxy.open_tcp(target.host, target.port)
        relay.signal(signal.SIGTERM)
        # GOAWAY was heard, or the port is closed: either way there is nobody to ask any more.
        with pytest.raises(ClientError):  # noqa: PT012
            while True:
                _, other = await proxy.open_tcp(target.host, target.port)
                other.close()
                await asyncio.sleep(0.02)
        # What is open goes on.
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_any_version_will_do(launch: StartRelay, configuration: dict[str, Any]) -> None:
    tls = configuration["listeners"][1]
    offers = {"h3": ["h1", "h2", "h3"], "h2": ["h1", "h2"], "h1": ["h1"]}
    for expected, http in offers.items():
        relay = launch(listeners=[{**tls, "http": http}])
        async with Target(echo) as target, client(relay, "h1tls", http=None) as proxy:
            for _ in range(2):
                _, writer = await proxy.open_tcp(target.host, target.port)
                assert proxy.http == expected
                writer.close()


async def test_a_cleartext_proxy_is_spoken_to_in_h1(relay: RelayProcess) -> None:
    async with Target(echo) as target, client(relay, "h1", http=None) as proxy:
        _, writer = await proxy.open_tcp(target.host, target.port)
        assert proxy.http == "h1"
        writer.close()


async def test_own_templates(launch: StartRelay) -> None:
    template = "/t?h={target_host}&p={target_port}"
    relay = launch(
        protocols={"connect-tcp": {"template": template}, "connect-udp": {"template": template.replace("/t", "/u")}}
    )
    options = {"tcp_template": template, "udp_template": template.replace("/t", "/u")}
    async with Target(echo) as target, UdpTarget(echo=True) as datagrams, client(relay, "h2", **options) as proxy:
        _, writer = await proxy.open_tcp(target.host, target.port)
        writer.close()
        async with await proxy.open_udp(datagrams.host, datagrams.port) as udp:
            await udp.send(b"x")
            assert await udp.receive() == b"x"


# Datagrams.


async def test_datagrams_of_every_size(relay: RelayProcess, transport: str) -> None:
    sizes = [0, 1, 1200] if transport == "h3" else [0, 1, 1200, 1400, 9000, 65_507]
    async with (
        UdpTarget(echo=True) as target,
        client(relay, transport) as proxy,
        await proxy.open_udp(target.host, target.port) as udp,
    ):
        for size in sizes:
            payload = random.Random(size).randbytes(size)
            await udp.send(bytearray(payload) if size % 2 else memoryview(payload))
            assert await udp.receive() == payload, size
        assert udp.dropped == (0, 0)
        with pytest.raises(ValueError, match="at most 65527"):
            await udp.send(bytes(65_528))


async def test_a_loop_in_debug_mode(relay: RelayProcess) -> None:
    loop = asyncio.get_running_loop()
    debug = loop.get_debug()
    loop.set_debug(True)
    try:
        async with (
            UdpTarget(echo=True) as target,
            client(relay, "h2") as proxy,
            await proxy.open_udp(target.host, target.port) as udp,
        ):
            receiving = asyncio.ensure_future(udp.receive())
            await asyncio.sleep(0)
            await udp.send(b"hello")
            assert await receiving == b"hello"
    finally:
        loop.set_debug(debug)


async def test_what_fits_no_quic_datagram_is_dropped_and_counted(relay: RelayProcess) -> None:
    async with (
        UdpTarget(echo=True) as target,
        client(relay, "h3") as proxy,
        await proxy.open_udp(target.host, target.port) as udp,
    ):
        await udp.send(bytes(60_000))
        await udp.send(b"fits")
        assert await udp.receive() == b"fits"
        assert udp.dropped == (1, 0)


async def test_a_burst_of_datagrams(relay: RelayProcess, transport: str) -> None:
    async with (
        UdpTarget() as target,
        client(relay, transport) as proxy,
        await proxy.open_udp(target.host, target.port) as udp,
    ):
        payloads = [random.Random(n).randbytes(n % 7 * 150) for n in range(40)]
        for payload in payloads:
            await udp.send(payload)
        arrived = [await target.receive() for _ in payloads]
        assert sorted(data for data, _ in arrived) == sorted(payloads)
        for payload in payloads:
            target.send(payload, arrived[0][1])
        assert sorted([await udp.receive() for _ in payloads]) == sorted(payloads)


async def test_datagrams_that_nobody_receives_are_dropped(relay: RelayProcess, transport: str) -> None:
    async with (
        UdpTarget() as target,
        client(relay, transport) as proxy,
        await proxy.open_udp(target.host, target.port) as udp,
    ):
        await udp.send(b"who")
        _, source = await target.receive()
        for _ in range(200):
            for _ in range(10):
                target.send(bytes(1200), source)
            await asyncio.sleep(0)
            if udp.dropped[1]:
                break
        else:
            assert await until(lambda: udp.dropped[1] > 0)
        assert udp.dropped[0] == 0
        assert await udp.receive() == bytes(1200)


async def test_a_closed_tunnel_wakes_who_waits(relay: RelayProcess, transport: str) -> None:
    async with UdpTarget() as target, client(relay, transport) as proxy:
        udp = await proxy.open_udp(target.host, target.port)
        receiving = asyncio.ensure_future(udp.receive())
        await asyncio.sleep(0)
        await udp.send(b"last")
        udp.close()
        with pytest.raises(TunnelEnded):
            await receiving
        for call in (udp.receive(), udp.send(b"x")):
            with pytest.raises(TunnelEnded, match="closed"):
                await call
        udp.close()
        assert (await target.receive())[0] == b"last"


async def test_a_tunnel_of_datagrams_ends_with_the_proxy(launch: StartRelay, transport: str) -> None:
    relay = launch()
    async with UdpTarget() as target, client(relay, transport) as proxy:
        udp = await proxy.open_udp(target.host, target.port)
        end(relay, transport)
        with pytest.raises(TunnelEnded):
            await udp.receive()
        with pytest.raises(TunnelEnded):  # noqa: PT012
            while True:
                await udp.send(b"x")
                await asyncio.sleep(0)
