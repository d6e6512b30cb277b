"""What a receiver has in hand: messages that have arrived, and those that were handed out and are not settled yet."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from things_kit.brokers.servicebus.links import LOOK
from things_kit.brokers.servicebus.settlement import Settlement, Taken, let_go
from things_kit.engine.driver import Delivery, Release

LINGER: Final = 0.003
"""Seconds in which nothing more may arrive before what has arrived is handed out: few at a time cost as much as many."""

GRACE: Final = 2.0
"""Seconds for which closing waits for what is being settled."""


class Hand:
    """Between the tasks that read, and the engine that takes and settles."""

    def __init__(self, settlement: Settlement) -> None:
        self._settlement = settlement
        self._buffer: deque[Taken] = deque()
        self._held: set[Taken] = set()
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self._trouble: Exception | None = None
        self._settling: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> Sequence[Taken]:
        """What has arrived and was not handed out."""
        return list(self._buffer)

    @property
    def count(self) -> int:
        """How many messages are in hand."""
        return len(self._buffer) + len(self._held)

    def put(self, taken: Taken) -> None:
        """A message has arrived."""
        self._buffer.append(taken)
        self._arrived.set()

    def fail(self, trouble: Exception) -> None:
        """Nothing more arrives: `take` says why, once it has handed out what is here."""
        self._trouble = self._trouble or trouble
        self._arrived.set()

    async def take(self, limit: int, wait: float) -> list[Delivery]:
        """What has arrived, after at most `wait` seconds. Raises what `fail` was told."""
        if not self._buffer and self._trouble is None:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(wait, LOOK)):
                    await self._arrived.wait()
        number = 0
        while number < len(self._buffer) < limit:
            number = len(self._buffer)
            await asyncio.sleep(LINGER)
        if not self._buffer and self._trouble is not None:
            raise self._trouble
        taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
        self._held.update(taken)
        self._changed.set()
        return [Delivery(each.message, each) for each in taken]

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Complete, give back or copy; once begun it goes on, also if nobody waits for it any more."""
        self._settling = asyncio.create_task(
            self._settle(acknowledged, released), name="things_kit servicebus settling"
        )
        await asyncio.shield(self._settling)

    async def _settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        await self._settlement.settle(acknowledged, released)
        self._held.difference_update([delivery.token for delivery in acknowledged])
        self._held.difference_update([release.delivery.token for release in released])
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is looked at when something was handed out, settled or forgotten."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def has_of(self, link: object) -> bool:
        """Whether anything that came over a link is not settled."""
        return any(taken.link is link for taken in (*self._buffer, *self._held))

    def forget(self, lost: Callable[[Taken], bool]) -> None:
        """Others have these by now."""
        self._buffer = deque(taken for taken in self._buffer if not lost(taken))
        self._held = {taken for taken in self._held if not lost(taken)}
        self._changed.set()

    async def give_back(self) -> None:
        """Finish what is being settled, and give back all the rest, in the order in which it came."""
        if self._settling is not None:
            await asyncio.wait({self._settling}, timeout=GRACE)
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)
        for taken in sorted([*self._held, *self._buffer], key=_number):
            await let_go(taken)
        self._buffer.clear()
        self._held.clear()


def _number(taken: Taken) -> int:
    return taken.received.sequence_number or 0
