"""What a receiver has in hand: messages that have arrived, and those that were handed out and are not settled yet."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Final
from weakref import WeakKeyDictionary

from azure.servicebus import ServiceBusReceivedMessage

from things_kit.brokers.servicebus.incoming import Incoming, Taken
from things_kit.brokers.servicebus.messages import is_for, unpack
from things_kit.brokers.servicebus.names import subscription_of
from things_kit.brokers.servicebus.settlement import Settlement
from things_kit.engine.driver import Delivery, Release, Subscription

LINGER: Final = 0.003
"""Seconds in which nothing more may arrive before what has arrived is handed out: few at a time cost as much as many."""

GRACE: Final = 2.0
"""Seconds for which closing waits for what is being settled."""


class Hand:
    """Between the links, which bring, and the engine, which takes and settles."""

    def __init__(self, settlement: Settlement, subscription: Subscription) -> None:
        self._settlement = settlement
        self._topic = subscription.topic
        self._group = subscription_of(subscription.group)
        self._buffer: deque[Taken] = deque()
        self._held: set[Taken] = set()
        self._of: Counter[Incoming] = Counter()
        self._arrived = asyncio.Event()
        self._changed: WeakKeyDictionary[Incoming, asyncio.Event] = WeakKeyDictionary()
        self.trouble: Exception | None = None
        self._settling: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> Sequence[Taken]:
        """What has arrived and was not handed out."""
        return list(self._buffer)

    @property
    def count(self) -> int:
        """How many messages are in hand."""
        return len(self._buffer) + len(self._held)

    def count_of(self, link: Incoming) -> int:
        """How many messages that came over a link are in hand."""
        return self._of[link]

    async def put(self, link: Incoming, received: ServiceBusReceivedMessage) -> None:
        """A message has arrived. What is for another group is done with at once."""
        taken = Taken(received, unpack(self._topic, received), link)
        if not is_for(received, self._group):
            await link.pass_over(taken)
            return
        self._buffer.append(taken)
        self._of[link] += 1
        self._arrived.set()
        self._tell(link)

    def fail(self, trouble: Exception) -> None:
        """Nothing more arrives: `take` says why, once it has handed out what is here."""
        self.trouble = self.trouble or trouble
        self._arrived.set()

    async def take(self, limit: int, wait: float) -> list[Delivery]:
        """What has arrived, after at most `wait` seconds. Raises what `fail` was told."""
        if not self._buffer and self.trouble is None:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(wait, LINGER)):
                    await self._arrived.wait()
        number = 0
        while number < len(self._buffer) < limit:
            number = len(self._buffer)
            await asyncio.sleep(LINGER)
        if not self._buffer and self.trouble is not None:
            raise self.trouble
        taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
        self._held.update(taken)
        return [Delivery(each.message, each) for each in taken]

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Complete, give back or copy; once begun it goes on, also if nobody waits for it any more."""
        self._settling = asyncio.create_task(
            self._settle(acknowledged, released), name="things_kit servicebus settling"
        )
        await asyncio.shield(self._settling)

    async def _settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        await self._settlement.settle(acknowledged, released)
        self._drop([delivery.token for delivery in acknowledged])
        self._drop([release.delivery.token for release in released])

    def _drop(self, settled: Iterable[Taken]) -> None:
        for taken in settled:
            if taken in self._held:
                self._held.remove(taken)
                self._of[taken.link] -= 1
                self._tell(taken.link)

    def change_of(self, link: Incoming) -> asyncio.Event:
        """Set when something that came over a link has arrived, was settled or forgotten; whoever waits clears it."""
        return self._changed.setdefault(link, asyncio.Event())

    def _tell(self, link: Incoming) -> None:
        if (changed := self._changed.get(link)) is not None:
            changed.set()

    def forget(self, lost: Callable[[Taken], bool]) -> None:
        """Others have these by now."""
        self._buffer = deque(taken for taken in self._buffer if not lost(taken))
        self._held = {taken for taken in self._held if not lost(taken)}
        self._of = Counter(taken.link for taken in (*self._buffer, *self._held))
        for changed in self._changed.values():
            changed.set()

    async def give_back(self) -> None:
        """Finish what is being settled, and give back all the rest, in the order in which it came."""
        if self._settling is not None:
            await asyncio.wait({self._settling}, timeout=GRACE)
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)
        rest = sorted([*self._held, *self._buffer], key=lambda taken: (id(taken.link), _number(taken)))
        for link, taken in groupby(rest, key=lambda taken: taken.link):
            await link.let_go(list(taken))
        self.forget(lambda taken: True)


def _number(taken: Taken) -> int:
    return taken.received.sequence_number or 0
