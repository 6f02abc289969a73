"""Threads for functions that may take their time."""

import queue
import threading
from collections.abc import Callable
from typing import Any


class DaemonThreads:
    """Up to ``most`` threads, started as they are needed.

    They are daemons, unlike those of ``concurrent.futures``: a function that never returns must not hold up the end of
    the program. What is submitted must not raise.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._started = 0
        self._idle = threading.Semaphore(0)
        self._work: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()

    def submit(self, call: Callable[..., None], *arguments: Any) -> None:
        """Has a thread call it, at once or when one is free. From one thread only."""
        self._work.put((call, arguments))
        if not self._idle.acquire(blocking=False) and self._started < self._most:
            self._started += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()

    def close(self) -> None:
        """Forgets what nobody has begun and lets the threads end; waits for none of them."""
        try:
            while True:
                self._work.get_nowait()
        except queue.Empty:
            self._work.put(None)

    def _run(self) -> None:
        while True:
            try:
                work = self._work.get_nowait()
            except queue.Empty:
                self._idle.release()
                work = self._work.get()
            if work is None:
                # For the next one.
                self._work.put(None)
                return
            call, arguments = work
            call(*arguments)
