"""Receiving over one link: what arrives is read at once, and handed out in batches."""

import asyncio
from collections.abc import Sequence
from typing import Final

from azure.servicebus.aio import ServiceBusReceiver

from things_kit.brokers.servicebus.admin import Admin, remove_ephemeral
from things_kit.brokers.servicebus.errors import CLIENT, translated
from things_kit.brokers.servicebus.hand import Hand
from things_kit.brokers.servicebus.links import Links, close_link
from things_kit.brokers.servicebus.messages import is_for, unpack
from things_kit.brokers.servicebus.names import entity_of, subscription_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.publisher import Publisher
from things_kit.brokers.servicebus.settlement import Settlement, Taken, complete
from things_kit.engine.driver import Delivery, Release, Subscription

CREDIT: Final = 250
"""Messages that a link asks for at a time."""

ANSWER: Final = 0.3
"""Seconds within which the service says that there is no such subscription."""

WAIT: Final = 60.0
"""Seconds that one call to the client waits."""


class LinkReceiver:
    """A subscription, or a queue, over one link.

    A task of its own reads what arrives. It asks the client for one message at a time, from what the link has in store:
    asked for more, the client would wait for 0.2 seconds whether there are more, and lose them if it is cancelled
    meanwhile. It stops reading only where the link has no credit left, as what arrives unread stays
    locked; and it goes on when what it asks for next has room in the hand, so that the rest is left to others.
    """

    def __init__(
        self, settings: Settings, links: Links, admin: Admin, publisher: Publisher, subscription: Subscription
    ) -> None:
        self._links = links
        self._admin = admin
        self._subscription = subscription
        self._settlement = Settlement(settings, publisher, subscription)
        self._entity = entity_of(subscription.topic)
        self._group = subscription_of(subscription.group)
        self._credit = max(1, min(CREDIT, subscription.max_in_flight // 2))
        self._most = max(subscription.max_in_flight, self._credit) - self._credit
        self._hand = Hand(self._settlement)
        self._link: ServiceBusReceiver | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the link. Raises ConnectionLost, ConfigError."""
        self._link = await self._links.receiver(self._entity, self._group, self._credit)
        self._reading = asyncio.create_task(self._read(self._link), name="things_kit servicebus reader")
        if not self._subscription.create:
            # A link to what does not exist opens, and is closed by the service right after that
            await asyncio.wait({self._reading}, timeout=ANSWER)
            if self._reading.done():
                await self.close()
                await self._hand.take(0, 0)  # raises why

    async def _read(self, link: ServiceBusReceiver) -> None:
        try:
            while True:
                for _ in range(self._credit):
                    await self._read_one(link)
                await self._hand.until(lambda: self._hand.count <= self._most)
        except CLIENT as error:
            trouble = translated(error, f"receiving from {self._subscription.topic!r}")
            trouble.__cause__ = error
            self._hand.fail(trouble)
        except Exception as error:  # noqa: BLE001 - whatever it is, `receive` raises it
            self._hand.fail(error)

    async def _read_one(self, link: ServiceBusReceiver) -> None:
        received = None
        while received is None:
            received = next(iter(await link.receive_messages(1, max_wait_time=WAIT)), None)
        taken = Taken(received, unpack(self._subscription.topic, received), link)
        if is_for(received, self._group):
            self._hand.put(taken)
        else:
            await self._settlement.all([taken], complete)

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """What has arrived, after at most `wait` seconds."""
        return await self._hand.take(limit, wait)

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Complete, give back or copy; once begun it goes on, also if nobody waits for it any more."""
        await self._hand.settle(acknowledged, released)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Lock for longer what is held, and what is still here."""
        held = [delivery.token for delivery in deliveries]
        lost = await self._settlement.extend([*held, *self._hand.waiting])
        if lost:
            self._hand.forget(set(lost).__contains__)

    async def close(self) -> None:
        """Give back what was not settled, close the link, and remove an ephemeral group."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._hand.give_back()
        if self._link is not None:
            await close_link(self._link)
        await remove_ephemeral(self._admin, self._subscription)
