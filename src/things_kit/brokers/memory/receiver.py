"""One member of a group."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription

if TYPE_CHECKING:
    from things_kit.brokers.memory.group import Group


class MemoryReceiver:
    """One member of a group, and what it was handed."""

    def __init__(self, group: "Group", subscription: Subscription) -> None:
        self.ordering = subscription.ordering
        self.out: set[int] = set()
        self.woken = asyncio.Event()
        self._group = group
        self._inbox = subscription.inbox
        self._ephemeral = subscription.ephemeral

    async def fetch(self, limit: int, wait: float) -> None:
        """Take what is there; wait for a publish, a release, or the time that one is due."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            if self._group.lost:
                raise ConnectionLost(f"the topic {self._group.topic.name!r} was removed, or this group of it")
            now = loop.time()
            self._group.topic.carry(now)
            deliveries = self._group.take(self, limit, now)
            now = loop.time()
            if deliveries or now >= deadline:
                self._inbox.put(deliveries)
                return
            self.woken.clear()
            try:
                async with asyncio.timeout_at(min(deadline, self._group.next_due(deadline))):
                    await self.woken.wait()
            except TimeoutError:
                pass  # the deadline, or one is due

    async def quiesce(self) -> None:
        """Nothing comes but by `fetch`."""

    async def overdue(self) -> int | None:
        """What is new, or came back and is due."""
        now = asyncio.get_running_loop().time()
        self._group.topic.carry(now)
        return self._group.waiting(now)

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Settle all of them at once."""
        if self._group.lost:
            raise ConnectionLost(f"the topic {self._group.topic.name!r} was removed")
        self._group.acknowledge(self, acknowledged)
        if released:
            self._group.release(self, released, asyncio.get_running_loop().time())

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There are no leases."""

    async def close(self) -> None:
        """Leave the group; what was not settled goes back."""
        group = self._group
        if self not in group.receivers:
            return
        group.receivers.remove(self)
        if not group.lost:
            held = [Delivery(group.message(offset), offset) for offset in sorted(self.out)]
            given_back = [Release(delivery, attempt=delivery.message.attempt) for delivery in held]
            group.release(self, given_back, asyncio.get_running_loop().time())
        if self._ephemeral:
            group.topic.groups.pop(group.name, None)
