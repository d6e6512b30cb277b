"""Tests of what holds while this process runs: of leases, which are meant to end when it stands still, and of times."""

import contextlib
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeVar, cast

TestT = TypeVar("TestT", bound=Callable[..., Awaitable[None]])

STILL: Final = 0.2
"""Seconds without a step after which a process stood still: less than half of the shortest lease of a test."""

LOOK: Final = 0.05
"""Seconds from one look at the clock to the next."""

TRIES: Final = 3


class Pulse:
    """A thread that does nothing but look at the clock: what it missed, all of this process has missed.

    Attributes:
        longest: The most seconds that the process stood still so far, be it stopped or without a processor.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._missed = 0.0
        self._began = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="pulse", daemon=True)

    @property
    def ran(self) -> float:
        """For how many seconds the process has run: what must end within so many may take longer while it stands still."""
        return time.monotonic() - self._began - self._missed

    def _look(self) -> None:
        last = time.monotonic()
        while not self._over.wait(LOOK):
            now = time.monotonic()
            late = max(0.0, now - last - LOOK)
            self.longest = max(self.longest, late)
            self._missed += late
            last = now

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def while_it_runs(test: TestT) -> TestT:
    """Begin a test anew that failed while this process stood still, on a stage or a topic of its own: it has shown nothing.

    A process that stands still for longer than its lease has lost it, and should have. What fails while the process
    runs has failed, and so has what never gets to run.
    """

    @functools.wraps(test)
    async def tried(*positional: Any, **fixtures: Any) -> None:
        async with contextlib.AsyncExitStack() as others:
            for _ in range(TRIES - 1):
                with Pulse() as pulse:
                    try:
                        return await test(*positional, **fixtures)
                    except AssertionError:
                        if pulse.longest < STILL:
                            raise
                if (stage := fixtures.get("stage")) is not None:
                    fixtures["stage"] = await others.enter_async_context(type(stage)(stage.target))
                else:
                    fixtures["topic"] += "-again"
            return await test(*positional, **fixtures)

    return cast("TestT", tried)
