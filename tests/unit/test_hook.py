"""Hooks: what they see, what they may do, and what becomes of their failures."""

import asyncio
import contextlib
import contextvars
import threading
from pathlib import Path
from typing import Any

import pytest
from unit.tunnels import connect, deny_all, deny_all_slowly, echo, make_config, run, status

from relay import ConfigError, Decision, Relay, TunnelRequest


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


def test_a_hook_that_cancels_its_own_task_denies_and_leaves_nothing_open() -> None:
    async def decide(request: TunnelRequest) -> Decision:
        if request.headers.get("x-cancel"):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        return Decision.allow()

    async def main() -> None:
        async with echo() as port, Relay(make_config(hook_timeout="20s"), decide=decide) as relay:
            for _ in range(3):
                answers = await asyncio.gather(
                    *(status(relay, port, "X-Cancel: 1\r\n" if number % 2 else "") for number in range(20))
                )
                assert sorted(answers) == [200] * 10 + [503] * 10
            assert relay.stats()["hook_pending"] == 0

    run(main)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import sys\nsys.exit(0)\n", "fails to import: SystemExit"),
        ("def f(:\n", "fails to import: SyntaxError"),
        ("def __getattr__(name):\n    raise OSError('no disk')\n", "OSError: no disk"),
    ],
)
def test_a_module_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    name = f"failing_module_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    async def main() -> None:
        with pytest.raises(ConfigError, match=f"^policy.hook: .*{expected}"):
            await Relay(make_config(hook=f"{name}:decide")).start()

    run(main)


def test_statuses_of_refusals() -> None:
    for wrong in (200, 399, 600):
        with pytest.raises(ValueError, match="400 to 599"):
            Decision.deny("no", status=wrong)
    with pytest.raises(UnicodeEncodeError):
        Decision.deny("\ud800")
