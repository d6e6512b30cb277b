"""One line of the report."""

import gc
import time
from collections.abc import Awaitable, Callable

import msgspec


class Result(msgspec.Struct, frozen=True):
    """What was measured, what came out, and what it is to be at least (or at most)."""

    name: str
    figure: str
    bound: str
    met: bool
    notes: str = ""


class Consumed(msgspec.Struct, frozen=True):
    """One run of a consumer."""

    count: int
    started: float
    """Seconds from the start of the consumer to its first message: connecting, joining, the first fetch."""
    worked: float
    """Seconds from the first message's handling until the last was acknowledged and the consumer had left."""

    @property
    def rate(self) -> float:
        """Messages a second, of the time in which there were messages."""
        return self.count / self.worked


class Stopwatch:
    """Runs from its making; `first` is told of the first message, before anything is done with it."""

    def __init__(self) -> None:
        gc.collect()
        self._begun = time.perf_counter()
        self._first: float | None = None

    def first(self) -> None:
        """A message has come; only the first one counts."""
        if self._first is None:
            self._first = time.perf_counter()

    def consumed(self, count: int) -> Consumed:
        """All are acknowledged."""
        ended = time.perf_counter()
        assert self._first is not None
        return Consumed(count, self._first - self._begun, ended - self._first)


async def rate(count: int, work: Callable[[], Awaitable[object]]) -> float:
    """How many of `count` things a second this work does."""
    gc.collect()
    begun = time.perf_counter()
    await work()
    return count / (time.perf_counter() - begun)
