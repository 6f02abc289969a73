"""`Relay` in a running loop: its life, and what hooks may do."""

import asyncio
import contextlib
import contextvars
import gc
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from relay import Config, ConfigError, Decision, Relay, RelayError, StartError, TunnelRequest
from relay.config import Auth, Egress, Limits, Listener, Log, Policy

Answer = tuple[int, dict[str, str]]


def make_config(**policy: Any) -> Config:
    return Config(
        workers=1,
        listeners=[Listener(address="127.0.0.1:0", http=["h1"])],
        auth=Auth(required=False),
        policy=Policy(allow_networks=["127.0.0.0/8"], **policy),
        egress=Egress(dial_timeout="5s"),
        limits=Limits(drain_timeout="5s"),
        log=Log(access=""),
    )


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A target that sends back what it gets; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def connect(
    relay: Relay, port: int, host: str = "127.0.0.1", fields: str = ""
) -> tuple[int, dict[str, str], asyncio.StreamReader, asyncio.StreamWriter]:
    """A classic CONNECT over HTTP/1.1: status, header fields, streams."""
    at = relay.addresses[0]
    reader, writer = await asyncio.open_connection(at.host, at.port)
    writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{fields}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, reader, writer


async def status(relay: Relay, port: int, fields: str = "") -> int:
    code, _, _, writer = await connect(relay, port, fields=fields)
    writer.close()
    return code


def run(main: Callable[[], Awaitable[None]], seconds: float = 30) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await main()

    asyncio.run(bounded())


def test_bytes_go_through_and_are_counted() -> None:
    async def main() -> None:
        async with echo() as port, Relay(make_config()) as relay:
            (at,) = relay.addresses
            assert at.url == f"http://127.0.0.1:{at.port}/"
            assert str(at) == f"{at.url} (h1)"
            code, headers, reader, writer = await connect(relay, port)
            assert code == 200
            assert "next-hop" in headers["proxy-status"]
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
            stats = relay.stats()
            assert stats["tunnels_opened"] == 1
            assert stats["hook_questions"] == 0

    run(main)


def test_the_hook_sees_the_request() -> None:
    seen: list[TunnelRequest] = []

    async def decide(request: TunnelRequest) -> Decision:
        seen.append(request)
        return Decision.allow()

    async def main() -> None:
        async with echo() as port, Relay(make_config(), decide=decide) as relay:
            assert await status(relay, port, "X-One: a\r\nX-One: b\r\n") == 200
            (request,) = seen
            assert (request.protocol, request.http, request.principal) == ("connect", "h1", None)
            assert (request.target_host, request.target_port) == ("127.0.0.1", port)
            assert request.client_address[0] == "127.0.0.1"
            assert request.headers["x-one"] == "a, b"
            assert relay.stats()["hook_questions"] == 1
            assert 0 < relay.stats()["hook_wait_seconds"] < 30
            with pytest.raises(AttributeError):
                request.target_port = 1  # type: ignore[misc]

    run(main)


def deny_all(_: TunnelRequest) -> Decision:
    return Decision.deny("closed on Sundays", status=451)


async def deny_all_slowly(request: TunnelRequest) -> Decision:
    await asyncio.sleep(0)
    return deny_all(request)


@pytest.mark.parametrize("decide", [deny_all, deny_all_slowly])
def test_a_refusal_reaches_the_client(decide: Any) -> None:
    async def main() -> None:
        async with Relay(make_config(), decide=decide) as relay:
            code, headers, reader, writer = await connect(relay, 9)
            assert code == 451
            assert "error=http_request_denied" in headers["proxy-status"]
            assert b"closed on Sundays" in await reader.read()
            writer.close()

    run(main)


def test_a_plain_function_runs_in_a_thread() -> None:
    threads: set[threading.Thread] = set()

    def decide(_: TunnelRequest) -> Decision:
        threads.add(threading.current_thread())
        return Decision.allow()

    async def main() -> None:
        async with echo() as port, Relay(make_config(), decide=decide) as relay:
            assert await asyncio.gather(*(status(relay, port) for _ in range(10))) == [200] * 10

    run(main)
    assert threading.main_thread() not in threads


class Callable_:
    """A hook that is an object."""

    async def __call__(self, request: TunnelRequest) -> Decision:
        assert asyncio.current_task() is not None
        return Decision.allow()


