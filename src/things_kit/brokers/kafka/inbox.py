"""Where a receiving thread puts what it fetched, and the event loop takes it out."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from things_kit.engine.driver import ConnectionLost, Delivery, Which


class Inbox:
    """The loop's side of one subscription: deliveries in order, and how it ended.

    All methods but `tell` are called on the loop.

    Attributes:
        failure: Why nothing more comes; None while something may.
    """

    def __init__(self, topic: str) -> None:
        self.failure: Exception | None = None
        self._topic = topic
        self._loop = asyncio.get_running_loop()
        self._deliveries: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()

    def tell(self, callback: Callable[..., None], *arguments: Any) -> bool:
        """Have the loop call back, from another thread. False if it is closed: nobody is there any more."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return False
        return True

    def put(self, deliveries: Sequence[Delivery]) -> None:
        """These have arrived."""
        self._deliveries.extend(deliveries)
        self._arrived.set()

    async def take(self, limit: int, wait: float) -> list[Delivery]:
        """Up to `limit`, none if nothing came within `wait` seconds. Raises the failure once it is empty."""
        deliveries = self._deliveries
        if not deliveries and self.failure is None and wait > 0:
            self._arrived.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._arrived.wait()
            except TimeoutError:
                return []
        if not deliveries and self.failure is not None:
            raise self.failure
        if len(deliveries) > limit:
            return [deliveries.popleft() for _ in range(limit)]
        taken = list(deliveries)
        deliveries.clear()
        return taken

    def drop(self, which: Which) -> int:
        """Take these out, for nobody; says how many there were."""
        kept = [delivery for delivery in self._deliveries if not which(delivery)]
        dropped = len(self._deliveries) - len(kept)
        self._deliveries.clear()  # in place, as `take` may be waiting
        self._deliveries.extend(kept)
        return dropped

    def end(self, failure: Exception | None) -> Exception:
        """The thread is done; says what whoever still asks is told."""
        self.failure = failure or ConnectionLost(f"the consumer of {self._topic!r} was closed")
        self._arrived.set()
        self._ended.set()
        return self.failure

    async def ended(self) -> None:
        """Wait for `end`."""
        await self._ended.wait()
