"""Tests of what holds while this process runs: of leases, which are meant to end when it stands still, and of times."""

import contextlib
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeVar, cast

from things_kit.testing.conformance.stage import Stage

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
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="pulse", daemon=True)

    def _look(self) -> None:
        last = time.monotonic()
        while not self._over.wait(LOOK):
            now = time.monotonic()
            self.longest = max(self.longest, now - last - LOOK)
            last = now

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def while_it_runs(test: TestT) -> TestT:
    """Begin a test anew, on a stage of its own, that failed while this process stood still: it has shown nothing.

    A process that stands still for longer than its lease has lost it, and should have. What fails while the process
    runs has failed, and so has what never gets to run.
    """

    @functools.wraps(test)
    async def tried(self: object, stage: Stage, **fixtures: Any) -> None:
        async with contextlib.AsyncExitStack() as others:
            for _ in range(TRIES - 1):
                with Pulse() as pulse:
                    try:
                        return await test(self, stage, **fixtures)
                    except AssertionError:
                        if pulse.longest < STILL:
                            raise
                stage = await others.enter_async_context(type(stage)(stage.target))
            return await test(self, stage, **fixtures)

    return cast("TestT", tried)
