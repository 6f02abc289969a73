"""`Client` without a proxy or with the simplest one: arguments, its life, loops, forks, ends of interpreters."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit.tunnels import echo, make_config, run

from relay import Client, ClientError, ProxyMisbehaved, ProxyUnreachable, Relay, RelayError


@pytest.mark.parametrize(
    ("proxy", "expected"),
    [
        ("proxy.example", "a proxy is https://"),
        ("ftp://proxy.example", "a proxy is https://"),
        ("https://", "a proxy is https://"),
        ("https://proxy.example/path", "without a path"),
        ("https://proxy.example/?q", "without a path"),
        ("https://me:secret@proxy.example", "credentials do not belong"),
        ("https://proxy.example:0", "port 0"),
        ("https://proxy.example:http", "a proxy is https://"),
        ("https://proxy.example:65536", "a proxy is https://"),
    ],
)
def test_what_is_no_proxy(proxy: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        Client(proxy)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("proxy", "url"),
    [
        ("https://proxy.example", "https://proxy.example/"),
        ("https://proxy.example:443/", "https://proxy.example/"),
        ("http://Proxy.Example:8080", "http://proxy.example:8080/"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443/"),
        ("https://bücher.example", "https://xn--bcher-kva.example/"),
    ],
)
def test_what_is_one(proxy: str, url: str) -> None:
    assert repr(Client(proxy, token="secret")) == f"<Client {url}>"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"token": "a", "user": "b", "password": "c"}, "not both"),
        ({"token": "a b"}, "visible ASCII"),
        ({"token": ""}, "visible ASCII"),
        ({"user": "b"}, "go together"),
        ({"user": "a:b", "password": "c"}, "no colon"),
        ({"http": "h3"}, "needs an https proxy"),
        ({"connect_timeout": 0}, "more than nothing"),
        ({"connect_timeout": float("nan")}, "more than nothing"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Client("http://proxy.example", **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"http": "h4"}, "h1, h2 or h3"),
        ({"tcp": "connect-tcp-99"}, "unknown protocol"),
        ({"tcp": "connect", "tcp_template": "/{target_host}/{target_port}"}, "has no template"),
        ({"udp_template": "/{target_host}/"}, "target_port"),
    ],
)
def test_arguments_that_show_at_the_start(options: dict[str, Any], expected: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=expected):
            await Client("https://proxy.example", **options).start()

    run(main)


def test_authorities(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            await Client("https://proxy.example", ca=tmp_path / "nowhere").start()
        empty = tmp_path / "empty"
        empty.write_text("")
        with pytest.raises(ValueError, match="ca: holds no PEM certificate"):
            await Client("https://proxy.example", ca=[empty]).start()

    run(main)


def test_a_client_is_used_once_and_in_order() -> None:
    async def main() -> None:
        client = Client("http://127.0.0.1:1")
        with pytest.raises(RelayError, match="not started"):
            await client.open_tcp("localhost", 1)
        await client.aclose()
        async with client:
            assert client.http is None
            with pytest.raises(RelayError, match="started before"):
                await client.start()
            with pytest.raises(ProxyUnreachable, match=r"http://127\.0\.0\.1:1/: .*refused"):
                await client.open_tcp("localhost", 1)
        await client.aclose()
        with pytest.raises(RelayError, match="closed"):
            await client.open_udp("localhost", 1)

    run(main)


def test_who_waits_when_a_client_is_closed() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with server, Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
            waiting = asyncio.ensure_future(client.open_tcp("localhost", 1))
            await asyncio.sleep(0)
            await client.aclose()
            with pytest.raises(ClientError):
                await waiting

    run(main)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 101 X\r\nupgrade: y\r\n\r\n"]
)
def test_what_is_no_answer(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
            with pytest.raises(ProxyMisbehaved):
                await client.open_tcp("localhost", 1)

    run(main)


async def through(relay: Relay, port: int, size: int = 3_000_000) -> None:
    """Bytes there and back."""
    async with Client(relay.addresses[0].url) as client:
        reader, writer = await client.open_tcp("127.0.0.1", port)
        payload = os.urandom(size)
        writer.write(payload)
        writer.write_eof()
        assert await reader.read() == payload
        writer.close()
        await writer.wait_closed()


def test_bytes_under_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with echo() as port, Relay(make_config()) as relay:
            await through(relay, port)
            async with Client(relay.addresses[0].url) as client:
                reader, _ = await client.open_tcp("127.0.0.1", port)
                await client.aclose()
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                udp = Client(relay.addresses[0].url)
                async with udp, await udp.open_udp("127.0.0.1", 9) as tunnel:
                    receiving = asyncio.ensure_future(tunnel.receive())
                    await asyncio.sleep(0)
                    for size in (0, 1200, 60_000):
                        await tunnel.send(bytes(size))
                    tunnel.close()
                    with pytest.raises(ClientError):
                        await receiving

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 30))


def client_threads() -> list[Path]:
    return [task for task in Path("/proc/self/task").iterdir() if "relay-client" in (task / "comm").read_text()]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_left_behind() -> None:
    async def main() -> None:
        async with echo() as port, Relay(make_config()) as relay:
            await through(relay, port, 10)
            gc.collect()
            before = descriptors()
            for _ in range(5):
                await through(relay, port, 10)
            gc.collect()
            # The relay's side of a tunnel may take a moment longer.
            async with asyncio.timeout(5):
                while descriptors() > before:
                    await asyncio.sleep(0.01)
            assert client_threads() == []

    run(main)


def test_a_forked_process_has_no_client() -> None:
    async def main() -> None:
        async with Client("http://127.0.0.1:1") as client:
            child = os.fork()
            if not child:
                code = 1
                with contextlib.suppress(BaseException):
                    try:
                        await client.open_tcp("localhost", 1)
                    except RelayError as error:
                        code = 0 if "another process" in str(error) else 2
                os._exit(code)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status) == 0

    run(main)


def test_an_interpreter_ends_with_a_client_open() -> None:
    program = (
        "import asyncio\nfrom relay import Client\n"
        "async def main():\n    global client\n    client = Client('http://127.0.0.1:1')\n    await client.start()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_client_leaves_signals_to_others() -> None:
    async def main() -> None:
        async with Client("http://127.0.0.1:1"):
            (task,) = client_threads()
            (line,) = [line for line in (task / "status").read_text().splitlines() if "SigBlk" in line]
            assert int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1

    run(main)
