"""``Relay``: a relay inside any running event loop."""

import asyncio
import json
import logging
import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from relay import _native
from relay._bridge import DecisionBridge
from relay._threads import in_thread
from relay.config import Config
from relay.config.values import join_address, seconds_of
from relay.errors import ConfigError, RelayError, StartError
from relay.policy import Decide, load_hook

_log = logging.getLogger("relay")

#: Seconds that stand for ever; the clock of the engine cannot add them all.
_FOR_EVER = 100 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener listens."""

    host: str
    port: int
    http: tuple[str, ...]
    """HTTP versions: ``h1``, ``h2``, ``h3``."""
    tls: bool

    @property
    def url(self) -> str:
        """``https://127.0.0.1:8443/``"""
        return f"http{'s' if self.tls else ''}://{join_address(self.host, self.port)}/"

    def __str__(self) -> str:
        return f"{self.url} ({' '.join(self.http)})"


class Relay:
    """A relay. Starts with ``async with`` or :meth:`start`, in any running loop; bytes move in threads of their own.

    ``decide`` is asked for each tunnel (and is used instead of ``policy.hook``); see :class:`relay.Decision`.
    Leaving ``async with`` closes at once: call :meth:`drain` before for a gentle end.
    """

    def __init__(self, config: Config, *, decide: Decide | None = None) -> None:
        if decide is not None and not callable(decide):
            raise TypeError(f"decide must be a function, not {type(decide).__name__}")
        self._config = config
        self._decide = decide
        self._engine: _native.Engine | None = None
        self._bridge: DecisionBridge | None = None
        self._ended: asyncio.Event | None = None
        self._closing = False
        self._finalizer: weakref.finalize[[_native.Engine, _native.Bridge], Relay] | None = None
        self._reloading = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def config(self) -> Config:
        """The configuration in force for new connections."""
        return self._config

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens, with the real ports."""
        return tuple(Address(host, port, tuple(http), tls) for host, port, http, tls in self._running().addresses())

    async def start(self) -> None:
        """Listens and serves; returns when every socket listens.

        Raises ConfigError for a hook or credentials that cannot be used, StartError when the sockets cannot be had. It
        may be called again then.
        """
        if self._ended is not None:
            raise RelayError("this relay was started before: make a new one")
        decide = self._hook_of(self._config)
        document = self._document_of(self._config)
        bridge = DecisionBridge(asyncio.get_running_loop())
        self._ended = asyncio.Event()
        bridge.use(decide, seconds_of(self._config.policy.hook_timeout))
        starting = asyncio.ensure_future(in_thread(_native.Engine.start, document, bridge.native))
        try:
            engine = await asyncio.shield(starting)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and not starting.cancelled():
                # The thread goes on: what it started must not stay.
                starting.add_done_callback(_close_late)
            await bridge.close()
            self._ended = None
            if isinstance(error, StartError):
                raise _located(self._config, error) from None
            raise
        self._engine, self._bridge = engine, bridge
        # Without this an interpreter that ends with a relay open would wait for its threads.
        self._finalizer = weakref.finalize(self, _close_native, engine, bridge.native)
        _log.info("listening on %s", ", ".join(map(str, self.addresses)))

    async def wait(self) -> None:
        """Returns when the relay has ended, by :meth:`drain` or :meth:`close`."""
        self._running()
        assert self._ended is not None
        await self._ended.wait()

    async def reload(self, config: Config | None = None) -> None:
        """Takes a configuration (or the same one, read anew) for new connections; open tunnels go on.

        Raises ConfigError or StartError, and then everything stays as it was; RelayError when the relay has ended.
        """
        async with self._reloading:
            engine = self._running()
            if self._closing:
                raise RelayError("the relay has ended: there is nothing to reload")
            assert self._bridge is not None
            fresh = config if config is not None else await in_thread(self._config.reread)
            decide = self._hook_of(fresh)
            document = self._document_of(fresh)
            try:
                await in_thread(engine.reload, document)
            except StartError as error:
                raise _located(fresh, error) from None
            self._bridge.use(decide, seconds_of(fresh.policy.hook_timeout))
            self._config = fresh
        _log.info("reloaded")

    async def drain(self, grace: float | None = None) -> None:
        """Stops accepting, lets tunnels end for ``grace`` seconds (else ``limits.drain_timeout``), then ends.

        ``math.inf`` waits for the last tunnel, however long.
        """
        engine = self._running()
        seconds = seconds_of(self._config.limits.drain_timeout) if grace is None else grace
        # The other way round, not a number would pass.
        if not seconds >= 0:
            raise ValueError("grace must not be negative")
        _log.info("draining for up to %g s", seconds)
        await in_thread(engine.drain, min(seconds, _FOR_EVER))
        await self.close()

    async def close(self) -> None:
        """Ends everything at once. May be called again, and while :meth:`drain` runs."""
        engine, bridge = self._engine, self._bridge
        if engine is None or bridge is None:
            return
        await asyncio.shield(asyncio.ensure_future(self._close(engine, bridge)))

    async def _close(self, engine: _native.Engine, bridge: DecisionBridge) -> None:
        assert self._ended is not None
        self._closing = True
        await in_thread(engine.close)
        await bridge.close()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._ended.set()

    def stats(self) -> dict[str, float]:
        """Counters since the start, and what is open now.

        ``hook_wait_seconds`` is the time that tunnels have waited for Python, all together.
        """
        engine = self._running()
        counters: dict[str, float] = json.loads(engine.stats())
        counters["hook_wait_seconds"] = counters.pop("hook_wait_us") / 1e6
        if self._bridge is not None:
            counters |= self._bridge.stats()
        return counters

    def _running(self) -> _native.Engine:
        if self._engine is None:
            raise RelayError("the relay is not started")
        return self._engine

    def _hook_of(self, config: Config) -> Decide | None:
        if self._decide is not None:
            return self._decide
        try:
            return load_hook(config.policy.hook) if config.policy.hook else None
        except ValueError as error:
            raise ConfigError([config.fault(("policy", "hook"), str(error))]) from error

    def _document_of(self, config: Config) -> str:
        return config.to_native(hook=self._decide is not None or bool(config.policy.hook))


def _located(config: Config, error: StartError) -> StartError:
    return StartError([config.located(line) for line in error.errors])


def _close_native(engine: _native.Engine, bridge: _native.Bridge) -> None:
    bridge.close()
    engine.close()


def _close_late(starting: "asyncio.Future[_native.Engine]") -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().close()
