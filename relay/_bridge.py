"""The Python end of the decision bridge.

The native side calls ``loop.call_soon_threadsafe`` once for each batch. The batch is then worked off in the loop:

- A plain function runs in a pool of threads.
- A coroutine function is driven by a worker task. One worker takes question after question as long as the coroutines
  finish without waiting, so a decision costs no task of its own. The moment one waits, another worker takes over the
  rest of the batch. Each coroutine is in a real task from its first step to its last (time-outs, task groups and the
  like work), and has a context of its own.
"""

import asyncio
import contextvars
import inspect
import logging
import threading
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from relay import _native
from relay._threads import DaemonThreads
from relay.policy.decision import Decide, Decision, TunnelRequest

_log = logging.getLogger("relay.hook")

#: Workers that are kept for the next batch.
_SPARE = 16
#: Answer instead of a status: no decision could be had. The client gets 503, and the next one asks again.
_FAILED = 1
#: Threads for plain functions.
_THREADS = 32
#: Seconds that cancelled coroutines get to end.
_FAREWELL = 1.0

_LATE = (_FAILED, "the policy hook gave no answer in time")

_Question = tuple[int, TunnelRequest, float]


class DecisionBridge:
    """Carries questions to a hook and its answers back; everything that goes wrong denies."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._hook: Decide | None = None
        self._asynchronous = False
        self._timeout = 2.0
        self._waiting: deque[_Question] = deque()
        self._answers: list[tuple[int, int, str]] = []
        self._workers: set[asyncio.Task[None]] = set()
        self._spare: list[asyncio.Future[None]] = []
        self._pool: DaemonThreads | None = None
        self._failed: set[str] = set()
        self._lock = threading.Lock()
        self._errors = 0
        self._closed = False
        self.native = _native.Bridge(self._wake)

    def use(self, hook: Decide | None, timeout: float) -> None:
        """Asks this hook from now on, and gives it up after so many seconds."""
        self._hook = hook
        self._timeout = timeout
        self._asynchronous = hook is not None and (
            inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(getattr(hook, "__call__", None))  # noqa: B004
        )

    def stats(self) -> dict[str, int]:
        """Batches carried, questions refused because too many were open, open ones, and failures of the hook."""
        batches, overflows, pending = self.native.counts()
        return {
            "hook_batches": batches,
            "hook_overflows": overflows,
            "hook_pending": pending,
            "hook_errors": self._errors,
        }

    async def close(self) -> None:
        """Denies what is open and ends workers and threads."""
        self._closed = True
        await asyncio.to_thread(self.native.close)
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        if workers:
            _, stuck = await asyncio.wait(workers, timeout=_FAREWELL)
            if stuck:
                _log.warning("%d calls of the policy hook do not end when they are cancelled: left behind", len(stuck))
        if self._pool is not None:
            self._pool.close()

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        now = self._loop.time()
        questions = [(entry[0], TunnelRequest(*entry[1:]), now + self._timeout) for entry in self.native.take()]
        if self._hook is None or self._closed:
            self.native.answer_all([(number, _FAILED, "no policy hook is set") for number, _, _ in questions])
        elif self._asynchronous:
            self._waiting.extend(questions)
            self._call_worker()
        else:
            if self._pool is None:
                self._pool = DaemonThreads(_THREADS, "relay-hook")
            for question in questions:
                self._pool.submit(self._run_plain, self._hook, question)

    # Plain functions: each in a thread of the pool.

    def _run_plain(self, hook: Decide, question: _Question) -> None:
        number, request, deadline = question
        try:
            status, reason = self._call_plain(hook, request, deadline)
        except BaseException as error:
            status, reason = self._failure(error)
        self.native.answer(number, status, reason)

    def _call_plain(self, hook: Decide, request: TunnelRequest, deadline: float) -> tuple[int, str]:
        if self._loop.time() > deadline:
            return _LATE
        decision = hook(request)
        if not inspect.isawaitable(decision):
            return self._judge(decision)
        # A plain function around a coroutine function: a wrapper, or one that hands over.
        awaited = asyncio.run_coroutine_threadsafe(_awaited(decision), self._loop)
        try:
            return self._judge(awaited.result(max(0.0, deadline - self._loop.time())))
        except TimeoutError:
            if awaited.cancel():
                return _LATE
            raise

    # Coroutine functions: workers.

    def _call_worker(self) -> None:
        while self._spare:
            spare = self._spare.pop()
            if not spare.done():
                spare.set_result(None)
                return
        worker = self._loop.create_task(self._work(), name="relay-hook")
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        while not self._closed:
            while self._waiting:
                number, request, deadline = self._waiting.popleft()
                try:
                    status, reason = await self._ask(request, deadline)
                except BaseException:
                    # This worker was cancelled from outside; nothing may wait for it.
                    self._answers.append((number, _FAILED, "the policy hook was cancelled"))
                    self._flush()
                    if self._waiting and not self._closed:
                        self._call_worker()
                    raise
                self._answers.append((number, status, reason))
            self._flush()
            # A hook may have swallowed the cancellation: there is no second one.
            if self._closed or len(self._spare) >= _SPARE:
                return
            rest = self._loop.create_future()
            self._spare.append(rest)
            await rest

    def _flush(self) -> None:
        if self._answers:
            answers, self._answers = self._answers, []
            self.native.answer_all(answers)

    async def _ask(self, request: TunnelRequest, deadline: float) -> tuple[int, str]:
        hook = self._hook
        if hook is None or self._loop.time() > deadline:
            return _LATE
        context = contextvars.copy_context()
        expiry: asyncio.TimerHandle | None = None
        task = asyncio.current_task()
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            if task is not None:
                task.cancel()

        def waits() -> None:
            # The rest of the batch goes to another worker, answers so far leave now.
            nonlocal expiry
            expiry = self._loop.call_at(deadline, expire)
            self._flush()
            if self._waiting:
                self._call_worker()

        try:
            coroutine = context.run(hook, request)
            return self._judge(await _drive(coroutine, context, waits))  # type: ignore[arg-type]
        except asyncio.CancelledError:
            if expired:
                return _LATE
            if task is not None and task.cancelling():
                raise
            return self._failure(asyncio.CancelledError("the hook cancelled itself"))
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            # The last two would end the event loop, and with it every tunnel.
            return self._failure(error)
        finally:
            if expiry is not None:
                expiry.cancel()
            if expired and task is not None:
                task.uncancel()

    def _judge(self, decision: object) -> tuple[int, str]:
        if not isinstance(decision, Decision):
            if inspect.iscoroutine(decision):
                decision.close()
            raise TypeError(f"the policy hook must return a Decision, not {type(decision).__name__}")
        return (0, "") if decision.allowed else (decision.status, decision.reason)

    def _failure(self, error: BaseException) -> tuple[int, str]:
        kind = type(error).__qualname__
        with self._lock:
            self._errors += 1
            first = kind not in self._failed
            self._failed.add(kind)
        if first:
            _log.error("the policy hook failed (said once for %s): %s", kind, error, exc_info=error)
        return _FAILED, "the policy hook failed"


async def _awaited(decision: Awaitable[object]) -> object:
    return await decision


@types.coroutine
def _drive(
    coroutine: Coroutine[Any, Any, object], context: contextvars.Context, waits: Callable[[], None]
) -> Generator[Any, Any, object]:
    """Runs a coroutine to its end in its own context; `waits` is called once, when it first has to wait."""
    try:
        awaited = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    waits()
    while True:
        try:
            sent = yield awaited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            try:
                awaited = context.run(coroutine.throw, error)
            except StopIteration as stop:
                return stop.value
        else:
            try:
                awaited = context.run(coroutine.send, sent)
            except StopIteration as stop:
                return stop.value