def test_an_object_may_be_the_hook() -> None:
    async def main() -> None:
        async with echo() as port, Relay(make_config(), decide=Callable_()) as relay:
            assert await status(relay, port) == 200

    run(main)


def test_one_task_from_the_first_step_to_the_last() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    tasks: list[bool] = []

    async def decide(request: TunnelRequest) -> Decision:
        task = asyncio.current_task()
        assert variable.get() == 0, "another decision's context"
        variable.set(request.target_port)
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            first = group.create_task(asyncio.sleep(0.001, "one"))
            second = group.create_task(asyncio.sleep(0, "two"))
        assert (first.result(), second.result()) == ("one", "two")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        assert variable.get() == request.target_port
        tasks.append(asyncio.current_task() is task and task is not None and task.cancelling() == 0)
        return Decision.allow()

    async def main() -> None:
        async with echo() as port, Relay(make_config(), decide=decide) as relay:
            for _ in range(3):
                assert await asyncio.gather(*(status(relay, port) for _ in range(20))) == [200] * 20
            assert relay.stats()["hook_errors"] == 0

    run(main)
    assert tasks == [True] * 60


def test_a_hook_that_waits_holds_up_nobody() -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def decide(request: TunnelRequest) -> Decision:
            if request.headers.get("x-wait"):
                await gate.wait()
            return Decision.allow()

        async with echo() as port, Relay(make_config(hook_timeout="20s"), decide=decide) as relay:
            slow = [asyncio.ensure_future(status(relay, port, "X-Wait: 1\r\n")) for _ in range(5)]
            while relay.stats()["hook_pending"] < 5:
                await asyncio.sleep(0)
            assert await asyncio.gather(*(status(relay, port) for _ in range(20))) == [200] * 20
            assert not any(task.done() for task in slow)
            gate.set()
            assert await asyncio.gather(*slow) == [200] * 5

    run(main)


def test_no_answer_in_time_is_a_no() -> None:
    cancelled: list[bool] = []
    release = threading.Event()

    async def never(_: TunnelRequest) -> Decision:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        raise AssertionError

    def blocked(_: TunnelRequest) -> Decision:
        release.wait()
        return Decision.allow()

    async def main() -> None:
        for hook in (never, blocked):
            release.clear()
            async with echo() as port, Relay(make_config(hook_timeout="50ms"), decide=hook) as relay:
                code, headers, _, writer = await connect(relay, port)
                assert code == 503
                assert "error=http_request_denied" in headers["proxy-status"]
                writer.close()
                release.set()
                while relay.stats()["hook_pending"]:
                    await asyncio.sleep(0.001)

    run(main)
    assert cancelled == [True]


@pytest.mark.parametrize("kind", ["coroutine", "plain", "wrong", "cancelled"])
def test_a_hook_that_fails_denies_and_is_logged_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def coroutine(_: TunnelRequest) -> Decision:
        await asyncio.sleep(0)
        raise KeyError("broken")

    def plain(_: TunnelRequest) -> Decision:
        raise KeyError("broken")

    async def wrong(_: TunnelRequest) -> Any:
        return True

    async def cancelled(_: TunnelRequest) -> Decision:
        raise asyncio.CancelledError

    async def main() -> None:
        hook: Any = {"coroutine": coroutine, "plain": plain, "wrong": wrong, "cancelled": cancelled}[kind]
        async with echo() as port, Relay(make_config(), decide=hook) as relay:
            for _ in range(3):
                assert await status(relay, port) == 503
            assert relay.stats()["hook_errors"] == 3

    with caplog.at_level("ERROR", "relay.hook"):
        run(main)
    assert len([record for record in caplog.records if record.name == "relay.hook"]) == 1


def test_an_allowed_tunnel_still_has_to_pass_the_rules() -> None:
    async def decide(_: TunnelRequest) -> Decision:
        return Decision.allow()

    async def main() -> None:
        async with echo() as port, Relay(make_config(deny_networks=["127.0.0.1/32"]), decide=decide) as relay:
            code, headers, _, writer = await connect(relay, port)
            assert code == 403
            assert "destination_ip_prohibited" in headers["proxy-status"]
            writer.close()

    run(main)


