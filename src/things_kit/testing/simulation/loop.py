"""An event loop whose time and turns are drawn from a seed: the same seed, the same run.

It is a whole loop of its own, not a changed one of asyncio's: no selector, no threads, no sockets. Time stands still
while anything is ready and jumps to the next timer otherwise. Callbacks run in the order in which they were asked for,
as everywhere; which *task* goes on next is drawn.
"""

import asyncio
import heapq
import logging
import sys
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from itertools import count
from typing import Any, TypeVar, TypeVarTuple

from things_kit.testing.simulation.process import PROCESS, SimulatedProcess

log = logging.getLogger("things_kit.simulation")

ResultT = TypeVar("ResultT")
Ts = TypeVarTuple("Ts")

Choose = Callable[[int], int]
"""Which of so many tasks goes on."""


class NothingLeft(Exception):
    """There is no task, callback or timer any more."""


class SimulatedFuture(asyncio.Future[Any]):
    """One whose hash does not come from its address, so that sets of it have the same order in each run."""

    def __init__(self, *, loop: "SimulationLoop") -> None:
        self._number = loop.number()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class SimulatedTask(asyncio.Task[Any]):
    """The same for tasks."""

    def __init__(self, coroutine: Any, *, loop: "SimulationLoop", **options: Any) -> None:
        self._number = loop.number()
        super().__init__(coroutine, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


class _Ready:
    """A handle, and whose it is."""

    __slots__ = ("handle", "owner")

    def __init__(self, handle: asyncio.Handle, owner: SimulatedProcess | None) -> None:
        self.handle = handle
        self.owner = owner


class SimulationLoop(asyncio.AbstractEventLoop):
    """Runs one history.

    Attributes:
        failure: What ends the history at once, whatever code catches it.
        steps: How many tasks were resumed.
        before: Told whose turn it is.
        after_step: Told whose task went on.
        forgotten: Handles and tasks of crashed processes: kept, so that no `finally` of theirs ever runs.
    """

    def __init__(self, choose: Choose) -> None:
        self.failure: BaseException | None = None
        self.steps = 0
        self.forgotten: list[object] = []
        self.before: Callable[[SimulatedProcess | None], None] = lambda _: None
        self.after_step: Callable[[SimulatedProcess | None], None] = lambda _: None
        self._choose = choose
        self._now = 0.0
        self._numbers = count(1)
        self._callbacks: deque[_Ready] = deque()
        self._tasks: list[_Ready] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle, SimulatedProcess | None]] = []
        self._running = False
        self._closed = False
        self._generators: list[object] = []

    def number(self) -> int:
        """The next number of its kind: what is made later has a higher one."""
        return next(self._numbers)

    def fail(self, error: BaseException) -> None:
        """End the history with this; the first one counts."""
        self.failure = self.failure or error

    # --- running

    def run(self, until: Callable[[], bool]) -> None:
        """Run until this holds, asked after each step.

        Raises:
            NothingLeft: Nothing can happen any more, and it does not hold.
            BaseException: What `fail` was told.
        """
        before = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._generators.append, finalizer=self._finalize)
        self._running = True
        events._set_running_loop(self)  # noqa: SLF001 - made for loops
        try:
            while not until():
                self._step()
                if self.failure is not None:
                    raise self.failure
        finally:
            events._set_running_loop(None)  # noqa: SLF001
            self._running = False
            sys.set_asyncgen_hooks(*before)

    def _step(self) -> None:
        if self._callbacks:
            ready = self._callbacks.popleft()
            if not ready.handle.cancelled():
                self.before(ready.owner)
                ready.handle._run()  # noqa: SLF001 - made for loops
        elif self._tasks:
            self._resume_one()
        else:
            self._advance()

    def _resume_one(self) -> None:
        index = self._choose(len(self._tasks)) if len(self._tasks) > 1 else 0
        ready = self._tasks.pop(index)
        if ready.handle.cancelled():
            return
        self.steps += 1
        self.before(ready.owner)
        ready.handle._run()  # noqa: SLF001
        self.after_step(ready.owner)

    def _advance(self) -> None:
        while self._timers:
            when, _, handle, owner = heapq.heappop(self._timers)
            if handle.cancelled():
                continue
            self._now = max(self._now, when)
            self._enqueue(handle, owner)
            return
        raise NothingLeft

    def pass_time(self, seconds: float) -> None:
        """As if whoever runs now had taken so long."""
        self._now += max(0.0, seconds)

    def abandon(self, process: SimulatedProcess) -> None:
        """A process is no more: its tasks never go on, its callbacks and timers never come."""
        gone = [each for each in (*self._callbacks, *self._tasks) if each.owner is process]
        self.forgotten += gone
        self._callbacks = deque(each for each in self._callbacks if each.owner is not process)
        self._tasks = [each for each in self._tasks if each.owner is not process]
        self.forgotten += [entry for entry in self._timers if entry[3] is process]
        self._timers = [entry for entry in self._timers if entry[3] is not process]
        heapq.heapify(self._timers)

    # --- what asyncio asks of a loop

    def time(self) -> float:
        """Seconds since the history began."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run it in its turn; a task's step when it is drawn."""
        context = copy_context() if context is None else context
        handle = asyncio.Handle(callback, args, self, context)
        owner = context.get(PROCESS)
        if owner is not None and owner.gone:
            self.forgotten.append(handle)
        else:
            self._enqueue(handle, owner, isinstance(getattr(callback, "__self__", None), asyncio.Task))
        return handle

    def _enqueue(self, handle: asyncio.Handle, owner: SimulatedProcess | None, is_task: bool = False) -> None:
        (self._tasks if is_task else self._callbacks).append(_Ready(handle, owner))

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """There are no other threads."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run it so many seconds from now."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run it at this time of the loop's."""
        context = copy_context() if context is None else context
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        owner = context.get(PROCESS)
        if owner is not None and owner.gone:
            self.forgotten.append(handle)
        else:
            heapq.heappush(self._timers, (when, self.number(), handle, owner))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time has come."""

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return SimulatedFuture(loop=self)

    def create_task(
        self, coro: Generator[Any, None, ResultT] | Coroutine[Any, Any, ResultT], **options: Any
    ) -> asyncio.Task[ResultT]:
        """A task of this loop, which goes on when it is drawn."""
        options.pop("eager_start", None)
        return SimulatedTask(coro, loop=self, **options)

    def run_in_executor(
        self, executor: Any, func: Callable[[*Ts], ResultT], *args: *Ts
    ) -> asyncio.Future[ResultT]:
        """Call it here and now: a plain function is one step."""
        future: asyncio.Future[ResultT] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            future.set_exception(error)
        return future

    def get_debug(self) -> bool:
        """It is never in debug mode."""
        return False

    def is_running(self) -> bool:
        """Whether `run` is at work."""
        return self._running

    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Nothing runs on it any more."""
        self._closed = True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What a callback raised, and nobody else will ever see."""
        log.warning("%s", context.get("message"), exc_info=context.get("exception"))

    async def shutdown_asyncgens(self) -> None:
        """They are left as they are."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

    def _finalize(self, generator: Any) -> None:
        if not self._closed:
            self.create_task(generator.aclose())
