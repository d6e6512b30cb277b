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
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, copy_context
from itertools import count
from typing import Any, Final, TypeVar, TypeVarTuple

from things_kit.testing.simulation.process import PROCESS, SimulatedProcess
from things_kit.testing.simulation.remains import close_coroutine

log = logging.getLogger("things_kit.simulation")

ResultT = TypeVar("ResultT")
Ts = TypeVarTuple("Ts")

Choose = Callable[[int], int]
"""Which of so many tasks goes on."""


STRIDE: Final = 16
"""Steps from one question whether it is over to the next."""


ROUNDS: Final = 100
"""How often tasks are closed that others began while they were closed."""


class NothingLeft(Exception):
    """There is no task, callback or timer any more."""


class SimulatedFuture(asyncio.Future[Any]):
    """One whose hash does not come from its address, so that sets of it have the same order in each run."""

    _number = 0

    def __hash__(self) -> int:
        if not self._number:  # most are never asked
            self._number = self.get_loop().number()  # type: ignore[attr-defined] # it is a loop of ours
        return self._number


class SimulatedTask(asyncio.Task[Any]):
    """The same for tasks."""

    def __init__(self, coroutine: Any, *, loop: "SimulationLoop", **options: Any) -> None:
        self._number = loop.number()
        super().__init__(coroutine, loop=loop, **options)
        loop.tasks.append(self)

    def __hash__(self) -> int:
        return self._number


class SimulatedHandle(asyncio.TimerHandle):
    """What is to be called, and whose it is. Without the questions for debug mode that asyncio's asks each time."""

    __slots__ = ("owner",)

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: Sequence[Any],
        loop: "SimulationLoop",
        context: Context,
    ) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context
        self._cancelled = self._scheduled = False
        self._repr = self._source_traceback = None
        self.owner = context.get(PROCESS)

    def cancel(self) -> None:
        """It is passed over when its turn has come."""
        self._cancelled = True


