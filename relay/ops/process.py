"""A relay as a process: SIGTERM and SIGINT drain, a second one closes at once, SIGHUP reloads."""

import asyncio
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from relay.config import Config
from relay.errors import ConfigError, StartError
from relay.ops.logs import configure_logging
from relay.server import Relay

_log = logging.getLogger("relay")


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


#: Seconds that what is left of a relay that has ended may take to end too.
_LAST = 5.0


def _end_soon() -> None:
    """Ends the process in a moment if it does not end by itself: nobody can be told any more what still holds it up."""
    watch = threading.Timer(_LAST, os._exit, (0,))
    watch.daemon = True
    watch.start()


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
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            async with self._relay:
                self._started = True
                if self._told_to_end:
                    return
                ready(self._relay)
                await self._relay.wait()
                if self._tasks:
                    await asyncio.wait(self._tasks)
        finally:
            # On its way out the process has nothing left to be told, and waits for no hook that does not end.
            if self._told_to_end:
                _end_soon()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)

    def _spawn(self, task: Coroutine[Any, Any, None]) -> None:
        spawned = asyncio.ensure_future(task)
        self._tasks.add(spawned)
        spawned.add_done_callback(self._tasks.discard)

    def _end(self) -> None:
        self._told_to_end += 1
        if not self._started:
            if self._told_to_end > 1:
                _end_soon()
            return
        if self._told_to_end == 1:
            self._spawn(self._relay.drain())
        else:
            _log.info("told again: closing at once")
            _end_soon()
            self._spawn(self._relay.close())

    def _reload(self) -> None:
        if self._started and not self._told_to_end:
            self._spawn(self._take_new())

    async def _take_new(self) -> None:
        try:
            config: Config = await asyncio.to_thread(self._relay.config.reread)
            await self._relay.reload(config)
        except (ConfigError, StartError) as error:
            for line in error.errors:
                _log.error("not reloaded: %s", line)
            return
        except Exception as error:
            _log.error("not reloaded: %s: %s", type(error).__name__, error)
            return
        configure_logging(config.log.level)
        for line in config.warnings():
            _log.warning("%s", line)
