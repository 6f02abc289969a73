"""A relay as a process: SIGTERM and SIGINT drain, a second one closes at once, SIGHUP reloads."""

import _thread
import asyncio
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from relay._threads import in_thread
from relay.config import Config
from relay.errors import ConfigError, RelayError, StartError
from relay.ops.logs import configure_logging
from relay.server import Relay

_log = logging.getLogger("relay")

#: Seconds for an orderly end, after which the process just ends: a hook may keep the loop, or a thread, for ever.
_PATIENCE = 3.0


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine in a loop of its own: uvloop's where it is installed.

    The soft limit of descriptors is raised to the hard one: each tunnel takes one or two.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        from uvloop import new_event_loop as factory
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
        # The loop waits for what was left running in it, and the interpreter for threads.
        _end_within(_PATIENCE)


def _end_within(seconds: float) -> None:
    """Ends the process with 0 unless it has ended by itself until then."""

    def end() -> None:
        time.sleep(seconds)
        # No flushing: whoever does not read would be waited for again.
        os._exit(0)

    # Not by `threading`: its locks may be held by the very code that a signal interrupted.
    _thread.start_new_thread(end, ())


class Process:
    """One relay, told what to do by signals."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._told_to_end = 0
        self._started = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, ready: Callable[[Relay], None]) -> None:
        """Starts, calls ``ready``, and returns when the relay has ended. Raises ConfigError and StartError."""
        loop = asyncio.get_running_loop()

        def told(*_: object) -> None:
            # Between any two instructions of the main thread, even while a hook keeps the loop: no locks here.
            self._told_to_end += 1
            if self._told_to_end == 2:
                _end_within(_PATIENCE)
            loop.call_soon_threadsafe(self._end)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, told)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            async with self._relay:
                self._started = True
                if self._told_to_end:
                    return
                ready(self._relay)
                await self._relay.wait()
                if self._tasks:
                    # A reload may wait for a file that nobody writes.
                    await asyncio.wait(self._tasks, timeout=_PATIENCE)
        finally:
            # On its way out the process has nothing left to be told.
            loop.remove_signal_handler(signal.SIGHUP)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)

    def _spawn(self, task: Coroutine[Any, Any, None]) -> None:
        spawned = asyncio.ensure_future(task)
        self._tasks.add(spawned)
        spawned.add_done_callback(self._tasks.discard)

    def _end(self) -> None:
        if not self._started:
            return
        if self._told_to_end == 1:
            self._spawn(self._relay.drain())
        else:
            _log.info("told again: closing at once")
            self._spawn(self._relay.close())

    def _reload(self) -> None:
        if self._started and not self._told_to_end:
            self._spawn(self._take_new())

    async def _take_new(self) -> None:
        try:
            config: Config = await in_thread(self._relay.config.reread)
            await self._relay.reload(config)
        except (ConfigError, StartError) as error:
            for line in error.errors:
                _log.error("not reloaded: %s", line)
            return
        except Exception as error:
            # Whatever it is, the relay goes on with what it has.
            kind = "" if isinstance(error, RelayError) else f"{type(error).__name__}: "
            _log.error("not reloaded: %s%s", kind, " ".join(str(error).split()))
            return
        configure_logging(config.log.level)
        for line in config.warnings():
            _log.warning("%s", line)
