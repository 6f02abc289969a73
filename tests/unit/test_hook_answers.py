"""What a hook may return, and that each question gets exactly one answer whatever that is."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from unit.tunnels import connect, echo, make_config, run, status

from relay import Decision, Relay, TunnelRequest


async def allows(_: TunnelRequest) -> Decision:
    await asyncio.sleep(0)
    return Decision.allow()


def wrapped(hook: Callable[[TunnelRequest], Awaitable[Decision]]) -> Callable[[TunnelRequest], Awaitable[Decision]]:
    """As decorators are written that know nothing of coroutines."""

    @functools.wraps(hook)
    def call(request: TunnelRequest) -> Awaitable[Decision]:
        return hook(request)

    return call


class Promise:
    """An awaitable that is no coroutine."""

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return Decision.allow()


@pytest.mark.parametrize("decide", [wrapped(allows), lambda request: allows(request), lambda _: Promise()])
def test_what_a_plain_function_returns_is_awaited(decide: Any) -> None:
    async def main() -> None:
        async with echo() as port, Relay(make_config(hook_timeout="20s"), decide=decide) as relay:
            assert await asyncio.gather(*(status(relay, port) for _ in range(10))) == [200] * 10
            assert (relay.stats()["hook_errors"], relay.stats()["hook_pending"]) == (0, 0)

    run(main)


def test_what_a_plain_function_returns_is_awaited_no_longer_than_any_hook() -> None:
    ended: list[str] = []

    async def never(_: TunnelRequest) -> Decision:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        raise AssertionError

    async def main() -> None:
        async with echo() as port, Relay(make_config(hook_timeout="50ms"), decide=wrapped(never)) as relay:
            assert await status(relay, port) == 503
            while relay.stats()["hook_pending"]:
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                while not ended:
                    await asyncio.sleep(0)

    run(main)


def test_what_a_plain_function_returns_may_fail() -> None:
    async def fails(request: TunnelRequest) -> Any:
        if request.headers.get("x-kind") == "raise":
            raise KeyError("broken")
        return "yes"

    async def main() -> None:
        async with echo() as port, Relay(make_config(hook_timeout="20s"), decide=wrapped(fails)) as relay:
            assert await status(relay, port, "X-Kind: raise\r\n") == 503
            assert await status(relay, port) == 503
            assert (relay.stats()["hook_errors"], relay.stats()["hook_pending"]) == (2, 0)

    run(main)


@pytest.mark.parametrize("status_", [403.0, "403", True, None, 399, 600])
def test_statuses_that_cannot_be_sent(status_: Any) -> None:
    with pytest.raises(ValueError, match="status must be a whole number from 400 to 599"):
        Decision.deny("no", status=status_)


def test_reasons_that_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="reason must be text, not NoneType"):
        Decision.deny(None)  # type: ignore[arg-type]


class Unchecked(Decision):
    """A class of its own that leaves out the check."""

    def __post_init__(self) -> None:
        pass


class Smuggled(str):
    """A text that passes every check of Python and cannot be sent."""

    def encode(self, *_: Any) -> bytes:
        return b""


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Unchecked(False, "no", 0),
        lambda: Unchecked(False, "no", 403.0),  # type: ignore[arg-type]
        lambda: Decision.deny(Smuggled("\ud800")),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_one_bad_answer_takes_no_other_with_it(bad: Callable[[], Decision], plain: bool) -> None:
    def answer(request: TunnelRequest) -> Decision:
        return bad() if request.headers.get("x-bad") else Decision.deny("no", status=418)

    async def at_once(request: TunnelRequest) -> Decision:
        return answer(request)

    async def main() -> None:
        config = make_config(hook_timeout="20s")
        async with echo() as port, Relay(config, decide=answer if plain else at_once) as relay:
            answers = await asyncio.gather(
                *(status(relay, port, "X-Bad: 1\r\n" if number % 5 == 0 else "") for number in range(50))
            )
            assert answers == [503 if number % 5 == 0 else 418 for number in range(50)]
            assert (relay.stats()["hook_errors"], relay.stats()["hook_pending"]) == (10, 0)

    run(main)


def test_a_hook_that_ignores_its_end_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def stubborn(_: TunnelRequest) -> Decision:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            return Decision.allow()

        async with echo() as port, Relay(make_config(hook_timeout="50ms"), decide=stubborn) as relay:
            code, _, _, writer = await connect(relay, port)
            assert code == 503
            writer.close()
            async with asyncio.timeout(5):
                while relay.stats()["hook_pending"]:
                    await asyncio.sleep(0)
        # Here the relay has ended, and the loop would wait for the rest.
        release.set()

    with caplog.at_level("WARNING", "relay.hook"):
        run(main)
    assert "left behind: calls of the policy hook that ignore being cancelled: 1" in caplog.messages


def test_a_full_pool_of_the_loop_does_not_hold_up_a_relay() -> None:
    async def main() -> None:
        async with echo() as port, Relay(make_config()) as relay:
            loop = asyncio.get_running_loop()
            gate = asyncio.Event()
            opened = [
                asyncio.ensure_future(
                    asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result())
                )
                for _ in range(64)
            ]
            assert await status(relay, port) == 200
            await relay.reload(make_config())
            await relay.drain(0)
            gate.set()
            await asyncio.gather(*opened)

    run(main)
