"""The Python end of the decision bridge.

The native side makes a descriptor readable once for each batch. The batch is then worked off in the loop:

- A plain function runs in a thread. If it returns an awaitable, that is awaited in the loop.
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
from functools import partial
from typing import Any

from relay import _native
from relay._threads import Threads
from relay.policy.decision import Decide, Decision, TunnelRequest, check_refusal

_log = logging.getLogger("relay.hook")

#: Workers that are kept for the next batch.
_SPARE = 16
#: Answer instead of a status: no decision could be had. The client gets 503, and the next one asks again.
_FAILED = 1
#: Threads for plain functions.
_THREADS = 32
#: How long coroutines may take to end once they are cancelled, in seconds.
_FAREWELL = 1.0
_LATE = "the policy hook gave no answer in time"

#: Number, what begins the coroutine, and the time of the loop when nobody waits for it any more.
_Question = tuple[int, Callable[[], Any], float]


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
        self._threads = Threads(_THREADS, "relay-hook")
        self._failed: set[str] = set()
        self._lock = threading.Lock()
        self._errors = 0
        self._closed = False
        self.native = _native.Bridge()
        loop.add_reader(self.native.fileno(), self._drain)

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
        """Denies what is open and ends workers and threads. What does not let itself be ended is left behind."""
        self._closed = True
        self._loop.remove_reader(self.native.fileno())
        self.native.close()
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        if workers:
            _, stuck = await asyncio.wait(workers, timeout=_FAREWELL)
            if stuck:
                _log.warning("left behind: calls of the policy hook that ignore being cancelled: %d", len(stuck))
        if busy := self._threads.close():
            _log.warning("left behind: calls of the policy hook that still run in threads: %d", busy)

    def _drain(self) -> None:
        hook, deadline = self._hook, self._loop.time() + self._timeout
        questions = [(entry[0], TunnelRequest(*entry[1:])) for entry in self.native.take()]
        if hook is None or self._closed:
            self.native.answer_all([(number, _FAILED, "no policy hook is set") for number, _ in questions])
        elif self._asynchronous:
            self._waiting.extend((number, partial(hook, request), deadline) for number, request in questions)
            self._call_worker()
        else:
            for number, request in questions:
                try:
                    self._threads.submit(partial(self._run_plain, number, hook, request, deadline))
                except RuntimeError as error:
                    self.native.answer(number, *self._failure(error))

    # Plain functions: each call in a thread.

    def _run_plain(self, number: int, hook: Decide, request: TunnelRequest, deadline: float) -> None:
        if self._loop.time() > deadline:
            self.native.answer(number, _FAILED, _LATE)
            return
        try:
            decision = hook(request)
            if inspect.isawaitable(decision):
                self._loop.call_soon_threadsafe(self._take_over, number, decision, deadline)
                return
            status, reason = self._judge(decision)
        except BaseException as error:
            status, reason = self._failure(error)
        self._answer(number, status, reason)

    def _take_over(self, number: int, awaitable: Awaitable[object], deadline: float) -> None:
        """Awaits what a plain function returned, in a task of its own."""
        coroutine = awaitable if inspect.iscoroutine(awaitable) else _await(awaitable)
        if self._closed or self._loop.time() > deadline:
            coroutine.close()
            self.native.answer(number, _FAILED, _LATE)
            return
        self._start(self._finish(number, coroutine, deadline))

    async def _finish(self, number: int, coroutine: Coroutine[Any, Any, object], deadline: float) -> None:
        try:
            status, reason = await self._ask(number, lambda: coroutine, deadline)
        except BaseException:
            self.native.answer(number, _FAILED, "the policy hook was cancelled")
            raise
        self._answer(number, status, reason)

    # Coroutine functions: workers.

    def _call_worker(self) -> None:
        while self._spare:
            spare = self._spare.pop()
            if not spare.done():
                spare.set_result(None)
                return
        self._start(self._work())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        worker = self._loop.create_task(work, name="relay-hook")
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        while not self._closed:
            while self._waiting:
                number, begin, deadline = self._waiting.popleft()
                if self._loop.time() > deadline:
                    self._answers.append((number, _FAILED, _LATE))
                    continue
                try:
                    status, reason = await self._ask(number, begin, deadline)
                except BaseException:
                    # This worker was cancelled from outside; nothing may wait for it.
                    self._answers.append((number, _FAILED, "the policy hook was cancelled"))
                    self._flush()
                    if self._waiting and not self._closed:
                        self._call_worker()
                    raise
                self._answers.append((number, status, reason))
            self._flush()
            if len(self._spare) >= _SPARE:
                return
            rest = self._loop.create_future()
            self._spare.append(rest)
            await rest

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        if not answers:
            return
        try:
            self.native.answer_all(answers)
        except Exception:
            # One that cannot be passed on keeps the whole batch back: none was given yet.
            for answer in answers:
                self._answer(*answer)

    def _answer(self, number: int, status: int, reason: str) -> None:
        try:
            self.native.answer(number, status, reason)
        except Exception as error:
            self.native.answer(number, *self._failure(error))

    async def _ask(self, number: int, begin: Callable[[], Any], deadline: float) -> tuple[int, str]:
        context = contextvars.copy_context()
        expiry: asyncio.TimerHandle | None = None
        task = asyncio.current_task()
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            # Now, because a hook may ignore that it is cancelled; a second answer to the same question is ignored.
            self.native.answer(number, _FAILED, _LATE)
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
            coroutine = context.run(begin)
            return self._judge(await _drive(coroutine, context, waits))
        except asyncio.CancelledError:
            if expired:
                return _FAILED, _LATE
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
        if decision.allowed:
            return 0, ""
        # Again, for classes of their own that left out the check of Decision: 0 would allow.
        check_refusal(decision.status, decision.reason)
        return decision.status, decision.reason

    def _failure(self, error: BaseException) -> tuple[int, str]:
        kind = type(error).__qualname__
        with self._lock:
            self._errors += 1
            first = kind not in self._failed
            self._failed.add(kind)
        if first:
            _log.error("the policy hook failed (said once for %s): %s", kind, error, exc_info=error)
        return _FAILED, "the policy hook failed"


async def _await(awaitable: Awaitable[object]) -> object:
    return await awaitable


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
