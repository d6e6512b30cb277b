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


async def rate(count: int, work: Callable[[], Awaitable[object]]) -> float:
    """How many of `count` things a second this work does."""
    gc.collect()
    begun = time.perf_counter()
    await work()
    return count / (time.perf_counter() - begun)
