"""Cancellations that get lost on the way, and what the engine does about it.

Before Python 3.12 `asyncio.wait_for` returns as if nothing had been when it is cancelled in the moment in which it is done
(https://github.com/python/cpython/issues/86296), and many clients send through it. So no driver can promise to be cancelled.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

ResultT = TypeVar("ResultT")

AGAIN: Final = 1.0
"""Seconds that a cancelled task may take to clean up before it counts as one that has swallowed its cancellation."""


async def ended(*tasks: asyncio.Task[Any], patience: float = AGAIN) -> None:
    """Cancel tasks, again every `patience` seconds, and return when all have ended, however they did.

    If the caller is cancelled meanwhile, that is raised at the end: no task is left behind.
    """
    pending = {task for task in tasks if not task.done()}
    own: asyncio.CancelledError | None = None
    while pending:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=patience)
        except asyncio.CancelledError as error:
            own = error
        pending = {task for task in pending if not task.done()}
    for task in tasks:
        if not task.cancelled():
            task.exception()  # else it would be reported as one that nobody has asked for
    if own is not None:
        raise own


def is_cancelled() -> bool:
    """Whether somebody cancels the task that runs, so that a CancelledError in it is meant for it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def finished(task: asyncio.Task[ResultT], patience: float) -> bool:
    """Wait for a task, for so many seconds; whether it is done. Raises what it raised.

    What takes longer is cancelled and left to itself: whoever waits has waited enough.
    """
    try:
        await asyncio.wait({task}, timeout=patience)
    finally:
        if task.done():
            _forget(task)  # whoever waits may be cancelled in the same moment
        else:
            abandon(task)
    if task.done():
        task.result()
        return True
    return False


def abandon(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and leave it to itself."""
    task.cancel()
    _abandoned.add(task)
    task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # else it would be reported as one that nobody has asked for


_abandoned: Final[set[asyncio.Task[Any]]] = set()
"""What is left to itself: the event loop alone does not keep a task."""


class Shared:
    """One attempt at a time for all who want it made, so that none waits for the failures of those before it.

    An attempt is cancelled when nobody wants it any more.
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._make, self._name = make, name
        self._attempt: asyncio.Task[None] | None = None
        self._waiting: Counter[asyncio.Task[None]] = Counter()
        self._ended = False

    async def made(self) -> None:
        """Make it, or wait for who does. Raises what that raised; after `end` it returns whatever became of it."""
        while not self._ended:
            if self._attempt is None or self._attempt.done():
                self._attempt = asyncio.create_task(self._make(), name=self._name)
            attempt = self._attempt
            self._waiting[attempt] += 1
            try:
                await asyncio.wait({attempt})
            finally:
                self._waiting[attempt] -= 1
                if not self._waiting[attempt]:
                    del self._waiting[attempt]
                    await ended(attempt)
            if not attempt.cancelled():  # else those gave it up who wanted it before
                attempt.result()
                return

    async def end(self) -> None:
        """Give it up; who waits goes on."""
        self._ended = True
        if self._attempt is not None:
            await ended(self._attempt)


@contextlib.contextmanager
def cancellable() -> Iterator[None]:
    """For calls of a driver in a user's own task: a cancellation that they swallow arrives at the next `await`.

    It is not raised here, so that what the call has returned, such as a receiver, can still be closed.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    arrived = False
    try:
        yield
    except asyncio.CancelledError:
        arrived = True
        raise
    finally:
        if task is not None and task.cancelling() > before and not arrived:
            task.uncancel()
            task.cancel()