class SimulationLoop(asyncio.AbstractEventLoop):
    """Runs one history.

    Attributes:
        failure: What ends the history at once, whatever code catches it.
        steps: How many tasks were resumed.
        tasks: All there were.
        before: Told whose turn it is, whenever that or the time is another than before.
        after_step: Told whose task went on.
        forgotten: Handles of crashed processes: kept, so that no `finally` of theirs ever runs.
    """

    def __init__(self, choose: Choose) -> None:
        self.failure: BaseException | None = None
        self.steps = 0
        self.tasks: list[SimulatedTask] = []
        self.forgotten: list[SimulatedHandle] = []
        self.before: Callable[[SimulatedProcess | None], None] = lambda _: None
        self.after_step: Callable[[SimulatedProcess | None], None] = lambda _: None
        self._choose = choose
        self._now = 0.0
        self._numbers = count(1)
        self._turn: tuple[SimulatedProcess | None, float] | None = None
        self._callbacks: deque[SimulatedHandle] = deque()
        self._tasks: list[SimulatedHandle] = []
        self._timers: list[tuple[float, int, SimulatedHandle]] = []
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
        """Run until this holds, asked now and then.

        Raises:
            NothingLeft: Nothing can happen any more, and it does not hold.
            BaseException: What `fail` was told.
        """
        with self._as_running():
            while not until():
                for _ in range(STRIDE):
                    self._step()
                    if self.failure is not None:
                        raise self.failure

    @contextmanager
    def _as_running(self) -> Iterator[None]:
        """What asks for the running loop finds this one, and afterwards the one of whoever simulates."""
        around, hooks = events._get_running_loop(), sys.get_asyncgen_hooks()  # noqa: SLF001 - made for loops
        sys.set_asyncgen_hooks(firstiter=self._generators.append, finalizer=self._finalize)
        self._running = True
        events._set_running_loop(self)  # noqa: SLF001
        try:
            yield
        finally:
            events._set_running_loop(around)  # noqa: SLF001
            self._running = False
            sys.set_asyncgen_hooks(*hooks)

    def _step(self) -> None:
        """All callbacks, of which each version of Python has its own number, and then one task, or the next timer."""
        while self._callbacks:
            self._call(self._callbacks.popleft())
            if self.failure is not None:
                return
        if self._tasks:
            count = len(self._tasks)
            handle = self._tasks.pop(self._choose(count) if count > 1 else 0)
            if not handle._cancelled:  # noqa: SLF001 - ours
                self.steps += 1
                self._call(handle)
                self.after_step(handle.owner)
        else:
            self._advance()

    def _call(self, handle: SimulatedHandle) -> None:
        if handle._cancelled:  # noqa: SLF001
            return
        turn = (handle.owner, self._now)
        if turn != self._turn:
            self._turn = turn
            self.before(handle.owner)
        handle._run()  # noqa: SLF001 - made for loops

    def _advance(self) -> None:
        while self._timers:
            when, _, handle = heapq.heappop(self._timers)
            if handle._cancelled:  # noqa: SLF001
                continue
            self._now = max(self._now, when)
            self._callbacks.append(handle)
            return
        raise NothingLeft

    def pass_time(self, seconds: float) -> None:
        """As if whoever runs now had taken so long."""
        self._now += max(0.0, seconds)

    def abandon(self, process: SimulatedProcess) -> None:
        """A process is no more: its tasks never go on, its callbacks and timers never come."""
        self.forgotten += [
            handle
            for handle in (*self._callbacks, *self._tasks, *(timer[2] for timer in self._timers))
            if handle.owner is process
        ]
        self._callbacks = deque(each for each in self._callbacks if each.owner is not process)
        self._tasks = [each for each in self._tasks if each.owner is not process]
        self._timers = [timer for timer in self._timers if timer[2].owner is not process]
        heapq.heapify(self._timers)

    # --- what asyncio asks of a loop

    def time(self) -> float:
        """Seconds since the history began."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run it in its turn; a task's step when it is drawn."""
        handle = SimulatedHandle(
            self._now, callback, args, self, copy_context() if context is None else context
        )
        if handle.owner is not None and handle.owner.gone:
            self.forgotten.append(handle)
        elif isinstance(getattr(callback, "__self__", None), asyncio.Task):
            self._tasks.append(handle)
        else:
            self._callbacks.append(handle)
        return handle

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
        handle = SimulatedHandle(when, callback, args, self, copy_context() if context is None else context)
        if handle.owner is not None and handle.owner.gone:
            self.forgotten.append(handle)
        else:
            heapq.heappush(self._timers, (when, self.number(), handle))
        return handle

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
        """Nothing runs on it any more: asyncio forgets its tasks, among which it would look for those of others."""
        self._closed = True
        for task in self.tasks:
            asyncio._unregister_task(task)  # noqa: SLF001 - made for tasks of others

    def do_away_with_tasks(self) -> None:
        """Close whatever has not ended, also what that begins, and tell those who keep a task that it is done."""
        self._take_all()
        with self._as_running():
            for _ in range(ROUNDS):
                pending = [task for task in self.tasks if not task.done()]
                for task in pending:
                    close_coroutine(task.get_coro())
                    task.cancel()
                handles = self._take_all()
                for handle in handles:
                    handle._run()  # noqa: SLF001 - made for loops
                if not pending and not handles:
                    break
        self.close()
        self.tasks.clear()
        self._generators.clear()

    def _take_all(self) -> list[SimulatedHandle]:
        """What was to be called soon; nothing is to be called any more."""
        handles = [*self._callbacks, *self._tasks, *self.forgotten]
        for each in (self._callbacks, self._tasks, self.forgotten, self._timers):
            each.clear()
        return handles

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What a callback raised, and nobody else will ever see; once it is closed, what asyncio says of abandoned tasks."""
        if self._closed:
            return
        log.warning("%s", context.get("message"), exc_info=context.get("exception"))

    async def shutdown_asyncgens(self) -> None:
        """They are left as they are."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

    def _finalize(self, generator: Any) -> None:
        if not self._closed:
            self.create_task(generator.aclose())
