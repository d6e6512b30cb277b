"""Deliveries that wait for their next attempt in this process."""

import asyncio
import heapq
from collections.abc import Callable, Iterator
from itertools import count

from things_kit.engine.driver import Delivery


class Delays:
    """A heap of deliveries by the time they are due, and one timer for the earliest."""

    def __init__(self, due: Callable[[Delivery], None]) -> None:
        self._due = due
        self._heap: list[tuple[float, int, Delivery]] = []
        self._order = count()  # of two that are due at once, the first to come goes first
        self._timer: asyncio.TimerHandle | None = None
        self._moments: dict[float | None, float] = {}  # and the loop's time that each was taken for first

    def __iter__(self) -> Iterator[Delivery]:
        """All that waits, in no order."""
        return (delivery for _, _, delivery in self._heap)

    def hold(self, delivery: Delivery, wait: float, moment: float | None = None) -> None:
        """Hand it to `due` in so many seconds; what waits for one `moment` in the order in which it came.

        The wait alone does not tell that: it was measured for each when it came.
        """
        when = asyncio.get_running_loop().time() + wait
        if moment is not None:
            when = self._moments.setdefault(moment, when)
        entry = (when, next(self._order), delivery)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._arm()

    def drop(self, which: Callable[[Delivery], bool]) -> list[Delivery]:
        """Forget these; returns them."""
        dropped = [delivery for _, _, delivery in self._heap if which(delivery)]
        self._heap = [entry for entry in self._heap if not which(entry[2])]
        heapq.heapify(self._heap)
        for delivery in dropped:
            self._moments.pop(delivery.due, None)
        self._arm()
        return dropped

    def clear(self) -> None:
        """Forget all of them."""
        self._heap.clear()
        self._moments.clear()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._ring) if self._heap else None

    def _ring(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            _, _, delivery = heapq.heappop(self._heap)
            self._moments.pop(delivery.due, None)
            self._due(delivery)
        self._arm()
