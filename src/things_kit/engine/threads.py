"""Threads for handlers that are plain functions."""

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any, Final

import msgspec

from things_kit.engine.surroundings import surroundings

_NOT_CARRIED: Final = (StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit)
"""What a future refuses to carry, or what would end the loop, though it was meant for the thread."""


class _Job(msgspec.Struct, eq=False):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    context: contextvars.Context
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[Any]
    returned: bool = False
    ended: asyncio.Future[None] | None = None

    def finish(self, value: Any, error: BaseException | None) -> None:
        self.returned = True
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(None)
        if self.result.done():
            return
        if error is None:
            self.result.set_result(value)
        elif isinstance(error, _NOT_CARRIED):
            failure = RuntimeError(f"the handler raised {error!r}")
            failure.__cause__ = error
            self.result.set_exception(failure)
        else:
            self.result.set_exception(error)


class HandlerThreads:
    """Runs functions in daemon threads, as many as are busy at once.

    Daemon threads, unlike an executor's, do not keep the process from ending when a handler hangs in one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: dict[SimpleQueue[_Job | None], threading.Thread] = {}
        self._closed = False
        self._hanging: dict[Hashable, asyncio.Future[None]] = {}

    async def run(self, owner: Hashable, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function in a thread, for `owner`, with the caller's context variables.

        Cancelled, it returns at once, though the thread goes on: see `hanging`.
        """
        if (other := surroundings.get()) is not None:
            return other.call(function, *arguments)
        loop = asyncio.get_running_loop()
        job = _Job(function, arguments, contextvars.copy_context(), loop, loop.create_future())
        jobs = self._idle.popitem()[0] if self._idle else self._spawn()
        jobs.put(job)
        try:
            return await job.result
        except asyncio.CancelledError:
            if job.result.cancelled() and not job.returned:  # it may have, before the cancellation got here
                job.ended = self._hanging[owner] = loop.create_future()
            raise

    def hanging(self, owner: Hashable) -> asyncio.Future[None] | None:
        """Done when the thread that the owner's call was cancelled away from has returned; None if there is none."""
        return self._hanging.pop(owner, None)

    def close(self) -> None:
        """End the idle threads; those that hang end when their function returns."""
        self._closed = True
        for jobs in self._idle:
            jobs.put(None)
        for thread in self._idle.values():
            thread.join()  # it waits for a job, so it ends at once
        self._idle.clear()

    def _spawn(self) -> SimpleQueue[_Job | None]:
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=self._work, args=(jobs,), name=self._name, daemon=True).start()
        return jobs

    def _work(self, jobs: "SimpleQueue[_Job | None]") -> None:
        thread = threading.current_thread()
        while (job := jobs.get()) is not None:
            value, error = None, None
            try:
                value = job.context.run(job.function, *job.arguments)
            except BaseException as raised:  # noqa: BLE001 - whatever it is belongs to the loop's side
                error = raised
            finish = functools.partial(job.finish, value, error)
            try:
                job.loop.call_soon_threadsafe(self._returned, jobs, thread, finish)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            del job, value, error, finish  # an idle thread must not keep a message alive

    def _returned(
        self, jobs: "SimpleQueue[_Job | None]", thread: threading.Thread, finish: Callable[[], None]
    ) -> None:
        if self._closed:
            jobs.put(None)
        else:
            self._idle[jobs] = thread
        finish()


threads: Final[ContextVar[tuple[HandlerThreads, Hashable] | None]] = ContextVar(
    "things_kit.threads", default=None
)
"""The threads of the consumer, and the worker, for which this code runs: also in tasks that middleware has made."""


async def call_in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a plain function in a thread of the running consumer, or of the loop outside of one."""
    own = threads.get()
    if own is None:
        return await asyncio.to_thread(function, *arguments)
    pool, owner = own
    return await pool.run(owner, function, *arguments)
