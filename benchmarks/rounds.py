"""Rounds of the same on one server: the driver next to the client that it is built on, and what comes out."""

import asyncio
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import TypeVar

from benchmarks.result import Consumed, Result
from things_kit.testing.servers.process import ServerProcess

ServerT = TypeVar("ServerT", bound=ServerProcess)

_numbers = count()


def name(what: str) -> str:
    """A group or topic that nobody has used."""
    return f"{what}-{next(_numbers)}"


@asynccontextmanager
async def running(kind: type[ServerT]) -> AsyncIterator[ServerT]:
    """A server of this benchmark's own. Raises ServerUnavailable."""
    server = kind()
    try:
        await asyncio.to_thread(server.start)
        yield server
    finally:
        await asyncio.to_thread(server.terminate)


class Rates:
    """What was measured in each round, in messages a second."""

    def __init__(self) -> None:
        self.raw_published: list[float] = []
        self.published: list[float] = []
        self.raw_consumed: list[float] = []
        self.consumed: list[float] = []
        self.raw_runs: list[Consumed] = []
        self.runs: list[Consumed] = []

    def add(self, raw: Consumed, ours: Consumed) -> None:
        """What a round of consuming came to, on both sides."""
        self.raw_consumed.append(raw.rate)
        self.consumed.append(ours.rate)
        self.raw_runs.append(raw)
        self.runs.append(ours)

    def rows(
        self, broker: str, consumed: str, published: str, bounds: tuple[float, float], notes: str = ""
    ) -> list[Result]:
        """Both against the client alone. The texts say what was compared, the bounds what the ratios are to be."""
        of_consumed, of_published = bounds
        worked = [statistics.median(run.worked for run in runs) for runs in (self.runs, self.raw_runs)]
        started = [statistics.median(run.started for run in runs) for runs in (self.runs, self.raw_runs)]
        lasted = f" of {worked[0]:.1f} and {worked[1]:.1f} s"
        return [
            compared(
                f"{broker}: {consumed}", self.consumed, self.raw_consumed, of_consumed, f"{lasted}{notes}"
            ),
            Result(
                f"{broker}: from the start of a consumer to its first message",
                f"{started[0]:.2f} s", "", True, f"raw {started[1]:.2f} s; not in any other figure",
            ),
            compared(f"{broker}: {published}", self.published, self.raw_published, of_published, notes),
        ]  # fmt: skip


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds: what is compared ran side by side, and a single round may have been disturbed."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def against(ours: Sequence[float], theirs: Sequence[float], notes: str = "") -> str:
    """What a ratio comes from."""
    middle = statistics.median
    return f"{middle(ours):,.0f} and {middle(theirs):,.0f} messages/s, medians of {len(ours)} rounds{notes}"


def compared(
    what: str, ours: Sequence[float], theirs: Sequence[float], bound: float, notes: str = ""
) -> Result:
    """A row: how many times the client's rate ours is."""
    times = ratio(ours, theirs)
    return Result(
        what, f"{times:.2f} of raw", f"at least {bound:g}", times >= bound, against(ours, theirs, notes)
    )


def not_measured(broker: str, reason: Exception) -> list[Result]:
    """A row that says why there is no figure: the client is not installed, or no server can be had."""
    why = str(reason)
    if isinstance(reason, ModuleNotFoundError):
        why = f"{reason.name} is not installed: pip install things-kit[{broker}]"
    return [Result(broker, "not measured", "", True, why)]
