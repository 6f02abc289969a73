"""`Relay` in a running loop: its life."""

import asyncio
import contextlib
import gc
import math
import os
import socket
import threading
from pathlib import Path

import pytest
from unit.tunnels import connect, deny_all_slowly, echo, make_config, run, status

from relay import Config, ConfigError, Relay, RelayError, StartError
from relay.config import Listener, Log


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
        with pytest.raises(RelayError, match="has ended"):
            await relay.reload()

    run(main)


def test_a_start_that_failed_may_be_tried_again() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            config = make_config()
            relay = Relay(config.model_copy(update={"listeners": [Listener(address=f"127.0.0.1:{port}", http=["h1"])]}))
            for _ in range(2):
                with pytest.raises(StartError, match="in use"):
                    await relay.start()
                with pytest.raises(RelayError, match="not started"):
                    await relay.wait()
        async with echo() as target, relay:
            assert await status(relay, target) == 200

    run(main)


def test_every_kind_of_fault_is_told_at_once(tmp_path: Path) -> None:
    unread = tmp_path / "pipe"
    os.mkfifo(unread)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            config = make_config().model_copy(
                update={
                    "listeners": [Listener(address=address, http=["h1"])],
                    "log": Log(access=str(unread)),
                }
            )
            with pytest.raises(StartError) as caught:
                await Relay(config).start()
            assert [line.partition(":")[0] for line in caught.value.errors] == ["listeners[0].address", "log.access"]
        async with Relay(make_config()) as relay:
            changed = make_config().model_copy(update={"workers": 2, "log": Log(access=str(unread))})
            with pytest.raises(StartError) as caught:
                await relay.reload(changed)
            assert [line.partition(":")[0] for line in caught.value.errors] == ["workers", "log.access"]

    run(main)


@pytest.mark.parametrize("grace", [-1, -math.inf, math.nan])
def test_a_grace_that_cannot_be(grace: float, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with echo() as port, Relay(make_config()) as relay:
            with pytest.raises(ValueError, match="grace must not be negative"):
                await relay.drain(grace)
            assert await status(relay, port) == 200

    with caplog.at_level("INFO", "relay"):
        run(main)
    assert not any("draining" in message for message in caplog.messages)


@pytest.mark.parametrize("grace", [math.inf, 1e300])
def test_a_grace_without_end(grace: float) -> None:
    async def main() -> None:
        async with echo() as port, Relay(make_config()) as relay:
            _, _, reader, writer = await connect(relay, port)
            draining = asyncio.ensure_future(relay.drain(grace))
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await draining

    run(main)


def test_a_hook_is_something_to_call() -> None:
    with pytest.raises(TypeError, match="decide must be a function, not int"):
        Relay(make_config(), decide=3)  # type: ignore[arg-type]


def test_nothing_is_opened_by_a_reload_after_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        relay = Relay(make_config())
        async with relay:
            pass
        access = tmp_path / "access.log"
        with pytest.raises(RelayError, match="has ended"):
            await relay.reload(make_config().model_copy(update={"log": Log(access=str(access))}))
        assert not access.exists()

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
