"""The receivers of brokers that hand out each message to one of them at a time."""

import asyncio
from collections.abc import Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING

from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.testing.simulation.models.server import ModelDriver
from things_kit.testing.simulation.models.waiting import Waiting

if TYPE_CHECKING:
    from things_kit.testing.simulation.models.queue import QueueGroup


class QueueReceiver:
    """One receiver of a group."""

    def __init__(self, group: "QueueGroup", driver: ModelDriver, subscription: Subscription) -> None:
        self.group = group
        self.driver = driver
        self.subscription = subscription
        self.broken = False
        self.quiet = False
        self.context = copy_context()

    def wake(self) -> None:
        """There may be something for it."""

    def break_off(self, *, dead: bool) -> None:
        """Its connection is gone."""
        self.broken = True
        leased = self.group.server.traits.capabilities.lease is not None and not self.group.lost
        self.group.leave(self, leased=leased, counted=True)
        if not dead:
            self.wake()

    def check(self) -> None:
        """Raise ConnectionLost if the connection is gone."""
        if self.broken:
            raise ConnectionLost("the connection to the simulated broker broke")

    async def quiesce(self) -> None:
        """Nothing more is put into the inbox."""
        self.quiet = True

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Tell the group; the answer may be lost, with or without an effect."""
        self.check()
        done = [delivery.token for delivery in acknowledged]
        back = [(release.delivery.token, release) for release in released]
        await self.driver.call()
        self.check()
        chance = self.group.server.chance
        if chance.strikes("lost_acknowledgement", bearable=self.group.can_bear_one_more(self)):
            if chance.below(2):
                self.group.settle(self, done, back)
            self.group.disown(self, done)
            self.break_off(dead=False)
            self.group.server.note("settles, and its connection breaks", None)
        self.check()
        self.group.settle(self, done, back)
        self.breaks()

    def breaks(self) -> bool:
        """Whether its connection breaks now, so that what it still holds comes again."""
        bearable = self.group.can_bear_one_more(self)
        if not (
            self.group.held_by(self) and self.group.server.chance.strikes("redelivery", bearable=bearable)
        ):
            return False
        self.group.server.note("its connection breaks", None)
        self.break_off(dead=False)
        return True

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Renew the leases."""
        tokens = [delivery.token for delivery in deliveries]
        await self.driver.call()
        self.check()
        self.group.extend(self, tokens)

    async def overdue(self) -> int | None:
        """What waits for anybody."""
        await self.driver.call()
        self.check()
        return self.group.available(self)

    async def close(self) -> None:
        """Leave the group."""
        if not self.broken:
            self.broken = True
            self.group.leave(self)


class FetchingReceiver(QueueReceiver):
    """One that asks."""

    def __init__(self, group: "QueueGroup", driver: ModelDriver, subscription: Subscription) -> None:
        super().__init__(group, driver, subscription)
        self._waiting = Waiting(subscription)

    def wake(self) -> None:
        """Look again."""
        self._waiting.wake()

    async def fetch(self, limit: int, wait: float) -> None:
        """Up to `limit` messages, within `wait` seconds."""
        self.check()
        await self.driver.call()
        await self._waiting.bring(lambda: self._take(limit), wait)

    def _take(self, limit: int) -> Sequence[Delivery]:
        self.check()
        if self.breaks():
            self.check()
        return self.group.take(self, limit)


class Marking(FetchingReceiver):
    """One whose broker keeps marks."""

    async def mark(self, delivery: Delivery, suspect: int) -> None:
        """Keep it beside the message."""
        token = delivery.token
        await self.driver.call()
        self.check()
        self.group.mark(self, token, suspect)


class PushedReceiver(QueueReceiver):
    """One to which the broker pushes, for credit."""

    def __init__(self, group: "QueueGroup", driver: ModelDriver, subscription: Subscription) -> None:
        super().__init__(group, driver, subscription)
        self._credit = 0
        self._coming = False

    def credit(self, window: int) -> None:
        """It may have so many."""
        self._credit = window
        self.wake()

    def wake(self) -> None:
        """Push what it may have, in its own time."""
        if not self._coming:
            self._coming = True
            asyncio.get_running_loop().call_soon(self._push, context=self.context)

    def _push(self) -> None:
        self._coming = False
        if self.broken:
            self.subscription.inbox.fail(ConnectionLost("the connection to the simulated broker broke"))
        elif not self.quiet and (room := self._credit - self.group.held_by(self)) > 0:
            if self.breaks():
                return
            taken = self.group.take(self, room)
            refused = self.subscription.inbox.put(taken)
            if refused:
                self.quiet = True  # it takes nothing more
                back = [(each.token, Release(each, attempt=each.message.attempt)) for each in refused]
                self.group.settle(self, (), back)