def test_the_hook_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hook_of_test.py").write_text(
        "from relay import Decision\nasync def decide(request):\n    return Decision.deny('no', status=429)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    async def main() -> None:
        async with echo() as port, Relay(make_config(hook="hook_of_test:decide")) as relay:
            assert await status(relay, port) == 429
            await relay.reload(make_config())
            assert await status(relay, port) == 200
            await relay.reload(make_config(hook="hook_of_test:decide"))
            assert await status(relay, port) == 429

    run(main)


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ("no_such_module_here:decide", "a module that can be imported"),
        ("json:decide", "has no decide"),
        ("json:__name__", "is a str"),
    ],
)
def test_a_hook_that_is_not_there(hook: str, expected: str) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match=f"^policy.hook: .*{expected}"):
            await Relay(make_config(hook=hook)).start()

    run(main)


def test_statuses_of_refusals() -> None:
    for wrong in (200, 399, 600):
        with pytest.raises(ValueError, match="400 to 599"):
            Decision.deny("no", status=wrong)
    with pytest.raises(UnicodeEncodeError):
        Decision.deny("\ud800")


def test_a_busy_port_is_told_with_its_place(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            path = tmp_path / "relay.toml"
            path.write_text(f'[[listeners]]\naddress = "127.0.0.1:{port}"\n[auth]\nrequired = false\n')
            with pytest.raises(StartError) as caught:
                await Relay(Config.load(path, {})).start()
            (error,) = caught.value.errors
            assert error.startswith(f"{path}:2: listeners[0].address: ")
            assert f"127.0.0.1:{port}" in error

    run(main)


def test_a_drain_waits_for_tunnels_and_ends_the_relay() -> None:
    async def main() -> None:
        async with echo() as port, Relay(make_config()) as relay:
            code, _, reader, writer = await connect(relay, port)
            assert code == 200
            draining = asyncio.ensure_future(relay.drain())
            waiting = asyncio.ensure_future(relay.wait())
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            assert not draining.done()
            assert not waiting.done()
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await asyncio.gather(draining, waiting)

    run(main)


def test_a_close_cuts_a_drain_short() -> None:
    async def main() -> None:
        async with echo() as port, Relay(make_config()) as relay:
            _, _, reader, writer = await connect(relay, port)
            draining = asyncio.ensure_future(relay.drain(3600))
            await asyncio.sleep(0)
            await relay.close()
            await draining
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            await relay.close()

    run(main)


def test_a_relay_is_used_once_and_in_order() -> None:
    async def main() -> None:
        relay = Relay(make_config())
        for wrong in (lambda: relay.addresses, relay.stats):
            with pytest.raises(RelayError, match="not started"):
                wrong()
        with pytest.raises(RelayError, match="not started"):
            await relay.reload()
        await relay.close()
        async with relay:
            with pytest.raises(RelayError, match="started before"):
                await relay.start()
        with pytest.raises(RelayError, match="started before"):
            await relay.start()

    run(main)


def test_a_reload_that_fails_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "relay.toml"
        text = '[[listeners]]\naddress = "127.0.0.1:0"\n[auth]\nrequired = false\n[policy]\nallow_networks = [{}]\n'
        path.write_text(text.format('"127.0.0.0/8"'))
        async with echo() as port, Relay(Config.load(path, {})) as relay:
            assert await status(relay, port) == 200
            path.write_text(text.format('"127.0.0.0/40"'))
            with pytest.raises(ConfigError, match=r"relay\.toml:6: policy\.allow_networks\[0\]"):
                await relay.reload()
            assert await status(relay, port) == 200
            path.write_text(text.format('"127.0.0.0/8"').replace("[auth]", 'http = ["h2"]\n[auth]'))
            with pytest.raises(StartError, match="restart"):
                await relay.reload()
            assert await status(relay, port) == 200
            path.write_text(text.format(""))
            await relay.reload()
            assert await status(relay, port) == 403

    run(main)


def test_nothing_is_left_behind() -> None:
    def counts() -> tuple[int, int]:
        gc.collect()
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    def threads() -> set[str]:
        names = (Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir())
        return {name for name in names if name.startswith("relay-") and name != "relay-hook_0"}

    async def main() -> None:
        async with echo() as port, Relay(make_config(), decide=deny_all_slowly) as relay:
            assert await status(relay, port) == 451
            assert threads()
        assert not threads()

    run(main)
    before = counts()
    for _ in range(3):
        run(main)
    assert counts() == before


def test_other_loops_and_applications_that_forget_to_close() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with echo() as port:
            relay = Relay(make_config(), decide=deny_all_slowly)
            await relay.start()
            assert await status(relay, port) == 451

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    gc.collect()
