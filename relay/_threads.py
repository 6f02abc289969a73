"""Threads that never keep a process: those of the standard pools are joined when the interpreter ends."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import ParamSpec, TypeVar

_log = logging.getLogger("relay")

#: What a thread does to itself, and what Python ignores anyway.
_OWN = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGPIPE}

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Threads:
    """Runs functions in up to ``most`` daemon threads; one is started only when none is idle."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._open = 0

    def submit(self, function: Callable[[], object]) -> None:
        """Queues a function; what it raises is only logged. RuntimeError when not a single thread can be had."""
        with self._lock:
            if self._started <= self._open and self._started < self._most:
                thread = threading.Thread(target=self._run, name=f"{self._name}_{self._started}", daemon=True)
                try:
                    thread.start()
                    self._started += 1
                except RuntimeError:
                    if not self._started:
                        raise
            self._open += 1
        self._work.put(function)

    def close(self) -> int:
        """Forgets what is queued and ends idle threads, busy ones after their function. Returns how many are busy."""
        with self._lock:
            try:
                while True:
                    self._work.get_nowait()
                    self._open -= 1
            except Empty:
                pass
            for _ in range(self._started):
                self._work.put(None)
            return self._open

    def _run(self) -> None:
        while (function := self._work.get()) is not None:
            try:
                function()
            except BaseException:
                _log.exception("a thread of the relay got an exception that nobody handled")
            # An idle thread keeps nothing alive.
            del function
            with self._lock:
                self._open -= 1


@contextlib.contextmanager
def without_signals() -> Iterator[None]:
    """Threads that are started in here, native ones too, leave the signals of the process to others.

    CPython does not tell a main thread that computes about a signal that another thread got.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _OWN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Awaits a blocking function in a daemon thread of its own.

    ``asyncio.to_thread`` would wait for its turn behind whatever an application or a hook has the loop's pool do.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(settler: Callable[..., None], outcome: object) -> None:
        # Whoever asked may have been cancelled.
        if not future.done():
            settler(outcome)

    def tell(settler: Callable[..., None], outcome: object) -> None:
        # A closed loop says so by RuntimeError: nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, settler, outcome)

    def run() -> None:
        try:
            with without_signals():
                result = function(*args, **kwargs)
        except BaseException as error:
            tell(future.set_exception, error)
        else:
            tell(future.set_result, result)

    threading.Thread(target=run, name=f"relay-{getattr(function, '__name__', 'call')}", daemon=True).start()
    return await future
